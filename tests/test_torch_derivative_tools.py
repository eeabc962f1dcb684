"""All of torch's tools for derivatives on every loss, and all kinds of grad_output tensors.

Results are compared with the Jacobian and the Hessian from ordinary backward passes of the plain loss in float64.
"""

# mypy: disable-error-code="no-untyped-call"
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, hvp, jacobian, jvp, vhp
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

from polylosses import Polynomial
from polylosses.torch import (
    linear,
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
)

# torch warns of its own fallbacks for batched gradients and deprecated functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

N, C = 6, 5
Z = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, -100, 3, 4, 2])
HEAD = torch.randn(7, C, generator=torch.Generator().manual_seed(1))
LEARNED = Polynomial((torch.tensor(1.5, requires_grad=True), -0.25), 1.5)
NUMBERS = Polynomial((1.5, -0.25), 0.5)

Loss = Callable[..., Tensor]


def softmax(z: Tensor, **options: Any) -> Tensor:
    given: dict[str, Any] = {"target": Y, "polynomial": NUMBERS}
    return poly_cross_entropy(z, **(given | options))


def sigmoid(z: Tensor, **options: Any) -> Tensor:
    given: dict[str, Any] = {"target": Y, "ignore_index": -100, "alpha": 0.25, "polynomial": NUMBERS}
    return poly_binary_cross_entropy_with_logits(z, **(given | options))


def dense(z: Tensor, **options: Any) -> Tensor:
    return sigmoid(z, target=Z.sigmoid().to(z.dtype), **options)


def head(z: Tensor, **options: Any) -> Tensor:
    given: dict[str, Any] = {"polynomial": NUMBERS}
    return linear_poly_cross_entropy(z, HEAD.to(z.dtype), Y % 7, **(given | options))


# Losses of logits of shape (N, C). "none" in a name means reduction="none".
LOSSES: dict[str, Loss] = {
    "softmax": softmax,
    "softmax, weight, none": partial(softmax, weight=torch.linspace(0, 2, C), reduction="none"),
    "softmax, learned, none": partial(softmax, polynomial=LEARNED, reduction="none"),
    "softmax, learned, smoothing": partial(softmax, polynomial=LEARNED, label_smoothing=0.125),
    "sigmoid, learned, sum": partial(sigmoid, polynomial=LEARNED, reduction="sum"),
    "softmax, smoothing": partial(softmax, label_smoothing=0.125),
    "softmax, probabilities": lambda z, **o: softmax(z, target=Z.softmax(1).to(z.dtype), **o),
    "sigmoid, class ids": sigmoid,
    "sigmoid, class ids, none": partial(sigmoid, reduction="none"),
    "sigmoid, dense, none": partial(dense, reduction="none"),
    "sigmoid, dense, sum": partial(dense, reduction="sum"),
    "head": head,
    "head, none": partial(head, reduction="none"),
    "from nll": lambda z, **_: poly_from_nll(z.exp(), polynomial=NUMBERS),
}


@pytest.fixture(autouse=True)
def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the linear head use several chunks."""
    monkeypatch.setattr(linear, "_CHUNK_BYTES_ON_CPU", 1)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", 4)


def weight_of(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Class weights must have the logits' dtype."""
    return {"weight": torch.linspace(0, 2, C, dtype=dtype)} if "weight" in name else {}


