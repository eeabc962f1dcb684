"""Gradient and curvature of a polynomial by the margins, and the posterior of these, on NumPy arrays.

Arrays here are class-major and float64, of shape (classes, rows): sums over classes are sums of contiguous rows. A
single margin ``z`` is two classes with the margins 0 and ``z``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polylosses.polynomial import Polynomial, horner, unchecked

Array = NDArray[Any]

# Powers of q and their quotients stay finite from here on. A class that is this sure has a curvature of 0 in any case.
LEAST = 1e-290

# A slope that is 0 or positive is taken as this much below 0, as for poly_softmax.
LEAST_FORCE = 2.0 * np.finfo(float).tiny ** 0.5

# What the margin of a class is below the largest one, if it is -inf, is below this.
MASKED = -1e299

# Log-probabilities of a starting score are searched for from here on: e^-700 is a normal number.
LOWEST = -700.0


class Softmax(NamedTuple):
    """The softmax of margins: ``p`` and ``q = 1 - p``, with all their digits, and what ``log p`` is computed from."""

    p: Array
    q: Array
    relative: Array
    rest: Array | float = 0.0

    @property
    def logp(self) -> Array:
        """``log p``, with all its digits; not finite where the margin is not."""
        result: Array = self.relative - np.log1p(self.rest)
        return result


def softmax(margins: Array) -> Softmax:
    """Probabilities, their complements and their logarithms, for margins of any size, infinite ones included."""
    margins = np.ascontiguousarray(margins)
    largest = margins.max(0)
    if not (np.abs(largest) < 1e300).all():
        margins = np.clip(margins, -1e300, 1e300)
        largest = margins.max(0)
    with np.errstate(under="ignore", over="ignore"):
        shifted = margins - largest
        relative = np.exp(shifted)
        rest, is_largest = _rest(shifted, relative)
        scale = 1.0 / (1.0 + rest)
        p = relative * scale
        q = 1.0 - p
        np.copyto(q, rest * scale, where=is_largest)
        return Softmax(p, q, shifted, rest)


def _rest(shifted: Array, exponentials: Array) -> tuple[Array, Array]:
    """The sum of exponentials but for a largest one, which is 1, with all its digits; and where the largest are."""
    is_largest = shifted == 0.0
    total = exponentials.sum(0)
    rest = np.where(total < 1.5, np.where(is_largest, 0.0, exponentials).sum(0), total - 1.0)
    return rest, is_largest


def derivatives(polynomial: Polynomial, margins: Array, labels: Array, curvature: str) -> tuple[Array, Array]:
    """The gradient and the curvature, of shape (classes, rows), for class indices ``labels``.

    Args:
        polynomial: the loss.
        margins: shape (classes, rows).
        labels: shape (rows,).
        curvature: one of ``CURVATURES``.
    """
    at = softmax(margins)
    first = gradient(polynomial, at, labels)
    if curvature == "exact":
        return first, exact_curvature(polynomial, at, labels)
    return first, at.p * at.q if curvature == "cross-entropy" else expected_curvature(polynomial, at)


def binary_derivatives(polynomial: Polynomial, margins: Array, yes: Array, curvature: str) -> tuple[Array, Array]:
    """The same for two classes with the margins 0 and ``margins``, by the latter; all of one shape.

    It takes a third of the time of the other for two classes: 5 ms for 100,000 rows, of Poly-1.
    """
    with np.errstate(under="ignore"):
        of_label, of_other = _of_two(polynomial, np.where(yes, margins, -margins))
        _, p, q = of_label
        slope = _slope(polynomial, *of_label)
        first = slope * q
        if curvature == "exact":
            second = np.maximum(_bend(polynomial, *of_label) * q**2 - first * p, 0.0)
        elif curvature == "cross-entropy":
            second = p * q
        else:
            # As expected_curvature, with the posterior proportional to p / -slope.
            force, other = np.maximum(-slope, LEAST), np.maximum(-_slope(polynomial, *of_other), LEAST)
            second = q * other * _convexity(polynomial, *of_label) + p * force * _convexity(polynomial, *of_other)
            second = np.maximum(second, force * other) * (p * q / (p * other + q * force))
    return np.where(yes, first, -first), second


def binary_log_posterior(polynomial: Polynomial, margins: Array) -> tuple[Array, Array]:
    """The logarithms of the class posterior of ``margins`` and of 0, of one shape: of the classes 1 and 0."""
    with np.errstate(under="ignore"):
        of_one, of_zero = _of_two(polynomial, margins)
        # The posterior's margin is a difference of log(p / -slope); p and q^gamma in it give multiples of the margin.
        if polynomial.log_weight == 0.0:
            steepness = (_steepness_over_p(polynomial, q) for _, _, q in (of_one, of_zero))
            scale = polynomial.gamma
        else:
            steepness = (_focal_steepness(polynomial, *of) for of in (of_one, of_zero))
            scale = 1.0 + polynomial.gamma
        one, zero = (np.maximum(of, LEAST_FORCE) for of in steepness)
        margin = np.where(np.isinf(margins), margins, scale * np.clip(margins, -1e300, 1e300) + np.log(zero / one))
        return -np.logaddexp(0.0, -margin), -np.logaddexp(0.0, margin)


def _of_two(polynomial: Polynomial, margins: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    """``log p`` (if the loss has it in its slope), ``p`` and ``q``, of ``margins`` against 0 and the other way round.

    With margins beyond 345, which are clipped, products of three of these would not be finite, or be 0.
    """
    z = np.clip(margins, -345.0, 345.0)
    relative = np.exp(-np.abs(z))
    larger = 1.0 / (1.0 + relative)
    smaller, positive = relative * larger, z > 0.0
    p, q = np.where(positive, larger, smaller), np.where(positive, smaller, larger)
    if not polynomial.gamma:
        return (p, p, q), (q, q, p)
    rest = np.log1p(relative)
    return (np.minimum(z, 0.0) - rest, p, q), (np.minimum(-z, 0.0) - rest, q, p)


def gradient(polynomial: Polynomial, at: Softmax, labels: Array) -> Array:
    """``dL(p_y) / dz_k = slope(p_y) ([k = y] - p_k)``, for class indices ``labels``."""
    logp, p, q, of_labels = _of(labels, at, polynomial)
    with np.errstate(under="ignore"):
        slope = _slope(polynomial, logp, p, q)
        result: Array = -slope * at.p
        result.ravel()[of_labels] = slope * q
    return result


def expected_curvature(polynomial: Polynomial, at: Softmax) -> Array:
    r"""The larger of two expectations where the margins are right: of the second derivative, and of half the gradient.

    Right means that they minimize the expected loss, so that the label has the probabilities :math:`\pi_c \propto p_c /
    -s_c` (:func:`log_posterior`). There :math:`f = -\pi_c L'(p_c)` is the same for every class, hence the terms with
    second derivatives of ``p`` cancel, and what is left are squares, weighted by :math:`L'' \ge 0`:

    .. math:: E \frac{d^2 L}{dz_k^2} = \sum_c \pi_c L''(p_c) \Big(\frac{\partial p_c}{\partial z_k}\Big)^2
                  = \sum_c \pi_c\, p_c^2 L''(p_c)\, ([c = k] - p_k)^2, \qquad
              \tfrac12 E \Big|\frac{dL}{dz_k}\Big| = f p_k (1 - p_k)

    Both are ``p q`` for cross-entropy. For two classes and Poly-1 they are ``p q (1 + e - 2 e p q) / (1 + 2 e p q)``
    and ``p q (1 + e + e^2 p q) / (1 + 2 e p q)``. With the first alone, steps are too long where epsilon is large: the
    training loss rose in 14 of 98 trainings in LightGBM, and in none with the larger
    (benchmarks/boosting_curvature.py).
    """
    with np.errstate(under="ignore"):
        spread, force = _spread(polynomial, at)
        result: Array = np.maximum(_second_derivative(spread, at), force * at.p * at.q)
    return result


def _second_derivative(spread: Array, at: Softmax) -> Array:
    """The expected one."""
    # The difference has its digits where p is small.
    others = spread.sum(0) - spread
    sure = at.p > 0.5
    np.copyto(others, np.where(sure, 0.0, spread).sum(0), where=sure)
    result: Array = spread * at.q**2 + at.p**2 * others
    return result


def softmax_gradient(polynomial: Polynomial, margins: Sequence[float], label: int) -> list[float]:
    """:func:`gradient` of a single row, in Python's own numbers: for few classes, a call of NumPy takes longer."""
    largest = max(margins)
    relative = [math.exp(z - largest) for z in margins]
    others = math.fsum(relative[:label] + relative[label + 1 :])
    total = others + relative[label]
    p, q = relative[label] / total, others / total
    slope = float(_slope(polynomial, max(margins[label] - largest - math.log(total), -1e300), p, q))
    result = [-slope * one / total for one in relative]
    result[label] = slope * q
    return result


