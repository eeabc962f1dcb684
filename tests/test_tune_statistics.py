"""The statistics behind the verdict: metrics against scikit-learn, intervals against simulations."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from polylosses.tune import analysis, sequential, statistics
from polylosses.tune.sequential import Confirmation


def predictions(seed: int, rows: int = 200, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.choice(classes, rows - classes, p=[0.6, 0.25, 0.1, 0.05])])
    logits = rng.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[y]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, probabilities


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_scikit_learns(seed: int) -> None:
    y, probabilities = predictions(seed)
    predicted = probabilities.argmax(1)
    assert statistics.scores(y, probabilities) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(y, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
            "macro_f1": metrics.f1_score(y, predicted, average="macro"),
            "log_loss": metrics.log_loss(y, probabilities),
        }
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", statistics.METRICS)
def test_the_mean_of_row_scores_is_the_metric(metric: str, seed: int) -> None:
    y, probabilities = predictions(seed)
    assert statistics.row_scores(metric, y, probabilities).mean() == pytest.approx(
        statistics.scores(y, probabilities)[metric]
    )


def test_the_spread_of_row_scores_is_the_metrics_own() -> None:
    """The standard error from row scores agrees with a bootstrap of the metric over rows, stratified by class."""
    y, probabilities = predictions(0, rows=2000)
    rng = np.random.default_rng(1)
    bootstrap = []
    for _ in range(200):
        rows = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in range(4)])
        bootstrap.append(statistics.scores(y[rows], probabilities[rows]))
    for metric in statistics.METRICS:
        error = statistics.row_scores(metric, y, probabilities).std(ddof=1) / np.sqrt(len(y))
        spread = np.std([scores[metric] for scores in bootstrap])
        # Accuracy and log-loss also vary with the class frequencies, which are fixed in this bootstrap.
        assert 0.9 * spread < error < 1.2 * spread, metric


def test_probabilities_of_0_and_1_have_a_finite_log_loss() -> None:
    y, probabilities = np.array([0, 1]), np.array([[1, 0], [1, 0]], dtype=np.float32)
    assert np.isfinite(statistics.row_scores("log_loss", y, probabilities)).all()
    assert statistics.row_scores("log_loss", y, probabilities).mean() == pytest.approx(
        statistics.scores(y, probabilities)["log_loss"], rel=1e-5
    )


def test_calibration_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 200_000)
    probabilities = np.stack([p, 1 - p], 1)
    calibrated = (rng.uniform(size=len(p)) > p).astype(int)
    assert statistics.calibration_error(calibrated, probabilities) < 0.01
    assert statistics.calibration_error(np.zeros(len(p), int), probabilities) == pytest.approx(0.25, abs=0.01)
    # With 15 bins, these fall into two bins, as two and one. With 10 bins it would be one bin, with 20 one and two.
    confidence = np.array([0.61, 0.66, 0.68])
    error = statistics.calibration_error(np.array([0, 0, 1]), np.stack([confidence, 1 - confidence], 1))
    assert error == pytest.approx(((2 - 0.61 - 0.66) + 0.68) / 3)
    pooled = statistics.pooled_reliability([statistics.reliability(calibrated, probabilities, 10)] * 2)
    assert pooled.rows.sum() == 2 * len(p)
    np.testing.assert_allclose(pooled.accuracy, pooled.confidence, atol=0.02)


def simulated(rng: np.random.Generator, true: float, seeds: int = 8, rows: int = 60) -> np.ndarray:
    """Simulated differences: random effects of seed and row, and noise for every pair of them."""
    of_seeds, of_rows = rng.normal(0, 0.3, (seeds, 1)), rng.normal(0, 0.8, (1, rows))
    return true + of_seeds + of_rows + rng.normal(0, 1.0, (seeds, rows))


def confirm(differences: np.ndarray) -> Confirmation:
    return sequential.confirm(differences, len(differences), fixed=True)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    runs = [confirm(simulated(rng, true=0.5)) for _ in range(1500)]
    covered = np.mean([run.low <= 0.5 <= run.high for run in runs])
    # The binomial standard error of 1500 runs is 0.006. The variance estimate is a little conservative by design.
    assert 0.94 <= covered <= 0.985, covered


def test_an_interval_over_seeds_alone_would_not_cover_it() -> None:
    """The variance over rows matters too: without it, the interval holds for these test rows only."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        means = simulated(rng, true=0.5).mean(1)
        low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
        covered.append(low <= 0.5 <= high)
    assert np.mean(covered) < 0.9


