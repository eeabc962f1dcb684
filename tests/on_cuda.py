"""Runs the Triton kernels on a CUDA device, and compares them with the plain path in float64.

test_torch_triton.py runs this script, without TRITON_INTERPRET, if there is a CUDA device. Several processes share the
cases, since compiling their kernels, some 600, takes one about ten minutes.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, product
from random import Random
from typing import Any

import torch
from torch import Tensor

from kernel_cases import LAYOUTS, SHAPES, SURE, of_margin
from polylosses import Polynomial, TwoSided
from polylosses.torch import linear_poly_cross_entropy, poly_binary_cross_entropy_with_logits, poly_cross_entropy

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
LOSSES = [*SURE, Polynomial((0.5, torch.tensor(-0.25, requires_grad=True)), 0.5)]
Loss = Callable[..., Tensor]


def gradients(loss: Loss, inputs: tuple[Tensor, ...], grad_output: Tensor | None) -> tuple[Tensor, ...]:
    """The loss, and its gradients with respect to the inputs."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    value = loss(*inputs)
    by = torch.autograd.grad(
        value, inputs, torch.ones_like(value) if grad_output is None else grad_output.to(value.dtype)
    )
    return value.detach(), *by


def same(what: str, found: tuple[Tensor, ...], right: tuple[Tensor, ...], relative: float) -> None:
    """Compares with a tolerance of ``relative`` times the largest element. nan must be in the same places."""
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape, what
        assert (a.isnan() == b.isnan()).all(), what
        if b.numel():
            off, largest = (a.double() - b).abs().nan_to_num(0.0).max(), b.abs().nan_to_num(0.0).max()
            limits = torch.finfo(a.dtype)
            assert off <= relative * largest + limits.tiny * limits.eps, f"{what}: {off} of {largest}"


def share(cases: Iterable[Any]) -> Iterator[Any]:
    """The cases of this process: every n-th, from the k-th on."""
    k, n = map(int, sys.argv[2:4])
    return islice(cases, k, None, n)


def softmaxes(device: str) -> None:
    for shape, layout, dtype in share(product([*SHAPES, (3, 128256), (4, 150, 17, 33)], LAYOUTS, DTYPES)):
        z = LAYOUTS[layout](3 * torch.randn(shape, device=device)).to(dtype)
        positions = () if len(shape) == 1 else (shape[0], *shape[2:])
        classes = shape[0 if len(shape) == 1 else 1]
        y = torch.randint(classes, positions, device=device)
        y = y.masked_fill(torch.rand(positions, device=device) < 0.1, -100)
        weight = torch.rand(classes, device=device)
        for loss, reduction in zip(LOSSES, ["none", "mean", "sum"] * len(LOSSES), strict=False):
            what = f"{shape} {layout} {dtype} {loss} {reduction}"
            options: Any = {"polynomial": loss, "reduction": reduction}
            grad_output = torch.rand(positions if reduction == "none" else (), device=device, dtype=torch.float64)
            found, right = (
                gradients(
                    lambda z, y=y, options=options, weight=weight, which=which: poly_cross_entropy(
                        z, y, weight.to(z.dtype), **options, implementation=which
                    ),
                    (logits,),
                    grad_output,
                )
                for logits, which in ((z, "triton"), (z.double(), "plain"))
            )
            # The weights are rounded to the logits' dtype.
            same(what, found, right, 2 * DTYPES[dtype])


def soft_targets(device: str) -> None:
    """One loss, dtype and kind of target for each shape and layout: most combinations have to be compiled."""
    random = Random(0)
    for shape, layout in share(product([(7,), (300, 21), (2, 15, 9, 11), (3, 5000), (4, 150, 17, 33)], LAYOUTS)):
        loss, dtype, smooth = random.choice(SURE), random.choice(list(DTYPES)), random.random() < 0.5
        reduction = random.choice(["none", "mean", "sum"])
        z = LAYOUTS[layout](3 * torch.randn(shape, device=device)).to(dtype)
        positions = () if len(shape) == 1 else (shape[0], *shape[2:])
        classes = shape[0 if len(shape) == 1 else 1]
        options: Any = {"polynomial": loss, "reduction": reduction}
        weight = None
        if smooth:
            y = torch.randint(classes, positions, device=device)
            y = y.masked_fill(torch.rand(positions, device=device) < 0.1, -100)
            options["label_smoothing"] = 0.1
            weight = torch.rand(classes, device=device).to(dtype)
        else:
            y = torch.randn(shape, device=device).softmax(min(1, len(shape) - 1))
            y = y.bfloat16() if dtype == torch.bfloat16 else y
        grad_output = torch.rand(positions if reduction == "none" else (), device=device, dtype=torch.float64)
        found, right = (
            gradients(
                lambda z, y=y, weight=weight, options=options, which=which: poly_cross_entropy(
                    z,
                    y.double() if y.is_floating_point() and which == "plain" else y,
                    None if weight is None else weight.to(z.dtype),
                    **options,
                    implementation=which,
                ),
                (logits,),
                grad_output,
            )
            for logits, which in ((z, "triton"), (z.double(), "plain"))
        )
        same(f"{shape} {layout} {dtype} {loss} {reduction} {smooth}", found, right, 2 * DTYPES[dtype])


