"""Every loss under every transform of torch gives the results of plain eager code.

There is one test for each transform. :data:`LOSSES` has functions of logits and epsilon that together use all options.
"""

import copy
import io
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import polylosses
from cases import slow_but
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

ROWS, CLASSES = 6, 4
# In forward mode, torch uses its own deprecated torch.jit.script.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def float64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


LOGITS = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
INDICES = torch.tensor([0, 1, 2, 3, -100, 1])
SOFT = LOGITS.flip(0).softmax(1)
WEIGHT = float64(1.0, 2.0, 0.5, 0.25)
HEAD = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EPSILON = float64(1.5).squeeze()

# (logits of shape (rows, CLASSES), row indices to select the targets, epsilon)
Loss = Callable[[Tensor, Tensor, Any], Tensor]
LOSSES: dict[str, Loss] = {
    "indices": lambda z, rows, e: poly_cross_entropy(z, INDICES[rows], epsilon=e, reduction="none"),
    "indices, weights, mean": lambda z, rows, e: poly_cross_entropy(z, INDICES[rows], WEIGHT.to(z), epsilon=e),
    "indices, smoothing, focal": lambda z, rows, e: poly_cross_entropy(
        z, INDICES[rows].clamp(min=0), WEIGHT.to(z), label_smoothing=0.1, epsilon=e, gamma=0.5, ignore_index=1
    ),
    "a polynomial": lambda z, rows, e: poly_cross_entropy(
        z, INDICES[rows], polynomial=polylosses.Polynomial((e, 0.5), gamma=0.5), reduction="none"
    ),
    "probabilities": lambda z, rows, e: poly_cross_entropy(z, SOFT.to(z)[rows], WEIGHT.to(z), epsilon=e, gamma=1.5),
    "probabilities, sum": lambda z, rows, e: poly_cross_entropy(
        z, SOFT.to(z)[rows], label_smoothing=0.1, epsilon=e, reduction="sum"
    ),
    "sigmoid": lambda z, rows, e: poly_binary_cross_entropy_with_logits(
        z, SOFT.to(z)[rows], reduction="none", epsilon=e
    ),
    "sigmoid, all options": lambda z, rows, e: poly_binary_cross_entropy_with_logits(
        z,
        SOFT.to(z)[rows].round(),
        WEIGHT.to(z),
        pos_weight=WEIGHT.to(z),
        alpha=0.25,
        alpha_on_epsilon=False,
        ignore_index=1,
        epsilon=e,
        gamma=0.5,
    ),
    "class ids": lambda z, rows, e: poly_binary_cross_entropy_with_logits(
        z, INDICES[rows], pos_weight=WEIGHT.to(z), alpha=0.25, ignore_index=-100, epsilon=e, gamma=1.5
    ),
    "linear head": lambda z, rows, e: linear_poly_cross_entropy(
        z, HEAD.to(z), INDICES[rows], linear_bias=HEAD.to(z)[:, 0], epsilon=e, gamma=0.5, label_smoothing=0.1
    ),
    "likelihoods": lambda z, rows, e: poly_from_nll(F.softplus(z), epsilon=e, gamma=0.5),
    "poly_softmax": lambda z, rows, e: poly_softmax(z, 1, epsilon=e, gamma=0.5),
    "poly_sigmoid": lambda z, rows, e: poly_sigmoid(z, epsilon=e, gamma=0.5),
}
ALL_ROWS = torch.arange(ROWS)
each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def gradients(value: Tensor, *of: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, of, torch.linspace(0.5, 2, value.numel()).to(value).view_as(value), **options)


@pytest.mark.parametrize("name", ["indices, smoothing, focal", "class ids", "linear head", "poly_softmax"])
def test_compiled_once_more_for_all_numbers(name: str) -> None:
    """torch.compile treats a Python number as a constant until it sees another one."""
    loss = LOSSES[name]
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for epsilon in (0.5, 0.75, 2.0, 40.0, 1.0 / 3.0):
        torch.testing.assert_close(compiled(LOGITS, ALL_ROWS, epsilon), loss(LOGITS, ALL_ROWS, epsilon))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["indices, weights, mean", "a polynomial", "probabilities", "sigmoid, all options", "class ids", "linear head"],
        "indices, weights, mean",
        "sigmoid, all options",
    ),
)
def test_compiled_once_for_all_numbers_of_rows_and_all_epsilons(name: str) -> None:
    loss = LOSSES[name]
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    # The first size must be unique: torch.compile assumes that equal sizes are always equal.
    for rows, epsilon in ((3, 0.5), (5, -0.5), (2, 0.0)):
        given = LOGITS[:rows].clone(), ALL_ROWS[:rows].clone(), float64(epsilon).squeeze()
        torch.testing.assert_close(compiled(*given), loss(*given))
    assert counter.frame_count == 1


