"""The sigmoid losses: every class is a yes or no of its own."""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.jax.likelihood import at_least_float32, floating, log_density, polynomial_at
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments


def sigmoid_poly_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: Any = None,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Array:
    """PolyLoss of sigmoid probabilities, elementwise: ``optax.losses.sigmoid_binary_cross_entropy`` for the family.

    With ``p`` the sigmoid of ``logits``, ``y`` the label and ``L`` the polynomial (by default Poly-1,
    ``-log p + epsilon (1 - p)``), the loss of one element is ``alpha * y * L(p) + (1 - alpha) * (1 - y) * L(1 - p)``,
    without ``alpha`` if it is not given. With ``epsilon=0`` and ``gamma=2`` it is focal loss.

    Args:
        logits: of any shape and floating dtype; float16 and bfloat16 are computed in float32.
        labels: in [0, 1], hard or soft, numbers or booleans; broadcasts to ``logits``. For class indices, one class
            against all, write ``jax.nn.one_hot(labels, logits.shape[-1])``: jitted, it costs nothing.
        alpha: in [0, 1]: focal loss's balance, a factor ``alpha`` for positives and ``1 - alpha`` for negatives; a
            number or an array. Default None: neither.
        epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`.

    Returns:
        The loss of every element, in the shape and dtype of ``logits``.

    Raises:
        TypeError: ``logits`` are not floating-point, or ``labels`` are complex; otherwise as for
            :func:`poly_cross_entropy`.
        ValueError: ``labels`` do not broadcast to ``logits``; ``alpha`` is outside [0, 1].

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), section 5.2 and the listings for focal loss; Lin et al., ICCV
    2017 (arXiv 1708.02002), equation 5, for ``alpha``.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> logits, labels = jnp.array([[2.0, -1.0], [0.0, 3.0]]), jnp.array([[1, 0], [1, 0]])
        >>> print(sigmoid_poly_cross_entropy(logits, labels, epsilon=2.0))
        [[0.3653 0.8511]
         [1.6931 4.9537]]
        >>> print(sigmoid_poly_cross_entropy(logits, labels, alpha=0.25, gamma=2.0))
        [[0.0009 0.0316]
         [0.0746 2.723 ]]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    logits, labels = floating("logits", logits), jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.complexfloating):
        raise TypeError(f"labels must be real; got {labels.dtype}.")
    if labels.ndim > logits.ndim or any(
        size not in (1, wanted) for size, wanted in zip(labels.shape[::-1], logits.shape[::-1], strict=False)
    ):
        raise ValueError(f"labels must broadcast to the shape of logits, {logits.shape}; got shape {labels.shape}.")
    if isinstance(alpha, bool | str) or not (alpha is None or isinstance(alpha, Real) or hasattr(alpha, "dtype")):
        raise TypeError(f"alpha must be a number between 0 and 1, an array, or None; got {alpha!r}.")
    if isinstance(alpha, Real) and not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(f"alpha must be between 0 and 1, or None for no balance; got {alpha!r}.")

    def loss(logits: Array, labels: Array) -> Array:
        yes, no = labels, 1.0 - labels
        if alpha is not None:
            yes, no = alpha * yes, (1.0 - alpha) * no
        return _side(polynomial, logits, yes) + _side(polynomial, -logits, no)

    wide = at_least_float32(logits)
    # Nothing but the arguments is kept for the backward pass.
    return jax.checkpoint(loss, prevent_cse=False)(wide, labels.astype(wide.dtype)).astype(logits.dtype)  # type: ignore[no-any-return]


def poly_sigmoid(
    logits: ArrayLike, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Array:
    """The probabilities of a model that was trained with a PolyLoss of sigmoids: :func:`poly_softmax` for yes or no.

    The probability of yes is to that of no as ``p / -slope(p)`` is to the same of ``1 - p``, with
    ``slope = dL / d log p``. With ``epsilon=0`` this is :func:`jax.nn.sigmoid`.

    Args:
        logits: of any shape and floating dtype.
        epsilon, gamma, polynomial: those that the model was trained with, as for :func:`poly_softmax`. What ``alpha``
            did stays in the result, as it does in a sigmoid.

    Returns:
        Probabilities, in the shape and dtype of ``logits``.

    Raises:
        TypeError: ``logits`` is not a floating-point array; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> print(poly_sigmoid(jnp.array([2.0, 0.0, -2.0]), epsilon=2.0))
        [0.7682 0.5    0.2318]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    logits = floating("logits", logits)
    wide = at_least_float32(logits)
    logp, logq = jax.nn.log_sigmoid(wide), jax.nn.log_sigmoid(-wide)
    yes, no = log_density(polynomial, logp, logq), log_density(polynomial, logq, logp)
    return jax.nn.sigmoid(yes - no).astype(logits.dtype)


def _side(polynomial: Polynomial, logits: Array, share: Array) -> Array:
    """``share * L(sigmoid(logits))``, where what has no share counts nothing, however large its loss."""
    logits = jnp.where((share == 0.0) & (logits < -(float(jnp.finfo(logits.dtype).max) ** 0.5)), 0.0, logits)
    return share * polynomial_at(polynomial, -jax.nn.log_sigmoid(logits), jax.nn.sigmoid(-logits))
