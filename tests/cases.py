"""The tables that the laws run over: losses of the family, and every combination of cross-entropy's options.

All numbers of a cell (logits, class weights, target probabilities) are small multiples of a power of two. So they are
exact in every dtype down to bfloat16, and one oracle value serves all dtypes and all backends.
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Cell:
    """One combination of options. ``ignore_index`` None: torch's default, and no position is ignored."""

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
    upstream: Array  # what the positions' losses are multiplied by before the backward pass of reduction "none"


CELLS: list[Cell] = [
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
]


@cache
def arrays(cell: Cell) -> Arrays:
    """The numbers of a cell. Logits depend on the shape only."""
    random = np.random.default_rng(len(cell.shape))
    logits = random.integers(-64, 65, cell.shape) / 16
    positions = cell.shape[:1] + cell.shape[2:] if len(cell.shape) > 1 else ()
    upstream = random.integers(1, 9, positions) / 4
    weight = WEIGHT if cell.weighted else None
    if cell.target == "probabilities":
        rows = random.multinomial(16, np.full(CLASSES, 1 / CLASSES), size=math.prod(positions)) / 16
        return Arrays(logits, to_class_axis(rows, cell.shape), weight, upstream)
    target = random.integers(0, CLASSES, positions)
    if not positions:
        target = np.array(1)  # not the class of weight 0, whose mean is nan
    elif cell.ignore_index is not None:
        target[target == cell.ignore_index] = 0
        target.reshape(-1)[::3] = cell.ignore_index
    return Arrays(logits, target, weight, upstream)


def to_rows(array: Array) -> Array:
    """(N, C, ...) to (positions, C)."""
    if array.ndim == 1:
        return array[None]
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def to_class_axis(rows: Array, shape: tuple[int, ...]) -> Array:
    """(positions, C) to (N, C, ...): undoes :func:`to_rows`."""
    if len(shape) == 1:
        return np.asarray(rows[0])
    return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
