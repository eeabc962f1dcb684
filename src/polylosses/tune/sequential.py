"""The confirmation: do two losses, trained with the same seeds, differ? With early stopping.

A group-sequential test. Seeds are looked at up to four times; each look spends a part of the 5 % that a verdict may be
wrong, after Lan and DeMets (Biometrika 70, 1983), with their approximation of O'Brien and Fleming's boundaries. A study
whose chance of a verdict is small stops, too; the boundaries do not count on that (it is non-binding). Simulated in
benchmarks/sequential.py.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

LEVEL = 0.95
POWER = 0.8

# Shares of the seeds at which is looked: 9, 11, 14 and 20 of 20. Of those simulated, these need the fewest seeds.
LOOKS = (0.45, 0.55, 0.7, 1.0)
FEWEST_SEEDS = 5

# Stops where the chance of a verdict, if there is a difference that would be seen with POWER, is below this.
FUTILITY = 0.35

# More than this share of the information that all seeds would give is all of it.
ENOUGH = 0.95

# Skewness below this multiple of its standard error is not corrected for: the correction would be noise.
SKEWNESS = 0.75


@dataclass(frozen=True)
class Look:
    """What is known after some seeds.

    Attributes:
        seeds: how many pairs of trainings.
        information: the share of the information that all seeds would give.
        difference: the mean difference.
        low, high: its 95 % interval. It holds whatever look the study stops at, and is wider than a fixed design's.
        statistic: the difference over its standard error, as a standard normal variable.
        boundary: the ``statistic`` from which on there is a verdict.
        futility: that below which there is no use in more seeds.
        futile_low, futile_high: the differences between which that is so.
    """

    seeds: int
    information: float
    difference: float
    low: float
    high: float
    statistic: float
    boundary: float
    futility: float
    futile_low: float
    futile_high: float

    @property
    def undecided(self) -> tuple[float, float]:
        """The differences between which there is no verdict."""
        return self.difference - self.high, self.difference - self.low

    @property
    def decides(self) -> bool:
        """Whether there is a verdict, or no use in more seeds."""
        return not self.low <= 0 <= self.high or self.information >= 1 or abs(self.statistic) < self.futility


@dataclass(frozen=True)
class Confirmation:
    """The difference between two losses with fresh seeds.

    Attributes:
        difference, low, high: mean and 95 % interval at the last look.
        smallest_detectable: the true difference that a study with all seeds sees with a power of 80 %.
        looks: all looks.
        seeds_left_out: pairs of which one training failed.
    """

    difference: float
    low: float
    high: float
    smallest_detectable: float
    looks: tuple[Look, ...]
    seeds_left_out: int


def seeds_of_looks(most: int, fixed: bool = False) -> tuple[int, ...]:
    """The numbers of seeds at which is looked, of ``most``."""
    if fixed:
        return (most,)
    return tuple(
        sorted({seeds for seeds in (math.ceil(share * most) for share in LOOKS) if seeds >= FEWEST_SEEDS} | {most})
    )


def confirm(differences: np.ndarray, most: int, *, fixed: bool = False, test_rows: int | None = None) -> Confirmation:
    """Looks at paired differences until there is a verdict, or no use in more seeds.

    The interval covers other seeds; and, where there is a score for each row, other rows. An interval over seeds alone
    would hold for these test rows only: a loss that is right on one of them by chance is right on it with most seeds.
    The variance is therefore that of the means of seeds plus that of the means of rows, a conservative estimate for a
    mean over two crossed samples (Owen, Annals of Applied Statistics 1, 2007), with Satterthwaite's degrees of freedom.
    More seeds never make the second part smaller, so that a look may have nearly all information there is.

    Skewed differences are corrected for (Hall, Journal of the Royal Statistical Society B 54, 1992): without, twenty of
    skewness 1 give 6 % of false verdicts. Where all seeds agree, the standard error is that of a sign test.

    Args:
        differences: one row for each seed, in order: a number, or numbers of all test rows; nan for a pair that failed.
            There may be fewer than ``most``, then this ends with the last look that has all its seeds.
        most: how many seeds there are at most.
        fixed: whether to look only once, at the end.
        test_rows: how many test rows there are, if the numbers are of groups of them.

    Raises:
        ValueError: there are fewer than two pairs.
    """
    looks: list[Look] = []
    for seeds in seeds_of_looks(most, fixed):
        so_far = differences[:seeds]
        kept = so_far[~np.isnan(so_far.reshape(len(so_far), -1)).any(1)]
        if len(so_far) < seeds:
            break
        if len(kept) < 2:
            continue
        estimate = _Estimate.of(kept, most, test_rows)
        before = tuple(look.information for look in looks)
        # Estimates may fall; a look that spends nothing would have no interval.
        least = min(1.0, round(before[-1] + 0.01, 2)) if before else 0.0
        information = 1.0 if seeds == most else max(estimate.information, least)
        looks.append(_look(estimate, len(kept), (*before, information)))
        left_out = len(so_far) - len(kept)
        if looks[-1].decides:
            break
    if not looks:
        failed = int(np.isnan(differences.reshape(len(differences), -1)).any(1).sum())
        raise ValueError(
            f"a confirmation needs two pairs of trainings, and looks first at {seeds_of_looks(most, fixed)[0]} seeds; "
            f"there are {len(differences)}, of which {failed} failed."
        )
    end, informations = looks[-1], tuple(look.information for look in looks)
    at_the_end = end.boundary if end.information >= 1 else boundaries((*informations, 1.0))[-1]
    detectable = (estimate.quantile(at_the_end) + float(stdtrit(estimate.freedom, POWER))) * estimate.error_of_all
    return Confirmation(end.difference, end.low, end.high, detectable, tuple(looks), left_out)


@dataclass(frozen=True)
class _Estimate:
    """A mean difference, its standard error now and with all seeds, degrees of freedom, and the mean's skewness."""

    mean: float
    error: float
    error_of_all: float
    freedom: float
    skewness: float

    @classmethod
    def of(cls, differences: np.ndarray, most: int, test_rows: int | None) -> "_Estimate":
        seeds = len(differences)
        means = differences.reshape(seeds, -1).mean(1)
        mean = float(means.mean())
        of_seeds = float(means.var(ddof=1)) if np.ptp(means) > 1e-12 * np.abs(means).max() else 0.0
        freedom, of_rows = seeds - 1.0, 0.0
        if differences.ndim == 1:
            if of_seeds == 0:
                # The sign test's p value of seeds that all agree is 2^(1 - seeds).
                error = abs(mean) / -float(stdtrit(freedom, 2.0**-seeds))
                return cls(mean, error, error, freedom, 0.0)
            least = 0.0
        else:
            rows = differences.shape[1]
            of_rows = float(differences.mean(0).var(ddof=1)) / rows if rows > 1 else 0.0
            parts = [(of_seeds / seeds, seeds - 1), (of_rows, max(rows - 1, 1))]
            if of_seeds or of_rows:
                freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / number for part, number in parts)
            # Losses that agree on every row have no variance; the resolution of n rows is still about one row.
            least = 1 / (test_rows or rows)
        variance = of_seeds / seeds + of_rows
        skewness = _skewness(means) / math.sqrt(seeds) * (of_seeds / seeds / variance) ** 1.5 if of_seeds else 0.0
        error, of_all = math.sqrt(variance), math.sqrt(of_seeds / most + of_rows)
        return cls(mean, max(error, least), max(of_all, least), freedom, skewness)

    @property
    def information(self) -> float:
        """The share of the information that all seeds would give, rounded down: then boundaries can be cached."""
        share = (self.error_of_all / self.error) ** 2 if self.error else 1.0
        return 1.0 if share >= ENOUGH else math.floor(100 * share + 1e-9) / 100

    def quantile(self, boundary: float) -> float:
        """The t statistic that is as improbable as a standard normal ``boundary``."""
        return -float(stdtrit(self.freedom, ndtr(-boundary)))

    def corrected(self, t: float) -> float:
        """Hall's transformation, which is monotone and takes skewness out of a t statistic."""
        a = self.skewness
        return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6

    def uncorrected(self, t: float) -> float:
        """The inverse."""
        a = self.skewness
        return t if abs(a) < 1e-6 else 3 / a * (math.copysign(abs(x := 1 + a * (t - a / 6)) ** (1 / 3), x) - 1)


