"""``poly_cross_entropy`` beside torch's own ``F.cross_entropy``: numbers, dtypes, autocast, empty batches."""

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
from polylosses.torch import poly_cross_entropy
from test_softmax_laws import expected

NAMED = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
PLAIN = polylosses.cross_entropy()


def run(function: Callable[..., Tensor], cell: Cell, dtype: torch.dtype, **chosen: Any) -> Found:
    """The loss and its gradients with respect to the logits and, where there are any, the target probabilities."""
    numbers = arrays(cell)
    logits = torch.tensor(numbers.logits, dtype=dtype, requires_grad=True)
    soft = cell.target == "probabilities"
    target = torch.tensor(numbers.target, dtype=dtype if soft else torch.long, requires_grad=soft)
    weight = None if numbers.weight is None else torch.tensor(numbers.weight, dtype=dtype)
    if cell.ignore_index is not None:
        chosen["ignore_index"] = cell.ignore_index
    value = function(logits, target, weight, reduction=cell.reduction, label_smoothing=cell.label_smoothing, **chosen)
    return found_by(value, logits, target, numbers.upstream if cell.reduction == "none" else None)


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
        # Twice: torch's own numbers are off too. They are computed in the dtype itself.
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
            # Class indices want weights of the logits' dtype; for probabilities, anything goes.
            for weight_dtype in [None, *DTYPES] if soft else [None, dtype]:
                # torch's own smoothing doesn't take indices of type uint8.
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
