"""The softmax losses. None keeps anything of the logits' size for the backward pass but the logits themselves."""

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
from polylosses.jax.likelihood import at_least_float32, floating, log_density, polynomial_at
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments

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
        labels: a share for each class, such as one-hot rows or probabilities; broadcasts with ``logits``.
        epsilon: the coefficient of ``1 - p``; a number or a 0-dimensional array, traced or not. A sequence, or an array
            of one dimension, gives the coefficients of ``(1 - p)^1, (1 - p)^2, ...`` (Poly-N).
        gamma: the focal exponent, at least 0: multiplies the loss by ``(1 - p)^gamma``.
        polynomial: any other loss of the family, such as ``polylosses.taylor_cross_entropy(3)``, instead of ``epsilon``
            and ``gamma``. It may be an argument of a jitted, mapped or differentiated function: it is a pytree.
        axis: the class axis, or several (all classes together), or None for all.
        where: what counts, as booleans. With as many dimensions as ``logits`` it broadcasts with them and takes single
            classes out (they get no probability, and their labels count nothing). With the shape of the result it
            takes examples out: no loss, no gradient, whatever their logits and labels are.

    Returns:
        The loss of every example, in the shape of ``logits`` without ``axis`` and the dtype of ``logits`` and
        ``labels``.

    Raises:
        TypeError: ``logits`` are not floating-point, ``labels`` are complex, or ``where`` is not boolean; otherwise as
            for :class:`polylosses.Polynomial`.
        ValueError: the shapes do not fit each other; ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its
            default.

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
    logits, labels = floating("logits", logits), jnp.asarray(labels)
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
    included, counted = _masks(where, shape, axes)
    wide = at_least_float32(jnp.broadcast_to(logits, shape).astype(dtype))
    loss = _expectation(polynomial, wide, labels.astype(wide.dtype), axes, included, counted)
    return loss.astype(dtype)


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
            the classes of all of them in the order of ``axis``, the last one fastest. An index out of range gives nan
            (unless ``where`` takes the example out: so -100 or any other mark may stand there).
        label_smoothing: in [0, 1]: how much of the label is spread over all classes that ``where`` includes.
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
    logits, labels = floating("logits", logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}. For probabilities, use poly_cross_entropy.")
    check_label_smoothing(label_smoothing)
    axes = _axes(axis, logits.ndim)
    kept_axes = tuple(k for k in range(logits.ndim) if k not in axes)
    if labels.shape != tuple(logits.shape[k] for k in kept_axes):
        raise ValueError(
            f"labels for logits of shape {logits.shape} and axis {axis} must have shape "
            f"{tuple(logits.shape[k] for k in kept_axes)}; got {labels.shape}."
        )
    included, counted = _masks(where, logits.shape, axes)
    wide = at_least_float32(logits)
    if len(axes) != 1:

        def flat(array: Array) -> Array:
            array = array.transpose(kept_axes + axes)
            return array.reshape(*array.shape[: len(kept_axes)], -1)

        wide = flat(wide)
        included = None if included is None else flat(jnp.broadcast_to(included, logits.shape))
        counted = None if counted is None else flat(counted)
        axes = (len(kept_axes),)
    loss = _of_labels(polynomial, wide, labels, axes[0], included, counted)
    if not (isinstance(label_smoothing, Real) and label_smoothing == 0.0):
        if included is None:
            share = jnp.full((1,) * wide.ndim, 1.0 / max(1, wide.shape[axes[0]]), wide.dtype)
        else:
            share = (1.0 / jnp.maximum(jnp.sum(included, axes, keepdims=True), 1)).astype(wide.dtype)
        spread = _expectation(polynomial, wide, share, axes, included, counted)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * spread
    return loss.astype(logits.dtype)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: Any = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    """What ``optax.losses.poly_loss_cross_entropy`` is called with, for those who come from there.

    It is :func:`poly_cross_entropy` with optax's arguments and default. The numbers are optax's where those are right;
    a ``where`` of the result's shape takes examples out, and logits of minus infinity give finite losses.

    Args:
        logits, labels, axis, where: as for :func:`poly_cross_entropy`.
        epsilon: the coefficient of ``1 - p``. An array, as in optax, holds one for each example (and no Poly-N): it
            broadcasts with the result.

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
    losses = partial(poly_cross_entropy, logits, floating("labels", labels), axis=axis, where=where)
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
    """The class probabilities of a model that was trained with a PolyLoss.

    A polynomial other than cross-entropy's is no proper loss: the softmax ``p`` that minimizes it is not the class
    posterior. The posterior is proportional to ``p / -slope(p)``, with ``slope = dL / d log p``; for Poly-1, to
    ``p / (1 + epsilon p)``. With ``epsilon=0`` this is :func:`jax.nn.softmax`. The order of the classes stays.

    Args:
        logits: of any shape and floating dtype.
        axis: the class axis, or several, or None for all. Default -1.
        epsilon, gamma, polynomial: those that the model was trained with; see :func:`poly_cross_entropy`. There is
            no posterior where the loss is not monotone (``epsilon < -1``): there the slope is taken as 0 from below.

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
    logits = floating("logits", logits)
    logp = jax.nn.log_softmax(at_least_float32(logits), axis)
    # log(1 - p), of which only one class can have more than half: what it leaves is the sum of the others.
    likely = logp > -math.log(2.0)
    others = jnp.where(likely, -jnp.inf, logp)
    # The maximum, where all others are masked: the gradient of the logarithm of an empty sum is nan.
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
    """As a tuple of numbers that are at least 0."""
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
    """Which classes are included, and which examples are counted, with as many dimensions as ``shape``; None: all."""
    if where is None:
        return None, None
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean; got {mask.dtype}. Write where.astype(bool).")
    examples = tuple(size for k, size in enumerate(shape) if k not in axes)
    if mask.shape == examples:
        return None, jnp.expand_dims(mask, axes)
    if mask.ndim != len(shape) or any(size not in (1, wanted) for size, wanted in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"where must have shape {examples}, for examples, or broadcast to {shape} with as many dimensions, for "
            f"classes; got shape {mask.shape}."
        )
    if all(mask.shape[k] == 1 for k in axes):
        return None, mask
    return mask, jnp.any(mask, axes, keepdims=True)


