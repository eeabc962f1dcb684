"""The derivatives of derivatives.py, compiled with Numba: row by row, where NumPy goes over all rows each time.

Names are those of derivatives.py, where the formulas are explained. Nothing of this is imported without Numba.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit

from polylosses.boosting.derivatives import LEAST, LEAST_FORCE, MASKED, Array
from polylosses.polynomial import Polynomial

EXPECTED, EXACT, CROSS_ENTROPY = range(3)

# Coefficients of ``(e^r - 1 - r) / r^2`` in ``r``, and of ``(artanh s - s) / s^3`` in ``s^2``, the highest power first.
EXPONENTIAL = tuple(1.0 / math.factorial(j) for j in range(13, 1, -1))
ARTANH = tuple(1.0 / j for j in range(23, 1, -2))

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiled when it is first called, or read from the cache. Without fastmath, since terms cancel."""
    result: Function = njit(cache=True, error_model="numpy")(function)
    return result


def inlined(function: Function) -> Function:
    """Compiled into its callers: a loop without a call computes several rows at once."""
    result: Function = njit(cache=True, error_model="numpy", forceinline=True)(function)
    return result


class Loss(NamedTuple):
    """A polynomial. With an array of coefficients, whose references are counted, 100,000 margins took 13 ms, not 3."""

    coefficients: tuple[float, ...] | Array
    gamma: float
    log_weight: float


def loss_of(polynomial: Polynomial) -> Loss:
    """The polynomial, with 1, 8, 16, ... coefficients: for each of these numbers, functions are compiled anew."""
    given = polynomial.coefficients
    missing = -len(given) % 8 if len(given) > 1 else 1 - len(given)
    return Loss((*given, *[0.0] * missing), polynomial.gamma, polynomial.log_weight)


def derivatives(
    polynomial: Polynomial,
    margins: Array,
    labels: Array,
    weight: Array | None,
    curvature: int,
    softmax_factor: float | None,
) -> tuple[Array, Array]:
    """Gradient and curvature of margins of shape (rows,) or (rows, classes), in their dtype, for checked arguments.

    Args:
        polynomial: the loss.
        margins: in float32 or float64.
        labels: of each row; np.intp.
        weight: a factor of each row; None for 1.
        curvature: ``EXPECTED``, ``EXACT`` or ``CROSS_ENTROPY``.
        softmax_factor: what the curvature of a softmax is multiplied by; None where each margin has a sigmoid.
    """
    # There is a compiled version for each layout, too.
    if not (margins.flags.forc and margins.flags.writeable):
        margins = margins.copy()
    first, second = np.empty_like(margins), np.empty_like(margins)
    loss, y = loss_of(polynomial), np.require(labels, requirements=["C", "W"])
    w = np.require(() if weight is None else weight, float, ["C", "W"])
    if loss == Loss((0.0,), 0.0, 1.0):
        curvature = CROSS_ENTROPY  # all three are p q
    if softmax_factor is not None:
        of_softmax(loss, curvature, softmax_factor, y, w, margins, first, second)
    elif margins.ndim == 1:
        of_margins(loss, curvature, 1, y, w, margins, first, second)
    else:
        one, two = np.empty((2, len(margins)), margins.dtype)
        for k in range(margins.shape[1]):
            of_margins(loss, curvature, k, y, w, margins[:, k].copy(), one, two)
            first[:, k], second[:, k] = one, two
    return first, second


@inlined
def power(q: float, gamma: float) -> float:
    """``q^gamma``, for the usual exponents without a call."""
    if gamma == 0.0:
        return 1.0
    return q * q if gamma == 2.0 else q**gamma


@inlined
def derivative(loss: Loss, q: float, gamma: float) -> float:
    """``sum_j (j + gamma) c_j q^(j-1)``."""
    total = 0.0
    for j in range(len(loss.coefficients), 0, -1):
        total = (j + gamma) * loss.coefficients[j - 1] + total * q
    return total


@inlined
def second_derivative(loss: Loss, q: float) -> float:
    """``sum_j j (j-1) c_j q^(j-2)``."""
    total = 0.0
    for j in range(len(loss.coefficients), 1, -1):
        total = j * (j - 1) * loss.coefficients[j - 1] + total * q
    return total


@inlined
def steepness(loss: Loss, p: float, q: float) -> float:
    """``log_weight + p sum_j j c_j q^(j-1)``, in powers of ``q``, since terms may cancel."""
    if loss.log_weight == 0.0:
        return p * derivative(loss, q, 0.0)
    total, following = 0.0, 0.0
    for j in range(len(loss.coefficients), 0, -1):
        scaled = j * loss.coefficients[j - 1]
        total = (following - scaled) + total * q
        following = scaled
    return (loss.log_weight + following) + total * q