def test_the_smallest_detectable_difference_is_detected_4_times_in_5() -> None:
    rng = np.random.default_rng(0)
    smallest = np.mean([confirm(simulated(rng, 0.0)).smallest_detectable for _ in range(300)])
    detected = np.mean([confirm(simulated(rng, float(smallest))).low > 0 for _ in range(1000)])
    assert 0.72 < detected < 0.92, detected


def test_arms_that_agree_on_every_row_do_not_prove_that_they_are_equal() -> None:
    confirmation = confirm(np.zeros((5, 40)))
    assert confirmation.low < -1 / 40 < 1 / 40 < confirmation.high
    assert confirmation.smallest_detectable > 2 / 40
    low, high = statistics.resampled_interval(np.zeros(5), train_rows=100, evaluation_rows=40)
    assert low < -1 / 40 < 1 / 40 < high


def test_resampled_interval_is_wider_than_the_plain_one_by_nadeau_and_bengios_factor() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1.0, 10)
    low, high = statistics.resampled_interval(differences, train_rows=75, evaluation_rows=25)
    plain = stats.t.interval(0.95, 9, differences.mean(), stats.sem(differences))
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(np.sqrt((1 / 10 + 1 / 3) / (1 / 10)))
    assert (high + low) / 2 == pytest.approx(differences.mean())


@pytest.mark.parametrize(
    ("low", "high", "maximize", "expected"),
    [
        (0.1, 0.2, True, "better"),
        (0.1, 0.2, False, "worse"),
        (-0.2, -0.1, True, "worse"),
        (-0.2, -0.1, False, "better"),
        (-0.1, 0.1, True, "no detectable difference"),
        (-0.1, 0.1, False, "no detectable difference"),
        (0.0, 0.1, True, "no detectable difference"),
    ],
)
def test_verdict(low: float, high: float, maximize: bool, expected: str) -> None:
    assert analysis.verdict_of(Confirmation((low + high) / 2, low, high, 1.0, (), 0), maximize) == expected


def test_the_interval_is_for_new_groups() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 0.5, (6, 40))

    def of_groups(differences: np.ndarray, groups: np.ndarray) -> Confirmation:
        scores = np.array([statistics.group_scores(row, groups) for row in differences])
        np.testing.assert_allclose(scores.mean(1), differences.mean(1))
        return sequential.confirm(scores, len(scores), fixed=True, test_rows=differences.shape[1])

    by_rows = confirm(differences)
    own = of_groups(differences, rng.permutation(40))
    assert (own.difference, own.low, own.high) == pytest.approx((by_rows.difference, by_rows.low, by_rows.high))
    # Copies of the rows, as groups, are no further evidence.
    copies = of_groups(differences.repeat(4, axis=1), np.arange(40).repeat(4))
    assert (copies.low, copies.high) == pytest.approx((by_rows.low, by_rows.high))
    # Groups differ in their sums here, but only since they differ in size; as all rows agree, one row is the least.
    same = of_groups(np.full((6, 40), 0.1), np.arange(40) // 7)
    assert (same.high - same.low) / 2 == pytest.approx(2.5706 / 40, rel=1e-4)
    assert same.difference == pytest.approx(0.1)
    np.testing.assert_allclose(statistics.group_scores(np.full(40, 0.1), np.arange(40) // 7), 0.1)
