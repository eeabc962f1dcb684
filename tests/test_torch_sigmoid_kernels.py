"""The sigmoid kernels against the reference implementation and the plain path, and under torch's transforms."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from cases import BINARY_CELLS, LOSSES, BinaryCell, binary_arrays
from found import SPACING, TINY, Found, compare, report
from kernel_cases import LAYOUTS, SHAPES, SURE
from on_torch import found_by, tensor
from polylosses import Polynomial, asymmetric, poly1
from polylosses.torch import PolyBCEWithLogitsLoss, poly_binary_cross_entropy_with_logits
from test_sigmoid_laws import EXTREME, expected
from test_torch_kernels import each_kernel, laid_out, needs_native, same, share_of, tolerance_of
from test_torch_transforms import gradients

SERVED = [c for c in BINARY_CELLS if c.target != "class ids" or len(c.shape) > 1]  # (C,) is a single row


def binary(implementation: str, loss: Polynomial, cell: BinaryCell, dtype: str) -> Found:
    numbers = binary_arrays(cell)
    z = tensor(numbers.logits, dtype, requires_grad=True)
    value = poly_binary_cross_entropy_with_logits(
        z,
        tensor(numbers.target, "long" if cell.target == "class ids" else dtype),
        tensor(numbers.weight, dtype),
        pos_weight=tensor(numbers.pos_weight, dtype),
        alpha=cell.alpha,
        alpha_on_epsilon=cell.alpha_on_epsilon,
        ignore_index=cell.ignore_index,
        reduction=cell.reduction,
        polynomial=loss,
        implementation=implementation,
    )
    return found_by(value, z, None, numbers.grad_output if cell.reduction == "none" else None)


@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm changes the bound
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
@each_kernel
def test_value_and_gradients_are_the_oracles(implementation: str, name: str, dtype: str) -> None:
    report(
        {
            str(cell): compare(
                binary(implementation, LOSSES[name], cell, dtype),
                replace(expected(LOSSES[name], cell), target_gradient=None),
                tolerance_of(dtype, implementation),
            )
            for cell in share_of(SERVED, name, implementation, dtype)
        }
    )


@pytest.mark.parametrize("loss", SURE, ids=str)
@each_kernel
def test_digits_are_kept_however_sure_the_model_is(implementation: str, loss: Polynomial) -> None:
    """The relative error is 1e-5 unless float32 underflows, for positives and for negatives."""
    margins = torch.tensor([*range(-80, 81, 4), 0.1, 1.5, 17.3, -1.3])
    for sign, label in ((1.0, 1.0), (-1.0, 0.0)):
        z = (sign * margins).requires_grad_()
        target = torch.full_like(margins, label)
        value = poly_binary_cross_entropy_with_logits(
            z, target, polynomial=loss, reduction="none", implementation=implementation
        )
        found = zip(value.tolist(), gradients(value, z)[0].tolist(), strict=True)
        grad_output = torch.linspace(0.5, 2, len(margins)).tolist()
        for margin, times, (number, slope) in zip(margins.tolist(), grad_output, found, strict=True):
            with mp.workdps(80):
                p, q = 1 / (1 + mp.exp(-mpf(margin))), 1 / (1 + mp.exp(mpf(margin)))
                right = loss.value(mp.log(p), q), sign * times * loss.slope(mp.log(p), q) * q
            for got, exact in ((number, right[0]), (slope, right[1])):
                # A factor of a product may underflow in float32 before the product does.
                allowed = max(1e-5 * abs(float(exact)), 1e3 * TINY["float32"])
                assert abs(got - exact) <= allowed, f"margin {margin}: {got}, not {float(exact)}"


# A Triton program has 512 sigmoids: the last two shapes need several programs, over classes and over positions.
@laid_out([*SHAPES, ()], [*(shape for shape in SHAPES if math.prod(shape) < 700), (), (2, 600), (2, 3, 5, 30)])
def test_every_layout_gives_the_plain_numbers(
    implementation: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    of: Callable[[Tensor], Tensor] = LAYOUTS[layout] if shape else Tensor.contiguous
    z = of(3 * torch.randn(shape, generator=generator)).to(dtype)
    soft = torch.rand(shape, generator=generator)
    targets = [soft.to(dtype), soft.round().to(dtype)]
    targets[0][soft < 0.1] = 7
    if len(shape) > 1 and shape[1] > 1:  # class ids need more than one class
        ids = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
        ids[torch.rand(ids.shape, generator=generator) < 0.1] = 7
        targets.append(ids.transpose(0, -1).contiguous().transpose(0, -1))
    grad_output = torch.rand(shape, generator=generator)
    options: dict[str, Any] = {"epsilon": (1.0, -0.5), "gamma": 0.5, "alpha": 0.3, "ignore_index": 7}
    for k, target in enumerate(targets):
        for reduction in ("none", "mean") if k == 0 else ("none",):
            results = []
            for logits, which in ((z.double(), "plain"), (z, implementation)):
                x = logits.detach().requires_grad_()
                y = target.to(logits.dtype) if target.is_floating_point() else target
                value = poly_binary_cross_entropy_with_logits(
                    x, y, reduction=reduction, implementation=which, **options
                )
                value.backward(grad_output.to(value) if reduction == "none" else None)  # type: ignore[no-untyped-call]
                assert x.grad is not None
                results.append((value.detach(), x.grad))
            for right, found in zip(*results, strict=True):
                if right.numel() and not right.isnan().all():
                    same(found, right, 8 * SPACING[str(dtype).removeprefix("torch.")])


@pytest.mark.parametrize("name", LOSSES)
@each_kernel
def test_extreme_logits(implementation: str, name: str) -> None:
    loss = LOSSES[name]
    z32 = torch.tensor(EXTREME).repeat_interleave(3)
    y = torch.tensor([0.0, 1.0, 0.5]).repeat(len(EXTREME))
    for smooth in (False, True):  # a vector with a soft target takes another code path
        keep = (y != 0.5) | smooth
        results = []
        for which, dtype in (("plain", torch.float64), (implementation, torch.float32)):
            z = z32[keep].to(dtype).requires_grad_()
            value = poly_binary_cross_entropy_with_logits(
                z, y[keep].to(dtype), polynomial=loss, reduction="none", implementation=which
            )
            assert not value.isnan().any()
            value.nan_to_num(posinf=0.0).sum().backward()  # type: ignore[no-untyped-call]
            assert z.grad is not None
            assert z.grad.isfinite().all()
            results.append((value.detach(), z.grad))
        for right, found in zip(*results, strict=True):
            # The two terms of a soft target may cancel. The last 6, infinite logits, may have other gradients.
            torch.testing.assert_close(found.double()[:-6], right[:-6], rtol=4e-6, atol=1e-13 if smooth else 1e-15)
        torch.testing.assert_close(results[1][0][-6:].double(), results[0][0][-6:])


@each_kernel
def test_what_is_no_number_stays_where_it_is(implementation: str) -> None:
    nan = math.nan
    z = torch.tensor([[nan, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, nan, nan]], requires_grad=True)
    y = torch.tensor([[1.0, 0.0, nan], [0.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    wrong = z.isnan() | y.isnan()
    value = poly_binary_cross_entropy_with_logits(z, y, reduction="none", gamma=0.5, implementation=implementation)
    assert value.isnan().equal(wrong)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.isnan().equal(wrong)
    ids = torch.tensor([1, 1, -100])
    z.grad = None
    value = poly_binary_cross_entropy_with_logits(z, ids, ignore_index=-100, implementation=implementation)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad[2].tolist() == [0, 0, 0]
    assert value.isnan()
    assert z.grad.isnan().tolist() == [[True, False, False], [False] * 3, [False] * 3]


@each_kernel
def test_nothing_but_ignored_elements(implementation: str) -> None:
    z = torch.zeros(2, 3, requires_grad=True)
    ids = torch.tensor([7, 7])
    value = poly_binary_cross_entropy_with_logits(z, ids, ignore_index=7, implementation=implementation)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isnan()
    assert z.grad is not None
    assert (z.grad == 0).all()


@each_kernel
def test_losses_of_mixed_dtypes_are_rounded_once(implementation: str) -> None:
    """To the dtype of the result: the target's, or float32 under autocast. Weights of low precision are not rounded."""
    generator = torch.Generator().manual_seed(8)
    z, soft = torch.randn(20, 30, generator=generator).bfloat16(), torch.rand(20, 30, generator=generator)
    weight = torch.rand(30, generator=generator).bfloat16()
    for y, autocast, dtype in (
        (soft, False, torch.float32),
        (soft.half(), False, torch.float16),
        (soft.double(), False, torch.float64),
        (soft.bfloat16(), True, torch.float32),
    ):
        with torch.autocast("cpu", enabled=autocast):
            found = poly_binary_cross_entropy_with_logits(
                *(z, y), pos_weight=weight, alpha=torch.tensor(0.3), reduction="none", implementation=implementation
            )
        right = poly_binary_cross_entropy_with_logits(
            *(z.double(), y.double()), pos_weight=weight.double(), alpha=torch.tensor(0.3).double(), reduction="none"
        )
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), right, rtol=6e-4 if dtype == torch.float16 else 1e-6, atol=1e-7)


