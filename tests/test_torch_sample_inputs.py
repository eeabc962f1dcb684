"""Torch's own sample inputs (OpInfo, ModuleInfo) for the corresponding losses, run through ours at epsilon 0."""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from polylosses.torch import (
    LinearPolyCrossEntropyLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
)

Call = Callable[..., Any]


@cache
def tables() -> tuple[Any, Any]:
    """Torch's tables for functions and for modules. Imported lazily, since that takes 8 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they import deprecated modules
        from torch.testing._internal.common_methods_invocations import op_db  # noqa: PLC0415
        from torch.testing._internal.common_modules import module_db  # noqa: PLC0415
    return op_db, module_db


FUNCTIONS: dict[str, tuple[Call, Call]] = {
    "nn.functional.cross_entropy": (F.cross_entropy, poly_cross_entropy),
    "nn.functional.binary_cross_entropy_with_logits": (
        F.binary_cross_entropy_with_logits,
        poly_binary_cross_entropy_with_logits,
    ),
    "nn.functional.linear_cross_entropy": (F.linear_cross_entropy, linear_poly_cross_entropy),
}
MODULES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "nn.CrossEntropyLoss": (nn.CrossEntropyLoss, PolyCrossEntropyLoss),
    "nn.BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, PolyBCEWithLogitsLoss),
    "nn.LinearCrossEntropyLoss": (nn.LinearCrossEntropyLoss, LinearPolyCrossEntropyLoss),
}
FULL, LOW = [torch.float64, torch.float32], [torch.bfloat16, torch.float16]


def with_dtypes(table: dict[str, Any]) -> list[tuple[str, torch.dtype]]:
    """Linear heads run in full precision only: chunks change the rounding of the layer (see test_torch_linear.py)."""
    return [(name, dtype) for name in table for dtype in (FULL if "linear" in name.lower() else FULL + LOW)]


def ours_has(kwargs: dict[str, Any]) -> bool:
    """False for layers with more than one output dimension, which ours don't support."""
    return not kwargs.get("out_features")


