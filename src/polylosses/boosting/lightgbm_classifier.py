"""LightGBM's classifier with PolyLoss as its objective."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier

from polylosses.boosting.derivatives import Array
from polylosses.boosting.estimators import (
    LOSS,
    encoded,
    encoded_as,
    for_rows,
    objective_of,
    posterior,
    refuse,
    starting_score,
)
from polylosses.boosting.objectives import LightGBMObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

_OBJECTIVE = "The loss is the objective: give epsilon, gamma or polynomial, or take lightgbm.LGBMClassifier."
_WEIGHT = 'It is of LightGBM\'s own objectives: give class_weight={label: weight}, or "balanced".'
REFUSED = {
    **dict.fromkeys(("objective", "objective_type", "app", "application", "loss"), _OBJECTIVE),
    **dict.fromkeys(("scale_pos_weight", "is_unbalance", "unbalance", "unbalanced_sets"), _WEIGHT),
}
# Those that are the same of margins as of probabilities.
OF_MARGINS = {"auc", "average_precision", "auc_mu", "multi_error", "None", "none", "null", "na", "custom", ""}


class PolyLGBMClassifier(LGBMClassifier):
    class_weight: Any

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
        super().__init__(class_weight=class_weight, **parameters)
        self.epsilon = epsilon
        self.gamma = gamma
        self.polynomial = polynomial
        self.one_vs_all = one_vs_all
        self.curvature = curvature

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters: those of the loss, and LightGBM's but for ``objective``."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> "PolyLGBMClassifier":
        """Sets parameters, with the names of the constructor."""
        refuse(self, parameters, REFUSED)
        super().set_params(**parameters)
        return self

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        init_score: Any = None,
        eval_set: Any = None,
        *,
        eval_init_score: Any = None,
        eval_metric: Any = None,
        init_model: Any = None,
        **options: Any,
    ) -> "PolyLGBMClassifier":
        classes, labels = encoded(y)
        objective = objective_of(self, LightGBMObjective, classes, labels)
        start = starting_score(objective, labels, sample_weight)
        self._refuse_what_has_no_start()
        adds = init_score is None and init_model is None
        if isinstance(eval_set, tuple):
            eval_set = [eval_set]
        rows = []
        for _, targets in eval_set or []:
            rows.append(len(encoded_as(classes, targets)))
        if adds:
            init_score = for_rows(start, len(labels))
            eval_init_score = [for_rows(start, count) for count in rows]
        class_weight, self.class_weight, self._class_weight = self.class_weight, None, None
        self.objective = self._objective = objective
        try:
            super().fit(
                X,
                y,
                sample_weight=sample_weight,
                init_score=init_score,
                eval_set=eval_set,
                eval_init_score=eval_init_score,
                eval_metric=_metrics(objective, eval_metric),
                init_model=init_model,
                **options,
            )
        finally:
            self.class_weight = class_weight
        if adds:
            _add(self.booster_, np.atleast_1d(start))
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        margins: Array = super().predict_proba(X, raw_score=True, **options)
        return margins

    def predict_proba(self, X: Any, **options: Any) -> Array:
        if any(options.get(name) for name in ("raw_score", "pred_leaf", "pred_contrib")):
            asked: Array = super().predict_proba(X, **options)
            return asked
        return posterior(self.objective_, self.decision_function(X, **options))

    def predict(self, X: Any, **options: Any) -> Array:
        found = self.predict_proba(X, **options)
        if any(options.get(name) for name in ("raw_score", "pred_leaf", "pred_contrib")):
            return found
        result: Array = self.classes_[found.argmax(1)]
        return result

    def _process_params(self, stage: str) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._process_params(stage)
        given = self.get_params()
        if not any(name in given for name in ("metric", "metrics", "metric_types")):
            parameters["metric"] = "None"
        return {name: value for name, value in parameters.items() if name not in LOSS}

    def _refuse_what_has_no_start(self) -> None:
        given = self.get_params()
        boosting = [given[name] for name in ("boosting", "boost", "boosting_type") if name in given]
        if {"rf", "random_forest"} & set(boosting):
            raise ValueError("boosting_type='rf' is for LightGBM's own objectives; give 'gbdt' or 'dart'.")
        if given.get("linear_tree") or given.get("linear_trees"):
            raise ValueError("linear_tree=True is not supported: the starting score is added to constant leaves.")


def _add(booster: Any, start: Array) -> None:
    """Adds the start to the leaves of the first iteration, a tree for each class: LightGBM has no field for it."""
    for tree, of in enumerate(booster.dump_model(num_iteration=1)["tree_info"]):
        for leaf in range(of["num_leaves"]):
            booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) + start[tree])


def _metrics(objective: LightGBMObjective, given: Any) -> list[Any]:
    metrics = [] if given is None else [given] if isinstance(given, str) or callable(given) else list(given)

    def posterior_log_loss(labels: Array, margins: Array, weight: Array | None) -> tuple[str, float, bool]:
        return objective.metric(labels, margins, weight)

    return [
        posterior_log_loss,
        *(_of_posterior(objective, metric) if callable(metric) else metric for metric in metrics),
    ]


def _of_posterior(objective: LightGBMObjective, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def metric(labels: Array, margins: Array, *rest: Any) -> Any:
        probabilities = posterior(objective, margins)
        return function(labels, probabilities[:, 1] if margins.ndim == 1 else probabilities, *rest)

    return metric
