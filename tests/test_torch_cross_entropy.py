"""Laws of ``poly_cross_entropy`` over the whole product of losses, options and dtypes.

Every test goes through all cells of :data:`cases.CELLS`; a failure names the cells and what differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
from cases import CELLS, LOSSES, Array, Cell, arrays
from polylosses import Polynomial
from polylosses.torch import poly_cross_entropy
from reference import Expected, cross_entropy

FULL = {"float64": torch.float64, "float32": torch.float32}
LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PLAIN = polylosses.cross_entropy()


@dataclass(frozen=True)
class Found:
    value: Tensor
    gradient: Tensor
    target_gradient: Tensor | None


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
    upstream = torch.tensor(numbers.upstream, dtype=value.dtype) if cell.reduction == "none" else None
    value.backward(upstream)  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return Found(value.detach(), logits.grad, target.grad)


@cache
def expected(loss: Polynomial, cell: Cell) -> Expected:
    numbers = arrays(cell)
    return cross_entropy(
        loss,
        numbers.logits,
        numbers.target,
        numbers.weight,
        ignore_index=-100 if cell.ignore_index is None else cell.ignore_index,
        reduction=cell.reduction,
        label_smoothing=cell.label_smoothing,
        upstream=numbers.upstream,
    )


def far(name: str, found: Tensor, right: Array, tolerance: Array) -> list[str]:
    """A line for the failure message if a number is further off than its own tolerance, or not of the right shape."""
    numbers = found.double().numpy()
    if numbers.shape != right.shape:
        return [f"{name} has shape {numbers.shape}, not {right.shape}"]
    off = ~((np.abs(numbers - right) <= tolerance) | (np.isnan(numbers) & np.isnan(right)))
    if not off.any():
        return []
    return [f"{name} {numbers[off][0]!r}, not {right[off][0]!r} within {tolerance[off][0]:.2g}"]


def compare(found: Found, right: Expected, tolerance: Callable[[Array, Array], Array]) -> list[str]:
    wrong = far("value", found.value, right.value, tolerance(right.value, right.value_scale))
    wrong += far("gradient", found.gradient, right.gradient, tolerance(right.gradient, right.gradient_scale))
    if found.target_gradient is not None:
        bound = tolerance(right.target_gradient, right.target_gradient_scale)
        wrong += far("gradient of the target", found.target_gradient, right.target_gradient, bound)
    return wrong


def report(failures: dict[str, list[str]]) -> None:
    lines = [f"{cell}: {'; '.join(wrong)}" for cell, wrong in failures.items() if wrong]
    if lines:
        pytest.fail("\n".join([f"{len(lines)} of {len(failures)} cells differ. The first:", *lines[:5]]))


def spacing(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def rounded_once(dtype: torch.dtype) -> Callable[[Array, Array], Array]:
    """One unit in the last place of the exact result in ``dtype``, above the error of the same thing in float32."""
    limits = torch.finfo(dtype)

    def tolerance(right: Array, scale: Array) -> Array:
        size = np.maximum(np.abs(right), limits.tiny)
        unit = limits.eps * 2.0 ** np.floor(np.log2(size))
        return np.asarray(unit + spacing(torch.float32) * scale)

    return tolerance


@pytest.mark.parametrize("dtype", FULL.values(), ids=FULL)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_the_oracles(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(
                run(poly_cross_entropy, cell, dtype, polynomial=loss),
                expected(loss, cell),
                lambda _, scale: spacing(dtype) * scale,
            )
            for cell in CELLS
        }
    )


@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
@pytest.mark.parametrize("name", ["cross_entropy", "poly1", "focal", "poly1_focal(-1, 0.5)", "poly_n of degree 8"])
def test_low_precision_is_the_oracle_rounded_once(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(
                run(poly_cross_entropy, cell, dtype, polynomial=loss), expected(loss, cell), rounded_once(dtype)
            )
            for cell in CELLS
        }
    )


ALIKE: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    **{f"epsilon=0 in {name}": ({"epsilon": 0.0}, dtype) for name, dtype in (FULL | LOW).items()},
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
            value=torchs.value.double().numpy(),
            gradient=torchs.gradient.double().numpy(),
            target_gradient=torchs.target_gradient.double().numpy()
            if torchs.target_gradient is not None
            else np.empty(0),
        )
        # Twice: torch's own numbers are off too. They are computed in the dtype itself.
        wrong = compare(found, right, lambda _, scale: 2 * spacing(dtype) * scale)
        if found.value.dtype != torchs.value.dtype:
            wrong.append(f"dtype {found.value.dtype}, not {torchs.value.dtype}")
        failures[str(cell)] = wrong
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


@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
def test_autocast_gives_the_float32_loss_of_low_precision_logits(dtype: torch.dtype) -> None:
    failures = {}
    for cell in CELLS:
        with torch.autocast("cpu", dtype=dtype):
            found = run(poly_cross_entropy, cell, dtype, epsilon=2.0).value
        right = expected(polylosses.poly1(2.0), cell)
        failures[str(cell)] = far("value", found, right.value, spacing(torch.float32) * right.value_scale)
    report(failures)


LISTING_LOGITS = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]], dtype=torch.float64)
LISTING_TARGET = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]], dtype=torch.float64)
GOLDEN = [  # epsilon, label smoothing, loss; from a float64 run of the paper's listing 1
    (2.0, 0.0, 4.531657285679147),
    (1.0, 0.0, 3.7153301084365054),
    (0.0, 0.0, 2.8990029311938637),
    (-1.0, 0.0, 2.082675753951222),
    (2.0, 0.1, 4.494391850230619),
]


@pytest.mark.parametrize(("epsilon", "smoothing", "right"), GOLDEN)
def test_numbers_of_the_papers_listing(epsilon: float, smoothing: float, right: float) -> None:
    found = poly_cross_entropy(LISTING_LOGITS, LISTING_TARGET, epsilon=epsilon, label_smoothing=smoothing)
    assert found.item() == pytest.approx(right, rel=1e-15)
    oracle = cross_entropy(
        polylosses.poly1(epsilon), LISTING_LOGITS.numpy(), LISTING_TARGET.numpy(), label_smoothing=smoothing
    )
    assert oracle.value == pytest.approx(right, rel=1e-15)


def test_numbers_of_optaxs_documentation() -> None:
    logits = torch.tensor([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]])
    found = poly_cross_entropy(logits, target, epsilon=2.0, reduction="none")
    assert found.tolist() == pytest.approx([0.48225655, 1.25670369], abs=5e-9 + 2e-7)  # 8 digits, from float32
