"""PolyLoss for Keras 3, on all of its backends: functions and classes in place of Keras's cross-entropies."""

import math
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeVar

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise  # the backend is missing, and Keras's message says so
    raise ImportError("polylosses.keras needs Keras 3: pip install 'polylosses[keras]'") from error

from keras import ops
from keras.src.backend import set_keras_mask  # not public, but the only way to leave samples out of the mean

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, as_nonnegative, from_arguments, is_zero, parse, unchecked
from polylosses.two_sided import TwoSided, given_pair

__all__ = [
    "PolyBinaryCrossentropy",
    "PolyCategoricalCrossentropy",
    "PolySparseCategoricalCrossentropy",
    "poly_binary_crossentropy",
    "poly_categorical_crossentropy",
    "poly_sparse_categorical_crossentropy",
]

_FULL_PRECISION = ("float32", "float64")
_TINY = 2.0**-126  # the smallest normal float32
_LOG_UNDERFLOW = -1000.0  # below it, exp underflows to 0 in float32 and float64
_LOG_OVERFLOW = -1e30  # below it, the product of a logarithm and a weight may overflow
_MAX_EXACT_INTEGER = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}  # floats hold every integer up to it

_T = TypeVar("_T")
_registered: Callable[[_T], _T] = keras.saving.register_keras_serializable(package="polylosses")


@_registered
def poly_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    *,
    alpha: Any = None,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Any:
    """PolyLoss of one-hot labels or class probabilities: :func:`keras.losses.categorical_crossentropy` for the family.

    With ``p`` the predicted probabilities and ``L`` the polynomial (by default Poly-1, ``-log p + epsilon (1 - p)``),
    the loss of one sample is ``sum_c alpha[c] * y_true[c] * L(p[c])``, without ``alpha`` if it is not given. With
    ``epsilon=0`` and ``gamma=0`` it is Keras's; with ``epsilon=0``, ``gamma=2`` and ``alpha=0.25`` it is
    :func:`keras.losses.categorical_focal_crossentropy`.

    Args:
        y_true: one-hot labels or class probabilities, of the shape of ``y_pred``.
        y_pred: probabilities, or logits if ``from_logits``.
        from_logits: whether ``y_pred`` are logits, which give a more accurate loss. Probabilities are normalized to sum
            to 1 and clipped to between ``keras.config.epsilon()`` and 1 minus that, as Keras does.
        label_smoothing: in [0, 1]: the fraction of the label that is spread evenly over all classes.
        axis: the class axis.
        alpha: the weight of every class, at least 0, on all terms of the polynomial: a sequence, array or tensor of one
            number for each class, or a number for all of them. Smoothed labels are weighted too. Default None: no
            weights.
        epsilon: the coefficient of ``1 - p``, or a sequence for Poly-N: of ``(1 - p)^1, (1 - p)^2, ...`` A tensor or a
            ``keras.Variable`` gets a gradient.
        gamma: the focal exponent, at least 0: multiplies the loss by ``(1 - p)^gamma``.
        polynomial: any other loss of the family, such as ``polylosses.taylor_cross_entropy(3)``, instead of
            ``epsilon`` and ``gamma``.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype (``keras.config.floatx()``
        for integers). Low precision is computed in float32.

    Raises:
        TypeError, ValueError: as for :class:`polylosses.Polynomial`; the shapes differ; ``axis`` is out of bounds;
            ``label_smoothing`` is out of range; ``alpha`` is negative, or not one number for each class;
            ``polynomial`` is given together with an ``epsilon`` or ``gamma`` that is not the default.

    Note:
        On the TensorFlow backend, if ``y_pred`` is the output of a softmax (for the binary loss, of a sigmoid), the
        loss is computed from the logits that went into it, whatever ``from_logits`` says, as in Keras's losses.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), equations 3 and 4 and listing 1.

    Example:
        >>> labels, logits = [[1.0, 0.0, 0.0]], [[4.0, 2.0, 1.0]]
        >>> loss = poly_categorical_crossentropy(labels, logits, from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
        >>> loss = poly_categorical_crossentropy(labels, logits, from_logits=True, epsilon=2.0, alpha=[0.5, 1.0, 2.0])
        >>> print(f"{float(loss[0]):.4f}")
        0.2411
    """
    y_pred, axis = _check_predictions(y_pred, axis)
    polynomial = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    _check_label_smoothing(label_smoothing)
    target_weight = _dense_targets(y_true, y_pred, " For class indices, use the sparse loss.")
    if label_smoothing:
        classes = ops.cast(_num_classes(y_pred, axis), target_weight.dtype)
        target_weight = target_weight * (1.0 - label_smoothing) + label_smoothing / classes
    if alpha is not None:
        target_weight = target_weight * _class_weight(alpha, y_pred, axis)
    predictions, from_logits = _logits_before_activation(y_pred, from_logits, "Softmax")
    logp = _log_softmax(predictions, from_logits, axis)
    losses = _weighted_loss(polynomial, target_weight, *_with_complement(logp))
    return ops.cast(ops.sum(losses, axis=axis), y_pred.dtype)