@inlined
def value_over_q(loss: Loss, logp: float, q: float) -> float:
    """The loss without its focal factor, over ``q``."""
    total = 0.0
    for j in range(len(loss.coefficients) - 1, 0, -1):
        total = loss.coefficients[j] + total * q
    total = (loss.log_weight + loss.coefficients[0]) + total * q
    if loss.log_weight:
        total += loss.log_weight * ((0.5 * q * q if q < 2.0**-26 else -logp - q) / q)
    return total


@inlined
def focal_steepness(loss: Loss, logp: float, p: float, q: float) -> float:
    """``-slope / q^gamma``."""
    result = steepness(loss, p, q)
    return result + loss.gamma * p * value_over_q(loss, logp, q) if loss.gamma else result


@inlined
def slope(loss: Loss, logp: float, p: float, q: float) -> float:
    """``dL / d log p``."""
    q = max(q, LEAST)
    if loss.log_weight == 0.0:
        return -power(q, loss.gamma) * (p * derivative(loss, q, loss.gamma))
    return -power(q, loss.gamma) * focal_steepness(loss, logp, p, q)


@inlined
def convexity(loss: Loss, logp: float, p: float, q: float) -> float:
    """``p^2 L''``; 0 where it is negative."""
    gamma, result = loss.gamma, loss.log_weight + p**2 * second_derivative(loss, q)
    if gamma:
        focal = (gamma - 1.0) * p * value_over_q(loss, logp, q) + 2.0 * steepness(loss, p, q)
        result = power(q, gamma) * (result + gamma * p / q * focal)
    return max(result, 0.0)


@inlined
def bend(loss: Loss, logp: float, p: float, q: float) -> float:
    """The second derivative of the loss by ``log p``."""
    q, gamma = max(q, LEAST), loss.gamma
    result = power(q, gamma) * (p * second_derivative(loss, q) - derivative(loss, q, 0.0))
    if gamma:
        focal = 2.0 * steepness(loss, p, q) - (q - (gamma - 1.0) * p) * value_over_q(loss, logp, q)
        result += gamma * power(q, gamma - 1.0) * focal
    return p * result


@inlined
def exponential(x: float) -> float:
    """``e^x`` for ``x`` from -345 to 0, with an error of 1 unit in the last place; not a call, unlike ``math.exp``."""
    shifted = x * 1.4426950408889634 + 1.5 * 2.0**52
    n = shifted - 1.5 * 2.0**52
    r = (x - n * 0.693145751953125) - n * 1.4286068203094172e-06  # the digits of log 2, in two parts
    total = 0.0
    for coefficient in EXPONENTIAL:
        total = coefficient + total * r
    power_of_two = np.int64((np.float64(shifted).view(np.int64) + 1023) << 52).view(np.float64)
    return (1.0 + (r + r * r * total)) * power_of_two


@inlined
def log_one_plus(x: float) -> float:
    """``log(1 + x)`` for ``x`` from 0 to 1; not a call, unlike ``math.log1p``."""
    large = x > 0.41  # log 2 + log((1 + x) / 2) is nearer to the middle of the series
    s = (x - 1.0) / (x + 3.0) if large else x / (x + 2.0)
    total = 0.0
    for coefficient in ARTANH:
        total = coefficient + total * (s * s)
    return 2.0 * (s + s * (s * s) * total) + (0.6931471805599453 if large else 0.0)


@inlined
def logarithm(x: float) -> float:
    """``log x`` to the last digits after the point, for normal numbers; not a call, unlike ``math.log``."""
    bits = np.float64(x).view(np.int64)
    mantissa = np.int64((bits & 0xFFFFFFFFFFFFF) | (1023 << 52)).view(np.float64)
    return ((bits >> 52) - 1023) * 0.6931471805599453 + log_one_plus(mantissa - 1.0)


@inlined
def sides(loss: Loss, z: float) -> tuple[float, float, float, float]:
    """``p``, ``q`` and (if gamma is not 0) their logarithms at a margin against 0."""
    z = min(max(z, -345.0), 345.0)
    relative = exponential(-abs(z))
    larger = 1.0 / (1.0 + relative)
    smaller, logp, logq = relative * larger, 0.0, 0.0
    p, q = (larger, smaller) if z > 0.0 else (smaller, larger)
    if loss.gamma:
        rest = log_one_plus(relative)
        logp, logq = min(z, 0.0) - rest, min(-z, 0.0) - rest
    return p, q, logp, logq


@inlined
def of_margin(loss: Loss, curvature: int, z: float, yes: bool) -> tuple[float, float]:
    """Gradient and curvature of a margin against 0."""
    p, q, logp, logq = sides(loss, z if yes else -z)
    of_label = slope(loss, logp, p, q)
    first = of_label * q
    if curvature == EXACT:
        second = max(bend(loss, logp, p, q) * q**2 - first * p, 0.0)
    elif curvature == CROSS_ENTROPY:
        second = p * q
    else:
        force, other = max(-of_label, LEAST), max(-slope(loss, logq, q, p), LEAST)
        second = q * other * convexity(loss, logp, p, q) + p * force * convexity(loss, logq, q, p)
        second = max(second, force * other) * (p * q / (p * other + q * force))
    return first if yes else -first, second


