"""XGBoost's classifier with PolyLoss as its objective."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from xgboost import XGBClassifier

from polylosses.boosting.derivatives import Array
from polylosses.boosting.estimators import (
    LOSS,
    encoded,
    encoded_as,
    objective_of,
    posterior,
    refuse,
    starting_score,
)
from polylosses.boosting.objectives import XGBoostObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

REFUSED = {
    "objective": "The loss is the objective: give epsilon, gamma or polynomial, or take xgboost.XGBClassifier.",
    "scale_pos_weight": "It is of XGBoost's own objectives: give class_weight={label: weight}.",
}


class PolyXGBClassifier(XGBClassifier):
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
        """The parameters: those of the loss, and XGBoost's but for ``objective``."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> "PolyXGBClassifier":
        """Sets parameters, with the names of the constructor."""
        refuse(self, parameters, REFUSED)
        super().set_params(**parameters)
        return self

    def get_xgb_params(self) -> dict[str, Any]:
        """The parameters that XGBoost itself gets: all but those of the loss, whose ``gamma`` is not XGBoost's."""
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
        **options: Any,
    ) -> "PolyXGBClassifier":
        classes, labels = encoded(y)
        objective = objective_of(self, XGBoostObjective, classes, labels)
        start = starting_score(objective, labels, sample_weight)
        if eval_set is not None:
            eval_set = [
                (features, labels if targets is y else encoded_as(classes, targets)) for features, targets in eval_set
            ]
        self.__dict__.pop("_labels", None)
        given = self.base_score, self.eval_metric
        self.objective, self.eval_metric = objective, _metrics(objective, self.eval_metric)
        if self.base_score is None and xgb_model is None:
            # For two classes, XGBoost wants a probability in float32, which must not be 0 or 1.
            self.base_score = (
                float(np.clip(1.0 / (1.0 + np.exp(-start)), 1e-7, 1.0 - 1e-7)) if len(classes) == 2 else start.tolist()
            )
        try:
            super().fit(
                X,
                labels,
                sample_weight=sample_weight,
                base_margin=base_margin,
                eval_set=eval_set,
                xgb_model=xgb_model,
                **options,
            )
        finally:
            self.base_score, self.eval_metric = given
        self._labels, self.objective_ = classes, objective
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        margins: Array = super().predict(X, output_margin=True, **options)
        return margins

    def predict_proba(self, X: Any, **options: Any) -> Array:
        return posterior(self.objective_, self.decision_function(X, **options))

    def predict(self, X: Any, *, output_margin: bool = False, **options: Any) -> Array:
        if output_margin:
            return self.decision_function(X, **options)
        result: Array = self.classes_[self.predict_proba(X, **options).argmax(1)]
        return result

    def load_model(self, fname: Any) -> None:
        given = self.base_score
        self.__dict__.pop("_labels", None)
        super().load_model(fname)
        self.base_score = given
        self.objective_ = objective_of(self, XGBoostObjective)

    @property
    def classes_(self) -> Array:
        """The labels, sorted; of a model that was loaded from a file, 0 to ``classes - 1``."""
        labels: Array = self._labels if hasattr(self, "_labels") else super().classes_
        return labels

    def _more_tags(self) -> dict[str, Any]:
        return {**super()._more_tags(), "multilabel": False}


def _metrics(objective: XGBoostObjective, given: Any) -> Any:
    """XGBoost's own metrics, and the last, by which training stops early: a given function or the posterior's loss."""

    def posterior_log_loss(labels: Array, margins: Array, sample_weight: Array | None = None) -> float:
        return objective.log_loss(margins, labels, sample_weight)

    metrics = [] if given is None else [given] if isinstance(given, str) or callable(given) else list(given)
    functions = [_of_posterior(objective, metric) for metric in metrics if callable(metric)] or [posterior_log_loss]
    names = [metric for metric in metrics if not callable(metric)]
    return [*names, *functions] if names else functions[0]  # XGBoost takes no list of functions alone


def _of_posterior(objective: XGBoostObjective, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def metric(labels: Array, margins: Array, **weight: Any) -> Any:
        probabilities = posterior(objective, margins)
        return function(labels, probabilities[:, 1] if margins.ndim == 1 else probabilities, **weight)

    return metric
