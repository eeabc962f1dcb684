"""Splits and scores for a training function that is given rows and returns predictions."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from polylosses.polynomial import Polynomial
from polylosses.torch import poly_softmax
from polylosses.tune import data, splits, statistics
from polylosses.tune.plan import CONFIRMATION, SELECTION, Outcome, Trial


@dataclass(frozen=True)
class Labelled:
    """The labels of all rows, and what is done with them.

    Attributes:
        labels: class index of every row.
        classes: the names of the classes.
        groups: the group of every row, whose rows are never split; or None.
        metric: a key of :data:`polylosses.tune.statistics.METRICS`.
        imbalance, label_noise: as for :func:`polylosses.tune.sweep`.
        seed: of all splits.
    """

    labels: np.ndarray
    classes: Sequence[str]
    groups: np.ndarray | None
    metric: str
    imbalance: float
    label_noise: float
    seed: int

    @property
    def maximize(self) -> bool:
        """Whether higher scores are better."""
        return not statistics.lower_is_better(self.metric)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these from others, in JSON types."""
        train, _, validation, _ = self.split(SELECTION, 0)
        return {
            "metric": self.metric,
            "imbalance": self.imbalance,
            "label_noise": self.label_noise,
            "rows": len(self.labels),
            "labels": zlib.crc32(self.labels.tobytes()),
            "groups": None if self.groups is None else zlib.crc32(self.groups.tobytes()),
            "always_guessing": self.always_guessing,
            "overlap": len(validation) / len(train),
        }

    @property
    def always_guessing(self) -> float:
        """The metric of always guessing the largest class on the test rows, see :mod:`polylosses.tune.statistics`."""
        return statistics.always_guessing(self.labels[self._held_out[1]], self.metric)

    @cached_property
    def _held_out(self) -> tuple[np.ndarray, np.ndarray]:
        return splits.hold_out(self.labels, self.seed, self.groups)

    def split(self, stage: str, repeat: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.random.Generator]:
        """The training rows of a repeat, their labels, the rows to score, and the repeat's random number generator.

        The rows to score are validation rows in the selection, then test rows.

        Raises:
            ValueError: there are too few rows or groups.
        """
        development, test = self._held_out
        rng = np.random.default_rng([self.seed, 1, repeat])
        train, labels, validation = splits.draw(
            self.labels, development, rng, self.imbalance, self.label_noise, self.groups
        )
        return train, labels, validation if stage == SELECTION else test, rng

    def check(self, repeats: int) -> None:
        """Checks that every repeat can be split: by groups, that otherwise fails only when it is trained.

        Raises:
            ValueError: there are too few rows or groups, of a class or in all.
        """
        if self.groups is not None and len(np.unique(self.groups[self._held_out[1]])) < 2:
            raise ValueError("all test rows are of one group: give smaller groups, or more of them.")
        for repeat in range(1 if self.groups is None else repeats):
            self.split(SELECTION, repeat)

    def drawn(self, trial: Trial) -> Trial:
        """The trial with its rows."""
        train, labels, score, _ = self.split(trial.stage, trial.repeat)
        return replace(trial, train_rows=train, train_labels=labels, score_rows=score)

    def scored(self, trial: Trial, returned: Any) -> Outcome:
        """The outcome of a trial whose function returned logits or probabilities of ``score_rows``.

        Raises:
            ValueError: these are others.
        """
        if trial.score_rows is None:
            raise ValueError("the trial has no rows to score.")
        logits = _logits(returned, (len(trial.score_rows), len(self.classes)))
        return self.evaluated(trial, trial.score_rows, logits)[0]

    def evaluated(self, trial: Trial, rows: np.ndarray, logits: torch.Tensor) -> tuple[Outcome, np.ndarray, np.ndarray]:
        """The outcome of a trial from logits of some rows; their softmax, and the class posterior."""
        y = self.labels[rows]
        softmax = torch.softmax(logits, 1).numpy()
        posterior = _posterior(logits, trial.polynomial).numpy()
        measures: dict[str, Any] = {
            **statistics.scores(y, posterior),
            "calibration_error": statistics.calibration_error(y, softmax),
            "calibration_error_poly_softmax": statistics.calibration_error(y, posterior),
        }
        scores = None
        if trial.stage == CONFIRMATION:
            scores = statistics.row_scores(self.metric, y, posterior)
            if self.groups is not None:
                measures["test_rows"] = len(y)
                scores = statistics.group_scores(scores, self.groups[rows])
        return Outcome(float(measures[self.metric]), scores, measures), softmax, posterior


def labelled_by(labels: Any, groups: Any, metric: str, imbalance: float, label_noise: float, seed: int) -> Labelled:
    """Labels and what is done with them, checked; arguments and errors as for :func:`polylosses.tune.study`."""
    if metric not in statistics.METRICS:
        raise ValueError(f"metric must be one of {', '.join(statistics.METRICS)}; got {metric!r}.")
    splits.check(imbalance, label_noise)
    _, indices, classes, _ = data.classes_of(data.series(labels), splits.MINIMUM_ROWS)
    found = None if groups is None else data.group_numbers(groups, len(indices), np.arange(len(indices)))
    return Labelled(indices, classes, found, metric, float(imbalance), float(label_noise), seed)


def _logits(returned: Any, shape: tuple[int, int]) -> torch.Tensor:
    """What a training function returned, as logits: the logarithm, if it is probabilities."""
    array = returned.detach().cpu().numpy() if isinstance(returned, torch.Tensor) else np.asarray(returned)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"the training function must return logits or probabilities of trial.score_rows, of shape {shape} (rows x "
            f"classes); got {array.dtype} of shape {array.shape}."
        )
    array = array.astype(float)
    if np.isnan(array).any():
        raise ValueError("the training function returned nan")
    is_distribution = (array >= 0).all() and np.allclose(array.sum(1), 1, rtol=0, atol=1e-3)
    with np.errstate(divide="ignore"):
        return torch.tensor(np.log(array) if is_distribution else array)


def _posterior(logits: torch.Tensor, polynomial: Polynomial) -> torch.Tensor:
    posterior: torch.Tensor = poly_softmax(logits, 1, polynomial=polynomial)
    return posterior
