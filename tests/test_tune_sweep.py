"""The sweep: pairing, selection, confirmation and reporting."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification

from cases import slow_but
from polylosses.tune import Result, SweepInterrupted, batched, experiment, splits, statistics, sweep

VERDICTS = ("better", "worse", "no detectable difference")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 20)


def blobs(rows: int = 240, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(rows, 8, n_informative=5, n_classes=classes, class_sep=1.0, flip_y=0.1, random_state=0)
    return X, y


def small(**arguments: Any) -> Result:
    given: dict[str, Any] = {"epsilons": [-1.0, 2.0], "learning_rates": [0.003, 0.03], "repeats": 3}
    return sweep(*blobs(), **given | arguments)


@cache
def of_metric(metric: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batched, "MINIMUM_STEPS", 20)
        return small(metric=metric)


@pytest.fixture
def result() -> Result:
    return of_metric("accuracy")


@pytest.mark.parametrize("metric", slow_but(statistics.METRICS, "accuracy", "log_loss"))
def test_the_verdict_follows_from_the_runs(metric: str) -> None:
    """All reported numbers can be recomputed from results.csv."""
    result = of_metric(metric)
    sign = -1 if metric == "log_loss" else 1
    selection = result.runs[result.runs.stage == "selection"]
    means = selection.pivot_table(index="learning_rate", columns="epsilon", values=metric) * sign
    for arm in result.table.to_dict("records"):
        assert means[arm["epsilon"]].idxmax() == arm["learning_rate"]
        assert arm["score"] * sign == pytest.approx(means[arm["epsilon"]].max())
    arms = result.table.set_index("epsilon")
    assert arms.difference.to_dict() == pytest.approx((arms.score - arms.score[0.0]).to_dict())
    scores = arms.score * sign
    assert result.best_epsilon == scores.drop(0.0).idxmax()

    confirmation = result.runs[result.runs.stage == "confirmation"].pivot(
        index="repeat", columns="epsilon", values=metric
    )
    difference = (confirmation[result.best_epsilon] - confirmation[0.0]).mean()
    assert result.confirmation.difference == pytest.approx(difference)
    assert result.confirmation.low < difference < result.confirmation.high
    assert result.verdict == statistics.verdict(result.confirmation, metric == "log_loss")
    assert f"epsilon = {result.best_epsilon:g}" in result.sentence
    numbers = (result.confirmation.difference, result.confirmation.low, result.confirmation.high)
    shown = [f"{x:+.4f}" if metric == "log_loss" else f"{100 * x:+.2f}" for x in numbers]
    assert re.search(
        rf"difference of {re.escape(shown[0])}.*interval {re.escape(shown[1])} to {re.escape(shown[2])}",
        result.sentence,
    )
    assert "6 fresh seeds and 72 untouched test rows" in result.sentence


def test_fresh_seeds_and_the_same_rates_confirm(result: Result) -> None:
    selection, confirmation = (result.runs[result.runs.stage == stage] for stage in ("selection", "confirmation"))
    assert not set(selection.repeat) & set(confirmation.repeat)
    assert confirmation.repeat.nunique() == 2 * selection.repeat.nunique()
    rates = result.table.set_index("epsilon").learning_rate
    assert set(confirmation.epsilon) == {0.0, result.best_epsilon}
    assert (confirmation.learning_rate == confirmation.epsilon.map(rates)).all()


def test_the_same_seed_gives_the_same_result(result: Result) -> None:
    pd.testing.assert_frame_equal(small().runs, result.runs)
    assert not small(seed=1).runs.equals(result.runs)


def test_how_repeats_are_batched_changes_nothing(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "MODELS_AT_ONCE", 1)
    pd.testing.assert_frame_equal(small().runs, result.runs, rtol=0.02)


def test_every_repeat_draws_anew_and_looks_at_its_training_rows_only() -> None:
    X, y = blobs()
    frame = pd.DataFrame(X, columns=[str(k) for k in range(X.shape[1])])
    drawing = experiment.Experiment(frame, y, "accuracy", 1.0, 0.0, seed=0)
    first, again, second = (drawing._draw("selection", repeat, *splits.hold_out(y, 0)) for repeat in (0, 0, 1))
    assert np.array_equal(first.train, again.train)
    assert first.seed == again.seed
    assert not np.array_equal(first.train, second.train)
    assert first.seed != second.seed
    for drawn in (first, second):
        assert drawn.x.mean(0).abs().max() < 1e-6
        assert (drawn.x.std(0, correction=0) - 1).abs().max() < 1e-6


def test_arms_are_paired() -> None:
    """An epsilon near 0 makes no difference in any repeat, since splits, weights and row order are the same."""
    result = small(epsilons=[1e-9], learning_rates=[0.01])
    assert result.table.difference.abs().max() == 0
    assert result.verdict == "no detectable difference"


def test_a_loss_that_can_not_learn_is_found_worse() -> None:
    """The verdict can be other than "no difference": with epsilon = -30, the gradient points away from p = 1."""
    with pytest.warns(UserWarning, match="epsilon = -30 .* below the bound -1"):
        result = small(epsilons=[-30.0], repeats=5)
    assert result.verdict == "worse"
    assert result.sentence.startswith("epsilon = -30 is worse than plain cross-entropy: accuracy ")


def test_figures_have_a_caption_and_the_metric_comes_first(result: Result) -> None:
    assert next(iter(result.figures)) == "Accuracy against epsilon"
    assert len(result.figures) == 5
    for heading, (figure, caption) in result.figures.items():
        assert figure.data, heading
        assert caption.endswith("."), heading


def test_what_is_written(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "new" / "directory")
    files = {path.name: path for path in (tmp_path / "new" / "directory").iterdir()}
    assert set(files) == {"results.csv", "results.json", "report.html"}
    pd.testing.assert_frame_equal(pd.read_csv(files["results.csv"]), result.runs, check_dtype=False)
    assert len(result.runs) == 3 * 3 * 2 + 6 * 2
    found = json.loads(files["results.json"].read_text(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert found["verdict"] in VERDICTS
    assert found["sentence"] == result.sentence
    assert found["settings"]["seed"] == 0
    assert found["settings"]["versions"]["torch"]
    assert len(found["arms"]) == 3
    page = re.sub("</?strong[^>]*>", "", files["report.html"].read_text())
    assert result.sentence in page
    assert files["results.csv"].stat().st_mode & 0o044, "others may read it"


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    small(
        epsilons=np.array([1, 2]),
        learning_rates=np.array([0.01], dtype=np.float32),
        repeats=np.int64(2),
        seed=np.int64(1),
        label_noise=np.float32(0.1),
    ).write(tmp_path)


def test_progress_rises_to_1() -> None:
    seen: list[tuple[float, str]] = []
    small(progress=lambda done, stage: seen.append((done, stage)))
    shares = [done for done, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert {stage for _, stage in seen} == {"selection", "confirmation"}


@pytest.mark.parametrize("after", [0.0, 0.5, 0.95])
def test_an_interrupt_keeps_the_finished_runs(after: float, monkeypatch: pytest.MonkeyPatch, result: Result) -> None:
    monkeypatch.setattr(experiment, "MODELS_AT_ONCE", 6)  # one batch per repeat

    def stop(done: float, stage: str) -> None:
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted) as interrupt:
        small(progress=stop)
    runs = interrupt.value.runs
    assert runs.columns.tolist() == result.runs.columns.tolist()
    assert (len(runs) > 0) == (after > 0)
    pd.testing.assert_frame_equal(runs, result.runs[: len(runs)], rtol=0.02, check_dtype=False)
    assert str(len(runs)) in str(interrupt.value)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"epsilons": []}, ValueError, r"at least one number other than 0.* got \[\]"),
        ({"epsilons": [0]}, ValueError, "at least one number other than 0"),
        ({"epsilons": ["a"]}, TypeError, "epsilons must be numbers; got 'a'"),
        ({"epsilons": [float("nan")]}, ValueError, "epsilons must be finite; got nan"),
        ({"learning_rates": []}, ValueError, "learning_rates need"),
        ({"learning_rates": [0.1, -0.1]}, ValueError, "above 0; got"),
        ({"metric": "auc"}, ValueError, "metric must be one of accuracy, .*; got 'auc'"),
        ({"repeats": 1}, ValueError, "repeats must be .* at least 2; got 1"),
        ({"repeats": 2.5}, ValueError, "repeats must be .* got 2.5"),
        ({"seed": -1}, ValueError, "seed must be .* got -1"),
        ({"imbalance": 0.5}, ValueError, "imbalance .* got 0.5"),
        ({"imbalance": 1e6}, ValueError, "imbalance 1e.06 needs"),
        ({"label_noise": 1.0}, ValueError, "label_noise .* got 1.0"),
        ({"label_noise": float("nan")}, ValueError, "label_noise .* got nan"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        small(**arguments)


def test_an_optimum_at_the_edge_of_the_grid_is_told() -> None:
    notes = small(learning_rates=[1e-6, 1e-5], metric="log_loss").notes
    assert any("largest learning rate, 1e-05" in note for note in notes), notes
    assert not any("learning rate" in note for note in small(learning_rates=[0.01]).notes)


def test_diverged_training_is_scored_as_knowing_nothing(tmp_path: Path) -> None:
    result = small(epsilons=[1e30], learning_rates=[1e30], repeats=2, metric="log_loss")
    assert np.isfinite(result.runs.log_loss).all()
    result.write(tmp_path)
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert result.verdict in VERDICTS


@pytest.mark.slow
def test_long_tails_and_label_noise_run() -> None:
    clean = of_metric("balanced_accuracy")
    for arguments in ({"imbalance": 10.0}, {"label_noise": 0.4}, {"imbalance": 5.0, "label_noise": 0.2}):
        result = small(**arguments, metric="balanced_accuracy")
        assert result.verdict in VERDICTS
        assert result.settings["training_rows"] <= 126
        assert result.table.score.max() < clean.table.score.max()
