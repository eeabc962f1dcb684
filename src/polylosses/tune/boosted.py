"""Training and evaluation of a boosting library's models in a sweep, in the place of the small network."""

import importlib
import io
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from polylosses import boosting
from polylosses.tune.experiment import evaluated
from polylosses.tune.labelled import Labelled
from polylosses.tune.plan import Outcome, Trial, shown

ROUNDS = 100

LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)

# Rounds from one mean p_t to the next.
EVERY = 10

# Training rows that a time budget leaves at least: of fewer, a training takes hardly less.
FEWEST_ROWS = 500


class _Library(NamedTuple):
    title: str
    classifier: str
    """Its name in :mod:`polylosses.boosting`."""
    parameters: dict[str, Any]
    """What is not the library's default: one thread, nothing printed or written, the same numbers in every run."""
    first: Callable[[int], dict[str, Any]]
    """The argument of ``decision_function`` for the first rounds alone."""


# One thread: on 2 cores that were busy, two took 2 to 75 times as long (XGBoost and LightGBM, 200 to 50,000 rows),
# since threads of OpenMP spin while they wait for each other; and the objective is computed in one.
LIBRARIES = {
    "xgboost": _Library(
        "XGBoost",
        "PolyXGBClassifier",
        {"n_jobs": 1, "enable_categorical": True},
        lambda rounds: {"iteration_range": (0, rounds)},
    ),
    "lightgbm": _Library(
        "LightGBM",
        "PolyLGBMClassifier",
        # By default, the order of summation is the one that was faster. Without the last, it fails where there are
        # fewer than 40 training rows, of which no leaf can have the 20 rows that it needs.
        {"n_jobs": 1, "verbosity": -1, "deterministic": True, "force_col_wise": True, "feature_pre_filter": False},
        lambda rounds: {"num_iteration": rounds},
    ),
    "catboost": _Library(
        "CatBoost",
        "PolyCatBoostClassifier",
        {"thread_count": 1, "verbose": False, "allow_writing_files": False},
        lambda rounds: {"ntree_end": rounds},
    ),
}


def check(model: str) -> None:
    """Checks that the library of a model is installed.

    Raises:
        ImportError: it is not, or too old.
    """
    getattr(boosting, LIBRARIES[model].classifier)


def logits_of(margins: Any) -> torch.Tensor:
    """Logits, rows x classes, of margins; those of two classes, one a row, are of the second class against 0."""
    margins = np.asarray(margins, dtype=float)
    return torch.from_numpy(margins if margins.ndim == 2 else np.stack([np.zeros_like(margins), margins], axis=1))


