"""The softmax kernels against the reference implementation and the plain path, and under torch's transforms."""

import itertools
import math
import random
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import reference
from cases import CELLS, LOSSES, Array, C, Cell, arrays, some
from found import SPACING, TINY, compare, report, rounded_once
from kernel_cases import LAYOUTS, SHAPES, SURE, of_margin
from on_torch import found_by, tensor
from polylosses import Polynomial
from polylosses.torch import PolyCrossEntropyLoss, poly_cross_entropy
from polylosses.torch.kernels import dispatch, native, native_library, triton
from test_softmax_laws import EXTREME, expected, options_of
from test_torch_transforms import forward_mode, gradients

BUILT = native.why_not(torch.zeros(1)) is None
needs_native = pytest.mark.skipif(not BUILT, reason="the kernels of cpu/ are not built here")
needs_triton = [
    pytest.mark.slow,
    pytest.mark.skipif(triton.why_not(torch.zeros(1)) is not None, reason="triton is not installed"),
    # The interpreter computes in NumPy, which warns of nan.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]
KERNELS = [pytest.param("native", marks=needs_native), pytest.param("triton", marks=needs_triton)]
each_kernel = pytest.mark.parametrize("implementation", KERNELS)

DTYPES = ["float32", "bfloat16"]
SERVED = [cell for cell in CELLS if cell.target == "indices" and cell.label_smoothing == 0]


def share_of(cells: list[C], name: str, implementation: str, dtype: str) -> list[C]:
    """The cells that a loss runs over: for Triton's interpreter only one, since it takes 50 ms for each kernel."""
    if implementation == "native":
        return some(tuple(cells), name)
    first = len(DTYPES) * list(LOSSES).index(name) + DTYPES.index(dtype)
    return [random.Random(0).sample(cells, len(cells))[first]]


def cross_entropy(implementation: str, loss: Polynomial, cell: Cell, dtype: str) -> Any:
    numbers, options = arrays(cell), options_of(cell)
    z = tensor(numbers.logits, dtype, requires_grad=True)
    value = poly_cross_entropy(
        z,
        torch.tensor(numbers.target),
        tensor(options.pop("weight"), dtype),
        **options | {"ignore_index": -100 if cell.ignore_index is None else cell.ignore_index},
        polynomial=loss,
        implementation=implementation,
    )
    return found_by(value, z, None, numbers.grad_output if cell.reduction == "none" else None)


def tolerance_of(dtype: str, implementation: str) -> Callable[[Array, Array], Array]:
    if dtype != "bfloat16":
        return lambda _, scale: SPACING[dtype] * scale
    rounded = rounded_once(dtype)
    # Triton's interpreter rounds towards 0, a GPU to nearest.
    return rounded if implementation == "native" else lambda right, scale: 2 * rounded(right, scale)


def with_tensors(loss: Polynomial) -> Polynomial:
    """The same loss with tensors as coefficients, so that its polynomial is computed in Python."""
    coefficients = tuple(torch.tensor(c, requires_grad=True) for c in loss.coefficients)
    return Polynomial(coefficients, loss.gamma, torch.tensor(loss.log_weight, requires_grad=True))


def by_numbers_and_tensors(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrizes over losses, with numbers and with tensors as coefficients.

    Triton's interpreter runs two losses with tensors: they are all the same to its kernel.
    """
    cases = []
    for kernel in KERNELS:
        table = [(name, False) for name in names]
        table += [(name, True) for name in names][: 2 if kernel.values == ("triton",) else None]
        for name, by_tensors in table:
            label = f"{kernel.values[0]}-{name}-{'tensors' if by_tensors else 'numbers'}"
            cases.append(pytest.param(*kernel.values, name, by_tensors, marks=kernel.marks, id=label))
    return pytest.mark.parametrize(("implementation", "name", "by_tensors"), cases)


@pytest.mark.parametrize("dtype", DTYPES)
@by_numbers_and_tensors(LOSSES)
def test_value_and_gradients_are_the_oracles(implementation: str, name: str, by_tensors: bool, dtype: str) -> None:
    loss = with_tensors(LOSSES[name]) if by_tensors else LOSSES[name]
    report(
        {
            str(cell): compare(
                cross_entropy(implementation, loss, cell, dtype),
                expected(LOSSES[name], cell),
                tolerance_of(dtype, implementation),
            )
            for cell in share_of(SERVED, name, implementation, dtype)
        }
    )


@pytest.mark.parametrize("others", [1, 5, pytest.param(130, marks=pytest.mark.slow)])
@by_numbers_and_tensors(list(map(str, SURE)))
def test_digits_are_kept_however_sure_the_model_is(
    implementation: str, name: str, by_tensors: bool, others: int
) -> None:
    """The relative error is 1e-5 unless float32 underflows. The plain path loses all digits from margin 18 on."""
    (loss,) = (loss for loss in SURE if str(loss) == name)
    polynomial = with_tensors(loss) if by_tensors else loss
    margins = torch.tensor([*range(-4, 81, 4), 0.1, 1.5, 17.3])
    if implementation == "triton" and others > 100:  # the interpreter is slow: two rows at a time
        margins = margins[::4]
    target = torch.tensor([0, others // 2, others]).repeat_interleave(len(margins))
    rows = torch.arange(len(target))
    z = torch.full((len(rows), others + 1), 7.25)
    z[rows, target] += margins.repeat(3)
    z.requires_grad_()
    value = poly_cross_entropy(z, target, polynomial=polynomial, reduction="none", implementation=implementation)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    found = zip(value.tolist(), z.grad[rows, target].tolist(), strict=True)
    for margin, numbers in zip((z[rows, target] - 7.25).tolist(), found, strict=True):
        for number, exact in zip(numbers, of_margin(loss, margin, others), strict=True):
            # A factor of a product may underflow in float32 before the product does.
            allowed = max(1e-5 * abs(float(exact)), 1e3 * TINY["float32"])
            assert abs(number - exact) <= allowed, f"margin {margin}: {number}, not {float(exact)}"


def laid_out(shapes: list[tuple[int, ...]], interpreted: list[tuple[int, ...]]) -> pytest.MarkDecorator:
    """Parametrizes over shapes, layouts and dtypes. Triton's interpreter runs every 13th of its own cases."""
    cases = []
    for implementation, some_shapes, mark in (
        ("native", shapes, [needs_native]),
        ("triton", interpreted, needs_triton),
    ):
        table = [*product(some_shapes, LAYOUTS, [torch.float32, torch.bfloat16])]
        for case in table[:: 1 if implementation == "native" else 13]:
            cases.append(pytest.param(implementation, *case, marks=mark, id=f"{implementation}-{case}"))
    return pytest.mark.parametrize(("implementation", "shape", "layout", "dtype"), cases)


def same(found: Tensor, right: Tensor, relative: float) -> None:
    """Compares with a tolerance of ``relative`` times the largest element."""
    assert found.shape == right.shape
    if right.numel():
        assert (found.double() - right.double()).abs().max() <= relative * right.abs().max()


@laid_out(SHAPES, [shape for shape in SHAPES if math.prod(shape) < 9000])
def test_every_layout_gives_the_plain_numbers(
    implementation: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = LAYOUTS[layout](3 * torch.randn(shape, generator=generator)).to(dtype)
    positions = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = torch.randint(shape[0 if len(shape) == 1 else 1], positions, generator=generator)
    target[torch.rand(positions, generator=generator) < 0.1] = -100
    target = target.transpose(0, -1).contiguous().transpose(0, -1) if target.dim() > 1 else target
    grad_output = torch.rand(positions, generator=generator)
    results = []
    for logits, which in ((z.double(), "plain"), (z, implementation)):
        x = logits.detach().requires_grad_()
        value = poly_cross_entropy(x, target, reduction="none", epsilon=(1.0, -0.5), gamma=0.5, implementation=which)
        value.backward(grad_output.to(value.dtype))  # type: ignore[no-untyped-call]
        assert x.grad is not None
        results.append((value.detach(), x.grad))
    (right, right_gradient), (value, gradient) = results
    same(value, right, 8 * SPACING[str(dtype).removeprefix("torch.")])
    same(gradient, right_gradient, 8 * SPACING[str(dtype).removeprefix("torch.")])


@pytest.mark.parametrize("of", [lambda loss: loss, with_tensors], ids=["numbers", "tensors"])
@pytest.mark.parametrize("name", LOSSES)
@each_kernel
def test_extreme_logits(implementation: str, name: str, of: Callable[[Polynomial], Polynomial]) -> None:
    loss = LOSSES[name]
    lost = TINY["float32"] * (1 + loss.log_weight + sum(j * abs(c) for j, c in enumerate(loss.coefficients, start=1)))
    rows = [(logits, label) for logits in EXTREME.values() for label in np.flatnonzero(np.isfinite(logits))]
    logits, labels = (np.array(numbers) for numbers in zip(*rows, strict=True))
    right = reference.cross_entropy(loss, logits, labels, reduction="none")
    z = tensor(logits, "float32", requires_grad=True)
    value = poly_cross_entropy(
        z, torch.tensor(labels), polynomial=of(loss), reduction="none", implementation=implementation
    )
    wrong = compare(found_by(value, z, None, None), right, lambda _, scale: SPACING["float32"] * scale + lost)
    assert not wrong


@each_kernel
def test_what_is_no_number_stays_where_it_is(implementation: str) -> None:
    """Rows with nan, all classes masked or infinite logits do not affect other rows, as in torch."""
    inf, nan = math.inf, math.nan
    rows = [[0.0, nan, 1.0], [-inf] * 3, [inf, 0.0, 0.0], [0.0, inf, 0.0], [nan] * 3, [1.0, 2.0, 3.0], [-inf, 0.0, 1.0]]
    for columns in (False, True):
        results = []
        for which in ("plain", implementation):
            z = torch.tensor(rows, requires_grad=True)
            x = z.t()[None] if columns else z
            target = torch.zeros(x.shape[0] if not columns else (1, x.shape[2]), dtype=torch.int64)
            value = poly_cross_entropy(x, target, reduction="none", implementation=which)
            value.sum().backward()  # type: ignore[no-untyped-call]
            results.append((value.detach(), z.grad))
        torch.testing.assert_close(*results, equal_nan=True)


@each_kernel
def test_targets_that_are_negated_when_they_are_read(implementation: str) -> None:
    z, y = torch.randn(4, 7, requires_grad=True), torch.tensor([0, 6, -100, 3])
    results = []
    for target in (y, torch._neg_view(-y)):
        value = poly_cross_entropy(z, target, implementation=implementation)
        results.append((value.detach(), *torch.autograd.grad(value, z)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@each_kernel
@pytest.mark.parametrize("epsilon", [1.0, torch.tensor(1.0, requires_grad=True)], ids=["number", "tensor"])
def test_gradients_of_ignored_rows_are_0_also_where_they_are_differentiated(implementation: str, epsilon: Any) -> None:
    rows = [[math.nan, 1.0], [-math.inf, -math.inf], [math.inf, 0.0], [1.0, 2.0]]
    z = torch.tensor(rows, requires_grad=True)
    for x in (z, z.t()[None]):
        target = torch.tensor([-100, -100, -100, 1]).view(x.shape[0], *x.shape[2:])
        for weight, reduction in itertools.product((None, torch.tensor([1.0, 2.0])), ("none", "mean", "sum")):
            value = poly_cross_entropy(
                x, target, weight, reduction=reduction, epsilon=epsilon, gamma=0.5, implementation=implementation
            )
            (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), z)
            for derivative in (first, second):
                assert (derivative[:3] == 0).all()
                assert (derivative[3] != 0).all()


@each_kernel
def test_ignored_rows_count_nothing_whatever_they_hold(implementation: str) -> None:
    z = torch.tensor([[math.nan, 1.0], [-math.inf, -math.inf], [1.0, 2.0]], requires_grad=True)
    for x in (z, z.t()[None]):
        z.grad = None
        target = torch.tensor([-100, -100, 1]).view(x.shape[0], *x.shape[2:])
        value = poly_cross_entropy(x, target, reduction="none", gamma=0.5, implementation=implementation)
        value.sum().backward()  # type: ignore[no-untyped-call]
        assert value.flatten()[:2].tolist() == [0, 0]
        assert z.grad is not None
        assert z.grad[:2].tolist() == [[0, 0], [0, 0]]
        assert (z.grad[2] != 0).all()


@pytest.mark.parametrize(
    ("implementation", "shape"),
    [
        *(pytest.param("native", shape, marks=needs_native) for shape in ((256, 1000), (4, 60, 8, 8), (2000, 21))),
        pytest.param("triton", (2, 60, 8, 8), marks=needs_triton),
        pytest.param("native", (2, 200_000), marks=needs_native),
    ],
)
def test_errors_are_no_larger_than_the_plain_ones(implementation: str, shape: tuple[int, ...]) -> None:
    """Compares mean relative errors of losses and gradients, with the plain path in float64 as the ground truth."""
    generator = torch.Generator().manual_seed(1)
    logits = 8 * torch.randn(shape, generator=generator)
    # A third of the labels is the predicted class, so that p is near 0 for some rows and near 1 for others.
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target = torch.where(torch.rand(target.shape, generator=generator) < 1 / 3, logits.argmax(1), target)
    results = []
    for z, which in ((logits.double(), "plain"), (logits, "plain"), (logits, implementation)):
        x = z.detach().requires_grad_()
        value = poly_cross_entropy(x, target, reduction="none", implementation=which)
        results.append([value.detach().double(), torch.autograd.grad(value.sum(), x)[0].double()])
    for right, of_plain, of_kernel in zip(*results, strict=True):
        errors = [((x - right).abs() / right.abs().clamp(min=1e-30)).mean() for x in (of_plain, of_kernel)]
        assert errors[1] <= errors[0]
        assert errors[1] < 2e-6


Z = torch.randn(64, 1000, generator=torch.Generator().manual_seed(2))
Y = torch.randint(1000, (64,), generator=torch.Generator().manual_seed(3)).index_fill(0, torch.tensor([5]), -100)


@pytest.mark.parametrize(
    "shape", [(9000, 1000), (9, 1000, 1000), (1, 9, 1000, 1000), (40, 25, 100, 101), (2, 5_000_000)], ids=str
)
@pytest.mark.parametrize("layout", ["contiguous", "classes last"])
@needs_native
def test_large_gradients_are_those_of_their_parts(shape: tuple[int, ...], layout: str) -> None:
    """Above 32 MiB, the kernel populates the gradient's memory pages before it writes them."""
    z = LAYOUTS[layout](torch.randn(shape, generator=torch.Generator().manual_seed(6)))
    y = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(7))

    def gradient(z: Tensor, y: Tensor) -> Tensor:
        x = z.detach().requires_grad_()
        value = poly_cross_entropy(x, y, reduction="none", implementation="native")
        (result,) = torch.autograd.grad(value, x, torch.ones_like(value))
        return result

    assert z.nbytes > 2**25
    dim = 0 if len(shape) == 2 else -1
    parts = [gradient(*part) for part in zip(z.chunk(5, dim), y.chunk(5, dim), strict=True)]
    assert torch.equal(gradient(z, y), torch.cat(parts, dim))


@needs_native
def test_operators_are_what_torch_wants_them_to_be() -> None:
    operators = torch.ops.polylosses
    image = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    for logits, target in ((Z[:3, :50], Y[:3] % 50), (image, torch.randint(3, (2, 9, 7))), (Z[0], Y[0])):
        z = logits.clone().requires_grad_()
        for weight, reduction in ((None, "none"), (torch.rand(logits.shape[:2][-1]), "mean"), (None, "sum")):
            numbers = (0.5, 1.0, 2.0, -0.5)
            torch.library.opcheck(operators.softmax_loss, (z, target, weight, -100, numbers, reduction))
        torch.library.opcheck(operators.softmax_statistics, (z, target, -100))
        rows = operators.softmax_statistics(logits, target, -100)[-1]
        for grad_output in (torch.ones(()), torch.ones(target.shape)):
            torch.library.opcheck(operators.softmax_gradient, (logits, target, rows, grad_output))


@needs_native
def test_compiled() -> None:
    torch._dynamo.reset()
    loss = PolyCrossEntropyLoss(gamma=0.5, reduction="none", implementation="native")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (64, 50, 40):
        z, again = Z[:rows].clone().requires_grad_(), Z[:rows].clone().requires_grad_()
        found, right = compiled(z, Y[:rows]), loss(again, Y[:rows])
        torch.testing.assert_close(found, right, rtol=0, atol=0)
        torch.testing.assert_close(gradients(found, z), gradients(right, again), rtol=0, atol=0)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@each_kernel
def test_second_derivatives(implementation: str, reduction: str, learned: bool) -> None:
    results = []
    for which, dtype in (("plain", torch.float64), (implementation, torch.float32)):
        z = Z[:, :30].to(dtype).requires_grad_()
        epsilon = torch.tensor(1.5, dtype=dtype, requires_grad=True)
        of, weight = (z, epsilon) if learned else (z,), torch.linspace(0, 2, 30, dtype=dtype)
        value = poly_cross_entropy(
            *(z, Y % 30, weight),
            epsilon=(epsilon if learned else 1.5, -0.5),
            gamma=1.5,
            ignore_index=7,
            reduction=reduction,
            implementation=which,
        )
        first = torch.autograd.grad(value.square().sum(), of, create_graph=True)
        second = torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), of)
        results.append([x.detach().double() for x in (*first, *second)])
    for right, found in zip(*results, strict=True):
        same(found, right, 1e-5)


@forward_mode
def test_transforms_take_the_plain_path_by_themselves() -> None:
    right = poly_cross_entropy(Z, Y, implementation="plain")

    def loss(z: Tensor) -> Tensor:
        return poly_cross_entropy(z, Y)

    both = torch.stack([Z, Z])
    torch.testing.assert_close(torch.func.vmap(loss)(both), right.expand(2))
    gradient = torch.func.vmap(torch.func.grad(loss))(both)
    assert gradient.shape == both.shape
    torch.func.jvp(loss, (Z,), (Z,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(Z, Z)  # type: ignore[no-untyped-call]
        unpacked = torch.autograd.forward_ad.unpack_dual(loss(dual))  # type: ignore[no-untyped-call]
        assert unpacked.tangent is not None
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(lambda z: poly_cross_entropy(z, Y, implementation="native"))(both)


@needs_native
def test_a_kernel_is_taken_where_it_is_faster_and_serves() -> None:
    def name(value: Tensor) -> str:
        assert value.grad_fn is not None
        return value.grad_fn.name()

    def chosen(z: Tensor, **options: Any) -> str:
        value = poly_cross_entropy(z.requires_grad_(), torch.arange(z.shape[0]) % 10, reduction="none", **options)
        return "native" if name(value).startswith("_Softmax") else "plain"

    small, large = torch.zeros(8, 10), torch.zeros(1024, 1000)
    assert chosen(small) == "native"
    assert chosen(large, weight=torch.ones(1000), gamma=0.5) == "native"
    assert chosen(torch.nn.Parameter(large)) == "native"
    assert chosen(small, implementation="plain") == "plain"
    assert chosen(large.double()) == "plain"
    for z, which in ((small, "plain"), (large, "native")):
        assert dispatch.choose(None, z, (), None, None, dispatch.FEWEST_LOGITS) == which  # for a learned epsilon
    assert dispatch.choose("native", small, (), None, None, dispatch.FEWEST_LOGITS) == "native"
    for other in (large.half(), large.to("meta"), large.double()):
        assert dispatch.choose(None, other, (), None, None) == "plain"
    assert dispatch.choose(None, large, (), None, "an option") == "plain"


REFUSED: dict[str, tuple[Tensor, Tensor, dict[str, Any], str]] = {
    "float64": (Z.double(), Y, {}, "these are torch.float64"),
    "float16": (Z.half(), Y, {}, "these are torch.float16"),
    "another device": (Z.to("meta"), Y.to("meta"), {}, "the logits are on meta"),
    "probabilities": (Z, Z.softmax(1).double(), {}, "in float32 or bfloat16, and these are torch.float64"),
    "smoothing": (
        *(Z, Y, {"label_smoothing": 0.25, "gamma": torch.tensor(1.0, requires_grad=True)}),
        "a gamma that is a number",
    ),
    "a target elsewhere": (Z, Y.to("meta"), {}, "these are on cpu and meta"),
    "weights elsewhere": (Z, Y, {"weight": torch.ones(1000, device="meta")}, "these are on cpu and meta"),
    "sparse": (Z.to_mkldnn(), Y, {}, "one is torch._mkldnn"),
}


@needs_native
@pytest.mark.parametrize("case", REFUSED)
def test_a_kernel_that_cannot_serve_says_why(case: str) -> None:
    z, y, options, reason = REFUSED[case]
    with pytest.raises(ValueError, match="implementation='native' can't serve here: ") as raised:
        poly_cross_entropy(z, y, **options, implementation="native")
    assert reason in str(raised.value)


def test_an_implementation_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="'plain', 'native', 'triton' or None; got 'cuda'"):
        poly_cross_entropy(Z, Y, implementation="cuda")


def test_without_a_compiler_the_plain_path_serves_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_WHY_NONE", native_library.NOT_BUILT)
    torch.testing.assert_close(poly_cross_entropy(Z, Y), poly_cross_entropy(Z, Y, implementation="plain"))
    with pytest.raises(ValueError, match=r"not built when polylosses was installed.*g\+\+.*pip install"):
        poly_cross_entropy(Z, Y, implementation="native")


OUT_OF_RANGE = [-1, 1000, 2**40, -(2**63)]


@needs_native
@pytest.mark.parametrize("label", OUT_OF_RANGE)
def test_a_target_out_of_range_is_torchs_error(label: int) -> None:
    wrong = Y.index_fill(0, torch.tensor([33]), label)
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds."):
        poly_cross_entropy(Z, wrong, implementation="native")


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("implementation", [pytest.param("triton", marks=needs_triton)])
def test_a_target_out_of_range_is_not_followed(implementation: str, label_smoothing: float) -> None:
    """The interpreter returns nan. A GPU stops at an assertion, as for F.cross_entropy (test_torch_triton.py)."""
    z = Z[:12].clone().requires_grad_()
    target = Y[:12].index_put((torch.tensor([2, 3, 7, 11]),), torch.tensor(OUT_OF_RANGE))
    options: Any = {"label_smoothing": label_smoothing, "reduction": "none", "implementation": implementation}
    value = poly_cross_entropy(z, target, torch.ones(1000), **options)
    assert value.isnan().nonzero().flatten().tolist() == [2, 3, 7, 11]
    assert gradients(value, z)[0].isnan().any(1).nonzero().flatten().tolist() == [2, 3, 7, 11]


@needs_native
def test_the_number_of_threads_changes_nothing() -> None:
    implementation = "native"
    z = torch.randn(300, 1000, generator=torch.Generator().manual_seed(4))
    y = torch.arange(300)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x = z.clone().requires_grad_()
            value = poly_cross_entropy(x, y, reduction="none", implementation=implementation)
            results.append((value, *gradients(value, x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@each_kernel
def test_nothing_of_the_logits_size_is_kept_but_the_logits(implementation: str, label_smoothing: float) -> None:
    z = Z[:8].clone().requires_grad_()
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = poly_cross_entropy(z, Y[:8], gamma=0.5, label_smoothing=label_smoothing, implementation=implementation)
    kept.pop(z.untyped_storage().data_ptr())
    assert sum(kept.values()) < 0.1 * z.untyped_storage().nbytes()
    assert value.requires_grad


@each_kernel
def test_logits_changed_in_place_are_found_out(implementation: str) -> None:
    z = Z[:8].clone().requires_grad_()
    x = z * 1
    value = poly_cross_entropy(x, Y[:8], implementation=implementation)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("reduction", ["none", "mean"])
@each_kernel
def test_nothing_but_ignored_rows(implementation: str, reduction: str) -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    value = poly_cross_entropy(
        z, torch.tensor([7, 7]), ignore_index=7, reduction=reduction, implementation=implementation
    )
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert value.isnan() if reduction == "mean" else (value == 0).all()
    assert z.grad is not None
    assert (z.grad == 0).all()


@each_kernel
def test_torchs_defaults_change_nothing(implementation: str) -> None:
    z, y = Z[:8], Y[:8]
    right = poly_cross_entropy(z, y, gamma=0.5, implementation=implementation)
    learned = torch.tensor(1.0, requires_grad=True)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            found = poly_cross_entropy(z, y, gamma=0.5, implementation=implementation)
            other = poly_cross_entropy(z, y, gamma=0.5, epsilon=learned, implementation=implementation)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == other.dtype == torch.float32
    assert found.item() == right.item()
    assert other.item() == pytest.approx(right.item(), rel=1e-6)


@needs_native
def test_modes_see_the_operators() -> None:
    traced = make_fx(lambda z: poly_cross_entropy(z, Y))(Z)
    assert any("polylosses.softmax_loss" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(Z + 1.5 * Z.flip(0)), poly_cross_entropy(Z + 1.5 * Z.flip(0), Y))


@needs_native
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_trace_takes_the_plain_path() -> None:
    traced = torch.jit.trace(PolyCrossEntropyLoss(), (Z, Y))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(2 * Z, Y), poly_cross_entropy(2 * Z, Y))
