"""Sigmoid losses, for binary and multi-label classification, and their posterior."""

from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.jax.likelihood import as_floating_array, log_density, polynomial_at, upcast
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments
from polylosses.two_sided import TwoSided, given_pair


def sigmoid_poly_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: Any = None,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | TwoSided | tuple[Polynomial, Polynomial] | None = None,
) -> Array:
    """PolyLoss of sigmoid probabilities, elementwise: ``optax.losses.sigmoid_binary_cross_entropy`` for the family.

    With ``p`` the sigmoid of ``logits``, ``y`` the label and ``L`` the polynomial (by default Poly-1,
    ``-log p + epsilon (1 - p)``), the loss of one element is ``alpha * y * L(p) + (1 - alpha) * (1 - y) * L(1 - p)``,
    without ``alpha`` if it is not given. With ``epsilon=0`` and ``gamma=2`` it is focal loss.

    Args:
        logits: of any shape and floating dtype; float16 and bfloat16 are computed in float32.
        labels: in [0, 1], hard or soft, numbers or booleans; broadcasts to ``logits``. For class indices (one
            class against all others), pass ``jax.nn.one_hot(labels, logits.shape[-1])``: jitted, it costs nothing.
        alpha: the class balance of focal loss, in [0, 1]: the weight of positives, ``1 - alpha`` being that of
            negatives; a number or an array. Default None: no weights.
        epsilon, gamma: as for :func:`poly_cross_entropy`.
        polynomial: as for :func:`poly_cross_entropy`; or a pair, of positives and negatives; or a
            :class:`polylosses.TwoSided`, such as ``polylosses.asymmetric()``, in which negatives may have a margin.

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
    pair = given_pair(epsilon, gamma, polynomial)
    if pair is None:
        of_yes = of_no = from_arguments(epsilon, gamma, polynomial)  # type: ignore[arg-type]
    else:
        of_yes, of_no = pair.positive, pair.negative
    margin = 0.0 if pair is None else pair.margin
    logits, labels = as_floating_array("logits", logits), jnp.asarray(labels)
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
        positive, negative = labels, 1.0 - labels
        if alpha is not None:
            positive, negative = alpha * positive, (1.0 - alpha) * negative
        return _weighted_loss(of_yes, logits, positive) + _weighted_loss(of_no, -logits, negative, margin)

    dtype, logits = logits.dtype, upcast(logits)
    # Rematerialized: the backward pass saves the arguments only.
    return jax.checkpoint(loss, prevent_cse=False)(logits, labels.astype(logits.dtype)).astype(dtype)  # type: ignore[no-any-return]


def poly_sigmoid(
    logits: ArrayLike, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Array:
    """The class posterior of a model that was trained with a sigmoid PolyLoss: the binary :func:`poly_softmax`.

    The odds of the posterior are ``p / -slope(p)`` to ``(1 - p) / -slope(1 - p)``, with ``p`` the sigmoid of ``logits``
    and ``slope = dL / d log p``. With ``epsilon=0`` this is :func:`jax.nn.sigmoid`.

    Args:
        logits: of any shape and floating dtype.
        epsilon, gamma, polynomial: those that the model was trained with, as for :func:`poly_softmax`. The effect of
            ``alpha`` is not undone.

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
    logits = as_floating_array("logits", logits)
    dtype, logits = logits.dtype, upcast(logits)
    logp, logq = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    log_odds = log_density(polynomial, logp, logq) - log_density(polynomial, logq, logp)
    return jax.nn.sigmoid(log_odds).astype(dtype)


def _weighted_loss(polynomial: Polynomial, logits: Array, target_weight: Array, margin: float = 0.0) -> Array:
    """``target_weight * L(p)``, ``1 - p`` being ``sigmoid(-logits)`` less ``margin``, or 0; 0 for a weight of 0."""
    floor = -(float(jnp.finfo(logits.dtype).max) ** 0.5)
    logits = jnp.where((target_weight == 0.0) & (logits < floor), 0.0, logits)
    if margin:
        q = jax.nn.relu(jax.nn.sigmoid(-logits) - margin)
        # Of two expressions, the one that keeps its digits; the other has finite derivatives there.
        likely = q < 0.5
        logp = jnp.where(likely, jnp.log1p(-jnp.where(likely, q, 0.5)), jnp.log(jax.nn.sigmoid(logits) + margin))
        return target_weight * polynomial_at(polynomial, -logp, q)
    return target_weight * polynomial_at(polynomial, -jax.nn.log_sigmoid(logits), jax.nn.sigmoid(-logits))
