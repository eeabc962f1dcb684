"""Epsilon as a tensor: learned, under vmap and torch.compile. Also, the memory that is saved for backward."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from cases import CELLS, LOSSES, arrays
from polylosses import Polynomial, TwoSided
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy, poly_from_nll
from test_torch_kernels import needs_native, needs_triton

EPS = torch.finfo(torch.float64).eps


def batch(classes: int = 4, rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, class indices and soft targets."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(rows) % classes, logits.flip(0).softmax(1)


@pytest.mark.parametrize("cell", [c for c in CELLS if len(c.shape) == 3 and c.reduction != "sum"], ids=str)
def test_gradient_with_respect_to_epsilon_is_the_power_of_q(cell: Any) -> None:
    """The loss is linear in each epsilon, so that its derivative is the loss with that power alone."""
    numbers = arrays(cell)
    soft = cell.target == "probabilities"
    given = (
        torch.tensor(numbers.logits),
        torch.tensor(numbers.target, dtype=torch.float64 if soft else torch.long),
        None if numbers.weight is None else torch.tensor(numbers.weight),
    )
    options = {"label_smoothing": cell.label_smoothing, "reduction": cell.reduction}
    if cell.ignore_index is not None:
        options["ignore_index"] = cell.ignore_index
    for gamma in (0.0, 1.5):
        epsilons = torch.tensor([0.5, -0.25, 2.0], dtype=torch.float64, requires_grad=True)
        loss = poly_cross_entropy(*given, **options, epsilon=epsilons, gamma=gamma)
        found = torch.autograd.grad(loss.sum(), epsilons)[0]
        powers = [Polynomial((0.0,) * j + (1.0,), gamma, log_weight=0.0) for j in range(3)]
        right = torch.stack([poly_cross_entropy(*given, **options, polynomial=power).sum() for power in powers])
        torch.testing.assert_close(found, right, rtol=100 * EPS, atol=100 * EPS)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_tensors_are_numbers(gamma: float) -> None:
    logits, target, soft = batch()
    for y in (target, soft):
        for epsilon in (2.0, -1.0, 0.0):
            right = poly_cross_entropy(logits, y, epsilon=epsilon, gamma=gamma)
            for form in (
                torch.tensor(epsilon),
                torch.tensor([epsilon]),
                np.array([epsilon]),
                np.float64(epsilon),
                [epsilon],
            ):
                found = poly_cross_entropy(logits, y, epsilon=form, gamma=gamma)
                torch.testing.assert_close(found, right, rtol=4 * EPS, atol=4 * EPS)
                assert found.dtype == torch.float64
        right = poly_cross_entropy(logits, y, epsilon=(1.0, 0.5, -0.25), gamma=gamma)
        for several in (torch.tensor([1.0, 0.5, -0.25]), np.array([1.0, 0.5, -0.25]), [1.0, torch.tensor(0.5), -0.25]):
            found = poly_cross_entropy(logits, y, epsilon=several, gamma=torch.tensor(gamma))
            torch.testing.assert_close(found, right, rtol=4 * EPS, atol=4 * EPS)


def test_a_float32_epsilon_does_not_change_the_dtype() -> None:
    logits, target, soft = batch()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for form in (torch.tensor(2.0), torch.tensor([2.0, 1.0])):
            assert poly_cross_entropy(logits.to(dtype), target, epsilon=form).dtype == dtype
            assert poly_cross_entropy(logits.to(dtype), soft.to(dtype), epsilon=form).dtype == dtype
            assert poly_from_nll(torch.ones(2, dtype=dtype), epsilon=form).dtype == dtype


@pytest.mark.parametrize("name", ["poly1", "focal(0.5)", "poly1_focal(-1, 0.5)", "poly_n of degree 8", "everything"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_first_and_second_derivatives(soft: bool, name: str) -> None:
    logits, target, probabilities = batch(rows=3)
    weight = torch.tensor([1.0, 2.0, 0.5, 0.25], dtype=torch.float64)
    z = logits.requires_grad_()
    y = probabilities.detach().requires_grad_(soft) if soft else target

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return poly_cross_entropy(z, y, weight, label_smoothing=0.1, polynomial=LOSSES[name])

    assert gradcheck(loss, (z, y))
    assert gradgradcheck(loss, (z, y))


def test_derivatives_of_epsilon_and_gamma() -> None:
    logits, target, _ = batch(rows=3)
    epsilon = torch.tensor([2.0, -0.5], dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def loss(z: Tensor, e: Tensor, g: Tensor) -> Tensor:
        return poly_cross_entropy(z, target, epsilon=e, gamma=g)

    assert gradcheck(loss, (logits.requires_grad_(), epsilon, gamma))
    assert gradgradcheck(loss, (logits, epsilon, gamma))


@needs_native
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["probabilities", "smoothing", "binary", "class ids"])
def test_second_derivatives_of_a_function_of_a_learned_loss(kind: str, reduction: str) -> None:
    """Kernels give those of the plain loss, mixed ones too, where the incoming gradient depends on the logits."""
    logits, indices, probabilities = (tensor.float() if tensor.is_floating_point() else tensor for tensor in batch())
    target = probabilities if kind in ("probabilities", "binary") else indices
    soft = kind in ("probabilities", "smoothing")
    loss: Callable[..., Tensor] = poly_cross_entropy if soft else poly_binary_cross_entropy_with_logits
    options: dict[str, Any] = {"label_smoothing": 0.1, "gamma": 2.0} if soft else {"gamma": 1.5, "alpha": 0.3}

    def derivatives(implementation: str) -> list[Tensor]:
        z = logits.clone().requires_grad_()
        first = torch.tensor(0.7, requires_grad=True)
        third = torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)
        found = loss(
            z, target, epsilon=(first, 0.5, third), reduction=reduction, implementation=implementation, **options
        )
        value = (found**2).sum()
        gradients = torch.autograd.grad(value, (z, first, third), create_graph=True)
        mixed = torch.stack([(k + 1) * (gradient**2).sum() for k, gradient in enumerate(gradients)]).sum()
        return [*gradients, *torch.autograd.grad(mixed, (z, first, third))]

    for ours, plain in zip(derivatives("native"), derivatives("plain"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=2e-6 * plain.detach().abs().max().item())


# Of each branch of the kernels: sums alone; rows in one block and in several; rows side by side; several groups of
# sigmoids, and an end that is no whole block.
TERMS = [
    *(
        pytest.param("native", *case, marks=needs_native)
        for case in itertools.product(
            [(2,), (5, 9), (300, 21), (4, 300), (2, 40, 6, 11)], [(1,), (0, 1), (0, 2, 3)], [0.0, 0.5, 2.0]
        )
    ),
    *(pytest.param("triton", shape, (0, 2), 0.5, marks=needs_triton) for shape in ((5, 9), (2, 5, 3, 4))),
]


@pytest.mark.parametrize(("implementation", "shape", "powers", "gamma"), TERMS, ids=str)
def test_the_derivative_by_a_learned_coefficient_is_the_loss_of_its_term(
    implementation: str, shape: tuple[int, ...], powers: tuple[int, ...], gamma: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.rand, generator=generator)
    z, soft, weight = 3 * torch.randn(shape, generator=generator), random(shape), random(shape[:2][-1:])
    batch_shape = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    ids = torch.randint(shape[:2][-1], batch_shape, generator=generator)
    ids[random(batch_shape) < 0.2] = -100
    hard, beside = soft.round(), z.movedim(0, -1).contiguous().movedim(-1, 0)
    hard[soft < 0.1] = -100
    softmax, sigmoid = poly_cross_entropy, poly_binary_cross_entropy_with_logits
    class_dim, pos_weight = min(1, len(shape) - 1), weight.view(-1, *(1,) * (len(shape) - 2))
    losses: list[Callable[..., Tensor]] = [
        partial(softmax, z, soft.softmax(class_dim), weight),
        partial(softmax, beside, ids, label_smoothing=0.2),
        partial(softmax, z.bfloat16(), soft.bfloat16()),
        partial(sigmoid, z, soft, pos_weight=pos_weight, alpha=0.3),
        partial(sigmoid, beside.bfloat16(), hard, random(shape), ignore_index=-100),
    ]
    if len(shape) > 1:
        losses.append(partial(sigmoid, z, ids, ignore_index=-100))
    for k, (loss, reduction) in enumerate(itertools.product(losses, ("none", "sum", "mean"))):
        numbers: list[Any] = [1.0, 0.5, -0.25, 2.0][: max(powers) + 1]
        for power in powers:
            numbers[power] = torch.tensor(numbers[power], requires_grad=True)
        values = []
        for log_weight, *coefficients in (numbers, *(np.eye(len(numbers))[power].tolist() for power in powers)):
            polynomial: Any = Polynomial(tuple(coefficients), gamma, log_weight)
            if k >= 9:
                polynomial = TwoSided(polynomial, polynomial, margin=0.2)
            values.append(loss(polynomial=polynomial, reduction=reduction, implementation=implementation))
        grad_output = torch.linspace(-1.0, 2.0, values[0].numel()).reshape(values[0].shape).to(values[0].dtype)
        found = torch.autograd.grad(values[0], [numbers[power] for power in powers], grad_output)
        for derivative, term in zip(found, values[1:], strict=True):
            right = grad_output * term.float()
            atol = max(torch.finfo(term.dtype).eps, 1e-6) * right.abs().sum().item()  # terms are rounded
            torch.testing.assert_close(derivative, right.sum(), rtol=0, atol=atol)


def test_gradient_of_gamma_is_finite_at_saturation() -> None:
    logits = torch.tensor([[1e4, 0.0, -torch.inf], [0.0, 1e4, 1.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    for target in (torch.tensor([0, 1, -100]), torch.eye(3, dtype=torch.float64)[[0, 1, 2]]):
        gamma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        poly_cross_entropy(logits, target, epsilon=1.0, gamma=gamma).backward()  # type: ignore[no-untyped-call]
        assert gamma.grad is not None
        assert torch.isfinite(gamma.grad)


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_vmap_over_epsilon_is_a_loop(gamma: float, soft: bool) -> None:
    logits, indices, probabilities = batch()
    target = probabilities if soft else indices
    epsilons = torch.tensor([-1.0, 0.0, 2.0, 40.0], dtype=torch.float64)

    def loss(epsilon: Tensor, z: Tensor) -> Tensor:
        return poly_cross_entropy(z, target, epsilon=epsilon, gamma=gamma, label_smoothing=0.1)

    both = torch.func.grad_and_value(loss, argnums=(0, 1))
    (by_epsilon, by_logits), values = torch.func.vmap(both, in_dims=(0, None))(epsilons, logits)
    for k, epsilon in enumerate(epsilons.tolist()):
        (one_epsilon, one_logits), value = both(torch.tensor(epsilon, dtype=torch.float64), logits)
        torch.testing.assert_close(values[k], value, rtol=16 * EPS, atol=0)
        torch.testing.assert_close(by_epsilon[k], one_epsilon, rtol=16 * EPS, atol=0)
        torch.testing.assert_close(by_logits[k], one_logits, rtol=16 * EPS, atol=64 * EPS)


def test_compiled_without_a_break_for_any_epsilon() -> None:
    logits, target, _ = (x.float() if x.is_floating_point() else x for x in batch())

    def loss(z: Tensor, epsilon: Tensor | float) -> Tensor:
        return poly_cross_entropy(z, target, epsilon=epsilon, gamma=0.5, label_smoothing=0.1, ignore_index=1)

    compiled: Callable[..., Tensor] = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for epsilon in (0.5, 2.0, -1.0, torch.tensor(0.5), torch.tensor(3.0)):
        z = logits.clone().requires_grad_()
        found = compiled(z, epsilon)
        gradient = torch.autograd.grad(found, z)[0]
        right = loss(z, epsilon)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(gradient, torch.autograd.grad(right, z)[0])
    polynomial = LOSSES["taylor_cross_entropy"]
    whole: Callable[..., Tensor] = torch.compile(poly_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        whole(logits, target, polynomial=polynomial), poly_cross_entropy(logits, target, polynomial=polynomial)
    )


def bytes_saved(function: Callable[[], Tensor]) -> int:
    """The bytes that autograd saves for backward. A storage that is saved twice counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(kept.values())


@pytest.mark.parametrize("name", LOSSES)
def test_backward_keeps_what_torchs_does_and_some_numbers_a_row(name: str) -> None:
    rows, classes = 64, 4096
    logits, target = torch.randn(rows, classes, requires_grad=True), torch.arange(rows)
    torchs = bytes_saved(lambda: F.cross_entropy(logits, target, reduction="none"))
    assert torchs >= rows * classes * 4  # bytes_saved itself works
    ours = bytes_saved(lambda: poly_cross_entropy(logits, target, reduction="none", polynomial=LOSSES[name]))
    numbers_a_row = (ours - torchs) / (4 * rows)
    assert numbers_a_row <= 8 + 2 * len(LOSSES[name].coefficients), f"{numbers_a_row} float32 numbers a row"


@pytest.mark.parametrize("epsilon", [np.array(2.0), np.float32(2.0), np.int64(2)], ids=repr)
def test_numpy_numbers_are_numbers(epsilon: Any) -> None:
    logits, target = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    assert torch.equal(
        poly_cross_entropy(logits, target, epsilon=epsilon), poly_cross_entropy(logits, target, epsilon=2.0)
    )
