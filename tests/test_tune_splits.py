"""Properties of splits, for random class counts."""

from itertools import pairwise

import numpy as np
import pytest

from polylosses.tune import splits


def random_labels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = splits.MINIMUM_ROWS + rng.integers(0, 40, rng.integers(2, 12))
    counts[0] = splits.MINIMUM_ROWS
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("seed", range(40))
def test_every_class_is_in_every_part_and_no_row_in_two(seed: int) -> None:
    y = random_labels(seed)
    development, test = splits.hold_out(y, seed)
    train, labels, validation = splits.draw(y, development, np.random.default_rng(seed), 1.0, 0.0)
    for part in (train, validation, test):
        assert set(y[part]) == set(y), f"classes {np.bincount(y)}"
    assert sorted([*train, *validation, *test]) == list(range(len(y)))
    np.testing.assert_array_equal(labels, y[train])


def test_the_same_seed_draws_the_same() -> None:
    y = random_labels(0)
    for first, second in zip(splits.hold_out(y, 3), splits.hold_out(y, 3), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(splits.hold_out(y, 3)[1], splits.hold_out(y, 4)[1])


@pytest.mark.parametrize("ratio", [1.0, 2.0, 10.0, 50.0])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_imbalance_and_noise_change_training_rows_only(ratio: float, noise: float) -> None:
    y = np.repeat(np.arange(5), 200)
    rows = np.arange(len(y))
    plain = splits.draw(y, rows, np.random.default_rng(0), 1.0, 0.0)
    train, labels, validation = splits.draw(y, rows, np.random.default_rng(0), ratio, noise)
    np.testing.assert_array_equal(validation, plain[2])
    assert set(train) <= set(plain[0])
    counts = np.bincount(y[train])
    assert counts.max() / counts.min() == pytest.approx(ratio, rel=0.01)
    steps = [a / b for a, b in pairwise(counts)]
    assert steps == pytest.approx([ratio ** (1 / 4)] * 4, rel=0.1)
    assert (labels != y[train]).sum() == round(noise * len(train))
    assert set(labels) <= set(y)


def test_a_ratio_beyond_the_rows_is_an_error() -> None:
    y = np.repeat([0, 1], 20)
    with pytest.raises(ValueError, match=r"imbalance 50 .* the largest has 15"):
        splits.draw(y, np.arange(40), np.random.default_rng(0), 50.0, 0.0)


def test_groups_are_in_one_part_and_classes_in_all() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(40, size=400)
    y = rng.integers(3, size=400)
    development, test = splits.hold_out(y, seed=1, groups=groups)
    assert not set(groups[development]) & set(groups[test])
    assert sorted([*development, *test]) == list(range(400))
    assert 0.25 < len(test) / 400 < 0.42
    drawn = [splits.draw(y, development, np.random.default_rng(k), 1.0, 0.0, groups) for k in range(2)]
    for train, labels, validation in drawn:
        assert not set(groups[train]) & set(groups[validation])
        assert np.array_equal(labels, y[train])
        assert 0.15 < len(validation) / len(development) < 0.35
        assert set(y[train]) == set(y[validation]) == {0, 1, 2}
    assert set(groups[drawn[0][2]]) != set(groups[drawn[1][2]])
    with pytest.raises(ValueError, match="a class is in too few groups"):
        splits.hold_out(np.where(groups == 7, 1, 0), 0, np.where(groups == 7, 0, groups % 9 + 1))
