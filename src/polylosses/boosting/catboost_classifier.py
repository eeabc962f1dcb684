"""CatBoost's classifier with PolyLoss as its objective."""

from typing import Any

import numpy as np
from catboost import CatBoostClassifier, Pool

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
from polylosses.boosting.objectives import CatBoostObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

_OBJECTIVE = "The loss is the objective: give epsilon, gamma or polynomial, or take catboost.CatBoostClassifier."
_WEIGHT = 'It is of CatBoost\'s own losses: give class_weight={label: weight}, or "balanced".'
REFUSED = {
    **dict.fromkeys(("loss_function", "objective"), _OBJECTIVE),
    **dict.fromkeys(("class_weights", "auto_class_weights", "scale_pos_weight"), _WEIGHT),
}


class PolyCatBoostClassifier(CatBoostClassifier):
    _init_params: Any

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
        """The parameters of the loss, and those of CatBoost that were given."""
        # Not copied, as CatBoost's are: scikit-learn's clone asks for the same objects.
        return {name: getattr(self, name) for name in LOSS} | self._init_params

    def set_params(self, **parameters: Any) -> "PolyCatBoostClassifier":
        """Sets parameters, with the names of the constructor; not of a fitted model, as in CatBoost."""
        refuse(self, parameters, REFUSED)
        super().set_params(**{name: value for name, value in parameters.items() if name not in LOSS})
        for name in parameters.keys() & set(LOSS):
            setattr(self, name, parameters[name])
        return self

    def fit(
        self,
        X: Any,
        y: Any = None,
        cat_features: Any = None,
        text_features: Any = None,
        embedding_features: Any = None,
        *,
        sample_weight: Any = None,
        baseline: Any = None,
        eval_set: Any = None,
        init_model: Any = None,
        **options: Any,
    ) -> "PolyCatBoostClassifier":
        if isinstance(X, Pool):
            raise TypeError("X must be the features and y the labels, not a Pool; or train with CatBoostObjective.")
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None.")
        classes, labels = encoded(y)
        objective = objective_of(self, CatBoostObjective, classes, labels)
        start = starting_score(objective, labels, sample_weight)
        adds = baseline is None and init_model is None
        kinds = {"cat_features": cat_features, "text_features": text_features, "embedding_features": embedding_features}
        if eval_set is not None:
            columns = {name: self.get_param(name) if given is None else given for name, given in kinds.items()}
            pools = []
            for one in eval_set if isinstance(eval_set, list) else [eval_set]:
                if isinstance(one, Pool):
                    raise TypeError("eval_set must be (X, y) or a list of these, not a Pool.")
                features, targets = one
                targets = encoded_as(classes, targets)
                pools.append(
                    Pool(features, targets, baseline=for_rows(start, len(targets)) if adds else None, **columns)
                )
            eval_set = pools
        if adds:
            baseline = for_rows(start, len(labels))
        given = self._init_params
        self._init_params = {"eval_metric": objective, **given, "loss_function": objective}
        if len(classes) > 2:
            self._init_params["classes_count"] = len(classes)
        self._canonized_params = None
        try:
            super().fit(
                X,
                labels,
                sample_weight=sample_weight,
                baseline=baseline,
                eval_set=eval_set,
                init_model=init_model,
                **kinds,
                **options,
            )
        finally:
            self._init_params, self._canonized_params = given, None
        if adds:
            self.set_scale_and_bias(1.0, start if len(classes) == 2 else start.tolist())
        self._labels, self.objective_ = classes, objective
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        margins: Array = super().predict(X, prediction_type="RawFormulaVal", **options)
        return margins

    def load_model(self, *arguments: Any, **options: Any) -> "PolyCatBoostClassifier":
        super().load_model(*arguments, **options)
        for name in ("loss_function", "eval_metric"):
            self._init_params.pop(name, None)
        self._labels = np.arange(max(2, np.size(self.get_scale_and_bias()[1])))
        self.objective_ = objective_of(self, CatBoostObjective)
        return self

    @property
    def classes_(self) -> Array | None:
        """The labels, sorted; of a model that was loaded from a file, 0 to ``classes - 1``; None before."""
        return self._labels if self.is_fitted() else None

    @property
    def feature_names_in_(self) -> Array:
        """The names of the columns of a table; an AttributeError where there were none."""
        names = self.feature_names_
        if names is None or names == [str(k) for k in range(len(names))]:
            raise AttributeError("feature_names_in_ is there after fit with a table with names.")
        return np.array(names, dtype=object)

    # CatBoost's predict, predict_proba, predict_log_proba and score come here, and their staged ones below.
    def _predict(self, data: Any, prediction_type: str, *others: Any, **named: Any) -> Any:
        if prediction_type not in OF_POSTERIOR:
            return super()._predict(data, prediction_type, *others, **named)
        return self._converted(super()._predict(data, "RawFormulaVal", *others, **named), prediction_type)

    def _staged_predict(self, data: Any, prediction_type: str, *others: Any, **named: Any) -> Any:
        if prediction_type not in OF_POSTERIOR:
            yield from super()._staged_predict(data, prediction_type, *others, **named)
        else:
            for margins in super()._staged_predict(data, "RawFormulaVal", *others, **named):
                yield self._converted(margins, prediction_type)

    def _converted(self, margins: Any, prediction_type: str) -> Any:
        margins = np.asarray(margins)
        single = margins.ndim == (0 if len(self._labels) == 2 else 1)
        result = posterior(self.objective_, margins[None] if single else margins)
        if prediction_type == "Class":
            result = self._labels[result.argmax(1)]
        elif prediction_type == "LogProbability":
            with np.errstate(divide="ignore"):
                result = np.log(result)
        return result[0] if single else result

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in (*LOSS, "_labels", "objective_") if hasattr(self, name)}
        return {**super().__getstate__(), "_polylosses": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["_polylosses"])
        super().__setstate__({name: value for name, value in state.items() if name != "_polylosses"})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"


OF_POSTERIOR = ("Class", "Probability", "LogProbability")
