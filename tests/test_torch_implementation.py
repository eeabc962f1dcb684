"""``implementation`` returns the implementation that a call would use, without computing anything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polylosses.torch import (
    LinearPolyCrossEntropyLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
    implementation,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
)
from polylosses.torch.kernels import native
from test_torch_kernels import needs_native

Z, Y = torch.zeros(4, 7), torch.tensor([0, 6, -100, 3])
SOFT = torch.full((4, 7), 1 / 7)

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str | None]] = {
    "softmax": (poly_cross_entropy, (Z, Y), {}, None),
    "module": (PolyCrossEntropyLoss(), (Z, Y), {}, None),
    "anything that calls one": (lambda z, y: 2 * PolyCrossEntropyLoss()(z, y), (Z, Y), {}, None),
    "sigmoid": (PolyBCEWithLogitsLoss(), (Z, SOFT), {}, None),
    "head": (linear_poly_cross_entropy, (torch.zeros(4, 3), torch.zeros(7, 3), Y), {}, None),
    "head, a module": (LinearPolyCrossEntropyLoss(3, 7), (torch.zeros(4, 3), Y), {}, None),
    "head, many rows": (
        linear_poly_cross_entropy,
        (torch.zeros(10**6, 3), torch.zeros(7, 3), Y[:1].expand(10**6)),
        {},
        None,
    ),
    "head, many rows, a learned epsilon": (
        linear_poly_cross_entropy,
        (torch.zeros(10**6, 3), torch.zeros(7, 3), Y[:1].expand(10**6)),
        {"epsilon": torch.tensor(1.0, requires_grad=True)},
        None,
    ),
    "head, many rows of float16": (
        linear_poly_cross_entropy,
        (torch.zeros(10**6, 3).half(), torch.zeros(7, 3).half(), Y[:1].expand(10**6)),
        {},
        None,
    ),
    "more than 64 coefficients": (poly_cross_entropy, (Z, Y), {"epsilon": (0.1,) * 65}, "more than 64 coefficients"),
    "smoothing": (poly_cross_entropy, (Z, Y), {"label_smoothing": 0.1}, None),
    "smoothing, head": (
        linear_poly_cross_entropy,
        (torch.zeros(4, 3), torch.zeros(7, 3), Y),
        {"label_smoothing": 0.1},
        None,
    ),
    "smoothing, a learned epsilon": (
        poly_cross_entropy,
        (Z, Y),
        {"label_smoothing": 0.1, "epsilon": torch.tensor(1.0, requires_grad=True)},
        None,
    ),
    "smoothing, a learned gamma": (
        poly_cross_entropy,
        (Z, Y),
        {"label_smoothing": 0.1, "gamma": torch.tensor(1.0, requires_grad=True)},
        "with soft targets or label smoothing, kernels take at most 64 coefficients, of these 3 scalar tensors",
    ),
    "probabilities": (poly_cross_entropy, (Z, SOFT), {}, None),
    "probabilities in float64": (poly_cross_entropy, (Z, SOFT.double()), {}, "and these are torch.float64"),
    "probabilities with a gradient": (
        poly_cross_entropy,
        (Z, SOFT.clone().requires_grad_()),
        {},
        "no derivatives by the target",
    ),
    "float64": (poly_cross_entropy, (Z.double(), Y), {}, "these are torch.float64"),
    "few logits, a learned epsilon": (
        poly_cross_entropy,
        (Z, Y),
        {"epsilon": torch.tensor(1.0, requires_grad=True)},
        "with tensors, more than 64 coefficients, or a gradient of the class weights), and is then faster from 131072",
    ),
    "plain": (poly_cross_entropy, (Z, Y), {"implementation": "plain"}, "implementation='plain' was asked for"),
    "few logits, a scheduled epsilon": (poly_cross_entropy, (Z, Y), {"epsilon": torch.tensor(1.0)}, None),
    "weights of sigmoids": (poly_binary_cross_entropy_with_logits, (Z, SOFT), {"pos_weight": torch.ones(7)}, None),
    "weights of sigmoids that are learned": (
        poly_binary_cross_entropy_with_logits,
        (Z, SOFT),
        {"pos_weight": torch.ones(7, requires_grad=True)},
        "no derivatives by pos_weight",
    ),
}


@needs_native
@pytest.mark.parametrize("name", CALLS)
def test_it_names_what_serves_and_why_not_a_faster_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, args, options, reason = CALLS[name]
    for computes in ("softmax_loss", "softmax_gradient", "soft_target_loss", "soft_target_gradient", "sigmoid_loss"):
        monkeypatch.setattr(native, computes, None)
    found = implementation(loss, *args, **options)
    assert found.name == ("native" if reason is None else "plain")
    assert list(found.why_not) == ([] if reason is None else ["native"])
    assert reason is None or reason in found.why_not["native"]


@needs_native
def test_a_callable_that_catches_errors_does_not_hide_the_answer() -> None:
    def careful(z: Any, y: Any) -> Any:
        try:
            return poly_cross_entropy(z, y)
        except Exception:
            return None

    assert implementation(careful, Z, Y).name == "native"


@needs_native
def test_it_is_what_the_call_takes() -> None:
    """Also, asking has no side effects, even if it raises."""
    with pytest.raises(ValueError, match="the loss has only one"):
        implementation(poly_from_nll, torch.ones(3))
    with pytest.raises(ValueError, match="compiled, traced"):
        implementation(torch.compile(poly_cross_entropy, backend="eager"), Z, Y)
    with pytest.raises(ValueError, match=r"implementation must be .*; got \['x'\]"):
        poly_cross_entropy(Z, Y, implementation=["x"])  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        implementation(lambda: 1 / 0)
    with pytest.raises(ValueError, match=r"implementation must be .*; got 'cuda'"):
        implementation(poly_cross_entropy, Z, Y, implementation="cuda")
    with pytest.raises(ValueError, match="can't serve here: it serves float32"):
        implementation(poly_cross_entropy, Z.double(), Y, implementation="native")
    z = Z.clone().requires_grad_()
    assert implementation(poly_cross_entropy, z, Y).name == "native"
    assert "_SoftmaxLoss" in str(poly_cross_entropy(z, Y).grad_fn)
    assert implementation(poly_cross_entropy, z.double(), Y).name == "plain"
    assert "_SoftmaxLoss" not in str(poly_cross_entropy(z.double(), Y).grad_fn)


def test_other_devices_take_the_plain_path() -> None:
    with torch.device("meta"):
        z, y = torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64)
    found = implementation(poly_cross_entropy, z, y)
    assert found == ("plain", {"native": "it serves the CPU, and the logits are on meta"})