def digits(device: str) -> None:
    margins = torch.tensor([*range(-4, 81, 4), 0.1, 1.5, 17.3])
    for loss, others, one_hot in share([*product(SURE, (1, 130, 5000), [False]), *product(SURE, [130], [True])]):
        z = torch.full((len(margins), others + 1), 7.25)
        z[:, 0] += margins
        target = torch.zeros(len(margins), dtype=torch.int64, device=device)
        if one_hot:
            target = torch.nn.functional.one_hot(target, others + 1).float()
        options: Any = {"polynomial": loss, "reduction": "none", "implementation": "triton"}
        value, by_z = gradients(lambda z, y=target, of=options: poly_cross_entropy(z, y, **of), (z.to(device),), None)
        found = zip((z[:, 0] - 7.25).tolist(), value.tolist(), by_z[:, 0].tolist(), strict=True)
        for margin, *numbers in found:
            for number, exact in zip(numbers, of_margin(loss, margin, others), strict=True):
                assert abs(number - exact) <= max(1e-5 * abs(float(exact)), 2e-35), f"{loss} {margin} {number}"


def sigmoids(device: str) -> None:
    """One loss for each shape, layout, dtype and kind of target; every second one with weights and two sides."""
    random = Random(0)
    shapes = [(7,), (5, 3), (300, 81), (3, 5000), (2, 15, 9, 11)]
    for shape, layout, dtype, kind in share(product(shapes, LAYOUTS, DTYPES, ("ids", "hard", "soft"))):
        if kind == "ids" and len(shape) == 1:
            continue
        z = LAYOUTS[layout](3 * torch.randn(shape, device=device)).to(dtype)
        y = torch.rand(shape, device=device).to(dtype)
        if kind == "hard":
            y = (y < 0.1).to(dtype)
        elif kind == "ids":
            y = torch.randint(shape[1], (shape[0], *shape[2:]), device=device)
        loss, reduction = random.choice(SURE), random.choice(["none", "mean", "sum"])
        options: Any = {"polynomial": loss, "reduction": reduction, "alpha": 0.25, "ignore_index": 1}
        if random.random() < 0.5:
            options["polynomial"] = TwoSided(random.choice(SURE), loss, random.choice([0.0, 0.05]))
            options["weight"] = torch.rand(shape[0], *[1] * (len(shape) - 1), device=device)
            options["pos_weight"] = torch.rand(shape[1:2] + (1,) * (len(shape) - 2), device=device)
        grad_output = torch.rand(shape if reduction == "none" else (), device=device, dtype=torch.float64)
        found, right = (
            gradients(
                lambda z, y=y, options=options, which=which: poly_binary_cross_entropy_with_logits(
                    z, y.to(z.dtype) if y.is_floating_point() else y, **options, implementation=which
                ),
                (logits,),
                grad_output,
            )
            for logits, which in ((z, "triton"), (z.double(), "plain"))
        )
        same(f"{shape} {layout} {dtype} {kind} {loss} {reduction}", found, right, 2 * DTYPES[dtype])


def heads(device: str) -> None:
    for dtype, relative in ((torch.float32, 1e-5), (torch.bfloat16, 2.0**-6)):
        x = torch.randn(700, 64, device=device).to(dtype)
        weight = (torch.randn(3000, 64, device=device) / 8).to(dtype)
        y = torch.randint(3000, (700,), device=device)
        found, right = (
            gradients(
                lambda x, w, y=y, which=which: linear_poly_cross_entropy(x, w, y, gamma=0.5, implementation=which),
                inputs,
                torch.tensor(0.125, device=device),
            )
            for inputs, which in (((x, weight), "triton"), ((x.double(), weight.double()), "plain"))
        )
        same(f"head {dtype}", found, right, relative)


def nothing_waits(device: str) -> None:
    """The kernels do not synchronize with the device, and a CUDA graph can capture forward and backward."""
    z = torch.randn(512, 1000, device=device)
    y = torch.randint(1000, (512,), device=device)
    softmax = partial(poly_cross_entropy, target=y, implementation="triton")
    sigmoid = partial(poly_binary_cross_entropy_with_logits, target=y, implementation="triton")
    losses: list[Loss] = [
        partial(softmax, gamma=0.5),
        partial(softmax, epsilon=torch.tensor(0.5, device=device)),
        partial(softmax, label_smoothing=0.1),
        partial(poly_cross_entropy, target=z.softmax(1), implementation="triton"),
        partial(sigmoid, gamma=2.0, alpha=0.25),
    ]
    for loss in losses:
        x = z.clone().requires_grad_()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(aside):
            for _ in range(3):  # warm up: compilation, allocation
                torch.autograd.grad(loss(x), x)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(loss(x), x)
        torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = loss(x)
            (by_x,) = torch.autograd.grad(value, x)
        with torch.no_grad():
            x.copy_(2 * z)
        graph.replay()
        assert torch.equal(x, 2 * z)
        same(
            "graph",
            (value.detach(), by_x),
            gradients(partial(loss, implementation="plain"), (2 * z.double(),), None),
            4e-6,
        )


def main() -> None:
    device = sys.argv[1]
    if len(sys.argv) == 2:
        n = min(12, os.cpu_count() or 1)
        processes = [subprocess.Popen([sys.executable, __file__, device, str(k), str(n)]) for k in range(n)]
        sys.exit(max(abs(process.wait()) for process in processes))
    torch.manual_seed(0)
    alone = sys.argv[2] == "0"
    for check in (
        softmaxes,
        soft_targets,
        digits,
        sigmoids,
        *([heads] if alone else []),
        *([nothing_waits] if alone and device == "cuda" else []),
    ):
        check(device)
        print(check.__name__, flush=True)


if __name__ == "__main__":
    main()