def expected_hessian(polynomial: Polynomial, margins: Array) -> list[list[float]]:
    """The matrix of :func:`expected_curvature`, of shape (classes, classes), for a single row.

    Of the expected second derivatives, or ``f (diag(p) - p p^T)`` where the sum of its diagonal is larger.
    """
    at = softmax(margins[:, None])
    with np.errstate(under="ignore"):
        spread, force = _spread(polynomial, at)
        first, second = _second_derivative(spread, at)[:, 0], (force * at.p * at.q)[:, 0]
    spreads, p = spread[:, 0].tolist(), at.p[:, 0].tolist()
    classes = range(len(p))
    if second.sum() > first.sum():
        matrix = [[-float(force[0]) * p[c] * p[k] for k in classes] for c in classes]
        diagonal = second.tolist()
    else:
        total = math.fsum(spreads)
        matrix = [[total * p[c] * p[k] - spreads[c] * p[k] - spreads[k] * p[c] for k in classes] for c in classes]
        diagonal = first.tolist()
    for k in classes:
        matrix[k][k] = diagonal[k]
    return matrix


def exact_curvature(polynomial: Polynomial, at: Softmax, labels: Array) -> Array:
    """The second derivatives ``d^2 L(p_y) / dz_k^2``, with 0 in the place of those that are negative."""
    logp, p, q, of_labels = _of(labels, at, polynomial)
    with np.errstate(under="ignore"):
        slope, bend = _slope(polynomial, logp, p, q), _bend(polynomial, logp, p, q)
        result: Array = bend * at.p**2 - slope * at.p * at.q
        result.ravel()[of_labels] = bend * q**2 - slope * p * q
    return np.maximum(result, 0.0)


