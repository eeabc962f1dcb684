"""Studies of a training function, in one process: stores, resuming, failures, splits, notes and the verdict."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import polylosses
from polylosses.tune import StudyResult, Trial, store, study
from polylosses.tune.plan import Outcome
from polylosses.tune.studies import design, lead
from polylosses.tune.trials import outcome_of_scores, revision
from postgresql import Server, needs_postgresql


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


def train(trial: Trial) -> dict[str, float]:
    """Stands for a training: the same numbers for the same trial."""
    name = sum(map(ord, trial.loss))
    shared = np.random.default_rng(trial.seed).normal(0, 0.02)
    own = np.random.default_rng([trial.seed, name, trial.point]).normal(0, 0.01, 2)
    mean = 0.8 + shared + 0.02 * getattr(trial, "epsilon", 0.0) - 0.01 * (math.log10(trial.parameters["rate"]) + 2) ** 2
    return {"validation": mean + own[0], "test": mean - 0.1 + own[1]}


OPTIONS: dict[str, Any] = {
    "epsilons": [1.0],
    "losses": ["focal(2)"],
    "parameters": {"rate": "1e-4:1e-1:log"},
    "points": 3,
    "repeats": 4,
}


def numbers(result: StudyResult) -> str:
    """All that a study says, and the scores of all its trials."""
    trials = result.trials[["stage", "loss", "rate", "repeat", "seed", "score", "error"]]
    return json.dumps(result.to_dict(), sort_keys=True) + trials.to_csv(index=False)


def test_the_same_in_memory_in_a_folder_and_resumed_from_any_point(tmp_path: Path) -> None:
    right = study(train, **OPTIONS)
    assert right.verdict == "better"
    assert right.candidate == "poly1(1)"
    assert numbers(study(train, storage=tmp_path / "whole", **OPTIONS)) == numbers(right)
    calls = 0
    for stop in (*range(1, 8), 17, 30, 41, None):  # the first trial more often than workers may die in one

        def interrupted(trial: Trial, stop: int | None = stop) -> dict[str, float]:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return train(trial)

        if stop is None:
            assert numbers(study(interrupted, storage=tmp_path / "parts", **OPTIONS)) == numbers(right)
        else:
            with pytest.raises(KeyboardInterrupt):
                study(interrupted, storage=tmp_path / "parts", **OPTIONS)
    assert calls == len(right.trials) + 10  # every training once, and those that were interrupted
    assert numbers(study(None, storage=tmp_path / "parts", **OPTIONS)) == numbers(right)  # type: ignore[arg-type]


def test_a_worker_that_dies_between_taking_a_trial_and_signing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def dies(self: store.Store, trial: int, name: str, value: Any) -> None:
            assert name == "worker"
            raise KeyboardInterrupt

        patched.setattr(store.Store, "_set", dies)
        with pytest.raises(KeyboardInterrupt):
            study(train, storage=tmp_path, **OPTIONS)
    monkeypatch.setattr(store, "UNNAMED", 0.5)
    before = time.monotonic()
    assert numbers(study(train, storage=tmp_path, **OPTIONS)) == numbers(study(train, **OPTIONS))
    assert time.monotonic() - before < 60 * store.UNNAMED


@needs_postgresql
def test_the_same_in_postgresql(server: Server) -> None:
    assert numbers(study(train, storage=server.address, **OPTIONS)) == numbers(study(train, **OPTIONS))


@pytest.mark.slow
@needs_postgresql
def test_postgresql_that_stays_away_ends_the_study_and_the_same_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = Server(), 0
    monkeypatch.setattr(store, "PATIENCE", 1.0)
    monkeypatch.setattr(store, "GRACE", 3)  # of the trial that was in work

    def kills(trial: Trial) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 5:
            own.kill()
        return train(trial)

    try:
        with pytest.raises(ConnectionError, match=r"the database has been away for 0.0166667 minutes \(.*refused"):
            study(kills, storage=own.address, **OPTIONS)
        own.start()
        assert numbers(study(kills, storage=own.address, **OPTIONS)) == numbers(study(train, **OPTIONS))
    finally:
        own.stop()


def test_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    study(train, storage=tmp_path, **OPTIONS)
    with pytest.raises(
        ValueError, match="another plan: repeats is 4 there, and 5 here; most_seeds is 8 there, and 10 here"
    ):
        study(train, storage=tmp_path, **OPTIONS | {"repeats": 5})
    with pytest.raises(
        ValueError,
        match=r"plan: losses focal\(2\) is .* there, and nothing here; losses focal\(1\) is nothing there, and",
    ):
        study(train, storage=tmp_path, **OPTIONS | {"losses": ["focal(1)"]})
    with pytest.raises(ValueError, match="points are 3 there, and 2 here"):
        study(train, storage=tmp_path, **OPTIONS | {"points": 2})
    assert study(train, storage=tmp_path, name="another", **OPTIONS | {"repeats": 2}).settings["repeats"] == 2


def test_a_line_that_was_not_written_to_its_end_is_forgotten(tmp_path: Path) -> None:
    """As a process leaves it that is killed while it writes."""
    right = study(train, storage=tmp_path, **OPTIONS)
    journal = tmp_path / store.JOURNAL
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept, torn in (
        (len(lines), b'{"op_code":8,"tri'),
        (len(lines) - 9, lines[-9][:20]),
        (30, b"x" * 100_000),
        (0, b'{"'),
    ):
        journal.write_bytes(b"".join(lines[:kept]) + torn)
        assert numbers(study(train, storage=tmp_path, **OPTIONS)) == numbers(right)
        assert all(json.loads(line) for line in journal.read_text().splitlines())


def exits(trial: Trial) -> Any:
    sys.exit(3)


def forks(trial: Trial) -> Any:
    if os.fork() == 0:
        return {"validation": 7.0, "test": 7.0}
    os.wait()
    raise OSError("the child came back")


FAULTS: dict[str, tuple[Callable[[Trial], Any], str]] = {
    "raises": (lambda trial: 1 / 0, r"ZeroDivisionError: division by zero \(line \d+ of test_tune_study.py\)"),
    "returns nan": (lambda trial: math.nan, "it returned nan or infinity"),
    "returns infinity": (lambda trial: {"validation": 1.0, "test": [1.0, math.inf]}, "it returned nan or infinity"),
    "returns text": (lambda trial: "0.9", "ValueError: a score must be a number, or an array .* got '0.9'"),
    "returns nothing": (lambda trial: None, "ValueError: a score must be .* got None"),
    "returns an empty array": (lambda trial: {"validation": [], "test": []}, "a score must be .* for 'validation'"),
    "returns a matrix": (lambda trial: np.zeros((2, 2)), "a score must be .* array of shape|a score must be"),
    "returns other names": (lambda trial: {"val": 1.0}, "a dict of 'validation' and 'test'; got {'val': 1.0}"),
    "exits": (exits, "it ended the process, with code 3"),
    "forks": (forks, "OSError: the child came back"),
}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")  # JAX's
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_tried_again_and_then_left_out_with_its_reason(fault: str, tmp_path: Path) -> None:
    wrong, reason = FAULTS[fault]
    tried: list[str] = []

    def sometimes(trial: Trial) -> Any:
        at = (trial.stage, trial.loss, trial.point, trial.repeat)
        if at in (("selection", "poly1(1)", 0, 1), ("confirmation", "cross-entropy", 1, 5)):
            tried.append(trial.key)
            return wrong(trial)
        return train(trial)

    result = study(sometimes, storage=tmp_path, fixed=True, **OPTIONS)
    failed = result.trials[result.trials.error != ""]
    assert failed.error.str.contains(reason).all()
    assert failed.tries.tolist() == [2] * len(failed)
    assert len(tried) == 2 * len(failed) > 0
    assert result.confirmation.seeds_left_out == (failed.stage == "confirmation").sum()
    assert f"{len(failed)} trainings failed" in result.notes[0]
    assert not (result.trials.score == 7.0).any()


def test_a_failure_that_does_not_come_back_leaves_nothing_out() -> None:
    seen = set()

    def once(trial: Trial) -> Any:
        if trial.key not in seen and trial.repeat % 2:
            seen.add(trial.key)
            raise RuntimeError("out of luck")
        return train(trial)

    result = study(once, **OPTIONS)
    right = study(train, **OPTIONS)
    assert numbers(result) == numbers(right)
    assert set(result.trials.tries) == {1, 2}


def test_a_function_that_always_fails_stops_the_study_at_once() -> None:
    calls = 0

    def broken(trial: Trial) -> Any:
        nonlocal calls
        calls += 1
        raise RuntimeError("no such file")

    with pytest.raises(
        ValueError, match=r"the first training with every loss failed: RuntimeError: no such file \(line"
    ):
        study(broken, **OPTIONS)
    assert calls == 2 * 3  # both tries with each loss

    def diverges(trial: Trial) -> float:  # at its first point, with every loss
        return math.nan if trial.point == 0 else train(trial)["validation"]

    assert study(diverges, **OPTIONS).verdict
    with pytest.raises(ValueError, match="it returned nan or infinity"):
        study(lambda trial: math.nan, **OPTIONS)


def test_what_failed_in_another_worker_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GLANCE", 0.1)
    designed = design(epsilons=[1.0], repeats=5)
    ours, theirs = designed.open(tmp_path, "study"), designed.open(tmp_path, "study")
    seen = []

    def succeeds(attributes: Mapping[str, Any]) -> Outcome:
        seen.append(attributes["key"])
        return Outcome(0.5)

    def fails(attributes: Mapping[str, Any]) -> Outcome:
        seen.append(attributes["key"])
        return Outcome(math.nan, error="no luck")

    lead(designed, ours)
    ours.run_one(succeeds)
    theirs.run_one(fails)
    ours.run_one(succeeds)
    lead(designed, ours)
    time.sleep(0.2)
    ours.run_one(succeeds)
    assert seen[3] == seen[1]
    assert len({*seen}) == 3
    for one in (ours, theirs):
        one.close()


def test_rows_of_labels() -> None:
    """Splits, probabilities and logits, the posterior, and rows in the confirmation."""
    X, y = load_digits(return_X_y=True)
    X, y = X[:400] / 16, y[:400]
    seen: dict[tuple[str, int], list[np.ndarray]] = {}

    def classifier(trial: Trial) -> Any:
        assert trial.train_rows is not None
        assert trial.train_labels is not None
        assert trial.score_rows is not None
        assert not set(trial.train_rows) & set(trial.score_rows)
        seen.setdefault((trial.stage, trial.repeat), []).append(trial.score_rows)
        model = LogisticRegression(C=trial.parameters["C"], max_iter=300).fit(X[trial.train_rows], trial.train_labels)
        as_logits = trial.loss == "cross-entropy"
        found = model.decision_function if as_logits else model.predict_proba
        return torch.tensor(found(X[trial.score_rows])) if as_logits else found(X[trial.score_rows])

    options: dict[str, Any] = {"parameters": {"C": [1.0, 1e-3]}, "repeats": 3, "labels": y, "metric": "log_loss"}
    result = study(classifier, losses={"the same": polylosses.focal(1e-9)}, **options)
    # Logits and their probabilities give the same scores, and the loss is no other.
    assert result.table.score.tolist() == pytest.approx([result.table.score[0]] * 2, rel=1e-6)
    assert result.parameters["the same"] == {"C": 1.0}
    assert result.verdict == "no detectable difference"
    assert "and 120 test rows" in result.sentence
    assert 0.2 < result.table.score[0] < 0.6  # a loss, lower is better
    for rows in seen.values():
        assert all(np.array_equal(one, rows[0]) for one in rows)
    tests = {tuple(rows[0]) for (stage, _), rows in seen.items() if stage == "confirmation"}
    assert len(tests) == 1
    assert not set(*tests) & {row for (stage, _), rows in seen.items() if stage == "selection" for row in rows[0]}

    def wrong(trial: Trial) -> Any:
        return np.zeros((3, 10))

    with pytest.raises(ValueError, match=r"of shape \(70, 10\) \(rows x classes\); got float64 of shape \(3, 10\)"):
        study(wrong, epsilons=[1.0], labels=y, repeats=2)


def test_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    y = np.array(["a", "b", "c"])[rng.integers(3, size=300)]
    parts: list[set[int]] = []

    def classifier(trial: Trial) -> Any:
        assert trial.train_rows is not None
        assert trial.score_rows is not None
        train_groups, score_groups = set(groups[trial.train_rows]), set(groups[trial.score_rows])
        assert not train_groups & score_groups
        parts.append(score_groups)
        return rng.dirichlet([1, 1, 1], len(trial.score_rows))

    found = study(classifier, epsilons=[1.0], labels=y, groups=groups, repeats=2, label_noise=0.1, imbalance=2.0)
    count = len(max(parts, key=len))
    scores = found.trials[found.trials.stage == "selection"].pivot(index="repeat", columns="loss", values="score")
    differences = scores["poly1(1)"] - scores["cross-entropy"]
    row = found.table.set_index("loss").loc["poly1(1)"]
    half = 12.706 * differences.std() * math.sqrt(1 / 2 + found.settings["overlap"])  # of Student's t, one degree
    assert row.difference_high - row.difference == pytest.approx(half, rel=1e-4)
    assert re.search(rf"fresh seeds and \d+ test rows of {count} groups", found.sentence)
    assert len({frozenset(part) for part in parts}) >= 3
    with pytest.raises(ValueError, match="all test rows are of one group"):
        study(classifier, epsilons=[1.0], labels=y, groups=np.repeat([0, 1, 2], 100), repeats=2)
    with pytest.raises(ValueError, match="2 of 300 groups are missing, the first at index 7"):
        study(classifier, epsilons=[1.0], labels=y, groups=[*"abcdefg", " ", *["x"] * 291, None], repeats=2)
    with pytest.raises(ValueError, match="groups has 5 values"):
        study(classifier, epsilons=[1.0], labels=y, groups=groups[:5], repeats=2)


@pytest.mark.parametrize("right", [0, 1])
def test_trainings_that_only_guess_are_told(right: int) -> None:
    y = np.repeat([0, 0, 0, 1], 50)

    def guesses(trial: Trial) -> np.ndarray:
        assert trial.score_rows is not None
        predicted = np.zeros(len(trial.score_rows), int)
        predicted[np.flatnonzero(y[trial.score_rows])[:right]] = 1
        return np.eye(2)[predicted]

    result = study(guesses, epsilons=[1.0], labels=y, repeats=2)
    told = (
        "Neither cross-entropy nor poly1(1) is better than always guessing the largest class (accuracy 0.75): the "
        "verdict is about nothing."
    )
    assert (told in result.notes) == (right == 0)
    assert result.settings["overlap"] == 35 / 105


def test_notes() -> None:
    fixed = study(lambda trial: 0.5 + trial.seed % 7 / 100, epsilons=[1.0], repeats=3)
    assert any("larger steps, by 1 + epsilon p" in note for note in fixed.notes)
    assert any("The training returned one score" in note for note in fixed.notes)
    assert any("use cross-entropy" in note for note in fixed.notes)
    assert study(train, **OPTIONS).notes == []


@pytest.mark.slow
def test_noise_is_rarely_a_difference() -> None:
    """Of 30 studies of pure noise at most 2 claim one."""

    def noise(trial: Trial) -> dict[str, Any]:
        rng = np.random.default_rng([trial.seed, sum(map(ord, trial.loss)), trial.point])
        return {"validation": rng.normal(), "test": rng.normal(size=50)}

    verdicts = [study(noise, parameters={"rate": "0:1"}, points=4, seed=seed).verdict for seed in range(30)]
    assert sum(verdict != "no detectable difference" for verdict in verdicts) <= 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"repeats": 1}, "repeats must be a whole number from 2"),
        ({"points": 0}, "points must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"epsilons": [math.nan]}, "epsilons must be finite"),
        ({"epsilons": []}, "at least one number other than 0"),
        ({"losses": ["cross_entropy"]}, "at least one other than cross-entropy"),
        ({"parameters": {"loss": "0:1"}}, "can't be called 'loss'"),
        ({"groups": [1, 2]}, "give labels"),
        ({"labels": [0, 1] * 20, "metric": "f1"}, "metric must be one of"),
        ({"labels": [0, 1] * 20, "imbalance": 0.5}, "imbalance"),
        ({"labels": [0, 1] * 20, "label_noise": 1.0}, "label_noise"),
        ({"labels": [0] * 20}, "at least two classes"),
        ({"storage": "nothing"}, "the storage can't be used .* give a database's address"),
        ({"storage": "postgresql+nodriver://x/y"}, "the storage can't be used"),
        ({"storage": "mysql+pymysql://x/y"}, "is to be a PostgreSQL database, not mysql: give another address"),
    ],
)
def test_mistakes_are_one_clear_error(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        study(train, **options)


def test_scores_of_other_libraries() -> None:
    for one in (0.5, np.float32(0.5), torch.tensor(0.5, requires_grad=True)):
        assert outcome_of_scores(one, "selection").score == 0.5
    rows = outcome_of_scores({"validation": 0.1, "test": torch.tensor([0.0, 1.0])}, "confirmation")
    assert rows.score == 0.5
    assert rows.rows is not None
    assert rows.rows.tolist() == [0, 1]
    assert outcome_of_scores({"validation": [0.0, 1.0], "test": 3}, "selection").rows is None


def test_trials_say_where_when_and_with_what_they_were_run(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *name, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert revision(tmp_path) == {}
    revision.cache_clear()
    git("init")
    (tmp_path / "train.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    assert revision(tmp_path) == {"commit": git("rev-parse", "--short", "HEAD")}
    revision.cache_clear()
    (tmp_path / "train.py").write_text("x = 2\n")
    assert revision(tmp_path)["commit"].endswith(" with changes")
    before = datetime.now().astimezone()
    trials = study(train, epsilons=[1.0], parameters={"rate": [0.1]}, repeats=2).trials
    assert trials.started.min() >= before
    assert trials.worker.str.contains(f":{os.getpid()}:").all()
    assert (trials.seconds > 0).all()