# Losses that tests/test_torch_derivative_tools.py does not compile. Inductor takes 10 s for each.
@pytest.mark.parametrize(
    ("name", "backend"),
    slow_but(
        [
            ("sigmoid, all options", "aot_eager"),
            ("linear head", "aot_eager"),
            ("poly_softmax", "aot_eager"),
            ("indices, smoothing, focal", "inductor"),
            ("class ids", "inductor"),
        ],
        ("poly_softmax", "aot_eager"),
    ),
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from inductor
def test_compiled_gradients(name: str, backend: str) -> None:
    loss = LOSSES[name]
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("there is no compiler (g++)")
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    z, epsilon = LOGITS.clone().requires_grad_(), EPSILON.clone().requires_grad_()
    found, right = compiled(z, ALL_ROWS, epsilon), loss(z, ALL_ROWS, epsilon)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(gradients(found, z, epsilon), gradients(right, z, epsilon))
    torch._dynamo.reset()


@each
@forward_mode
def test_derivatives_are_difference_quotients(loss: Loss) -> None:
    z, epsilon = LOGITS.clone().requires_grad_(), EPSILON.clone().requires_grad_()

    def of(z: Tensor, epsilon: Tensor) -> Tensor:
        return loss(z, ALL_ROWS, epsilon)

    assert torch.autograd.gradcheck(of, (z, epsilon), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(of, (z, epsilon), check_batched_grad=True, fast_mode=True)


@each
@forward_mode
def test_function_transforms(loss: Loss) -> None:
    func: Any = torch.func
    z, epsilon = LOGITS.clone().requires_grad_(), EPSILON.clone().requires_grad_()

    def total(z: Tensor, epsilon: Tensor) -> Tensor:
        return loss(z, ALL_ROWS, epsilon).sum()

    by_z, by_epsilon = torch.autograd.grad(total(z, epsilon), (z, epsilon), create_graph=True)
    (twice,) = torch.autograd.grad(by_z.square().sum() / 2, z)
    z, epsilon = z.detach(), epsilon.detach()
    right = (by_z.detach(), by_epsilon.detach())
    torch.testing.assert_close(func.grad(total, argnums=(0, 1))(z, epsilon), right)
    torch.testing.assert_close(func.jacrev(total, argnums=(0, 1))(z, epsilon), right)
    torch.testing.assert_close(func.jacfwd(total, argnums=(0, 1))(z, epsilon), right)
    value, slope = func.jvp(total, (z, epsilon), (torch.ones_like(z), torch.ones_like(epsilon)))
    torch.testing.assert_close((value, slope), (total(z, epsilon), right[0].sum() + right[1]))
    # The Hessian times the gradient: forward over reverse, and reverse over reverse.
    for hessian in (func.jacfwd(func.grad(total)), func.jacrev(func.grad(total))):
        product = torch.tensordot(hessian(z, epsilon), right[0], dims=2)
        torch.testing.assert_close(product, twice)


@each
def test_mapped_over_rows_and_epsilons(loss: Loss) -> None:
    """Per-row gradients, as in differential privacy, for several epsilons at once."""
    epsilons = float64(-1.0, 0.0, 2.0)

    def one(z: Tensor, row: Tensor, epsilon: Tensor) -> Tensor:
        return loss(z[None], row[None], epsilon).sum()

    func: Any = torch.func
    both = func.grad(one, argnums=(0, 2))
    found = func.vmap(func.vmap(both, in_dims=(0, 0, None)), in_dims=(None, None, 0))(LOGITS, ALL_ROWS, epsilons)
    for k, epsilon in enumerate(epsilons):
        for row in ALL_ROWS:
            right = both(LOGITS[row], row, epsilon)
            torch.testing.assert_close((found[0][k, row], found[1][k, row]), right, equal_nan=True)


@each
def test_a_second_backward_gives_the_same(loss: Loss) -> None:
    z, epsilon = LOGITS.clone().requires_grad_(), EPSILON.clone().requires_grad_()
    value = loss(z, ALL_ROWS, epsilon)
    first = gradients(value, z, epsilon, retain_graph=True)
    graph = gradients(value, z, epsilon, create_graph=True)
    last = gradients(value, z, epsilon)
    for other in (graph, last):
        torch.testing.assert_close(first, other, rtol=1e-13, atol=1e-15)


def in_other_memory() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "transposed": lambda x: x.t().contiguous().t(),
        "every other column": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        "an offset": lambda x: torch.cat([x.new_zeros(1, *x.shape[1:]), x])[1:],
        "without a gradient for parts": lambda x: x.clone().as_strided(x.shape, x.stride()),
    }


@each
@pytest.mark.parametrize("name", in_other_memory())
def test_layout_does_not_matter(name: str, loss: Loss) -> None:
    z = LOGITS.clone().requires_grad_()
    other = in_other_memory()[name](z)
    assert torch.equal(other, z)
    found, right = loss(other, ALL_ROWS, EPSILON), loss(z, ALL_ROWS, EPSILON)
    torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradients(found, z), gradients(right, z), rtol=1e-13, atol=1e-15)