@dataclass(frozen=True)
class Boosted:
    """Data shared by all trials of a sweep, and the boosting library that is trained on them.

    Attributes:
        frame: checked features, as float columns and text columns.
        labelled: the labels.
        model: ``"xgboost"``, ``"lightgbm"`` or ``"catboost"``.
    """

    frame: pd.DataFrame
    labelled: Labelled
    model: str

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the features and the model from others, in JSON types."""
        rows = pd.util.hash_pandas_object(self.frame, index=False).to_numpy()
        return {"model": self.model, **self.versions, "features": zlib.crc32(rows.tobytes())}

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the training, in JSON types."""
        return {"model": self.model, "rounds": ROUNDS, "threads": 1}

    @property
    def versions(self) -> dict[str, str]:
        """The library that trains, with its version."""
        return {self.model: str(importlib.import_module(self.model).__version__)}

    @property
    def fewest_rows(self) -> int:
        """Training rows that are not gone below to save time."""
        return FEWEST_ROWS

    def is_short(self, trials: Sequence[Trial]) -> bool:
        """Whether these take less than a minute, as is known without :meth:`seconds`: never."""
        return False

    def batches(self, trials: Sequence[Trial]) -> Iterator[list[Trial]]:
        """Trials with the same split: those of a repeat."""
        of_repeat: dict[tuple[str, int], list[Trial]] = {}
        for trial in trials:
            of_repeat.setdefault((trial.stage, trial.repeat), []).append(trial)
        yield from of_repeat.values()

    def run(self, trials: Sequence[Trial], after_epoch: Callable[[int], None]) -> Iterator[tuple[Trial, Outcome]]:
        """Train and evaluate a batch, one trial after another.

        Args:
            trials: one of :meth:`batches`.
            after_epoch: callback after every trial, with the number of trials.

        Yields:
            The trials, with the seeds that they were trained with, and their outcomes.

        Raises:
            ValueError: the library can't train one of them.
        """
        drawn = self._draw(trials[0])
        for trial in trials:
            started = time.monotonic()
            outcome = self._outcome(trial, drawn, ROUNDS)
            after_epoch(len(trials))
            yield replace(trial, seed=drawn.seed), replace(outcome, seconds=time.monotonic() - started)

    def seconds(self, trials: Sequence[Trial]) -> float:
        """About how long it takes to train these, from a few rounds of the first one."""
        drawn = self._draw(trials[0])
        self._outcome(trials[0], drawn, 1)  # what the first takes is not the rule
        clock = []
        for rounds in (1, 11):
            start = time.monotonic()
            self._outcome(trials[0], drawn, rounds)
            clock.append(time.monotonic() - start)
        first, eleven = clock
        return (first + (ROUNDS - 1) * max(eleven - first, 0.0) / 10) * len(trials)

    def _outcome(self, trial: Trial, drawn: "_Drawn", rounds: int) -> Outcome:
        """Train and evaluate one model."""
        model = self._train(trial, drawn, rounds)
        mean_p_t = []
        for first in range(EVERY, rounds + 1, EVERY):
            p = torch.softmax(self._logits(model, drawn.features, first), 1)
            mean_p_t.append(float(p[range(len(p)), drawn.y].mean()))
        logits = self._logits(model, drawn.scored_features, rounds)
        return evaluated(self.labelled, trial, drawn.train_rows, drawn.scored_rows, logits, mean_p_t)

    def _train(self, trial: Trial, drawn: "_Drawn", rounds: int) -> Any:
        library = LIBRARIES[self.model]
        model = getattr(boosting, library.classifier)(
            polynomial=trial.polynomial,
            n_estimators=rounds,
            learning_rate=float(trial.parameters["learning_rate"]),
            random_state=drawn.seed,
            **library.parameters,
        )
        # CatBoost prints a warning where the learning rate is above 1, whatever it was told.
        options = {"cat_features": self._text, "log_cerr": io.StringIO()} if self.model == "catboost" else {}
        try:
            return model.fit(drawn.features, drawn.y, **options)
        except Exception as error:
            if "KeyboardInterrupt" in str(error):  # CatBoost raises its own error for that of an objective
                raise KeyboardInterrupt from error
            rate = shown(float(trial.parameters["learning_rate"]))
            raise ValueError(
                f"{library.title} can't train {trial.loss} with learning rate {rate} on this table: "
                f"{str(error).strip().splitlines()[-1]}"
            ) from error

    def _logits(self, model: Any, X: pd.DataFrame, rounds: int) -> torch.Tensor:
        """Logits of the first rounds."""
        return logits_of(model.decision_function(X, **LIBRARIES[self.model].first(rounds)))

    @cached_property
    def _text(self) -> list[str]:
        """The text columns, by the names that they are trained with."""
        return [_name(k) for k, kind in enumerate(self.frame.dtypes) if kind != np.float64]

    def _draw(self, trial: Trial) -> "_Drawn":
        train, labels, scored, rng = self.labelled.split(trial.stage, trial.repeat)
        # The libraries refuse some characters in names of columns.
        X, scored_features = (
            self.frame.iloc[rows].set_axis([_name(k) for k in range(self.frame.shape[1])], axis=1)
            for rows in (train, scored)
        )
        if self.model != "catboost":  # which takes text
            for name in self._text:
                categories = pd.Index(sorted(X[name].unique()))
                for part in (X, scored_features):
                    # The code of a value that is not in the training rows is -1: it is missing.
                    part[name] = pd.Categorical.from_codes(categories.get_indexer(part[name]), categories)
        return _Drawn(train, X, labels, scored, scored_features, int(rng.integers(2**31)))


@dataclass(frozen=True)
class _Drawn:
    train_rows: np.ndarray
    features: pd.DataFrame
    y: np.ndarray
    scored_rows: np.ndarray
    scored_features: pd.DataFrame
    seed: int


def _name(column: int) -> str:
    return f"c{column}"
