"""XGBoost's classifier with PolyLoss as its objective."""

from typing import Any

import numpy as np
from xgboost import XGBClassifier

from polylosses.boosting.derivatives import Array
from polylosses.boosting.estimators import (
    LOSS,
    class_factors,
    decided,
    encoded,
    encoded_as,
    objective_of,
    of_posterior,
    parted,
    posterior,
    refuse,
    starting_score,
    weighted,
    weights_of_sets,
)
from polylosses.boosting.objectives import XGBoostObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

REFUSED = {
    "objective": "The loss is the objective: give epsilon, gamma or polynomial, or take xgboost.XGBClassifier.",
    "scale_pos_weight": "It is of XGBoost's own objectives: give class_weight={label: weight}.",
}


class PolyXGBClassifier(XGBClassifier):
    """``xgboost.XGBClassifier`` with PolyLoss: posterior probabilities, starting score, early stopping.

    It needs XGBoost 3.1 or later and scikit-learn. All of ``XGBClassifier`` is there: feature importances,
    ``save_model``, plots, categorical columns with ``enable_categorical``, missing values.

    The starting score (:meth:`PolyObjective.starting_score`; where the loss has no finite one, that of cross-entropy)
    is the model's ``base_score``, so that the margins of a saved model are right in XGBoost without this package. A
    ``base_score`` of yours is used instead: for two classes a probability, for more a list of margins. For two classes
    XGBoost keeps the sigmoid of it in float32, from 1e-6 to 1 - 1e-6: margins from -13.8 to 13.8. Only ``predict`` and
    ``predict_proba`` of plain XGBoost differ: they are the sigmoid or softmax of the margins.

    Args:
        epsilon, gamma, polynomial: as for every loss of the library. ``gamma`` is the exponent of focal loss; XGBoost's
            parameter of that name has another, ``min_split_loss``.
        one_vs_all: whether each of several classes has a sigmoid. Probabilities are divided by their sum then; the log
            loss that training stops early by is the mean of the sigmoids'.
        curvature: as for :class:`PolyObjective`.
        class_weight: factors of the rows' weights: None, ``"balanced"`` or a dict from labels to numbers. The rows of
            ``eval_set`` have them, too.
        parameters: those of ``XGBClassifier``, but for ``objective`` and ``scale_pos_weight``. Training stops early by
            the log loss of the posterior; an ``eval_metric`` that is a name is reported beside it, as XGBoost computes
            it of the sigmoid or softmax; one that is a function, of labels and posterior, takes its place.

    Attributes:
        classes_: the labels, sorted. A saved model has none: after ``load_model`` they are 0 to ``classes - 1``.
        objective_: the :class:`XGBoostObjective`.

    Raises:
        TypeError: ``objective`` or ``scale_pos_weight`` is given.
        ImportError: XGBoost or scikit-learn is missing or too old, when the class is imported.

    Example:
        >>> X, y = np.arange(20.0).reshape(-1, 1), np.repeat(["no", "yes"], [15, 5])
        >>> model = PolyXGBClassifier(epsilon=1.0, n_estimators=20, min_child_weight=0.1).fit(X, y)
        >>> model.predict([[3.0], [18.0]])
        array(['no', 'yes'], dtype='<U3')
        >>> bool(model.predict_proba([[18.0]])[0, 1] > 0.9)
        True
    """

    objective: Any
    base_score: Any
    eval_metric: Any

    def __init__(
        self,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
        *,
        one_vs_all: bool = False,
        curvature: str = "expected",
        class_weight: Any = None,
        **parameters: Any,
    ) -> None:
        refuse(self, parameters, REFUSED)
        super().__init__(**parameters)
        self.epsilon = epsilon
        self.gamma = gamma
        self.polynomial = polynomial
        self.one_vs_all = one_vs_all
        self.curvature = curvature
        self.class_weight = class_weight

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters of the loss, and XGBoost's but for ``objective``."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> "PolyXGBClassifier":
        """Sets parameters, by the names of the constructor. Those of the loss take effect with the next ``fit``."""
        refuse(self, parameters, REFUSED)
        super().set_params(**parameters)
        return self

    def get_xgb_params(self) -> dict[str, Any]:
        """What XGBoost itself gets: all parameters but the loss's, whose ``gamma`` is not XGBoost's."""
        parameters = {name: value for name, value in super().get_xgb_params().items() if name not in LOSS}
        return {"disable_default_eval_metric": True, **parameters}

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        base_margin: Any = None,
        eval_set: Any = None,
        xgb_model: Any = None,
        sample_weight_eval_set: Any = None,
        **options: Any,
    ) -> "PolyXGBClassifier":
        """Trains, with the arguments of ``XGBClassifier.fit``; labels may be of any kind.

        Args:
            X, y, sample_weight: the training set.
            base_margin: takes the starting score's place for these rows, and is not kept in the model.
            eval_set: pairs ``(X, y)``, with labels as in ``y``.
            xgb_model: a model to go on from, whose starting score stays.
            sample_weight_eval_set: a sequence of weights for each evaluation set.
            options: the others.

        Raises:
            ValueError: labels are missing, continuous or of one class; a weight is negative, not finite, or zero for
                all rows of a class; ``class_weight`` or an evaluation set has other labels; there is a ``base_score``
                beside ``xgb_model``; or as :class:`PolyObjective`.

        Warns:
            UserWarning: an epsilon is below its bound, as :class:`polylosses.Polynomial`.
        """
        if xgb_model is not None and self.base_score is not None:
            raise ValueError(f"xgb_model has a starting score: leave out base_score={self.base_score!r}.")
        classes, labels = encoded(y)
        objective = objective_of(self, XGBoostObjective)
        factors = class_factors(self.class_weight, classes, labels)
        weight = weighted(factors, labels, sample_weight)
        start = starting_score(objective, classes, labels, weight)
        if eval_set is not None:
            eval_set = [(features, encoded_as(classes, targets)) for features, targets in map(parted, eval_set)]
            if factors is not None:
                sets = [indices for _, indices in eval_set]
                sample_weight_eval_set = weights_of_sets(factors, sets, sample_weight_eval_set)
        mine = self.objective, self.base_score, self.eval_metric
        self.__dict__.pop("_labels", None)
        self.objective, self.eval_metric = objective, _metrics(objective, self.eval_metric)
        if self.base_score is None and xgb_model is None:
            self.base_score = _probability(start) if len(classes) == 2 else start.tolist()
        try:
            super().fit(
                X,
                labels,
                sample_weight=weight,
                base_margin=base_margin,
                eval_set=eval_set,
                xgb_model=xgb_model,
                sample_weight_eval_set=sample_weight_eval_set,
                **options,
            )
        finally:
            self.objective, self.base_score, self.eval_metric = mine
        self._labels, self.objective_ = classes, objective
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        """The margins, with the starting score: shape ``(rows,)`` for two classes, else ``(rows, classes)``."""
        margins: Array = super().predict(X, output_margin=True, **options)
        return margins

    def predict_proba(self, X: Any, **options: Any) -> Array:
        """The posterior (:meth:`PolyObjective.probabilities`) of all classes, of shape ``(rows, classes)``."""
        margins = self.decision_function(X, **options)
        return posterior(self.objective_, margins)

    def predict(self, X: Any, *, output_margin: bool = False, **options: Any) -> Array:
        """The label of the largest posterior, or the margins."""
        margins = self.decision_function(X, **options)
        return margins if output_margin else decided(self.classes_, margins)

    def load_model(self, fname: Any) -> None:
        """Loads what ``save_model`` saved; the loss is that of this classifier's arguments."""
        base_score = self.base_score
        self.__dict__.pop("_labels", None)
        super().load_model(fname)
        self.base_score = base_score  # a later fit has a start of its own
        self.objective_ = objective_of(self, XGBoostObjective)

    @property
    def classes_(self) -> Array:
        """The labels, sorted."""
        labels: Array = self._labels if hasattr(self, "_labels") else super().classes_
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False
        return tags


def _probability(start: float) -> float:
    """What XGBoost wants for two classes, within its bounds."""
    return float(np.clip(1.0 / (1.0 + np.exp(-start)), 1e-6, 1.0 - 1e-6))


def _metrics(objective: XGBoostObjective, given: Any) -> Any:
    """XGBoost's own metrics, and the last, by which training stops early: a given function or the posterior's loss."""

    def posterior_log_loss(labels: Array, margins: Array, sample_weight: Array | None = None) -> float:
        return objective.log_loss(margins, labels, sample_weight)

    metrics = [] if given is None else [given] if isinstance(given, str) or callable(given) else list(given)
    functions = [of_posterior(objective, metric) for metric in metrics if callable(metric)] or [posterior_log_loss]
    names = [metric for metric in metrics if not callable(metric)]
    return [*names, *functions] if names else functions[0]  # XGBoost takes no list of functions alone
