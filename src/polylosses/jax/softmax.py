"""Softmax losses and their posterior. Of the arrays of the logits' size, the backward pass saves the arguments only."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from polylosses.catalogue import mean_absolute_error
from polylosses.jax.likelihood import as_floating_array, log_density, polynomial_at, upcast
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, is_zero

Axis = int | tuple[int, ...] | None


def poly_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""PolyLoss between logits and class probabilities: ``optax.losses.softmax_cross_entropy`` for the PolyLoss family.

    With ``p`` the softmax of ``logits`` and ``L`` the polynomial (by default Poly-1, ``-log p + epsilon (1 - p)``), the
    loss of one example is ``sum_c labels[c] * L(p[c])``. With ``epsilon=0`` and ``gamma=0`` that is cross-entropy.

    Args:
        logits: of any shape and floating dtype; float16 and bfloat16 are computed in float32. Logits of minus infinity
            mask a class.
        labels: one-hot labels or class probabilities; broadcasts with ``logits``.
        epsilon: the coefficient of ``1 - p``; a number or a 0-dimensional array, traced or not. A sequence, or an array
            of one dimension, gives the coefficients of ``(1 - p)^1, (1 - p)^2, ...`` (Poly-N).
        gamma: the focal exponent, at least 0: multiplies the loss by ``(1 - p)^gamma``.
        polynomial: any other loss of the family, such as ``polylosses.taylor_cross_entropy(3)``, instead of ``epsilon``
            and ``gamma``. It may be an argument of a jitted, mapped or differentiated function: it is a pytree.
        axis: the class axis; or several, whose elements together are the classes; or None for all axes.
        where: a boolean mask, True for what counts. With as many dimensions as ``logits`` it broadcasts with them and
            masks classes: they get probability 0, and their labels are ignored. With the shape of the result it masks
            examples: their loss and gradient are 0, whatever their logits and labels are.

    Returns:
        The loss of every example, in the shape of ``logits`` without ``axis`` and the dtype of ``logits`` and
        ``labels``.

    Raises:
        TypeError: ``logits`` are not floating-point, ``labels`` are complex, or ``where`` is not boolean; otherwise as
            for :class:`polylosses.Polynomial`.
        ValueError: the shapes do not match; ``polynomial`` is given together with an ``epsilon`` or ``gamma`` that is
            not the default.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), equations 3 and 4 and listing 1.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> logits = jnp.array([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]])
        >>> print(poly_cross_entropy(logits, labels, epsilon=2.0))
        [0.4823 1.2567]
        >>> by_epsilon = jax.vmap(lambda epsilon: poly_cross_entropy(logits, labels, epsilon=epsilon).mean())
        >>> print(by_epsilon(jnp.array([0.0, 1.0, 2.0])))
        [0.4973 0.6834 0.8695]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    logits, labels = as_floating_array("logits", logits), jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be real; got {labels.dtype}.")
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == logits.ndim - 1:
        raise ValueError(
            f"labels of shape {labels.shape} and dtype {labels.dtype} look like class indices for logits of shape "
            f"{logits.shape}; use poly_cross_entropy_with_integer_labels."
        )
    dtype = jnp.result_type(logits, labels)
    try:
        shape = jnp.broadcast_shapes(logits.shape, labels.shape)
    except ValueError:
        raise ValueError(
            f"labels must broadcast with logits; got shapes {labels.shape} and {logits.shape}. "
            "For class indices, use poly_cross_entropy_with_integer_labels."
        ) from None
    axes = _axes(axis, len(shape))
    class_mask, valid = _masks(where, shape, axes)
    logits = upcast(jnp.broadcast_to(logits, shape).astype(dtype))
    labels = jnp.expand_dims(labels.astype(logits.dtype), range(len(shape) - labels.ndim))
    losses = _expectation(polynomial, logits, labels, axes, class_mask, valid)
    return losses.astype(dtype)


def poly_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: float | Array = 0.0,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    """PolyLoss between logits and class indices: :func:`poly_cross_entropy` without one-hot labels.

    With ``epsilon=0`` and ``gamma=0`` it is ``optax.losses.softmax_cross_entropy_with_integer_labels``.

    Args:
        logits: as for :func:`poly_cross_entropy`.
        labels: class indices in [0, C), of the shape of ``logits`` without ``axis``. For several axes, an index into
            the classes of all of them in the order of ``axis``, the last one fastest. An index out of range gives nan,
            unless ``where`` masks the example: so masked labels may be -100 or any other number.
        label_smoothing: in [0, 1]: the fraction of the label that is spread evenly over the classes that ``where``
            does not mask.
        epsilon, gamma, polynomial, axis, where: as for :func:`poly_cross_entropy`.

    Returns:
        The loss of every example, in the shape of ``labels`` and the dtype of ``logits``.

    Raises:
        TypeError: ``labels`` are not integers; otherwise as for :func:`poly_cross_entropy`.
        ValueError: ``label_smoothing`` is out of range; otherwise as for :func:`poly_cross_entropy`.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> logits = jnp.array([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
        >>> print(poly_cross_entropy_with_integer_labels(logits, jnp.array([0, 1]), epsilon=2.0))
        [0.4823 0.0736]
        >>> print(poly_cross_entropy_with_integer_labels(logits, jnp.array([0, -100]), where=jnp.array([True, False])))
        [0.3261 0.    ]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    logits, labels = as_floating_array("logits", logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}. For probabilities, use poly_cross_entropy.")
    check_label_smoothing(label_smoothing)
    axes = _axes(axis, logits.ndim)
    batch_axes = tuple(k for k in range(logits.ndim) if k not in axes)
    batch_shape = tuple(logits.shape[k] for k in batch_axes)
    if labels.shape != batch_shape:
        raise ValueError(
            f"labels for logits of shape {logits.shape} and axis {axis} must have shape {batch_shape}; "
            f"got {labels.shape}."
        )
    class_mask, valid = _masks(where, logits.shape, axes)
    dtype, logits = logits.dtype, upcast(logits)
    if len(axes) != 1:

        def flatten_classes(array: Array) -> Array:
            array = array.transpose(batch_axes + axes)
            return array.reshape(*array.shape[: len(batch_axes)], -1)

        class_mask = None if class_mask is None else flatten_classes(jnp.broadcast_to(class_mask, logits.shape))
        valid = None if valid is None else flatten_classes(valid)
        logits = flatten_classes(logits)
        axes = (len(batch_axes),)
    losses = _losses_of_indices(polynomial, logits, labels, axes[0], class_mask, valid)
    if not (isinstance(label_smoothing, Real) and label_smoothing == 0.0):
        if class_mask is None:
            uniform = jnp.full((1,) * logits.ndim, 1.0 / max(1, logits.shape[axes[0]]), logits.dtype)
        else:
            uniform = (1.0 / jnp.maximum(jnp.sum(class_mask, axes, keepdims=True), 1)).astype(logits.dtype)
        smoothing_losses = _expectation(polynomial, logits, uniform, axes, class_mask, valid)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * smoothing_losses
    return losses.astype(dtype)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: Any = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Drop-in replacement for ``optax.losses.poly_loss_cross_entropy``.

    It is :func:`poly_cross_entropy` with optax's arguments and default. The results are optax's where those are right;
    besides, a ``where`` of the result's shape masks examples, and logits of minus infinity give finite losses.

    Args:
        logits, labels, axis, where: as for :func:`poly_cross_entropy`.
        epsilon: the coefficient of ``1 - p``. An array, as in optax, holds one coefficient for each example, not
            those of Poly-N: it broadcasts with the result.

    Returns:
        As :func:`poly_cross_entropy`.

    Raises:
        TypeError: ``labels`` are not floating-point; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> logits, labels = jnp.array([0.14, 1.456, 2.356, -0.124, -2.47]), jnp.array([0.1, 0.15, 0.2, 0.25, 0.3])
        >>> print(poly_loss_cross_entropy(logits, labels))
        4.531657
    """
    losses = partial(poly_cross_entropy, logits, as_floating_array("labels", labels), axis=axis, where=where)
    if getattr(epsilon, "ndim", 0) == 0:
        return losses(epsilon=epsilon)
    result: Array = losses(epsilon=0.0) + epsilon * losses(polynomial=mean_absolute_error())
    return result


def poly_softmax(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Array:
    """The class posterior of a model that was trained with a softmax PolyLoss.

    Other than cross-entropy, a PolyLoss is not a proper scoring rule: the softmax ``p`` that minimizes it is not the
    class posterior. The posterior is proportional to ``p / -slope(p)``, with ``slope = dL / d log p``; for Poly-1, to
    ``p / (1 + epsilon p)``. With ``epsilon=0`` this is :func:`jax.nn.softmax`. The ranking of the classes is the same.

    Args:
        logits: of any shape and floating dtype.
        axis: the class axis, or several, or None for all. Default -1.
        epsilon, gamma, polynomial: those that the model was trained with; see :func:`poly_cross_entropy`. There is
            no posterior where the loss is not monotone (``epsilon < -1``): there the slope is clamped to just below 0.

    Returns:
        Probabilities that sum to 1 along ``axis``, in the shape and dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point array; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> logits = jnp.array([[2.0, 0.0]])
        >>> print(poly_softmax(logits, epsilon=0.0), poly_softmax(logits, epsilon=2.0))
        [[0.8808 0.1192]] [[0.7682 0.2318]]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    logits = as_floating_array("logits", logits)
    logp = jax.nn.log_softmax(upcast(logits), axis)
    # log(1 - p). Only one class can have p > 1/2, where 1 - p would cancel: for it, sum the other classes.
    likely = logp > -math.log(2.0)
    others = jnp.where(likely, -jnp.inf, logp)
    # Bounded below, since the gradient of logsumexp is nan where all other classes are masked.
    others = jnp.maximum(others, -(float(jnp.finfo(logp.dtype).max) ** 0.5))
    unlikely = jnp.log1p(-jnp.exp(jnp.where(likely, -1.0, logp)))
    logq = jnp.where(likely, jax.nn.logsumexp(others, axis, keepdims=True), unlikely)
    return jax.nn.softmax(log_density(polynomial, logp, logq), axis).astype(logits.dtype)


def check_label_smoothing(label_smoothing: Any) -> None:
    """Raises unless it is a number in [0, 1] or an array."""
    if hasattr(label_smoothing, "dtype"):
        return
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, Real):
        raise TypeError(f"label_smoothing must be a number between 0 and 1 or an array; got {label_smoothing!r}.")
    if not 0.0 <= float(label_smoothing) <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1; got {label_smoothing!r}.")


def _axes(axis: Axis, dimensions: int) -> tuple[int, ...]:
    """Normalizes ``axis`` to a tuple of nonnegative integers."""
    given = tuple(range(dimensions)) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    axes: list[int] = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, Integral):
            raise TypeError(f"axis must be an integer, a tuple of integers or None; got {axis!r}.")
        if not -dimensions <= one < dimensions:
            raise ValueError(f"axis {axis} is out of bounds for logits of {dimensions} dimensions.")
        axes.append(int(one) % dimensions)
    if len(set(axes)) < len(axes) or not axes:
        raise ValueError(f"axis must name one axis or several different ones; got {axis!r}.")
    return tuple(axes)


