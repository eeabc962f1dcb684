"""Stratified splits into training, validation and test rows; class imbalance and label noise in training rows."""

import math

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.25

# With these shares, a class of this size has a row in each of the three parts, whichever way the stratified counts are
# rounded.
MINIMUM_ROWS = 8


def check(imbalance: float, label_noise: float) -> None:
    """Raises ValueError for changes of the training rows that can't be."""
    if not 1 <= imbalance < math.inf:
        raise ValueError(
            f"imbalance is how many times the smallest class the largest is, at least 1; got {imbalance!r}."
        )
    if not 0 <= label_noise < 1:
        raise ValueError(f"label_noise is a share of the training labels, in [0, 1); got {label_noise!r}.")


def sample(y: np.ndarray, most: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Draw about ``most`` rows, in order: of each class its share, but at least ``MINIMUM_ROWS``; or whole groups."""
    rng = np.random.default_rng([seed, 2])
    if groups is not None:
        number = np.unique(groups, return_inverse=True)[1]
        drawn = rng.permutation(number.max() + 1)
        kept = drawn[np.cumsum(np.bincount(number)[drawn]) <= most]
        return np.flatnonzero(np.isin(number, kept))
    parts = []
    for label, rows in enumerate(np.bincount(y)):
        wanted = max(round(most * rows / len(y)), MINIMUM_ROWS)
        parts.append(rng.permutation(np.flatnonzero(y == label))[:wanted])
    return np.sort(np.concatenate(parts))


def hold_out(y: np.ndarray, seed: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Split all rows into development rows and test rows, stratified by class; groups are kept together."""
    return _stratified(y, np.arange(len(y)), TEST_SHARE, np.random.default_rng([seed, 0]), groups)


def draw(
    y: np.ndarray,
    rows: np.ndarray,
    rng: np.random.Generator,
    imbalance: float,
    label_noise: float,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw training rows, their labels, and validation rows from ``rows``.

    Args:
        y: class index of every row.
        rows: the rows to draw from.
        rng: random number generator.
        imbalance: ratio R of the long tail in the training rows: in order of frequency, the classes keep at most
            n, ..., n / R rows, a geometric sequence, where n is the size of the most frequent class (Cui et al., CVPR
            2019, section 5.1). 1 keeps all training rows. Validation rows are not changed.
        label_noise: share of the training labels that are replaced by another class, drawn uniformly.
        groups: the group of every row. Rows of one group are all in the same part; shares are approximate then.

    Raises:
        ValueError: there are too few training rows for ``imbalance``, or too few groups.
    """
    train, validation = _stratified(y, rows, VALIDATION_SHARE, rng, groups)
    if imbalance > 1:
        train = _long_tail(y, train, rng, imbalance)
    labels = y[train]
    flipped = rng.permutation(len(labels))[: round(label_noise * len(labels))]
    classes = int(y.max()) + 1
    labels[flipped] = (labels[flipped] + rng.integers(1, classes, len(flipped))) % classes
    return train, labels, validation


def _stratified(
    y: np.ndarray, rows: np.ndarray, share: float, rng: np.random.Generator, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    random_state = int(rng.integers(2**32))
    if groups is None:
        rest, part = next(StratifiedShuffleSplit(1, test_size=share, random_state=random_state).split(rows, y[rows]))
    else:
        folds = round(1 / share)
        if (count := len(np.unique(groups[rows]))) < folds:
            raise ValueError(f"{count} groups are too few to keep groups together in all parts: {folds} are needed.")
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=random_state)
        # The first folds get the largest groups.
        chosen = int(rng.integers(folds))
        rest, part = list(splitter.split(rows, y[rows], groups[rows]))[chosen]
        for label in np.unique(y[rows]):
            if label not in y[rows[rest]] or label not in y[rows[part]]:
                raise ValueError("a class is in too few groups to be in every part: merge or drop it.")
    return rows[rest], rows[part]


def _long_tail(y: np.ndarray, train: np.ndarray, rng: np.random.Generator, imbalance: float) -> np.ndarray:
    counts = np.bincount(y[train])
    order = np.argsort(-counts, kind="stable")
    largest = counts[order[0]]
    if largest < imbalance:
        raise ValueError(
            f"imbalance {imbalance:g} needs a class of at least that many training rows; the largest has {largest}. "
            "Give a smaller ratio."
        )
    kept = []
    for rank, label in enumerate(order):
        wanted = round(largest * imbalance ** (-rank / (len(order) - 1)))
        kept.append(rng.permutation(train[y[train] == label])[:wanted])
    return rng.permutation(np.concatenate(kept))
