"""A sweep with a boosting library in the network's place."""

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.datasets import make_classification

from polylosses import Polynomial, boosting, cross_entropy, focal, poly1, taylor_cross_entropy
from polylosses.boosting import PolyObjective
from polylosses.torch import poly_softmax
from polylosses.tune import Result, SweepInterrupted, batched, boosted, statistics, sweep, tabular
from polylosses.tune.boosted import Boosted
from polylosses.tune.labelled import Labelled
from polylosses.tune.plan import CONFIRMATION, SELECTION, Plan
from polylosses.tune.store import read
from test_boosting_libraries import needs

LIBRARIES = ("xgboost", "lightgbm", "catboost")
EVERY_LIBRARY = [pytest.param(name, marks=[pytest.mark.slow, needs(name)]) for name in LIBRARIES]


def table(rows: int = 160, classes: int = 2) -> tuple[pd.DataFrame, np.ndarray]:
    """Numbers of all sizes with missing ones, text with rare categories, and names that libraries refuse."""
    X, y = make_classification(rows, 4, n_informative=4, n_redundant=0, n_classes=classes, flip_y=0.1, random_state=0)
    frame = pd.DataFrame(X * [1.0, 1e6, 1e-6, 1.0], columns=["[a]<", 'b, "c":', "d {e}", "f g"])
    rng = np.random.default_rng(0)
    frame.insert(1, "colour", np.where(rng.random(rows) < 0.7, np.array(["red", "", "blue"])[y], "green"))
    frame.loc[::20, "colour"] = [f"only {k}" for k in range(len(frame[::20]))]
    frame.loc[::7, "[a]<"] = np.nan
    return frame, y


def small(frame: Any = None, y: Any = None, **arguments: Any) -> Result:
    X, labels = table() if frame is None else (frame, y)
    given: dict[str, Any] = {"epsilons": [2.0], "learning_rates": [0.03, 0.1, 0.3], "repeats": 2, "model": "xgboost"}
    return sweep(X, labels, **given | arguments)


