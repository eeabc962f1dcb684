"""The kernels for class probabilities and label smoothing, against the reference implementation and the plain path."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import CELLS, LOSSES, Cell, arrays
from found import TINY, compare, report
from kernel_cases import LAYOUTS, SHAPES, SURE, of_margin
from on_torch import found_by, tensor
from polylosses import Polynomial
from polylosses.torch import PolyCrossEntropyLoss, poly_cross_entropy
from test_softmax_laws import expected, options_of
from test_torch_kernels import each_kernel, needs_native, needs_triton, share_of, tolerance_of
from test_torch_transforms import gradients

SERVED = [cell for cell in CELLS if cell.target == "probabilities" or cell.label_smoothing > 0]
# One loss for each branch of the kernel: sums alone; Horner; powers of q.
BRANCHES = ["poly1", "poly_n of degree 8", "poly1_focal(-1, 0.5)"]


def cross_entropy(implementation: str, loss: Polynomial, cell: Cell, dtype: str) -> Any:
    numbers, options = arrays(cell), options_of(cell)
    z = tensor(numbers.logits, dtype, requires_grad=True)
    target = torch.tensor(numbers.target)
    if target.is_floating_point():
        target = target.to(getattr(torch, dtype))
    value = poly_cross_entropy(
        z,
        target,
        tensor(options.pop("weight"), dtype),
        **options | {"ignore_index": -100 if cell.ignore_index is None else cell.ignore_index},
        polynomial=loss,
        implementation=implementation,
    )
    return found_by(value, z, None, numbers.grad_output if cell.reduction == "none" else None)


MOST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
@each_kernel
def test_value_and_gradients_are_the_oracles(implementation: str, name: str, dtype: str) -> None:
    loss, tolerance, failures = LOSSES[name], tolerance_of(dtype, implementation), {}
    for cell in share_of(SERVED, name, implementation, dtype):
        right = dataclasses.replace(expected(loss, cell), target_gradient=None)
        failures[str(cell)] = compare(cross_entropy(implementation, loss, cell, dtype), right, tolerance)
    report(failures)


@pytest.mark.parametrize("others", [1, 5, 130])
@pytest.mark.parametrize("loss", SURE, ids=str)
@each_kernel
def test_digits_of_one_hot_rows_are_kept_however_sure_the_model_is(
    implementation: str, loss: Polynomial, others: int
) -> None:
    """As for class indices: the relative error is 1e-5 unless float32 underflows."""
    margins = torch.tensor([*range(-4, 81, 4), 0.1, 1.5, 17.3])
    if implementation == "triton" and others > 100:  # the interpreter is slow: two rows at a time
        margins = margins[::4]
    label = torch.tensor([0, others // 2, others]).repeat_interleave(len(margins))
    rows = torch.arange(len(label))
    z = torch.full((len(rows), others + 1), 7.25)
    z[rows, label] += margins.repeat(3)
    target = torch.nn.functional.one_hot(label, others + 1).float()
    z.requires_grad_()
    value = poly_cross_entropy(z, target, polynomial=loss, reduction="none", implementation=implementation)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    found = zip(value.tolist(), z.grad[rows, label].tolist(), strict=True)
    for margin, numbers in zip((z[rows, label] - 7.25).tolist(), found, strict=True):
        for number, exact in zip(numbers, of_margin(loss, margin, others), strict=True):
            allowed = max(1e-5 * abs(float(exact)), 1e3 * TINY["float32"])
            assert abs(number - exact) <= allowed, f"margin {margin}: {number}, not {float(exact)}"


def plain_and_kernel(
    kernel: str, z: Tensor, target: Tensor, laid_out: Any = None, **options: Any
) -> list[list[Tensor]]:
    """The losses and gradients in float64, and those of the kernel, for a different grad_output in every row."""
    results = []
    for implementation, dtype in (("plain", torch.float64), (kernel, z.dtype)):
        leaf = z.to(dtype, copy=True).requires_grad_()
        y = target.to(dtype) if target.is_floating_point() and implementation == "plain" else target
        own = options if options.get("weight") is None else options | {"weight": options["weight"].to(dtype)}
        logits = laid_out(leaf) if laid_out else leaf
        value = poly_cross_entropy(logits, y, **own, reduction="none", implementation=implementation)
        grad_output = torch.linspace(-1.0, 2.0, value.numel()).reshape(value.shape).to(value.dtype)
        (gradient,) = torch.autograd.grad(value, leaf, grad_output)
        results.append([value.detach().double(), gradient.double()])
    return results


# The last is too large to be copied while the CPU's kernel sums over classes.
NATIVE_SHAPES = [*(shape for shape in SHAPES if math.prod(shape)), (1, 1500, 33)]
LAID_OUT = [
    *(pytest.param("native", *case, 3, marks=needs_native) for case in itertools.product(BRANCHES, NATIVE_SHAPES)),
    # Short rows, long rows, rows side by side that are one outer or several.
    *(
        pytest.param("triton", "poly1_focal(-1, 0.5)", shape, 13, marks=needs_triton)
        for shape in ((7,), (5, 3), (2, 1500), (2, 15, 9, 11))
    ),
]


@pytest.mark.parametrize(("implementation", "name", "shape", "every"), LAID_OUT, ids=str)
def test_every_layout_gives_the_plain_numbers(
    implementation: str, name: str, shape: tuple[int, ...], every: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(shape, generator=generator)
    classes, batch = (shape[0], ()) if len(shape) == 1 else (shape[1], (shape[0], *shape[2:]))
    soft = torch.randn(shape, generator=generator).softmax(min(1, len(shape) - 1))
    indices = torch.randint(classes, batch, generator=generator)
    indices[torch.rand(batch, generator=generator) < 0.2] = -100
    weight = torch.rand(classes, generator=generator) + 0.5
    layouts = list(LAYOUTS.values())
    for k, (of_logits, of_target) in enumerate(itertools.product(layouts, layouts)):
        if k % every == shape[0] % every or of_logits is of_target:
            cases: list[tuple[Tensor, dict[str, Any]]] = [(of_target(soft), {})]
            if of_logits is of_target and k % every < 3:
                smoothed = {"label_smoothing": 0.25, "weight": weight}
                cases += [(soft, smoothed), (indices, smoothed), (indices, {"label_smoothing": 0.1})]
            for target, options in cases:
                right, found = plain_and_kernel(
                    implementation, z, target, of_logits, polynomial=LOSSES[name], **options
                )
                for exact, number in zip(right, found, strict=True):
                    torch.testing.assert_close(number, exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtypes", list(itertools.product(["float32", "bfloat16"], repeat=2)), ids="-".join)
@pytest.mark.parametrize(
    ("implementation", "shape"),
    [
        *(pytest.param("native", shape, marks=needs_native) for shape in ((300, 21), (5, 300), (2, 15, 9, 11))),
        *(pytest.param("triton", shape, marks=needs_triton) for shape in ((30, 21), (2, 15, 9, 11))),
    ],
    ids=str,
)
def test_logits_and_probabilities_of_other_dtypes(
    implementation: str, shape: tuple[int, ...], dtypes: tuple[str, str]
) -> None:
    of_logits, of_target = (getattr(torch, dtype) for dtype in dtypes)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator).to(of_logits)
    target = torch.randn(shape, generator=generator).softmax(1).to(of_target)
    for channels_last in (False, True)[: 2 if len(shape) == 4 else 1]:
        if channels_last:
            z, target = (x.to(memory_format=torch.channels_last) for x in (z, target))
        (loss, gradient), (found, found_gradient) = plain_and_kernel(implementation, z, target)
        tolerance = 2e-2 if torch.bfloat16 in (of_logits, of_target) else 1e-5
        torch.testing.assert_close(found, loss, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found_gradient, gradient, rtol=tolerance, atol=tolerance)
    value = poly_cross_entropy(z, target, implementation=implementation)
    assert value.dtype == torch.nn.functional.cross_entropy(z, target).dtype


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("more", [0, 130])
@each_kernel
def test_extreme_rows(implementation: str, more: int, columns: bool, name: str) -> None:
    """Ties for the largest logit, masked classes, rows of one possible class, and ignored rows with any logits."""
    inf, nan = torch.inf, torch.nan
    z = torch.tensor(
        [[1.0, 1.0, -2.0], [3.0, 3.0, 3.0], [0.5, -inf, 2.0], [-inf, 4.0, -inf], [1e30, 0.0, -1e30], [100.0, 0.0, 1.0]]
    )
    soft = torch.tensor(
        [[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]]
    )
    padding = torch.tensor([[nan, nan, nan], [inf, -inf, 0.0]])
    indices = torch.tensor([0, 1, 2, 1, 0, 1, -100, -100])
    for logits, target, smoothing in ((z, soft, 0.0), (torch.cat([z[[0, 1, 4, 5]], padding]), indices[2:], 0.2)):
        # Masked classes; label smoothing would give them an infinite loss.
        wide = [torch.nn.functional.pad(logits, (0, more), value=-30.0 if smoothing else -inf), target]
        if target.dim() == 2:
            wide[1] = torch.nn.functional.pad(target, (0, more))
        given = [x if not columns else x.t().contiguous()[None] for x in wide]
        (loss, gradient), (found, found_gradient) = plain_and_kernel(
            implementation, *given, polynomial=LOSSES[name], label_smoothing=smoothing
        )
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("label_smoothing", "masked"), [(0.1, MOST), (1.0, MOST), (1e-46, torch.inf)])
@pytest.mark.parametrize("classes", [10, 200])
@each_kernel
def test_smoothing_with_huge_masks(implementation: str, classes: int, label_smoothing: float, masked: float) -> None:
    """The distances of two masked classes add up to more than float32 holds, but not the loss; 1e-46 is 0 there."""
    z, target = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    z[:, 3:5] = -masked
    in_float32 = label_smoothing if label_smoothing > 1e-45 else 0.0
    right = poly_cross_entropy(z.double(), target, label_smoothing=in_float32, epsilon=1.0, implementation="plain")
    found = poly_cross_entropy(z, target, label_smoothing=label_smoothing, epsilon=1.0, implementation=implementation)
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("columns", [False, True])
@each_kernel
def test_what_is_no_number_stays_where_it_is(implementation: str, columns: bool) -> None:
    inf, nan = torch.inf, torch.nan
    z = torch.tensor(
        [[0.0, nan, 1.0], [-inf] * 3, [inf, 0.0, 0.0], [0.0, inf, -inf], [nan] * 3, [1.0, 2.0, 3.0], [3.0, 0.0, nan]]
    )
    soft, indices = torch.tensor([0.25, 0.5, 0.25]).expand(7, 3), torch.zeros(7, dtype=torch.int64)
    for target, smoothing in ((soft, 0.0), (indices, 0.25)):
        given = (z.t()[None], target.t()[None]) if columns else (z, target)
        right, found = plain_and_kernel(implementation, *given, label_smoothing=smoothing, epsilon=0.5)
        for numbers, others in zip(right, found, strict=True):
            torch.testing.assert_close(others, numbers, rtol=1e-5, atol=1e-6, equal_nan=True)


@needs_native
def test_the_gradient_of_large_logits_is_that_of_its_parts() -> None:
    """From 32 MiB on, threads ask for the pages of the gradient first."""
    z = torch.randn(900, 10_000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randint(10_000, (900,), generator=torch.Generator().manual_seed(1))

    def gradient(rows: slice) -> Tensor:
        part = z.detach()[rows].clone().requires_grad_()
        loss = poly_cross_entropy(part, target[rows], label_smoothing=0.1, reduction="sum", implementation="native")
        return torch.autograd.grad(loss, part)[0]

    assert z.nbytes > 2**25
    parts = [gradient(slice(first, first + 100)) for first in range(0, 900, 100)]
    assert torch.equal(gradient(slice(None)), torch.cat(parts))


@needs_native
def test_operators_are_what_torch_wants_them_to_be() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    numbers = (0.5, 1.0, 1.0, 0.25)
    for target, weight in ((z.softmax(1), None), (torch.tensor([0, 1, -100, 3, 4, 0]), torch.rand(5))):
        for summed in (False, True):
            arguments = (z.clone().requires_grad_(), target, weight, -100, 0.1, numbers, summed)
            torch.library.opcheck(torch.ops.polylosses.soft_target_loss.default, arguments)
        _, row_stats = torch.ops.polylosses.soft_target_loss(z, target, weight, -100, 0.1, numbers, True)
        for grad_output in (torch.ones(()), torch.ones(6)):
            of = (z, target, weight, -100, 0.1, numbers, row_stats, grad_output)
            torch.library.opcheck(torch.ops.polylosses.soft_target_gradient.default, of)


@needs_native
@pytest.mark.parametrize("soft", [False, True], ids=["smoothing", "probabilities"])
def test_compiled_for_all_numbers_of_rows(soft: bool) -> None:
    torch._dynamo.reset()
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    target = z.flip(0).softmax(1) if soft else torch.arange(40) % 5
    loss = PolyCrossEntropyLoss(gamma=0.5, label_smoothing=0.1, implementation="native")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (40, 33):
        first, second = z[:rows].clone().requires_grad_(), z[:rows].clone().requires_grad_()
        found, right = compiled(first, target[:rows]), loss(second, target[:rows])
        torch.testing.assert_close(found, right, rtol=0, atol=0)
        torch.testing.assert_close(gradients(found, first), gradients(right, second), rtol=0, atol=0)


@pytest.mark.parametrize("soft", [False, True], ids=["smoothing", "probabilities"])
@each_kernel
def test_second_derivatives_are_the_plain_losses(implementation: str, soft: bool) -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    target = z.flip(0).softmax(1) if soft else torch.tensor([0, 1, -100, 3, 4, 0])
    results = []
    for which, dtype in (("plain", torch.float64), (implementation, torch.float32)):
        leaf = z.to(dtype, copy=True).requires_grad_()
        y = target.to(dtype) if soft else target
        value = poly_cross_entropy(leaf, y, label_smoothing=0.1, gamma=1.5, reduction="none", implementation=which)
        (first,) = torch.autograd.grad(value.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        results.append((first.detach().double(), second.double()))
    for right, found in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@each_kernel
def test_sums_over_many_classes_side_by_side_keep_their_digits(implementation: str) -> None:
    """In float32, they would lose a digit with 5000 classes."""
    z = 5 * torch.randn(2, 5000, 2, generator=torch.Generator().manual_seed(0))
    target = torch.randint(5000, (2, 2), generator=torch.Generator().manual_seed(1))
    (loss, gradient), (found, found_gradient) = plain_and_kernel(
        implementation, z, target, label_smoothing=0.5, epsilon=(-1.0, -0.5)
    )
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=2e-6)
