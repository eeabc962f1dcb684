"""The registered operators check the memory that they access, also in direct calls and in late backward calls."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polylosses
from polylosses.torch import (
    PolyCrossEntropyLoss,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
)
from test_torch_kernels import each_kernel, needs_native

OPERATORS = torch.ops.polylosses
LEARNED = torch.tensor(1.0, requires_grad=True)
Z = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 6, -100, 3])
NUMBERS = (0.5, 1.0, 1.0)  # gamma, log_weight, coefficients
SIDE = (1.0, 1.0, 0.5, 1.0)  # factor, log_weight, gamma, coefficients
SIGMOID = {"weight": torch.ones(7), "pos_weight": torch.ones(4, 1), "neg_weight": None}

Arguments = dict[str, Any]
VALID: dict[str, Arguments] = {
    "softmax_loss": {
        "logits": Z,
        "target": Y,
        "weight": torch.ones(7),
        "ignore_index": -100,
        "numbers": NUMBERS,
        "reduction": "none",
    },
    "softmax_statistics": {"logits": Z, "target": Y, "ignore_index": -100},
    "softmax_gradient": {
        "logits": Z,
        "target": Y.clamp(min=0),
        "row_stats": torch.ones(4, 4),
        "grad_output": torch.ones(4),
    },
    "soft_target_loss": {
        "logits": Z,
        "target": Z.softmax(1),
        "weight": torch.ones(7),
        "ignore_index": -100,
        "label_smoothing": 0.1,
        "numbers": NUMBERS,
        "summed": True,
    },
    "soft_target_gradient": {
        "logits": Z,
        "target": Y.clamp(min=0),
        "weight": None,
        "ignore_index": -100,
        "label_smoothing": 0.1,
        "numbers": NUMBERS,
        "row_stats": torch.ones(5, 4),
        "grad_output": torch.ones(4),
    },
    "sigmoid_loss": {
        "logits": Z,
        "target": Y,
        **SIGMOID,
        "ignore_index": -100,
        "negatives": SIDE,
        "positives": SIDE,
        "margin": 0.0,
        "dtype": torch.float32,
    },
    "sigmoid_gradient": {
        "logits": Z,
        "target": Y,
        **SIGMOID,
        "ignore_index": -100,
        "negatives": SIDE,
        "positives": SIDE,
        "margin": 0.0,
        "grad_output": torch.ones(4, 7),
    },
}
WRONG: dict[str, list[Any]] = {
    "logits": [Z.double(), Z.int(), Z[0, 0], Z[:3], Z[:, :, None, None], Z.to_sparse(), Z[None]],
    "target": [Y.int(), Y.float(), Y[:3], Y[None], Y.new_zeros(4, 7), Y.new_full((4,), 7), Y - 200],
    "weight": [torch.ones(6), torch.ones(8), torch.ones(1, 7), torch.ones(7).int()],
    "pos_weight": [torch.ones(6), torch.ones(2, 4, 7), torch.ones(7).bool(), torch.ones(7, dtype=torch.cfloat)],
    "neg_weight": [torch.ones(6), torch.ones(2, 4, 7)],
    "numbers": [(), (0.0,), (1.0,) * 200],
    "negatives": [(), (0.0,) * 2, (1.0,) * 200],
    "positives": [(), (0.0,) * 2, (1.0,) * 200],
    "dtype": [torch.float64, torch.bfloat16],
    "reduction": ["", "average"],
    "row_stats": [torch.ones(3, 4), torch.ones(4, 3), torch.ones(4, 4).double(), torch.ones(4, 4).int()],
    "grad_output": [torch.ones(3), torch.ones(1), torch.ones(4, 8), torch.ones(4).int()],
}


@needs_native
def test_wrong_arguments_of_operators_are_errors() -> None:
    count = 0
    for name, valid in VALID.items():
        getattr(OPERATORS, name)(**valid)
        for wrong in valid:
            broadcasts = name.startswith("sigmoid") and wrong == "weight"
            for value in WRONG.get("pos_weight" if broadcasts else wrong, []):
                with pytest.raises((ValueError, IndexError, RuntimeError)):
                    getattr(OPERATORS, name)(**(valid | {wrong: value}))
                count += 1
    assert count > 50


@needs_native
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_loss_refuses_what_it_was_not_exported_for(strict: bool) -> None:
    class Loss(PolyCrossEntropyLoss):
        pass

    exported = torch.export.export(Loss(), (Z, Y), strict=strict)
    assert any("polylosses.softmax_loss" in str(node.target) for node in exported.graph.nodes)
    module = exported.module(check_guards=False)
    torch.testing.assert_close(module(Z + 1, Y), poly_cross_entropy(Z, Y))
    for logits, target in ((Z.double(), Y), (Z.half(), Y), (Z, Y.int()), (Z, Y[:2])):
        with pytest.raises((ValueError, RuntimeError, AssertionError)):
            module(logits, target)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": poly_cross_entropy,
    "softmax, epsilon a tensor": lambda *a, **o: poly_cross_entropy(
        *a, **o, epsilon=torch.tensor(1.0, requires_grad=True)
    ),
    "softmax, smoothed": lambda *a, **o: poly_cross_entropy(*a, **o, label_smoothing=0.1),
    "class ids": lambda *a, **o: poly_binary_cross_entropy_with_logits(*a, **o, ignore_index=-100),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("label", [-100, -1, 7, 2**40, -(2**63), 2**63 - 1])
@needs_native
def test_labels_that_change_after_the_forward_pass(label: int, columns: bool, name: str) -> None:
    """NumPy changes them in place, unseen by autograd: backward must not write out of bounds."""
    labels = np.arange(7).repeat(30).reshape(1, -1)
    z = torch.zeros(210, 7).requires_grad_() if not columns else torch.zeros(1, 7, 210).requires_grad_()
    target = torch.from_numpy(labels if columns else labels[0])
    value = LOSSES[name](z, target, implementation="native")
    labels[0, 77] = label
    if name == "class ids" and label == -100:
        value.backward()  # type: ignore[no-untyped-call]
    else:
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            value.backward()  # type: ignore[no-untyped-call]


@each_kernel
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_no_classes(implementation: str, reduction: str) -> None:
    for shape, weight in itertools.product(((2, 0), (2, 0, 3), (0, 0)), (None, torch.ones(0))):
        z = torch.zeros(shape, requires_grad=True)
        ignored = torch.full((shape[0], *shape[2:]), -100)
        value = poly_cross_entropy(z, ignored, weight, reduction=reduction, implementation=implementation)
        (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=len(shape) == 2)
        right = ignored * 0.0 if reduction == "none" else torch.tensor(torch.nan if reduction == "mean" else 0.0)
        torch.testing.assert_close(value, right, equal_nan=True)
        assert gradient.shape == shape
    if implementation == "native":
        with pytest.raises(IndexError, match="Target 0 is out of bounds"):
            poly_cross_entropy(torch.zeros(2, 0), torch.tensor([-100, 0]), implementation=implementation)


PRIVATE: list[tuple[Any, str]] = [
    (torch._C, "_are_functorch_transforms_active"),
    (torch._C, "_len_torch_dispatch_stack"),
    (torch.autograd.forward_ad, "_current_level"),
]


@pytest.mark.parametrize(("owner", "name"), PRIVATE, ids=[name for _, name in PRIVATE])
def test_a_torch_without_one_of_its_private_names_takes_the_plain_path(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = Z.clone().requires_grad_()
    losses: list[Callable[..., Tensor]] = [
        poly_cross_entropy,
        poly_binary_cross_entropy_with_logits,
        lambda *a, **o: poly_cross_entropy(*a, **o, epsilon=LEARNED),
    ]
    right = [loss(z, Y.clamp(min=0), implementation="plain") for loss in losses]
    monkeypatch.delattr(owner, name)
    for loss, value in zip(losses, right, strict=True):
        found = loss(z, Y.clamp(min=0))
        assert torch.equal(found, value)
        with pytest.raises(ValueError, match=rf"can't serve here: .*{re.escape(torch.__version__)}.*{name}"):
            loss(z, Y.clamp(min=0), implementation="native")


def test_private_names_of_torch_stand_in_one_file() -> None:
    root = Path(polylosses.__file__).parent
    for file in root.rglob("*.py"):
        found = re.findall(r"(?<!polylosses\.)torch\._(?!_)|forward_ad", file.read_text(encoding="utf-8"))
        assert not found or file == root / "torch" / "kernels" / "internals.py", file
    source = (root / "torch" / "kernels" / "internals.py").read_text(encoding="utf-8")
    assert all(f".{name}" in source for _, name in PRIVATE)
