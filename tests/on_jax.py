"""Adapter of ``polylosses.jax`` for the tests that run on every backend.

The losses of ``polylosses.jax`` have no reductions, no class weights and no label smoothing of soft targets: the
adapter adds them in NumPy.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cases import LOSSES, Array, BinaryCell
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


def losses(how: tuple[bool, int], polynomial: Any, logits: Any, target: Any, valid: Any, label_smoothing: Any) -> Any:
    """The loss of each example."""
    dense_target, axis = how
    chosen: dict[str, Any] = {"polynomial": polynomial, "axis": axis, "where": valid}
    if dense_target:
        return poly_cross_entropy(logits, target, **chosen)
    smoothed = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
    return poly_cross_entropy_with_integer_labels(logits, target, **smoothed, **chosen)


def with_gradients(how: Any, polynomial: Any, grad_output: Any, logits: Any, target: Any, *others: Any) -> Any:
    def of(z: Any, y: Any = target) -> Any:
        return losses(how, polynomial, z, y, *others)

    value, pull = jax.vjp(of, logits, target) if how[0] else jax.vjp(of, logits)
    return value, *pull(grad_output.astype(value.dtype))


# Without optimization, since compilation takes most of the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# The numbers of a polynomial may be compile-time constants or traced. Both programs are tested.
KNOWN = jit(with_gradients, static_argnames=("how", "polynomial"))
TRACED = jit(with_gradients, static_argnames="how")

# One loss for each combination of zeros among the constants, and of none, one and more coefficients, since each
# combination compiles to a different program.
OF_EACH_KIND = {(len(p.coefficients[:2]), p.gamma == 0, p.log_weight == 0): p for p in LOSSES.values()}.values()


def padded(loss: Polynomial) -> Polynomial:
    """Pads the coefficients with zeros to 8, so that losses share a compiled program."""
    return replace(loss, coefficients=(*loss.coefficients, *[0.0] * (8 - len(loss.coefficients))))


def stacked(dtype: str = "float32") -> Any:
    """All losses as one polynomial of stacked arrays, for ``vmap``: one compiled program for all."""
    return jax.tree.map(lambda *numbers: jnp.asarray(numbers, dtype), *map(padded, LOSSES.values()))


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
    axis = 0 if logits.ndim == 1 else 1
    dense_target = target.shape == logits.shape
    batch_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    valid = np.ones(batch_shape, bool) if dense_target or ignore_index is None else target != ignore_index
    weights = np.ones(logits.shape[axis]) if weight is None else weight
    class_weight = np.broadcast_to(weights.reshape([-1 if k == axis else 1 for k in range(logits.ndim)]), logits.shape)
    row_weight = np.ones(batch_shape) if dense_target else weights[np.where(valid, target, 0)]
    factor = np.ones(batch_shape)
    if reduction == "none" and grad_output is not None:
        factor = grad_output
    elif reduction == "mean":
        with np.errstate(divide="ignore"):
            factor = factor / (np.float64(valid.size) if dense_target else (valid * row_weight).sum())

    def found_by(dense_target: bool, target: Array, times: Array, smoothing: float = 0.0) -> list[Array]:
        known = dtype == "float32" and loss in OF_EACH_KIND
        with jax.enable_x64(True):
            found = (KNOWN if known else TRACED)(
                (dense_target, axis),
                loss if known else padded(loss),
                jnp.asarray(factor * times, dtype),
                jnp.asarray(logits, dtype),
                jnp.asarray(target, dtype if dense_target else "int32"),
                None if ignore_index is None else jnp.asarray(valid),
                None if smoothing == 0 else jnp.asarray(smoothing, dtype),
            )
            value, *gradients = map(numbers, found)
        return [times * value, *gradients]

    if dense_target:
        labels = class_weight * ((1 - label_smoothing) * target + label_smoothing / len(weights))
        value, gradient, by_labels = found_by(True, labels, np.ones(batch_shape))
        gradients = [gradient, by_labels * class_weight * (1 - label_smoothing)]
    elif weight is None:
        value, *gradients = found_by(False, target, np.ones(batch_shape), label_smoothing)
    else:
        value, *gradients = found_by(False, target, (1 - label_smoothing) * row_weight)
        if label_smoothing:
            spread, by_spread, _ = found_by(True, class_weight / len(weights), np.full(batch_shape, label_smoothing))
            value, gradients = value + spread, [gradients[0] + by_spread]
    if reduction != "none":
        with np.errstate(invalid="ignore"):
            value = np.asarray((value * factor).sum() if value.size else np.float64(0) * factor.sum())
    return Found(value, *gradients)


@partial(jit, static_argnames="alpha")
def binary_with_gradients(alpha: float | None, polynomial: Any, grad_output: Any, logits: Any, labels: Any) -> Any:
    of = partial(sigmoid_poly_cross_entropy, alpha=alpha, polynomial=polynomial)
    value, pull = jax.vjp(of, logits, labels)
    return value, *pull(grad_output.astype(value.dtype))


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
    grad_output: Array | None = None,
    dtype: str = "float64",
) -> Found:
    assert alpha_on_epsilon
    assert ignore_index is None
    dense = target.shape == logits.shape
    labels = target
    if not dense:
        labels = np.moveaxis(np.eye(logits.shape[min(1, logits.ndim - 1)])[target], -1, min(1, logits.ndim - 1))
    factor = np.ones(logits.shape)
    if reduction == "none" and grad_output is not None:
        factor = grad_output
    elif reduction == "mean":
        factor = factor / np.float64(factor.size)
    times = np.broadcast_to(1.0 if weight is None else weight, logits.shape)

    def found_by(labels: Array, times: Array) -> list[Array]:
        given = factor * times, logits, labels
        with jax.enable_x64(True):
            found = binary_with_gradients(alpha, padded(loss), *(jnp.asarray(array, dtype) for array in given))
            value, *gradients = map(numbers, found)
        return [times * value, *gradients]

    if pos_weight is None:
        value, *gradients = found_by(labels, times)
    else:
        # The loss is linear in the labels, so pos_weight multiplies the loss of all-positive labels.
        yes, by_yes, _ = found_by(np.ones(logits.shape), times * pos_weight * labels)
        no, by_no, _ = found_by(np.zeros(logits.shape), times * (1 - labels))
        value, gradients = yes + no, [by_yes + by_no]
        of_yes, of_no = (found_by(np.full(logits.shape, y), times)[0] for y in (1.0, 0.0))
        gradients.append(factor * (pos_weight * of_yes - of_no))
    return Found(value if reduction == "none" else np.asarray((value * factor).sum()), *gradients[: 1 + dense])


def softmax(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    """``poly_softmax`` over the last axis."""
    with jax.enable_x64(True):
        return numbers(jax.jit(poly_softmax)(jnp.asarray(logits, dtype), polynomial=padded(loss)))


def sigmoid(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    with jax.enable_x64(True):
        return numbers(jax.jit(poly_sigmoid)(jnp.asarray(logits, dtype), polynomial=padded(loss)))


def from_nll_with_gradient(polynomial: Any, nll: Any) -> Any:
    value, pull = jax.vjp(partial(poly_from_nll, polynomial=polynomial), nll)
    return value, *pull(jnp.ones_like(value))


FROM_NLL_KNOWN = jit(from_nll_with_gradient, static_argnames="polynomial")
FROM_NLL_TRACED = jit(from_nll_with_gradient)


def from_nll(loss: Polynomial, nll: Array, dtype: str = "float64") -> Found:
    known = dtype == "float32" and loss in OF_EACH_KIND
    with jax.enable_x64(True):
        given = jnp.asarray(nll, dtype)
        return Found(*map(numbers, FROM_NLL_KNOWN(loss, given) if known else FROM_NLL_TRACED(padded(loss), given)))
