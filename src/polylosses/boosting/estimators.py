"""What the classifiers of the three libraries share: labels, the objective, its start and posterior."""

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
    """Raises for a parameter of the library that would be ignored or take the loss's place.

    Raises:
        TypeError: one of ``parameters`` is ``refused``, which says what to do instead.
    """
    for name, instead in refused.items():
        if parameters.get(name) is not None:
            raise TypeError(f"{type(estimator).__name__} takes no {name}; got {name}={parameters[name]!r}. {instead}")


def encoded(y: Any) -> tuple[Array, Array]:
    """The classes, sorted, and the index of every label among them.

    Raises:
        ValueError: a label is missing, labels are continuous or have more than one column, or are of one class.
    """
    y = column_or_1d(y, warn=True)
    assert_all_finite(y, input_name="y")
    if any(label is None for label in y):
        raise ValueError("Input y contains None: every row needs a label.")
    check_classification_targets(y)
    encoder = LabelEncoder().fit(y)
    if len(encoder.classes_) < 2:
        raise ValueError(f"y must have labels of two classes at least; got the class {y[0]!r} alone.")
    return encoder.classes_, encoder.transform(y)


def encoded_as(classes: Array, y: Any) -> Array:
    """The index of every label of an evaluation set.

    Raises:
        ValueError: a label is none of the classes that are trained with.
    """
    y = column_or_1d(y, warn=True)
    known = np.isin(y, classes)
    if not known.all():
        raise ValueError(f"eval_set has the label {y[~known][0]!r}, which is not in y: {classes.tolist()}.")
    return np.searchsorted(classes, y)


def objective_of(
    estimator: Any, kind: type[Objective], classes: Array | None = None, labels: Array | None = None
) -> Objective:
    """The objective of an estimator's arguments; without labels its class weights, which training needs, are left out.

    Raises:
        TypeError, ValueError: as the objective; or ``class_weight`` is wrong, or leaves out some classes and names
            others.
    """
    factors = None
    if labels is not None and classes is not None and estimator.class_weight is not None:
        factors = compute_class_weight(estimator.class_weight, classes=classes, y=classes[labels])
    return kind(
        estimator.epsilon,
        estimator.gamma,
        estimator.polynomial,
        one_vs_all=estimator.one_vs_all,
        curvature=estimator.curvature,
        class_weight=factors,
    )


def starting_score(objective: PolyObjective, labels: Array, sample_weight: Any) -> Any:
    """:meth:`PolyObjective.starting_score`, or that of cross-entropy where the loss has none that is finite.

    Raises:
        ValueError: a weight is negative or not finite, weights do not fit the labels, or a class has no weight.
    """
    start = PolyObjective(0.0, one_vs_all=objective.one_vs_all, class_weight=objective.class_weight).starting_score(
        labels, sample_weight
    )
    try:
        return objective.starting_score(labels, sample_weight)
    except ValueError:  # labels and weights are right
        return start


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
