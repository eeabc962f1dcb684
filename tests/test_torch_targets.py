"""Targets of every dtype: ignored rows, class indices, and invalid targets."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses import Polynomial, focal
from polylosses.torch import (
    linear,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
)

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
IMPLEMENTATIONS = [None, "plain"]


@pytest.fixture(autouse=True)
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the linear head use several chunks."""
    monkeypatch.setattr(linear, "_CHUNK_BYTES_ON_CPU", 1)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", 2)


def head(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    """A linear head with the identity as its weight, so that ``z`` are the logits."""
    return linear_poly_cross_entropy(z, torch.eye(z.shape[1], dtype=z.dtype, device=z.device), y, **options)


Loss = Callable[..., Tensor]
SOFTMAXES: dict[str, Loss] = {
    "softmax": poly_cross_entropy,
    "smoothing": partial(poly_cross_entropy, label_smoothing=0.25),
    "head": head,
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SOFTMAXES)
@pytest.mark.parametrize("ignore_index", [-100, -1, 44, 156, 255, 256, 300, -356])
def test_an_ignore_index_outside_of_uint8_ignores_nothing(ignore_index: int, name: str, implementation: Any) -> None:
    z = torch.randn(5, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 156, 255, 44, 100], dtype=torch.uint8)
    options: Any = {"label_smoothing": 0.25} if name == "smoothing" else {}
    for reduction in ("none", "mean", "sum"):
        found = SOFTMAXES[name](
            z, y, epsilon=0.0, ignore_index=ignore_index, reduction=reduction, implementation=implementation
        )
        right = F.cross_entropy(z, y.long(), ignore_index=ignore_index, reduction=reduction, **options)
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("ignore_index", [None, -100, 1, 255, 257, 65536 + 1, 2**32 + 1, 2**70])
def test_class_ids_of_every_integer_dtype(ignore_index: Any, dtype: torch.dtype, implementation: Any) -> None:
    if ignore_index == 2**70:
        implementation = "plain"
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 1])
    options: Any = {"ignore_index": ignore_index, "implementation": implementation}
    found = poly_binary_cross_entropy_with_logits(z, y.to(dtype), **options)
    torch.testing.assert_close(found, poly_binary_cross_entropy_with_logits(z, y, **options))
    kept = y != 1 if ignore_index == 1 else slice(None)
    torch.testing.assert_close(found, poly_binary_cross_entropy_with_logits(z[kept], y[kept]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "ignore_index",
    [255, 256, 257, 2047, 2049, 65504, 65536, 2**24, 2**24 + 1, 2**53 + 1, 10**400],
    ids=lambda n: str(n)[:9],
)
def test_dense_targets_hold_the_ignore_index_rounded(
    ignore_index: int, dtype: torch.dtype, implementation: Any
) -> None:
    z = torch.randn(4, generator=torch.Generator().manual_seed(0)).to(dtype)
    nearest = torch.tensor(float(ignore_index) if ignore_index < 2**60 else math.inf, dtype=torch.float64).to(dtype)
    implementation = implementation if nearest.isfinite() and dtype in (torch.float32, torch.bfloat16) else None
    y = torch.tensor([0.0, 1.0, 0.25, 0.0], dtype=dtype)
    y[3] = nearest
    found = poly_binary_cross_entropy_with_logits(
        z, y, ignore_index=ignore_index, reduction="none", implementation=implementation
    )
    right = poly_binary_cross_entropy_with_logits(z, y, reduction="none", implementation=implementation)
    torch.testing.assert_close(found[:3], right[:3])
    assert found[3] == 0


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", [(4, 1), (1,), (4, 1, 3)])
def test_integers_for_one_logit_are_no_class_ids(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z = torch.full(shape, -5.0)
    y = torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else (), dtype=dtype)
    with pytest.raises(ValueError, match=r"class ids.*has one class.*input\.squeeze.*target\.to\(input\.dtype\)"):
        poly_binary_cross_entropy_with_logits(z, y)
    meant = y.to(z.dtype).unsqueeze(0 if len(shape) == 1 else 1)
    assert poly_binary_cross_entropy_with_logits(z, meant) < 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_indices_out_of_range_are_torchs_error_in_uint8_too(name: str, implementation: Any) -> None:
    y = torch.tensor([0, 255], dtype=torch.uint8)
    with pytest.raises(IndexError, match="Target 255 is out of bounds"):
        SOFTMAXES[name](torch.randn(2, 7), y, implementation=implementation)


def test_sparse_probabilities_are_those_of_torch() -> None:
    z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    dense = torch.softmax(z.detach(), 1) * (torch.rand(4, 7) < 0.5)
    found, right = poly_cross_entropy(z, dense.to_sparse(), epsilon=0.0), F.cross_entropy(z, dense)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(right, z))


