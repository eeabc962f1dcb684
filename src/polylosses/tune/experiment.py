"""Training and evaluation of the models of a sweep, in batches of whole repeats."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from polylosses.torch import poly_softmax
from polylosses.tune import batched, data, splits, statistics

# Approximate batch size, rounded to whole repeats. Larger batches gain little speed, and an interrupt discards the
# unfinished batch.
MODELS_AT_ONCE = 128

RUN_COLUMNS = [
    "stage",
    "repeat",
    "epsilon",
    "learning_rate",
    *statistics.METRICS,
    "mean_p_t",
    "calibration_error",
    "calibration_error_poly_softmax",
]


@dataclass(frozen=True)
class Run:
    """Settings and evaluation of one model."""

    stage: str
    repeat: int
    epsilon: float
    learning_rate: float
    scores: dict[str, float]
    """Value of each metric."""
    calibration_error: float
    calibration_error_poly_softmax: float
    mean_p_t: np.ndarray
    """Mean probability of the training label in each epoch."""
    reliability: dict[str, dict[str, np.ndarray]]
    """Reliability bins of ``softmax`` and ``poly_softmax``."""
    recall: np.ndarray
    """Recall of each class."""
    row_scores: np.ndarray
    """Contribution of each row to the metric, which is their mean."""
    training_rows: np.ndarray
    """Number of training rows of each class."""

    def record(self) -> dict[str, str | float]:
        """Row of ``results.csv``."""
        return {
            "stage": self.stage,
            "repeat": self.repeat,
            "epsilon": self.epsilon,
            "learning_rate": self.learning_rate,
            **self.scores,
            "mean_p_t": float(self.mean_p_t[-1]),
            "calibration_error": self.calibration_error,
            "calibration_error_poly_softmax": self.calibration_error_poly_softmax,
        }


@dataclass(frozen=True)
class Experiment:
    """Data and settings shared by all runs of a sweep."""

    frame: pd.DataFrame
    labels: np.ndarray
    metric: str
    imbalance: float
    label_noise: float
    seed: int
    groups: np.ndarray | None = None
    """Group of each row, as a number; rows of one group are in the same part of every split."""

    def check_groups(self, repeats: Sequence[int]) -> None:
        """Check that every repeat can be split by groups, which otherwise fails only when it is trained.

        Raises:
            ValueError: there are too few groups, of a class or in all.
        """
        development, test = splits.hold_out(self.labels, self.seed, self.groups)
        if self.groups is not None and len(np.unique(self.groups[test])) < 2:
            raise ValueError("all test rows are of one group: give smaller groups, or more of them.")
        for repeat in repeats:
            self._split(repeat, development)

    def run(
        self,
        stage: str,
        repeats: Sequence[int],
        arms: Sequence[tuple[float, float]],
        advance: Callable[[float], None],
    ) -> Iterator[list[Run]]:
        """Train and evaluate every arm in every repeat.

        Args:
            stage: ``"selection"`` evaluates on validation rows, ``"confirmation"`` on the test rows.
            repeats: numbers of the repeats; each determines a split of the development rows and a seed.
            arms: pairs of epsilon and learning rate.
            advance: callback after every epoch, with the progress since the last one in units of trained models.

        Yields:
            The runs of a batch.
        """
        # With groups, the number of training rows differs from repeat to repeat.
        together = MODELS_AT_ONCE if self.groups is None else 1
        batches = -(-len(repeats) * len(arms) // together)
        for batch in np.array_split(np.asarray(repeats), min(batches, len(repeats))):
            yield self._batch(stage, batch.tolist(), arms, advance)

    def _batch(
        self, stage: str, repeats: list[int], arms: Sequence[tuple[float, float]], advance: Callable[[float], None]
    ) -> list[Run]:
        development, test = splits.hold_out(self.labels, self.seed, self.groups)
        drawn = [self._draw(stage, repeat, development, test) for repeat in repeats]
        X = torch.stack([one.x for one in drawn])
        labels = torch.stack([one.y for one in drawn])
        epochs = batched.epochs_for(X.shape[1])
        classes = int(self.labels.max()) + 1
        trained = batched.train(
            X,
            labels,
            classes,
            [epsilon for epsilon, _ in arms],
            [rate for _, rate in arms],
            [one.seed for one in drawn],
            after_epoch=lambda: advance(len(repeats) * len(arms) / epochs),
        )
        runs = []
        for i, (repeat, one) in enumerate(zip(repeats, drawn, strict=True)):
            for j, (epsilon, rate) in enumerate(arms):
                model = i * len(arms) + j
                # Diverged training gives nan or infinite logits; zeros make the prediction uniform.
                logits = trained.logits(model, one.scored_x).nan_to_num(0.0, 0.0, 0.0).double()
                softmax = torch.softmax(logits, 1).numpy()
                # As a tensor, epsilon is not validated again, which would repeat a warning that the user has seen.
                posterior = poly_softmax(logits, 1, epsilon=torch.tensor(epsilon)).numpy()
                y = one.scored_y
                runs.append(
                    Run(
                        stage,
                        repeat,
                        epsilon,
                        rate,
                        statistics.scores(y, posterior),
                        statistics.calibration_error(y, softmax),
                        statistics.calibration_error(y, posterior),
                        trained.mean_p_t[model].numpy(),
                        {
                            "softmax": statistics.reliability(y, softmax, bins=10),
                            "poly_softmax": statistics.reliability(y, posterior, bins=10),
                        },
                        np.bincount(y, posterior.argmax(1) == y, classes) / np.bincount(y, minlength=classes),
                        statistics.row_scores(self.metric, y, posterior),
                        np.bincount(self.labels[one.train], minlength=classes),
                    )
                )
        return runs

    def _draw(self, stage: str, repeat: int, development: np.ndarray, test: np.ndarray) -> "_Drawn":
        (train, noisy, validation), rng = self._split(repeat, development)
        evaluation = validation if stage == "selection" else test
        encoder = data.encoder(self.frame).fit(self.frame.iloc[train])
        return _Drawn(
            train,
            torch.tensor(encoder.transform(self.frame.iloc[train]), dtype=torch.float32),
            torch.tensor(noisy),
            torch.tensor(encoder.transform(self.frame.iloc[evaluation]), dtype=torch.float32),
            self.labels[evaluation],
            int(rng.integers(2**31)),
        )

    def _split(
        self, repeat: int, development: np.ndarray
    ) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.random.Generator]:
        """Training rows, their labels and validation rows of a repeat, and its random number generator."""
        rng = np.random.default_rng([self.seed, 1, repeat])
        return splits.draw(self.labels, development, rng, self.imbalance, self.label_noise, self.groups), rng


@dataclass(frozen=True)
class _Drawn:
    train: np.ndarray
    x: torch.Tensor
    y: torch.Tensor
    scored_x: torch.Tensor
    scored_y: np.ndarray
    seed: int