def _with_little_kept(function: Callable[..., Array]) -> Callable[..., Array]:
    """Differentiates in the way of ``function``, but keeps no more than its arguments and the rows' statistics.

    The compiler may still share the exponentials between forward and backward pass where they meet in one program: on
    a CPU they then are made once, in the memory that becomes the gradient. Value and gradient take the time of optax's
    cross-entropy of integer labels, which keeps them (0.91 to 1.06 of it, benchmarks/jax_losses.py). A custom rule for
    the gradient was no faster, and knows no forward mode.
    """
    policy = jax.checkpoint_policies.save_only_these_names("top", "total")
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


def _exponentials(logits: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The largest logit, ``exp(logits - largest)`` and their sum."""
    top = jnp.max(logits, axes, keepdims=True, initial=-jnp.inf)
    top = checkpoint_name(jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0)), "top")
    exponentials = jnp.exp(logits - top)
    return top, exponentials, checkpoint_name(jnp.sum(exponentials, axes, keepdims=True), "total")


def _masked(logits: Array, included: Array | None, counted: Array | None) -> Array:
    if included is not None:
        logits = jnp.where(included, logits, -jnp.inf)
    # Any finite number: so that what does not count is no nan that its zero gradient would be multiplied by.
    return logits if counted is None else jnp.where(counted, logits, 0.0)


def _of_labels(
    polynomial: Polynomial, logits: Array, labels: Array, axis: int, included: Array | None, counted: Array | None
) -> Array:
    """The loss of every example for its class index."""

    @_with_little_kept
    def negative_log_likelihood(logits: Array, labels: Array, included: Array | None, counted: Array | None) -> Array:
        masked = _masked(logits, included, counted)
        top, _, total = _exponentials(masked, (axis,))
        nll = jnp.log(total) - (_at_label(logits, labels, axis, jnp.nan) - top)
        if included is not None:
            nll = jnp.where(_at_label(jnp.broadcast_to(included, logits.shape), labels, axis, True), nll, 0.0)
        return jnp.squeeze(nll if counted is None else jnp.where(counted, nll, 0.0), axis)

    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    nll = negative_log_likelihood(logits, labels, included, counted)
    # What does not count has nll = 0 and so no loss: every term of the family vanishes at p = 1.
    return polynomial_at(polynomial, nll, -jnp.expm1(-nll))


def _at_label(array: Array, labels: Array, axis: int, outside: Any) -> Array:
    """The element of every example that its label points at, ``outside`` for labels out of range."""
    labels = jnp.expand_dims(labels, axis)
    inside = (labels >= 0) & (labels < array.shape[axis])
    spec = jax.typeof(array).sharding.spec
    if axis < len(spec) and spec[axis] is not None:
        # Where sharding is explicit, an axis that is spread over devices can't be indexed.
        chosen = jax.lax.broadcasted_iota(labels.dtype, array.shape, axis) == labels
        element = jnp.sum(jnp.where(chosen, array, 0), axis, keepdims=True, dtype=array.dtype)
    else:
        element = jnp.take_along_axis(array, jnp.where(inside, labels, 0), axis, mode="clip")
    return jnp.where(inside, element, outside)


def _expectation(
    polynomial: Polynomial,
    logits: Array,
    share: Array,
    axes: tuple[int, ...],
    included: Array | None,
    counted: Array | None,
) -> Array:
    """``sum_c share[c] * L(p[c])`` for every example, where 0 log 0 = 0."""

    @_with_little_kept
    def total_loss(logits: Array, share: Array, included: Array | None, counted: Array | None) -> Array:
        masked = _masked(logits, included, counted)
        top, exponentials, total = _exponentials(masked, axes)
        if included is not None:
            share = jnp.where(included, share, 0.0)
        nll = jnp.log(total) - (masked - top)
        absent = (share == 0.0) & (nll > float(jnp.finfo(nll.dtype).max) ** 0.5)
        # Up to one unit in the last place of 1, as -expm1(-nll) is; that takes as long as half of all the rest.
        q = jnp.where(absent, 0.0, 1.0 - exponentials / total)
        loss = jnp.sum(share * polynomial_at(polynomial, jnp.where(absent, 0.0, nll), q), axes, keepdims=True)
        return jnp.squeeze(loss if counted is None else jnp.where(counted, loss, 0.0), axes)

    return total_loss(logits, share, included, counted)
