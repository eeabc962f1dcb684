"""PolyLoss for Keras 3, on all of its backends: Keras's cross-entropies for the whole PolyLoss family."""

from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise  # a missing backend, which Keras names
    raise ImportError("polylosses.keras needs Keras 3: pip install 'polylosses[keras]'") from error

from keras import ops
from keras.src.backend import set_keras_mask  # it has no public name, and there is no other way to say what counts

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, is_zero

__all__ = [
    "PolyBinaryCrossentropy",
    "PolyCategoricalCrossentropy",
    "PolySparseCategoricalCrossentropy",
    "poly_binary_crossentropy",
    "poly_categorical_crossentropy",
    "poly_sparse_categorical_crossentropy",
]

_LOW_PRECISION = ("float16", "bfloat16")
_SMALLEST = 2.0**-126  # the smallest normal float32

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
        epsilon: the coefficient of ``1 - p``, or a sequence for Poly-N: of ``(1 - p)^1, (1 - p)^2, ...``
        gamma: the focal exponent, at least 0: multiplies the loss by ``(1 - p)^gamma``.
        polynomial: any other loss of the family, such as ``polylosses.taylor_cross_entropy(3)``, instead of
            ``epsilon`` and ``gamma``.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype.

    Raises:
        TypeError, ValueError: as for :class:`polylosses.Polynomial`; the shapes differ; ``label_smoothing`` is out of
            range; ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its default.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), equations 3 and 4 and listing 1.

    Example:
        >>> loss = poly_categorical_crossentropy([[1.0, 0.0, 0.0]], [[4.0, 2.0, 1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    _check_label_smoothing(label_smoothing)
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    if tuple(y_true.shape) != tuple(y_pred.shape):
        raise ValueError(
            f"y_true and y_pred must have the same shape; got {tuple(y_true.shape)} and {tuple(y_pred.shape)}. "
            "For class indices, use the sparse loss."
        )
    if label_smoothing:
        y_true = y_true * (1.0 - label_smoothing) + label_smoothing / y_pred.shape[axis]
    logp = _log_probabilities(y_pred, from_logits, axis)
    share = ops.cast(y_true, logp.dtype)
    return ops.cast(ops.sum(_weighed(polynomial, share, logp, -ops.expm1(logp)), axis=axis), y_pred.dtype)


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
        y_true: class indices, of the shape of ``y_pred`` without ``axis``, or with one more dimension of size 1.
        y_pred, from_logits, axis, epsilon, gamma, polynomial: as for :func:`poly_categorical_crossentropy`.
        ignore_class: samples with this label give no loss and no gradient, and don't count in the mean.

    Returns:
        The loss of every sample, in the shape of ``y_pred`` without ``axis``, and its dtype.

    Raises:
        TypeError, ValueError: as for :func:`poly_categorical_crossentropy`.

    Example:
        >>> loss = poly_sparse_categorical_crossentropy([0], [[4.0, 2.0, 1.0]], from_logits=True, epsilon=2.0)
        >>> print(f"{float(loss[0]):.4f}")
        0.4823
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    y_pred = ops.convert_to_tensor(y_pred)
    # Indices come as floats from keras.losses.Loss.
    y_true = ops.cast(y_true, "int32")
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
    places = list(y_pred.shape)
    if not -len(places) <= axis < len(places):
        raise ValueError(f"axis {axis} is out of bounds for y_pred of {len(places)} dimensions.")
    places.pop(axis)
    if list(y_true.shape) != places:
        raise ValueError(
            f"y_true must have shape {tuple(places)} for y_pred of shape {tuple(y_pred.shape)} and axis {axis}; "
            f"got {tuple(y_true.shape)}."
        )
    kept = None if ignore_class is None else ops.not_equal(y_true, ignore_class)
    if kept is not None:
        y_true = ops.where(kept, y_true, 0)
        y_pred = ops.where(ops.expand_dims(kept, axis), y_pred, ops.cast(1.0, y_pred.dtype))
    logp = _log_probabilities(y_pred, from_logits, axis)
    logp = ops.squeeze(ops.take_along_axis(logp, ops.expand_dims(y_true, axis), axis=axis), axis)
    loss = ops.cast(_polynomial_at(polynomial, logp, -ops.expm1(logp)), y_pred.dtype)
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
    polynomial = from_arguments(epsilon, gamma, polynomial)
    _check_label_smoothing(label_smoothing)
    _check_alpha(alpha)
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = ops.cast(y_true, y_pred.dtype)
    if tuple(y_true.shape) != tuple(y_pred.shape):
        raise ValueError(
            f"y_true and y_pred must have the same shape; got {tuple(y_true.shape)} and {tuple(y_pred.shape)}."
        )
    if label_smoothing:
        y_true = y_true * (1.0 - label_smoothing) + 0.5 * label_smoothing
    wide = _at_least_float32(y_pred)
    share = ops.cast(y_true, wide.dtype)
    if from_logits:
        logp, logq = ops.log_sigmoid(wide), ops.log_sigmoid(-wide)
        p, q = ops.sigmoid(wide), ops.sigmoid(-wide)
    else:
        p = ops.clip(wide, keras.config.epsilon(), 1.0 - keras.config.epsilon())
        q = 1.0 - p
        logp, logq = ops.log(p), ops.log(q)
    yes, no = _weighed(polynomial, share, logp, q), _weighed(polynomial, 1.0 - share, logq, p)
    loss = yes + no if alpha is None else alpha * yes + (1.0 - alpha) * no
    # Not ops.mean, which takes float64 through float32 on torch (Keras 3.15).
    return ops.cast(ops.sum(loss, axis=axis) / ops.cast(ops.shape(loss)[axis], loss.dtype), y_pred.dtype)


class _PolyLoss(keras.losses.Loss):  # type: ignore[misc]
    """What the losses share: the polynomial, and how it is written to a file and read back."""

    def __init__(self, epsilon: Any, gamma: Any, polynomial: Any, **loss: Any) -> None:
        super().__init__(**loss)
        if isinstance(polynomial, dict):  # from a file
            polynomial = Polynomial(**polynomial)
        from_arguments(epsilon, gamma, polynomial)
        self.epsilon, self.gamma, self.polynomial = epsilon, gamma, polynomial

    def _chosen(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "gamma": self.gamma, "polynomial": self.polynomial}

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()
        polynomial = None
        if self.polynomial is not None:
            polynomial = {name: _plain(number) for name, number in vars(self.polynomial).items()}
        return config | {"epsilon": _plain(self.epsilon), "gamma": _plain(self.gamma), "polynomial": polynomial}


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
        self.from_logits, self.ignore_class, self.axis = from_logits, ignore_class, axis

    def call(self, y_true: Any, y_pred: Any) -> Any:  # noqa: D102
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


def _log_probabilities(y_pred: Any, from_logits: bool, axis: int) -> Any:
    wide = _at_least_float32(y_pred)
    if from_logits:
        return ops.log_softmax(wide, axis=axis)
    wide = wide / ops.sum(wide, axis=axis, keepdims=True)
    return ops.log(ops.clip(wide, keras.config.epsilon(), 1.0 - keras.config.epsilon()))


def _at_least_float32(y_pred: Any) -> Any:
    """What low precision is computed in."""
    return ops.cast(y_pred, "float32") if keras.backend.standardize_dtype(y_pred.dtype) in _LOW_PRECISION else y_pred


def _weighed(polynomial: Polynomial, share: Any, logp: Any, q: Any) -> Any:
    """``share * L(p)``, where what has no share counts nothing, even at p = 0."""
    absent = ops.logical_and(ops.equal(share, 0.0), ops.equal(logp, float("-inf")))
    return share * _polynomial_at(polynomial, ops.where(absent, 0.0, logp), ops.where(absent, 0.0, q))


def _polynomial_at(polynomial: Polynomial, logp: Any, q: Any) -> Any:
    """The polynomial, with derivatives that stay finite at p = 0 and p = 1."""
    if is_zero(polynomial.gamma):
        return polynomial.value(logp, q)
    # As in the other backends: q^gamma has an infinite derivative at q = 0, and at p = 0 an infinite logarithm would
    # be multiplied by q' = 0. Another number stands there, and the result is put in its place.
    certain = ops.less(q, _SMALLEST)
    impossible = ops.equal(logp, float("-inf"))
    loss = polynomial.value(ops.where(ops.logical_or(certain, impossible), -1.0, logp), ops.where(certain, 1.0, q))
    loss = ops.where(certain, 0.0, loss)
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


def _plain(numbers: Any) -> Any:
    """Numbers and lists of them, for a file."""
    if isinstance(numbers, tuple | list):
        return [_plain(number) for number in numbers]
    return float(numbers) if isinstance(numbers, Real) else ops.convert_to_numpy(numbers).tolist()
