"""PolyLoss for Keras 3, on all of its backends: Keras's cross-entropies for the whole PolyLoss family."""

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeVar

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise  # a missing backend, which Keras names
    raise ImportError("polylosses.keras needs Keras 3: pip install 'polylosses[keras]'") from error

from keras import ops
from keras.src.backend import set_keras_mask  # it has no public name, and there is no other way to say what counts

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, is_zero, unchecked

__all__ = [
    "PolyBinaryCrossentropy",
    "PolyCategoricalCrossentropy",
    "PolySparseCategoricalCrossentropy",
    "poly_binary_crossentropy",
    "poly_categorical_crossentropy",
    "poly_sparse_categorical_crossentropy",
]

_FULL_PRECISION = ("float32", "float64")
_SMALLEST = 2.0**-126  # the smallest normal float32
_IMPOSSIBLE = -1000.0  # the log of a probability that is 0 in every precision
_OVERFLOWING = -1e30  # a logarithm that times a weight may be infinite
_EXACT = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}  # up to where a float holds every integer

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
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Any:
    """PolyLoss of one-hot labels or probabilities: :func:`keras.losses.categorical_crossentropy` for the whole family.

    With ``p`` the predicted probabilities and ``L`` the polynomial (by default Poly-1, ``-log p + epsilon (1 - p)``),
    the loss of one sample is ``sum_c y_true[c] * L(p[c])``. With ``epsilon=0`` and ``gamma=0`` it is Keras's.

    Args:
        y_true: a share for each class, of the shape of ``y_pred``.
        y_pred: probabilities, or logits if ``from_logits``.
        from_logits: whether ``y_pred`` are logits; then the loss is more exact. Probabilities are divided by their sum
            and kept between ``keras.config.epsilon()`` and 1 minus that, as Keras does.
        label_smoothing: in [0, 1]: how much of the label is spread over all classes.
        axis: the class axis.
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
            ``label_smoothing`` is out of range; ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its
            default.

    On the TensorFlow backend, Keras's losses take the logits of a ``y_pred`` that comes straight from a softmax (here)
    or a sigmoid (the binary loss), whatever ``from_logits`` says, and so do these.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), equations 3 and 4 and listing 1.

    Example:
        >>> loss = poly_categorical_crossentropy([[1.0, 0.0, 0.0]], [[4.0, 2.0, 1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
    """
    y_pred, axis = _predictions(y_pred, axis)
    polynomial = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    _check_label_smoothing(label_smoothing)
    share = _shares(y_true, y_pred, " For class indices, use the sparse loss.")
    if label_smoothing:
        share = share * (1.0 - label_smoothing) + label_smoothing / ops.cast(_classes(y_pred, axis), share.dtype)
    logits, from_logits = _recovered(y_pred, from_logits, "Softmax")
    loss = _weighed(polynomial, share, *_of_softmax(_log_probabilities(logits, from_logits, axis)))
    return ops.cast(ops.sum(loss, axis=axis), y_pred.dtype)