def log_posterior(polynomial: Polynomial, at: Softmax) -> Array:
    """The logarithm of the class posterior, proportional to ``p / -slope``."""
    with np.errstate(under="ignore"):
        density = _log_density(polynomial, at)
        shifted = density - density.max(0)
        result: Array = shifted - np.log1p(_rest(shifted, np.exp(shifted))[0])
    return result


def constant_optimum(polynomial: Polynomial, weights: Array) -> Array | None:
    r"""The log-probabilities ``log p`` that minimize ``sum_c weights[c] L(p_c)``, or None where none are finite.

    ``weights[c] * -L'(p_c)`` is the same for every class there. ``-L'`` decreases, so that every ``p_c`` is searched
    for a given value of that number, and the number such that probabilities sum to 1. A search divides its interval by
    several points at once, since a call of NumPy takes as long for a hundred numbers as for one.
    """

    def log_force(logp: Array) -> Array:
        """``log(weights[c] * -L'(p_c))``, of shape (..., classes, levels)."""
        p, q = np.exp(logp), -np.expm1(logp)
        result: Array = np.log(weights)[:, None] - _log_density(polynomial, Softmax(p, q, logp))
        return result

    def log_probabilities(levels: Array) -> Array:
        """``log p`` where the force is as given, of shape (classes, levels)."""
        low = np.full((len(weights), len(levels)), LOWEST)
        step = -LEAST - low
        for _ in range(13):
            step = step / 32
            low = low + step * (log_force(low + step * np.arange(1, 32)[:, None, None]) > levels).sum(0)
        result: Array = low + 0.5 * step
        return result

    # With these forces all classes have at least, and at most, their share of 1.
    with np.errstate(under="ignore"):
        uniform = log_force(np.full((len(weights), 1), -math.log(len(weights))))
        level, step = float(uniform.min()), float(np.ptp(uniform))
        for _ in range(22):
            step /= 8
            level += step * int((np.exp(log_probabilities(level + step * np.arange(1, 8))).sum(0) > 1.0).sum())
        level += 0.5 * step
        logp = log_probabilities(np.array([level]))
        # It isn't where some force is at its bound, or where the loss is not monotone.
        slope = _slope(polynomial, logp, np.exp(logp), -np.expm1(logp))
        found = np.abs(log_force(logp) - level).max() < 1e-6 and (slope < 0).all()
    return logp[:, 0] if found else None