@_registered
def poly_sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    *,
    alpha: Any = None,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Any:
    """PolyLoss of class indices: :func:`keras.losses.sparse_categorical_crossentropy` for the family.

    With ``y`` the label, the loss of one sample is ``alpha[y] * L(p[y])``, without ``alpha`` if it is not given.

    Args:
        y_true: class indices, of the shape of ``y_pred`` without ``axis``. A class axis of size 1, at ``axis`` or at
            the end, is removed. Floats are truncated to integers, as in Keras.
        y_pred, from_logits, axis, alpha, epsilon, gamma, polynomial: as for :func:`poly_categorical_crossentropy`.
        ignore_class: samples with this label, which may be any integer, have a loss and gradient of 0, and are left out
            of the mean.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype. It is nan, with a gradient
        of 0, where the label is out of range.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`; ``ignore_class`` is not an integer;
            ``y_true`` has a float dtype that can't represent the index of every class.

    Example:
        >>> loss = poly_sparse_categorical_crossentropy([0], [[4.0, 2.0, 1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
    """
    y_pred, axis = _check_predictions(y_pred, axis)
    polynomial = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    _check_ignore_class(ignore_class)
    labels = _class_indices(y_true, y_pred, axis)
    predictions, valid = y_pred, None
    if ignore_class is None:
        predictions, from_logits = _logits_before_activation(y_pred, from_logits, "Softmax")
    else:
        if keras.backend.standardize_dtype(labels.dtype) == "int32":  # 2**32 would wrap to 0
            ignore_class = min(max(int(ignore_class), -(2**31)), 2**31 - 1)
        valid = ops.not_equal(labels, ops.cast(ignore_class, labels.dtype))
        # Ignored predictions may be nan or infinite, which would make their gradient nan.
        fill_value = ops.cast(0.0 if from_logits else 1.0, predictions.dtype)
        predictions = ops.where(ops.expand_dims(valid, axis), predictions, fill_value)
    classes = ops.cast(_num_classes(y_pred, axis), labels.dtype)
    in_range = ops.logical_and(ops.greater(labels, -1), ops.less(labels, classes))
    index = ops.cast(ops.where(in_range, labels, ops.zeros_like(labels)), "int32")
    if not from_logits and keras.backend.backend() == "tensorflow":
        # On TensorFlow, Keras's sparse loss clips probabilities before it normalizes them.
        predictions, from_logits = ops.log(_clip(_upcast(predictions))), True
    logp = _log_softmax(predictions, from_logits, axis)
    logp = ops.squeeze(ops.take_along_axis(logp, ops.expand_dims(index, axis), axis=axis), axis)
    if alpha is None:
        losses = _polynomial_at(polynomial, *_with_complement(logp))
    else:
        class_weight = _class_weight(alpha, y_pred, axis)
        target_weight = ops.take(ops.reshape(class_weight, [-1]), index) if len(class_weight.shape) else class_weight
        losses = _weighted_loss(polynomial, target_weight, *_with_complement(logp))
    losses = ops.cast(losses, y_pred.dtype)
    # Backends differ in what they gather for an index out of range.
    losses = ops.where(in_range, losses, ops.cast(float("nan"), losses.dtype))
    if valid is not None:
        losses = ops.where(valid, losses, ops.cast(0.0, losses.dtype))
        set_keras_mask(losses, valid)  # the denominator of Keras's mean
    return losses


