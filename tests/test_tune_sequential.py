"""The group-sequential confirmation: boundaries, intervals, and error rates in simulated studies."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from polylosses.tune import sequential
from polylosses.tune.analysis import compare


def test_boundaries_are_those_that_are_published() -> None:
    """Of R's gsDesign, for a two-sided level of 5 % and Lan and DeMets's approximation of O'Brien and Fleming."""
    for informations, right in (
        ((0.25, 0.5, 0.75, 1.0), (4.333, 2.963, 2.359, 2.014)),
        ((0.5, 1.0), (2.963, 1.969)),
        ((1.0,), (1.960,)),
    ):
        assert sequential.boundaries(informations) == pytest.approx(right, abs=6e-4)


# Differences of twenty seeds whose mean is 0; the last of rows, whose variance does not shrink with the seeds.
NULL: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": lambda rng: rng.normal(size=20),
    "skewed": lambda rng: rng.gamma(4, 1, 20) - 4,
    "heavy tails": lambda rng: rng.standard_t(3, 20),
    "discrete": lambda rng: (rng.binomial(100, 0.9, 20) - rng.binomial(100, 0.9, 20)) / 100,
    "mostly ties": lambda rng: rng.choice([-1.0, 1.0, *[0.0] * 8], 20),
    "rows": lambda rng: rng.normal(size=(20, 1)) * 0.02 + rng.normal(size=(1, 100)) + 0.3 * rng.normal(size=(20, 100)),
}
# The smallest difference of normal numbers that a fixed design with twenty seeds sees with a power of 0.8.
SMALLEST = 0.660


def rates(draw: Callable[[np.random.Generator], np.ndarray], studies: int) -> tuple[float, float]:
    """The share of studies with a verdict, and their mean number of seeds."""
    rng = np.random.default_rng(7)
    found = [sequential.confirm(draw(rng), 20) for _ in range(studies)]
    return (
        float(np.mean([not one.low <= 0 <= one.high for one in found])),
        float(np.mean([one.looks[-1].seeds for one in found])),
    )


@pytest.mark.slow
@pytest.mark.parametrize("law", NULL)
def test_false_verdicts_are_rare_and_seeds_few_without_an_effect(law: str) -> None:
    """4,000 studies; 3.5 standard errors above 5 % is 6.2 %. benchmarks/sequential.py simulates 20,000."""
    false, seeds = rates(NULL[law], 4000)
    assert false <= 0.062
    assert seeds <= (9.5 if law == "rows" else 14.5)


@pytest.mark.slow
def test_power() -> None:
    power, _ = rates(lambda rng: rng.normal(SMALLEST, 1, 20), 4000)
    assert power >= 0.73  # 0.755 in 20,000 studies
    power, seeds = rates(lambda rng: rng.normal(2 * SMALLEST, 1, 20), 1000)
    assert power >= 0.99
    assert seeds <= 12.3


def test_a_study_stops_at_a_look_that_decides() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=20)
    clear = sequential.confirm(3.0 + noise, 20)
    assert [look.seeds for look in clear.looks] == [9]
    assert 0 < clear.low < 3.0 + noise[:9].mean() < clear.high
    assert clear.difference == pytest.approx(3.0 + noise[:9].mean())
    nothing = sequential.confirm(noise - noise[:9].mean(), 20)
    assert [look.seeds for look in nothing.looks] == [9]  # no use in more
    assert nothing.low < 0 < nothing.high
    close = sequential.confirm(0.75 + noise, 20)
    assert len(close.looks) > 1
    assert [look.seeds for look in close.looks] == [9, 11, 14, 20][: len(close.looks)]
    whole = sequential.confirm(3.0 + noise, 20, fixed=True)
    assert [look.seeds for look in whole.looks] == [20]
    # With fewer seeds than planned it ends with the last look that has all of its.
    assert sequential.confirm(0.75 + noise[:13], 20).looks == close.looks[:2]


def test_the_fixed_interval_is_students() -> None:
    noise = np.random.default_rng(1).normal(size=10)
    values = 0.3 + np.concatenate([noise, -noise])  # without skewness
    found = sequential.confirm(values, 20, fixed=True)
    half = 2.093024 * values.std(ddof=1) / np.sqrt(20)  # the quantile of 19 degrees of freedom
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.smallest_detectable == pytest.approx(half + 0.860951 * values.std(ddof=1) / np.sqrt(20), rel=1e-5)


def test_a_verdict_is_an_interval_without_zero_for_skewed_differences_too() -> None:
    """Shifting by an end of the interval puts zero there: both tests are inverted."""
    values = np.random.default_rng(3).gamma(1, 1, 20)
    found = sequential.confirm(values, 20, fixed=True)
    middle = (found.low + found.high) / 2
    assert abs(middle - found.difference) > 0.05 * (found.high - found.low)  # it is not symmetric
    for end in (found.low, found.high):
        again = sequential.confirm(values - end, 20, fixed=True)
        assert min(abs(again.low), abs(again.high)) < 1e-9 + 1e-6 * (found.high - found.low)