def translated(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = {name: value for name, value in kwargs.items() if name not in ("options", "out_features")}
    if kwargs.get("ignore_index", 0) is None:
        del kwargs["ignore_index"]  # only torch's linear_cross_entropy takes None for -100
    return kwargs


def samples(name: str, dtype: torch.dtype) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    found = 0
    for op in tables()[0]:
        if op.name == name:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                if sample.args and sample.args[0].dim() > 2 and name.endswith("linear_cross_entropy"):
                    continue  # a layer with more than one output dimension
                found += 1
                yield (sample.input, *sample.args), sample.kwargs
    assert found > 10


def differentiable(arguments: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad]


def derivatives(value: Tensor, of: list[Tensor]) -> list[Tensor]:
    """The first derivatives, and the derivatives of the sum of their squares."""
    grad_output = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    first = torch.autograd.grad(value, of, grad_output, create_graph=True, materialize_grads=True)
    squares = torch.stack([(g * g).sum() for g in first]).sum()
    second = torch.autograd.grad(squares, of, materialize_grads=True)
    return [*first, *second]


def chunkless(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Disables torch's chunks, which have no second derivatives."""
    return {**kwargs, "options": None} if "options" in kwargs else kwargs


def in_float64(arguments: Any) -> Any:
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, arguments)


def assert_is(found: Tensor, right: Tensor, dtype: torch.dtype, exact: Tensor) -> None:
    """``right`` is torch's result in this dtype, ``exact`` torch's result in float64.

    Torch rounds every step to the dtype, ours only the result. Targets and weights in these tables may be as large as 9
    or negative, so that terms some ten times as large as the result cancel.
    """
    assert found.dtype == right.dtype
    eps = torch.finfo(dtype if dtype in FULL else torch.float32).eps
    unit = torch.finfo(dtype).eps if dtype in LOW else 0.0
    torch.testing.assert_close(found.double(), exact, rtol=unit + 64 * eps, atol=64 * eps, equal_nan=True)


@pytest.mark.parametrize(("name", "dtype"), with_dtypes(FUNCTIONS), ids=str)
def test_functions_agree(name: str, dtype: torch.dtype) -> None:
    torchs, ours = FUNCTIONS[name]
    for args, kwargs in samples(name, dtype):
        found, right = ours(*args, **translated(kwargs), epsilon=0.0), torchs(*args, **chunkless(kwargs))
        exact_args, exact_kwargs = in_float64((args, chunkless(kwargs)))
        assert_is(found, right, dtype, torchs(*exact_args, **exact_kwargs))
        if dtype == torch.float64:
            inputs = differentiable((args, kwargs))
            for one, other in zip(derivatives(found, inputs), derivatives(right, inputs), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize(("name", "dtype"), with_dtypes(MODULES), ids=str)
def test_modules_agree(name: str, dtype: torch.dtype) -> None:
    torchs, ours = MODULES[name]
    (info,) = (info for info in tables()[1] if info.name == name)
    found = 0
    for sample in info.module_inputs_func(info, "cpu", dtype, True, True):
        made, given = sample.constructor_input, sample.forward_input
        if not ours_has(made.kwargs):
            continue
        found += 1
        right = torchs(*made.args, **chunkless(made.kwargs)).to(dtype)
        module = ours(*made.args, **translated(made.kwargs), epsilon=0.0).to(dtype)
        module.load_state_dict(right.state_dict())
        value, torchs_value = module(*given.args, **given.kwargs), right(*given.args, **given.kwargs)
        exact_args, exact_kwargs = in_float64((given.args, given.kwargs))
        assert_is(value, torchs_value, dtype, right.double()(*exact_args, **exact_kwargs))
    assert found > 5


@pytest.mark.parametrize("name", ["nn.CrossEntropyLoss", "nn.LinearCrossEntropyLoss"])
def test_errors_of_modules_agree(name: str) -> None:
    _, ours = MODULES[name]
    (info,) = (info for info in tables()[1] if info.name == name)
    found = 0
    for error in info.module_error_inputs_func(info, "cpu", torch.float64, True, True):
        made, given = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if not ours_has(made.kwargs):
            continue
        found += 1
        with pytest.raises((error.error_type, ValueError, TypeError)):
            ours(*made.args, **translated(made.kwargs), epsilon=0.0)(*given.args, **given.kwargs)
    assert found > 0


def broken(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Yields (name, args, kwargs): the sample's arguments with one of them made invalid."""
    damages: dict[str, Callable[[Any], Any]] = {
        "a row less": lambda x: x[1:] if x.dim() else x,
        "a row more": lambda x: torch.cat([x, x[:1]]) if x.dim() else x,
        "a dimension more": lambda x: x[None],
        "a dimension at the end": lambda x: x[..., None],
        "flat": lambda x: x.flatten(),
        "integers": lambda x: x.long(),
        "int32": lambda x: x.int(),
        "booleans": lambda x: x > 0,
        "complex": lambda x: x.to(torch.complex128),
        "classes too high": lambda x: x + 100 if not x.is_floating_point() else x,
        "negative classes": lambda x: x - 50 if not x.is_floating_point() else x,
        "a list": lambda x: x.tolist(),
        "None": lambda x: None,
    }
    for name, damage in damages.items():
        for position, argument in enumerate(args):
            yield f"{name} at {position}", (*args[:position], damage(argument), *args[position + 1 :]), kwargs
        for key, argument in kwargs.items():
            if isinstance(argument, Tensor):
                yield f"{name} for {key}", args, {**kwargs, key: damage(argument)}


@pytest.mark.parametrize("name", list(FUNCTIONS)[:2])
def test_errors_agree(name: str) -> None:
    torchs, ours = FUNCTIONS[name]
    wrong, refused = [], 0
    for args, kwargs in samples(name, torch.float64):
        plain = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, (args, kwargs))
        for damage, bad_args, bad_kwargs in broken(*plain):
            errors = []
            for function, more in ((torchs, {}), (ours, {"epsilon": 0.0}), (ours, {"epsilon": 2.0, "gamma": 0.5})):
                try:
                    function(*bad_args, **bad_kwargs, **more)
                    errors.append("nothing")
                except Exception as error:
                    errors.append(type(error).__name__)
            refused += errors[0] != "nothing"
            if len(set(errors)) > 1:
                shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in bad_args]
                wrong.append(f"{damage}, {shapes}, {list(bad_kwargs)}: torch raises {errors[0]}, ours {errors[1:]}")
    assert refused > 100
    assert not wrong, "\n".join([f"{len(wrong)} differ", *wrong[:20]])
