"""``poly_cross_entropy`` against torch's own ``F.cross_entropy``: numbers, dtypes, autocast, empty batches."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
from cases import CELLS, Cell, arrays
from found import SPACING, Found, compare, far, report
from on_torch import found_by
from polylosses.torch import (
    PolyCrossEntropyLoss,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
)
from test_softmax_laws import expected

NAMED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PLAIN = polylosses.cross_entropy()


def run(function: Callable[..., Tensor], cell: Cell, dtype: torch.dtype, **chosen: Any) -> Found:
    """The loss and its gradients with respect to the logits and, for soft targets, the target."""
    numbers = arrays(cell)
    logits = torch.tensor(numbers.logits, dtype=dtype, requires_grad=True)
    soft = cell.target == "probabilities"
    target = torch.tensor(numbers.target, dtype=dtype if soft else torch.long, requires_grad=soft)
    weight = None if numbers.weight is None else torch.tensor(numbers.weight, dtype=dtype)
    if cell.ignore_index is not None:
        chosen["ignore_index"] = cell.ignore_index
    value = function(logits, target, weight, reduction=cell.reduction, label_smoothing=cell.label_smoothing, **chosen)
    return found_by(value, logits, target, numbers.grad_output if cell.reduction == "none" else None)


ALIKE: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    **{f"epsilon=0 in {name}": ({"epsilon": 0.0}, dtype) for name, dtype in NAMED.items()},
    "epsilon=tensor(0)": ({"epsilon": torch.tensor(0.0)}, torch.float64),
    "epsilon=(0, 0)": ({"epsilon": (0.0, 0.0)}, torch.float64),
    "polynomial=cross_entropy()": ({"polynomial": PLAIN}, torch.float64),
    "polynomial=focal(0)": ({"polynomial": polylosses.focal(0.0)}, torch.float64),
}


@pytest.mark.parametrize(("chosen", "dtype"), ALIKE.values(), ids=ALIKE)
def test_it_is_torchs_cross_entropy_where_the_polynomial_is(chosen: dict[str, Any], dtype: torch.dtype) -> None:
    failures = {}
    for cell in CELLS:
        found, torchs = run(poly_cross_entropy, cell, dtype, **chosen), run(F.cross_entropy, cell, dtype)
        scales = expected(PLAIN, cell)
        right = replace(
            scales,
            value=torchs.value,
            gradient=torchs.gradient,
            target_gradient=torchs.target_gradient,
        )
        # Twice, since torch's own numbers have rounding errors too: they are computed in this dtype.
        failures[str(cell)] = compare(found, right, lambda _, scale: 2 * torch.finfo(dtype).eps * scale)
    report(failures)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    "autocast", [None, torch.bfloat16, torch.float16], ids=["plain", "autocast bf16", "autocast f16"]
)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_dtype_of_the_result_is_torchs(soft: bool, autocast: torch.dtype | None) -> None:
    target = torch.tensor([[0.5, 0.5, 0.0]]) if soft else torch.tensor([2])
    differing = []
    for dtype in DTYPES:
        for target_dtype in DTYPES if soft else [torch.long, torch.uint8]:
            # Class indices need weights of the logits' dtype. Soft targets take any.
            for weight_dtype in [None, *DTYPES] if soft else [None, dtype]:
                # torch's own label smoothing doesn't support uint8 indices.
                for smoothing in (0.0,) if target_dtype == torch.uint8 else (0.0, 0.125):
                    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)
                    weight = None if weight_dtype is None else torch.ones(3, dtype=weight_dtype)
                    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                        given = (logits, target.to(target_dtype), weight)
                        found = poly_cross_entropy(*given, label_smoothing=smoothing).dtype
                        torchs = F.cross_entropy(*given, label_smoothing=smoothing).dtype
                    if found != torchs:
                        differing.append(f"{dtype}, {target_dtype}, {weight_dtype}, {smoothing}: {found}, not {torchs}")
    assert not differing, "\n".join(differing)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_the_float32_loss_of_low_precision_logits(dtype: torch.dtype) -> None:
    failures = {}
    for cell in CELLS:
        with torch.autocast("cpu", dtype=dtype):
            found = run(poly_cross_entropy, cell, dtype, epsilon=2.0).value
        right = expected(polylosses.poly1(2.0), cell)
        failures[str(cell)] = far("value", found, right.value, SPACING["float32"] * right.value_scale)
    report(failures)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_empty_batches_are_torchs(soft: bool, shape: tuple[int, ...]) -> None:
    positions = shape[:1] + shape[2:]
    for weight, smoothing, reduction in itertools.product((None, torch.ones(3)), (0.0, 0.125), ("none", "mean", "sum")):
        target = torch.zeros(shape) if soft else torch.zeros(positions, dtype=torch.long)
        z = torch.zeros(shape, requires_grad=True)
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        found = poly_cross_entropy(z, target, weight, **options, epsilon=2.0, gamma=0.5)
        right = F.cross_entropy(z, target, weight, **options)
        torch.testing.assert_close(found, right, equal_nan=True, rtol=0, atol=0)
        assert torch.autograd.grad(found.sum(), z)[0].shape == shape


@pytest.mark.parametrize("implementation", ["plain", None])
def test_an_ignored_index_is_compared_exactly(implementation: str | None) -> None:
    """No wraparound in the target's dtype, as in torch: -100 would be 156 in uint8."""
    weight = torch.linspace(0.5, 2.0, 200)
    head = torch.eye(200)
    for dtype, ignored in itertools.product((torch.uint8, torch.int64), (-100, 156, 412, -1, 2**40, -(2**63))):
        y = torch.tensor([0, 1, 156, 3], dtype=dtype)
        for w, smoothing, reduction in itertools.product((None, weight), (0.0, 0.125), ("none", "mean", "sum")):
            options: dict[str, Any] = {"ignore_index": ignored, "label_smoothing": smoothing, "reduction": reduction}
            z = torch.linspace(-3, 3, 800).reshape(4, 200).requires_grad_()
            ours: dict[str, Any] = options | {"epsilon": 0.0, "implementation": implementation}
            right = F.cross_entropy(z, y.long(), w, **options)
            torchs = torch.autograd.grad(right.sum(), z)[0]
            for found in (
                poly_cross_entropy(z, y, w, **ours),
                linear_poly_cross_entropy(z, head, y, weight=w, **ours),
            ):
                torch.testing.assert_close(found, right)
                torch.testing.assert_close(torch.autograd.grad(found.sum(), z)[0], torchs)


