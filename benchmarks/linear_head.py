"""Measures the time and peak memory of linear_poly_cross_entropy with many classes, forward and backward.

Peak memory is the increase of the process's peak resident memory during the call, in a fresh process whose malloc
returns freed memory at once (otherwise, it varies by tens of MB). On CUDA, it is the memory allocated by torch. Times
are medians over interleaved rounds, and ratios are taken within rounds.

With a CUDA device, the head is that of a language model, in bfloat16, and Liger-Kernel, cut-cross-entropy and quack are
measured too, if they are installed (liger-kernel==0.8.5 cut-cross-entropy==25.1.1 quack-kernels==0.6.5).

Usage: python benchmarks/linear_head.py [--out benchmarks/results/linear_head-MACHINE.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import machine, peak_in_another_process, peak_memory, say
from polylosses.torch import linear_poly_cross_entropy, poly_cross_entropy, poly_from_nll

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
EPSILON = 2.0
CUDA = torch.cuda.is_available()
HIDDEN, CLASSES, DTYPE = (4096, 128_256, torch.bfloat16) if CUDA else (256, 32_000, torch.float32)
FEW, MANY = 4096, 65_536
TIMED = 8192 if CUDA else FEW
UPSTREAM = 0.125
ROUNDS = 5
# (package, module, function)
PEERS_ON_CUDA = {
    "Liger": ("liger-kernel", "liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
    "cut-cross-entropy": ("cut-cross-entropy", "cut_cross_entropy", "linear_cross_entropy"),
    "quack": ("quack-kernels", "quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
}


def all_logits(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return poly_cross_entropy(F.linear(input, weight), target, epsilon=EPSILON)


def torchs_chunks(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """PolyLoss of the negative log-likelihoods that torch's own chunked head gives."""
    options = torch.nn.LinearCrossEntropyOptions()
    nll = F.linear_cross_entropy(input, weight, target, reduction="none", options=options)
    return poly_from_nll(nll, epsilon=EPSILON).mean()


def torchs_cross_entropy(input: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(input, weight), target)


OURS = "linear_poly_cross_entropy"
HEADS: dict[str, Head] = {
    "F.linear + F.cross_entropy": torchs_cross_entropy,
    "F.linear + poly_cross_entropy": all_logits,
    "poly_from_nll(F.linear_cross_entropy)": torchs_chunks,
    OURS: partial(linear_poly_cross_entropy, epsilon=EPSILON, implementation="triton" if CUDA else None),
}
for peer, (_, module, function) in PEERS_ON_CUDA.items() if CUDA else ():
    with suppress(ImportError):
        HEADS[peer] = getattr(import_module(module), function)
BASELINE = "F.linear + F.cross_entropy"


def inputs(rows: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, HIDDEN, generator=generator)
    weight = torch.randn(CLASSES, HIDDEN, generator=generator) / HIDDEN**0.5
    target = torch.randint(CLASSES, (rows,), generator=generator)
    return hidden.to(device, DTYPE).requires_grad_(), weight.to(device, DTYPE).requires_grad_(), target.to(device)


def step(head: Head, given: tuple[Tensor, Tensor, Tensor]) -> None:
    loss = head(*given)
    loss.backward(torch.full_like(loss, UPSTREAM))  # type: ignore[no-untyped-call]


def peak(name: str, rows: int, device: str, threads: int) -> int:
    """The peak memory of forward and backward in this process, in bytes."""
    torch.set_num_threads(threads)
    step(HEADS[name], inputs(8, device))  # warm up: loads libraries
    given = inputs(rows, device)
    return peak_memory(lambda: step(HEADS[name], given), device)


def seconds(head: Head, given: tuple[Tensor, Tensor, Tensor]) -> float:
    for tensor in given:
        tensor.grad = None
    start = time.perf_counter()
    step(head, given)
    if given[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = machine(device)
    for name, (package, _, _) in PEERS_ON_CUDA.items() if CUDA else ():
        about[name] = f"{package}=={version(package)}" if name in HEADS else "not installed"
    for name, value in about.items():
        print(f"{name + ':':15} {value}")

    dtype = str(DTYPE).removeprefix("torch.")
    print(f"\n{dtype}, {HIDDEN} hidden units, {CLASSES} classes, reduction 'mean', forward + backward")
    gradients = {rows: DTYPE.itemsize * HIDDEN * (rows + CLASSES) for rows in (FEW, MANY)}
    memory: list[dict[str, Any]] = []
    print(f"\npeak memory, MB (gradients are {gradients[FEW] / 1e6:.0f} and {gradients[MANY] / 1e6:.0f} of it)\n")
    print(f"{'':40} {FEW:>8} {MANY:>8}  rows;  beyond gradients")
    for name in HEADS:
        peaks = []
        for rows in (FEW, MANY):
            # The logits of MANY rows and their gradients don't fit into most machines' memory.
            if rows == MANY and "F.linear +" in name:
                continue
            say(f"{name}, {rows} rows")
            peaks.append(peak_in_another_process(peak, name, rows, device, torch.get_num_threads()))
            memory.append({"head": name, "rows": rows, "peak_bytes": peaks[-1], "gradient_bytes": gradients[rows]})
        say("")
        shown = [f"{peak / 1e6:8.0f}" for peak in peaks]
        beyond = [f"{(peak - gradients[rows]) / 1e6:8.0f}" for peak, rows in zip(peaks, (FEW, MANY), strict=False)]
        print(f"{name:40} {' '.join(shown):17}         {' '.join(beyond)}")

    given = inputs(TIMED, device)
    taken: dict[str, list[float]] = {name: [] for name in HEADS}
    for head in HEADS.values():
        seconds(head, given)
    for done in range(ROUNDS):
        say(f"round {done + 1} of {ROUNDS}")
        names = list(HEADS)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            taken[name].append(seconds(HEADS[name], given))
    say("")
    print(f"\ntime at {TIMED} rows, ratios to {BASELINE} in the same round: median (least, most)\n")
    times = []
    for name, its in taken.items():
        ratios = [a / b for a, b in zip(its, taken[BASELINE], strict=True)]
        middle = statistics.median(ratios)
        its_seconds = statistics.median(its)
        times.append({"head": name, "rows": TIMED, "seconds": its_seconds, "ratio": middle, "ratios": ratios})
        print(f"{name:40} {1e3 * its_seconds:8.1f} ms  {middle:6.3f} ({min(ratios):.3f}-{max(ratios):.3f})")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps({"machine": about, "memory": memory, "time": times}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
