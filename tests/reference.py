"""The reference implementation ("oracle"): losses and gradients from the definition, at 50 digits.

It shares no code with the package and is written for readability: rows are computed one by one in mpmath, and combined
in NumPy in float64.

Every result has a scale: in floating point with machine epsilon ``eps``, an error of ``eps * scale`` is allowed. The
scale is derived from two rounding errors, not fitted to the tests. The error of ``p`` and ``q = 1 - p`` may be ``eps``,
which changes the result by ``eps`` times its derivative (as a sum of absolute values); and log-softmax has an error of
``eps`` times the magnitude of the logits.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import mpmath as mp
import numpy as np

from cases import Array, to_class_axis, to_rows
from polylosses import Polynomial

DIGITS = 50


def value(loss: Polynomial, p: Any, q: Any) -> Any:
    """L(p) = q^gamma (-log_weight log p + sum_j c_j q^j), where 0 log 0 = 0."""
    total = mp.fsum(mp.mpf(c) * q**j for j, c in enumerate(loss.coefficients, start=1))
    if loss.log_weight != 0:
        total -= loss.log_weight * (mp.log(p) if p > 0 else -mp.inf)
    return q ** mp.mpf(loss.gamma) * total


def slope(loss: Polynomial, p: Any, q: Any) -> Any:
    """dL / d log p = p dL/dp, by the product rule."""
    inner = mp.fsum(j * mp.mpf(c) * q ** (j - 1) for j, c in enumerate(loss.coefficients, start=1))
    result = -(q ** mp.mpf(loss.gamma)) * (loss.log_weight + p * inner)
    if loss.gamma != 0 and p > 0 and q > 0:
        result -= loss.gamma * p / q * value(loss, p, q)
    return result


def value_terms(loss: Polynomial, p: Any, q: Any) -> Any:
    """The sum of the absolute values of the terms of :func:`value`."""
    return value(Polynomial(tuple(abs(c) for c in loss.coefficients), loss.gamma, loss.log_weight), p, q)


def slope_terms(loss: Polynomial, p: Any, q: Any) -> Any:
    """The sum of the absolute values of the terms of :func:`slope`, without their factors ``p``.

    An implementation may have an error of ``eps`` in these factors, however small ``p`` is.
    """
    inner = mp.fsum(j * abs(mp.mpf(c)) * q ** (j - 1) for j, c in enumerate(loss.coefficients, start=1))
    result = q ** mp.mpf(loss.gamma) * (loss.log_weight + inner)
    return result + (loss.gamma / q * value_terms(loss, p, q) if loss.gamma != 0 and p > 0 else 0)


def curvature_terms(loss: Polynomial, p: Any, q: Any) -> Any:
    """An upper bound of the derivative of :func:`slope_terms` with respect to ``q``."""
    inner = mp.fsum(j * (j - 1) * abs(mp.mpf(c)) * q ** (j - 2) for j, c in enumerate(loss.coefficients, start=1))
    result = q ** mp.mpf(loss.gamma) * inner
    if loss.gamma != 0 and p > 0:
        result += 2 * loss.gamma / q * slope_terms(loss, p, q) + loss.gamma / q**2 * value_terms(loss, p, q)
    return result


@dataclass(frozen=True)
class Row:
    """For one row of logits and every class: its probability, and the loss and slope if it were the label."""

    probability: Array
    value: Array
    slope: Array
    value_scale: Array
    slope_scale: Array


@cache
def row(loss: Polynomial, logits: tuple[float, ...]) -> Row:
    """One row of logits, which may hold -inf (a masked class)."""
    with mp.workdps(DIGITS):
        top = max(logits)
        exponentials = [mp.exp(mp.mpf(z) - mp.mpf(top)) for z in logits]
        total = mp.fsum(exponentials)
        p = [e / total for e in exponentials]
        # q is the sum over the other classes, without a subtraction: those before and those after.
        before = [mp.mpf(0), *accumulate(exponentials)]
        after = [mp.mpf(0), *accumulate(reversed(exponentials))][::-1]
        q = [(before[k] + after[k + 1]) / total for k in range(len(logits))]
        size = 1 + max(abs(z) for z in logits if mp.isfinite(z)) + mp.log(len(logits))
        # Derivatives may be infinite at q = 0, but implementations know q only up to eps / 2 (with one class,
        # exactly).
        known = [max(qk, mp.mpf(2) ** -53) if len(logits) > 1 else mp.mpf(1) for qk in q]

        def of(function: Any, given: list[Any]) -> list[Any]:
            return [function(loss, pk, qk) for pk, qk in zip(p, given, strict=True)]

        values, slopes, curvatures = of(value_terms, known), of(slope_terms, known), of(curvature_terms, known)
        return Row(
            probability=_floats(p),
            value=_floats(of(value, q)),
            slope=_floats(of(slope, q)),
            value_scale=_floats([size * (v + s) for v, s in zip(values, slopes, strict=True)]),
            slope_scale=_floats([size * (s + c) for s, c in zip(slopes, curvatures, strict=True)]),
        )


@dataclass(frozen=True)
class Expected:
    """The exact loss and gradients, and the scale of the rounding error of each.

    ``target_gradient`` is None for class indices, and where the target is treated as a constant.
    """

    value: Array
    gradient: Array
    target_gradient: Array | None
    value_scale: Array
    gradient_scale: Array
    target_gradient_scale: Array


def cross_entropy(
    loss: Polynomial,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    grad_output: Array | None = None,
) -> Expected:
    """PolyLoss of softmax probabilities, under every option of torch's cross_entropy.

    ``grad_output`` is for reduction "none" only.
    """
    rows = [row(loss, tuple(z)) for z in to_rows(logits).tolist()]
    classes = logits.shape[0 if logits.ndim == 1 else 1]
    weights = np.ones(classes) if weight is None else weight
    if target.shape == logits.shape:
        labels = to_rows(target)
        valid = np.ones(len(rows))
        divisor: float = len(rows)
    else:
        indices = target.reshape(-1)
        valid = (indices != ignore_index).astype(float)
        labels = np.eye(classes)[np.where(valid == 1, indices, 0)]
        divisor = float(sum(weights[y] for y in indices if y != ignore_index))
    labels = (1 - label_smoothing) * labels + label_smoothing / classes
    target_weights = valid[:, None] * weights * labels
    if reduction == "none":
        factor = np.ones(len(rows)) if grad_output is None else grad_output.reshape(-1)
    else:
        with np.errstate(divide="ignore"):
            factor = np.full(len(rows), 1 / np.float64(divisor) if reduction == "mean" else 1.0)

    def losses(numbers: list[Array]) -> Array:
        # A class of target weight 0 is left out, even where its loss is infinite.
        per_row = np.array([np.where(s == 0, 0, s * n).sum() for s, n in zip(target_weights, numbers, strict=True)])
        if reduction == "none":
            return per_row.reshape(target.shape if target.shape != logits.shape else _positions(logits.shape))
        with np.errstate(invalid="ignore"):
            return np.asarray((per_row * factor).sum() if len(rows) else np.sum([]) * np.float64(divisor and 1))

    def gradients(slopes: list[Array], sign: int) -> Array:
        # For target weights w, d/dz_k of sum_c w_c L(p_c) is sum_c w_c slope_c ([c = k] - p_k); sign +1 gives a bound.
        out = np.zeros((len(rows), classes))
        for n, (target_weight, slopes_n) in enumerate(zip(target_weights, slopes, strict=True)):
            pull = np.where(target_weight == 0, 0, target_weight * slopes_n)
            out[n] = factor[n] * (pull + sign * pull.sum() * rows[n].probability)
        return to_class_axis(out, logits.shape)

    def target_gradients(numbers: list[Array]) -> Array:
        out = [factor[n] * (1 - label_smoothing) * weights * numbers[n] for n in range(len(rows))]
        return to_class_axis(np.array(out).reshape(-1, classes), logits.shape)

    with np.errstate(invalid="ignore"):
        return Expected(
            value=losses([r.value for r in rows]),
            gradient=gradients([r.slope for r in rows], -1),
            target_gradient=target_gradients([r.value for r in rows]) if target.shape == logits.shape else None,
            value_scale=losses([r.value_scale for r in rows]),
            gradient_scale=gradients([r.slope_scale for r in rows], 1),
            target_gradient_scale=target_gradients([r.value_scale for r in rows]),
        )


def binary_cross_entropy(
    loss: Polynomial,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    alpha: float | None = None,
    alpha_on_epsilon: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
    grad_output: Array | None = None,
) -> Expected:
    """PolyLoss of sigmoid probabilities, under every option of torch's binary_cross_entropy_with_logits and more.

    The sigmoid is a softmax of two classes with logits ``z`` and 0. Class ids are converted to one-hot rows.

    A sigmoid gives both ``p`` and ``q`` to full relative accuracy, so the error of gradients is bounded relative to
    ``q``, with a factor of 2: log-sigmoid and sigmoid each have a rounding error, and so do their derivatives.
    """
    valid = np.ones(target.shape) if ignore_index is None else (target != ignore_index).astype(float)
    if target.shape != logits.shape:
        classes = logits.shape[0 if logits.ndim == 1 else 1]
        one_hot = np.eye(classes)[np.where(valid == 1, target, 0).astype(int)]
        axis = 0 if logits.ndim == 1 else 1
        labels = np.moveaxis(one_hot, -1, axis)
        valid = np.broadcast_to(np.expand_dims(valid, axis), logits.shape)
    else:
        labels = np.where(valid == 1, target, 0.0)
    target_weights = [labels * (1.0 if pos_weight is None else pos_weight), 1 - labels]
    element_weight = valid * (1.0 if weight is None else weight)
    if reduction == "mean":
        element_weight = element_weight / np.float64(valid.sum())
    factor = np.ones(logits.shape) if grad_output is None or reduction != "none" else grad_output

    # Terms of the loss, each with its factors for positives and negatives.
    balanced, unbalanced = ((1.0, 1.0) if alpha is None else (alpha, 1 - alpha)), (1.0, 1.0)
    parts = [(loss, balanced)]
    if not alpha_on_epsilon:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without the logarithm, coefficients may be below their bound
            powers = Polynomial(loss.coefficients, loss.gamma, log_weight=0.0)
        parts = [(Polynomial((), loss.gamma, loss.log_weight), balanced), (powers, unbalanced)]

    totals = {name: np.zeros(logits.shape) for name in ("value", "gradient", "target", "vs", "gs", "ts")}
    for part, balance in parts:
        rows = [row(part, (z, 0.0)) for z in logits.reshape(-1).tolist()]
        for side, sign in ((0, 1), (1, -1)):
            # Side 0 is the loss of positives, side 1 the loss of negatives.
            target_weight = element_weight * target_weights[side] * balance[side]
            per_target = element_weight * balance[side] * (1.0 if pos_weight is None or side else pos_weight)
            other = _column(rows, "probability", 1 - side, logits.shape)
            for name, numbers, per_share in (
                ("value", "value", 1.0),
                ("vs", "value_scale", 1.0),
                ("gradient", "slope", sign * other),
                ("gs", "slope_scale", 2 * other),
            ):
                column = _column(rows, numbers, side, logits.shape) * per_share
                totals[name] += np.where(target_weight == 0, 0, target_weight * column)
            totals["target"] += sign * per_target * _column(rows, "value", side, logits.shape)
            totals["ts"] += per_target * _column(rows, "value_scale", side, logits.shape)

    def reduced(numbers: Array) -> Array:
        return numbers if reduction == "none" else np.asarray(numbers.sum())

    return Expected(
        value=reduced(totals["value"]),
        gradient=factor * totals["gradient"],
        target_gradient=factor * totals["target"] if target.shape == logits.shape else None,
        value_scale=reduced(totals["vs"]),
        gradient_scale=factor * totals["gs"],
        target_gradient_scale=factor * totals["ts"],
    )


def _column(rows: list[Row], name: str, side: int, shape: tuple[int, ...]) -> Array:
    return np.array([getattr(r, name)[side] for r in rows]).reshape(shape)


def posterior(loss: Polynomial, logits: tuple[float, ...]) -> Array:
    """The class probabilities under which these logits are optimal: proportional to 1 / -(dL/dp)."""
    numbers = row(loss, logits)
    unnormalized = numbers.probability / -numbers.slope
    result: Array = unnormalized / unnormalized.sum()
    return result


def _positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def _floats(numbers: list[Any]) -> Array:
    return np.array([float(x) for x in numbers])
