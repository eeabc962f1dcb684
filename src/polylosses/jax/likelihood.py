"""PolyLoss from negative log-likelihoods, and what the losses of all links do alike."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, horner, is_zero


def _unflatten(_: None, numbers: Any) -> Polynomial:
    # Without the checks of Polynomial(): transformations put more than numbers into a tree.
    polynomial = object.__new__(Polynomial)
    for name, number in zip(("coefficients", "gamma", "log_weight"), numbers, strict=True):
        object.__setattr__(polynomial, name, number)
    return polynomial


# So that a Polynomial can be an argument of what is jitted, mapped or differentiated.
jax.tree_util.register_pytree_with_keys(
    Polynomial,
    lambda polynomial: (
        tuple((jax.tree_util.GetAttrKey(name), number) for name, number in vars(polynomial).items()),
        None,
    ),
    _unflatten,
    lambda polynomial: (tuple(vars(polynomial).values()), None),
)


def poly_from_nll(
    nll: ArrayLike, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Array:
    """PolyLoss from negative log-likelihoods, elementwise: for any cross-entropy that gives one number per example.

    ``p = exp(-nll)``, then the polynomial; that is all that sets PolyLoss apart from cross-entropy.

    Args:
        nll: negative log-likelihoods of the true class, at least 0, of any shape. 0 gives 0.
        epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`.

    Returns:
        The losses, in the shape and dtype of ``nll``; float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: ``nll`` is not a floating-point array; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> import optax
        >>> logits, labels = jnp.array([[4.0, 2.0, 1.0]]), jnp.array([0])
        >>> poly_from_nll(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels), epsilon=2.0)
        Array([0.4823], dtype=float32)
    """
    nll = floating("nll", nll)
    polynomial = from_arguments(epsilon, gamma, polynomial)
    wide = at_least_float32(nll)
    return polynomial_at(polynomial, wide, -jnp.expm1(-wide)).astype(nll.dtype)


def polynomial_at(polynomial: Polynomial, nll: Array, q: Array) -> Array:
    """The polynomial at ``nll = -log p`` and ``q = 1 - p``, with derivatives that stay finite at p = 0 and p = 1."""
    gamma, log_weight = polynomial.gamma, polynomial.log_weight
    if is_zero(gamma) and isinstance(log_weight, float):
        loss: Array = polynomial.value(-nll, q)
        return loss
    # The derivative of q^gamma is infinite at q = 0 for gamma < 1, and overflows below the smallest normal number;
    # at p = 0 an infinite logarithm would meet q' = 0. Either gives nan, in forward mode too, unless another number
    # takes the place of q or of the logarithm. The conditions let nan stay nan.
    certain, impossible = q < jnp.finfo(q.dtype).tiny, nll == jnp.inf
    plain = _unflatten(None, (polynomial.coefficients, 0.0, log_weight))
    power = jnp.where(certain, jnp.where(gamma == 0, 1.0, 0.0), jnp.where(certain, 1.0, q) ** gamma)
    loss = power * plain.value(-jnp.where(impossible, 1.0, nll), q)
    result: Array = loss + log_weight * jnp.where(impossible & (log_weight != 0), nll, 0.0)
    return result


def log_density(polynomial: Polynomial, logp: Array, q: Array) -> Array:
    """The logarithm of ``p / -slope``, which the posterior is proportional to."""
    limits = jnp.finfo(logp.dtype)
    gamma, log_weight, coefficients = polynomial.gamma, polynomial.log_weight, polynomial.coefficients or (0.0,)
    # Per unit of p, since 1 - q would be noise where p is small:
    # -slope / p = q^gamma (log_weight / p + S' + gamma (S - log_weight log p) / q),  S = sum_j c_j q^j
    powers = horner([(j + gamma) * c for j, c in enumerate(coefficients, start=1)], q)
    logp_inside = jnp.maximum(logp, -(float(limits.max) ** 0.5))
    by_log = 1.0 - gamma * jnp.exp(logp_inside) * logp_inside / jnp.maximum(q, limits.tiny)
    # All of it times p, where there is a logarithm; else the factor p is in both and cancels.
    has_log = log_weight != 0
    p = jnp.where(has_log, jnp.exp(logp), 1.0)
    steepness = q**gamma * (log_weight * by_log + p * powers)
    weight = jnp.where(has_log | (logp == -jnp.inf), logp, 0.0)
    # Where p rounds to 1 the slope of some losses is 0; the floor leaves such a class all the probability.
    return weight - jnp.log(jnp.maximum(steepness, limits.tiny))


def floating(name: str, array: ArrayLike) -> Array:
    """As an array; raises unless it is of a floating dtype."""
    result = jnp.asarray(array)
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array; got {result.dtype}.")
    return result


def at_least_float32(array: Array) -> Array:
    """What low precision is computed in."""
    return array if jnp.finfo(array.dtype).bits >= 32 else array.astype(jnp.float32)
