"""PolyLoss as the objective of a boosting library: of any, and by the conventions of XGBoost, LightGBM and CatBoost."""

import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polylosses.boosting.derivatives import (
    Array,
    binary_derivatives,
    binary_log_posterior,
    constant_optimum,
    derivatives,
    expected_hessian,
    log_posterior,
    softmax,
    softmax_gradient,
)
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, unchecked

CURVATURES = ("expected", "exact", "cross-entropy")

# Margins that are worked on at once.
BLOCK = 2**15

# Margins of one call from which on the compiled derivatives are used. Numba takes 1 s until it has loaded what it has
# compiled (once, 3 s more for each kind of margins), and saves some 5 ms a round here.
ENOUGH = 100_000


def compiled(margins: int) -> ModuleType | None:
    """The derivatives that compute so many margins at once: those compiled with Numba, or None for NumPy's."""
    return _compiled() if margins >= ENOUGH else None


@cache
def _compiled() -> ModuleType | None:
    try:
        return importlib.import_module("polylosses.boosting.compiled")
    except Exception:  # no Numba, one that is too old for NumPy, or nowhere to write what it compiles
        return None


class PolyObjective:
    """PolyLoss of margins (raw scores): gradient, curvature, starting score, probabilities and log loss.

    Margins of shape ``(rows,)`` are those of the class 1 against the class 0; margins of shape ``(rows, classes)`` go
    through a softmax, or through a sigmoid each with ``one_vs_all``. Everything is computed in float64.

    The curvature takes the place of the second derivative, which boosting divides by. It is never negative:

    * ``"expected"``: the expected second derivative where the margins are right, that is, where they minimize the
      expected loss; or half the expected absolute gradient there, where that is larger, so that no step is too long.
      For cross-entropy both are ``p (1 - p)``.
    * ``"exact"``: the second derivative, with 0 in the place of negative ones. Those are common: with Poly-1 for
      ``p < (epsilon - 1) / (2 epsilon)``, of two classes.
    * ``"cross-entropy"``: ``p (1 - p)``, for every loss.

    Args:
        epsilon, gamma, polynomial: as for every loss of the library; numbers.
        one_vs_all: whether each of several classes has a sigmoid, and is a problem of two classes.
        curvature: ``"expected"``, ``"exact"`` or ``"cross-entropy"``.
        class_weight: a factor of each class's rows; None for none.

    Raises:
        TypeError: as for every loss of the library.
        ValueError: as for every loss of the library; ``curvature`` is none of the three; a class weight is negative or
            not finite.

    Warns:
        UserWarning: an epsilon is below its bound, such as -1, as :class:`polylosses.Polynomial`. The loss is not
            monotone then: there is no posterior for some margins, and there may be no starting score.

    Example:
        >>> objective = PolyObjective(epsilon=2.0)
        >>> labels = np.array([0, 0, 0, 1])
        >>> start = objective.starting_score(labels)
        >>> objective.probabilities(np.full(4, start)).round(4)
        array([0.25, 0.25, 0.25, 0.25])
        >>> gradient, curvature = objective.derivatives(np.full(4, start), labels)
        >>> bool(abs(gradient.sum()) < 1e-12)
        True
    """

    # The library, and its least version.
    _needs: tuple[str, tuple[int, int]] | None = None

    def __init__(
        self,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
        *,
        one_vs_all: bool = False,
        curvature: str = "expected",
        class_weight: ArrayLike | None = None,
    ) -> None:
        if self._needs:
            _require(*self._needs)
        self.polynomial = _of_numbers(from_arguments(epsilon, gamma, polynomial))
        if curvature not in CURVATURES:
            raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}; got {curvature!r}.")
        self.curvature = curvature
        self.one_vs_all = one_vs_all
        self.class_weight = None if class_weight is None else _weights("class_weight", class_weight)

    def derivatives(
        self, margins: ArrayLike, labels: ArrayLike, weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """The gradient and the curvature by the margins.

        Args:
            margins: shape ``(rows,)`` or ``(rows, classes)``.
            labels: the class of each row, from 0 on; integers of any dtype.
            weight: a factor of each row; None for 1.

        Returns:
            Two arrays of the margins' shape, in float32 if the margins are, else in float64.

        Raises:
            ValueError: a label is no class; a margin or a weight is nan, or a weight negative or infinite; shapes do
                not fit.
        """
        margins, classes = _margins(margins)
        labels, weight = self._rows(labels, weight, margins, classes)
        factor = 1.0 if self.curvature == "exact" else self._softmax_factor(classes)
        if (faster := compiled(margins.size)) is not None:
            softmax_factor = None if margins.ndim == 1 or self.one_vs_all else factor
            of = CURVATURES.index(self.curvature)
            first, second = faster.derivatives(self.polynomial, margins, labels, weight, of, softmax_factor)
            return first, second
        first, second = np.empty_like(margins), np.empty_like(margins)
        for rows in _blocks(margins):
            z, y = margins[rows].astype(float, copy=False), labels[rows]
            if margins.ndim == 1:
                one, two = binary_derivatives(self.polynomial, z, y == 1, self.curvature)
            elif self.one_vs_all:
                one, two = binary_derivatives(self.polynomial, z, y[:, None] == np.arange(classes), self.curvature)
            else:
                one, two = (of.T for of in derivatives(self.polynomial, z.T, y, self.curvature))
                two = two * factor if factor != 1.0 else two
            if weight is not None:
                w = weight[rows] if margins.ndim == 1 else weight[rows, None]
                one, two = one * w, two * w
            first[rows], second[rows] = one, two
        return first, second

    def starting_score(self, labels: ArrayLike, weight: ArrayLike | None = None) -> Any:
        """The constant margins that minimize the loss on these labels: where boosting should start.

        With ``epsilon=0`` these are the log odds, or the logarithms of the classes' frequencies. (The frequencies are
        also the probabilities of the starting score, for every polynomial.)

        Args:
            labels: the class of each row: 0 to ``classes - 1``, each at least once.
            weight: a factor of each row; None for 1.

        Returns:
            A float for two classes, and an array of shape ``(classes,)`` for more.

        Raises:
            ValueError: as :meth:`derivatives`; there is one class alone, or a class has no row; or the minimum is at
                infinity, as it is for losses without a logarithm on unbalanced labels.
        """
        labels = np.asarray(labels)
        classes = int(labels.max()) + 1 if labels.size and np.isfinite(labels).all() else 2
        indices, factors = self._rows(labels, weight, np.zeros(labels.shape), max(classes, 2))
        present = np.unique(indices if factors is None else indices[factors > 0])
        if len(present) < 2 and len(np.unique(indices)) < 2:
            raise ValueError(
                f"labels must be of two classes at least; got {f'{classes - 1} alone' if labels.size else 'none'}."
            )
        if len(present) < classes:  # before anything is counted: labels may be ids of many digits
            missing = int(np.argmax(np.append(present, -1) != np.arange(len(present) + 1)))
            raise ValueError(
                f"labels must be 0 to classes - 1, each with some weight; none of {classes} classes is {missing}."
            )
        counts = np.bincount(indices, weights=factors, minlength=classes)
        if classes == 2 or not self.one_vs_all:
            logp = self._optimum(counts)
            return float(logp[1] - logp[0]) if classes == 2 else logp
        pairs = [self._optimum(np.array([counts.sum() - one, one])) for one in counts]
        return np.array([yes - no for no, yes in pairs])

    def probabilities(self, margins: ArrayLike) -> Array:
        """The class probabilities of margins; with ``epsilon=0`` their sigmoid or softmax.

        Another polynomial is no proper loss: the probabilities are not the sigmoid of the margins, but proportional to
        ``p / -slope(p)``, as those of :func:`polylosses.torch.poly_softmax` are.

        Args:
            margins: shape ``(rows,)`` or ``(rows, classes)``; with the starting score, if the library leaves it out.

        Returns:
            An array of the margins' shape, in their dtype as :meth:`derivatives`; for margins of shape ``(rows,)``, the
            probability of the class 1. With ``one_vs_all``, those of a row do not sum to 1.

        Raises:
            ValueError: a margin is nan, or there are more than two dimensions.
        """
        margins, _ = _margins(margins)
        result = np.empty_like(margins)
        for rows in _blocks(margins):
            result[rows] = np.exp(self._log_probabilities(margins[rows])[0])
        return result

    def log_loss(self, margins: ArrayLike, labels: ArrayLike, weight: ArrayLike | None = None) -> float:
        """The mean log loss of :meth:`probabilities`: a proper score, to stop early by.

        The arguments are those of :meth:`derivatives`. With ``one_vs_all`` it is the mean over rows and classes.

        Raises:
            ValueError: as :meth:`derivatives`; or all weights are 0.
        """
        margins, classes = _margins(margins)
        labels, weight = self._rows(labels, weight, margins, classes)
        if weight is not None and not weight.any():
            raise ValueError("weight must be above 0 for some row with a class weight above 0; all are 0.")
        return float(np.average(self._log_losses(margins, labels), weights=weight))

    def _softmax_factor(self, classes: int) -> float:
        """By what the library's own softmax objective multiplies ``p (1 - p)``, which stands for the whole matrix."""
        return 1.0

    def _log_losses(self, margins: Array, labels: Array) -> Array:
        """The log loss of each row, of checked arguments."""
        losses = np.empty(len(labels))
        for rows in _blocks(margins):
            (yes, no), y = self._log_probabilities(margins[rows]), labels[rows]
            if margins.ndim == 1:
                losses[rows] = -np.where(y == 1, yes, no)
            elif self.one_vs_all:
                losses[rows] = -np.where(y[:, None] == np.arange(margins.shape[1]), yes, no).mean(1)
            else:
                losses[rows] = -yes[np.arange(len(y)), y]
        return losses

    def _log_probabilities(self, margins: Array) -> tuple[Array, Array]:
        """The logarithms of the posterior of every margin's class, and (but for a softmax) of what it is against."""
        margins = margins.astype(float, copy=False)
        if margins.ndim == 2 and not self.one_vs_all:
            yes = log_posterior(self.polynomial, softmax(margins.T)).T
            return yes, yes
        return binary_log_posterior(self.polynomial, margins)

    def _optimum(self, weights: Array) -> Array:
        found = constant_optimum(self.polynomial, weights / weights.sum())
        if found is None:
            raise ValueError(
                f"{self.polynomial} has no finite starting score on these labels: "
                "start from cross-entropy's, that of epsilon=0."
            )
        return found

    def _rows(self, labels: Any, weight: Any, margins: Array, classes: int) -> tuple[Array, Array | None]:
        """Checked labels as indices, and the factor of each row; None for 1."""
        labels = np.asarray(labels)
        rows = len(margins)
        if labels.shape != (rows,):
            raise ValueError(f"labels must have shape ({rows},), one for each row; got {labels.shape}.")
        with np.errstate(invalid="ignore"):
            indices = labels.astype(np.intp, copy=False)
        wrong = (indices != labels) | (indices < 0) | (indices >= classes)
        if wrong.any():
            raise ValueError(f"labels must be classes from 0 to {classes - 1}; got {labels[wrong][0]}.")
        factor = None if weight is None else _weights("weight", weight)
        if factor is not None and factor.shape != (rows,):
            raise ValueError(f"weight must have shape ({rows},), one for each row; got {factor.shape}.")
        if self.class_weight is not None:
            of_class = self._class_weights(classes)[indices]
            factor = of_class if factor is None else factor * of_class
        return indices, factor

    def _class_weights(self, classes: int) -> Array:
        if self.class_weight is None:
            return np.ones(classes)
        if len(self.class_weight) != classes:
            raise ValueError(f"class_weight must have {classes} numbers; got {len(self.class_weight)}.")
        return self.class_weight


class _OfDataset(PolyObjective):
    """The objective and metric of XGBoost and LightGBM, whose functions have the same arguments."""

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """The gradient and the curvature, of ``(margins, data)`` or of scikit-learn's ``(labels, margins, weight)``."""
        return self.derivatives(*_given(first, second, sample_weight))


class XGBoostObjective(_OfDataset):
    """PolyLoss for XGBoost 2.1 or later: ``obj`` of ``xgboost.train``, ``objective`` of ``XGBClassifier``.

    The arguments are those of :class:`PolyObjective`. Weights of the DMatrix are used. For a softmax the curvature is
    twice the expected one, as that of ``multi:softprob`` is: with ``epsilon=0`` the model is that of XGBoost's own
    objective.

    Give the starting score as ``base_score``; from XGBoost 3.1 on that may be a list, before it give ``base_margin`` to
    every DMatrix. XGBoost adds it back. The ``XGBClassifier`` takes the sigmoid of it for two classes. Its own
    ``predict_proba`` is that of cross-entropy; ask for ``output_margin=True`` and call :meth:`probabilities`.

    Raises:
        ImportError: XGBoost is missing or older than 2.1.

    Example:
        >>> import xgboost
        >>> X, y = np.arange(20.0).reshape(-1, 1), np.repeat([0, 1], 10)
        >>> objective = XGBoostObjective(epsilon=1.0)
        >>> parameters = {"base_score": objective.starting_score(y), "disable_default_eval_metric": True}
        >>> model = xgboost.train(
        ...     parameters, xgboost.DMatrix(X, y), 20, obj=objective, custom_metric=objective.metric
        ... )
        >>> margins = model.predict(xgboost.DMatrix(X), output_margin=True)
        >>> bool(((objective.probabilities(margins) > 0.5) == y).all())
        True
    """

    _needs = "xgboost", (2, 1)

    def metric(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """The log loss of the posterior: ``custom_metric`` of ``xgboost.train``, ``eval_metric`` of the classifier."""
        loss = self.log_loss(*_given(first, second, sample_weight))
        return ("posterior_log_loss", loss) if hasattr(second, "get_label") else loss

    def _softmax_factor(self, classes: int) -> float:
        return 2.0


class LightGBMObjective(_OfDataset):
    """PolyLoss for LightGBM 4 or later: the parameter ``objective`` of ``lightgbm.train`` or ``LGBMClassifier``.

    The arguments are those of :class:`PolyObjective`. Weights of the Dataset are used. For a softmax the curvature is
    ``classes / (classes - 1)`` times the expected one, as that of ``multiclass`` is: with ``epsilon=0`` the model is
    that of LightGBM's own objective.

    Give the starting score as ``init_score`` of every Dataset, for each row. LightGBM does not add it back: do so
    before :meth:`probabilities`.

    Raises:
        ImportError: LightGBM is missing or older than 4.

    Example:
        >>> import lightgbm
        >>> X, y = np.arange(80.0).reshape(-1, 1), np.repeat([0, 1], 40)
        >>> objective = LightGBMObjective(epsilon=1.0)
        >>> start = objective.starting_score(y)
        >>> data = lightgbm.Dataset(X, y, init_score=np.full(80, start))
        >>> model = lightgbm.train({"objective": objective, "verbosity": -1}, data, 20, feval=objective.metric)
        >>> margins = model.predict(X) + start
        >>> bool(((objective.probabilities(margins) > 0.5) == y).all())
        True
    """

    _needs = "lightgbm", (4, 0)

    def metric(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[str, float, bool]:
        """The log loss of the posterior: ``feval`` of ``lightgbm.train``, ``eval_metric`` of ``LGBMClassifier.fit``."""
        return "posterior_log_loss", self.log_loss(*_given(first, second, sample_weight)), False

    def _softmax_factor(self, classes: int) -> float:
        return classes / (classes - 1)


class _Rows:
    """A matrix that is computed when its rows are asked for: CatBoost looks at that of every second call only."""

    def __init__(self, matrix: Callable[[], list[list[float]]]) -> None:
        self._matrix = matrix

    def __iter__(self) -> Iterator[list[float]]:
        return iter(self._matrix())


class CatBoostObjective(PolyObjective):
    """PolyLoss for CatBoost 1.2 or later: both ``loss_function`` and ``eval_metric`` of ``CatBoostClassifier``.

    The arguments are those of :class:`PolyObjective`. CatBoost maximizes, so that it gets both derivatives with a
    minus. For a softmax it gets the whole matrix. Weights are used. With ``epsilon=0``,
    ``leaf_estimation_method="Newton"`` and the same number of iterations of it, the model is that of CatBoost's own
    objective.

    Of several classes, CatBoost asks for the derivatives of one row at a time, which takes most of the time of
    training, and with ``thread_count=1`` a third of that of two threads, which wait for each other; it wants
    ``classes_count``.

    Give the starting score as ``baseline`` of every Pool that is trained with, and add it to the model afterwards:
    ``model.set_scale_and_bias(1.0, start)``.

    Raises:
        ImportError: CatBoost is missing or older than 1.2.

    Example:
        >>> import catboost
        >>> X, y = np.arange(20.0).reshape(-1, 1), np.repeat([0, 1], 10)
        >>> objective = CatBoostObjective(epsilon=1.0)
        >>> start = objective.starting_score(y)
        >>> model = catboost.CatBoostClassifier(
        ...     iterations=20,
        ...     loss_function=objective,
        ...     eval_metric=objective,
        ...     leaf_estimation_method="Newton",
        ...     verbose=False,
        ...     allow_writing_files=False,
        ... )
        >>> model = model.fit(catboost.Pool(X, y, baseline=np.full(20, start)))
        >>> model.set_scale_and_bias(1.0, start)
        >>> margins = model.predict(X, prediction_type="RawFormulaVal")
        >>> bool(((objective.probabilities(margins) > 0.5) == y).all())
        True
    """

    _needs = "catboost", (1, 2)

    # CatBoost would try to compile the methods with Numba, which can't, and warn.
    no_jit = True

    # Rows that the metric was asked for in this round, and whether there are so many that compiling pays.
    _seen, _large = 0, False

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> Array:
        """Both derivatives of minus the loss, of shape ``(rows, 2)``: CatBoost's for one margin a row."""
        # Of some 500 rows at once, in threads that wait for each other: 40 us a call were most of a round.
        result = np.empty((2, len(targets)))
        if (faster := _compiled() if self._large else None) is not None:
            of = CURVATURES.index(self.curvature)
            if faster.of_block(faster.loss_of(self.polynomial), of, *self._block(approxes, targets, weights), result):
                return result.T
        margins, _ = _margins(approxes)
        labels, weight = self._rows(targets, weights, margins, 2)
        first, second = binary_derivatives(self.polynomial, margins.astype(float), labels == 1, self.curvature)
        np.multiply([first, second], -1.0 if weight is None else -weight, out=result)
        return result.T

    def _block(self, margins: Any, labels: Any, weight: Any) -> tuple[Array, Array, Array, Array]:
        """The arguments of compiled functions, not checked: class weights, labels, weights (if any) and margins."""
        weights = np.asarray(() if weight is None else weight, np.float32)
        return self._class_weights(2), np.asarray(labels, np.float32), weights, np.asarray(margins, float)

    @cached_property
    def _numbers(self) -> Array:
        """The polynomial for a compiled function, which reads one coefficient at least and checks no bounds."""
        given = self.polynomial
        return np.array([given.gamma, given.log_weight, *(given.coefficients or (0.0,))])

    def calc_ders_multi(self, approxes: Any, target: float, weight: float) -> tuple[list[float], Iterable[list[float]]]:
        """The gradient and the matrix of second derivatives of minus the loss: CatBoost's for one row of margins."""
        margins, label = np.asarray(approxes, float), int(target)
        classes = len(margins)
        if label != target or not 0 <= label < classes:
            raise ValueError(f"labels must be classes from 0 to {classes - 1}; got {target}.")
        if self.class_weight is not None:
            weight = weight * self._class_weights(classes)[label]
        factor = -float(weight)
        # Not by how many rows there are, since that is not known: 100 rows take as long in 100 rounds as loading Numba.
        if (faster := _compiled()) is not None:
            result, curvature = np.empty((classes + 1, classes)), CURVATURES.index(self.curvature)
            if faster.of_row(self._numbers, curvature, self.one_vs_all, label, factor, margins, result):
                gradient, *matrix = result.tolist()
                return gradient, matrix
        if any(map(math.isnan, margins.tolist())):
            raise ValueError("margins must be numbers; some are nan.")
        polynomial = self.polynomial
        if self.one_vs_all:
            yes = np.arange(classes) == label
            first, second = binary_derivatives(polynomial, margins, yes, self.curvature)
            return (factor * first).tolist(), np.diag(factor * second).tolist()
        gradient = [factor * one for one in softmax_gradient(polynomial, margins.tolist(), label)]
        if self.curvature == "exact":
            exact = derivatives(polynomial, margins[:, None], np.array([label]), self.curvature)[1][:, 0]
            return gradient, np.diag(factor * exact).tolist()
        of = Polynomial() if self.curvature == "cross-entropy" else polynomial
        return gradient, _Rows(lambda: [[factor * one for one in row] for row in expected_hessian(of, margins)])

    def evaluate(self, approxes: Sequence[Array], target: Array, weight: Array | None) -> tuple[float, float]:
        """The sum of the log losses of the posterior, and of the weights: CatBoost's for a metric."""
        self._seen += len(target)
        if len(approxes) == 1 and (faster := _compiled() if self._large else None) is not None:
            total, weights = faster.log_loss(faster.loss_of(self.polynomial), *self._block(approxes[0], target, weight))
            if not math.isnan(total):
                return total, weights
        margins, classes = _margins(approxes[0] if len(approxes) == 1 else np.stack(approxes, axis=1))
        labels, factor = self._rows(target, weight, margins, classes)
        factor = np.ones(len(labels)) if factor is None else factor
        return float(factor @ self._log_losses(margins, labels)), float(factor.sum())

    def get_final_error(self, error: float, weight: float) -> float:
        """The mean: CatBoost's for a metric."""
        # Some 500 rows are asked for at once, in threads: how many there are is known after a round, before the next.
        self._large, self._seen = self._large or self._seen >= ENOUGH, 0
        return error / weight

    def is_max_optimal(self) -> bool:
        """False: less is better."""
        return False


def _of_numbers(polynomial: Polynomial) -> Polynomial:
    coefficients = tuple(float(c) for c in polynomial.coefficients)
    return unchecked(coefficients, float(polynomial.gamma), float(polynomial.log_weight))


def _weights(name: str, values: Any) -> Array:
    result = np.asarray(values, dtype=float)
    wrong = ~(np.isfinite(result) & (result >= 0))
    if result.ndim != 1 or wrong.any():
        got = f"shape {result.shape}" if result.ndim != 1 else result[wrong][0]
        raise ValueError(f"{name} must be a sequence of finite numbers of at least 0; got {got}.")
    return result


def _margins(margins: Any) -> tuple[Array, int]:
    """Checked margins, in float32 if they are, else in float64, and their number of classes."""
    margins = np.asarray(margins)
    if margins.ndim not in (1, 2) or (margins.ndim == 2 and margins.shape[1] < 2):
        raise ValueError(f"margins must have shape (rows,) or (rows, classes), of at least 2; got {margins.shape}.")
    margins = margins.astype(np.float32 if margins.dtype == np.float32 else np.float64, copy=False)
    if np.isnan(margins).any():
        raise ValueError(f"margins must be numbers; {np.isnan(margins).sum()} of {margins.size} are nan.")
    return margins, 2 if margins.ndim == 1 else margins.shape[1]


def _blocks(margins: Array) -> Iterator[slice]:
    """The rows in parts whose arrays stay in a processor's cache, which halves the time."""
    rows = max(1, BLOCK // math.prod(margins.shape[1:]))
    for start in range(0, len(margins), rows):
        yield slice(start, start + rows)


def _given(first: Any, second: Any, weight: Any) -> tuple[Any, Any, Any]:
    """Margins, labels and weights, of either signature of XGBoost and LightGBM."""
    if not hasattr(second, "get_label"):
        return second, first, weight
    weight = second.get_weight()
    return first, second.get_label(), None if weight is None or len(weight) == 0 else weight


def _require(name: str, version: tuple[int, int], by: str = "this objective") -> None:
    package = "scikit-learn" if name == "sklearn" else name
    least = ".".join(map(str, version))
    needed, line = f"{by} needs {package} {least} or later", f"pip install '{package}>={least}'"
    try:
        found = str(importlib.import_module(name).__version__)
    except ImportError as error:
        raise ImportError(f"{needed}: {line}") from error
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < version:
        raise ImportError(f"{needed}, not {found}: {line}")