def exact(name: str) -> tuple[Tensor, Tensor]:
    """The Jacobian (outputs, N * C), and the Hessian (N * C, N * C) of the sum of squares, in float64."""
    plain = {} if name == "from nll" else {"implementation": "plain"}
    z = Z.double().requires_grad_()
    value = LOSSES[name](z, **weight_of(name, torch.float64), **plain)
    rows = [torch.autograd.grad(x, z, create_graph=True)[0] for x in value.flatten()]
    jacobian_of = torch.stack(rows).flatten(1)
    (first,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
    second = [torch.autograd.grad(x, z, retain_graph=True)[0] for x in first.flatten()]
    return jacobian_of.detach(), torch.stack(second).flatten(1)


EXACT = {name: exact(name) for name in LOSSES}
V = torch.randn(N, C, generator=torch.Generator().manual_seed(2))


def squares(loss: Loss) -> Loss:
    return lambda z: loss(z).square().sum()


def forward_mode(loss: Loss) -> Tensor:
    with forward_ad.dual_level():
        tangent: Tensor | None = forward_ad.unpack_dual(loss(forward_ad.make_dual(Z, V))).tangent
    assert tangent is not None
    return tangent.flatten()


def batched(loss: Loss) -> Tensor:
    z = Z.clone().requires_grad_()
    value = loss(z)
    units = torch.eye(value.numel()).reshape(-1, *value.shape)
    (result,) = torch.autograd.grad(value, z, units, is_grads_batched=True)
    return result.flatten(1)


def jitted(loss: Loss) -> Loss:
    traced: Loss = torch.jit.trace(Module(loss), (Z + 1,), check_trace=False)
    return traced


class Module(nn.Module):
    """A loss as a module, for export."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, z: Tensor) -> Tensor:
        return self.loss(z)


# Tools that give the Jacobian of a loss.
JACOBIANS: dict[str, Callable[[Loss], Tensor]] = {
    "is_grads_batched": batched,
    "jacobian": lambda loss: jacobian(loss, Z).flatten(-2),
    "jacobian, vectorized": lambda loss: jacobian(loss, Z, vectorize=True).flatten(-2),
    "jacobian, create_graph": lambda loss: jacobian(loss, Z, create_graph=True).flatten(-2),
    "jacobian, vectorized, create_graph": lambda loss: jacobian(loss, Z, True, vectorize=True).flatten(-2),
    "jacobian, forward mode": lambda loss: jacobian(loss, Z, vectorize=True, strategy="forward-mode").flatten(-2),
    "func.jacrev": lambda loss: torch.func.jacrev(loss)(Z).flatten(-2),
    "func.jacfwd": lambda loss: torch.func.jacfwd(loss)(Z).flatten(-2),
    "make_fx": lambda loss: jacobian(make_fx(loss)(Z + 1), Z).flatten(-2),
    "make_fx of the gradient": lambda loss: make_fx(lambda z: jacobian(loss, z))(Z + 1)(Z).flatten(-2),
    "jit.trace": lambda loss: jacobian(jitted(loss), Z).flatten(-2),
    "checkpoint": lambda loss: jacobian(lambda z: checkpoint(loss, z, use_reentrant=False), Z).flatten(-2),
    "compile": lambda loss: jacobian(torch.compile(loss, backend="aot_eager", fullgraph=True), Z).flatten(-2),
    "export": lambda loss: jacobian(torch.export.export(Module(loss), (Z + 1,)).module(), Z).flatten(-2),
}
# Tools that give the Jacobian times V.
ALONG: dict[str, Callable[[Loss], Tensor]] = {
    "jvp": lambda loss: jvp(loss, Z, V)[1].flatten(),
    "func.jvp": lambda loss: torch.func.jvp(loss, (Z,), (V,))[1].flatten(),
    "func.linearize": lambda loss: torch.func.linearize(loss, Z)[1](V).flatten(),
    "forward mode": forward_mode,
}
# Tools that give the Hessian of the sum of squares.
HESSIANS: dict[str, Callable[[Loss], Tensor]] = {
    "hessian": lambda loss: hessian(squares(loss), Z).reshape(N * C, -1),
    "hessian, vectorized": lambda loss: hessian(squares(loss), Z, vectorize=True).reshape(N * C, -1),
    "func.hessian": lambda loss: torch.func.hessian(squares(loss))(Z).reshape(N * C, -1),
    "func.jacrev of jacrev": lambda loss: torch.func.jacrev(torch.func.jacrev(squares(loss)))(Z).reshape(N * C, -1),
}
# Tools that give the Hessian times V.
HESSIANS_ALONG: dict[str, Callable[[Loss], Tensor]] = {
    "hvp": lambda loss: hvp(squares(loss), Z, V)[1].flatten(),
    "vhp": lambda loss: vhp(squares(loss), Z, V)[1].flatten(),
    "func.jvp of grad": lambda loss: torch.func.jvp(torch.func.grad(squares(loss)), (Z,), (V,))[1].flatten(),
}


def close(found: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(found.detach().double(), right.reshape(found.shape), rtol=1e-4, atol=1e-5)


# LONG tools take seconds. They run on SOME losses: one for each operator, and for each path without an operator.
LONG = ("compile", "func.linearize", "make_fx of the gradient")
SOME = (
    "softmax, weight, none",
    "softmax, learned, none",
    "softmax, smoothing",
    "sigmoid, class ids",
    "head",
    "from nll",
)
QUICK = ("softmax, weight, none", "sigmoid, class ids")
TOOLS = (*JACOBIANS, *ALONG, *HESSIANS, *HESSIANS_ALONG)


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        pytest.param(name, tool, marks=pytest.mark.slow if tool in LONG and name not in QUICK else [])
        for name in LOSSES
        for tool in TOOLS
        # torch takes no tensor with a gradient into a trace or an export.
        if (tool not in LONG or name in SOME) and not ("learned" in name and tool in ("jit.trace", "export"))
    ],
)
def test_every_tool_gives_the_same_derivatives(name: str, tool: str) -> None:
    loss = partial(LOSSES[name], **weight_of(name, torch.float32))
    first, second = EXACT[name]
    torch._dynamo.reset()
    if tool in JACOBIANS:
        close(JACOBIANS[tool](loss), first)
    elif tool in ALONG:
        close(ALONG[tool](loss), first @ V.double().flatten())
    elif tool in HESSIANS:
        close(HESSIANS[tool](loss), second)
    else:
        close(HESSIANS_ALONG[tool](loss), second @ V.double().flatten())


def strided_grad(grad_output: Tensor) -> Tensor:
    return torch.stack([grad_output, grad_output], -1)[..., 0]


# Other kinds of tensors with the same numbers as an ordinary grad_output (GRADIENTS) or saved tensor (SAVED).
GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "ordinary": Tensor.clone,
    "float64": Tensor.double,
    "not contiguous": strided_grad,
    "negated when read": lambda g: torch.complex(g, -g).conj().imag,
    "of two tensors": lambda g: TwoTensor(g.clone(), 2 * g),
    "a parameter": lambda g: nn.Parameter(g.clone()),
    "functional": torch._to_functional_tensor,
}
SAVED: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x,
    "detached": Tensor.detach,
    "in another order": lambda x: x.detach().transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x,
    "float64": lambda x: x.double() if x.is_floating_point() else x,
    "int32": lambda x: x if x.is_floating_point() else x.int(),
    "too short": lambda x: x[:2] if x.dim() else x,
    "of two tensors": lambda x: TwoTensor(x.detach().clone(), x.detach().clone()),
    "nothing": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
}


def plain(tensor: Tensor) -> Tensor:
    tensor = tensor.a if isinstance(tensor, TwoTensor) else tensor
    return torch._from_functional_tensor(tensor) if torch._is_functional_tensor(tensor) else tensor


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("name", LOSSES)
def test_incoming_gradients_of_every_kind(name: str, kind: str) -> None:
    z = Z.clone().requires_grad_()
    value = LOSSES[name](z, **weight_of(name, torch.float32))
    grad_output = torch.linspace(-1, 2, value.numel()).reshape(value.shape)
    (found,) = torch.autograd.grad(value, z, GRADIENTS[kind](grad_output))
    close(plain(found), grad_output.double().flatten() @ EXACT[name][0])


@pytest.mark.parametrize("name", LOSSES)
def test_a_zero_tensor_as_incoming_gradient(name: str) -> None:
    z = Z.clone().requires_grad_()
    value = LOSSES[name](z, **weight_of(name, torch.float32))
    (found,) = torch.autograd.grad(value, z, torch._efficientzerotensor(value.shape))
    assert found.shape == z.shape
    assert not (found + 0).any()


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("name", LOSSES)
def test_what_was_saved_and_comes_back_otherwise_is_right_or_an_error(name: str, kind: str) -> None:
    z = Z.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(SAVED[kind], lambda x: x):
        value = LOSSES[name](z, **weight_of(name, torch.float32))
        try:
            (found,) = torch.autograd.grad(value.sum(), z)
        except (ValueError, RuntimeError, IndexError, TypeError):
            found = None
    if kind in ("as they are", "detached", "in another order") or (found is not None and kind in ("float64", "int32")):
        assert found is not None
        close(plain(found), EXACT[name][0].sum(0))


@pytest.mark.parametrize("name", LOSSES)
def test_hooks_see_the_gradient_once(name: str) -> None:
    """Also with ``create_graph``, where kernels differentiate the plain loss inside of their backward pass."""
    leaf = Z.clone().requires_grad_()
    z = leaf * 1.0
    z.retain_grad()
    seen: list[Tensor] = []
    z.register_hook(seen.append)
    value = LOSSES[name](z, **weight_of(name, torch.float32))
    (found,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    close(found, EXACT[name][0].sum(0))
    assert len(seen) == 1
    assert z.grad is not None
    close(z.grad, EXACT[name][0].sum(0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_can_be_changed_in_place(name: str) -> None:
    z = Z.clone().requires_grad_()
    value = LOSSES[name](z, **weight_of(name, torch.float32))
    value += 1.0
    value.mul_(2.0)
    close(torch.autograd.grad(value.sum(), z)[0], 2.0 * EXACT[name][0].sum(0))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("changed", ["logits", "target", "weight"])
@pytest.mark.parametrize("kind", ["smoothing", "probabilities", "dense", "class ids"])
def test_the_derivative_by_epsilon_of_changed_arguments_is_an_error(
    kind: str, changed: str, create_graph: bool
) -> None:
    epsilon = torch.tensor(1.5, requires_grad=True)
    target = {"probabilities": Z.softmax(1), "dense": Z.sigmoid()}.get(kind, Y % C)
    loss = poly_cross_entropy if kind in ("smoothing", "probabilities") else poly_binary_cross_entropy_with_logits
    options = {"label_smoothing": 0.1} if kind == "smoothing" else {}
    arguments = {"logits": Z.clone(), "target": target.clone(), "weight": torch.linspace(0.5, 2, C)}
    value = loss(*arguments.values(), epsilon=epsilon, implementation="native", **options)  # type: ignore[arg-type]
    arguments[changed].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, epsilon, create_graph=create_graph)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo reads .grad
@pytest.mark.parametrize("name", ["softmax, weight, none", "softmax, learned, none", "sigmoid, class ids", "head"])
def test_compiled_autograd(name: str) -> None:
    torch._dynamo.reset()
    z = Z.clone().requires_grad_()
    value = LOSSES[name](z, **weight_of(name, torch.float32))
    with compiled_autograd._enable(torch.compile(backend="eager")):
        value.sum().backward()
    assert z.grad is not None
    close(z.grad, EXACT[name][0].sum(0))
