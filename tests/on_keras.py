"""Adapter of ``polylosses.keras`` for the tests that run on every backend. It uses Keras's current backend.

The functions of ``polylosses.keras`` have no reductions: the adapter adds them, as a user would.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from cases import Array, BinaryCell
from found import Found
from polylosses import Polynomial
from polylosses.keras import (
    poly_binary_crossentropy,
    poly_categorical_crossentropy,
    poly_sparse_categorical_crossentropy,
)

# Import this backend only: the others may not be installed, and take seconds to import.
BACKEND = keras.backend.backend()
if BACKEND == "torch":
    import torch
elif BACKEND == "jax":
    import jax
    import jax.numpy as jnp
else:
    import tensorflow as tf

LOW_PRECISION = False


def with_gradients(function: Callable[..., Any], factor: Array, given: list[Array], dtype: str) -> Found:
    """The function's value, and its gradients for ``grad_output = factor``."""
    if BACKEND == "torch":
        tensors = [torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=True) for array in given]
        value = function(*tensors)
        gradients = torch.autograd.grad(value, tensors, torch.tensor(factor, dtype=value.dtype))
        return Found(value.detach().double().numpy(), *[gradient.double().numpy() for gradient in gradients])
    if BACKEND == "tensorflow":
        tensors = [tf.constant(array, dtype) for array in given]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors, tf.constant(factor, value.dtype))
        return Found(*[np.asarray(array, np.float64) for array in (value, *gradients)])
    with jax.enable_x64(dtype == "float64"):
        value, pull = jax.vjp(function, *[jnp.asarray(array, dtype) for array in given])
        gradients = pull(jnp.asarray(factor, value.dtype))
        return Found(*[np.asarray(array, np.float64) for array in (value, *gradients)])


def second_derivatives(function: Callable[[Any], Any], given: Array, direction: Array) -> list[Array]:
    """The function's values, the gradient of their sum, and a Hessian-vector product with ``direction``."""
    if BACKEND == "torch":
        z = torch.tensor(given, requires_grad=True)
        value = function(z)
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        (second,) = torch.autograd.grad((gradient * torch.tensor(direction)).sum(), z)
        return [found.detach().numpy() for found in (value, gradient, second)]
    if BACKEND == "tensorflow":
        z = tf.constant(given)
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = function(z)
            gradient = inner.gradient(value, z)
            product = tf.reduce_sum(gradient * direction)
        return [found.numpy() for found in (value, gradient, outer.gradient(product, z))]

    def first(z: Any) -> Any:
        value, pull = jax.vjp(function, z)
        return value, pull(jnp.ones_like(value))[0]

    def both(z: Any) -> Any:
        (value, gradient), pull = jax.vjp(first, z)
        return value, gradient, pull((jnp.zeros_like(value), jnp.broadcast_to(direction, gradient.shape)))[0]

    return [np.asarray(found) for found in jax.jit(both)(given)]


def compiled(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function, compiled in every way that the backend has."""
    if BACKEND == "torch":
        return [torch.compile(function, backend="aot_eager", fullgraph=True)]
    if BACKEND == "tensorflow":
        return [tf.function(function), tf.function(function, jit_compile=True)]
    return [jax.jit(function)]


def reduced(found: Found, factor: Array, reduction: str) -> Found:
    """Replaces the losses by their weighted sum, unless ``reduction`` is "none"."""
    if reduction == "none":
        return found
    with np.errstate(invalid="ignore"):
        total = (found.value * factor).sum()
    return Found(np.asarray(total), found.gradient, found.target_gradient)


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
    soft = target.shape == logits.shape
    batch_shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    valid = np.ones(batch_shape, bool) if soft or ignore_index is None else target != ignore_index
    indices = None if soft else np.where(valid, target, 0)
    weights = np.ones(logits.shape[axis]) if weight is None else weight
    factor = np.ones(batch_shape)
    if reduction == "none" and grad_output is not None:
        factor = grad_output
    elif reduction == "mean":
        with np.errstate(divide="ignore"):
            factor = factor / (np.float64(valid.size) if soft else (valid * weights[indices]).sum())
    if soft or label_smoothing:
        labels = target if indices is None else np.moveaxis(np.eye(len(weights))[indices], -1, axis)

        def dense(z: Any, y: Any = labels) -> Any:
            return poly_categorical_crossentropy(y, z, True, label_smoothing, axis, alpha=weight, polynomial=loss)

        given = [np.where(np.expand_dims(valid, axis), logits, 0), *([target] if soft else [])]
        found = with_gradients(dense, np.where(valid, factor, 0), given, dtype)
        found = Found(found.value * valid, found.gradient, found.target_gradient)
    else:

        def sparse(z: Any) -> Any:
            y = keras.ops.convert_to_tensor(target, "int32")
            return poly_sparse_categorical_crossentropy(y, z, True, ignore_index, axis, alpha=weight, polynomial=loss)

        found = with_gradients(sparse, factor, [logits], dtype)
    if reduction == "mean" and not found.value.size:
        factor = np.array([np.nan])
    return reduced(found, factor, reduction)


def serves_binary(cell: BinaryCell) -> bool:
    return cell.alpha_on_epsilon and cell.ignore_index is None and not cell.weighted and cell.target != "class ids"


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
    assert pos_weight is None
    assert target.shape == logits.shape
    factor = np.ones(logits.shape)
    if reduction == "none" and grad_output is not None:
        factor = grad_output
    elif reduction == "mean":
        factor = factor / np.float64(factor.size)
    weights = 1.0 if weight is None else weight

    def elements(z: Any, y: Any) -> Any:
        # Add a last axis of size 1, since Keras takes the mean along the last axis.
        columns = keras.ops.expand_dims(y, -1), keras.ops.expand_dims(z, -1)
        return poly_binary_crossentropy(*columns, True, alpha=alpha, polynomial=loss)

    found = with_gradients(elements, factor * weights, [logits, target], dtype)
    return reduced(Found(found.value * weights, found.gradient, found.target_gradient), factor, reduction)
