"""The sweep: pairing, selection, confirmation and reporting."""

import json
import re
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification

from cases import slow_but
from polylosses import focal, poly1
from polylosses.tune import (
    Result,
    SweepInterrupted,
    analysis,
    batched,
    data,
    experiment,
    splits,
    statistics,
    sweep,
    tabular,
)
from polylosses.tune.labelled import Labelled
from polylosses.tune.plan import SELECTION, Plan
from polylosses.tune.store import read

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
    assert result.verdict == analysis.verdict_of(result.confirmation, metric != "log_loss")
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
    features = data.encode(pd.DataFrame(X, columns=[str(k) for k in range(X.shape[1])]))
    drawing = experiment.Experiment(features, Labelled(y, ["a", "b", "c"], None, "accuracy", 1.0, 0.0, seed=0))
    plan = Plan({"poly1(2)": poly1(2.0)}, [{"learning_rate": 0.1}], 2, 4, 0)
    first, again, second = (drawing._draw(plan.trial(SELECTION, "poly1(2)", 0, repeat)) for repeat in (0, 0, 1))
    assert np.array_equal(first.train_rows, again.train_rows)
    assert first.seed == again.seed
    assert not np.array_equal(first.train_rows, second.train_rows)
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
        result = small(epsilons=[-30.0], learning_rates=[0.03], repeats=5)
    assert result.verdict == "worse"
    assert result.sentence.startswith("epsilon = -30 is worse than plain cross-entropy: accuracy ")


def test_figures_have_a_caption_and_the_metric_comes_first(result: Result) -> None:
    assert next(iter(result.figures)) == "Accuracy against epsilon"
    assert len(result.figures) == 6
    for heading, (figure, caption) in result.figures.items():
        assert figure.data, heading
        assert caption.endswith("."), heading


def test_what_is_written(result: Result, tmp_path: Path) -> None:
    result.write(tmp_path / "new" / "directory")
    files = {path.name: path for path in (tmp_path / "new" / "directory").iterdir()}
    assert set(files) == {"results.csv", "results.json", "report.html"}
    pd.testing.assert_frame_equal(pd.read_csv(files["results.csv"]), result.runs, check_dtype=False)
    assert len(result.runs) == 3 * 3 * len(result.settings["learning_rates"]) + 6 * 2
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
    assert {stage for _, stage in seen} >= {"selection", "confirmation: 1 learning rate added"}


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
    same = ["stage", "repeat", "loss", "learning_rate"]
    pd.testing.assert_frame_equal(runs, runs[same].merge(result.runs)[runs.columns], rtol=0.02, check_dtype=False)
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
        ({"losses": ["focal"], "epsilons": ["a"]}, TypeError, "epsilons must be numbers; got 'a'"),
        ({"losses": ["no_loss(2)"]}, ValueError, "no_loss"),
        ({"max_rows": 0}, ValueError, "max_rows must be a whole number of rows; got 0"),
        ({"time_budget": 0}, ValueError, "time_budget must be a number of seconds above 0; got 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        small(**arguments)


@pytest.mark.parametrize(("given", "added"), [([1e-5, 1e-4], max), ([3.0, 30.0], min)], ids=["too low", "too high"])
def test_learning_rates_are_added_until_the_best_is_inside(given: list[float], added: Any) -> None:
    result = small(epsilons=[2.0], learning_rates=given, metric="log_loss")
    rates = result.settings["learning_rates"]
    assert added(rates) == added(result.settings["learning_rates_added"])
    assert set(result.table.learning_rate) < set(rates[1:-1])
    # The same for every loss.
    selection = result.runs[result.runs.stage == "selection"]
    assert selection.groupby("loss").learning_rate.unique().map(sorted).map(tuple).nunique() == 1
    assert any("beyond those given were needed, and tried with every loss: " in note for note in result.notes)
    assert result.verdict in VERDICTS


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_larger_epsilons_are_advised_where_the_largest_did_best(metric: str) -> None:
    found = []
    for rate in (0.3, 1.0):
        result = small(epsilons=[2.0], learning_rates=[rate], metric=metric, repeats=2)
        score_of = result.table.set_index("epsilon").score * (-1 if metric == "log_loss" else 1)
        found.append(score_of[2.0] > score_of[0.0])
        advised = "The largest epsilon, 2, did best on validation rows: try larger ones." in result.notes
        assert advised == found[-1]
    assert found == [False, True]


def test_a_best_learning_rate_at_the_edge_leaves_the_verdict_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "MOST_ADDED", 1)
    result = small(epsilons=[2.0], learning_rates=[1e-6, 1e-5], metric="log_loss")
    assert result.verdict == "undecided"
    assert result.settings["learning_rates"] == [1e-6, 1e-5, 1e-4]
    assert result.sentence.startswith(
        "Undecided between epsilon = 2 and plain cross-entropy: cross-entropy did best with the largest learning rate, "
        "0.0001, and may do better beyond it; with those tried, log loss "
    )
    # A single one is a fixed recipe.
    fixed = small(epsilons=[2.0], learning_rates=[1e-5])
    assert fixed.settings["learning_rates"] == [1e-5]
    assert any(note.startswith("One learning rate was tried. A positive epsilon") for note in fixed.notes)


