"""The sweep over epsilon: selection on validation rows, confirmation on test rows, and the verdict."""

import math
import platform
from collections.abc import Callable, Sequence
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch

import polylosses
from polylosses.catalogue import poly1
from polylosses.tune import data, figures, splits, statistics
from polylosses.tune.columns import Column
from polylosses.tune.experiment import RUN_COLUMNS, Experiment, Run
from polylosses.tune.plan import CROSS_ENTROPY
from polylosses.tune.result import Result, describe, score, size

EPSILONS = (-1.0, 0.0, 1.0, 2.0, 5.0, 10.0)
LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)

# Repeats of the confirmation, as a multiple of those of the selection.
CONFIRMATION_FACTOR = 2

MOST_REPEATS = 10_000
# Limit for epsilons and learning rates: models are trained in float32, whose largest number is 3.4e38.
LARGEST = 1e30


class SweepInterrupted(KeyboardInterrupt):
    """Raised by Ctrl-C during a sweep; ``runs`` is the data frame of the finished runs."""

    def __init__(self, runs: pd.DataFrame) -> None:
        super().__init__(f"{len(runs)} runs had finished")
        self.runs = runs


def sweep(
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    drop: Sequence[str] = (),
    drop_missing_labels: bool = False,
    rare: str | None = None,
    epsilons: Sequence[float] = EPSILONS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    metric: str = "accuracy",
    repeats: int = 10,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
    name: str = "your data",
    progress: Callable[[float, str], None] = lambda done, stage: None,
) -> Result:
    """Grid search over epsilon of Poly-1, ``-log p + epsilon (1 - p)``, with a test of the best one against 0.

    1. Test split: 30 % of the rows are held out.
    2. Selection: each repeat splits the remaining rows into training and validation rows, and trains a small network
       for every epsilon and learning rate, all with the same rows, order of rows and initial weights. Each epsilon
       takes the learning rate with its best mean score on validation rows: a positive epsilon also increases the
       step size, which at a fixed learning rate is easily mistaken for a gain.
    3. Confirmation: the best nonzero epsilon and 0 are trained with fresh seeds on twice as many fresh splits, and
       compared on the test rows, since the validation score of the best of many is biased upwards.

    Args:
        X: features, rows x features: a DataFrame (numbers, text or categories, with or without missing values) or an
            array. The absolute values of numbers are at most 1e150.
        y: class labels, one per row, with at least 8 rows per class.
        groups: group of each row, such as a patient, one value per row. Rows of one group are never split between
            training, validation and test rows, whose shares are approximate then, and the interval of the verdict is
            for new groups rather than new rows. Each class needs rows in several groups.
        drop: names of columns of X to leave out.
        drop_missing_labels: leave out rows without a label, which are refused otherwise.
        rare: ``"drop"`` leaves out the rows of classes of fewer than 8 rows, ``"merge"`` makes one class of them all;
            by default they are refused.
        epsilons: values to compare, at most 1e30 in absolute value. 0, cross-entropy, is always included.
        learning_rates: candidates for every epsilon, positive and at most 1e30.
        metric: ``"accuracy"``, ``"balanced_accuracy"``, ``"macro_f1"`` or ``"log_loss"`` (of the probabilities from
            :func:`polylosses.torch.poly_softmax`). Unlike the training loss, none depends on epsilon itself.
        repeats: number of splits and seeds in the selection, 2 to 10000.
        imbalance: ratio of the largest to the smallest class in a long tail made of the training rows; 1 for none.
        label_noise: share of the training labels to replace by another class, in [0, 1).
        seed: seed of all random numbers, a nonnegative integer.
        name: name of the data in the report.
        progress: callback with the share of the work done, 0 to 1, and the stage.

    Raises:
        TypeError, ValueError: an argument or the data are invalid.
        SweepInterrupted: on Ctrl-C, with the finished ``runs``.

    Warns:
        UserWarning: an epsilon is below -1, where the loss is not monotone.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), who tune epsilon for every task (section 5).

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> result = sweep(X, y, epsilons=[2.0], learning_rates=[0.01], repeats=2)
        >>> result.table.epsilon.tolist()
        [0.0, 2.0]
        >>> result.verdict in ("better", "worse", "no detectable difference")
        True
    """
    grid = sorted({0.0, *_numbers("epsilons", epsilons)})
    rates = sorted(set(_numbers("learning_rates", learning_rates)))
    if grid == [0.0]:
        raise ValueError(f"epsilons need at least one number other than 0, to compare with it; got {epsilons!r}.")
    if not rates or rates[0] <= 0:
        raise ValueError(f"learning_rates need to be one or more numbers above 0; got {learning_rates!r}.")
    if metric not in statistics.METRICS:
        raise ValueError(f"metric must be one of {', '.join(statistics.METRICS)}; got {metric!r}.")
    if not isinstance(repeats, Integral) or not 2 <= repeats <= MOST_REPEATS:
        raise ValueError(f"repeats must be a whole number, at most {MOST_REPEATS} and at least 2; got {repeats!r}.")
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed!r}.")
    splits.check(imbalance, label_noise)
    frame, labels, classes, columns, reading, rows = data.check(
        X, y, splits.MINIMUM_ROWS, drop=drop, drop_missing_labels=drop_missing_labels, rare=rare
    )
    group_of = None if groups is None else _numbered(groups, len(y), rows)
    names = {epsilon: f"poly1({epsilon:g})" if epsilon else CROSS_ENTROPY for epsilon in grid}
    losses = {name: poly1(epsilon) for epsilon, name in names.items()}

    # NumPy's numbers are not JSON serializable.
    repeats, seed, imbalance, label_noise = int(repeats), int(seed), float(imbalance), float(label_noise)

    experiment = Experiment(frame, labels, metric, imbalance, label_noise, seed, group_of)
    arms = list(product(grid, rates))
    fresh = range(repeats, (1 + CONFIRMATION_FACTOR) * repeats)
    if group_of is not None:
        experiment.check_groups(range(fresh.stop))
    models = repeats * len(arms) + len(fresh) * 2
    trained = 0.0
    finished: list[Run] = []

    def train(stage: str, numbers: Sequence[int], arms: Sequence[tuple[float, float]]) -> list[Run]:
        def advance(more: float) -> None:
            nonlocal trained
            trained += more
            progress(min(trained / models, 1.0), stage)

        before = len(finished)
        for runs in experiment.run(stage, numbers, arms, advance):
            finished.extend(runs)
        return finished[before:]

    try:
        tried = train("selection", range(repeats), arms)
        selected = {
            epsilon: max(_by_rate(tried, epsilon).values(), key=lambda runs: _objective(runs, metric))
            for epsilon in grid
        }
        # Ties go to the epsilon closest to cross-entropy.
        best = max(
            selected.keys() - {0.0}, key=lambda epsilon: (_objective(selected[epsilon], metric), -abs(epsilon), epsilon)
        )
        pair = [(epsilon, selected[epsilon][0].learning_rate) for epsilon in (0.0, best)]
        confirmed = train("confirmation", fresh, pair)
    except KeyboardInterrupt:
        raise SweepInterrupted(_records(finished)) from None

    baseline, candidate = ([run for run in confirmed if run.epsilon == epsilon] for epsilon in (0.0, best))
    _, test = splits.hold_out(labels, seed, group_of)
    confirmation = _confirm(
        np.array([b.row_scores - a.row_scores for a, b in zip(baseline, candidate, strict=True)]),
        None if group_of is None else group_of[test],
    )
    guessing = _guessing(labels[test], metric)
    settings = {
        "data": name,
        "rows": len(labels),
        "features": frame.shape[1],
        "classes": len(classes),
        **({} if group_of is None else {"groups": len(np.unique(group_of))}),
        "training_rows": int(baseline[0].training_rows.sum()),
        "validation_rows": len(selected[0.0][0].row_scores),
        "test_rows": len(baseline[0].row_scores),
        "metric": metric,
        "always_guessing": guessing,
        "epsilons": grid,
        "learning_rates": rates,
        "repeats": repeats,
        "confirmation_repeats": len(fresh),
        "imbalance": imbalance,
        "label_noise": label_noise,
        "seed": seed,
        "versions": {
            "polylosses": polylosses.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
        },
    }
    table = _table(selected, metric)
    verdict = statistics.verdict(confirmation, lower_is_better=statistics.lower_is_better(metric))
    notes = [*reading, *_notes(tried, selected, best, metric)]
    if verdict != "better":
        notes.append("Nothing speaks for another epsilon here: use cross-entropy.")
    if note := _about_nothing(baseline, candidate, guessing, metric):
        notes.insert(0, note)
    return Result(
        table=table,
        runs=_records(finished),
        columns=pd.DataFrame(columns, columns=Column._fields),
        verdict=verdict,
        sentence=_sentence(verdict, confirmation, best, baseline, candidate, metric),
        best_epsilon=best,
        confirmation=confirmation,
        notes=notes,
        settings=settings,
        figures=figures.captioned(
            {names[epsilon]: runs for epsilon, runs in selected.items()},
            table.assign(loss=[names[epsilon] for epsilon in table["epsilon"]]),
            losses,
            classes,
            metric,
            {"loss": names[best], **vars(confirmation)},
        ),
    )


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    numbers = [values] if isinstance(values, Real) else list(values)
    for value in numbers:
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be numbers; got {value!r}.")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value!r}.")
        if abs(float(value)) > LARGEST:
            raise ValueError(f"{name} of more than {LARGEST:g} overflow in training; got {value!r}.")
    return [float(value) for value in numbers]