@_registered
def poly_sparse_categorical_crossentropy(
    y_true: Any,
    y_pred: Any,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    *,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Any:
    """PolyLoss of class indices: :func:`keras.losses.sparse_categorical_crossentropy` for the whole family.

    Args:
        y_true: class indices, of the shape of ``y_pred`` without ``axis``, or with ``axis`` (or, as a last one, one
            more) of size 1. Floats are cut to integers, as Keras does.
        y_pred, from_logits, axis, epsilon, gamma, polynomial: as for :func:`poly_categorical_crossentropy`.
        ignore_class: samples with this label, which may be any integer, give no loss and no gradient, and don't count
            in the mean.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype: nan, without a gradient,
        where the label is no class.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`; ``ignore_class`` is no integer; ``y_true``
            are floats that don't hold the index of every class.

    Example:
        >>> loss = poly_sparse_categorical_crossentropy([0], [[4.0, 2.0, 1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
    """
    y_pred, axis = _predictions(y_pred, axis)
    polynomial = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    _check_ignore_class(ignore_class)
    labels = _labels(y_true, y_pred, axis)
    logits, normal = y_pred, 0.0 if from_logits else 1.0
    kept = None
    if ignore_class is None:
        logits, from_logits = _recovered(y_pred, from_logits, "Softmax")
    else:
        if keras.backend.standardize_dtype(labels.dtype) == "int32":  # where 2**32 would wrap to 0
            ignore_class = min(max(int(ignore_class), -(2**31)), 2**31 - 1)
        kept = ops.not_equal(labels, ops.cast(ignore_class, labels.dtype))
        # What is ignored may be nan or infinite, and so would be its gradient.
        logits = ops.where(ops.expand_dims(kept, axis), logits, ops.cast(normal, logits.dtype))
    classes = ops.cast(_classes(y_pred, axis), labels.dtype)
    valid = ops.logical_and(ops.greater(labels, -1), ops.less(labels, classes))
    index = ops.cast(ops.where(valid, labels, ops.zeros_like(labels)), "int32")
    if not from_logits and keras.backend.backend() == "tensorflow":
        # There, Keras's sparse loss clips probabilities before it divides them by their sum.
        logits, from_logits = _log_of_clipped(_at_least_float32(logits)), True
    logp = _log_probabilities(logits, from_logits, axis)
    logp = ops.squeeze(ops.take_along_axis(logp, ops.expand_dims(index, axis), axis=axis), axis)
    loss = ops.cast(_polynomial_at(polynomial, *_of_softmax(logp)), y_pred.dtype)
    # Each backend would take another class, wrapped around, clamped or none.
    loss = ops.where(valid, loss, ops.cast(float("nan"), loss.dtype))
    if kept is not None:
        loss = ops.where(kept, loss, ops.cast(0.0, loss.dtype))
        set_keras_mask(loss, kept)  # what Keras divides by
    return loss


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
    polynomial: Polynomial | None = None,
) -> Any:
    """PolyLoss of a yes or no for each class: :func:`keras.losses.binary_crossentropy` for the whole family.

    The loss of one element is ``alpha * y * L(p) + (1 - alpha) * (1 - y) * L(1 - p)``, without ``alpha`` if it is not
    given. With ``epsilon=0`` and ``gamma=0`` it is Keras's; with ``epsilon=0`` and ``gamma=2``, focal loss.

    Args:
        y_true: in [0, 1], hard or soft, of the shape of ``y_pred``.
        y_pred, from_logits, epsilon, gamma, polynomial: as for :func:`poly_categorical_crossentropy`.
        label_smoothing: in [0, 1]: how far labels are drawn towards 0.5.
        axis: the axis along which the mean is taken.
        alpha: in [0, 1]: focal loss's balance, on all terms. Default None: neither side is weighted.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`; ``alpha`` is outside [0, 1].

    Example:
        >>> loss = poly_binary_crossentropy([[1.0, 0.0]], [[2.0, -1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.6082
    """
    y_pred, axis = _predictions(y_pred, axis)
    polynomial = _polynomial(epsilon, gamma, polynomial, y_pred.dtype)
    _check_label_smoothing(label_smoothing)
    _check_alpha(alpha)
    share = _shares(y_true, y_pred)
    if label_smoothing:
        share = share * (1.0 - label_smoothing) + 0.5 * label_smoothing
    positive, negative = share, 1.0 - share
    if alpha is not None:
        positive, negative = alpha * positive, (1.0 - alpha) * negative
    logits, from_logits = _recovered(y_pred, from_logits, "Sigmoid")
    wide = _at_least_float32(logits)
    if from_logits:
        logp, logq = ops.log_sigmoid(wide), ops.log_sigmoid(-wide)
        p, q = ops.sigmoid(wide), ops.sigmoid(-wide)
    else:
        p = _clipped(wide)
        q = 1.0 - p
        logp, logq = ops.log(p), ops.log(q)
    loss = _weighed(polynomial, positive, logp, q, logq) + _weighed(polynomial, negative, logq, p, logp)
    # Not ops.mean, which takes float64 through float32 on torch (Keras 3.15).
    return ops.cast(ops.sum(loss, axis=axis) / ops.cast(ops.shape(loss)[axis], loss.dtype), y_pred.dtype)


