"""``linear_poly_cross_entropy`` against a linear layer with ``poly_cross_entropy``, and its memory."""

import copy
import importlib
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import polylosses
import reference
from cases import LOSSES, covering
from polylosses.torch import LinearPolyCrossEntropyLoss, linear_poly_cross_entropy, poly_cross_entropy
from polylosses.torch.kernels import dispatch
from test_torch_kernels import each_kernel

linear = importlib.import_module("polylosses.torch.linear")
SOME = ["cross_entropy", "poly1", "focal(0.5)", "poly1_focal(-1, 0.5)", "poly_n of degree 8"]
H, V = 4, 6
# In forward mode, torch uses its own deprecated torch.jit.script.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(params=[3, 4, 100], ids=lambda rows: f"{rows} rows a chunk")
def _chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(request.param, monkeypatch)


def in_chunks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_CHUNK_BYTES_ON_CPU", 1)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", rows)


def reference_loss(input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    """A linear layer, then the loss, with all rows in the first dimension."""
    logits = F.linear(input, linear_weight, options.pop("linear_bias", None)).reshape(-1, linear_weight.shape[0])
    soft = target.dim() == input.dim()
    labels = target.reshape(logits.shape if soft else -1)
    if EXTRA & set(options):
        loss = reference_with_extra(logits, labels, **options)
    else:
        loss = poly_cross_entropy(logits, labels, **options)
    return loss.reshape(input.shape[:-1]) if options.get("reduction") == "none" else loss


EXTRA = {"sample_weight", "softcap", "z_loss_weight"}


def reference_with_extra(
    logits: Tensor,
    labels: Tensor,
    *,
    sample_weight: Tensor | None = None,
    softcap: float | None = None,
    z_loss_weight: float = 0.0,
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """``s (L + z_loss_weight logsumexp^2)`` of every row, and for the mean the sum of ``s weight[y]`` of kept rows."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    z = logits.to(wide)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    soft, weight = labels.dim() == 2, options.get("weight")
    kept = torch.ones(len(z), dtype=torch.bool) if soft else labels != options.get("ignore_index", -100)
    s = torch.ones(len(z), dtype=wide) if sample_weight is None else sample_weight.reshape(-1).to(wide)
    s = torch.where(kept, s, 0.0)
    counted = s if soft or weight is None else s * weight.to(wide)[torch.where(kept, labels, 0)]
    if weight is not None:
        options["weight"] = weight.to(wide)
    losses = poly_cross_entropy(z, labels, reduction="none", **options)
    losses = s * (losses + z_loss_weight * z.exp().sum(1).log() ** 2)
    if reduction != "none":
        losses = losses.sum() / (counted.sum() if reduction == "mean" else 1.0)
    return losses.to(torch.float32 if torch.is_autocast_enabled("cpu") and wide == torch.float32 else logits.dtype)


def with_extra(rows: int) -> dict[str, Any]:
    """All options that ``poly_cross_entropy`` does not have."""
    return {"sample_weight": torch.linspace(-0.5, 2.0, rows), "softcap": 3.0, "z_loss_weight": 0.1}


each_options = pytest.mark.parametrize("extra", [False, True], ids=["", "softcap, z-loss, sample weights"])


def layer(
    places: tuple[int, ...], dtype: torch.dtype = torch.float64, *, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return random(*places, H), random(V, H), random(V) if bias else None


def targets(places: tuple[int, ...], *, soft: bool, ignored: int | None = None) -> Tensor:
    random = np.random.default_rng(0)
    if soft:
        return torch.tensor(random.dirichlet(np.ones(V), places))
    target = random.integers(0, V, places)
    if ignored is not None and places:
        target.reshape(-1)[::3] = ignored
    return torch.tensor(target)


def gradients(loss: Tensor, of: Sequence[Tensor | None], **options: Any) -> list[Tensor]:
    grad_output = torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return list(torch.autograd.grad(loss, [x for x in of if x is not None], grad_output, **options))


# (batch shape, bias, soft, ignore_index, weighted, label_smoothing, reduction)
CELLS = [
    cell
    for cell in itertools.product(
        [(), (8,), (3, 2), (2, 1, 3)],
        [False, True],
        [False, True],
        [None, -100, 255, 2],
        [False, True],
        [0.0, 0.125],
        ["none", "mean", "sum"],
    )
    if not cell[2] or cell[3] is None
]
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0, 1.0], dtype=torch.float64)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("name", SOME)
def test_numbers_are_those_of_a_linear_layer_and_the_loss(name: str) -> None:
    wrong = []
    for cell in CELLS if name == "poly1" else covering(CELLS, 31 * SOME.index(name)):
        places, bias, soft, ignored, weighted, smoothing, reduction = cell
        x, w, b = layer(places, bias=bias)
        target = targets(places, soft=soft, ignored=ignored)
        options: dict[str, Any] = {"linear_bias": b, "label_smoothing": smoothing}
        options |= {"weight": WEIGHT if weighted else None, "reduction": reduction, "polynomial": LOSSES[name]}
        options |= {} if ignored is None else {"ignore_index": ignored}
        found, right = linear_poly_cross_entropy(x, w, target, **options), reference_loss(x, w, target, **options)
        for what, one, other in [
            ("value", found, right),
            *zip(["input", "weight", "bias"], gradients(found, [x, w, b]), gradients(right, [x, w, b]), strict=False),
        ]:
            # Sums over up to 12 rows and 6 classes of numbers below 100, in another order.
            if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-13, atol=1e-13, equal_nan=True):
                wrong.append(f"{cell}: {what} {one}, not {other}")
    assert not wrong, "\n".join([f"{len(wrong)} differ", *wrong[:5]])


# (targets, weighted, label_smoothing, reduction, sample_weight, softcap, z_loss_weight)
EXTRA_CELLS = list(
    itertools.product(
        ["indices", "some ignored", "probabilities"],
        [False, True],
        [0.0, 0.125],
        ["none", "mean", "sum"],
        [None, "positive", "negative too", "mask"],
        [None, 1.5],
        [0.0, 0.25],
    )
)
SAMPLE_WEIGHTS = {
    None: None,
    "positive": torch.linspace(0.5, 2.0, 8, dtype=torch.float64),
    "negative too": torch.linspace(-1.0, 2.0, 8, dtype=torch.float64),
    "mask": torch.arange(8) % 3 != 1,
}


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("name", SOME)
def test_sample_weights_softcapping_and_z_loss(name: str) -> None:
    """Values are the oracle's, gradients those of torch's operations on the whole logits."""
    wrong = []
    for cell in covering(EXTRA_CELLS, 31 * SOME.index(name)):
        kind, weighted, smoothing, reduction, sample, softcap, z_loss_weight = cell
        x, w, b = layer((4, 2))
        assert b is not None
        target = targets((4, 2), soft=kind == "probabilities", ignored=-100 if kind == "some ignored" else None)
        weight, s = WEIGHT if weighted else None, SAMPLE_WEIGHTS[sample]
        s = None if s is None else s.reshape(4, 2).clone()
        if s is not None and s.is_floating_point():
            if kind == "some ignored":
                s.reshape(-1)[::3] = torch.nan  # what ignored rows are weighted by does not matter
            s.requires_grad_()
        options: dict[str, Any] = {"linear_bias": b, "label_smoothing": smoothing, "weight": weight}
        options |= {"softcap": softcap, "z_loss_weight": z_loss_weight, "sample_weight": s}
        options |= {"reduction": reduction, "polynomial": LOSSES[name]}
        found, right = linear_poly_cross_entropy(x, w, target, **options), reference_loss(x, w, target, **options)

        z = (x @ w.T + b).detach().reshape(8, V).numpy()
        z = z if softcap is None else softcap * np.tanh(z / softcap)
        y = target.reshape(8, -1).squeeze(1).numpy()
        exact = reference.cross_entropy(
            *(LOSSES[name], z, y, None if weight is None else weight.numpy()),
            label_smoothing=smoothing,
            reduction="none",
        ).value
        scale = np.ones(8) if s is None else s.detach().reshape(-1).double().numpy()
        kept = y != -100 if y.ndim == 1 else np.full(8, True)
        counts = scale * (WEIGHT.numpy()[np.where(kept, y, 0)] if weighted and y.ndim == 1 else 1.0)
        rows = np.where(kept, scale * (exact + z_loss_weight * np.log(np.exp(z).sum(1)) ** 2), 0.0)
        value = rows.reshape(4, 2) if reduction == "none" else rows.sum()
        value = value / counts[kept].sum() if reduction == "mean" else value

        of = [x, w, b] if s is None or not s.requires_grad else [x, w, b, s]
        for what, one, other in [
            ("value", found, torch.tensor(value)),
            *zip(["input", "weight", "bias", "sample"], gradients(found, of), gradients(right, of), strict=False),
        ]:
            if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-12, atol=1e-12):
                wrong.append(f"{cell}: {what} {one}, not {other}")
    assert not wrong, "\n".join([f"{len(wrong)} differ", *wrong[:5]])


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return result


@pytest.mark.parametrize(("reduction", "products"), [("none", 4), ("mean", 3), ("sum", 3)])
def test_sample_weights_need_no_fourth_product(reduction: str, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(2, monkeypatch)
    x, w, _ = layer((8,), torch.float32)
    noted = Products()
    with noted:
        loss = linear_poly_cross_entropy(x, w, targets((8,), soft=False), reduction=reduction, **with_extra(8))
        loss.sum().backward()  # type: ignore[no-untyped-call]
    assert noted.count == 1 + 4 * products  # the first one, of no rows, checks the arguments


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradients_of_the_polynomial(reduction: str) -> None:
    x, w, b = layer((8,))
    target = targets((8,), soft=False, ignored=-100)
    epsilon = torch.tensor([2.0, -0.5], dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"linear_bias": b, "label_smoothing": 0.1, "reduction": reduction}
    options |= {"epsilon": epsilon, "gamma": gamma}
    found, right = linear_poly_cross_entropy(x, w, target, **options), reference_loss(x, w, target, **options)
    torch.testing.assert_close(
        gradients(found, [epsilon, gamma, x, w, b]), gradients(right, [epsilon, gamma, x, w, b]), rtol=1e-12, atol=1e-13
    )


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_only_what_wants_a_gradient_gets_one(reduction: str) -> None:
    target = targets((8,), soft=False)
    for wanted in itertools.product([False, True], repeat=3):
        x, w, b = (t.detach().requires_grad_(on) for t, on in zip(layer((8,)), wanted, strict=True) if t is not None)
        loss = linear_poly_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)
        assert loss.requires_grad == any(wanted)
        if any(wanted):
            some = [t for t in (x, w, b) if t.requires_grad]
            right = reference_loss(x, w, target, linear_bias=b, reduction=reduction)
            torch.testing.assert_close(gradients(loss, some), gradients(right, some))
        with torch.no_grad():
            assert not linear_poly_cross_entropy(x, w, target, linear_bias=b, reduction=reduction).requires_grad


@pytest.mark.usefixtures("_chunked")
def test_soft_targets_and_class_weights_get_gradients() -> None:
    x, w, _ = layer((8,))
    target = targets((8,), soft=True).requires_grad_()
    weight = torch.linspace(0.5, 2.0, V, dtype=torch.float64).requires_grad_()
    found = linear_poly_cross_entropy(x, w, target, weight=weight, epsilon=2.0)
    right = reference_loss(x, w, target, weight=weight, epsilon=2.0)
    torch.testing.assert_close(gradients(found, [target, weight, x, w]), gradients(right, [target, weight, x, w]))


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_options
def test_low_precision(extra: bool, dtype: torch.dtype, reduction: str) -> None:
    """The logits are rounded to this dtype. After that, everything is in float32 until the result is rounded."""
    eps = torch.finfo(dtype).eps
    x, w, b = layer((8,), dtype)
    target = targets((8,), soft=False, ignored=-100)
    options: dict[str, Any] = {"linear_bias": b, "reduction": reduction, "epsilon": 2.0}
    options |= with_extra(8) if extra else {}
    found, right = linear_poly_cross_entropy(x, w, target, **options), reference_loss(x, w, target, **options)
    assert found.dtype == right.dtype == dtype
    torch.testing.assert_close(found, right, rtol=2 * eps, atol=0)
    for ours, torchs in zip(gradients(found, [x, w, b]), gradients(right, [x, w, b]), strict=True):
        assert ours.dtype == dtype
        # Both round the gradient of the logits. The reference also sums in low precision.
        torch.testing.assert_close(ours, torchs, rtol=8 * eps, atol=8 * eps * torchs.abs().max().item())


@pytest.mark.parametrize("learned", [False, True])
@each_kernel
def test_a_kernel_is_given_bfloat16_as_it_is(
    implementation: str, learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(3, monkeypatch)
    kernel: Any = dispatch.KERNELS[implementation]
    seen = []
    for name in ("softmax_loss", "softmax_statistics"):
        of: Any = getattr(kernel, name)

        def noted(z: Tensor, *rest: Any, of: Any = of) -> Any:
            seen.append(z.dtype)
            return of(z, *rest)

        monkeypatch.setattr(kernel, name, noted)
    x, w, b = given = layer((8,), torch.bfloat16)
    exact = [tensor.detach().double().requires_grad_() for tensor in given if tensor is not None]
    target = targets((8,), soft=False, ignored=-100)
    weight = torch.linspace(0.5, 2.0, V)  # float32, as under autocast
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_poly_cross_entropy(
            *(x, w, target),
            linear_bias=b,
            weight=weight,
            epsilon=torch.tensor(2.0, requires_grad=True) if learned else 2.0,
            implementation=implementation,
        )
    options: dict[str, Any] = {"linear_bias": exact[2], "weight": weight.double(), "epsilon": 2.0}
    right = reference_loss(exact[0], exact[1], target, **options)
    assert found.dtype == torch.float32
    assert abs(found - right) <= 4 * 2.0**-8 * right
    for ours, true in zip(gradients(found, [x, w, b]), gradients(right, exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - true).abs().max() <= 4 * 2.0**-8 * true.abs().max()
    assert set(seen) == {torch.bfloat16}


def test_gradients_of_the_weight_are_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """1024 chunks of one row with the same gradient: in bfloat16 the sum would stop growing after 256 chunks."""
    in_chunks_of(1, monkeypatch)
    rows = 1024
    x = torch.ones(rows, 1, dtype=torch.bfloat16)
    w = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    b = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_poly_cross_entropy(
        x, w, torch.zeros(rows, dtype=torch.long), linear_bias=b, epsilon=0.0, reduction="sum"
    )
    for gradient in torch.autograd.grad(loss, (w, b)):
        assert gradient.flatten().tolist() == [-rows / 2, rows / 2]


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each_options
def test_autocast(extra: bool, dtype: torch.dtype, low: torch.dtype) -> None:
    x, w, b = layer((8,), dtype)
    target = targets((8,), soft=False, ignored=-100)
    for reduction in ("none", "mean"):
        with torch.autocast("cpu", dtype=low):
            options: dict[str, Any] = {"linear_bias": b, "reduction": reduction, "epsilon": 2.0}
            options |= with_extra(8) if extra else {}
            found, right = linear_poly_cross_entropy(x, w, target, **options), reference_loss(x, w, target, **options)
        assert found.dtype == right.dtype
        torch.testing.assert_close(found, right)
        eps = torch.finfo(torch.float64 if dtype == torch.float64 else low).eps
        outside, right_gradients = gradients(found, [x, w, b], retain_graph=True), gradients(right, [x, w, b])
        with torch.autocast("cpu", dtype=low):
            inside = gradients(found, [x, w, b])
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)
        for ours, torchs in zip(outside, right_gradients, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, torchs, rtol=8 * eps, atol=8 * eps * torchs.abs().max().item())


@pytest.mark.parametrize("again", [False, True], ids=["", "second backward"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradient_scaling_keeps_float16_from_underflow(
    reduction: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without loss scaling, the gradients of the mean of 4096 rows are below float16's smallest normal number."""
    in_chunks_of(1000 if reduction != "sum" else 3, monkeypatch)
    rows, classes = (4096, 8) if reduction != "sum" else (8, 8)
    hidden = torch.randn(rows, H, generator=torch.Generator().manual_seed(0)).half()
    weight = 0.02 * torch.randn(classes, H, generator=torch.Generator().manual_seed(1))
    target = torch.arange(rows) % classes
    chunked = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    exact = [hidden.double().requires_grad_(), weight.half().double().requires_grad_()]
    scale = torch.tensor(2.0**16 if reduction != "sum" else 2.0**7)
    with torch.autocast("cpu", dtype=torch.float16):
        found = linear_poly_cross_entropy(chunked[0], chunked[1], target, epsilon=2.0, reduction=reduction)
    right = reference_loss(exact[0], exact[1], target, epsilon=2.0, reduction=reduction)
    if reduction == "none":
        found, right = found.mean(), right.mean()
    if again:
        torch.autograd.grad(found, chunked, retain_graph=True)
    for ours, true in zip(
        torch.autograd.grad(found * scale, chunked), torch.autograd.grad(right * scale, exact), strict=True
    ):
        assert (ours - true).norm() <= torch.finfo(torch.float16).eps * true.norm()


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the sizes of the largest tensors that are created."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a tensor with a given number of elements is cast to bfloat16."""

    def __init__(self, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements, self.copies = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.numel() == self.elements:
            self.copies += result.dtype == torch.bfloat16
        return result


def largest(function: Callable[[], Any]) -> int:
    noted = Largest()
    with noted:
        function()
    return noted.elements


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@each_options
def test_the_logits_are_never_held(
    extra: bool, smoothing: float, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(16, monkeypatch)
    sizes = {}
    for rows in (64, 256):
        x, w = torch.randn(rows, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
        target = torch.zeros(rows, dtype=torch.long)
        chosen: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
        chosen |= with_extra(rows) if extra else {}

        def backward(x: Tensor, w: Tensor, target: Tensor, loss: Callable[..., Tensor], **chosen: Any) -> None:
            loss(x, w, target, **chosen).sum().backward()  # type: ignore[no-untyped-call]

        assert largest(lambda: backward(x, w, target, reference_loss, **chosen)) == rows * 1000  # noqa: B023
        sizes[rows] = largest(lambda: backward(x, w, target, linear_poly_cross_entropy, **chosen))  # noqa: B023
    assert sizes[64] == sizes[256] == 16 * 1000


def test_a_chunk_is_as_large_as_it_says() -> None:
    """With the default chunk size and more rows than a chunk, no tensor is larger than a chunk."""
    classes = 30_000
    rows = linear._CHUNK_BYTES_ON_CPU // (4 * classes)
    assert rows >= linear._FEWEST_ROWS
    x, w = torch.randn(4 * rows, 2, requires_grad=True), torch.randn(classes, 2, requires_grad=True)
    found = largest(
        lambda: linear_poly_cross_entropy(x, w, torch.zeros(4 * rows, dtype=torch.long)).backward()  # type: ignore[no-untyped-call]
    )
    assert found == rows * classes


PEAK = """
import torch
from pathlib import Path
from polylosses.torch import linear_poly_cross_entropy

def resident(what):
    return int(Path("/proc/self/status").read_text().partition(what + ":")[2].split()[0]) * 1024

torch.set_num_threads(1)
for rows, hidden, classes, reduction, extra in CASES:
    x, w = torch.randn(rows, hidden, requires_grad=True), torch.randn(classes, hidden, requires_grad=True)
    target = torch.zeros(rows, dtype=torch.long)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    more = {"softcap": 30.0, "z_loss_weight": 1e-4, "sample_weight": torch.ones(rows)} if extra else {}
    linear_poly_cross_entropy(x, w, target, reduction=reduction, **more).sum().backward()
    print(resident("VmHWM") - before)
    del x, w, target
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to measure the peak")
def test_the_peak_of_memory() -> None:
    """Of forward and backward in a child process, with chunks of 16 MiB."""
    few, many, wide = (1024, 8, 8192), (6 * 1024, 8, 8192), (160, 1024, 32768)
    kinds = [("none", False), ("mean", False), ("mean", True)]
    cases = [(*sizes, *kind) for kind in kinds for sizes in (few, many, wide)]
    # The first case loads libraries. The malloc threshold returns freed memory to the system at once.
    command = [sys.executable, "-c", f"CASES = {[(8, 8, 8192, 'mean', False), *cases]}{PEAK}"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = dict(zip(cases, map(int, done.stdout.split()[1:]), strict=True))
    gradients = 4 * wide[1] * (wide[0] + wide[2])
    for kind in kinds:
        of_few, of_many, of_wide = (peaks[*sizes, *kind] for sizes in (few, many, wide))
        assert of_few > 2**24, "a chunk at least, or nothing is measured"
        # Independent of the number of rows (32 KiB of logits each): small saved tensors must not fragment the memory.
        assert of_many < of_few + 2**24, f"{of_few} and {of_many} bytes"
        # The weight's gradient has the size of 8 chunks. No other tensor may be as large.
        assert gradients < of_wide < gradients + 8 * 2**24, f"{of_wide} bytes"


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_autocast_casts_the_weight_once_a_pass(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(2, monkeypatch)
    x, w, _ = layer((16,), torch.float32)
    target = targets((16,), soft=False)
    noted = Copies(w.numel())
    with noted, torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_poly_cross_entropy(x, w, target, reduction=reduction)
    # Once for the check of the options, once for all chunks.
    assert noted.copies == 2
    with noted:
        loss.sum().backward()  # type: ignore[no-untyped-call]
    assert noted.copies == (3 if reduction == "none" else 2)


@forward_mode
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_options
def test_derivatives_of_derivatives_and_a_second_backward(
    extra: bool, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_chunks_of(3, monkeypatch)
    x, w, b = layer((5,))
    assert b is not None
    s = torch.linspace(0.5, 2.0, 5, dtype=torch.float64, requires_grad=True)
    options = {"softcap": 3.0, "z_loss_weight": 0.1, "sample_weight": s} if extra else {}
    of = (s,) if extra else ()
    target = targets((5,), soft=False, ignored=-100)
    epsilon = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, w: Tensor, b: Tensor, epsilon: Tensor, *sample_weight: Tensor) -> Tensor:
        chosen: dict[str, Any] = {"linear_bias": b, "epsilon": epsilon, "gamma": 1.5, "reduction": reduction}
        chosen |= options | ({"sample_weight": sample_weight[0]} if sample_weight else {})
        return linear_poly_cross_entropy(x, w, target, label_smoothing=0.1, **chosen)

    fast = extra or reduction != "mean"
    given = (x, w, b, epsilon, *of)
    assert torch.autograd.gradcheck(loss, given, check_forward_ad=True, fast_mode=fast)
    assert torch.autograd.gradgradcheck(loss, given, fast_mode=True)
    total = loss(*given).sum()
    first = torch.autograd.grad(total, given, retain_graph=True)
    second = torch.autograd.grad(total, given)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_activations_that_are_made_again_or_kept_elsewhere(reduction: str) -> None:
    x, w, _ = layer((8,))
    target = targets((8,), soft=False, ignored=-100)

    def head(x: Tensor) -> Tensor:
        return linear_poly_cross_entropy(x, w, target, epsilon=2.0, gamma=0.5, reduction=reduction)

    right = gradients(head(x), [x, w])
    for reentrant in (False, True):
        again = checkpoint(head, x, use_reentrant=reentrant)
        grad_output = torch.linspace(0.5, 2.0, again.numel(), dtype=again.dtype).reshape(again.shape)
        x.grad = w.grad = None
        again.backward(grad_output)
        torch.testing.assert_close([x.grad, w.grad], right, rtol=0, atol=0)
    with torch.autograd.graph.save_on_cpu():
        elsewhere = head(x)
    torch.testing.assert_close(gradients(elsewhere, [x, w]), right, rtol=0, atol=0)


def test_what_is_not_pulled_back_is_freed() -> None:
    """The graph must have no reference cycle: without a backward, such as after an error, it would never be freed."""
    made: list[Any] = []
    reference: Any = StorageWeakRef

    class Made(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(reference(t.untyped_storage()) for t in tree_leaves(result) if isinstance(t, Tensor))
            return result

    with torch.no_grad(), Made():  # type: ignore[no-untyped-call]
        value, pull = linear._value_and_pullback(lambda z: torch.log_softmax(2 * z, 1).exp(), (torch.ones(2, 3),))
    assert not all(one.expired() for one in made)
    del value, pull
    assert all(one.expired() for one in made)


@pytest.mark.usefixtures("_chunked")
def test_an_epsilon_of_integers() -> None:
    x, w, _ = layer((8,))
    target = targets((8,), soft=False)
    found, right = (linear_poly_cross_entropy(x, w, target, epsilon=e) for e in (torch.tensor(2), 2.0))
    torch.testing.assert_close(gradients(found, [x, w]), gradients(right, [x, w]), rtol=1e-15, atol=0)


@forward_mode
def test_what_has_no_forward_mode_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(3, monkeypatch)
    x, w = (t.detach() for t in layer((8,))[:2])
    soft, weight = targets((8,), soft=True), torch.ones(V, dtype=torch.float64)
    for function, at in (
        (lambda soft: linear_poly_cross_entropy(x, w, soft), soft),
        (lambda weight: linear_poly_cross_entropy(x, w, soft.argmax(1), weight=weight), weight),
    ):
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives by target and weight"):
            torch.func.jvp(function, (at,), (at,))


@forward_mode
def test_forward_mode_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(3, monkeypatch)
    x, w = (t.detach() for t in layer((8,), torch.float32)[:2])
    target = targets((8,), soft=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.func.jvp(lambda x: linear_poly_cross_entropy(x, w, target, epsilon=2.0), (x,), (-x,))
        right = torch.func.jvp(lambda x: reference_loss(x, w, target, epsilon=2.0), (x,), (-x,))
    assert found[1].dtype == right[1].dtype
    torch.testing.assert_close(found, right, rtol=8 * torch.finfo(torch.bfloat16).eps, atol=0)


@forward_mode
@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@each_options
def test_transforms(extra: bool, reduction: str) -> None:
    x, w, b = (t.detach() for t in layer((8,)) if t is not None)
    target = targets((8,), soft=False, ignored=-100)
    epsilons = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)

    options: dict[str, Any] = {"reduction": reduction, **(with_extra(8) if extra else {})}

    def ours(x: Tensor, w: Tensor, b: Tensor, epsilon: Tensor) -> Tensor:
        return linear_poly_cross_entropy(x, w, target, linear_bias=b, epsilon=epsilon, **options).sum()

    def plain(x: Tensor, w: Tensor, b: Tensor, epsilon: Tensor) -> Tensor:
        return reference_loss(x, w, target, linear_bias=b, epsilon=epsilon, **options).sum()

    func: Any = torch.func
    transforms: list[Callable[[Callable[..., Tensor]], Any]] = [
        lambda f: func.grad(f, argnums=(0, 1, 2, 3))(x, w, b, epsilons[2]),
        lambda f: func.jacrev(func.grad(f, argnums=1), argnums=0)(x, w, b, epsilons[2]),
        lambda f: func.jvp(f, (x, w, b, epsilons[2]), (-x, w + 1, b - 1, epsilons[0])),
        lambda f: func.jvp(partial(f, x, w), (b, epsilons[2]), (b - 1, epsilons[0])),
        lambda f: func.jacfwd(f, argnums=(0, 3))(x, w, b, epsilons[2]),
        lambda f: func.hessian(f)(x, w, b, epsilons[2]),
        lambda f: func.jacrev(func.jacfwd(f, argnums=1), argnums=0)(x, w, b, epsilons[2]),
        lambda f: func.vmap(f, in_dims=(None, None, None, 0))(x, w, b, epsilons),
        lambda f: func.vmap(func.grad(f, argnums=(1, 3)), in_dims=(None, None, None, 0))(x, w, b, epsilons),
        lambda f: func.vmap(func.grad(f), in_dims=(0, None, None, None))(torch.stack([x, -x]), w, b, epsilons[2]),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(ours), transform(plain), rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # from torch.compile
@each_options
def test_compiled(extra: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks_of(4, monkeypatch)
    torch._dynamo.reset()
    x, w, b = layer((8,))
    target = targets((8,), soft=False, ignored=-100)
    compiled: Callable[..., Tensor] = torch.compile(linear_poly_cross_entropy, fullgraph=True, backend="aot_eager")
    for reduction in ("none", "mean"):
        for epsilon in (torch.tensor(2.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)):
            options: dict[str, Any] = {"linear_bias": b, "epsilon": epsilon, "reduction": reduction}
            options |= with_extra(8) if extra else {}
            found, right = compiled(x, w, target, **options), reference_loss(x, w, target, **options)
            torch.testing.assert_close(found, right)
            torch.testing.assert_close(gradients(found, [x, w, b]), gradients(right, [x, w, b]))


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "hidden sizes differ": (
        (torch.zeros(8, 3), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {},
        ValueError,
        r"got \(8, 3\) and \(6, 4\)",
    ),
    "too few targets": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(7, dtype=torch.long)),
        {},
        ValueError,
        r"must have shape \(8,\) \(class indices\) or \(8, 6\) \(class probabilities\); got \(7,\)",
    ),
    "bias of another size": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"linear_bias": torch.zeros(H)},
        ValueError,
        r"linear_bias must be a tensor of shape \(6,\).*got \(4,\)",
    ),
    "input as a list": (
        ([[1.0]], torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {},
        TypeError,
        r"input must be a tensor; got \[\[1.0\]\]",
    ),
    "class above the last": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.full((8,), V)),
        {},
        IndexError,
        "Target 6 is out of bounds",
    ),
    "float indices": ((torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8)), {}, RuntimeError, "Long"),
    "another dtype": (
        (torch.zeros(8, H), torch.zeros(V, H, dtype=torch.float64), torch.zeros(8, dtype=torch.long)),
        {},
        RuntimeError,
        "dtype",
    ),
    "class weights of another size": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"weight": torch.ones(2)},
        RuntimeError,
        "weight",
    ),
    "reduction avg": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"reduction": "avg"},
        ValueError,
        "'avg'",
    ),
    "smoothing 1.5": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"label_smoothing": 1.5},
        RuntimeError,
        "label_smoothing",
    ),
    "sample weights of another shape": (
        (torch.zeros(4, 2, H), torch.zeros(V, H), torch.zeros(4, 2, dtype=torch.long)),
        {"sample_weight": torch.ones(4)},
        ValueError,
        r"sample_weight must be a tensor of shape \(4, 2\), one number for each row; got \(4,\)",
    ),
    "sample weights as a list": (
        (torch.zeros(2, H), torch.zeros(V, H), torch.zeros(2, dtype=torch.long)),
        {"sample_weight": [1.0, 2.0]},
        ValueError,
        r"sample_weight must be a tensor .*got \[1.0, 2.0\]",
    ),
    **{
        f"softcap {softcap}": (
            (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
            {"softcap": softcap},
            ValueError,
            f"softcap must be a number above 0, or None for no softcapping; got {softcap!r}",
        )
        for softcap in (0.0, -30.0, float("nan"), float("inf"), "30")
    },
    "z-loss below 0": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"z_loss_weight": -1e-4},
        ValueError,
        "z_loss_weight must be a number, at least 0; got -0.0001",
    ),
    "polynomial and epsilon": (
        (torch.zeros(8, H), torch.zeros(V, H), torch.zeros(8, dtype=torch.long)),
        {"polynomial": polylosses.focal(), "epsilon": 2.0},
        ValueError,
        "not both",
    ),
}


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize(("given", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_mistakes(given: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_poly_cross_entropy(*given, **options)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_options
def test_nothing_and_nothing_kept(extra: bool, reduction: str) -> None:
    for rows, hidden in ((0, H), (8, H), (8, 0)):
        x, w, b = layer((rows,))
        x, w = (tensor[:, :hidden].detach().requires_grad_() for tensor in (x, w))
        target = torch.full((rows,), -100)
        options = with_extra(rows) if extra else {}
        found = linear_poly_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **options)
        right = reference_loss(x, w, target, linear_bias=b, reduction=reduction)
        torch.testing.assert_close(found, right, equal_nan=True)
        torch.testing.assert_close(gradients(found, [x, w]), gradients(right, [x, w]), equal_nan=True)


@pytest.mark.usefixtures("_chunked")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_sample_weights_of_0_everywhere_are_as_ignored_rows(reduction: str) -> None:
    x, w, b = layer((8,))
    target = targets((8,), soft=False)
    options: dict[str, Any] = {"linear_bias": b, "reduction": reduction, "z_loss_weight": 0.1}
    found = linear_poly_cross_entropy(x, w, target, sample_weight=torch.zeros(8), **options)
    right = linear_poly_cross_entropy(x, w, torch.full((8,), -100), **options)
    torch.testing.assert_close(found, right, equal_nan=True)
    assert all((gradient == 0).all() for gradient in gradients(found, [x, w, b]))


@pytest.fixture
def _module() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.usefixtures("_chunked", "_module")
def test_the_module_is_the_function() -> None:
    x, _, _ = layer((8,), torch.float32)
    polynomials: list[dict[str, Any]] = [{"epsilon": 2.0, "gamma": 0.5}, {"polynomial": LOSSES["focal"]}]
    for soft, chosen in itertools.product([False, True], polynomials):
        for reduction in ("none", "mean", "sum"):
            options: dict[str, Any] = {"weight": torch.ones(V), "reduction": reduction, "label_smoothing": 0.1}
            options |= {"softcap": 3.0, "z_loss_weight": 0.1}
            module = LinearPolyCrossEntropyLoss(H, V, bias=True, **options, **chosen)
            target = targets((8,), soft=soft).to(torch.float32 if soft else torch.long)
            for s in (None, torch.linspace(-0.5, 2.0, 8)):
                options["sample_weight"] = s
                right = linear_poly_cross_entropy(
                    x, module.linear.weight, target, linear_bias=module.linear.bias, **options, **chosen
                )
                assert torch.equal(module(x, target, s), right)
                assert torch.equal(copy.deepcopy(module)(x, target, s), right)
            del options["sample_weight"]


def test_the_module_has_torchs_names() -> None:
    torchs = inspect.signature(nn.LinearCrossEntropyLoss).parameters
    ours = inspect.signature(LinearPolyCrossEntropyLoss).parameters
    beyond = {"softcap", "z_loss_weight", "epsilon", "gamma", "polynomial", "implementation"}
    # Ours has a single output dimension, and chooses its chunks itself.
    assert set(ours) - beyond == set(torchs) - {"out_features", "options"}
    assert list(ours)[:2] == list(torchs)[:2]
    mine, theirs = LinearPolyCrossEntropyLoss(H, V, weight=torch.ones(V)), nn.LinearCrossEntropyLoss(H, V)
    assert set(mine.state_dict()) == {"weight", "linear.weight"}
    mine.load_state_dict({"weight": torch.ones(V), **theirs.state_dict()})
    x, target = torch.randn(5, H), torch.arange(5)
    mine.epsilon = 0.0
    torch.testing.assert_close(mine(x, target), theirs(x, target))
    tied = nn.Embedding(V, H)
    mine.linear.weight = tied.weight
    assert mine(x, target).requires_grad
    assert repr(mine).startswith("LinearPolyCrossEntropyLoss(\n  epsilon=0.0, gamma=0.0\n  (linear): Linear(")
    assert "softcap=30.0" in repr(LinearPolyCrossEntropyLoss(H, V, softcap=30.0))
    with pytest.raises(ValueError, match="'avg'"):
        LinearPolyCrossEntropyLoss(H, V, reduction="avg")
    with pytest.raises(ValueError, match="softcap must be a number above 0"):
        LinearPolyCrossEntropyLoss(H, V, softcap=0.0)
