"""The test cases shared by all backends: losses of the family, and every combination of the losses' options.

A cell is one combination of options. Its numbers (logits, class weights, target probabilities) are small multiples of a
power of two: they are exact in every dtype down to bfloat16, so that one oracle value serves all dtypes and backends.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from polylosses import Polynomial, focal, poly1, poly1_focal, poly_n, taylor_cross_entropy
from polylosses.catalogue import ALL

Array = NDArray[Any]

CATALOGUE: dict[str, Polynomial] = {name: make() for name, make in ALL.items()}

HARD: dict[str, Polynomial] = {
    "poly1(-1)": poly1(-1.0),  # the leading term cancels
    "poly1(-0.5)": poly1(-0.5),
    "poly1(40)": poly1(40.0),
    "focal(0.5)": focal(0.5),  # q^gamma has an infinite derivative at q = 0
    "focal(1)": focal(1.0),
    "poly1_focal(-1, 0.5)": poly1_focal(-1.0, 0.5),
    "poly1_focal(3, 5)": poly1_focal(3.0, 5.0),
    "poly_n of degree 8": poly_n(*((-1) ** j / j for j in range(1, 9))),  # every odd power cancels
    "poly_n(0, 0, 2)": poly_n(0.0, 0.0, 2.0),
    "taylor_cross_entropy(8)": taylor_cross_entropy(8),
    "everything": Polynomial((0.5, -0.25, 2.0), gamma=1.5, log_weight=3.0),
    "no logarithm": Polynomial((1.0, 0.5), gamma=0.5, log_weight=0.0),
    "nothing": Polynomial(log_weight=0.0),
}

LOSSES: dict[str, Polynomial] = CATALOGUE | HARD

CLASSES = 5
SHAPES = [(CLASSES,), (6, CLASSES), (3, CLASSES, 2), (2, CLASSES, 2, 2)]
WEIGHT = np.array([1.0, 2.5, 0.25, 0.0, 4.0])


class Cell(NamedTuple):
    """One combination of options. ``ignore_index`` None: torch's default, with no ignored rows."""

    target: str
    shape: tuple[int, ...]
    weighted: bool
    label_smoothing: float
    ignore_index: int | None
    reduction: str

    def __str__(self) -> str:
        options = [self.target, str(self.shape)]
        options += ["weighted"] if self.weighted else []
        options += [f"smoothing {self.label_smoothing}"] if self.label_smoothing else []
        options += [f"ignoring {self.ignore_index}"] if self.ignore_index is not None else []
        return ", ".join([*options, self.reduction])


@dataclass(frozen=True)
class Arrays:
    logits: Array
    target: Array
    weight: Array | None
    grad_output: Array  # for reduction "none", of the batch shape


CELLS: tuple[Cell, ...] = tuple(
    Cell(*options)
    for options in product(
        ["indices", "probabilities"],
        SHAPES,
        [False, True],
        [0.0, 0.125, 1.0],
        [None, -100, 255, 2],
        ["none", "mean", "sum"],
    )
    if options[0] == "indices" or options[4] is None
)


C = TypeVar("C", bound=tuple[Any, ...])