class _PolyLoss(keras.losses.Loss):  # type: ignore[misc]
    """What the losses share: the polynomial, and how it is written to a file and read back."""

    def __init__(self, epsilon: Any, gamma: Any, polynomial: Any, **loss: Any) -> None:
        super().__init__(**loss)
        if isinstance(polynomial, dict):  # from a file
            polynomial = Polynomial(**polynomial)
        self.epsilon, self.gamma, self.polynomial = epsilon, gamma, polynomial
        self._checked = (epsilon, gamma, polynomial), _polynomial(epsilon, gamma, polynomial, self.dtype)

    def _chosen(self) -> dict[str, Any]:
        given, made = self._checked
        now = self.epsilon, self.gamma, self.polynomial
        constant = all(isinstance(number, float) for number in (*made.coefficients, made.gamma))
        if constant and all(a is b for a, b in zip(given, now, strict=True)):
            return {"polynomial": made}  # which doesn't warn again
        return {"epsilon": self.epsilon, "gamma": self.gamma, "polynomial": self.polynomial}

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        polynomial = None
        if self.polynomial is not None:
            polynomial = {name: _plain(number) for name, number in vars(self.polynomial).items()}
        own = {"epsilon": _plain(self.epsilon), "gamma": _plain(self.gamma), "polynomial": polynomial}
        return config | own | {"dtype": self.dtype}


@_registered
class PolyCategoricalCrossentropy(_PolyLoss):
    """:func:`poly_categorical_crossentropy` as a loss to compile a model with.

    It takes what :class:`keras.losses.CategoricalCrossentropy` takes, and ``epsilon``, ``gamma`` or ``polynomial``.
    ``fit(class_weight=..., sample_weight=...)``, masks and saved models work as with Keras's own.

    Args:
        from_logits, label_smoothing, axis, epsilon, gamma, polynomial: as for :func:`poly_categorical_crossentropy`.
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
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
    ) -> None:
        super().__init__(epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_label_smoothing(label_smoothing)
        self.from_logits, self.label_smoothing, self.axis = from_logits, label_smoothing, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _of_one_rank(y_true, y_pred)
        return poly_categorical_crossentropy(
            y_true, y_pred, self.from_logits, self.label_smoothing, self.axis, **self._chosen()
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        own = {"from_logits": self.from_logits, "label_smoothing": self.label_smoothing, "axis": self.axis}
        return super().get_config() | own


@_registered
class PolySparseCategoricalCrossentropy(_PolyLoss):
    """:func:`poly_sparse_categorical_crossentropy` as a loss to compile a model with.

    It takes what :class:`keras.losses.SparseCategoricalCrossentropy` takes, and ``epsilon``, ``gamma`` or
    ``polynomial``.

    Args:
        from_logits, ignore_class, axis, epsilon, gamma, polynomial: as for
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
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
    ) -> None:
        super().__init__(epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_ignore_class(ignore_class)
        self.from_logits, self.ignore_class, self.axis = from_logits, ignore_class, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _of_one_rank(y_true, y_pred)
        return poly_sparse_categorical_crossentropy(
            y_true, y_pred, self.from_logits, self.ignore_class, self.axis, **self._chosen()
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
        polynomial: Polynomial | None = None,
    ) -> None:
        super().__init__(epsilon, gamma, polynomial, reduction=reduction, name=name, dtype=dtype)
        _check_label_smoothing(label_smoothing)
        _check_alpha(alpha)
        self.from_logits, self.label_smoothing, self.axis, self.alpha = from_logits, label_smoothing, axis, alpha

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
        y_true, y_pred = _of_one_rank(y_true, y_pred)
        return poly_binary_crossentropy(
            y_true, y_pred, self.from_logits, self.label_smoothing, self.axis, alpha=self.alpha, **self._chosen()
        )

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        own = {
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "axis": self.axis,
            "alpha": self.alpha,
        }
        return super().get_config() | own


def _polynomial(epsilon: Any, gamma: Any, polynomial: Polynomial | None, dtype: Any) -> Polynomial:
    """The polynomial of the arguments; their tensors, and Keras's and TensorFlow's variables, in what is computed."""
    epsilon, gamma = (
        ops.cast(number, _wide(dtype)) if hasattr(number, "dtype") and type(number).__module__ != "numpy" else number
        for number in (epsilon, gamma)
    )
    if ops.is_tensor(epsilon) and len(epsilon.shape) == 1:
        epsilon = tuple(ops.unstack(epsilon))  # a symbolic tensor has no len
    return from_arguments(epsilon, gamma, polynomial)


def _predictions(y_pred: Any, axis: Any) -> tuple[Any, int]:
    y_pred = ops.convert_to_tensor(y_pred)
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(y_pred.dtype)):
        y_pred = ops.cast(y_pred, keras.config.floatx())
    if isinstance(axis, bool) or not isinstance(axis, Integral):
        raise TypeError(f"axis must be an integer; got {axis!r}.")
    rank = len(y_pred.shape)
    if not -rank <= int(axis) < rank:
        raise ValueError(f"axis {axis} is out of bounds for y_pred of {rank} dimensions.")
    return y_pred, int(axis)