def _numbered(groups: Any, total: int, rows: np.ndarray) -> np.ndarray:
    """The groups of ``rows``, as numbers; ``total`` is the number of rows before any were left out."""
    if np.ndim(groups) != 1:
        raise ValueError(f"groups must be an array of one value per row; got {np.ndim(groups)} dimensions.")
    if len(groups) != total:
        raise ValueError(f"groups has {len(groups)} values and y has {total}: they must be the same.")
    given = pd.Series(groups).iloc[rows]
    numbers, _ = pd.factorize(given.map(lambda group: (group.strip() or None) if isinstance(group, str) else group))
    missing = numbers < 0
    if missing.any():
        first = f"{given.index.name or 'index'} {given.index[int(missing.argmax())]}"
        raise ValueError(
            f"{missing.sum()} of {len(rows)} groups are missing, the first at {first}: give every row a group, such as "
            "one of its own."
        )
    return np.asarray(numbers)


def _confirm(differences: np.ndarray, groups: np.ndarray | None) -> statistics.Confirmation:
    """:func:`statistics.confirm`, for groups of rows: rows of one group are not independent, their sums are.

    A sum also depends on the size of the group; this part, which is no difference between the arms, is taken off, as
    in the cluster-robust variance of a mean.
    """
    if groups is None:
        return statistics.confirm(differences)
    sums = pd.DataFrame(differences.T).groupby(groups).sum().to_numpy().T
    sizes = np.unique(groups, return_counts=True)[1]
    means = differences.mean(axis=1, keepdims=True)
    found = statistics.confirm(sums - means * (sizes - sizes.mean()))
    return statistics.Confirmation(*(float(value / sizes.mean()) for value in vars(found).values()))


