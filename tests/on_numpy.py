"""Adapter of ``Polynomial`` on NumPy arrays for the tests that run on every backend: a loss without a framework.

The gradient is computed from the slope: ``dL/dz_k = sum_c target_weight_c slope_c ([c = k] - p_k)``.
"""

from typing import Any

import numpy as np

from cases import Array, to_class_axis, to_rows
from found import TINY, Found
from polylosses import Polynomial

LOW_PRECISION = False


def at(loss: Polynomial, logp: Array, q: Array) -> tuple[Array, Array]:
    """The value and the slope of the loss."""
    limits = np.finfo(logp.dtype)
    certain = q < TINY[logp.dtype.name]
    with np.errstate(invalid="ignore"):
        value = np.where(certain & (loss.gamma > 0), 0, loss.value(logp, np.where(certain, 0, q)))
        return value, loss.slope(np.maximum(logp, -np.sqrt(limits.max)), q)


def cross_entropy(
    loss: Polynomial,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    grad_output: Array | None = None,
    dtype: str = "float64",
) -> Found:
    dense_target = target.shape == logits.shape
    z = to_rows(logits).astype(dtype)
    classes = z.shape[1]
    weights = np.ones(classes, dtype) if weight is None else weight.astype(dtype)
    if dense_target:
        labels, valid = to_rows(target).astype(dtype), np.ones(len(z), bool)
    else:
        valid = np.ones(target.size, bool) if ignore_index is None else target.reshape(-1) != ignore_index
        labels = np.eye(classes, dtype=dtype)[np.where(valid, target.reshape(-1), 0)]
    row_weight = valid if dense_target or weight is None else valid * weights[labels.argmax(1)]
    labels = (1 - label_smoothing) * labels + label_smoothing / classes if label_smoothing else labels
    target_weight = valid[:, None] * weights * labels
    z = np.where(valid[:, None], z, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = z - z.max(1, keepdims=True, initial=-np.inf)
        logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        value, slope = at(loss, logp, -np.expm1(logp))
        excluded = target_weight == 0
        losses = np.where(excluded, 0, target_weight * value).sum(1)
        pull = np.where(excluded, 0, target_weight * slope)
        gradient = pull - np.exp(logp) * pull.sum(1, keepdims=True)
        infinite = excluded & (logp == -np.inf)
        by_target = (1 - label_smoothing) * weights * np.where(infinite, 0, value)
        factor = np.ones(len(z))
        if reduction == "none" and grad_output is not None:
            factor = grad_output.reshape(-1)
        elif reduction == "mean":
            factor = factor / np.float64(row_weight.sum())
        batch_shape = (
            target.shape if not dense_target else logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else ()
        )
        total: Any = losses.reshape(batch_shape) if reduction == "none" else (losses * factor).sum()
        if reduction == "mean" and not losses.size:
            total = np.nan
        return Found(
            np.asarray(total, np.float64),
            to_class_axis(factor[:, None] * gradient, logits.shape).astype(np.float64),
            to_class_axis(factor[:, None] * by_target, logits.shape).astype(np.float64) if dense_target else None,
        )


def softmax(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    """The posterior from its definition, without guards against overflow."""
    z = logits.astype(dtype)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    density = p / -loss.slope(np.log(p), 1 - p)
    return np.asarray(density / density.sum(-1, keepdims=True))
