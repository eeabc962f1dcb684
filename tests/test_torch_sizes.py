"""Very many classes, very many rows."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polylosses.torch import linear_poly_cross_entropy, poly_binary_cross_entropy_with_logits, poly_cross_entropy
from test_torch_kernels import needs_native

CLASSES = 200_000
FREE_GIB = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def with_gradient(loss: Tensor, logits: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return loss.detach().double().numpy(), torch.autograd.grad(loss.sum(), logits)[0].double().numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["", "smoothed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_softmax_of_200_000_classes(dtype: torch.dtype, smoothing: float) -> None:
    """Compares with float64, for ``L(p) = -log p + 2 (1 - p)``. Its derivative by ``log p`` is ``-(1 + 2 p)``."""
    generator = torch.Generator().manual_seed(0)
    logits = (4.0 * torch.randn(4, CLASSES, generator=generator)).to(dtype).requires_grad_()
    target = torch.tensor([0, 77_777, CLASSES - 1, -100])
    options: dict[str, Any] = {"epsilon": 2.0, "label_smoothing": smoothing, "reduction": "none"}
    value, gradient = with_gradient(poly_cross_entropy(logits, target, **options), logits)

    z = logits.detach().double().numpy()[:3]
    shifted = z - z.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(logp)
    share = np.full_like(p, smoothing / CLASSES)
    share[np.arange(3), target[:3]] += 1.0 - smoothing
    right = (share * (-logp + 2.0 * (1.0 - p))).sum(1)
    slope = -share * (1.0 + 2.0 * p)
    right_gradient = slope - p * slope.sum(1, keepdims=True)
    # Torch sums the classes sequentially, in at least 4 lanes, with an error of finfo.eps / 2 for each addition.
    digits = 4 * torch.finfo(dtype).eps + CLASSES / 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert (np.abs(value[:3] - right) <= digits * right).all()
    scale = np.abs(slope) + p * np.abs(slope).sum(1, keepdims=True)
    assert (np.abs(gradient[:3] - right_gradient) <= digits * scale).all()
    assert value[3] == 0
    assert (gradient[3] == 0).all()


def test_sigmoids_of_200_000_classes() -> None:
    logits = torch.randn(3, CLASSES, requires_grad=True)
    target = torch.tensor([5, CLASSES - 1, -100])
    hot = torch.zeros(3, CLASSES)
    hot[[0, 1], target[:2]] = 1.0
    hot[2] = -100.0
    options: dict[str, Any] = {"epsilon": 2.0, "gamma": 2.0, "alpha": 0.25, "reduction": "none"}
    found = with_gradient(poly_binary_cross_entropy_with_logits(logits, target, ignore_index=-100, **options), logits)
    dense = with_gradient(poly_binary_cross_entropy_with_logits(logits, hot, ignore_index=-100, **options), logits)
    for one, other in zip(found, dense, strict=True):
        np.testing.assert_allclose(one, other, rtol=4 * torch.finfo(torch.float32).eps, atol=1e-12)


def test_a_head_of_200_000_classes_has_the_numbers_of_its_layer() -> None:
    hidden = torch.randn(300, 8, requires_grad=True)  # three chunks
    head = torch.randn(CLASSES, 8, requires_grad=True)
    target = torch.randint(CLASSES, (300,))
    target[7] = -100
    found = linear_poly_cross_entropy(hidden, head, target, epsilon=2.0)
    plain = poly_cross_entropy(hidden @ head.T, target, epsilon=2.0)
    torch.testing.assert_close(found, plain)
    gradients = zip(*(torch.autograd.grad(loss, (hidden, head)) for loss in (found, plain)), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_mean_of_more_rows_than_low_precision_can_count(dtype: torch.dtype) -> None:
    rows = 100_000  # the largest float16 is 65504, and counting in bfloat16 stops at 256
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype).expand(rows, 3)
    target = torch.zeros(rows, dtype=torch.long)
    target[::2] = -100
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    one = poly_cross_entropy(logits[:1], target[1:2], epsilon=2.0)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
        alone = poly_cross_entropy(logits[:1], target[1:2], epsilon=2.0, **options)
        many = poly_cross_entropy(logits, target, epsilon=2.0, **options)
        torch.testing.assert_close(many, alone, rtol=torch.finfo(dtype).eps, atol=0)
    hidden, head = torch.ones(rows, 1, dtype=dtype), logits[0][:, None]
    many = linear_poly_cross_entropy(hidden, head, target, epsilon=2.0)
    torch.testing.assert_close(many, one, rtol=torch.finfo(dtype).eps, atol=0)
    alone = poly_binary_cross_entropy_with_logits(logits[:1], target[1:2], epsilon=2.0)
    many = poly_binary_cross_entropy_with_logits(logits, target, ignore_index=-100, epsilon=2.0)
    torch.testing.assert_close(many, alone, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    "implementation",
    [
        pytest.param("native", marks=needs_native),  # allocates nothing of the logits' size
        pytest.param("plain", marks=pytest.mark.skipif(FREE_GIB < 30, reason=f"17 GiB; {FREE_GIB:.0f} GiB are free")),
    ],
)
def test_more_logits_than_32_bits_can_count(implementation: str) -> None:
    rows, classes = 2**15 + 1, 2**16
    logits = torch.randn(classes).expand(rows, classes)
    target = torch.randint(classes, (rows,))
    options: dict[str, Any] = {"reduction": "none", "epsilon": 2.0, "implementation": implementation}
    loss = poly_cross_entropy(logits, target, **options)
    some = [0, 1, rows // 2, rows - 1]
    assert torch.equal(loss[some], poly_cross_entropy(logits[some], target[some], **options))
