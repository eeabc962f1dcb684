"""LightGBM's classifier with PolyLoss as its objective."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier

from polylosses.boosting.derivatives import Array
from polylosses.boosting.estimators import (
    LOSS,
    class_factors,
    decided,
    encoded,
    encoded_as,
    for_rows,
    objective_of,
    of_posterior,
    parted,
    posterior,
    refuse,
    starting_score,
    weighted,
    weights_of_sets,
)
from polylosses.boosting.objectives import LightGBMObjective
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial

_OBJECTIVE = "The loss is the objective: give epsilon, gamma or polynomial, or take lightgbm.LGBMClassifier."
_WEIGHT = "It is of LightGBM's own objectives: give class_weight={label: weight} or 'balanced'."
REFUSED = {
    **dict.fromkeys(("objective", "objective_type", "app", "application", "loss"), _OBJECTIVE),
    **dict.fromkeys(("scale_pos_weight", "is_unbalance", "unbalance", "unbalanced_sets"), _WEIGHT),
}
# LightGBM's own metrics get margins. These are the same of margins as of probabilities.
OF_MARGINS = ("auc", "average_precision", "auc_mu", "multi_error", "None", "none", "null", "na", "custom", "")


class PolyLGBMClassifier(LGBMClassifier):
    """``lightgbm.LGBMClassifier`` with PolyLoss: posterior probabilities, starting score, early stopping.

    It needs LightGBM 4.6 or later, whose classifier can be derived from, and scikit-learn. All of ``LGBMClassifier`` is
    there: feature importances, ``booster_.save_model``, plots, pandas' categorical columns, missing values.

    The starting score (:meth:`PolyObjective.starting_score`; where the loss has no finite one, that of cross-entropy)
    is added to the leaves of the first iteration after training, since LightGBM has no field for it. So the margins of
    a saved model are right in LightGBM without this package: ``lightgbm.Booster(model_file=...).predict(X)``.

    Args:
        epsilon, gamma, polynomial: as for every loss of the library. ``gamma`` is the exponent of focal loss;
            LightGBM's ``min_split_gain`` is what XGBoost calls so.
        one_vs_all: whether each of several classes has a sigmoid. Probabilities are divided by their sum then; the log
            loss that training stops early by is the mean of the sigmoids'.
        curvature: as for :class:`PolyObjective`.
        class_weight: factors of the rows' weights: None, ``"balanced"`` or a dict from labels to numbers. The rows of
            evaluation sets have them, too, unless ``fit`` gets an ``eval_class_weight``.
        parameters: those of ``LGBMClassifier``, but for ``objective``, ``scale_pos_weight`` and ``is_unbalance``. There
            is no ``boosting_type="rf"``, which LightGBM has for its own objectives alone, and no ``linear_tree``, whose
            leaves are no constants.

    Attributes:
        classes_: the labels, sorted.
        objective_: the :class:`LightGBMObjective`.

    Raises:
        TypeError: ``objective`` or another parameter that takes the loss's place is given.
        ImportError: LightGBM or scikit-learn is missing or too old, when the class is imported.

    Example:
        >>> X, y = np.arange(80.0).reshape(-1, 1), np.repeat(["no", "yes"], [55, 25])
        >>> model = PolyLGBMClassifier(epsilon=1.0, n_estimators=30, verbosity=-1).fit(X, y)
        >>> model.predict([[3.0], [78.0]])
        array(['no', 'yes'], dtype='<U3')
        >>> bool(model.predict_proba([[78.0]])[0, 1] > 0.9)
        True
    """

    objective: Any
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
        """The parameters of the loss, and LightGBM's but for ``objective``."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> "PolyLGBMClassifier":
        """Sets parameters, by the names of the constructor. Those of the loss take effect with the next ``fit``."""
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
        eval_sample_weight: Any = None,
        eval_class_weight: Any = None,
        eval_init_score: Any = None,
        eval_metric: Any = None,
        callbacks: Any = None,
        init_model: Any = None,
        **options: Any,
    ) -> "PolyLGBMClassifier":
        """Trains, with the arguments of ``LGBMClassifier.fit``.

        Args:
            X, y, sample_weight: the training set.
            init_score: takes the starting score's place; as in LightGBM, it is not in the margins of predictions.
            eval_set: pairs ``(X, y)``; or ``eval_X`` and ``eval_y``, from LightGBM 4.7 on.
            eval_sample_weight: a sequence of weights for each evaluation set.
            eval_class_weight: that of LightGBM.
            eval_init_score: margins for each evaluation set; without ``init_score``, the starting score by default.
            eval_metric: reported beside ``posterior_log_loss``, the log loss of the posterior. A function gets labels
                and posterior, as with LightGBM's own objectives. Of LightGBM's own metrics, those that are the same of
                margins as of probabilities.
            callbacks: such as ``lightgbm.early_stopping(10)``, which watches ``posterior_log_loss`` and all others
                (with ``first_metric_only``, the first of LightGBM's own, if there are any).
            init_model: a model to go on from, whose starting score stays.
            options: the others.

        Raises:
            ValueError: labels are missing, continuous or of one class; a weight is negative, not finite, or zero for
                all rows of a class; ``class_weight`` or an evaluation set has other labels; a metric of LightGBM's
                needs probabilities; the kind of boosting has no starting score; or as :class:`PolyObjective`.

        Warns:
            UserWarning: an epsilon is below its bound, as :class:`polylosses.Polynomial`.
        """
        classes, labels = encoded(y)
        objective = objective_of(self, LightGBMObjective)
        factors = class_factors(self.class_weight, classes, labels)
        weight = weighted(factors, labels, sample_weight)
        start = starting_score(objective, classes, labels, weight)
        self._refuse_what_has_no_start()
        evaluated = [encoded_as(classes, targets) for targets in _targets(eval_set, **options)]
        if factors is not None and eval_class_weight is None:
            eval_sample_weight = weights_of_sets(factors, evaluated, eval_sample_weight)
        if options.get("eval_y") is not None:  # LightGBM 4.7 encodes the labels of eval_set alone
            options["eval_y"] = tuple(evaluated) if isinstance(options["eval_y"], tuple) else evaluated[0]
        adds = init_score is None and init_model is None
        if adds:
            init_score = for_rows(start, len(labels))
            if eval_init_score is None:
                eval_init_score = [for_rows(start, len(indices)) for indices in evaluated]
        class_weight = self.class_weight
        self.class_weight = self._class_weight = None  # it is in the weights
        self.objective = self._objective = objective
        try:
            super().fit(
                X,
                y,
                sample_weight=weight,
                init_score=init_score,
                eval_set=eval_set,
                eval_sample_weight=eval_sample_weight,
                eval_class_weight=eval_class_weight,
                eval_init_score=eval_init_score,
                eval_metric=_metrics(objective, eval_metric),
                callbacks=[*(callbacks or []), _keep_the_objective],
                init_model=init_model,
                **options,
            )
        finally:
            self.class_weight, self.objective = class_weight, None
        if adds:
            _add(self.booster_, np.atleast_1d(start))
        return self

    def decision_function(self, X: Any, **options: Any) -> Array:
        """The margins, with the starting score: shape ``(rows,)`` for two classes, else ``(rows, classes)``."""
        margins: Array = super().predict_proba(X, raw_score=True, **options)
        return margins

    def predict_proba(self, X: Any, **options: Any) -> Array:
        """The posterior (:meth:`PolyObjective.probabilities`) of all classes, of shape ``(rows, classes)``.

        With ``raw_score``, ``pred_leaf`` or ``pred_contrib`` it is what LightGBM gives for these.
        """
        if _asks_for_more(options):
            asked: Array = super().predict_proba(X, **options)
            return asked
        margins = self.decision_function(X, **options)
        return posterior(self.objective_, margins)

    def predict(self, X: Any, **options: Any) -> Array:
        """The label of the largest posterior; or with ``raw_score``, ``pred_leaf`` or ``pred_contrib``, LightGBM's."""
        if _asks_for_more(options):
            return self.predict_proba(X, **options)
        margins = self.decision_function(X, **options)
        return decided(self.classes_, margins)

    def _process_params(self, stage: str) -> dict[str, Any]:
        parameters: dict[str, Any] = super()._process_params(stage)
        given = self.get_params()
        names = [given[name] for name in ("metric", "metrics", "metric_types") if name in given]
        if not names:
            parameters["metric"] = "None"  # LightGBM would take a log loss of the margins
        for name in names:
            _check_names(name.split(",") if isinstance(name, str) else name)
        return {name: value for name, value in parameters.items() if name not in LOSS}

    def _refuse_what_has_no_start(self) -> None:
        given = self.get_params()
        if any(given.get(name) in ("rf", "random_forest") for name in ("boosting_type", "boosting", "boost")):
            raise ValueError('boosting_type="rf" is for LightGBM\'s own objectives; give "gbdt" or "dart".')
        if given.get("linear_tree") or given.get("linear_trees"):
            raise ValueError("linear_tree=True has leaves that are no constants, and no place for the starting score.")