def _masks(where: ArrayLike | None, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """Splits ``where`` into a mask of classes and a mask of valid examples.

    Each has as many dimensions as ``shape``; None if nothing is masked.
    """
    if where is None:
        return None, None
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean; got {mask.dtype}. Write where.astype(bool).")
    batch_shape = tuple(size for k, size in enumerate(shape) if k not in axes)
    if mask.shape == batch_shape:
        return None, jnp.expand_dims(mask, axes)
    if mask.ndim != len(shape) or any(size not in (1, wanted) for size, wanted in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"where must have shape {batch_shape}, for examples, or broadcast to {shape} with as many dimensions, for "
            f"classes; got shape {mask.shape}."
        )
    if all(mask.shape[k] == 1 for k in axes):
        return None, mask
    return mask, jnp.any(mask, axes, keepdims=True)


def _rematerialized(function: Callable[..., Array]) -> Callable[..., Array]:
    """Rematerializes ``function`` in the backward pass: only its arguments and the softmax statistics are saved.

    In one program, the compiler may still share the exponentials between forward and backward pass: on a CPU they then
    are computed once, in the memory that becomes the gradient. Value and gradient take the time of optax's
    cross-entropy of integer labels, which saves them (0.91 to 1.06 of it, benchmarks/jax_losses.py). A
    ``jax.custom_vjp`` was no faster, and has no forward mode.
    """
    policy = jax.checkpoint_policies.save_only_these_names("max_logit", "sum_exp")
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def _shifted_exp(logits: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The maximum logit, ``exp(logits - maximum)`` and the sum of these, along ``axes``."""
    max_logit = jnp.max(logits, axes, keepdims=True, initial=-jnp.inf)
    max_logit = jax.lax.stop_gradient(jnp.where(jnp.isfinite(max_logit), max_logit, 0.0))
    max_logit = checkpoint_name(max_logit, "max_logit")
    exponentials = jnp.exp(logits - max_logit)
    return max_logit, exponentials, checkpoint_name(jnp.sum(exponentials, axes, keepdims=True), "sum_exp")


def _masked(logits: Array, class_mask: Array | None, valid: Array | None) -> Array:
    """The logits, -inf for masked classes and 0 for masked examples."""
    if class_mask is not None:
        logits = jnp.where(class_mask, logits, -jnp.inf)
    # The logits of masked examples may be nan, which their gradient of 0 would be multiplied by.
    return logits if valid is None else jnp.where(valid, logits, 0.0)


def _losses_of_indices(
    polynomial: Polynomial, logits: Array, labels: Array, axis: int, class_mask: Array | None, valid: Array | None
) -> Array:
    """``L(p[label])`` for every example."""

    @_rematerialized
    def negative_log_likelihood(logits: Array, labels: Array, class_mask: Array | None, valid: Array | None) -> Array:
        max_logit, _, sum_exp = _shifted_exp(_masked(logits, class_mask, valid), (axis,))
        nll = jnp.log(sum_exp) - (_at_label(logits, labels, axis, jnp.nan) - max_logit)
        if class_mask is not None:
            nll = jnp.where(_at_label(jnp.broadcast_to(class_mask, logits.shape), labels, axis, True), nll, 0.0)
        return jnp.squeeze(nll if valid is None else jnp.where(valid, nll, 0.0), axis)

    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    nll = negative_log_likelihood(logits, labels, class_mask, valid)
    # Masked examples and labels have nll = 0, where every polynomial is 0.
    return polynomial_at(polynomial, nll, -jnp.expm1(-nll))


def _at_label(array: Array, labels: Array, axis: int, fill_value: Any) -> Array:
    """Gathers each example's element at its label along ``axis``; ``fill_value`` for labels out of range."""
    labels = jnp.expand_dims(labels, axis)
    in_range = (labels >= 0) & (labels < array.shape[axis])
    spec = jax.typeof(array).sharding.spec
    if axis < len(spec) and spec[axis] is not None:
        # With explicit sharding, an axis that is sharded can't be indexed.
        is_label = jax.lax.broadcasted_iota(labels.dtype, array.shape, axis) == labels
        element = jnp.sum(jnp.where(is_label, array, 0), axis, keepdims=True, dtype=array.dtype)
    else:
        element = jnp.take_along_axis(array, jnp.where(in_range, labels, 0), axis, mode="clip")
    return jnp.where(in_range, element, fill_value)


def _expectation(
    polynomial: Polynomial,
    logits: Array,
    target_weight: Array,
    axes: tuple[int, ...],
    class_mask: Array | None,
    valid: Array | None,
) -> Array:
    """``sum_c target_weight[c] * L(p[c])`` for every example; 0 for a weight of 0, even where the loss is infinite."""

    @_rematerialized
    def weighted_sum(logits: Array, target_weight: Array, class_mask: Array | None, valid: Array | None) -> Array:
        masked = _masked(logits, class_mask, valid)
        max_logit, exponentials, sum_exp = _shifted_exp(masked, axes)
        if class_mask is not None:
            target_weight = jnp.where(class_mask, target_weight, 0.0)
        shifted = masked - max_logit
        excluded = (target_weight == 0.0) & (shifted < -(float(jnp.finfo(shifted.dtype).max) ** 0.5))
        is_poly1 = (
            is_zero(polynomial.gamma) and isinstance(polynomial.log_weight, float) and len(polynomial.coefficients) < 2
        )
        if is_poly1 and shifted.size:
            shifted = jnp.where(excluded, 0.0, shifted)
            total = _poly1_expectation(polynomial, shifted, exponentials, sum_exp, target_weight, axes)
        else:
            nll = jnp.where(excluded, 0.0, jnp.log(sum_exp) - shifted)
            # As accurate as -expm1(-nll), one unit in the last place of 1, which would add half of the time again.
            q = jnp.where(excluded, 0.0, 1.0 - exponentials / sum_exp)
            total = jnp.sum(target_weight * polynomial_at(polynomial, nll, q), axes, keepdims=True)
        return jnp.squeeze(total if valid is None else jnp.where(valid, total, 0.0), axes)

    return weighted_sum(logits, target_weight, class_mask, valid)


def _poly1_expectation(
    polynomial: Polynomial,
    shifted: Array,
    exponentials: Array,
    sum_exp: Array,
    target_weight: Array,
    axes: tuple[int, ...],
) -> Array:
    """The expectation of a loss without powers above ``1 - p``, which is linear in a few sums over the classes.

    With ``T`` the sum of the weights ``t``, ``sum_c t[c] (-log p[c])`` is ``T log(sum_exp) - sum_c t[c] shifted[c]``,
    and ``sum_c t[c] (1 - p[c])`` is ``T - sum_c t[c] p[c]``. The sums are of plain products, so that the compiler
    stores nothing of the logits' size but the exponentials. Value and gradient take 0.4 of the time of summing
    losses (dense labels, 1024 x 1000, on a CPU; benchmarks/NOTES.md).
    """
    if all(target_weight.shape[k] == 1 for k in axes):  # as label smoothing's: without an array of equal weights
        classes = math.prod(shifted.shape[k] for k in axes)
        total_weight = target_weight * classes
        # The mean before the weight: a sum of logits that stand for minus infinity would overflow.
        of_shifted = total_weight * jnp.sum(shifted * (1.0 / classes), axes, keepdims=True)
        of_exponentials = target_weight * jnp.sum(exponentials, axes, keepdims=True)
    else:
        target_weight = jnp.broadcast_to(target_weight, shifted.shape)
        total_weight = jnp.sum(target_weight, axes, keepdims=True)
        of_shifted = jnp.sum(target_weight * shifted, axes, keepdims=True)
        of_exponentials = jnp.sum(target_weight * exponentials, axes, keepdims=True)
    total = jnp.zeros_like(total_weight)
    if not is_zero(polynomial.log_weight):
        nll = total_weight * jnp.log(sum_exp) - of_shifted
        total = polynomial.log_weight * nll
    for epsilon in polynomial.coefficients:
        total = total + epsilon * (total_weight - of_exponentials / sum_exp)
    return total
