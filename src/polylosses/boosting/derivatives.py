"""Gradient and curvature of a polynomial by the margins, and the posterior of these, on NumPy arrays.

Arrays here are class-major and float64, of shape (classes, rows): sums over classes are sums of contiguous rows. A
single margin ``z`` is two classes with the margins 0 and ``z``.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polylosses.polynomial import Polynomial, horner, unchecked

Array = NDArray[Any]

# Powers of q and their quotients stay finite from here on. A class that is this sure has a curvature of 0 in any case.
LEAST = 1e-290


class Softmax(NamedTuple):
    """The softmax of margins: ``log p``, ``p`` and ``q = 1 - p``, each with all its digits."""

    logp: Array
    p: Array
    q: Array


def softmax(margins: Array) -> Softmax:
    """Log-probabilities, probabilities and their complements of margins of any size, infinite ones included."""
    z = np.clip(np.ascontiguousarray(margins), -1e300, 1e300)
    with np.errstate(under="ignore"):
        shifted = z - z.max(0)
        relative = np.exp(shifted)
        others = _sum_of_others(relative)
        rest = others.min(0)  # beside the largest, which is 1
        return Softmax(shifted - np.log1p(rest), relative / (1.0 + rest), others / (1.0 + rest))


def gradient(polynomial: Polynomial, at: Softmax, labels: Array) -> Array:
    """``dL(p_y) / dz_k = slope(p_y) ([k = y] - p_k)``, for class indices ``labels``."""
    rows = np.arange(len(labels))
    logp, p, q = (of[labels, rows] for of in (_finite(at.logp), at.p, at.q))
    with np.errstate(under="ignore"):
        slope = _slope(polynomial, logp, p, q)
        result: Array = -slope * at.p
        result[labels, rows] = slope * q
    return result


def expected_curvature(polynomial: Polynomial, at: Softmax) -> Array:
    r"""The second derivatives ``d^2 / dz_k^2`` expected where the margins are right; never negative.

    Right means that they minimize the expected loss, so that the label has the probabilities :math:`\pi_c \propto p_c /
    -s_c` (:func:`log_posterior`). There :math:`\pi_c L'(p_c)` is the same for every class, hence the terms with second
    derivatives of ``p`` cancel, and what is left are squares, weighted by :math:`L'' \ge 0`:

    .. math:: h_k = \sum_c \pi_c L''(p_c) \Big(\frac{\partial p_c}{\partial z_k}\Big)^2
                  = \sum_c \pi_c\, p_c^2 L''(p_c)\, ([c = k] - p_k)^2

    For cross-entropy this is ``p q``; for two classes and Poly-1, ``p q (1 + e - 2 e p q) / (1 + 2 e p q)``.
    """
    with np.errstate(under="ignore"):
        spread = _spread(polynomial, at)
        result: Array = spread * at.q**2 + at.p**2 * _sum_of_others(spread)
    return result


def expected_hessian(polynomial: Polynomial, at: Softmax) -> Array:
    """The matrix of which :func:`expected_curvature` is the diagonal, of shape (classes, classes), for a single row."""
    with np.errstate(under="ignore"):
        spread, p = _spread(polynomial, at)[:, 0], at.p[:, 0]
        mixed = np.outer(spread, p)
        result: Array = spread.sum() * np.outer(p, p) - mixed - mixed.T
        np.fill_diagonal(result, expected_curvature(polynomial, at)[:, 0])
    return result


def exact_curvature(polynomial: Polynomial, at: Softmax, labels: Array) -> Array:
    """The second derivatives ``d^2 L(p_y) / dz_k^2``, with 0 in the place of those that are negative."""
    rows = np.arange(len(labels))
    logp, p, q = (of[labels, rows] for of in (_finite(at.logp), at.p, at.q))
    with np.errstate(under="ignore"):
        slope, bend = _slope(polynomial, logp, p, q), _bend(polynomial, logp, p, q)
        result: Array = bend * at.p**2 - slope * at.p * at.q
        result[labels, rows] = bend * q**2 - slope * p * q
    return np.maximum(result, 0.0)


def log_posterior(polynomial: Polynomial, at: Softmax) -> Array:
    """The logarithm of the class posterior, proportional to ``p / -slope``."""
    with np.errstate(under="ignore"):
        density = _log_density(polynomial, at)
        shifted: Array = density - density.max(0)
        result: Array = shifted - np.log1p(_sum_of_others(np.exp(shifted)).min(0))
    return result


def constant_optimum(polynomial: Polynomial, weights: Array) -> Array | None:
    r"""The log-probabilities ``log p`` that minimize ``sum_c weights[c] L(p_c)``, or None where none are finite.

    ``weights[c] * -L'(p_c)`` is the same for every class there. ``-L'`` decreases, so that every ``p_c`` is found by
    bisection for a given value of that number, and the number by bisection until the probabilities sum to 1.
    """

    def log_force(logp: Array) -> Array:
        """``log(weights[c] * -L'(p_c))``."""
        p, q = np.exp(logp), -np.expm1(logp)
        result: Array = np.log(weights) - _log_density(polynomial, Softmax(logp, p, q))
        return result

    def log_probabilities(level: float) -> Array:
        low, high = np.full(len(weights), LOWEST), np.full(len(weights), -LEAST)
        for _ in range(64):
            middle = 0.5 * (low + high)
            above = log_force(middle) > level
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        result: Array = 0.5 * (low + high)
        return result

    # With these forces all classes have at least, and at most, their share of 1.
    with np.errstate(under="ignore"):
        uniform = log_force(np.full(len(weights), -math.log(len(weights))))
        low, high = float(uniform.min()), float(uniform.max())
        for _ in range(64):
            level = 0.5 * (low + high)
            if np.exp(log_probabilities(level)).sum() > 1.0:
                low = level
            else:
                high = level
        level = 0.5 * (low + high)
        logp = log_probabilities(level)
        # It isn't where some force is at its bound, or where the loss is not monotone.
        slope = _slope(polynomial, logp, np.exp(logp), -np.expm1(logp))
        found = np.abs(log_force(logp) - level).max() < 1e-6 and (slope < 0).all()
    return logp if found else None


LOWEST = -700.0


def _log_density(polynomial: Polynomial, at: Softmax) -> Array:
    """The logarithm of ``p / -slope``, that is of ``1 / -L'(p)``."""
    logp, q = _finite(at.logp), np.maximum(at.q, LEAST)
    # -slope = steepness * q^gamma; where there is no logarithm, p cancels.
    if polynomial.log_weight == 0.0:
        steepness = _steepness_over_p(polynomial, q)
        density = np.where(at.logp < -1e299, -np.inf, 0.0)
    else:
        steepness = _focal_steepness(polynomial, logp, at.p, q)
        density = logp
    # As for poly_softmax: a slope that is 0 or positive is taken as 0 from below.
    least = 2.0 * np.finfo(float).tiny ** 0.5
    result: Array = density - np.log(np.maximum(steepness, least))
    return result - polynomial.gamma * np.log(q) if polynomial.gamma else result


def _slope(polynomial: Polynomial, logp: Array, p: Array, q: Array) -> Array:
    """:meth:`Polynomial.slope`, with all its digits where terms cancel: in focal loss with ``epsilon = -1``."""
    q = np.maximum(q, LEAST)
    if polynomial.log_weight == 0.0:
        steepness = p * _steepness_over_p(polynomial, q)
    else:
        steepness = _focal_steepness(polynomial, logp, p, q)
    result: Array = -(q**polynomial.gamma) * steepness
    return result


def _focal_steepness(polynomial: Polynomial, logp: Array, p: Array, q: Array) -> Array:
    """``-slope / q^gamma``."""
    steepness = _steepness(polynomial, logp, p, q)
    return steepness + polynomial.gamma * p * _value_over_q(polynomial, logp, q) if polynomial.gamma else steepness


def _steepness_over_p(polynomial: Polynomial, q: Array) -> Array:
    """``-slope / (p q^gamma)`` of a loss without a logarithm."""
    scaled = [(j + polynomial.gamma) * c for j, c in enumerate(polynomial.coefficients or (0.0,), start=1)]
    result: Array = horner(scaled, q) + 0.0 * q
    return result


def _spread(polynomial: Polynomial, at: Softmax) -> Array:
    """``pi_c p_c^2 L''(p_c)`` of every class: its posterior times its part of the expected curvature."""
    logp, q = _finite(at.logp), np.maximum(at.q, LEAST)
    # p^2 L'' is the difference of the second and the first derivative by log p, without the terms that cancel in it.
    coefficients, gamma, log_weight = polynomial.coefficients, polynomial.gamma, polynomial.log_weight
    bend = q**gamma * (at.p**2 * horner(_second(coefficients), q) + log_weight)
    if gamma:
        over_q, steepness = _value_over_q(polynomial, logp, q), _steepness(polynomial, logp, at.p, q)
        bend = bend + gamma * q ** (gamma - 1.0) * at.p * ((gamma - 1.0) * at.p * over_q + 2.0 * steepness)
    density = _log_density(polynomial, at)
    posterior = np.exp(density - density.max(0))
    result: Array = posterior / posterior.sum(0) * np.maximum(bend, 0.0)
    return result


def _bend(polynomial: Polynomial, logp: Array, p: Array, q: Array) -> Array:
    """The second derivative of the loss by ``log p``."""
    q = np.maximum(q, LEAST)
    coefficients, gamma = polynomial.coefficients, polynomial.gamma
    bend = q**gamma * (p * horner(_second(coefficients), q) - horner(_first(coefficients), q))
    if gamma:
        over_q, steepness = _value_over_q(polynomial, logp, q), _steepness(polynomial, logp, p, q)
        bend = bend + gamma * q ** (gamma - 1.0) * (2.0 * steepness - (q - (gamma - 1.0) * p) * over_q)
    result: Array = p * bend
    return result


def _steepness(polynomial: Polynomial, logp: Array, p: Array, q: Array) -> Array:
    """Minus the slope of the loss without its focal factor, ``log_weight + p sum_j j c_j q^(j-1)``."""
    if polynomial.log_weight == 0.0:
        result: Array = p * horner(_first(polynomial.coefficients), q)
    else:  # terms may cancel
        result = -unchecked(polynomial.coefficients, 0.0, polynomial.log_weight).slope(logp, q)
    return result


def _value_over_q(polynomial: Polynomial, logp: Array, q: Array) -> Array:
    """The loss without its focal factor, over ``q``: ``-log_weight log p / q + sum_j c_j q^(j-1)``."""
    tail = np.where(q < np.finfo(float).eps ** 0.5, 0.5 * q * q, -logp - q)
    result: Array = unchecked(polynomial.coefficients, -1.0, polynomial.log_weight).value_of_tail(q, tail)
    return result


def _first(coefficients: tuple[float, ...]) -> list[float]:
    """The coefficients of ``d/dq sum_j c_j q^j``, in powers of ``q`` from 0 on."""
    return [j * c for j, c in enumerate(coefficients, start=1)] or [0.0]


def _second(coefficients: tuple[float, ...]) -> list[float]:
    """The coefficients of ``d^2/dq^2 sum_j c_j q^j``."""
    return [j * (j - 1) * c for j, c in enumerate(coefficients, start=1)][1:] or [0.0]


def _finite(logp: Array) -> Array:
    """Log-probabilities whose product with a probability that has underflowed is 0 and not nan."""
    return np.maximum(logp, -1e300)


def _sum_of_others(values: Array) -> Array:
    """The sum of the other classes' values, those before and those after, without a subtraction."""
    result, after = np.zeros_like(values), np.zeros_like(values[0])
    # A loop over the classes: cumsum takes several times as long along the first axis.
    for k in range(1, len(values)):
        result[k] = result[k - 1] + values[k - 1]
    for k in reversed(range(len(values))):
        result[k] += after
        after += values[k]
    return result
