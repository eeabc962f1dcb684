"""PolyLoss from negative log-likelihoods, and what the losses of all links do alike."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, horner, is_zero, unchecked


def _unflatten(_: None, numbers: Any) -> Polynomial:
    # Without the checks of Polynomial(): transformations put more than numbers into a tree.
    return unchecked(*numbers)


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
    """The polynomial at ``nll = -log p`` and ``q = 1 - p``, with first and second derivatives that stay finite."""
    gamma, log_weight = polynomial.gamma, polynomial.log_weight
    if is_zero(gamma) and isinstance(log_weight, float):
        loss: Array = polynomial.value(-nll, q)
        return loss
    # The derivatives of q^gamma are infinite at q = 0 for small gamma: below the smallest normal number the loss is 0.
    # Up to its root the second one overflows, which the chain rule multiplies by a square that is as small: there, the
    # power is that of q / root. Where p is 0 in this dtype, q is constant, since q' = 0 would be multiplied by an nll
    # that may overflow. The conditions let nan stay nan.
    tiny = float(jnp.finfo(q.dtype).tiny)
    root = tiny**0.5
    certain, infinite = q < tiny, nll == jnp.inf
    small = (q < root) & ~certain
    inside = jnp.where(certain | (nll > -math.log(tiny)), 1.0, q)
    power = jnp.where(small, inside / root, inside) ** gamma * jnp.where(small, root**gamma, 1.0)
    unfocused = unchecked(polynomial.coefficients, 0.0, log_weight)
    loss = power * unfocused.value(-jnp.where(infinite, 1.0, nll), inside)
    loss = loss + log_weight * jnp.where(infinite & (log_weight != 0), nll, 0.0)  # a traced 0 times infinity is 0
    first = log_weight + (polynomial.coefficients[0] if polynomial.coefficients else 0.0)
    return jnp.where(certain, jnp.where(gamma == 0, first * q, 0.0), loss)


def log_density(polynomial: Polynomial, logp: Array, logq: Array) -> Array:
    """The logarithm of ``p / -slope``, which the posterior is proportional to, from ``log p`` and ``log(1 - p)``.

    Per unit of p, since ``1 - q`` would be noise where p is small, and with ``S = sum_j c_j q^j``:
    ``-slope / p = q^gamma (log_weight / p + S' + gamma (S - log_weight log p) / q)``.
    """
    limits = jnp.finfo(logp.dtype)
    tiny, least = float(limits.tiny), -(float(limits.max) ** 0.5)
    gamma, log_weight, coefficients = polynomial.gamma, polynomial.log_weight, polynomial.coefficients or (0.0,)
    # Masked classes have log p = -inf, and log q is -inf where all others are masked.
    logp_inside, logq = jnp.maximum(logp, least), jnp.maximum(logq, least)
    p, q = jnp.exp(logp_inside), jnp.exp(logq)
    powers = horner([(j + gamma) * c for j, c in enumerate(coefficients, start=1)], q)
    # -log p / q as a series near q = 0, where the second derivative of the quotient overflows.
    small = q < 1e-5
    near = jnp.where(small | (q >= 0.5), 0.25, q)
    nll_by_q = jnp.where(q < 0.5, -jnp.log1p(-near) / near, -logp_inside / jnp.where(q < 0.5, 1.0, q))
    by_log = 1.0 + gamma * p * jnp.where(small, 1.0 + q * (1 / 2 + q / 3), nll_by_q)
    # All of it times p, where there is a logarithm; else the factor p is in both and cancels. Near p = 1 the sum of the
    # others may cancel.
    has_log = log_weight != 0
    near_one = (log_weight + powers) - q * powers + log_weight * (by_log - 1.0)
    steepness = jnp.where(has_log, jnp.where(q < 0.5, near_one, log_weight * by_log + p * powers), powers)
    weight = jnp.where(has_log | (logp == -jnp.inf), logp, 0.0)
    # The slope of some losses is 0 at p = 1; the floor leaves such a class all the probability. The square of 1 over
    # it, which the second derivative holds, is finite.
    density: Array = weight - jnp.log(jnp.maximum(steepness, 2.0 * tiny**0.5)) - gamma * logq
    return density


def floating(name: str, array: ArrayLike) -> Array:
    """As an array; raises unless it is of a floating dtype."""
    result = jnp.asarray(array)
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array; got {result.dtype}.")
    return result


def at_least_float32(array: Array) -> Array:
    """What low precision is computed in."""
    return array if jnp.finfo(array.dtype).bits >= 32 else array.astype(jnp.float32)