def _shares(y_true: Any, y_pred: Any, hint: str = "") -> Any:
    """What each element asks for, of the precision of ``y_pred``, as in Keras, but computed in no lower one."""
    share = ops.cast(y_true, y_pred.dtype)
    if not _same_shape(share.shape, y_pred.shape):
        raise ValueError(
            f"y_true and y_pred must have the same shape; got {tuple(share.shape)} and {tuple(y_pred.shape)}.{hint}"
        )
    return _at_least_float32(share)


def _labels(y_true: Any, y_pred: Any, axis: int) -> Any:
    """Class indices of the shape of ``y_pred`` without ``axis``: floats, as from :class:`keras.losses.Loss`, or signed
    integers, which hold any ``ignore_class``.
    """
    labels = ops.convert_to_tensor(y_true)
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if not keras.backend.is_float_dtype(dtype):
        labels = ops.cast(labels, "int64" if dtype in ("int64", "uint64") else "int32")
    elif dtype in _EXACT and isinstance(y_pred.shape[axis], int) and y_pred.shape[axis] > _EXACT[dtype]:
        raise ValueError(
            f"y_true of {dtype} can't tell {y_pred.shape[axis]} classes apart. Give integers to "
            "poly_sparse_categorical_crossentropy, or a dtype of more digits to the loss."
        )
    given = tuple(labels.shape)
    if len(given) == len(y_pred.shape):
        if given[axis] == 1:
            labels = ops.squeeze(labels, axis)
        elif given[-1] == 1:
            labels = ops.squeeze(labels, -1)
    places = list(y_pred.shape)
    places.pop(axis)
    if not _same_shape(labels.shape, places):
        raise ValueError(
            f"y_true must have shape {tuple(places)} for y_pred of shape {tuple(y_pred.shape)} and axis {axis}; "
            f"got {given}."
        )
    return labels


def _same_shape(shape: Any, other: Any) -> bool:
    """As far as they are known: None is any size."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a is None or b is None or a == b for a, b in pairs)


def _classes(y_pred: Any, axis: int) -> Any:
    """How many, at least 1; a tensor if TensorFlow will know it."""
    classes = ops.shape(y_pred)[axis]
    if classes is None or (isinstance(classes, int) and classes == 0):
        raise ValueError(f"y_pred must have classes along axis {axis}; got shape {tuple(y_pred.shape)}.")
    return classes


def _recovered(y_pred: Any, from_logits: bool, link: str) -> tuple[Any, bool]:
    """What Keras's own losses compute from on TensorFlow: the logits behind a softmax or sigmoid, if they are known."""
    if keras.backend.backend() != "tensorflow":
        return y_pred, from_logits
    logits = getattr(y_pred, "_keras_logits", None)
    if logits is None:
        operation = getattr(y_pred, "op", None)  # of a graph; eager tensors have none
        if operation is None or operation.type != link:
            return y_pred, from_logits
        logits = operation.inputs[0]
    if from_logits:
        warnings.warn(
            f"from_logits is True, but y_pred comes from a {link.lower()}: the loss is that of its input.", stacklevel=3
        )
    return logits, True


