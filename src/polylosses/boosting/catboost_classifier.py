"""CatBoost's classifier with PolyLoss as its loss function."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from catboost import CatBoost, CatBoostClassifier, Pool

from polylosses.boosting.derivatives import Array
from polylosses.boosting.estimators import (
    LOSS,
    class_factors,
    decided,
    encoded,
    encoded_as,
    for_rows,
    objective_of,
    parted,
    posterior,
    refuse,
    starting_score,
    weighted,
)
from polylosses.boosting.objectives import CatBoostObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

_OBJECTIVE = "The loss is the objective: give epsilon, gamma or polynomial, or take catboost.CatBoostClassifier."
_WEIGHT = "It is of CatBoost's own losses: give class_weight={label: weight} or 'balanced'."
REFUSED = {
    **dict.fromkeys(("loss_function", "objective"), _OBJECTIVE),
    **dict.fromkeys(("class_weights", "auto_class_weights", "scale_pos_weight"), _WEIGHT),
}
OF_POSTERIOR = ("Class", "Probability", "LogProbability")


class PolyCatBoostClassifier(CatBoostClassifier):
    """``catboost.CatBoostClassifier`` with PolyLoss: posterior probabilities, starting score, early stopping.

    It needs CatBoost 1.2 or later (with NumPy 2, 1.2.8) and scikit-learn. What ``CatBoostClassifier`` has is there:
    feature importances, ``save_model``, plots, ``cat_features``, missing values. What CatBoost does with its own losses
    alone is not: its searches and feature selection, a probability threshold, virtual ensembles.

    The starting score (:meth:`PolyObjective.starting_score`; where the loss has no finite one, that of cross-entropy)
    is the model's bias, so that the margins of a saved model are right in CatBoost without this package:
    ``CatBoost().load_model(...).predict(X, prediction_type="RawFormulaVal")``.

    CatBoost has other defaults for losses that are not its own: a learning rate of 0.03, where it would choose one by
    the size of the data, and a single Newton step for a leaf, where it would make ten for two classes. Of several
    classes it asks Python for the derivatives of one row at a time, in threads that wait for each other: two take 3
    times as long as one. Without a ``thread_count``, one thread trains on several classes.

    Args:
        epsilon, gamma, polynomial: as for every loss of the library. ``gamma`` is the exponent of focal loss.
        one_vs_all: whether each of several classes has a sigmoid. Probabilities are divided by their sum then; the log
            loss that training stops early by is the mean of the sigmoids'.
        curvature: as for :class:`PolyObjective`.
        class_weight: factors of the rows' weights: None, ``"balanced"`` or a dict from labels to numbers. The rows of
            ``eval_set`` have them, too.
        parameters: those of ``CatBoostClassifier``, but for ``loss_function``, ``class_weights``,
            ``auto_class_weights`` and ``scale_pos_weight``. Training stops early by ``eval_metric``, which is the log
            loss of the posterior unless another is given; ``custom_metric`` are reported beside it. CatBoost's own
            metrics are computed from the sigmoid or softmax of the margins.

    Attributes:
        classes_: the labels, sorted. A saved model has none: after ``load_model`` they are 0 to ``classes - 1``.
        objective_: the :class:`CatBoostObjective`.

    Raises:
        TypeError: ``loss_function`` or another parameter that takes the loss's place is given.
        ImportError: CatBoost or scikit-learn is missing or too old, when the class is imported.

    Example:
        >>> X, y = np.arange(20.0).reshape(-1, 1), np.repeat(["no", "yes"], [15, 5])
        >>> quiet = {"verbose": False, "allow_writing_files": False}
        >>> model = PolyCatBoostClassifier(epsilon=1.0, iterations=50, learning_rate=0.3, **quiet).fit(X, y)
        >>> model.predict([[3.0], [18.0]])
        array(['no', 'yes'], dtype='<U3')
        >>> bool(model.predict_proba([[18.0]])[0, 1] > 0.9)
        True
    """

    _init_params: dict[str, Any]

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
        # Not copied, as CatBoost does: scikit-learn's clone refuses a list that is another one each time.
        return {**{name: getattr(self, name) for name in LOSS}, **self._init_params}

    def set_params(self, **parameters: Any) -> "PolyCatBoostClassifier":
        """Sets parameters, by the names of the constructor; not of a fitted model, as in CatBoost."""
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
        """Trains, with the arguments of ``CatBoostClassifier.fit``.

        Args:
            X, y, sample_weight: the training set; features and labels, no Pool.
            cat_features, text_features, embedding_features: the columns of these kinds.
            baseline: takes the starting score's place; as in CatBoost, it is not in the margins of predictions.
            eval_set: a pair ``(X, y)`` or a list of pairs, with labels as in ``y``.
            init_model: a model to go on from, or its file, whose starting score stays.
            options: the others, such as ``early_stopping_rounds``.

        Raises:
            TypeError: ``X`` or ``eval_set`` is a Pool, whose labels can't be read and replaced.
            ValueError: labels are missing, continuous or of one class; a weight is negative, not finite, or zero for
                all rows of a class; ``class_weight`` or an evaluation set has other labels; or as
                :class:`PolyObjective`.

        Warns:
            UserWarning: an epsilon is below its bound, as :class:`polylosses.Polynomial`.
        """
        if isinstance(X, Pool):
            raise TypeError("X must be features and y labels, not a Pool; or train with CatBoostObjective.")
        classes, labels = encoded(y)
        objective = objective_of(self, CatBoostObjective)
        factors = class_factors(self.class_weight, classes, labels)
        weight = weighted(factors, labels, sample_weight)
        start = starting_score(objective, classes, labels, weight)
        adds = baseline is None and init_model is None
        kinds = {"cat_features": cat_features, "text_features": text_features, "embedding_features": embedding_features}
        if eval_set is not None:
            pairs = eval_set if isinstance(eval_set, list) else [eval_set]
            columns = {name: self.get_param(name) if given is None else given for name, given in kinds.items()}
            eval_set = [_pool(pair, classes, factors, start if adds else None, columns) for pair in pairs]
        given = self._init_params
        self._init_params = {"eval_metric": objective, **given, "loss_function": objective}
        if len(classes) > 2:
            self._init_params = {"thread_count": 1, **self._init_params, "classes_count": len(classes)}
        self._canonized_params = None
        bias = start if len(classes) == 2 else start.tolist()
        try:
            with TemporaryDirectory() if isinstance(init_model, CatBoost) else nullcontext() as folder:
                if folder is not None:
                    # CatBoost would go on with the labels and weights that a model in memory was trained with.
                    file = str(Path(folder) / "model.cbm")
                    init_model.save_model(file)
                    init_model = file
                if init_model is not None:  # CatBoost trains with the bias of that model, but does not hand it on
                    bias = CatBoost().load_model(init_model).get_scale_and_bias()[1]
                super().fit(
                    X,
                    labels,
                    sample_weight=weight,
                    baseline=for_rows(start, len(labels)) if adds else baseline,
                    eval_set=eval_set,
                    init_model=init_model,
                    **kinds,
                    **options,
                )
        finally:
            self._init_params, self._canonized_params = given, None
        if adds or init_model is not None:
            self.set_scale_and_bias(1.0, bias)
        self._labels, self.objective_ = classes, objective
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        """The margins, with the starting score: shape ``(rows,)`` for two classes, else ``(rows, classes)``."""
        margins: Array = self.predict(X, prediction_type="RawFormulaVal", **options)
        return margins

    def load_model(self, *arguments: Any, **options: Any) -> "PolyCatBoostClassifier":
        """Loads what ``save_model`` saved; the loss is that of this classifier's arguments."""
        super().load_model(*arguments, **options)
        for name in ("loss_function", "eval_metric", "classes_count"):
            self._init_params.pop(name, None)
        self._labels = np.arange(max(2, np.size(self.get_scale_and_bias()[1])))
        self.objective_ = objective_of(self, CatBoostObjective)
        return self

    def grid_search(self, *arguments: Any, **options: Any) -> Any:
        """Not here, since CatBoost would search with its own loss: take scikit-learn's ``GridSearchCV``."""
        raise TypeError("CatBoost would search with a loss of its own: take scikit-learn's GridSearchCV.")

    def randomized_search(self, *arguments: Any, **options: Any) -> Any:
        """Not here, since CatBoost would search with its own loss: take scikit-learn's ``RandomizedSearchCV``."""
        raise TypeError("CatBoost would search with a loss of its own: take scikit-learn's RandomizedSearchCV.")

    def select_features(self, *arguments: Any, **options: Any) -> Any:
        """Not here, since CatBoost would train with its own loss: take scikit-learn's ``RFE``."""
        raise TypeError("CatBoost would select by a loss of its own: take scikit-learn's RFE.")

    def set_probability_threshold(self, *arguments: Any, **options: Any) -> Any:
        """Not here, since CatBoost would compare the sigmoid: compare ``predict_proba`` with the threshold."""
        raise TypeError("predict decides by the posterior: compare predict_proba(X)[:, 1] with the threshold.")

    @property
    def classes_(self) -> Array | None:
        """The labels, sorted; None before ``fit``, as in CatBoost."""
        return self._labels if self.is_fitted() else None

    @property
    def feature_names_in_(self) -> Array:
        """The names of a table's columns; there is none if ``X`` had no names."""
        names = self.feature_names_
        if names is None or names == [str(k) for k in range(len(names))]:
            raise AttributeError("feature_names_in_ is there after fit with a table that has names.")
        return np.array(names, dtype=object)

    # CatBoost's predict, predict_proba, predict_log_proba and score come here, and the staged ones below.
    def _predict(self, data: Any, prediction_type: str, *others: Any, **named: Any) -> Any:
        if prediction_type not in OF_POSTERIOR:
            return super()._predict(data, prediction_type, *others, **named)
        return self._converted(super()._predict(data, "RawFormulaVal", *others, **named), prediction_type)

    def _staged_predict(self, data: Any, prediction_type: str, *others: Any, **named: Any) -> Iterator[Any]:
        if prediction_type not in OF_POSTERIOR:
            yield from super()._staged_predict(data, prediction_type, *others, **named)
        else:
            for margins in super()._staged_predict(data, "RawFormulaVal", *others, **named):
                yield self._converted(margins, prediction_type)

    def _converted(self, margins: Any, prediction_type: str) -> Any:
        margins = np.asarray(margins)
        single = margins.ndim == (0 if len(self._labels) == 2 else 1)
        rows = margins[None] if single else margins
        result = decided(self._labels, rows) if prediction_type == "Class" else posterior(self.objective_, rows)
        if prediction_type == "LogProbability":
            with np.errstate(divide="ignore"):
                result = np.log(result)
        return result[0] if single else result

    def __getstate__(self) -> dict[str, Any]:
        # CatBoost pickles and copies its parameters and the model alone.
        own = {name: getattr(self, name) for name in (*LOSS, "_labels", "objective_") if hasattr(self, name)}
        return {**super().__getstate__(), "_polylosses": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["_polylosses"])
        super().__setstate__({name: value for name, value in state.items() if name != "_polylosses"})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"


def _pool(pair: Any, classes: Array, factors: Array | None, start: Any, columns: dict[str, Any]) -> Pool:
    """An evaluation set with the weights of its classes, and with the start, which CatBoost wants in all or none."""
    if isinstance(pair, Pool):
        raise TypeError("eval_set must be a pair (X, y) or a list of pairs, not a Pool.")
    features, targets = parted(pair)
    labels = encoded_as(classes, targets)
    baseline = None if start is None else for_rows(start, len(labels))
    return Pool(features, labels, weight=weighted(factors, labels, None), baseline=baseline, **columns)