def test_halls_transformation_is_inverted() -> None:
    estimate = sequential._Estimate.of(np.random.default_rng(3).gamma(1, 1, 20), 20, None)
    assert estimate.skewness > 0.1
    for t in np.linspace(-5, 5, 11):
        assert estimate.corrected(estimate.uncorrected(t)) == pytest.approx(t)


def test_variance_over_rows_does_not_shrink_with_seeds() -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(0.1, 1.0, (1, 400)).repeat(20, 0)
    found = sequential.confirm(rows + 1e-3 * rng.normal(size=(20, 400)), 20)
    assert [look.seeds for look in found.looks] == [9]  # more seeds would tell nothing
    assert found.looks[0].information == 1
    error = rows[0].std(ddof=1) / 20
    assert found.high - found.difference == pytest.approx(1.96 * error, rel=0.02)


def test_every_look_has_an_interval() -> None:
    """Also where the variance over rows seems larger, and information less, than at the look before."""
    fell = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        draws = rng.normal(size=(20, 1)) + 0.8 * rng.normal(size=(1, 20)) + rng.normal(size=(20, 20))
        looks = sequential.confirm(draws + 0.6, 20).looks
        informations = [look.information for look in looks]
        assert np.isfinite([(look.low, look.high, look.boundary) for look in looks]).all()
        assert all(a < b <= 1 for a, b in pairwise(informations))
        fell += sum(round(b - a, 2) == 0.01 for a, b in pairwise(informations))
    assert fell > 0


def test_seeds_that_agree_are_a_sign_test() -> None:
    """Their variance is 0; the p value of n equal signs is 2^(1 - n)."""
    assert sequential.confirm(np.full(20, 0.1), 20).low > 0
    five = sequential.confirm(np.full(5, 0.1), 5)  # 1 in 16
    assert five.low < 0 < five.high
    six = sequential.confirm(np.full(6, 0.1), 6, fixed=True)  # 1 in 32
    assert six.low > 0
    nothing = sequential.confirm(np.zeros(20), 20)
    assert (nothing.difference, nothing.low, nothing.high) == (0, 0, 0)
    same_rows = sequential.confirm(np.zeros((20, 50)), 20)
    assert same_rows.high >= 0.02  # the resolution of 50 rows


def test_failed_pairs_are_left_out() -> None:
    values = np.random.default_rng(5).normal(1.0, 1.0, (20, 30))
    values[[2, 7]] = np.nan
    found = sequential.confirm(values, 20)
    assert found.looks[0].seeds == 7
    assert found.seeds_left_out == 2
    assert found.difference == pytest.approx(values[[0, 1, 3, 4, 5, 6, 8]].mean())
    with pytest.raises(ValueError, match="there are 6, of which 5 failed"):
        sequential.confirm(np.array([1.0, *[np.nan] * 5]), 6)
    with pytest.raises(ValueError, match="looks first at 9 seeds; there are 8, of which 0 failed"):
        sequential.confirm(np.zeros(8), 20)


@pytest.mark.parametrize("most", [2, 4, 5, 6, 9, 20, 40, 10_000])
def test_looks_rise_to_the_last_seed(most: int) -> None:
    looks = sequential.seeds_of_looks(most)
    assert looks[-1] == most
    assert len(looks) <= 4
    assert all(a < b for a, b in pairwise(looks))
    assert looks[0] >= min(most, sequential.FEWEST_SEEDS)


def test_comparing_scores() -> None:
    a, b = np.array([0.91, 0.92, 0.90, 0.93]), np.array([0.88, 0.90, 0.86, 0.91])
    better = compare(a, b)
    assert better.verdict == "better"
    assert better.sentence.startswith(
        "The candidate is better than the baseline: 0.915 against 0.8875, a difference of +0.0275"
    )
    assert "over 4 fresh seeds" in better.sentence
    assert compare(a, b, maximize=False).verdict == "worse"
    assert compare(b, a).verdict == "worse"
    noise = np.random.default_rng(0).normal(size=(2, 20, 50))
    same = compare(noise[0], noise[1])
    assert same.verdict == "no detectable difference"
    assert same.sentence.startswith("No detectable difference between the candidate and the baseline: ")
    assert "over 20 fresh seeds and 50 test rows. The smallest" in same.sentence
    assert f"have seen is {same.confirmation.smallest_detectable:.3g}" in same.sentence
    for wrong in (([1.0, 2.0], [1.0]), ([], []), (np.zeros((2, 2, 2)), np.zeros((2, 2, 2))), (1.0, 2.0)):
        with pytest.raises(ValueError, match="of the same seeds"):
            compare(*wrong)
    with pytest.raises(ValueError, match="finite, or nan"):
        compare([1.0, np.inf], [1.0, 2.0])