@_registered
def poly_binary_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
    *,
    alpha: float | None = None,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | TwoSided | tuple[Polynomial, Polynomial] | None = None,
) -> Any:
    """PolyLoss of sigmoid probabilities: :func:`keras.losses.binary_crossentropy` for the family.

    The loss of one element is ``alpha * y * L(p) + (1 - alpha) * (1 - y) * L(1 - p)``, without ``alpha`` if it is not
    given. With ``epsilon=0`` and ``gamma=0`` it is Keras's; with ``epsilon=0`` and ``gamma=2``, focal loss.

    Args:
        y_true: in [0, 1], hard or soft, of the shape of ``y_pred``.
        y_pred, from_logits, epsilon, gamma: as for :func:`poly_categorical_crossentropy`.
        polynomial: as for :func:`poly_categorical_crossentropy`; or a pair, of positives and negatives; or a
            :class:`polylosses.TwoSided`, such as ``polylosses.asymmetric()``, in which negatives may have a margin.
        label_smoothing: in [0, 1]: how far labels are moved towards 0.5.
        axis: the axis along which the mean is taken.
        alpha: the class balance of focal loss, in [0, 1], on all terms: the weight of positives, ``1 - alpha`` being
            that of negatives. Default None: no weights.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`; ``alpha`` is outside [0, 1].

    Example:
        >>> loss = poly_binary_crossentropy([[1.0, 0.0]], [[2.0, -1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.6082
    """
    y_pred, axis = _check_predictions(y_pred, axis)
    pair = given_pair(epsilon, gamma, polynomial)
    if pair is None:
        of_yes = of_no = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    else:
        of_yes, of_no = pair.positive, pair.negative
    _check_label_smoothing(label_smoothing)
    _check_alpha(alpha)
    labels = _dense_targets(y_true, y_pred)
    if label_smoothing:
        labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    positive, negative = labels, 1.0 - labels
    if alpha is not None:
        positive, negative = alpha * positive, (1.0 - alpha) * negative
    predictions, from_logits = _logits_before_activation(y_pred, from_logits, "Sigmoid")
    predictions = _upcast(predictions)
    if from_logits:
        logp, logq = ops.log_sigmoid(predictions), ops.log_sigmoid(-predictions)
        p, q = ops.sigmoid(predictions), ops.sigmoid(-predictions)
    else:
        p = _clip(predictions)
        q = 1.0 - p
        logp, logq = ops.log(p), ops.log(q)
    losses = _weighted_loss(of_yes, positive, logp, q, logq)
    if pair is not None and pair.margin:
        p = ops.relu(p - pair.margin)
        # Of two expressions, the one that keeps its digits; the other has finite derivatives there.
        likely = ops.less(p, 0.5)
        logq = ops.where(likely, ops.log1p(-ops.where(likely, p, 0.5)), ops.log(q + pair.margin))
        logp = ops.log(ops.where(ops.less(p, _TINY), 1.0, p))
    losses = losses + _weighted_loss(of_no, negative, logq, p, logp)
    # Not ops.mean, which rounds float64 to float32 on torch (Keras 3.15).
    return ops.cast(ops.sum(losses, axis=axis) / ops.cast(ops.shape(losses)[axis], losses.dtype), y_pred.dtype)


class _PolyLoss(keras.losses.Loss):  # type: ignore[misc]
    """Base class of the losses: holds alpha and the polynomial, and serializes them."""

    _takes_pairs = False

    def __init__(self, alpha: Any, epsilon: Any, gamma: Any, polynomial: Any, **loss: Any) -> None:
        super().__init__(**loss)
        polynomial = _from_config(polynomial) if isinstance(polynomial, dict) else polynomial
        self.alpha, self.epsilon, self.gamma, self.polynomial = alpha, epsilon, gamma, polynomial
        if self._pair() is None:
            _polynomial(epsilon, gamma, polynomial, self.dtype)  # checks and warns
        self._checked = epsilon, gamma, polynomial

    def _pair(self) -> TwoSided | None:
        return given_pair(self.epsilon, self.gamma, self.polynomial) if self._takes_pairs else None

    def _current_polynomial(self, y_pred: Any) -> Any:
        """The polynomial of the attributes as they are now; warns only if they were replaced since the last check."""
        pair = self._pair()
        if pair is not None:
            return pair
        arguments = self.epsilon, self.gamma, self.polynomial
        unchanged = all(a is b for a, b in zip(self._checked, arguments, strict=True))
        polynomial = _polynomial(*arguments, _as_float_tensor(y_pred).dtype, warn=not unchanged)
        self._checked = arguments
        return polynomial

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        polynomial = None if self.polynomial is None else _as_config(self._pair() or self.polynomial)
        alpha = None if self.alpha is None else _serialize(self.alpha)
        own = {"epsilon": _serialize(self.epsilon), "gamma": _serialize(self.gamma), "polynomial": polynomial}
        return config | own | {"alpha": alpha, "dtype": self.dtype}