@each
def test_expanded_logits(loss: Loss) -> None:
    row = LOGITS[:1].clone().requires_grad_()
    found, right = loss(row.expand(ROWS, -1), ALL_ROWS, EPSILON), loss(row.repeat(ROWS, 1), ALL_ROWS, EPSILON)
    torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradients(found, row), gradients(right, row), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_channels_last_images(reduction: str) -> None:
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(torch.float64)
    last = z.to(memory_format=torch.channels_last)
    indices, dense = z.argmin(1), z.softmax(1)
    for loss, target in (
        (poly_cross_entropy, indices),
        (poly_cross_entropy, dense),
        (poly_binary_cross_entropy_with_logits, indices),
        (poly_binary_cross_entropy_with_logits, dense),
    ):
        for other in (target, target.contiguous(memory_format=torch.channels_last) if target.dim() == 4 else target.mT):
            y = other if other.shape == target.shape else other.mT
            one, two = z.clone().requires_grad_(), last.clone().requires_grad_()
            right, found = loss(one, target, reduction=reduction), loss(two, y, reduction=reduction)
            torch.testing.assert_close(found, right, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(gradients(found, two), gradients(right, one), rtol=1e-13, atol=1e-15)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tensors_without_numbers(dtype: torch.dtype, loss: Loss) -> None:
    """Meta and fake tensors give the right shape and dtype, and no element is read."""
    z = LOGITS.to(dtype)
    right = loss(z, ALL_ROWS, 2.0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(z).requires_grad_()
        found = loss(fake, ALL_ROWS, 2.0)
        gradient = torch.autograd.grad(found.sum(), fake)[0]
    assert (found.shape, found.dtype, gradient.shape) == (right.shape, right.dtype, z.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_the_meta_device(dtype: torch.dtype) -> None:
    z, indices, dense = LOGITS.to("meta", dtype), INDICES.to("meta"), SOFT.to("meta", dtype)
    weight = WEIGHT.to("meta", dtype)
    results = [
        poly_cross_entropy(z, indices, weight, label_smoothing=0.1, gamma=0.5),
        poly_cross_entropy(z, dense, weight, reduction="none"),
        poly_binary_cross_entropy_with_logits(z, dense, weight, pos_weight=weight, ignore_index=1, alpha=0.25),
        poly_binary_cross_entropy_with_logits(z, indices, reduction="none", ignore_index=-100),
        linear_poly_cross_entropy(z, HEAD.to("meta", dtype), indices, reduction="none"),
        # More rows than a chunk.
        linear_poly_cross_entropy(
            z.expand(300, ROWS, CLASSES),
            torch.zeros(40_000, CLASSES, device="meta", dtype=dtype),
            indices.expand(300, -1),
        ),
        poly_softmax(z, 1),
        poly_sigmoid(z),
    ]
    assert [tuple(x.shape) for x in results] == [(), (6,), (), (6, 4), (6,), (), (6, 4), (6, 4)]
    assert {x.device.type for x in results} == {"meta"}
    assert {x.dtype for x in results} == {dtype}


MODULES: dict[str, tuple[nn.Module, Tensor]] = {
    "cross-entropy": (PolyCrossEntropyLoss(WEIGHT.float(), label_smoothing=0.1, epsilon=2.0, gamma=0.5), INDICES),
    "cross-entropy, soft": (PolyCrossEntropyLoss(epsilon=torch.tensor(2.0)), SOFT.float()),
    "cross-entropy, polynomial": (PolyCrossEntropyLoss(polynomial=polylosses.taylor_cross_entropy(3)), INDICES),
    "Poly-1": (Poly1CrossEntropyLoss(nn.Parameter(torch.tensor(2.0))), INDICES),
    "sigmoid": (PolyBCEWithLogitsLoss(WEIGHT.float(), pos_weight=WEIGHT.float(), epsilon=(1.0, 0.5)), SOFT.float()),
    "sigmoid, class ids": (PolyBCEWithLogitsLoss(ignore_index=-100, alpha=torch.tensor(0.25)), INDICES),
    "focal": (Poly1FocalLoss(nn.Parameter(torch.tensor(1.0)), alpha_on_epsilon=False), SOFT.float()),
    "linear head": (LinearPolyCrossEntropyLoss(CLASSES, CLASSES, bias=True, weight=WEIGHT.float()), INDICES),
}
each_module = pytest.mark.parametrize("name", MODULES)


@each_module
def test_exported(name: str) -> None:
    module, target = MODULES[name]
    z = LOGITS.float()
    dynamic = {0: torch.export.Dim("rows", min=2, max=1000)}
    program = torch.export.export(module, (z, target), dynamic_shapes=(dynamic, dynamic))
    for rows in (ROWS, 3):
        torch.testing.assert_close(program.module()(z[:rows], target[:rows]), module(z[:rows], target[:rows]))


@each_module
def test_copies_are_the_same_loss(name: str) -> None:
    module, target = MODULES[name]
    z = LOGITS.float()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        assert type(twin) is type(module)
        assert torch.equal(twin(z, target), module(z, target))
        assert repr(twin) == repr(module)


@each_module
def test_tensors_are_state_and_move(name: str) -> None:
    module, target = MODULES[name]
    module = copy.deepcopy(module)
    tensors = {key for key, _ in [*module.named_buffers(), *module.named_parameters()]}
    assert set(module.state_dict()) == tensors
    held = {
        key for key in ("weight", "pos_weight", "alpha", "epsilon") if isinstance(getattr(module, key, None), Tensor)
    }
    assert held <= tensors
    changed = {key: value / (1 + value) for key, value in module.state_dict().items()}
    before = module(LOGITS.float(), target)
    module.load_state_dict(changed)
    assert not tensors or not torch.equal(module(LOGITS.float(), target), before)
    module.to(torch.float64)
    assert module(LOGITS, target.double() if target.is_floating_point() else target).dtype == torch.float64
    assert {x.dtype for x in module.state_dict().values()} <= {torch.float64}
    assert {x.device.type for x in module.to("meta").state_dict().values()} <= {"meta"}


@pytest.mark.parametrize("name", ["Poly-1", "focal"])
def test_an_epsilon_that_is_learned(name: str) -> None:
    module, target = MODULES[name]
    module = copy.deepcopy(module)
    assert [key for key, _ in module.named_parameters()] == ["epsilon"]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    before = module(LOGITS.float(), target)
    before.backward()
    optimizer.step()
    assert module(LOGITS.float(), target) < before


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@each_module
def test_autocast_and_gradient_scaling(name: str, low: torch.dtype) -> None:
    """Loss scaling by a power of two does not change the step."""
    criterion, target = MODULES[name]
    weights = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model, loss = nn.Linear(CLASSES, CLASSES), copy.deepcopy(criterion)
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=enabled)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=low):
                logits = model(LOGITS.float())
                value = loss(logits, target)
            assert logits.dtype == low
            assert value.dtype == torch.float32
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=4 * torch.finfo(low).eps, atol=4 * torch.finfo(low).eps)


def test_compiled_with_a_label_smoothing_that_changes() -> None:
    torch._dynamo.reset()
    loss = PolyCrossEntropyLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for loss.label_smoothing in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(z, y), loss(z, y))