@inlined
def loop(
    loss: Loss, curvature: int, label: int, labels: Array, weight: Array, margins: Array, first: Array, second: Array
) -> None:
    """Gradient and curvature of margins of shape (rows,), of ``label`` against all others."""
    for i in range(len(margins)):
        w = weight[i] if len(weight) else 1.0
        one, two = of_margin(loss, curvature, float(margins[i]), labels[i] == label)
        first[i], second[i] = one * w, two * w


@compiled
def of_margins(
    loss: Loss, curvature: int, label: int, labels: Array, weight: Array, margins: Array, first: Array, second: Array
) -> None:
    """The loop. There is no call in it if the compiler knows gamma: 100,000 margins take 1.0 ms, not 2.8."""
    if loss.gamma == 0.0:
        constant = Loss(loss.coefficients, 0.0, loss.log_weight)
        loop(constant, curvature, label, labels, weight, margins, first, second)
    elif loss.gamma == 2.0:
        constant = Loss(loss.coefficients, 2.0, loss.log_weight)
        loop(constant, curvature, label, labels, weight, margins, first, second)
    else:
        loop(loss, curvature, label, labels, weight, margins, first, second)


@compiled
def are_valid(labels: Array, weight: Array, margins: Array) -> bool:
    """Whether each margin is a number with a label of 0 or 1 and, if there are weights, a finite one of at least 0."""
    if len(labels) != len(margins) or (len(weight) > 0 and len(weight) != len(margins)):
        return False
    wrong = 0
    for i in range(len(margins)):
        wrong += (labels[i] != 0 and labels[i] != 1) or math.isnan(margins[i])
    for w in weight:
        wrong += not 0.0 <= w < math.inf
    return wrong == 0


@compiled
def of_block(
    loss: Loss, curvature: int, class_weight: Array, labels: Array, weight: Array, margins: Array, result: Array
) -> bool:
    """Minus gradient and curvature of margins of shape (rows,), into a result of shape (2, rows).

    False if an argument is wrong. For a block of CatBoost's, of some 500 rows, NumPy takes 92 us; with this it is 17.
    """
    if not are_valid(labels, weight, margins):
        return False
    of_margins(loss, curvature, 1, labels, weight, margins, result[0], result[1])
    for i in range(len(labels)):
        factor = class_weight[1] if labels[i] == 1 else class_weight[0]
        result[0, i] *= -factor
        result[1, i] *= -factor
    return True


@compiled
def log_loss(loss: Loss, class_weight: Array, labels: Array, weight: Array, margins: Array) -> tuple[float, float]:
    """The sums of the log losses of the posterior of margins against 0, and of the weights; as binary_log_posterior.

    The first is nan if a label, margin or weight is wrong.
    """
    if not are_valid(labels, weight, margins):
        return math.nan, 0.0
    losses, weights = np.empty((2, len(margins)))
    for i in range(len(margins)):
        p, q, logp, logq = sides(loss, margins[i])
        if loss.log_weight == 0.0:
            scale, one, zero = loss.gamma, derivative(loss, q, loss.gamma), derivative(loss, p, loss.gamma)
        else:
            scale, one = 1.0 + loss.gamma, focal_steepness(loss, logp, p, q)
            zero = focal_steepness(loss, logq, q, p)
        margin = margins[i]
        if not math.isinf(margin):
            margin = scale * margin + logarithm(max(zero, LEAST_FORCE) / max(one, LEAST_FORCE))
        against = -margin if labels[i] == 1 else margin
        w = (weight[i] if len(weight) else 1.0) * (class_weight[1] if labels[i] == 1 else class_weight[0])
        weights[i] = w
        losses[i] = w * (max(against, 0.0) + log_one_plus(exponential(max(-abs(against), -345.0))))
    return losses.sum(), weights.sum()


@compiled
def softmax(margins: Array, gamma: float, logp: Array, p: Array, q: Array) -> None:
    """Probabilities, complements and (if gamma is not 0) logarithms of a row of margins, into the last three."""
    classes = len(margins)
    largest = -1e300
    for k in range(classes):
        logp[k] = min(max(margins[k], -1e300), 1e300)
        largest = max(largest, logp[k])
    total, rest = 0.0, 0.0
    for k in range(classes):
        logp[k] -= largest
        p[k] = math.exp(logp[k])
        total += p[k]
        rest += p[k] if logp[k] else 0.0
    if total >= 1.5:
        rest = total - 1.0
    scale, log_total = 1.0 / (1.0 + rest), math.log1p(rest) if gamma else 0.0
    for k in range(classes):
        p[k] *= scale
        q[k] = 1.0 - p[k] if logp[k] else rest * scale
        logp[k] = max(logp[k] - log_total, -1e300)