def _skewness(values: np.ndarray) -> float:
    """The skewness of a sample, if it is more than its noise."""
    n = len(values)
    if n < 3:
        return 0.0
    deviations = (values - values.mean()) / values.std(ddof=1)
    found = n / ((n - 1) * (n - 2)) * float((deviations**3).sum())
    error = math.sqrt(6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3)))
    return found if abs(found) > SKEWNESS * error else 0.0


def _look(estimate: _Estimate, seeds: int, informations: tuple[float, ...]) -> Look:
    information, boundary = informations[-1], boundaries(informations)[-1]

    def within(statistic: float) -> tuple[float, float]:
        """The differences whose statistic is smaller, with or without the correction."""
        quantile = estimate.quantile(statistic)
        ends = [-quantile, quantile, estimate.uncorrected(-quantile), estimate.uncorrected(quantile)]
        return estimate.error * min(ends), estimate.error * max(ends)

    # Both tests, with and without the correction, have to leave 0 out.
    lowest, highest = within(boundary)
    low, high = estimate.mean - highest, estimate.mean - lowest
    t = estimate.mean / estimate.error if estimate.error else 0.0
    corrected = estimate.corrected(t)
    weaker = min(abs(t), abs(corrected)) if t * corrected > 0 else 0.0
    statistic = math.copysign(-float(ndtri(stdtr(estimate.freedom, -weaker))), t)
    left = 1 - information
    futility = 0.0
    if left > 0:
        # The statistic times the root of the information is a sum, and what it has yet to get has variance `left`.
        drift = ndtri((1 + LEVEL) / 2) + ndtri(POWER)
        needed = boundaries((*informations, 1.0))[-1] - drift * left + ndtri(FUTILITY) * math.sqrt(left)
        futility = max(0.0, float(needed / math.sqrt(information)))
    futile = within(futility) if futility else (0.0, 0.0)
    return Look(seeds, information, estimate.mean, low, high, statistic, boundary, futility, *futile)