def _objective(runs: Sequence[Run], metric: str) -> float:
    """Mean score, negated for metrics where lower is better."""
    mean = float(np.mean([run.scores[metric] for run in runs]))
    return -mean if statistics.lower_is_better(metric) else mean


def _by_rate(runs: Sequence[Run], epsilon: float) -> dict[float, list[Run]]:
    rates: dict[float, list[Run]] = {}
    for run in runs:
        if run.epsilon == epsilon:
            rates.setdefault(run.learning_rate, []).append(run)
    return rates


def _records(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame([run.record() for run in runs], columns=RUN_COLUMNS)


def _table(selected: dict[float, list[Run]], metric: str) -> pd.DataFrame:
    baseline = np.array([run.scores[metric] for run in selected[0.0]])
    rows = []
    for epsilon, runs in selected.items():
        scores = np.array([run.scores[metric] for run in runs])
        # Equal in all repeats, except with groups.
        training_rows, evaluation_rows = (
            round(float(np.mean([count(run) for run in runs])))
            for count in (lambda run: run.training_rows.sum(), lambda run: len(run.row_scores))
        )
        low, high = statistics.resampled_interval(scores - baseline, training_rows, evaluation_rows)
        records = _records(runs)
        rows.append(
            {
                "epsilon": epsilon,
                "learning_rate": runs[0].learning_rate,
                "score": scores.mean(),
                "difference": (scores - baseline).mean(),
                "difference_low": low,
                "difference_high": high,
                **records[["mean_p_t", "calibration_error", "calibration_error_poly_softmax"]].mean(),
            }
        )
    return pd.DataFrame(rows)


def _sentence(
    verdict: str,
    confirmation: statistics.Confirmation,
    best: float,
    baseline: Sequence[Run],
    candidate: Sequence[Run],
    metric: str,
) -> str:
    scores = (float(np.mean([run.scores[metric] for run in runs])) for runs in (candidate, baseline))
    evidence = (
        f"{describe(confirmation, metric, *scores)} over {len(baseline)} fresh seeds and "
        f"{len(baseline[0].row_scores)} untouched test rows"
    )
    if verdict == "no detectable difference":
        return (
            f"No detectable difference between epsilon = {best:g} and plain cross-entropy: {evidence}. "
            f"The smallest that this run could have seen is {size(metric, confirmation.smallest_detectable)}."
        )
    return f"epsilon = {best:g} is {verdict} than plain cross-entropy: {evidence}."


def _guessing(labels: np.ndarray, metric: str) -> float:
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


def _about_nothing(baseline: Sequence[Run], candidate: Sequence[Run], guessing: float, metric: str) -> str:
    """A note if neither arm of the confirmation is better than guessing; empty otherwise."""
    sign = -1 if statistics.lower_is_better(metric) else 1
    # As good as guessing, up to rounding, is not better.
    if max(_objective(runs, metric) for runs in (baseline, candidate)) > sign * guessing + 1e-9:
        return ""
    what = "giving the shares of the classes" if metric == "log_loss" else "guessing the largest class"
    return (
        f"Neither cross-entropy nor epsilon = {candidate[0].epsilon:g} is better than always {what} "
        f"({score(metric, guessing)}): the verdict is about nothing."
    )


def _notes(tried: Sequence[Run], selected: dict[float, list[Run]], best: float, metric: str) -> list[str]:
    """Notes on optima at the edge of the grid."""
    notes = []
    second, largest = sorted(selected)[-2:]
    if best == largest and _objective(selected[largest], metric) > _objective(selected[second], metric):
        notes.append(f"The largest epsilon, {best:g}, did best on validation rows: try larger ones.")
    for epsilon in (0.0, best):
        rate = selected[epsilon][0].learning_rate
        objectives = {rate: _objective(runs, metric) for rate, runs in sorted(_by_rate(tried, epsilon).items())}
        for end, ordered in (("smallest", list(objectives)), ("largest", list(objectives)[::-1])):
            if len(ordered) > 1 and rate == ordered[0] and objectives[rate] > objectives[ordered[1]]:
                notes.append(
                    f"epsilon = {epsilon:g} did best with the {end} learning rate, {rate:g}, and may do better beyond "
                    "it: widen the learning rates before believing a difference."
                )
    return notes
