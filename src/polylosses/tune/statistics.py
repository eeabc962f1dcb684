"""Metrics of predictions, and their parts that rows or groups of rows contribute."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics

LEVEL = 0.95

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
}


def lower_is_better(metric: str) -> bool:
    """Whether lower values of the metric are better."""
    return metric == "log_loss"


def scores(y: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Value of each metric for class indices ``y`` and predicted probabilities, rows x classes."""
    predicted = probabilities.argmax(1)
    return {
        "accuracy": metrics.accuracy_score(y, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "macro_f1": metrics.f1_score(y, predicted, average="macro", labels=np.unique(y), zero_division=0.0),
        "log_loss": metrics.log_loss(y, probabilities, labels=np.arange(probabilities.shape[1])),
    }


def row_scores(metric: str, y: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Contribution of each row to the metric: their mean is the metric, and their variance gives its sampling error.

    Accuracy and log-loss are means over rows. The other two are ratios of counts; they are linearized as their value
    plus the influence function of each row:

    * balanced accuracy: ([right] - recall of the row's class) / rows of that class, averaged over classes,
    * macro F1: (2 [y = c = predicted] - F1_c ([y = c] + [predicted = c])) / (rows of c + predictions of c), likewise.
    """
    predicted = probabilities.argmax(1)
    if metric == "log_loss":
        limit = np.finfo(probabilities.dtype).eps  # as scikit-learn's log_loss
        return np.asarray(-np.log(np.clip(probabilities[np.arange(len(y)), y], limit, 1 - limit)))
    if metric == "accuracy":
        return np.asarray(predicted == y, dtype=float)
    values, influence = [], np.zeros(len(y))
    for label in np.unique(y):
        true, positive = y == label, predicted == label
        hits = 1.0 * (true & positive)
        if metric == "balanced_accuracy":
            rows = true.sum()
            values.append(hits.sum() / rows)
            # Bessel's correction: the deviations from a mean of few rows are too small.
            influence += (hits - values[-1] * true) / rows * np.sqrt(rows / max(rows - 1, 1))
        else:
            size = true.sum() + positive.sum()
            values.append(2 * hits.sum() / size)
            influence += (2 * hits - values[-1] * (1.0 * true + positive)) / size
    return np.asarray(np.mean(values) + influence * len(y) / len(values))


def always_guessing(labels: np.ndarray, metric: str) -> float:
    """The metric of always guessing the largest class; for the log loss, of always giving the shares of the classes."""
    _, rows = np.unique(labels, return_counts=True)
    shares = rows / len(labels)
    largest = float(shares.max())
    return {
        "accuracy": largest,
        "balanced_accuracy": 1 / len(shares),
        # Precision is the share and recall is 1; the F1 of all other classes is 0.
        "macro_f1": 2 * largest / (1 + largest) / len(shares),
        "log_loss": -float(shares @ np.log(shares)),
    }[metric]


def group_scores(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Contribution of each group to a metric, from that of its rows: their mean is the metric.

    Rows of one group are not independent, but their sums are. A sum also depends on the size of the group; this part is
    taken off, as in the cluster-robust variance of a mean.
    """
    number = np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(number, scores), np.bincount(number)
    return np.asarray((sums - scores.mean() * (sizes - sizes.mean())) / sizes.mean())


def reliability(y: np.ndarray, probabilities: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    """Sums over rows in equal-width bins of confidence, the probability of the predicted class.

    ``rows`` is the number of rows, ``confidence`` the sum of confidences, and ``accuracy`` the number of correct
    predictions.
    """
    confidence = probabilities.max(1).astype(float)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    correct = probabilities.argmax(1) == y
    return {
        "rows": np.bincount(bin_of, minlength=bins),
        "confidence": np.bincount(bin_of, confidence, bins),
        "accuracy": np.bincount(bin_of, correct, bins),
    }


def pooled_reliability(models: Sequence[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Mean ``confidence`` and ``accuracy``, and number of ``rows``, of each nonempty bin over several models."""
    sums = pd.DataFrame({name: np.sum([one[name] for one in models], axis=0) for name in models[0]})
    sums = sums[sums.rows > 0]
    return sums.assign(confidence=sums.confidence / sums.rows, accuracy=sums.accuracy / sums.rows)


def calibration_error(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: mean of |accuracy - confidence| over 15 bins, weighted by their rows.

    Guo et al., ICML 2017, equation 3.
    """
    sums = reliability(y, probabilities, bins=15)
    return float(np.abs(sums["accuracy"] - sums["confidence"]).sum() / len(y))


def resampled_interval(differences: np.ndarray, train_rows: int, evaluation_rows: int) -> tuple[float, float]:
    """95 % interval for the mean of paired differences over repeated random splits of the same rows.

    Splits overlap, so the differences are dependent and the t interval is too narrow. The corrected variance has the
    factor 1/repeats + evaluation rows / training rows instead of 1/repeats (Nadeau and Bengio, Machine Learning 52,
    2003, section 3.3). Arms that agree on every row have no variance; the resolution of n rows is still about one row.
    """
    repeats = len(differences)
    mean = float(np.mean(differences))
    error = np.sqrt((1 / repeats + evaluation_rows / train_rows) * np.var(differences, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, repeats - 1)) * max(float(error), 1 / evaluation_rows)
    return mean - half, mean + half