def _log_density(polynomial: Polynomial, at: Softmax) -> Array:
    """The logarithm of ``p / -slope``, that is of ``1 / -L'(p)``."""
    logp, q = _finite(at.logp), np.maximum(at.q, LEAST)
    # -slope = steepness * q^gamma; where there is no logarithm, p cancels.
    if polynomial.log_weight == 0.0:
        steepness = _steepness_over_p(polynomial, q)
        density = np.where(at.relative < MASKED, -np.inf, 0.0)
    else:
        steepness = _focal_steepness(polynomial, logp, at.p, q)
        density = logp
    result: Array = density - np.log(np.maximum(steepness, LEAST_FORCE))
    return result - polynomial.gamma * np.log(q) if polynomial.gamma else result


def _slope(polynomial: Polynomial, logp: Any, p: Any, q: Any) -> Array:
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


def _spread(polynomial: Polynomial, at: Softmax) -> tuple[Array, Array]:
    """``pi_c p_c^2 L''(p_c)`` of every class, of shape (classes, rows), and ``-pi_c L'(p_c)``, of shape (rows,)."""
    p, q, logp = at.p, np.maximum(at.q, LEAST), at.p
    if polynomial.gamma:
        logp = _finite(at.logp)
    if polynomial.log_weight == 0.0:
        density = np.where(at.relative < MASKED, 0.0, 1.0)
        force = _steepness_over_p(polynomial, q)
    else:
        density = p
        force = _focal_steepness(polynomial, logp, p, q)
    force = np.maximum(force, LEAST_FORCE)
    if polynomial.gamma:
        force = np.maximum(q**polynomial.gamma * force, LEAST)
    density = density / force
    common = 1.0 / density.sum(0)
    result: Array = density * common * _convexity(polynomial, logp, p, q)
    return result, common


def _convexity(polynomial: Polynomial, logp: Array, p: Array, q: Array) -> Array:
    """``p^2 L''``; 0 where it is negative.

    It is the difference of the second and the first derivative by ``log p``, without the terms that cancel in it.
    """
    coefficients, gamma = polynomial.coefficients, polynomial.gamma
    result: Any = polynomial.log_weight
    if len(coefficients) > 1:
        result = result + p**2 * horner(_second(coefficients), q)
    if gamma:
        power, over_q = q**gamma, _value_over_q(polynomial, logp, q)
        steepness = _steepness(polynomial, logp, p, q)
        result = power * (result + gamma * p / q * ((gamma - 1.0) * p * over_q + 2.0 * steepness))
    convexity: Array = np.maximum(result, 0.0)
    return convexity


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
    first, *following = polynomial.coefficients or (0.0,)
    powers = horner((polynomial.log_weight + first, *following), q)
    if polynomial.log_weight:
        tail = np.where(q < np.finfo(float).eps ** 0.5, 0.5 * q * q, -logp - q)
        powers = powers + polynomial.log_weight * (tail / q)
    result: Array = powers + 0.0 * q
    return result


def _first(coefficients: tuple[float, ...]) -> list[float]:
    """The coefficients of ``d/dq sum_j c_j q^j``, in powers of ``q`` from 0 on."""
    return [j * c for j, c in enumerate(coefficients, start=1)] or [0.0]


def _second(coefficients: tuple[float, ...]) -> list[float]:
    """The coefficients of ``d^2/dq^2 sum_j c_j q^j``."""
    return [j * (j - 1) * c for j, c in enumerate(coefficients, start=1)][1:] or [0.0]


def _of(labels: Array, at: Softmax, polynomial: Polynomial) -> tuple[Array, Array, Array, Array]:
    """``log p`` (if the loss has it in its slope), ``p`` and ``q`` of every row's label, and where they are, flat."""
    flat = labels * len(labels) + np.arange(len(labels))
    p, q = at.p.take(flat), at.q.take(flat)
    return _finite(at.logp.take(flat)) if polynomial.gamma else p, p, q, flat


def _finite(logp: Array) -> Array:
    """Log-probabilities whose product with a probability that has underflowed is 0 and not nan."""
    return np.maximum(logp, -1e300)