Z = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
IDS = torch.randint(30, (40,), generator=torch.Generator().manual_seed(3)).index_fill(0, torch.tensor([5]), -100)
SOFT = torch.rand(40, 30, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@needs_native
def test_large_results_are_those_of_their_parts(dtype: torch.dtype) -> None:
    """Above 32 MiB, the kernel populates a result's memory pages before it writes them."""
    z = torch.randn(20_000, 1001, generator=torch.Generator().manual_seed(6)).to(dtype)
    ids = torch.randint(1001, (20_000,), generator=torch.Generator().manual_seed(7))

    def results(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = z.detach().requires_grad_()
        value = poly_binary_cross_entropy_with_logits(x, ids, gamma=2.0, reduction="none", implementation="native")
        return value.detach(), torch.autograd.grad(value, x, torch.ones_like(value))[0]

    parts = [results(*part) for part in zip(z.chunk(5), ids.chunk(5), strict=True)]
    assert z.nbytes > 2**25
    for whole, of_parts in zip(results(z, ids), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(of_parts))


@needs_native
def test_operators_are_what_torch_wants_them_to_be() -> None:
    negatives, positives = (0.75, 1.0, 0.5, 2.0, -0.5), (0.25, 1.0, 0.0)
    image = torch.randn(2, 3, 9, 7).to(memory_format=torch.channels_last)
    per_class, none = torch.rand(30), (None, None, None)
    for logits, target, weights, ignored, margin in (
        (Z, IDS, none, -100, 0.0),
        (Z, SOFT, (SOFT, per_class, per_class), None, 0.05),
        (Z.bfloat16(), SOFT, none, None, 0.0),
        (image, torch.randint(3, (2, 9, 7)), (None, torch.rand(3, 1, 1), None), None, 0.0),
    ):
        given = (target, *weights, ignored, negatives, positives, margin)
        for dtype in (None, torch.float32, logits.dtype):
            arguments = (logits.clone().requires_grad_(), *given, dtype)
            torch.library.opcheck(torch.ops.polylosses.sigmoid_loss.default, arguments)
        for grad_output in (torch.ones(()), torch.ones(logits.shape)):
            torch.library.opcheck(torch.ops.polylosses.sigmoid_gradient.default, (logits, *given, grad_output))


@needs_native
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiled(reduction: str) -> None:
    torch._dynamo.reset()
    loss = PolyBCEWithLogitsLoss(gamma=0.5, alpha=0.25, reduction=reduction, ignore_index=-100, implementation="native")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for target in (IDS, SOFT):
        for rows in (40, 33):
            z, again = Z[:rows].clone().requires_grad_(), Z[:rows].clone().requires_grad_()
            found, right = compiled(z, target[:rows]), loss(again, target[:rows])
            torch.testing.assert_close(found, right, rtol=0, atol=0)
            torch.testing.assert_close(gradients(found, z), gradients(right, again), rtol=0, atol=0)


@each_kernel
@pytest.mark.parametrize("target", [IDS, SOFT, SOFT.round()], ids=["class ids", "soft", "hard"])
@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm changes the bound
def test_second_derivatives(implementation: str, target: Tensor) -> None:
    results = []
    for which, dtype in (("plain", torch.float64), (implementation, torch.float32)):
        z = Z.to(dtype, copy=True).requires_grad_()
        y = target.to(dtype) if target.is_floating_point() else target
        options: dict[str, Any] = {"alpha": 0.25, "alpha_on_epsilon": False, "ignore_index": -100}
        value = poly_binary_cross_entropy_with_logits(
            z, y, gamma=1.5, epsilon=(0.5, -0.25), reduction="none", implementation=which, **options
        )
        (first,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        results.append([x.detach().double() for x in (first, second)])
    for right, found in zip(*results, strict=True):
        same(found, right, 1e-5)


def test_transforms_take_the_plain_path_by_themselves() -> None:
    right = poly_binary_cross_entropy_with_logits(Z, SOFT, implementation="plain")

    def loss(z: Tensor) -> Tensor:
        return poly_binary_cross_entropy_with_logits(z, SOFT)

    torch.testing.assert_close(torch.func.vmap(loss)(torch.stack([Z, Z])), right.expand(2))
    assert torch.func.grad(loss)(Z).shape == Z.shape


@needs_native
def test_a_kernel_is_taken_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def served(logits: Tensor, *given: Any) -> Tensor:
        taken.append(given[-1])
        return logits

    monkeypatch.setattr("polylosses.torch.kernels.sigmoid_loss", served)
    poly_binary_cross_entropy_with_logits(Z, IDS, ignore_index=-100)
    poly_binary_cross_entropy_with_logits(Z, SOFT)
    poly_binary_cross_entropy_with_logits(Z, SOFT, alpha=0.25, gamma=2.0)
    poly_binary_cross_entropy_with_logits(Z, SOFT, torch.ones(30), pos_weight=torch.ones(40, 1))
    poly_binary_cross_entropy_with_logits(Z, SOFT.double(), alpha=torch.full((30,), 0.5))
    poly_binary_cross_entropy_with_logits(Z, IDS.int(), ignore_index=-100, epsilon=torch.tensor(1.0))
    poly_binary_cross_entropy_with_logits(Z, SOFT, polynomial=asymmetric())
    assert taken == ["native"] * 7
    poly_binary_cross_entropy_with_logits(Z, SOFT, epsilon=torch.tensor(1.0, requires_grad=True))
    assert taken == ["native"] * 8
    poly_binary_cross_entropy_with_logits(Z.double(), SOFT.double())
    assert taken == ["native"] * 8


REFUSED: dict[str, tuple[Tensor, Tensor, dict[str, Any], str]] = {
    "float64": (Z.double(), SOFT.double(), {}, "these are torch.float64"),
    "weight": (Z, SOFT, {"weight": torch.ones(30, requires_grad=True)}, "no derivatives by weight"),
    "pos_weight": (Z, SOFT, {"pos_weight": torch.ones(30, requires_grad=True)}, "no derivatives by pos_weight"),
    "a learned gamma": (Z, SOFT, {"gamma": torch.ones((), requires_grad=True)}, "a gamma that is a number"),
    "alpha": (Z, SOFT, {"alpha": torch.full((), 0.5, requires_grad=True)}, "no derivatives by alpha"),
    "alpha on the logarithm": (
        *(Z, SOFT, {"alpha": torch.full((30,), 0.5), "alpha_on_epsilon": False}),
        "of these 3 scalar tensors on the CPU",
    ),
    "epsilons that differ": (
        *(Z, SOFT, {"polynomial": (poly1(torch.ones((), requires_grad=True)), poly1(1.0))}),
        "if these are the same for positives and negatives",
    ),
    "targets that are learned": (Z, SOFT.clone().requires_grad_(), {}, "no derivatives by the target"),
    "a class id": (Z[0], IDS[0], {}, "these have shape (30,)"),
    "many coefficients": (Z, SOFT, {"epsilon": (1.0,) * 65}, "at most 64 coefficients"),
}


@needs_native
@pytest.mark.parametrize("case", REFUSED)
def test_a_kernel_that_cannot_serve_says_why(case: str) -> None:
    z, y, options, reason = REFUSED[case]
    with pytest.raises(ValueError, match="implementation='native' can't serve here: ") as raised:
        poly_binary_cross_entropy_with_logits(z, y, **options, implementation="native")
    assert reason in str(raised.value)
    poly_binary_cross_entropy_with_logits(z, y, **options)  # the default falls back to the plain path


@needs_native
def test_a_target_on_another_device_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="device"):
        poly_binary_cross_entropy_with_logits(Z, SOFT.to("meta"))
    with pytest.raises(ValueError, match="these are on cpu and meta"):
        poly_binary_cross_entropy_with_logits(Z, SOFT.to("meta"), implementation="native")


@pytest.mark.parametrize("which", ["plain", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("label", [-1, 30, 2**40])
def test_a_class_id_out_of_range_is_an_error(which: str, label: int) -> None:
    with pytest.raises(RuntimeError, match=f"index {label} is out of bounds for dimension 1 with size 30"):
        poly_binary_cross_entropy_with_logits(Z, IDS.index_fill(0, torch.tensor([5]), label), implementation=which)


def test_an_infinite_pos_weight_makes_the_loss_of_soft_targets_infinite() -> None:
    z, y, pos_weight = torch.zeros(3, 2), torch.full((3, 2), 0.5), torch.tensor([1.0, torch.inf])
    losses = poly_binary_cross_entropy_with_logits(
        z, y, pos_weight=pos_weight, reduction="none", implementation="native"
    )
    assert losses[:, 0].isfinite().all()
    assert (losses[:, 1] == torch.inf).all()


@needs_native
def test_the_number_of_threads_changes_nothing() -> None:
    implementation = "native"
    z = torch.randn(3000, 80, generator=torch.Generator().manual_seed(4))
    ids = torch.arange(3000) % 80
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            x = z.clone().requires_grad_()
            value = poly_binary_cross_entropy_with_logits(x, ids, gamma=2.0, implementation=implementation)
            results.append((value, *gradients(value, x)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@each_kernel
def test_sums_of_many_elements_keep_their_digits(implementation: str) -> None:
    rows = 2**17 if implementation == "native" else 2**11
    z = torch.randn(rows, 16, generator=torch.Generator().manual_seed(5))
    ids = torch.arange(rows) % 16
    right = poly_binary_cross_entropy_with_logits(z.double(), ids, reduction="sum", implementation="plain")
    found = poly_binary_cross_entropy_with_logits(z, ids, reduction="sum", implementation=implementation)
    assert found.item() == pytest.approx(right.item(), rel=2e-7)


@each_kernel
def test_nothing_of_the_logits_size_is_kept_but_the_logits(implementation: str) -> None:
    z = torch.zeros(400, 80, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = poly_binary_cross_entropy_with_logits(
            z, torch.zeros(400, dtype=torch.int64), gamma=0.5, implementation=implementation
        )
    kept.pop(z.untyped_storage().data_ptr())
    assert sum(kept.values()) < 0.1 * z.untyped_storage().nbytes()
    assert value.requires_grad


def test_the_served_cells_are_many() -> None:
    assert len(SERVED) > 100
    assert np.mean([cell.target == "class ids" for cell in SERVED]) > 0.2


@needs_native
def test_a_symbolic_trace_divides_by_the_number_of_its_own_rows() -> None:
    def loss(z: Tensor, target: Tensor) -> Tensor:
        return poly_binary_cross_entropy_with_logits(z, target)

    traced = make_fx(loss, tracing_mode="symbolic")(Z[:8], SOFT[:8])
    torch.testing.assert_close(traced(Z, SOFT), loss(Z, SOFT))
