"""Training and scoring the models of a sweep, a batch of whole repeats at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from polylosses.torch import poly_softmax
from polylosses.tune import batched, data, splits, statistics

# Repeats are trained together up to so many models, always whole repeats. More at once gain little, and an interrupt
# keeps the batches that are done.
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
    """One model: how it was trained, and how it did on the rows that score it."""

    stage: str
    repeat: int
    epsilon: float
    learning_rate: float
    scores: dict[str, float]
    """Every metric."""
    calibration_error: float
    calibration_error_poly_softmax: float
    mean_p_t: np.ndarray
    """The mean probability of the training label in each epoch."""
    reliability: dict[str, dict[str, np.ndarray]]
    """The reliability bins of ``softmax`` and ``poly_softmax``."""
    recall: np.ndarray
    """The recall of each class."""
    row_scores: np.ndarray
    """The metric, row by row: its mean is the metric."""
    training_rows: np.ndarray
    """How many training rows each class has."""

    def record(self) -> dict[str, str | float]:
        """The run as a row of ``results.csv``."""
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
    """The data, and how every run draws from it."""

    frame: pd.DataFrame
    labels: np.ndarray
    metric: str
    imbalance: float
    label_noise: float
    seed: int

    def run(
        self,
        stage: str,
        repeats: Sequence[int],
        arms: Sequence[tuple[float, float]],
        advance: Callable[[float], None],
    ) -> Iterator[list[Run]]:
        """Train and score every arm in every repeat.

        Args:
            stage: ``"selection"`` scores on validation rows, ``"confirmation"`` on the test rows.
            repeats: their numbers; each stands for one split of the development rows and one seed.
            arms: pairs of epsilon and learning rate.
            advance: called after every epoch with the number of models that it was worth.

        Yields:
            The runs of one batch.
        """
        batches = -(-len(repeats) * len(arms) // MODELS_AT_ONCE)
        for batch in np.array_split(np.asarray(repeats), min(batches, len(repeats))):
            yield self._batch(stage, batch.tolist(), arms, advance)

    def _batch(
        self, stage: str, repeats: list[int], arms: Sequence[tuple[float, float]], advance: Callable[[float], None]
    ) -> list[Run]:
        development, test = splits.hold_out(self.labels, self.seed)
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
                # Where training diverged, every class is as likely as any other.
                logits = trained.logits(model, one.scored_x).nan_to_num(0.0, 0.0, 0.0).double()
                softmax = torch.softmax(logits, 1).numpy()
                # The epsilon was checked, and warned of, where the user gave it; a tensor is not checked again.
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
        rng = np.random.default_rng([self.seed, 1, repeat])
        train, noisy, validation = splits.draw(self.labels, development, rng, self.imbalance, self.label_noise)
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


@dataclass(frozen=True)
class _Drawn:
    train: np.ndarray
    x: torch.Tensor
    y: torch.Tensor
    scored_x: torch.Tensor
    scored_y: np.ndarray
    seed: int