def test_learning_rates_that_do_equally_well_are_no_edge() -> None:
    plan = Plan({"cross-entropy": poly1(0.0), "a": poly1(1.0)}, [{"learning_rate": r} for r in (0.1, 0.2)], 2, 4, 0)
    tied = analysis.Selection({"cross-entropy": 0, "a": 0}, "a", np.full((2, 2, 2), 0.5))
    assert tabular._edge(plan, tied, True) is None
    tied.scores[1, 0] = 0.6
    assert tabular._edge(plan, tied, True) == ("a", "smallest", 0.1, 0.05)


def test_any_losses_are_compared() -> None:
    result = small(losses=["focal(2)"], epsilons=None)
    assert result.table.loss.tolist() == ["cross-entropy", "focal(2)"]
    assert result.candidate == "focal(2)"
    assert np.isnan(result.best_epsilon)
    assert result.to_dict()["best_epsilon"] is None
    assert result.formatted_table().columns[0] == "loss"
    assert "between focal(2) and plain cross-entropy" in result.sentence or result.sentence.startswith("focal(2) is ")
    both = small(losses={"mine": focal(2.0)}, epsilons=[1.0, 0.0, -1.0], learning_rates=[0.01])
    assert both.table.loss.tolist() == ["poly1(-1)", "cross-entropy", "poly1(1)", "mine"]


def test_what_is_stored_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Result) -> None:
    monkeypatch.setattr(experiment, "MODELS_AT_ONCE", 6)
    run, trained = experiment.Experiment.run, list[str]()

    def noted(*given: Any) -> Any:
        found = run(*given)
        trained.extend(trial.key for trial, _ in found)
        return found

    monkeypatch.setattr(experiment.Experiment, "run", noted)
    seen: list[str] = []

    def stop(done: float, stage: str) -> None:
        seen.append(stage)
        if len(seen) == 25:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted):
        small(storage=tmp_path, progress=stop)
    first = len(seen)
    again = small(storage=tmp_path, progress=lambda done, stage: seen.append(stage))
    pd.testing.assert_frame_equal(again.runs, result.runs, rtol=0.02)
    assert again.verdict == result.verdict
    before = len(seen)
    assert before > first
    assert len(trained) == len(set(trained)) == len(again.runs)
    finished = small(storage=tmp_path, progress=lambda done, stage: seen.append(stage))
    assert len(seen) == before
    assert finished.to_dict() == again.to_dict()
    with pytest.raises(ValueError, match="with another plan: repeats is 3 there, and 4 here"):
        small(storage=tmp_path, repeats=4)
    X, y = blobs()
    with pytest.raises(ValueError, match="another plan: features is"):
        sweep(2 * X + 1, y, epsilons=[-1.0, 2.0], learning_rates=[0.003, 0.03], repeats=3, storage=tmp_path)


def test_a_report_comes_from_the_storage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "MODELS_AT_ONCE", 6)
    X, y = blobs()
    frame = pd.DataFrame(X).rename(columns="column {}".format).assign(colour=["red", "", "blue"] * 80)
    given: dict[str, Any] = {"epsilons": [2.0], "losses": ["focal"], "learning_rates": [0.003, 0.03], "repeats": 2}
    given |= {"storage": tmp_path, "name": "mine.csv", "settings": {"read": ["Fields are separated by commas."]}}

    def stop(done: float, stage: str) -> None:
        if done > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted):
        sweep(frame, y, **given, progress=stop)
    unfinished = tabular.stored(read(tmp_path, None))
    assert re.match(r"Not finished: \d+ of 12 trainings of the selection are done", unfinished.sentence)
    result = sweep(frame, y, **given)
    again = tabular.stored(read(tmp_path, "mine.csv"))
    for one, folder in ((result, "then"), (again, "now")):
        one.write(tmp_path / folder)
    for name in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / "then" / name).read_bytes() == (tmp_path / "now" / name).read_bytes(), name


def test_a_folder_serves_one_sweep_at_a_time(tmp_path: Path) -> None:
    def another(done: float, stage: str) -> None:
        with pytest.raises(ValueError, match="another command is at work on 'your data'"):
            small(storage=tmp_path, seed=0)
        raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted):
        small(storage=tmp_path, progress=another)


