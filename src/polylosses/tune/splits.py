"""Stratified splits into training, validation and test rows; class imbalance and label noise in training rows."""

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.25

# With these shares, a class of this size has a row in each of the three parts, whichever way the stratified counts are
# rounded.
MINIMUM_ROWS = 8


def hold_out(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split all rows into development rows and test rows, stratified by class."""
    return _stratified(y, np.arange(len(y)), TEST_SHARE, np.random.default_rng([seed, 0]))


def draw(
    y: np.ndarray, rows: np.ndarray, rng: np.random.Generator, imbalance: float, label_noise: float
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

    Raises:
        ValueError: there are too few training rows for ``imbalance``.
    """
    train, validation = _stratified(y, rows, VALIDATION_SHARE, rng)
    if imbalance > 1:
        train = _long_tail(y, train, rng, imbalance)
    labels = y[train]
    flipped = rng.permutation(len(labels))[: round(label_noise * len(labels))]
    classes = int(y.max()) + 1
    labels[flipped] = (labels[flipped] + rng.integers(1, classes, len(flipped))) % classes
    return train, labels, validation


def _stratified(
    y: np.ndarray, rows: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    splitter = StratifiedShuffleSplit(1, test_size=share, random_state=int(rng.integers(2**32)))
    rest, part = next(splitter.split(rows, y[rows]))
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