def spent(information: float) -> float:
    """The probability of a false verdict that is spent up to a share of the information (Lan and DeMets, two-sided)."""
    return float(4 * ndtr(ndtri((1 - LEVEL) / 4) / math.sqrt(information)))


@lru_cache(maxsize=1024)
def boundaries(informations: tuple[float, ...]) -> tuple[float, ...]:
    """The boundaries of the standardized statistic at each look, by numerical integration over those before.

    Args:
        informations: shares in (0, 1], each larger than the one before.
    """
    found: list[float] = []
    grid, density, weights = np.zeros(1), np.ones(1), np.ones(1)  # of the sums: statistic times root of the information
    before, spent_before = 0.0, 0.0
    for information in informations:
        step, target = math.sqrt(information - before), spent(information) - spent_before
        low, high = 0.0, 10 * math.sqrt(information)
        for _ in range(60):
            middle = (low + high) / 2
            outside = ndtr((grid - middle) / step) + ndtr((-middle - grid) / step)
            low, high = (middle, high) if weights @ (density * outside) > target else (low, middle)
        found.append(high / math.sqrt(information))
        before, spent_before = information, spent(information)
        end = min(high, 8 * math.sqrt(information))
        points = np.linspace(-end, end, 301)
        density = (
            np.exp(-(((points[:, None] - grid) / step) ** 2) / 2)
            @ (weights * density)
            / (step * math.sqrt(2 * math.pi))
        )
        grid, weights = points, np.full(301, points[1] - points[0])
        weights[[0, -1]] /= 2
    return tuple(found)