@compiled
def expected(loss: Loss, logp: Array, p: Array, q: Array, spread: Array, second: Array) -> float:
    """The spread of every class and the expected second derivatives, into the last two; returns the force."""
    classes, total = len(p), 0.0
    for k in range(classes):
        r = max(q[k], LEAST)
        if loss.log_weight == 0.0:
            density, force = 1.0 if logp[k] >= MASKED else 0.0, derivative(loss, r, loss.gamma)
        else:
            density, force = p[k], focal_steepness(loss, logp[k], p[k], r)
        force = max(force, LEAST_FORCE)
        if loss.gamma:
            force = max(power(r, loss.gamma) * force, LEAST)
        spread[k], second[k] = density / force, convexity(loss, logp[k], p[k], r)
        total += spread[k]
    common, total, unsure = 1.0 / total, 0.0, 0.0
    for k in range(classes):
        spread[k] = spread[k] * common * second[k]
        total += spread[k]
        unsure += 0.0 if p[k] > 0.5 else spread[k]
    for k in range(classes):
        # The difference has its digits where p is small.
        others = unsure if p[k] > 0.5 else total - spread[k]
        second[k] = spread[k] * q[k] ** 2 + p[k] ** 2 * others
    return common


@compiled
def of_softmax(
    loss: Loss,
    curvature: int,
    factor: float,
    labels: Array,
    weight: Array,
    margins: Array,
    first: Array,
    second: Array,
) -> None:
    """Gradient, and curvature times ``factor``, of margins of shape (rows, classes)."""
    rows, classes = margins.shape
    logp, p, q, spread, two = np.empty((5, classes))
    for i in range(rows):
        y, w = labels[i], weight[i] if len(weight) else 1.0
        softmax(margins[i], loss.gamma, logp, p, q)
        of_label = slope(loss, logp[y], p[y], q[y])
        bent = bend(loss, logp[y], p[y], q[y]) if curvature == EXACT else 0.0
        force = expected(loss, logp, p, q, spread, two) if curvature == EXPECTED else 0.0
        for k in range(classes):
            moved = q[k] if k == y else -p[k]
            if curvature == EXACT:
                two[k] = max(bent * moved**2 - of_label * p[k] * q[k], 0.0)
            elif curvature == EXPECTED:
                two[k] = max(two[k], force * p[k] * q[k])
            else:
                two[k] = p[k] * q[k]
            first[i, k], second[i, k] = of_label * moved * w, two[k] * factor * w


@compiled
def of_row(
    polynomial: Array,
    curvature: int,
    one_vs_all: bool,
    label: int,
    factor: float,
    margins: Array,
    result: Array,
) -> bool:
    """Gradient and matrix of second derivatives of a single row, times ``factor``; False if a margin is nan.

    The result, of shape (1 + classes, classes), gets the gradient and then the matrix. Of 3 us, the computation is 0.3:
    a polynomial as a tuple would take 1 us more, and a call for each of the two 2 us.

    Args:
        polynomial: its gamma, log_weight and coefficients.
    """
    loss = Loss(polynomial[2:], polynomial[0], polynomial[1])
    classes, wrong = len(margins), 0
    logp, p, q, spread, second = np.empty((5, classes))
    for k in range(classes):
        wrong += math.isnan(margins[k])
        for c in range(classes):
            result[1 + c, k] = 0.0
    if one_vs_all:
        for k in range(classes):
            one, two = of_margin(loss, curvature, margins[k], k == label)
            result[0, k], result[1 + k, k] = factor * one, factor * two
        return wrong == 0
    softmax(margins, loss.gamma, logp, p, q)
    of_label = slope(loss, logp[label], p[label], q[label])
    bent = bend(loss, logp[label], p[label], q[label]) if curvature == EXACT else 0.0
    total, force, larger = 0.0, 1.0, True
    if curvature == EXPECTED:
        force = expected(loss, logp, p, q, spread, second)
        total = spread.sum()
        larger = force * (p * q).sum() > second.sum()
    for k in range(classes):
        moved = q[k] if k == label else -p[k]
        result[0, k] = factor * of_label * moved
        if curvature == EXACT:
            result[1 + k, k] = factor * max(bent * moved**2 - of_label * p[k] * q[k], 0.0)
            continue
        for c in range(classes):
            second_order = total * p[c] * p[k] - spread[c] * p[k] - spread[k] * p[c]
            result[1 + c, k] = factor * (-force * p[c] * p[k] if larger else second_order)
        result[1 + k, k] = factor * (force * p[k] * q[k] if larger else second[k])
    return wrong == 0
