"""The polynomial at probabilities with finite derivatives, PolyLoss from negative log-likelihoods, and helpers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, horner, is_zero, unchecked


def _unflatten(_: None, leaves: Any) -> Polynomial:
    # Unchecked, since transformations also unflatten leaves that are not numbers.
    return unchecked(*leaves)


# As a pytree, a Polynomial can be an argument of a function that is jitted, vmapped or differentiated.
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
    """PolyLoss from negative log-likelihoods, elementwise: works with any cross-entropy that is not reduced.

    It evaluates the polynomial at ``p = exp(-nll)``.

    Args:
        nll: negative log-likelihoods of the true class, at least 0, of any shape. The loss of 0 is 0.
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
    nll = as_floating_array("nll", nll)
    polynomial = from_arguments(epsilon, gamma, polynomial)
    dtype, nll = nll.dtype, upcast(nll)
    return polynomial_at(polynomial, nll, -jnp.expm1(-nll)).astype(dtype)


def polynomial_at(polynomial: Polynomial, nll: Array, q: Array) -> Array:
    """Evaluates the polynomial at ``nll = -log p`` and ``q = 1 - p``, with finite first and second derivatives."""
    gamma, log_weight = polynomial.gamma, polynomial.log_weight
    if is_zero(gamma) and isinstance(log_weight, float):
        loss: Array = polynomial.value(-nll, q)
        return loss
    # The derivatives of q^gamma are infinite at q = 0 for small gamma: the loss is set to 0 below the smallest normal
    # number. Up to its square root, the second derivative overflows, and the chain rule multiplies it by q'^2, which is
    # as small: there, q is rescaled before the power. Where p underflows, q is replaced by the constant 1, since q' = 0
    # would be multiplied by an nll that may overflow. The comparisons are such that nan stays nan.
    tiny = float(jnp.finfo(q.dtype).tiny)
    sqrt_tiny = tiny**0.5
    certain, infinite = q < tiny, nll == jnp.inf
    small = (q < sqrt_tiny) & ~certain
    safe_q = jnp.where(certain | (nll > -math.log(tiny)), 1.0, q)
    focal_factor = jnp.where(small, safe_q / sqrt_tiny, safe_q) ** gamma * jnp.where(small, sqrt_tiny**gamma, 1.0)
    unfocused = unchecked(polynomial.coefficients, 0.0, log_weight)
    loss = focal_factor * unfocused.value(-jnp.where(infinite, 1.0, nll), safe_q)
    # A log_weight of 0 may be traced, and 0 * inf would be nan.
    loss = loss + log_weight * jnp.where(infinite & (log_weight != 0), nll, 0.0)
    leading = log_weight + (polynomial.coefficients[0] if polynomial.coefficients else 0.0)
    return jnp.where(certain, jnp.where(gamma == 0, leading * q, 0.0), loss)


def log_density(polynomial: Polynomial, logp: Array, logq: Array) -> Array:
    """The unnormalized log-posterior ``log(p / -slope)``, from ``log p`` and ``log(1 - p)``.

    With ``S = sum_j c_j q^j``,
    ``-slope / p = q^gamma (log_weight / p + S' + gamma (S - log_weight log p) / q)``.
    The slope is divided by ``p`` analytically, since ``1 - q`` is rounding error where ``p`` is small.
    """
    limits = jnp.finfo(logp.dtype)
    tiny, floor = float(limits.tiny), -(float(limits.max) ** 0.5)
    gamma, log_weight, coefficients = polynomial.gamma, polynomial.log_weight, polynomial.coefficients or (0.0,)
    # Masked classes have log p = -inf, and log q is -inf where all other classes are masked.
    finite_logp, logq = jnp.maximum(logp, floor), jnp.maximum(logq, floor)
    p, q = jnp.exp(finite_logp), jnp.exp(logq)
    powers = horner([(j + gamma) * c for j, c in enumerate(coefficients, start=1)], q)
    # -log p / q as a series near q = 0, where the second derivative of the quotient overflows.
    small = q < 1e-5
    safe_q = jnp.where(small | (q >= 0.5), 0.25, q)
    nll_over_q = jnp.where(q < 0.5, -jnp.log1p(-safe_q) / safe_q, -finite_logp / jnp.where(q < 0.5, 1.0, q))
    log_factor = 1.0 + gamma * p * jnp.where(small, 1.0 + q * (1 / 2 + q / 3), nll_over_q)
    # With a logarithm, steepness is -slope / q^gamma. Without one, the slope has a factor p that cancels in p / -slope.
    # Near p = 1, log_weight and powers may cancel, so they are added first.
    has_log = log_weight != 0
    near_one = (log_weight + powers) - q * powers + log_weight * (log_factor - 1.0)
    steepness = jnp.where(has_log, jnp.where(q < 0.5, near_one, log_weight * log_factor + p * powers), powers)
    numerator = jnp.where(has_log | (logp == -jnp.inf), logp, 0.0)
    # The slope of some losses is 0 at p = 1: the lower bound gives such a class all the probability. The second
    # derivative holds the square of its reciprocal, which is finite.
    density: Array = numerator - jnp.log(jnp.maximum(steepness, 2.0 * tiny**0.5)) - gamma * logq
    return density


def as_floating_array(name: str, array: ArrayLike) -> Array:
    """Converts an argument to an array; raises unless its dtype is floating-point."""
    result = jnp.asarray(array)
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array; got {result.dtype}.")
    return result


def upcast(array: Array) -> Array:
    """Casts float16 and bfloat16 to float32, which their losses are computed in."""
    return array if jnp.finfo(array.dtype).bits >= 32 else array.astype(jnp.float32)