@pytest.mark.parametrize("grouped_rows", [False, True])
def test_fewer_rows_are_drawn_from_every_class_or_as_whole_groups(grouped_rows: bool) -> None:
    X, y = blobs()
    y = np.where(np.arange(240) < 12, 3, y)
    groups = np.arange(240) // 5 if grouped_rows else None
    kept = splits.sample(y, 100, 0, groups)
    assert np.array_equal(kept, np.sort(kept))
    if groups is not None:
        assert len(kept) == 100
        assert (np.bincount(groups[kept])[np.unique(groups[kept])] == 5).all()
    else:
        shares = np.bincount(y[kept]) / 100
        np.testing.assert_allclose(shares[:3], np.bincount(y)[:3] / 240, atol=0.01)
        assert (y[kept] == 3).sum() == splits.MINIMUM_ROWS
        result = sweep(X, y, max_rows=100, epsilons=[2.0], learning_rates=[0.01], repeats=2)
        assert result.settings["rows"] == len(kept)
        assert f"{len(kept)} of 240 rows are used, drawn at random." in result.notes
        whole = sweep(X, y, max_rows=240, epsilons=[2.0], learning_rates=[0.01], repeats=2)
        assert whole.settings["rows"] == 240
    assert not np.array_equal(kept, splits.sample(y, 100, 1, groups))


def test_a_time_budget_takes_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a measured speed of 1,000 rows of a model in a second, and 5 epochs of at least 80 rows."""
    monkeypatch.setattr(batched, "MINIMUM_EPOCHS", 5)
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 5)

    def seconds(self: experiment.Experiment, trials: Any) -> float:
        return len(trials) * 5 * len(self.labelled.labels) / 1000

    monkeypatch.setattr(experiment.Experiment, "seconds", seconds)
    arguments = {"epsilons": [2.0], "learning_rates": [0.01], "repeats": 2}  # 12 models, 14.4 s for 240 rows
    assert small(**arguments, time_budget=21).settings["rows"] == 240
    result = small(**arguments, time_budget=15, storage=tmp_path)
    assert result.settings["rows"] == pytest.approx(240 * 0.7 * 15 / 14.4, abs=2)
    # What was begun goes on with as many, whatever the speed is now.
    monkeypatch.setattr(experiment.Experiment, "seconds", lambda *_: 1e6)
    assert small(**arguments, time_budget=15, storage=tmp_path).to_dict() == result.to_dict()
    with pytest.raises(
        ValueError, match=r"time_budget 15 is too short: about \d+ s are needed, and it takes no fewer than"
    ):
        small(**arguments, time_budget=15)


def test_how_long_it_takes_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "LONG", 0)
    monkeypatch.setattr(experiment.Experiment, "seconds", lambda *_: 300.0)
    seen: list[tuple[float, str]] = []
    small(learning_rates=[0.01], progress=lambda *given: seen.append(given))
    assert seen[0] == (0.0, "selection: about 5 min in all")
    assert seen[-1][1] == "confirmation: about 5 min in all"


def test_a_few_steps_tell_how_long_all_take(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int | None] = []
    clock = iter([0.0, 2.0])

    def train(X: Any, labels: Any, *_: Any, steps: int | None = None, **__: Any) -> None:
        steps_taken.append(steps)

    steps_taken = steps
    monkeypatch.setattr(batched, "train", train)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(experiment, "MODELS_AT_ONCE", 4)
    X, y = blobs()
    features = data.encode(pd.DataFrame(X, columns=[str(k) for k in range(8)]))
    timed = experiment.Experiment(features, Labelled(y, ["a", "b", "c"], None, "accuracy", 1.0, 0.0, seed=0))
    plan = Plan({"a": poly1(2.0), "b": poly1(1.0)}, [{"learning_rate": 0.1}], 6, 2, 0)
    # 12 models, 4 at once, of 0.2 s a step; 126 training rows are 2 steps in each of 10 epochs.
    assert timed.seconds(plan.selection()) == pytest.approx(3 * 0.2 * 20)
    assert steps == [2, 10]


@pytest.mark.parametrize("given", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=f"the device '{given}' can't be used"):
        small(device=given)


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


def grouped(rows: int = 240) -> np.ndarray:
    return np.array([f" patient {k}" if k % 2 else f"patient {k}" for k in np.arange(rows) // 5])


def test_rows_of_one_group_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows without a label are left out, and spaces around a group's name are missing in one of its rows."""
    X, y = blobs()
    labels = pd.Series(y).map(str)
    labels[::7] = None
    kept = labels.notna().to_numpy()
    groups = grouped()
    expected = pd.factorize(np.char.strip(groups[kept]))[0]
    groups[::3] = np.char.strip(groups[::3])
    drawn: list[int] = []
    draw = splits.draw

    def checked(y: np.ndarray, rows: np.ndarray, *rest: Any) -> Any:
        train, noisy, validation = draw(y, rows, *rest)
        test = np.setdiff1d(np.arange(len(y)), rows)
        parts = [set(expected[part]) for part in (train, validation, test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 48
        drawn.append(len(train))
        return train, noisy, validation

    monkeypatch.setattr(splits, "draw", checked)
    result = sweep(X, labels, groups=groups, drop_missing_labels=True, epsilons=[2.0], learning_rates=[0.01], repeats=3)
    assert len(set(drawn)) > 1, "the repeats should differ in size"
    assert result.settings["groups"] == 48
    assert set(result.runs.repeat) == set(range(9))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("patient", "one value per row; got 0 dimensions"),
        (grouped()[:100], "groups has 100 values and y has 240"),
        ([*grouped()[:-2], " ", None], "2 of 240 groups are missing, the first at index 238"),
        (np.arange(240) % 2, "2 groups are too few"),
        (np.random.default_rng(0).integers(3, size=240), "all test rows are of one group"),
        (np.where(np.arange(240) % 3 == 1, 1000 + np.arange(240) % 2, np.arange(240)), "a class is in too few groups"),
    ],
)
def test_groups_are_checked_before_anything_is_trained(groups: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match=said):
        sweep(blobs()[0], np.where(np.arange(240) < 6, 0, np.arange(240) % 3), groups=groups, repeats=2)