def slow_but(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``, marked as slow except for ``quick``."""
    cases = list(cases)
    assert all(case in cases for case in quick)
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in quick else pytest.mark.slow)
        for case in cases
    ]


# The losses that run over all cells; every other loss runs over some of them.
WHOLE = ("everything",)


def covering(cells: Sequence[C], first: int = 0) -> list[C]:
    """Pairwise testing: a small subset of the cells that has every pair of options that occurs in ``cells``.

    Different values of ``first`` give different subsets.
    """
    cells = [*cells[first % len(cells) :], *cells[: first % len(cells)]]
    pairs = [set(combinations(enumerate(cell), 2)) for cell in cells]
    left = set[Any]().union(*pairs)
    chosen = []
    while left:
        best = max(range(len(cells)), key=lambda k: len(pairs[k] & left))
        chosen.append(cells[best])
        left -= pairs[best]
    return chosen


@cache
def some(cells: tuple[C, ...], name: str) -> list[C]:
    """The cells that a loss runs over."""
    return list(cells) if name in WHOLE else covering(cells, 31 * list(LOSSES).index(name))


@cache
def arrays(cell: Cell) -> Arrays:
    """The numbers of a cell. Logits depend on the shape only."""
    random = np.random.default_rng(len(cell.shape))
    logits = random.integers(-64, 65, cell.shape) / 16
    positions = cell.shape[:1] + cell.shape[2:] if len(cell.shape) > 1 else ()
    grad_output = random.integers(1, 9, positions) / 4
    weight = WEIGHT if cell.weighted else None
    if cell.target == "probabilities":
        rows = random.multinomial(16, np.full(CLASSES, 1 / CLASSES), size=math.prod(positions)) / 16
        return Arrays(logits, to_class_axis(rows, cell.shape), weight, grad_output)
    target = random.integers(0, CLASSES, positions)
    if not positions:
        target = np.array(1)  # not the class of weight 0: the weighted mean would be 0 / 0
    elif cell.ignore_index is not None:
        target[target == cell.ignore_index] = 0
        target.reshape(-1)[::3] = cell.ignore_index
    return Arrays(logits, target, weight, grad_output)


def to_rows(array: Array) -> Array:
    """Reshapes (N, C, ...) to (positions, C)."""
    if array.ndim == 1:
        return array[None]
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def to_class_axis(rows: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes (positions, C) to (N, C, ...): the inverse of :func:`to_rows`."""
    if len(shape) == 1:
        return np.asarray(rows[0])
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


# (alpha, alpha_on_epsilon)
ALPHAS: list[tuple[float | None, bool]] = [(None, True), (0.25, True), (0.25, False)]


class BinaryCell(NamedTuple):
    """One combination of the options of binary cross-entropy. ``weighted``: both ``weight`` and ``pos_weight``."""

    target: str
    shape: tuple[int, ...]
    weighted: bool
    alpha: float | None
    alpha_on_epsilon: bool
    ignore_index: int | None
    reduction: str

    def __str__(self) -> str:
        options = [self.target, str(self.shape)]
        options += ["weighted"] if self.weighted else []
        options += [f"alpha {self.alpha}"] if self.alpha is not None else []
        options += [] if self.alpha_on_epsilon else ["on the logarithm"]
        options += [f"ignoring {self.ignore_index}"] if self.ignore_index is not None else []
        return ", ".join([*options, self.reduction])


@dataclass(frozen=True)
class BinaryArrays:
    logits: Array
    target: Array
    weight: Array | None
    pos_weight: Array | None
    grad_output: Array  # for reduction "none", of the logits' shape


BINARY_CELLS: tuple[BinaryCell, ...] = tuple(
    BinaryCell(target, shape, weighted, *alpha, ignore_index, reduction)
    for target, shape, weighted, alpha, ignore_index, reduction in product(
        ["class ids", "hard", "soft"], SHAPES, [False, True], ALPHAS, [None, -100, 255, 1], ["none", "mean", "sum"]
    )
    if target != "soft" or ignore_index in (None, -100)
)


@cache
def binary_arrays(cell: BinaryCell) -> BinaryArrays:
    """The numbers of a cell. Logits depend on the shape only."""
    random = np.random.default_rng(len(cell.shape))
    logits = random.integers(-64, 65, cell.shape) / 16
    grad_output = random.integers(1, 9, cell.shape) / 4
    weight = random.integers(0, 9, (*cell.shape[:1], *[1] * len(cell.shape[1:]))) / 4 if cell.weighted else None
    pos_weight = WEIGHT.reshape(-1, *[1] * len(cell.shape[2:])) if cell.weighted else None
    target: Array
    if cell.target == "class ids":
        target = random.integers(0, CLASSES, cell.shape[:1] + cell.shape[2:] if len(cell.shape) > 1 else ())
    elif cell.target == "hard":
        target = random.integers(0, 2, cell.shape).astype(float)
    else:
        target = random.integers(0, 9, cell.shape) / 8
    if cell.ignore_index is not None and target.ndim > 0:
        target[target == cell.ignore_index] = 0
        target.reshape(-1)[::3] = cell.ignore_index
    return BinaryArrays(logits, target, weight, pos_weight, grad_output)