def _asks_for_more(options: dict[str, Any]) -> bool:
    return any(options.get(name) for name in ("raw_score", "pred_leaf", "pred_contrib"))


def _targets(eval_set: Any = None, *, eval_X: Any = None, eval_y: Any = None, **_: Any) -> Sequence[Any]:
    """The labels of all evaluation sets, which LightGBM takes in two ways."""
    if eval_X is not None:
        return eval_y if isinstance(eval_y, tuple) else (eval_y,)
    pairs = (eval_set,) if isinstance(eval_set, tuple) else eval_set or ()
    return [targets for _, targets in map(parted, pairs)]


def _add(booster: Any, start: Array) -> None:
    """Adds the start to the leaves of the first iteration, which has a tree for each margin."""
    for tree, of in enumerate(booster.dump_model(num_iteration=1)["tree_info"]):
        for leaf in range(of["num_leaves"]):
            booster.set_leaf_output(tree, leaf, booster.get_leaf_output(tree, leaf) + start[tree])


def _keep_the_objective(environment: Any) -> None:
    """Keeps LightGBM from setting an objective to "none" that is so already: it fails where no feature can be split."""
    environment.model._Booster__set_objective_to_none = True


_keep_the_objective.before_iteration = True  # type: ignore[attr-defined]


def _metrics(objective: LightGBMObjective, given: Any) -> list[Any]:
    def posterior_log_loss(labels: Array, margins: Array, weight: Array | None) -> tuple[str, float, bool]:
        return objective.metric(labels, margins, weight)

    metrics = [] if given is None else [given] if isinstance(given, str) or callable(given) else list(given)
    _check_names([metric for metric in metrics if not callable(metric)])
    return [
        posterior_log_loss,
        *(of_posterior(objective, metric) if callable(metric) else metric for metric in metrics),
    ]


def _check_names(metrics: Sequence[Any]) -> None:
    for metric in metrics:
        if metric not in OF_MARGINS:
            raise ValueError(
                f"LightGBM would compute the metric {metric!r} from margins in the place of probabilities. "
                "posterior_log_loss is there; for another, give fit an eval_metric that is a function of labels and "
                "probabilities."
            )
