"""What the classifiers of the three libraries share: labels, weights, the objective, its start and its posterior."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from polylosses.boosting.derivatives import Array
from polylosses.boosting.objectives import PolyObjective

Objective = TypeVar("Objective", bound=PolyObjective)

# The arguments of the loss, which are none of the library's.
LOSS = ("epsilon", "gamma", "polynomial", "one_vs_all", "curvature", "class_weight")


def refuse(estimator: Any, parameters: dict[str, Any], refused: dict[str, str]) -> None:
    """Raises for a parameter of the library that would take the loss's place, or be ignored beside it.

    Raises:
        TypeError: one of ``parameters`` is in ``refused``, which says what to do instead.
    """
    for name, instead in refused.items():
        if parameters.get(name) is not None:
            raise TypeError(f"{type(estimator).__name__} takes no {name}; got {name}={parameters[name]!r}. {instead}")


def encoded(y: Any) -> tuple[Array, Array]:
    """The classes, sorted, and the index of every label among them.

    Raises:
        ValueError: a label is missing, labels are continuous or have several columns, or are of one class.
    """
    if y is None:
        raise ValueError("requires y to be passed, but the target y is None.")
    y = column_or_1d(y, warn=True)
    if len(y) < 2:
        raise ValueError(f"y must have labels of two classes at least; got n_samples = {len(y)}.")
    assert_all_finite(y, input_name="y")
    if any(label is None for label in y):
        raise ValueError("Input y contains None: every row needs a label.")
    check_classification_targets(y)
    encoder = LabelEncoder().fit(y)
    if len(encoder.classes_) < 2:
        raise ValueError(
            f"y must have labels of two classes at least; got one class, {encoder.classes_.tolist()[0]!r}."
        )
    return encoder.classes_, encoder.transform(y)


def parted(pair: Any) -> tuple[Any, Any]:
    """The features and labels of an evaluation set.

    Raises:
        ValueError: it is not two.
    """
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        got = f"{len(pair)} parts" if isinstance(pair, (tuple, list)) else type(pair).__name__
        raise ValueError(f"each evaluation set must be a pair (X, y); got {got}.")
    return pair[0], pair[1]


def encoded_as(classes: Array, y: Any) -> Array:
    """The index of every label of an evaluation set.

    Raises:
        ValueError: a label is none of the classes that are trained with.
    """
    y = column_or_1d(y, warn=True)
    unknown = y[~np.isin(y, classes)]
    if len(unknown):
        raise ValueError(
            f"the evaluation set has the label {unknown.tolist()[0]!r}, which y has not: {classes.tolist()}."
        )
    indices: Array = np.searchsorted(classes, y)
    return indices


def class_factors(class_weight: Any, classes: Array, labels: Array) -> Array | None:
    """The weight of every class, or None for ones.

    Raises:
        ValueError: ``class_weight`` is none of None, ``"balanced"`` and a dict, or names labels that are not there.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, dict):
        unknown = [label for label in class_weight if label not in classes.tolist()]
        if unknown:
            raise ValueError(f"class_weight has the label {unknown[0]!r}, which y has not: {classes.tolist()}.")
    factors: Array = compute_class_weight(class_weight, classes=classes, y=classes[labels])
    return factors


def weighted(factors: Array | None, labels: Array, sample_weight: Any) -> Any:
    """The weight of every row: that of its class times its own; None for ones.

    Raises:
        ValueError: there is not one weight for each label, or a product is negative or not finite.
    """
    if factors is None and sample_weight is None:
        return None
    result = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    if result.shape != labels.shape:
        raise ValueError(f"sample_weight.shape == {result.shape}, expected {labels.shape}, one for each row.")
    if factors is not None:
        result = result * factors[labels]
    wrong = result[~(np.isfinite(result) & (result >= 0))]
    if wrong.size:
        raise ValueError(f"sample_weight and class_weight must be finite numbers of at least 0; got {wrong[0]}.")
    return result


def weights_of_sets(factors: Array, sets: Sequence[Array], given: Any) -> list[Any]:
    """The weights of evaluation sets, given their labels and none or a sequence of weights for each.

    Raises:
        ValueError: there are not as many sequences as sets; or as :func:`weighted`.
    """
    given = [None] * len(sets) if given is None else list(given)
    if len(given) != len(sets):
        raise ValueError(f"there must be weights for each of {len(sets)} evaluation sets; got {len(given)}.")
    return [weighted(factors, labels, weight) for labels, weight in zip(sets, given, strict=True)]


def objective_of(estimator: Any, kind: type[Objective]) -> Objective:
    """The objective of an estimator's arguments; their errors and warnings are those of the objective."""
    return kind(
        estimator.epsilon,
        estimator.gamma,
        estimator.polynomial,
        one_vs_all=estimator.one_vs_all,
        curvature=estimator.curvature,
    )


def starting_score(objective: PolyObjective, classes: Array, labels: Array, weight: Any) -> Any:
    """:meth:`PolyObjective.starting_score`, or that of cross-entropy where the loss has none that is finite.

    Raises:
        ValueError: all weights of a class are zero.
    """
    totals = np.bincount(labels, weights=weight)
    if not totals.all():
        raise ValueError(f"the weight of every row of the class {classes[totals == 0].tolist()[0]!r} is zero.")
    try:
        return objective.starting_score(labels, weight)
    except ValueError:  # labels and weights have been checked
        return PolyObjective(0.0, one_vs_all=objective.one_vs_all).starting_score(labels, weight)


def for_rows(start: Any, rows: int) -> Array:
    """The start as margins of shape ``(rows,)`` or ``(rows, classes)``."""
    return np.full(rows, start) if np.ndim(start) == 0 else np.tile(start, (rows, 1))


def posterior(objective: PolyObjective, margins: Any) -> Array:
    """The probabilities of all classes, in float64, of shape ``(rows, classes)``; rows sum to 1.

    With ``one_vs_all``, those of several classes are divided by their sum.
    """
    margins = np.asarray(margins, dtype=np.float64)
    if margins.ndim == 1:
        return np.column_stack([objective.probabilities(-margins), objective.probabilities(margins)])
    probabilities = np.maximum(objective.probabilities(margins), np.finfo(float).tiny)
    result: Array = probabilities / probabilities.sum(1, keepdims=True)
    return result


def of_posterior(objective: PolyObjective, function: Callable[..., Any]) -> Callable[..., Any]:
    """A metric of labels and probabilities as one of labels and margins; of two classes, those of the second."""

    @wraps(function)
    def metric(labels: Array, margins: Array, *rest: Any, **named: Any) -> Any:
        probabilities = posterior(objective, margins)
        return function(labels, probabilities[:, 1] if margins.ndim == 1 else probabilities, *rest, **named)

    return metric


def decided(classes: Array, margins: Any) -> Array:
    """The label of the largest margin, which has the largest posterior too.

    The margins are asked since a posterior may be the same for all classes: that of a loss linear in ``p`` is.
    """
    result: Array = classes[np.asarray(margins > 0, np.intp) if np.ndim(margins) == 1 else np.argmax(margins, axis=1)]
    return result