def test_sparse_probabilities_are_dense_ones() -> None:
    """Torch supports them too, without label smoothing."""
    z = torch.linspace(-2, 2, 6).reshape(2, 3)
    dense = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    sparse = dense.to_sparse()
    torch.testing.assert_close(poly_cross_entropy(z, sparse, epsilon=0.0), F.cross_entropy(z, sparse))
    for smoothing, reduction in itertools.product((0.0, 0.125), ("none", "mean", "sum")):
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction, "epsilon": 2.0}
        assert torch.equal(poly_cross_entropy(z, sparse, **options), poly_cross_entropy(z, dense, **options))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_smoothing_over_no_class_is_torchs(reduction: str) -> None:
    z = torch.zeros(2, 0)
    for y in (torch.full((2,), -100), z):
        options: dict[str, Any] = {"label_smoothing": 0.125, "reduction": reduction}
        found, right = poly_cross_entropy(z, y, **options), F.cross_entropy(z, y, **options)
        torch.testing.assert_close(found, right, equal_nan=True)


def everything() -> list[Tensor]:
    """Calls every function and option that creates a tensor from numbers."""
    z = torch.linspace(-3, 3, 15, dtype=torch.float64, device="cpu").reshape(5, 3)
    y = torch.tensor([0, 2, 1, -100, 1], device="cpu")
    soft = z.flip(0).softmax(1)
    weight = torch.tensor([1, 3, 2], device="cpu")
    binary: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
    found = [
        function(z, y, gamma=gamma, **options)
        for gamma in (0.0, 0.3)
        for function, options in (
            (poly_cross_entropy, {}),
            (poly_cross_entropy, {"weight": weight.double(), "label_smoothing": 0.1}),
            (binary, {"ignore_index": -100, "alpha": 0.9}),
            (binary, {"ignore_index": -100, "alpha": 0.9, "alpha_on_epsilon": False, "pos_weight": weight}),
            (binary, {"ignore_index": -100, "pos_weight": weight, "weight": weight}),
            (lambda z, y, **o: linear_poly_cross_entropy(z, z[:3], y, **o), {"label_smoothing": 0.1}),
        )
    ]
    found += [binary(z, soft, alpha=0.9, pos_weight=weight, gamma=gamma) for gamma in (0.0, 0.3)]
    found += [poly_cross_entropy(z, soft, weight.double(), label_smoothing=0.1, gamma=0.3)]
    found += [poly_from_nll(z.abs(), gamma=0.3), poly_softmax(z, 1, gamma=0.3), poly_sigmoid(z, gamma=0.3)]
    module = PolyCrossEntropyLoss(weight.double(), epsilon=(0.1, 0.7), gamma=0.3)
    return [*found, module(z, y)]


@pytest.mark.parametrize("setting", [torch.bfloat16, torch.float64, "meta"], ids=str)
def test_the_default_dtype_and_device_play_no_part(setting: Any) -> None:
    right = everything()
    dtype = torch.get_default_dtype()
    try:
        if setting == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(setting)
        found = everything()
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
    for k, (one, other) in enumerate(zip(found, right, strict=True)):
        assert (one.dtype, one.device) == (other.dtype, other.device), k
        assert torch.equal(one, other), k


def test_tensors_of_a_narrower_dtype_lose_nothing_to_numbers() -> None:
    """0.1 plus a float32 epsilon is computed in the logits' dtype."""
    z = torch.linspace(-3, 3, 15, dtype=torch.float64).reshape(5, 3)
    y = torch.tensor([0, 2, 1, 0, 1])
    binary: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
    epsilon, gamma, alpha = (torch.tensor(x) for x in (0.3, 1.7, 0.9))
    numbers = polylosses.Polynomial((epsilon.item(),), gamma.item(), 0.1)
    tensors = polylosses.Polynomial((epsilon,), gamma, 0.1)
    functions: list[Callable[..., Tensor]] = [
        lambda polynomial, _: poly_cross_entropy(z, y, polynomial=polynomial),
        lambda polynomial, a: binary(z, y, polynomial=polynomial, alpha=a),
        lambda polynomial, a: binary(z, z.sigmoid(), polynomial=polynomial, alpha=a, alpha_on_epsilon=False),
        lambda polynomial, _: poly_softmax(z, 1, polynomial=polynomial),
        lambda polynomial, _: poly_sigmoid(z, polynomial=polynomial),
    ]
    for function in functions:
        found, right = function(tensors, alpha), function(numbers, alpha.item())
        torch.testing.assert_close(found, right, rtol=1e-14, atol=0)
