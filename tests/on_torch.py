"""Adapter of ``polylosses.torch`` for the tests that run on every backend."""

from typing import Any

import torch
from torch import Tensor

from cases import Array, BinaryCell
from found import Found
from polylosses import Polynomial
from polylosses.torch import (
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
)

LOW_PRECISION = True


def tensor(array: Array | None, dtype: str, *, requires_grad: bool = False) -> Any:
    return None if array is None else torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=requires_grad)


def numbers(found: Tensor) -> Array:
    return found.detach().double().numpy()


def found_by(value: Tensor, logits: Tensor, target: Tensor | None, grad_output: Array | None) -> Found:
    ones = torch.ones_like(value) if grad_output is None else torch.tensor(grad_output, dtype=value.dtype)
    value.backward(ones)  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    if target is None or not target.requires_grad:
        return Found(numbers(value), numbers(logits.grad))
    assert target.grad is not None, "the target has no gradient"
    return Found(numbers(value), numbers(logits.grad), numbers(target.grad))


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
    soft = target.shape == logits.shape
    z = tensor(logits, dtype, requires_grad=True)
    y = tensor(target, dtype if soft else "long", requires_grad=soft)
    value = poly_cross_entropy(
        z,
        y,
        tensor(weight, dtype),
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        polynomial=loss,
    )
    return found_by(value, z, y, grad_output if reduction == "none" else None)


def serves_binary(cell: BinaryCell) -> bool:
    return True


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
    dense = target.shape == logits.shape
    z = tensor(logits, dtype, requires_grad=True)
    y = tensor(target, dtype if dense else "long", requires_grad=dense)
    value = poly_binary_cross_entropy_with_logits(
        z,
        y,
        tensor(weight, dtype),
        pos_weight=tensor(pos_weight, dtype),
        alpha=alpha,
        alpha_on_epsilon=alpha_on_epsilon,
        ignore_index=ignore_index,
        reduction=reduction,
        polynomial=loss,
    )
    return found_by(value, z, y, grad_output if reduction == "none" else None)


def softmax(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    """``poly_softmax`` over the last axis."""
    return numbers(poly_softmax(tensor(logits, dtype), -1, polynomial=loss))


def sigmoid(loss: Polynomial, logits: Array, dtype: str = "float64") -> Array:
    return numbers(poly_sigmoid(tensor(logits, dtype), polynomial=loss))


def from_nll(loss: Polynomial, nll: Array, dtype: str = "float64") -> Found:
    x = tensor(nll, dtype, requires_grad=True)
    return found_by(poly_from_nll(x, polynomial=loss), x, None, None)