def _log_probabilities(y_pred: Any, from_logits: bool, axis: int) -> Any:
    wide = _at_least_float32(y_pred)
    if from_logits:
        return ops.log_softmax(wide, axis=axis)
    return _log_of_clipped(wide / ops.sum(wide, axis=axis, keepdims=True))


def _of_softmax(logp: Any) -> tuple[Any, Any, Any]:
    """``log p``, ``q = 1 - p`` and ``log q``."""
    q = -ops.expm1(logp)
    return logp, q, ops.log(ops.where(ops.less(q, _SMALLEST), 1.0, q))


def _clipped(p: Any) -> Any:
    return ops.clip(p, keras.config.epsilon(), 1.0 - keras.config.epsilon())


def _log_of_clipped(p: Any) -> Any:
    return ops.log(_clipped(p))


def _at_least_float32(y_pred: Any) -> Any:
    return ops.cast(y_pred, _wide(y_pred.dtype))


def _wide(dtype: Any) -> str:
    """What low precision is computed in."""
    dtype = keras.backend.standardize_dtype(dtype)
    return dtype if dtype in _FULL_PRECISION else "float32"


def _weighed(polynomial: Polynomial, share: Any, logp: Any, q: Any, logq: Any) -> Any:
    """``share * L(p)``, where what has no share counts nothing, even at p = 0."""
    absent = ops.logical_and(ops.equal(share, 0.0), ops.less(logp, _OVERFLOWING))
    return share * _polynomial_at(polynomial, ops.where(absent, 0.0, logp), ops.where(absent, 0.0, q), logq)


def _polynomial_at(polynomial: Polynomial, logp: Any, q: Any, logq: Any) -> Any:
    """The polynomial, with first and second derivatives that stay finite at p = 0 and p = 1."""
    if is_zero(polynomial.gamma):
        return polynomial.value(logp, q)
    # q^gamma as exp(gamma log q), since log q has bounded derivatives where powers of q overflow. At q = 0 the loss is
    # 0, and at p = 0 a huge logarithm would be multiplied by q' = 0: other numbers stand there.
    certain, impossible = ops.less(q, _SMALLEST), ops.less(logp, _IMPOSSIBLE)
    bracket = unchecked(polynomial.coefficients, 0.0, polynomial.log_weight)
    loss = bracket.value(ops.where(impossible, 0.0, logp), q)
    loss = ops.where(certain, 0.0, ops.exp(polynomial.gamma * ops.where(certain, 0.0, logq)) * loss)
    if is_zero(polynomial.log_weight):
        return loss
    return loss - ops.where(impossible, polynomial.log_weight * logp, 0.0)


def _of_one_rank(y_true: Any, y_pred: Any) -> Any:
    """Labels of shape (N,) for predictions of shape (N, 1) and the like, in Keras's own way."""
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


def _check_ignore_class(ignore_class: Any) -> None:
    if ignore_class is None:
        return
    if isinstance(ignore_class, bool) or not isinstance(ignore_class, Real):
        raise TypeError(f"ignore_class must be an integer, or None; got {ignore_class!r}.")
    if not float(ignore_class).is_integer():
        raise ValueError(f"ignore_class must be an integer, or None; got {ignore_class!r}.")


def _plain(numbers: Any) -> Any:
    """Numbers and lists of them, for a file."""
    if isinstance(numbers, tuple | list):
        return [_plain(number) for number in numbers]
    return float(numbers) if isinstance(numbers, Real) else ops.convert_to_numpy(numbers).tolist()
