"""The plan of a study: which trials are to be run, and what may come of one. The same plan gives the same trials."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np

from polylosses.catalogue import cross_entropy, poly1
from polylosses.named import named
from polylosses.polynomial import Polynomial, epsilon_of, unchecked

CROSS_ENTROPY = "cross-entropy"

SELECTION, CONFIRMATION = "selection", "confirmation"

# Limit for epsilons: models are trained in float32, whose largest number is 3.4e38.
LARGEST = 1e30


@dataclass(frozen=True)
class Trial:
    """One training, as the training function of a study is called with.

    Attributes:
        stage: ``"selection"``, of losses and parameters on validation data, or ``"confirmation"`` on test data.
        loss: the name of the loss.
        polynomial: the loss, to be given to any loss function of this library.
        point: the number of the point of the other hyper-parameters.
        parameters: their values there.
        repeat: the number of the repeat; all losses and points share its seed and its splits.
        seed: seed for everything that is random in the training, below 2^31.
        train_rows, train_labels: rows to train on, and the indices of their classes, if the study draws the splits;
            else None.
        score_rows: rows to predict, likewise.
    """

    stage: str
    loss: str
    polynomial: Polynomial
    point: int
    parameters: Mapping[str, Any]
    repeat: int
    seed: int
    train_rows: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    score_rows: np.ndarray | None = None

    @property
    def epsilon(self) -> float:
        """The epsilon of a Poly-1, 0 for cross-entropy.

        Raises:
            AttributeError: the loss is another polynomial.
        """
        epsilon = epsilon_of(self.polynomial)
        if epsilon is None:
            raise AttributeError(f"{self.loss} has no single epsilon: use trial.polynomial")
        return epsilon

    @property
    def key(self) -> str:
        """What tells a trial from all others of its study."""
        return f"{self.stage}, {self.loss}, point {self.point}, repeat {self.repeat}"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        score: what is compared; nan if the trial failed.
        rows: the scores of rows whose mean it is, if there are any.
        measures: what else was measured, in JSON types.
        error: why the trial failed; "" if it did not.
        tries: how many times it was run.
        worker: the host and process that ran it.
        started: when the last try started.
        seconds: how long that took.
        software: the commit of the training code, and versions.
    """

    score: float
    rows: np.ndarray | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    tries: int = 1
    worker: str = ""
    started: datetime | None = None
    seconds: float = 0.0
    software: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All that decides which trials are run.

    Attributes:
        losses: the losses by name; cross-entropy, always the first, is what the others are compared with.
        points: the points of the other hyper-parameters. Every loss tries all of them.
        repeats: seeds of the selection.
        most_seeds: seeds of the confirmation, at most.
        seed: seed of all others.
    """

    losses: Mapping[str, Polynomial]
    points: Sequence[Mapping[str, Any]]
    repeats: int
    most_seeds: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """The plan in JSON types."""
        losses = {name: [loss.coefficients, loss.gamma, loss.log_weight] for name, loss in self.losses.items()}
        points = [dict(point) for point in self.points]
        numbers = {"repeats": self.repeats, "most_seeds": self.most_seeds, "seed": self.seed}
        return {"losses": losses, "points": points, **numbers}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Plan":
        """The plan that :meth:`to_json` gave, perhaps among other things."""
        losses = {name: unchecked(tuple(loss[0]), *loss[1:]) for name, loss in given["losses"].items()}
        return cls(losses, given["points"], given["repeats"], given["most_seeds"], given["seed"])

    def selection(self) -> list[Trial]:
        """Every loss at every point in every repeat, one repeat after another."""
        return [
            self.trial(SELECTION, loss, point, repeat)
            for repeat in range(self.repeats)
            for point in range(len(self.points))
            for loss in self.losses
        ]

    def trial(self, stage: str, loss: str, point: int, repeat: int) -> Trial:
        """One trial. The seed is that of the repeat; the confirmation's repeats follow those of the selection."""
        seed = int(np.random.default_rng([self.seed, 1, repeat]).integers(2**31))
        parameters = MappingProxyType(dict(self.points[point]))
        return Trial(stage, loss, self.losses[loss], point, parameters, repeat, seed)


def arms(
    losses: Mapping[str, Polynomial] | Sequence[Polynomial | str] | None,
    epsilons: Sequence[float] | None,
    default: Sequence[float],
) -> dict[str, Polynomial]:
    """The losses by name, cross-entropy first: those given, and the Poly-1 losses of the epsilons.

    Args:
        losses: see :func:`by_name`.
        epsilons: None for ``default`` if there are no losses, else for none.
        default: the epsilons if neither is given.

    Raises:
        TypeError, ValueError: they are something else, or there is none but cross-entropy.
    """
    found = {} if losses is None else by_name(losses)
    if losses is None or epsilons is not None:
        numbers = default if epsilons is None else [epsilons] if isinstance(epsilons, Real) else list(epsilons)
        for epsilon in numbers:
            if not isinstance(epsilon, Real) or isinstance(epsilon, bool):
                raise TypeError(f"epsilons must be numbers; got {epsilon!r}.")
            if not math.isfinite(epsilon):
                raise ValueError(f"epsilons must be finite; got {epsilon!r}.")
            if abs(float(epsilon)) > LARGEST:
                raise ValueError(f"epsilons of more than {LARGEST:g} overflow in training; got {epsilon!r}.")
            found.setdefault(f"poly1({shown(float(epsilon))})", poly1(float(epsilon)))
        if losses is None and not any(map(float, numbers)):
            raise ValueError(f"epsilons need at least one number other than 0, to compare with it; got {epsilons!r}.")
    return by_name(found)


def shown(number: float) -> str:
    """A number as text, short but not rounded."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def by_name(losses: Mapping[str, Polynomial] | Sequence[Polynomial | str]) -> dict[str, Polynomial]:
    """The losses by name, cross-entropy first. Text such as ``"focal(2)"`` is a name and a loss.

    Raises:
        TypeError, ValueError: these are no losses, two have one name, or there is none but cross-entropy.
    """
    given = losses.items() if isinstance(losses, Mapping) else [(str(loss), loss) for loss in losses]
    found = {CROSS_ENTROPY: cross_entropy()}
    for name, spelled in given:
        loss = named(spelled) if isinstance(spelled, str) else spelled
        if not isinstance(loss, Polynomial):
            raise TypeError(f"losses must be polynomials, such as polylosses.poly1(2.0); got {loss!r}.")
        if epsilon_of(loss) == 0:
            continue
        if name in found:
            raise ValueError(f"two losses are called {name!r}: give each a name of its own, in a dict.")
        found[str(name)] = loss
    if len(found) == 1:
        raise ValueError(f"losses need at least one other than cross-entropy, to compare with it; got {losses!r}.")
    return found
