"""Errors of ``poly_cross_entropy`` and of the other losses for invalid arguments."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
from polylosses.torch import (
    LinearPolyCrossEntropyLoss,
    Poly1CrossEntropyLoss,
    Poly1FocalLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
)

Z = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
Y = torch.tensor([0, 2])
SOFT = torch.full((2, 3), 1 / 3)

# Arguments that torch refuses. The type of the error must be the same as torch's.
REFUSED_BY_TORCH: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "too few targets": ((Z, Y[:1]), {}),
    "too many targets": ((Z, torch.tensor([0, 1, 2])), {}),
    "targets of another shape": ((Z, SOFT[:, :2]), {}),
    "targets with a dimension too many": ((Z, Y[:, None]), {}),
    "targets transposed": ((Z, SOFT.T), {}),
    "one row, targets with a dimension too many": ((Z[0], Y[:1, None]), {}),
    "images, targets without a place": ((torch.zeros(2, 3, 4), Y), {}),
    "a scalar": ((torch.tensor(1.0), torch.tensor(0)), {}),
    "class above the last": ((Z, torch.tensor([0, 3])), {}),
    "class below 0": ((Z, torch.tensor([0, -1])), {}),
    "class above the last, weights": ((Z, torch.tensor([0, 3]), torch.ones(3)), {}),
    "class above the last, smoothing": ((Z, torch.tensor([0, 3])), {"label_smoothing": 0.1}),
    "class above the last, weights and smoothing": ((Z, torch.tensor([0, 3]), torch.ones(3)), {"label_smoothing": 0.1}),
    "class of uint8 above the last": ((Z, torch.tensor([0, 255], dtype=torch.uint8)), {}),
    "class of uint8 above the last, smoothing": (
        (Z, torch.tensor([0, 255], dtype=torch.uint8)),
        {"label_smoothing": 0.1},
    ),
    "ignored by default, but not here": ((Z, torch.tensor([0, -100])), {"ignore_index": 255}),
    "integer logits": ((Z.long(), Y), {}),
    "bool logits": ((Z > 0, Y), {}),
    "complex logits": ((Z.to(torch.complex64), Y), {}),
    "int32 targets": ((Z, Y.int()), {}),
    "bool targets": ((Z, Y > 0), {}),
    "float targets": ((Z, Y.float()), {}),
    "integer probabilities": ((Z, SOFT.long()), {}),
    "weights of another size": ((Z, Y, torch.ones(2)), {}),
    "weights of another size, probabilities": ((Z, SOFT, torch.ones(4)), {}),
    "weights of two dimensions": ((Z, Y, torch.ones(1, 3)), {}),
    "weights of two dimensions, probabilities": ((Z, SOFT, torch.ones(2, 3)), {}),
    "weight as a number": ((Z, Y, torch.tensor(2.0)), {}),
    "ignored index of probabilities": ((Z, SOFT), {"ignore_index": 1}),
    "reduction avg": ((Z, Y), {"reduction": "avg"}),
    "reduction Mean": ((Z, Y), {"reduction": "Mean"}),
    "reduction None": ((Z, Y), {"reduction": None}),
    "smoothing 1.5": ((Z, Y), {"label_smoothing": 1.5}),
    "smoothing 1.5, probabilities": ((Z, SOFT), {"label_smoothing": 1.5}),
    "smoothing as text": ((Z, Y), {"label_smoothing": "0.1"}),
    "ignored index of 71 bits": ((Z, Y), {"ignore_index": 2**70}),
    "ignored index of 1.5": ((Z, Y), {"ignore_index": 1.5}),
    "logits as a list": ((Z.tolist(), Y), {}),
    "targets as a list": ((Z, Y.tolist()), {}),
    "weights as a list": ((Z, Y, [1.0, 1.0, 1.0]), {}),
    "no logits": ((None, Y), {}),
    "no targets": ((Z, None), {}),
}


@pytest.mark.parametrize("chosen", [{}, {"epsilon": 0.0}, {"gamma": 0.5}], ids=["Poly-1", "epsilon=0", "gamma=0.5"])
@pytest.mark.parametrize(("given", "options"), REFUSED_BY_TORCH.values(), ids=REFUSED_BY_TORCH)
def test_what_torch_refuses_is_refused_alike(
    given: tuple[Any, ...], options: dict[str, Any], chosen: dict[str, Any]
) -> None:
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        F.cross_entropy(*given, **options)
    function: Callable[..., Tensor] = poly_cross_entropy
    with pytest.raises(torchs.type) as ours:
        function(*given, **options, **chosen)
    assert ours.type is torchs.type
    assert str(ours.value)


@pytest.mark.parametrize("ignored", [2**70, 1.5, "1", None], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.int32, torch.float32, torch.complex64], ids=str
)
def test_the_linear_head_refuses_targets_and_ignored_indices_as_torch(dtype: torch.dtype, ignored: Any) -> None:
    y = Y.to(dtype)
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        F.cross_entropy(Z, y, ignore_index=ignored)
    with pytest.raises(torchs.type) as ours:
        linear_poly_cross_entropy(Z, torch.eye(3), y, ignore_index=ignored)
    assert ours.type is torchs.type


@pytest.mark.parametrize("smoothing", [-0.1, float("nan")], ids=str)
def test_smoothing_without_a_meaning(smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing must be between 0 and 1; got {smoothing}\."):
        poly_cross_entropy(Z, Y, label_smoothing=smoothing)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "poly_cross_entropy": lambda **chosen: poly_cross_entropy(Z, Y, **chosen),
    "poly_from_nll": lambda **chosen: poly_from_nll(torch.ones(2), **chosen),
    "poly_softmax": lambda **chosen: poly_softmax(Z, 1, **chosen),
    "PolyCrossEntropyLoss": PolyCrossEntropyLoss,
}
FOCAL = polylosses.focal(2.0)
REFUSED_BY_US: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "polynomial and epsilon": (
        {"polynomial": FOCAL, "epsilon": 2.0},
        ValueError,
        f"give either polynomial or epsilon and gamma, not both; got epsilon=2.0, gamma=0.0, polynomial={FOCAL!r}.",
    ),
    "polynomial and gamma": ({"polynomial": FOCAL, "gamma": 1.0}, ValueError, "gamma=1.0"),
    "polynomial as its maker": ({"polynomial": polylosses.focal}, TypeError, "must be a polylosses.Polynomial"),
    "polynomial as a name": ({"polynomial": "focal"}, TypeError, "got 'focal'"),
    "epsilon as text": ({"epsilon": "2"}, TypeError, "got '2'"),
    "epsilon None": ({"epsilon": None}, TypeError, "got None"),
    "epsilon nan": ({"epsilon": float("nan")}, ValueError, "epsilon must be finite; got nan."),
    "epsilon with inf inside": ({"epsilon": [1.0, float("inf")]}, ValueError, "epsilon[1] must be finite; got inf."),
    "epsilon of two dimensions": ({"epsilon": torch.ones(2, 3)}, ValueError, "(2, 3)"),
    "epsilon with text inside": (
        {"epsilon": [1.0, "2"]},
        TypeError,
        "epsilon[1] must be a number or a 0-dimensional array or tensor; got '2'",
    ),
    "gamma below 0": ({"gamma": -1.0}, ValueError, "gamma must be at least 0; got -1.0"),
    "gamma as text": ({"gamma": "2"}, TypeError, "gamma must be a number"),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(("chosen", "error", "message"), REFUSED_BY_US.values(), ids=REFUSED_BY_US)
def test_arguments_that_are_no_polynomial(
    chosen: dict[str, Any], error: type[Exception], message: str, function: Callable[..., Any]
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(**chosen)


BCE: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
# Everything that takes an epsilon, called from this file.
TAKING_EPSILON: dict[str, Callable[[Any], Any]] = {
    "poly_cross_entropy": lambda e: poly_cross_entropy(Z, Y, epsilon=e),
    "a gradient": lambda e: torch.func.grad(lambda z: poly_cross_entropy(z, Y, epsilon=e))(Z),
    "poly_binary_cross_entropy_with_logits": lambda e: BCE(Z, SOFT, epsilon=e),
    "class ids": lambda e: BCE(Z, Y, epsilon=e),
    "alpha": lambda e: BCE(Z, SOFT, epsilon=e, alpha=0.25),
    "alpha on the logarithm": lambda e: BCE(Z, SOFT, epsilon=e, alpha=0.25, alpha_on_epsilon=False),
    "linear_poly_cross_entropy": lambda e: linear_poly_cross_entropy(Z, torch.eye(3), Y, epsilon=e),
    "poly_from_nll": lambda e: poly_from_nll(torch.ones(2), epsilon=e),
    "poly_softmax": lambda e: poly_softmax(Z, 1, epsilon=e),
    "poly_sigmoid": lambda e: poly_sigmoid(Z, epsilon=e),
    "PolyCrossEntropyLoss": lambda e: PolyCrossEntropyLoss(epsilon=e)(Z, Y),
    "Poly1CrossEntropyLoss": lambda e: Poly1CrossEntropyLoss(e)(Z, Y),
    "PolyBCEWithLogitsLoss": lambda e: PolyBCEWithLogitsLoss(epsilon=e)(Z, SOFT),
    "Poly1FocalLoss": lambda e: Poly1FocalLoss(e, alpha_on_epsilon=False)(Z, SOFT),
    "LinearPolyCrossEntropyLoss": lambda e: LinearPolyCrossEntropyLoss(3, 3, epsilon=e)(Z, Y),
    "an epsilon that is set": lambda e: setattr(PolyCrossEntropyLoss(), "epsilon", e),
    "Polynomial": lambda e: poly_cross_entropy(Z, Y, polynomial=polylosses.Polynomial((e,))),
    "replace": lambda e: dataclasses.replace(polylosses.poly1(), coefficients=(e,)),
    "poly1": lambda e: PolyCrossEntropyLoss(polynomial=polylosses.poly1(e))(Z, Y),
    "poly_n": lambda e: BCE(Z, SOFT, polynomial=polylosses.poly_n(e, 0.5)),
    "poly1_focal": lambda e: BCE(Z, SOFT, polynomial=polylosses.poly1_focal(e)),
}


@pytest.mark.parametrize("call", TAKING_EPSILON.values(), ids=TAKING_EPSILON)
def test_an_epsilon_below_the_bound_warns_once_at_the_users_line(call: Callable[[Any], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(-1.5)
    (warning,) = caught
    assert re.search(r"epsilon = -1\.5 .* below the bound -(1|0\.25):", str(warning.message))
    code = call.__code__
    lines = {line for _, _, line in code.co_lines()}
    assert (warning.filename, warning.lineno in lines) == (__file__, True)


def test_a_module_does_not_warn_again() -> None:
    with pytest.warns(UserWarning, match="below the bound"):
        modules: list[Any] = [PolyCrossEntropyLoss(epsilon=-1.5), Poly1FocalLoss(-1.5, alpha_on_epsilon=False)]
    for module, target in zip(modules, (Y, SOFT), strict=True):
        module(Z.clone().requires_grad_(), target).backward()


def test_a_compiled_loss_has_no_break_at_the_warning() -> None:
    compiled = torch.compile(lambda z: poly_cross_entropy(z, Y, epsilon=-1.5), fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="below the bound"):
        right = poly_cross_entropy(Z, Y, epsilon=-1.5)
    torch.testing.assert_close(compiled(Z), right)


@pytest.mark.parametrize(
    ("wrong", "named"), [([1.0], "list"), (torch.tensor([1]), "torch.int64"), (None, "NoneType")], ids=str
)
def test_neighbours_take_floating_point_tensors(wrong: Any, named: str) -> None:
    for function, name in ((poly_from_nll, "nll"), (poly_softmax, "input")):
        with pytest.raises(TypeError, match=f"{name} must be a floating-point tensor.*got {named}"):
            function(wrong, *[0] * (function is poly_softmax))


def test_modules_refuse_when_made() -> None:
    for make in (PolyCrossEntropyLoss, Poly1CrossEntropyLoss):
        with pytest.raises(ValueError, match="'avg'"):
            make(reduction="avg")
    with pytest.raises(ValueError, match="must be finite; got inf"):
        Poly1CrossEntropyLoss(float("inf"))
    with pytest.raises(TypeError, match="positional"):
        PolyCrossEntropyLoss(torch.ones(3), -100)  # type: ignore[call-arg]


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError, match="positional"):
        poly_cross_entropy(Z, Y, None, 255)  # type: ignore[call-arg]
    loss: Tensor = poly_cross_entropy(Z, Y, None)
    assert loss == poly_cross_entropy(input=Z, target=Y, weight=None)
