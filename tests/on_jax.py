"""The adapter of ``polylosses.jax`` to the laws that hold for every backend.

Its losses are one for each example, so the adapter writes weights, ignored targets and reductions as a user would.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cases import Array, BinaryCell
from found import Found
from polylosses import Polynomial
from polylosses.jax import (
    poly_cross_entropy,
    poly_cross_entropy_with_integer_labels,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
    sigmoid_poly_cross_entropy,
)

LOW_PRECISION = True


def numbers(found: Any) -> Array:
    return np.asarray(found, dtype=np.float64)


def losses(
    how: tuple[bool, int], polynomial: Any, logits: Any, target: Any, weight: Any, kept: Any, label_smoothing: Any
) -> Any:
    """One for each example."""
    soft, axis = how
    chosen: dict[str, Any] = {"polynomial": polynomial, "axis": axis, "where": kept}
    weights = None if weight is None else weight.reshape([-1 if k == axis else 1 for k in range(logits.ndim)])
    classes = logits.shape[axis]
    if soft:
        labels = target if label_smoothing is None else (1 - label_smoothing) * target + label_smoothing / classes
        return poly_cross_entropy(logits, labels if weight is None else weights * labels, **chosen)
    if weight is None:
        smoothed = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
        return poly_cross_entropy_with_integer_labels(logits, target, **smoothed, **chosen)
    of_label = weight[target] * poly_cross_entropy_with_integer_labels(logits, target, **chosen)
    if label_smoothing is None:
        return of_label
    spread = poly_cross_entropy(logits, weights / classes, **chosen)
    return (1 - label_smoothing) * of_label + label_smoothing * spread


def with_gradients(how: Any, polynomial: Any, upstream: Any, logits: Any, target: Any, *others: Any) -> Any:
    def of(z: Any, y: Any = target) -> Any:
        return losses(how, polynomial, z, y, *others)

    value, pull = jax.vjp(of, logits, target) if how[0] else jax.vjp(of, logits)
    return value, pull(upstream.astype(value.dtype))


# Compiled in a hurry: compiling takes most of the time here.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# The numbers of a polynomial are known when it is compiled, or not until it runs: both have to be right.
KNOWN = jit(with_gradients, static_argnames=("how", "polynomial"))
TRACED = jit(with_gradients, static_argnames="how")


def padded(loss: Polynomial) -> Polynomial:
    """With 8 coefficients, so that losses share a compiled program."""
    return replace(loss, coefficients=(*loss.coefficients, *[0.0] * (8 - len(loss.coefficients))))


def cross_entropy(
    loss: Polynomial,
    logits: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    upstream: Array | None = None,
    dtype: str = "float64",
) -> Found:
    axis = 0 if logits.ndim == 1 else 1
    soft = target.shape == logits.shape
    places = logits.shape[:axis] + logits.shape[axis + 1 :]
    kept = np.ones(places, bool) if soft or ignore_index is None else target != ignore_index
    factor = np.ones(places)
    if reduction == "none" and upstream is not None:
        factor = upstream
    elif reduction == "mean":
        counts = kept if soft or weight is None else np.where(kept, weight[np.where(kept, target, 0)], 0)
        with np.errstate(divide="ignore"):
            factor = factor / (np.float64(kept.size) if soft else counts.sum())
    known = logits.ndim == 2 and weight is None and dtype == "float32"
    with jax.enable_x64(True):
        value, pulled = (KNOWN if known else TRACED)(
            (soft, axis),
            loss if known else padded(loss),
            jnp.asarray(factor, dtype),
            jnp.asarray(logits, dtype),
            jnp.asarray(target, dtype if soft else "int32"),
            None if weight is None else jnp.asarray(weight, dtype),
            None if soft or ignore_index is None else jnp.asarray(kept),
            None if label_smoothing == 0 else jnp.asarray(label_smoothing, dtype),
        )
        found, gradients = numbers(value), [numbers(gradient) for gradient in pulled]
    if reduction != "none":
        with np.errstate(invalid="ignore"):
            found = np.asarray((found * factor).sum() if found.size else np.float64(0) * factor.sum())
    return Found(found, *gradients)


def binary_losses(how: Any, polynomial: Polynomial, logits: Any, target: Any, weight: Any, pos_weight: Any) -> Any:
    alpha, dense = how
    axis = min(1, logits.ndim - 1)
    labels = target if dense else jax.nn.one_hot(target, logits.shape[axis], axis=axis, dtype=logits.dtype)
    chosen: dict[str, Any] = {"polynomial": polynomial, "alpha": alpha}
    loss = sigmoid_poly_cross_entropy(logits, labels, **chosen)
    if pos_weight is not None:
        # What the positive part weighs more: linear in the labels.
        no = sigmoid_poly_cross_entropy(logits, jnp.zeros_like(labels), **chosen)
        yes = sigmoid_poly_cross_entropy(logits, jnp.ones_like(labels), **chosen)
        loss = pos_weight * labels * yes + (1 - labels) * no
    return loss if weight is None else weight * loss


@partial(jit, static_argnames="how")
def binary_with_gradients(how: Any, polynomial: Any, upstream: Any, logits: Any, target: Any, *others: Any) -> Any:
    def of(z: Any, y: Any = target) -> Any:
        return binary_losses(how, polynomial, z, y, *others)

    value, pull = jax.vjp(of, logits, target) if how[1] else jax.vjp(of, logits)
    return value, pull(upstream.astype(value.dtype))


def serves_binary(cell: BinaryCell) -> bool:
    return cell.alpha_on_epsilon and cell.ignore_index is None


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
    upstream: Array | None = None,
    dtype: str = "float64",
) -> Found:
    assert alpha_on_epsilon
    assert ignore_index is None
    dense = target.shape == logits.shape
    factor = np.ones(logits.shape)
    if reduction == "none" and upstream is not None:
        factor = upstream
    elif reduction == "mean":
        factor = factor / np.float64(factor.size)
    with jax.enable_x64(True):
        value, pulled = binary_with_gradients(
            (alpha, dense),
            padded(loss),
            jnp.asarray(factor, dtype),
            jnp.asarray(logits, dtype),
            jnp.asarray(target, dtype if dense else "int32"),
            None if weight is None else jnp.asarray(weight, dtype),
            None if pos_weight is None else jnp.asarray(pos_weight, dtype),
        )
        found, gradients = numbers(value), [numbers(gradient) for gradient in pulled]
    return Found(found if reduction == "none" else np.asarray((found * factor).sum()), *gradients)


def softmax(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    """Classes along the last axis."""
    with jax.enable_x64(True):
        return numbers(jax.jit(poly_softmax)(jnp.asarray(logits, dtype), polynomial=loss))


def sigmoid(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    with jax.enable_x64(True):
        return numbers(poly_sigmoid(jnp.asarray(logits, dtype), polynomial=loss))


def from_nll(loss: Polynomial, nll: Array, dtype: str = "float64") -> Found:
    with jax.enable_x64(True):
        value, pull = jax.vjp(partial(poly_from_nll, polynomial=loss), jnp.asarray(nll, dtype))
        return Found(numbers(value), *map(numbers, pull(jnp.ones_like(value))))