def test_smoothing_over_no_classes_is_torchs() -> None:
    z, y = torch.zeros(2, 0), torch.full((2,), -100)
    for reduction, weight in itertools.product(("none", "mean", "sum"), (None, torch.ones(0))):
        found = poly_cross_entropy(z, y, weight, label_smoothing=0.1, reduction=reduction)
        right = F.cross_entropy(z, y, weight, label_smoothing=0.1, reduction=reduction)
        torch.testing.assert_close(found, right, equal_nan=True)


DENSE_IGNORED = torch.tensor([[0.0, -7.0, 1.0], [-7.0, -7.0, -7.0], [1.0, 0.0, -7.0]])
# OF_ROWS takes a target for each row. IGNORING: (loss of logits of shape (3, 3), mask of the ignored elements).
OF_ROWS: dict[str, Loss] = {
    "softmax": poly_cross_entropy,
    "softmax, smoothing": partial(poly_cross_entropy, label_smoothing=0.25),
    "softmax, weight": lambda z, **o: poly_cross_entropy(z, weight=torch.ones(3).to(z), **o),
    "class ids": poly_binary_cross_entropy_with_logits,
}
IGNORING: dict[str, tuple[Loss, list[list[bool]]]] = {
    name: (partial(loss, target=torch.tensor([2, -7, 0]), ignore_index=-7), [[False] * 3, [True] * 3, [False] * 3])
    for name, loss in OF_ROWS.items()
} | {
    "dense": (
        lambda z, **o: poly_binary_cross_entropy_with_logits(z, DENSE_IGNORED.to(z.dtype), ignore_index=-7, **o),
        (DENSE_IGNORED == -7).tolist(),
    ),
}
POLYNOMIALS = [focal(0.5), Polynomial((1.0, -0.25)), Polynomial((torch.tensor(0.5),), 0.5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", IGNORING)
def test_ignored_logits_count_nothing_whatever_they_hold(name: str, implementation: Any, dtype: torch.dtype) -> None:
    loss, ignored = IGNORING[name]
    mask = torch.tensor(ignored)
    z = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for polynomial in POLYNOMIALS:
        for reduction in ("mean", "sum"):
            results = []
            for fill in (0.0, math.nan, math.inf, -math.inf):
                x = z.masked_fill(mask, fill).requires_grad_()
                value = loss(x, polynomial=polynomial, reduction=reduction, implementation=implementation)
                results.append((value.detach(), *torch.autograd.grad(value, x)))
            assert not results[0][1][mask].any()
            for other in results[1:]:
                torch.testing.assert_close(other, results[0], rtol=0, atol=0)


ALL_IGNORED: dict[str, Loss] = {
    **SOFTMAXES,
    "class ids": poly_binary_cross_entropy_with_logits,
    "dense": lambda z, y, **o: poly_binary_cross_entropy_with_logits(z, y.to(z).unsqueeze(1).expand(z.shape), **o),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ALL_IGNORED)
def test_where_all_is_ignored_a_learned_polynomial_has_gradients_of_0(name: str, reduction: str) -> None:
    """In distributed training, nan from one empty rank would spread to all."""
    z = torch.randn(5, 3, requires_grad=True)
    epsilon, gamma = torch.tensor([1.0, 0.5], requires_grad=True), torch.tensor(1.5, requires_grad=True)
    value = ALL_IGNORED[name](
        z, torch.full((5,), -100), ignore_index=-100, epsilon=epsilon, gamma=gamma, reduction=reduction
    )
    assert value.isnan() if reduction == "mean" else not value.any()
    for gradient in torch.autograd.grad(value.sum(), (z, epsilon, gamma)):
        assert not gradient.any()
        assert gradient.isfinite().all()


def test_defaults_of_torch_change_nothing() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, dense = torch.tensor([0, 2, -100, 1]), torch.rand(4, 3, dtype=torch.float64)
    losses: list[Callable[[], Tensor]] = []
    for alpha in (None, 0.9, torch.tensor(0.9, dtype=torch.float64)):
        for alpha_on_epsilon in (True, False):
            options: Any = {"alpha": alpha, "alpha_on_epsilon": alpha_on_epsilon, "gamma": 0.5}
            losses.append(partial(poly_binary_cross_entropy_with_logits, z, y, ignore_index=-100, **options))
            losses.append(partial(poly_binary_cross_entropy_with_logits, z, dense, **options))
            pos_weight = torch.tensor([0.3, 0.7, 1.9], dtype=torch.float64)
            losses.append(partial(poly_binary_cross_entropy_with_logits, z, y % 3, pos_weight=pos_weight, **options))
    for loss in SOFTMAXES.values():
        losses.append(partial(loss, z, y, epsilon=(0.3, 0.7), gamma=0.3))
        losses.append(partial(loss, z, y, epsilon=torch.tensor(0.3, dtype=torch.float64), gamma=0.3))
    before = [loss() for loss in losses]
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                after = [loss() for loss in losses]
            for loss, a, b in zip(losses, before, after, strict=True):
                assert torch.equal(a, b), loss
    finally:
        torch.set_default_dtype(default)


def test_alpha_in_float64_has_all_digits() -> None:
    z, y = torch.tensor([[0.3, -0.7]], dtype=torch.float64), torch.tensor([0])
    found = poly_binary_cross_entropy_with_logits(z, y, alpha=0.9, epsilon=0.0, reduction="sum")
    right = 0.9 * math.log1p(math.exp(-0.3)) + (1.0 - 0.9) * math.log1p(math.exp(-0.7))
    assert found.item() == pytest.approx(right, rel=1e-15)


@pytest.mark.parametrize("alpha", [torch.tensor(1.5), torch.tensor([0.5, -0.1]), torch.tensor(math.nan)], ids=str)
def test_a_tensor_alpha_out_of_range_is_refused(alpha: Tensor) -> None:
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        poly_binary_cross_entropy_with_logits(torch.zeros(3, 2), torch.zeros(3, 2), alpha=alpha)


INFINITE = [-math.inf, torch.finfo(torch.float32).min, -1e30, 1e30, torch.finfo(torch.float32).max, math.inf]


@pytest.mark.parametrize("number", [float, torch.tensor], ids=["number", "tensor"])
@pytest.mark.parametrize("alpha_on_epsilon", [True, False])
@pytest.mark.parametrize("log_weight", [0.0, 1.0])
def test_infinite_logits_without_a_share_count_nothing(log_weight: float, alpha_on_epsilon: bool, number: Any) -> None:
    """``0 * inf = 0``: a side with weight 0, from alpha or the target, has no loss and no gradient."""
    for implementation in IMPLEMENTATIONS:
        for gamma, alpha, y in [(g, a, y) for g in (0.0, 0.5, 2.0) for a in (0.0, 0.9, 1.0) for y in (0.0, 1.0)]:
            if implementation is None and number is torch.tensor:
                continue
            z = torch.tensor(INFINITE, requires_grad=True)
            polynomial = Polynomial((0.5, 0.25), gamma, log_weight)
            value = poly_binary_cross_entropy_with_logits(
                *(z, torch.full((6,), y)),
                polynomial=polynomial,
                alpha=number(alpha),
                alpha_on_epsilon=alpha_on_epsilon,
                reduction="none",
                implementation=implementation,
            )
            share = alpha if y == 1 else 1 - alpha
            wrong = torch.tensor(INFINITE) < 0 if y == 1 else torch.tensor(INFINITE) > 0
            assert not value.isnan().any()
            if share == 0:
                bound = 0.0 if alpha_on_epsilon else 0.75
                assert (value <= bound).all()
            elif log_weight == 1:
                assert (value[wrong].abs() > 1e28).all()
            (gradient,) = torch.autograd.grad(value.sum(), z)
            assert gradient.isfinite().all(), (gamma, alpha, y, implementation)