def test_splits_by_group_are_drawn_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails in the last repeat would waste all others."""
    draw, drawn = splits.draw, []

    def fails_at_last(*given: Any) -> Any:
        drawn.append(given)
        if len(drawn) == 9:
            raise ValueError("too few")
        return draw(*given)

    monkeypatch.setattr(splits, "draw", fails_at_last)
    monkeypatch.setattr(batched, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="too few"):
        small(groups=grouped())


def test_what_was_read_is_in_the_result() -> None:
    X, y = blobs()
    frame = pd.DataFrame(X[:, :3], columns=["a", "b", "c"]).assign(row=range(240), colour=["red", "blue"] * 120)
    frame.loc[:4, "a"] = np.nan
    labels = pd.Series(y).map(str)
    labels[:2] = "rare"
    result = sweep(frame, labels, drop=["b"], rare="drop", epsilons=[2.0], learning_rates=[0.01], repeats=2)
    assert result.columns.columns.tolist() == ["name", "read", "missing", "example", "warning"]
    assert result.columns.name.tolist() == ["a", "b", "c", "row", "colour"]
    assert result.columns.missing.tolist() == [3, 0, 0, 0, 0]
    assert result.columns.read[1] == "left out, as you asked"
    assert result.columns.read[3].startswith("left out: whole numbers that rise")
    assert result.settings["features"] == 3
    assert result.settings["rows"] == 238
    assert result.notes[0] == "Classes of fewer than 8 rows are left out: rare (2 rows)."
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["notes"] == result.notes
    assert found["columns"] == result.columns.to_dict("records")
    assert found["columns"][4] == {
        "name": "colour",
        "read": "text: 2 categories",
        "missing": 0,
        "example": "red",
        "warning": "",
    }


@pytest.mark.parametrize("metric", statistics.METRICS)
def test_arms_that_only_guess_are_told(metric: str) -> None:
    """From columns that tell nothing, the shares of the classes are learned at best."""
    y = np.arange(200) % 5 // 4 + np.arange(200) % 10 // 9
    X = pd.DataFrame({"a": np.ones(200), "b": np.zeros(200)})
    result = sweep(X, y, epsilons=[2.0], learning_rates=[0.03], repeats=2, metric=metric)
    _, test = splits.hold_out(y, 0)
    shares = np.bincount(y[test]) / len(test)
    probabilities = np.tile(shares if metric == "log_loss" else [1.0, 0.0, 0.0], (len(test), 1))
    guessing = statistics.scores(y[test], probabilities)[metric]
    assert result.settings["always_guessing"] == pytest.approx(guessing)
    shown = f"{guessing:.4f}" if metric == "log_loss" else f"{100 * guessing:.2f} %"
    assert re.fullmatch(
        rf"Neither cross-entropy nor epsilon = 2 is better than always (guessing|giving) the .*"
        rf"\({statistics.METRICS[metric]} {shown}\): the verdict is about nothing\.",
        result.notes[0],
    )
    assert "are exact copies of an earlier row" in result.notes[1]
    assert not any("about nothing" in note for note in small(metric=metric, repeats=2).notes)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_cross_entropy_is_advised_unless_another_epsilon_is_better(
    verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "verdict_of", lambda *_: verdict)
    advised = "Nothing speaks for another epsilon here: use cross-entropy." in small(repeats=2).notes
    assert advised == (verdict != "better")
