"""Training and evaluation of the small network of a sweep, many trials at once."""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from polylosses.tune import batched, statistics
from polylosses.tune.data import Encoded
from polylosses.tune.labelled import Labelled
from polylosses.tune.plan import SELECTION, Outcome, Trial

# Approximate batch size, rounded to whole repeats. Larger batches gain little speed, and an interrupt discards the
# unfinished batch.
MODELS_AT_ONCE = 128
FEATURES_AT_ONCE = 2**26  # float32 numbers of the training rows of a batch: 256 MB

# Steps of models from which on it is found out beforehand how long they take: on 2 cores, about half a minute.
LONG = 500_000

RUN_COLUMNS = [
    "stage",
    "repeat",
    "loss",
    "epsilon",
    "learning_rate",
    *statistics.METRICS,
    "mean_p_t",
    "calibration_error",
    "calibration_error_poly_softmax",
]


@dataclass(frozen=True)
class Run:
    """A trained model and its evaluation, for tables and figures."""

    trial: Trial
    scores: dict[str, float]
    """Value of each metric."""
    calibration_error: float
    calibration_error_poly_softmax: float
    mean_p_t: np.ndarray
    """Mean probability of the training label over the training."""
    reliability: dict[str, dict[str, np.ndarray]]
    """Reliability bins of ``softmax`` and ``poly_softmax``."""
    recall: np.ndarray
    """Recall of each class."""
    training_rows: np.ndarray
    """Number of training rows of each class."""
    scored_rows: int

    @classmethod
    def of(cls, trial: Trial, outcome: Outcome) -> "Run":
        """The run whose outcome is stored."""
        found = outcome.measures
        return cls(
            trial=trial,
            scores={metric: found[metric] for metric in statistics.METRICS},
            calibration_error=found["calibration_error"],
            calibration_error_poly_softmax=found["calibration_error_poly_softmax"],
            mean_p_t=np.array(found["mean_p_t"]),
            reliability={
                kind: {name: np.array(sums) for name, sums in bins.items()}
                for kind, bins in found["reliability"].items()
            },
            recall=np.array(found["recall"]),
            training_rows=np.array(found["training_rows"]),
            scored_rows=found["scored_rows"],
        )

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return self.trial.loss

    @property
    def repeat(self) -> int:
        """Number of the repeat."""
        return self.trial.repeat

    @property
    def learning_rate(self) -> float:
        """Learning rate, of the first step where it falls."""
        return float(self.trial.parameters["learning_rate"])

    def record(self) -> dict[str, str | float]:
        """Row of ``results.csv``."""
        return {
            "stage": self.trial.stage,
            "repeat": self.repeat,
            "loss": self.loss,
            "epsilon": getattr(self.trial, "epsilon", math.nan),
            "learning_rate": self.learning_rate,
            **self.scores,
            "mean_p_t": float(self.mean_p_t[-1]),
            "calibration_error": self.calibration_error,
            "calibration_error_poly_softmax": self.calibration_error_poly_softmax,
        }


def evaluated(
    labelled: Labelled,
    trial: Trial,
    train_rows: np.ndarray,
    scored_rows: np.ndarray,
    logits: torch.Tensor,
    mean_p_t: Sequence[float],
) -> Outcome:
    """The outcome of a trial from the logits of ``scored_rows``, with all that a :class:`Run` needs."""
    outcome, softmax, posterior = labelled.evaluated(trial, scored_rows, logits)
    y, classes = labelled.labels[scored_rows], len(labelled.classes)
    right = np.bincount(y, posterior.argmax(1) == y, classes)
    measures: dict[str, Any] = {
        **outcome.measures,
        "mean_p_t": [round(p, 6) for p in mean_p_t],
        "reliability": {
            kind: {name: sums.tolist() for name, sums in statistics.reliability(y, p, bins=10).items()}
            for kind, p in (("softmax", softmax), ("poly_softmax", posterior))
        },
        "recall": (right / np.bincount(y, minlength=classes)).tolist(),
        "training_rows": np.bincount(labelled.labels[train_rows], minlength=classes).tolist(),
        "scored_rows": len(y),
    }
    return replace(outcome, measures=measures)