@_registered
class PolyCategoricalCrossentropy(_PolyLoss):
    """:func:`poly_categorical_crossentropy` as a loss to compile a model with.

    It takes what :class:`keras.losses.CategoricalCrossentropy` takes, and ``alpha``, ``epsilon``, ``gamma`` or
    ``polynomial``. With ``epsilon=0``, ``gamma=2`` and ``alpha=0.25`` it is
    :class:`keras.losses.CategoricalFocalCrossentropy`, whose mean divides by the number of samples whatever ``alpha``
    is. Class weights and sample weights in ``fit``, masks and saved models work as with Keras's own losses.

    Args:
        from_logits, label_smoothing, axis, alpha, epsilon, gamma, polynomial: as for
            :func:`poly_categorical_crossentropy`.
        reduction, name, dtype: as for :class:`keras.losses.Loss`.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`.

    Example:
        >>> loss = PolyCategoricalCrossentropy(from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]], [[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])):.4f}")
        0.8695
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "poly_categorical_crossentropy",
        dtype: Any = None,
        *,
        alpha: Any = None,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
    ) -> None:
        super().__init__(alpha, epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_label_smoothing(label_smoothing)
        _check_class_alpha(alpha)
        self.from_logits, self.label_smoothing, self.axis = from_logits, label_smoothing, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _match_ranks(y_true, y_pred)
        return poly_categorical_crossentropy(
            y_true,
            y_pred,
            self.from_logits,
            self.label_smoothing,
            self.axis,
            alpha=self.alpha,
            polynomial=self._current_polynomial(y_pred),
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        own = {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing, "axis": self.axis}
        return super().get_config() | own


@_registered
class PolySparseCategoricalCrossentropy(_PolyLoss):
    """:func:`poly_sparse_categorical_crossentropy` as a loss to compile a model with.

    It takes what :class:`keras.losses.SparseCategoricalCrossentropy` takes, and ``alpha``, ``epsilon``, ``gamma`` or
    ``polynomial``.

    Args:
        from_logits, ignore_class, axis, alpha, epsilon, gamma, polynomial: as for
            :func:`poly_sparse_categorical_crossentropy`.
        reduction, name, dtype: as for :class:`keras.losses.Loss`.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`.

    Example:
        >>> loss = PolySparseCategoricalCrossentropy(from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss([0, 1], [[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])):.4f}")
        0.2779
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str = "poly_sparse_categorical_crossentropy",
        dtype: Any = None,
        *,
        alpha: Any = None,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
    ) -> None:
        super().__init__(alpha, epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_ignore_class(ignore_class)
        _check_class_alpha(alpha)
        self.from_logits, self.ignore_class, self.axis = from_logits, ignore_class, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _match_ranks(y_true, y_pred)
        return poly_sparse_categorical_crossentropy(
            y_true,
            y_pred,
            self.from_logits,
            self.ignore_class,
            self.axis,
            alpha=self.alpha,
            polynomial=self._current_polynomial(y_pred),
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        own = {"from_logits": self.from_logits, "ignore_class": self.ignore_class, "axis": self.axis}
        return super().get_config() | own


@_registered
class PolyBinaryCrossentropy(_PolyLoss):
    """:func:`poly_binary_crossentropy` as a loss to compile a model with.

    It takes what :class:`keras.losses.BinaryCrossentropy` takes, and ``alpha``, ``epsilon``, ``gamma`` or
    ``polynomial``.

    Args:
        from_logits, label_smoothing, axis, alpha, epsilon, gamma, polynomial: as for
            :func:`poly_binary_crossentropy`.
        reduction, name, dtype: as for :class:`keras.losses.Loss`.

    Raises:
        TypeError, ValueError: as for :func:`poly_binary_crossentropy`.

    Example:
        >>> loss = PolyBinaryCrossentropy(from_logits=True, alpha=0.25, gamma=2.0)
        >>> print(f"{float(loss([[1.0], [0.0]], [[2.0], [-1.0]])):.4f}")
        0.0162
    """

    _takes_pairs = True

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str = "poly_binary_crossentropy",
        dtype: Any = None,
        *,
        alpha: float | None = None,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | TwoSided | tuple[Polynomial, Polynomial] | None = None,
    ) -> None:
        super().__init__(alpha, epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_label_smoothing(label_smoothing)
        _check_alpha(alpha)
        self.from_logits, self.label_smoothing, self.axis = from_logits, label_smoothing, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _match_ranks(y_true, y_pred)
        return poly_binary_crossentropy(
            y_true,
            y_pred,
            self.from_logits,
            self.label_smoothing,
            self.axis,
            alpha=self.alpha,
            polynomial=self._current_polynomial(y_pred),
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        own = {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing, "axis": self.axis}
        return super().get_config() | own


def _polynomial(epsilon: Any, gamma: Any, polynomial: Any, dtype: Any, *, warn: bool = True) -> Polynomial:
    """The polynomial of a loss's arguments, with tensors and variables cast to the dtype of the computation.

    Args:
        epsilon, gamma, polynomial: of the public function or class.
        dtype: that of the predictions.
        warn: whether to warn about an epsilon below its bound.
    """
    epsilon, gamma = (
        ops.cast(value, _compute_dtype(dtype))
        if hasattr(value, "dtype") and type(value).__module__ != "numpy"
        else value
        for value in (epsilon, gamma)
    )
    if ops.is_tensor(epsilon) and len(epsilon.shape) == 1:
        epsilon = tuple(ops.unstack(epsilon))  # a symbolic tensor has no len
    return (from_arguments if warn else parse)(epsilon, gamma, polynomial)


def _check_predictions(y_pred: Any, axis: Any) -> tuple[Any, int]:
    """Converts predictions to a floating-point tensor, and checks that ``axis`` is one of its axes."""
    y_pred = _as_float_tensor(y_pred)
    if isinstance(axis, bool) or not isinstance(axis, Integral):
        raise TypeError(f"axis must be an integer; got {axis!r}.")
    rank = len(y_pred.shape)
    if not -rank <= int(axis) < rank:
        raise ValueError(f"axis {axis} is out of bounds for y_pred of {rank} dimensions.")
    return y_pred, int(axis)


def _as_float_tensor(y_pred: Any) -> Any:
    """Converts predictions to a tensor, of ``keras.config.floatx()`` if they are not floating-point."""
    y_pred = ops.convert_to_tensor(y_pred)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(y_pred.dtype)):
        y_pred = ops.cast(y_pred, keras.config.floatx())
    return y_pred


def _dense_targets(y_true: Any, y_pred: Any, hint: str = "") -> Any:
    """One-hot or soft targets of the shape of ``y_pred``: cast to its dtype, as in Keras, and then upcast."""
    target = ops.cast(y_true, y_pred.dtype)
    if not _same_shape(target.shape, y_pred.shape):
        raise ValueError(
            f"y_true and y_pred must have the same shape; got {tuple(target.shape)} and {tuple(y_pred.shape)}.{hint}"
        )
    return _upcast(target)


def _class_indices(y_true: Any, y_pred: Any, axis: int) -> Any:
    """Class indices of the shape of ``y_pred`` without ``axis``.

    Returns:
        Floats, if :class:`keras.losses.Loss` has cast them, or signed integers, which can hold any ``ignore_class``.
    """
    labels = ops.convert_to_tensor(y_true)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not keras.backend.is_float_dtype(dtype):
        labels = ops.cast(labels, "int64" if dtype in ("int64", "uint64") else "int32")
    elif isinstance(y_pred.shape[axis], int) and y_pred.shape[axis] > _MAX_EXACT_INTEGER.get(dtype, math.inf):
        raise ValueError(
            f"y_true of dtype {dtype} can't represent the indices of {y_pred.shape[axis]} classes. Pass integers to "
            "poly_sparse_categorical_crossentropy, or construct the loss with a dtype of higher precision."
        )
    given = tuple(labels.shape)
    if len(given) == len(y_pred.shape):
        if given[axis] == 1:
            labels = ops.squeeze(labels, axis)
        elif given[-1] == 1:
            labels = ops.squeeze(labels, -1)
    batch_shape = list(y_pred.shape)
    batch_shape.pop(axis)
    if not _same_shape(labels.shape, batch_shape):
        raise ValueError(
            f"y_true must have shape {tuple(batch_shape)} for y_pred of shape {tuple(y_pred.shape)} and axis {axis}; "
            f"got {given}."
        )
    return labels


def _same_shape(shape: Any, other: Any) -> bool:
    """Whether two static shapes are compatible; a size of None is unknown and matches any."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a is None or b is None or a == b for a, b in pairs)


def _num_classes(y_pred: Any, axis: int) -> Any:
    """The number of classes, at least 1: an integer, or a tensor if its static size is unknown on TensorFlow."""
    classes = ops.shape(y_pred)[axis]
    if classes is None or (isinstance(classes, int) and classes == 0):
        raise ValueError(f"y_pred must have classes along axis {axis}; got shape {tuple(y_pred.shape)}.")
    return classes


def _logits_before_activation(y_pred: Any, from_logits: bool, activation: str) -> tuple[Any, bool]:
    """The logits that went into a softmax or sigmoid, if known, as Keras's own losses find them on TensorFlow.

    Returns:
        These and True; or ``y_pred`` and ``from_logits``, unchanged.
    """
    if keras.backend.backend() != "tensorflow":
        return y_pred, from_logits
    logits = getattr(y_pred, "_keras_logits", None)
    if logits is None:
        operation = getattr(y_pred, "op", None)  # eager tensors have none
        if operation is None or operation.type != activation:
            return y_pred, from_logits
        logits = operation.inputs[0]
    if from_logits:
        warnings.warn(
            f"from_logits is True, but y_pred comes from a {activation.lower()}: the loss is computed from its input.",
            stacklevel=3,
        )
    return logits, True


def _log_softmax(y_pred: Any, from_logits: bool, axis: int) -> Any:
    """Log-probabilities of logits, or of probabilities, which are normalized and clipped."""
    y_pred = _upcast(y_pred)
    if from_logits:
        return ops.log_softmax(y_pred, axis=axis)
    return ops.log(_clip(y_pred / ops.sum(y_pred, axis=axis, keepdims=True)))


def _with_complement(logp: Any) -> tuple[Any, Any, Any]:
    """``log p``, ``q = 1 - p`` and ``log q``, which is replaced by 0 where q underflows."""
    q = -ops.expm1(logp)
    return logp, q, ops.log(ops.where(ops.less(q, _TINY), 1.0, q))


def _clip(p: Any) -> Any:
    return ops.clip(p, keras.config.epsilon(), 1.0 - keras.config.epsilon())


def _upcast(tensor: Any) -> Any:
    return ops.cast(tensor, _compute_dtype(tensor.dtype))


def _compute_dtype(dtype: Any) -> str:
    """The dtype that a loss is computed in: float32 for low precision and integers."""
    dtype = keras.backend.standardize_dtype(dtype)
    return dtype if dtype in _FULL_PRECISION else "float32"


def _weighted_loss(polynomial: Polynomial, target_weight: Any, logp: Any, q: Any, logq: Any) -> Any:
    """``target_weight * L(p)``; 0 for a weight of 0, even at p = 0, where L may be infinite."""
    excluded = ops.logical_and(ops.equal(target_weight, 0.0), ops.less(logp, _LOG_OVERFLOW))
    losses = _polynomial_at(polynomial, ops.where(excluded, 0.0, logp), ops.where(excluded, 0.0, q), logq)
    return target_weight * losses


def _polynomial_at(polynomial: Polynomial, logp: Any, q: Any, logq: Any) -> Any:
    """Evaluates the polynomial, with first and second derivatives that stay finite at p = 0 and p = 1."""
    if is_zero(polynomial.gamma):
        return polynomial.value(logp, q)
    # q^gamma is computed as exp(gamma log q), since log q has bounded derivatives where those of powers of q overflow.
    # log q is replaced at q = 0, where the loss is 0, and log p at p = 0, where it is huge and multiplied by q' = 0.
    certain, impossible = ops.less(q, _TINY), ops.less(logp, _LOG_UNDERFLOW)
    unfocused = unchecked(polynomial.coefficients, 0.0, polynomial.log_weight)
    loss = unfocused.value(ops.where(impossible, 0.0, logp), q)
    loss = ops.where(certain, 0.0, ops.exp(polynomial.gamma * ops.where(certain, 0.0, logq)) * loss)
    if is_zero(polynomial.log_weight):
        return loss
    return loss - ops.where(impossible, polynomial.log_weight * logp, 0.0)


def _match_ranks(y_true: Any, y_pred: Any) -> Any:
    """Adds or removes a last axis of size 1 so that the ranks match, as Keras's losses do."""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    ranks = len(y_true.shape), len(y_pred.shape)
    if ranks[0] == ranks[1] + 1 and y_true.shape[-1] == 1:
        return (y_true, ops.expand_dims(y_pred, -1)) if ranks[1] == 1 else (ops.squeeze(y_true, -1), y_pred)
    if ranks[1] == ranks[0] + 1 and y_pred.shape[-1] == 1:
        return (ops.expand_dims(y_true, -1), y_pred) if ranks[0] == 1 else (y_true, ops.squeeze(y_pred, -1))
    return y_true, y_pred


def _check_label_smoothing(label_smoothing: Any) -> None:
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, Real):
        raise TypeError(f"label_smoothing must be a number between 0 and 1; got {label_smoothing!r}.")
    if not 0.0 <= float(label_smoothing) <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1; got {label_smoothing!r}.")


def _check_alpha(alpha: Any) -> None:
    if alpha is None:
        return
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha must be a number between 0 and 1, or None; got {alpha!r}.")
    if not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(f"alpha must be between 0 and 1, or None for no balance; got {alpha!r}.")


def _check_class_alpha(alpha: Any) -> None:
    """Raises unless ``alpha`` is None, or numbers of at most one dimension; tensors' values are not read."""
    if alpha is None:
        return
    if isinstance(alpha, bool | str) or not (isinstance(alpha, Real | list | tuple) or hasattr(alpha, "dtype")):
        raise TypeError(f"alpha must be a number, one number for each class, or None; got {alpha!r}.")
    if hasattr(alpha, "shape") and len(alpha.shape) > 1:
        raise ValueError(f"alpha must be a number, or one number for each class; got shape {tuple(alpha.shape)}.")
    if isinstance(alpha, list | tuple) or (type(alpha).__module__ == "numpy" and alpha.ndim == 1):
        for k, number in enumerate(alpha):
            as_nonnegative(f"alpha[{k}]", number)
    else:
        as_nonnegative("alpha", alpha)


def _class_weight(alpha: Any, y_pred: Any, axis: int) -> Any:
    """``alpha`` as a tensor that broadcasts with ``y_pred``; one number for all classes has no dimensions."""
    _check_class_alpha(alpha)
    weight = ops.cast(alpha, _compute_dtype(y_pred.dtype))
    if len(weight.shape) == 0:
        return weight
    rank, classes = len(y_pred.shape), y_pred.shape[axis]
    if classes is not None and weight.shape[0] != classes:
        raise ValueError(
            f"alpha must be a number, or one number for each of the {classes} classes along axis {axis}; "
            f"got {weight.shape[0]} numbers."
        )
    return ops.reshape(weight, [-1 if k == axis % rank else 1 for k in range(rank)])


def _check_ignore_class(ignore_class: Any) -> None:
    if ignore_class is None:
        return
    if isinstance(ignore_class, bool) or not isinstance(ignore_class, Real):
        raise TypeError(f"ignore_class must be an integer, or None; got {ignore_class!r}.")
    if not float(ignore_class).is_integer():
        raise ValueError(f"ignore_class must be an integer, or None; got {ignore_class!r}.")


def _as_config(loss: Polynomial | TwoSided) -> dict[str, Any]:
    return {
        name: _as_config(value) if isinstance(value, Polynomial) else _serialize(value)
        for name, value in vars(loss).items()
    }


def _from_config(config: dict[str, Any]) -> Polynomial | TwoSided:
    if "positive" not in config:
        return Polynomial(**config)
    return TwoSided(Polynomial(**config["positive"]), Polynomial(**config["negative"]), config["margin"])


def _serialize(value: Any) -> Any:
    """Converts a number, tensor or sequence to floats and lists, for ``get_config``."""
    if isinstance(value, tuple | list):
        return [_serialize(element) for element in value]
    return float(value) if isinstance(value, Real) else ops.convert_to_numpy(value).tolist()