class Fake:
    """Stands for a classifier of XGBoost: one linear least squares, of which rounds are parts; 0.1 is the best rate."""

    trained: ClassVar[list[tuple[str, float, int, int]]] = []

    def __init__(self, polynomial: Polynomial, n_estimators: int, learning_rate: float, random_state: int, **_: Any):
        self.loss, self.rounds, self.rate, self.seed = polynomial, n_estimators, learning_rate, random_state

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> "Fake":
        Fake.trained.append((str(self.loss), self.rate, self.rounds, self.seed))
        self.classes = int(y.max()) + 1
        targets = 6 * np.eye(self.classes)[y] - 3
        self.weights = np.linalg.lstsq(self.numbers(X), targets, rcond=None)[0]
        return self

    def numbers(self, X: pd.DataFrame) -> np.ndarray:
        numbers = X.select_dtypes("float").fillna(0.0).to_numpy()
        found: np.ndarray = np.column_stack([np.ones(len(X)), numbers / np.abs(numbers).max(0)])
        return found

    def decision_function(self, X: pd.DataFrame, iteration_range: tuple[int, int]) -> np.ndarray:
        noise = np.random.default_rng(self.seed).normal(size=(len(X), self.classes))
        margins = self.numbers(X) @ self.weights + 4 * abs(math.log10(self.rate) + 1) * noise
        margins = np.asarray(margins * (iteration_range[1] / 100))
        return margins if self.classes > 2 else margins[:, 1] - margins[:, 0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setitem(sys.modules, "xgboost", SimpleNamespace(__version__="9.8.7"))
    monkeypatch.setitem(vars(boosting), "PolyXGBClassifier", Fake)
    Fake.trained.clear()
    return Fake


def experiment(model: str = "xgboost", **changes: Any) -> Boosted:
    frame, y = table()
    frame["colour"] = frame["colour"].replace("", "(missing)")
    given: dict[str, Any] = {"groups": None, "metric": "accuracy", "imbalance": 1.0, "label_noise": 0.0, "seed": 0}
    return Boosted(frame, Labelled(y, ["a", "b"], **given | changes), model)


PLAN = Plan(
    {"cross-entropy": cross_entropy(), "poly1(2)": poly1(2.0)}, [{"learning_rate": r} for r in (0.1, 0.3)], 2, 4, 0
)


@pytest.mark.parametrize("polynomial", [cross_entropy(), poly1(2.0), poly1(-1.0), focal(2.0), taylor_cross_entropy(3)])
def test_the_probabilities_of_margins_are_those_of_the_objective(polynomial: Polynomial) -> None:
    objective, rng = PolyObjective(polynomial=polynomial), np.random.default_rng(0)
    for shape in ((50,), (50, 3)):
        margins = rng.normal(0, 3, shape)
        expected = objective.probabilities(margins)
        found = poly_softmax(boosted.logits_of(margins), 1, polynomial=polynomial).numpy()
        np.testing.assert_allclose(found[:, 1] if len(shape) == 1 else found, expected, rtol=0, atol=1e-6)
        assert found.sum(1) == pytest.approx(np.ones(50))


@pytest.mark.parametrize("model", LIBRARIES)
def test_columns_are_as_they_were_and_categories_are_those_of_the_training_rows(model: str) -> None:
    one = experiment(model)
    drawn = one._draw(PLAN.trial(SELECTION, "cross-entropy", 0, 0))
    for rows, found in ((drawn.train_rows, drawn.features), (drawn.scored_rows, drawn.scored_features)):
        assert found.columns.tolist() == ["c0", "c1", "c2", "c3", "c4"]
        numbers = one.frame.drop(columns="colour").to_numpy()[rows]
        np.testing.assert_array_equal(found.drop(columns="c1").to_numpy(), numbers)
        assert np.isnan(numbers).any()
        text = one.frame["colour"].iloc[rows]
        if model == "catboost":
            assert found["c1"].tolist() == text.tolist()
            continue
        seen = set(one.frame["colour"].iloc[drawn.train_rows])
        assert found["c1"].cat.categories.tolist() == sorted(seen)
        assert found["c1"].astype(object).where(found["c1"].notna(), None).tolist() == [
            value if value in seen else None for value in text
        ]
    assert "colour" in one.frame, "the table itself is unchanged"
    assert set(one.frame["colour"].iloc[drawn.scored_rows]) - set(one.frame["colour"].iloc[drawn.train_rows])


def test_arms_share_rows_labels_and_seed_and_repeats_do_not(fake: type[Fake]) -> None:
    one = experiment(label_noise=0.2)
    batches = list(one.batches([*PLAN.selection(), PLAN.trial(CONFIRMATION, "poly1(2)", 0, 2)]))
    assert [[trial.repeat for trial in batch] for batch in batches] == [[0] * 4, [1] * 4, [2]]
    drawn = [one._draw(batch[0]) for batch in batches]
    assert len({one.seed for one in drawn}) == 3
    assert [len(set(one.scored_rows)) for one in drawn] == [28, 28, 48]
    flipped = [(one_draw.y != one.labelled.labels[one_draw.train_rows]).mean() for one_draw in drawn]
    assert flipped == pytest.approx([0.2] * 3, abs=0.01)
    steps: list[int] = []
    for trial, outcome in one.run(batches[1], steps.append):
        assert trial.seed == drawn[1].seed
        assert outcome.measures["scored_rows"] == 28
        assert sum(outcome.measures["training_rows"]) == 84
        assert outcome.seconds > 0
    assert steps == [4] * 4
    assert {(rounds, seed) for _, _, rounds, seed in fake.trained} == {(100, drawn[1].seed)}
    assert len(set(fake.trained)) == 4


def test_a_run_is_stored_when_it_is_done_and_not_trained_again(
    fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []

    def stop(done: float, stage: str) -> None:
        shares.append(done)
        if len(shares) == 8:
            raise KeyboardInterrupt

    with pytest.raises(SweepInterrupted) as interrupt:
        small(storage=tmp_path, progress=stop)
    assert shares == pytest.approx([k / 20 for k in range(1, 9)])
    assert len(interrupt.value.runs) == 7
    fake.trained.clear()
    result = small(storage=tmp_path)
    assert sum(rounds == 100 for _, _, rounds, _ in fake.trained) == len(result.runs) - 7
    pd.testing.assert_frame_equal(result.runs, small().runs)
    assert set(result.table.learning_rate) == {0.1}
    with pytest.raises(ValueError, match="another plan: model is 'xgboost' there, and 'network' here"):
        small(storage=tmp_path, model="network")
    monkeypatch.setattr(sys.modules["xgboost"], "__version__", "9.9.0")
    with pytest.raises(ValueError, match=r"another plan: xgboost is '9\.8\.7' there, and '9\.9\.0' here"):
        small(storage=tmp_path)
    monkeypatch.setattr(sys.modules["xgboost"], "__version__", "9.8.7")
    X, y = table()
    with pytest.raises(ValueError, match="another plan: features is"):
        small(X.assign(colour=X["colour"].replace("red", "pink")), y, storage=tmp_path)


def test_the_report_says_which_model_and_comes_from_the_storage_alone(fake: type[Fake], tmp_path: Path) -> None:
    result = small(storage=tmp_path, name="mine.csv")
    assert "plain cross-entropy with XGBoost" in result.sentence
    settings = result.settings
    assert (settings["model"], settings["rounds"], settings["threads"]) == ("xgboost", 100, 1)
    assert "device" not in settings
    assert settings["versions"]["xgboost"] == "9.8.7"
    assert "torch" not in settings["versions"]
    assert "<title>Which epsilon for mine.csv with XGBoost?</title>" in result.to_html()
    figure, caption = result.figures["Confidence while training"]
    assert "training label every 10 rounds" in caption
    assert figure.layout.xaxis.title.text == "round"
    assert figure.layout.xaxis.dtick == 10
    for line in figure.data[:2]:
        assert line.x == tuple(range(10, 101, 10))
        assert line.y[-1] > line.y[0]
        assert "round %{x}" in line.hovertemplate
    sys.modules.pop("xgboost")
    again = tabular.stored(read(tmp_path, "mine.csv"))
    for one, folder in ((result, "then"), (again, "now")):
        one.write(tmp_path / folder)
    for file in ("results.json", "results.csv", "report.html"):
        assert (tmp_path / "then" / file).read_bytes() == (tmp_path / "now" / file).read_bytes(), file


def test_the_network_is_the_default(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 20)
    result = sweep(*table(), epsilons=[2.0], learning_rates=[0.01], repeats=2)
    assert not fake.trained
    assert result.settings["model"] == "network"
    assert "between epsilon = 2 and plain cross-entropy: " in result.sentence or " than plain" in result.sentence
    assert "Which epsilon for your data?" in result.to_html()
    assert any("larger steps" in note for note in result.notes)


def test_rates_and_text_are_read_for_the_model(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular, "MOST_ADDED", 0)
    frame, y = table()
    frame["many"] = [f"kind {k % 40}" for k in range(160)]
    result = small(frame, y, learning_rates=None)
    assert result.settings["learning_rates"] == list(boosted.LEARNING_RATES)
    assert result.columns.set_index("name").read["many"] == "text: 40 categories"
    one = small(frame, y, learning_rates=[0.1])
    assert "One learning rate was tried: a difference may be that of another learning rate." in one.notes


def test_a_few_rounds_tell_how_long_all_take(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 s for a model of one round, and 8 s for one of eleven.
    clock = iter([0.0, 3.0, 10.0, 18.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert experiment().seconds(PLAN.selection()) == pytest.approx(8 * (3 + 99 * 0.5))
    assert [rounds for _, _, rounds, _ in fake.trained] == [1, 1, 11]


def test_it_is_said_how_long_it_takes_and_a_time_budget_takes_fewer_rows(
    fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boosted, "FEWEST_ROWS", 40)
    monkeypatch.setattr(Boosted, "seconds", lambda self, trials: len(trials) * len(self.labelled.labels) / 10)
    seen: list[str] = []
    small(learning_rates=[0.1], progress=lambda done, stage: seen.append(stage))
    assert seen[0] == "selection: about 3 min in all"  # 12 models of 16 s
    result = small(learning_rates=[0.1], time_budget=185)
    assert result.settings["rows"] == pytest.approx(160 * 0.7 * 185 / (12 * 16), abs=2)
    with pytest.raises(
        ValueError, match=r"time_budget 1 is too short: about 1[34]. s are needed, and it takes no fewer"
    ):
        small(learning_rates=[0.1], time_budget=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "forest"}, "model must be one of network, xgboost, lightgbm, catboost; got 'forest'"),
        ({"device": "cpu"}, "the device 'cpu' is for networks, and xgboost trains on the CPU: leave it out"),
    ],
)
def test_what_has_no_meaning_is_refused(fake: type[Fake], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**arguments)
    assert not fake.trained


@pytest.mark.parametrize("model", LIBRARIES)
def test_a_missing_library_is_named_first(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, model, None)
    with pytest.raises(ImportError, match=rf"{model} .*pip install '{model}>="):
        sweep([], [], model=model)


def test_what_a_library_can_not_train_is_one_line(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("Traceback:\n  a line\nCheck failed: there is nothing\n")

    monkeypatch.setattr(fake, "fit", fails)
    said = "XGBoost can't train cross-entropy with learning rate 0.03 on this table: Check failed: there is nothing$"
    with pytest.raises(ValueError, match=said):
        small()
    for error in (KeyboardInterrupt(), RuntimeError("Traceback:\nKeyboardInterrupt: \n")):
        monkeypatch.setattr(fake, "fit", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(SweepInterrupted):
            small()


@pytest.mark.parametrize("model", EVERY_LIBRARY)
@pytest.mark.parametrize("classes", [2, 3])
def test_cross_entropy_trains_the_librarys_own_model(model: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the rows of the split, as they are: nothing is scaled, filled or left out."""
    monkeypatch.setattr(boosted, "ROUNDS", 20)
    frame, y = table(160 if model != "catboost" or classes == 2 else 90, classes)
    frame["colour"] = frame["colour"].replace("", "(missing)")
    one = Boosted(frame, Labelled(y, ["a", "b", "c"][:classes], None, "accuracy", 1.0, 0.0, 0), model)
    trial = PLAN.trial(SELECTION, "cross-entropy", 1, 0)
    drawn = one._draw(trial)
    ((_, outcome),) = one.run([trial], lambda trials: None)
    if model == "catboost":
        own = boosting.PolyCatBoostClassifier(
            0.0,
            iterations=20,
            learning_rate=0.3,
            random_seed=drawn.seed,
            cat_features=["colour"],
            thread_count=1,
            allow_writing_files=False,
            verbose=False,
        ).fit(frame.iloc[drawn.train_rows], drawn.y)
        margins = own.decision_function(frame.iloc[drawn.scored_rows])
        first = own.decision_function(frame.iloc[drawn.train_rows], ntree_end=10)
    else:
        library = __import__(model)
        shared = {"n_estimators": 20, "learning_rate": 0.3, "n_jobs": 1}
        if model == "xgboost":
            own = library.XGBClassifier(**shared, enable_categorical=True)
            own.fit(drawn.features, drawn.y)
            margins = own.predict(drawn.scored_features, output_margin=True)
            first = own.predict(drawn.features, output_margin=True, iteration_range=(0, 10))
        else:
            own = library.LGBMClassifier(**shared, verbosity=-1).fit(drawn.features, drawn.y)
            margins = own.predict(drawn.scored_features, raw_score=True)
            first = own.predict(drawn.features, raw_score=True, num_iteration=10)

    def probabilities(of: Any) -> np.ndarray:
        return softmax(of, axis=1) if classes > 2 else np.column_stack([1 - expit(of), expit(of)])

    expected = statistics.scores(y[drawn.scored_rows], probabilities(margins))
    assert {name: outcome.measures[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert len(outcome.measures["mean_p_t"]) == 2
    p_t = probabilities(first)[np.arange(len(drawn.y)), drawn.y].mean()
    assert outcome.measures["mean_p_t"][0] == pytest.approx(p_t, abs=1e-4)
    assert outcome.measures["mean_p_t"][1] > p_t


@pytest.mark.parametrize("model", EVERY_LIBRARY)
def test_a_sweep_with_a_library(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same numbers in every run, arms are paired, a rate above 1 is tried without a word, and it is all JSON."""
    monkeypatch.setattr(boosted, "ROUNDS", 10)
    given: dict[str, Any] = {"model": model, "epsilons": [1e-9], "learning_rates": [2.0]}
    result = small(**given)
    pd.testing.assert_frame_equal(result.runs, small(**given).runs)
    assert result.table.difference.abs().max() < 1e-6
    assert result.verdict == "no detectable difference"
    result.write(tmp_path)
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"not JSON: {name}"))
    assert tuple(capfd.readouterr()) == ("", "")
    assert result.settings["versions"][model] == str(__import__(model).__version__)


@pytest.mark.parametrize("model", EVERY_LIBRARY)
def test_a_table_of_few_rows_is_trained_on(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosted, "ROUNDS", 10)
    frame, y = table(24)
    result = small(frame, y, model=model, learning_rates=[0.3])
    assert result.settings["training_rows"] < 20
    assert np.isfinite(result.runs.log_loss).all()


@pytest.mark.slow
@needs("catboost")
def test_an_interrupt_within_catboost_is_one() -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boosting.CatBoostObjective, "calc_ders_range", interrupted)
        with pytest.raises(SweepInterrupted):
            small(model="catboost")


def test_logits_are_in_float64() -> None:
    assert boosted.logits_of(np.zeros(2, np.float32)).dtype == torch.float64