@dataclass(frozen=True)
class Experiment:
    """Data shared by all trials of a sweep, and the network that is trained on them."""

    features: Encoded
    labelled: Labelled
    device: str = "cpu"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the features and the model from others, in JSON types."""
        numbers, categories = (part.tobytes() for part in (self.features.numbers, self.features.categories))
        return {"model": "network", "features": zlib.crc32(categories, zlib.crc32(numbers))}

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the training, in JSON types."""
        return {"model": "network", "device": self.device}

    @property
    def versions(self) -> dict[str, str]:
        """The library that trains, with its version."""
        return {"torch": torch.__version__}

    @property
    def fewest_rows(self) -> int:
        """Training rows below which a training is as long: there are more epochs, and as many steps."""
        return batched.fewest_rows()

    def is_short(self, trials: Sequence[Trial]) -> bool:
        """Whether these take less than a minute, as is known without :meth:`seconds`."""
        rows = len(self.labelled.split(SELECTION, 0)[0])
        return len(trials) * batched.steps_for(rows) < LONG

    def batches(self, trials: Sequence[Trial]) -> Iterator[list[Trial]]:
        """Trials that are trained together: whole repeats, each with the same losses and learning rates."""
        arms_of: dict[int, list[Trial]] = {}
        for trial in sorted(trials, key=lambda trial: (trial.repeat, trial.loss)):
            arms_of.setdefault(trial.repeat, []).append(trial)
        alike: dict[tuple[tuple[str, str, int], ...], list[int]] = {}
        for repeat, arms in arms_of.items():
            alike.setdefault(tuple((one.stage, one.loss, one.point) for one in arms), []).append(repeat)
        rows, columns = len(self.labelled.labels), self.features.numbers.shape[1] + self.features.categories.shape[1]
        for same, repeats in alike.items():
            # With groups, the number of training rows differs from repeat to repeat.
            together = max(1, min(MODELS_AT_ONCE // len(same), FEATURES_AT_ONCE // (rows * max(columns, 1))))
            together = together if self.labelled.groups is None else 1
            for part in np.array_split(repeats, -(-len(repeats) // together)):
                yield [trial for repeat in part.tolist() for trial in arms_of[repeat]]

    def run(self, trials: Sequence[Trial], after_epoch: Callable[[int], None]) -> list[tuple[Trial, Outcome]]:
        """Train and evaluate a batch.

        Args:
            trials: one of :meth:`batches`.
            after_epoch: callback after every epoch, with the number of epochs in all.

        Returns:
            The trials, with the seeds that they were trained with, and their outcomes.
        """
        started = time.monotonic()
        drawn = [self._draw(trials[k]) for k in self._first_of_repeats(trials)]
        trained = self._train(trials, drawn, after_epoch)
        found = []
        for model, trial in enumerate(trials):
            one = drawn[model * len(drawn) // len(trials)]
            # Diverged training gives nan or infinite logits; zeros make the prediction uniform.
            logits = trained.logits(model, one.scored_x.to(self.device)).cpu().nan_to_num(0.0, 0.0, 0.0).double()
            mean_p_t = trained.mean_p_t[model].tolist()
            outcome = evaluated(self.labelled, trial, one.train_rows, one.scored_rows, logits, mean_p_t)
            found.append((replace(trial, seed=one.seed), outcome))
        seconds = (time.monotonic() - started) / len(trials)
        return [(trial, replace(outcome, seconds=seconds)) for trial, outcome in found]

    def seconds(self, trials: Sequence[Trial]) -> float:
        """About how long it takes to train these, from a few steps of the first batch of them."""
        batches = list(self.batches(trials))
        drawn = [self._draw(batches[0][k]) for k in self._first_of_repeats(batches[0])]
        rows = len(drawn[0].train_rows)
        self._train(batches[0], drawn, lambda epochs: None, steps=2)  # what the first steps take is not the rule
        start, steps = time.monotonic(), 10
        self._train(batches[0], drawn, lambda epochs: None, steps=steps)
        each = (time.monotonic() - start) / steps
        return each * len(trials) / len(batches[0]) * batched.steps_for(rows)

    def _train(
        self,
        trials: Sequence[Trial],
        drawn: Sequence["_Drawn"],
        after_epoch: Callable[[int], None],
        steps: float = math.inf,
    ) -> batched.Trained:
        arms = trials[: len(trials) // len(drawn)]
        rows = len(drawn[0].train_rows)
        return batched.train(
            torch.stack([one.x for one in drawn]).to(self.device),
            torch.stack([one.y for one in drawn]).to(self.device),
            len(self.labelled.classes),
            [trial.polynomial for trial in arms],
            [float(trial.parameters["learning_rate"]) for trial in arms],
            [one.seed for one in drawn],
            after_epoch=lambda: after_epoch(batched.epochs_for(rows)),
            steps=steps,
        )

    def _first_of_repeats(self, trials: Sequence[Trial]) -> list[int]:
        return [k for k, trial in enumerate(trials) if k == 0 or trial.repeat != trials[k - 1].repeat]

    def _draw(self, trial: Trial) -> "_Drawn":
        train, labels, scored, rng = self.labelled.split(trial.stage, trial.repeat)
        x, scored_x = self.features.split(train, scored)
        return _Drawn(
            train,
            torch.from_numpy(x),
            torch.from_numpy(labels),
            scored,
            torch.from_numpy(scored_x),
            int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class _Drawn:
    train_rows: np.ndarray
    x: torch.Tensor
    y: torch.Tensor
    scored_rows: np.ndarray
    scored_x: torch.Tensor
    seed: int
