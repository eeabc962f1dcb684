"""Times poly_cross_entropy against F.cross_entropy, forward and backward, and counts what is kept for backward.

    python benchmarks/cross_entropy.py [--out results.json]

Every round runs each loss once, and a ratio is taken within its round, so that a machine that slows down slows both
sides. What is printed is the median over the rounds, with the quartiles.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
from polylosses.torch import poly_cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]

BASELINE = "F.cross_entropy"
LOSSES: dict[str, Loss] = {
    BASELINE: partial(F.cross_entropy, reduction="none"),
    "Poly-1": partial(poly_cross_entropy, reduction="none", epsilon=1.0),
    "focal 0.5": partial(poly_cross_entropy, reduction="none", polynomial=polylosses.focal(0.5)),
    "Poly-1 focal": partial(poly_cross_entropy, reduction="none", polynomial=polylosses.poly1_focal(1.0, 2.0)),
    "Poly-3": partial(poly_cross_entropy, reduction="none", epsilon=(1.0, 0.5, 0.25)),
}
SHAPES = [(4096, 1024), (1024, 21843), (65536, 64)]
SECONDS_A_SHAPE = 20.0
FEWEST_ROUNDS, MOST_ROUNDS = 7, 300


def forward_backward(loss: Loss, logits: Tensor, target: Tensor, upstream: Tensor) -> float:
    """Seconds."""
    logits.grad = None
    start = time.perf_counter()
    loss(logits, target).backward(upstream)  # type: ignore[no-untyped-call]
    if logits.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bytes_saved(loss: Loss, logits: Tensor, target: Tensor) -> int:
    """What autograd keeps for backward; a storage that is kept twice counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(logits, target)  # alive until the end, so that no storage's address is given out twice
    del result
    return sum(kept.values())


def measure(rows: int, classes: int, device: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(device).requires_grad_()
    target = torch.randint(classes, (rows,), generator=generator).to(device)
    upstream = torch.full((rows,), 0.125, device=device)
    for loss in LOSSES.values():
        forward_backward(loss, logits, target, upstream)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > SECONDS_A_SHAPE:
            break
        if sys.stderr.isatty():
            print(f"\r{rows} x {classes}: round {done + 1} ", end="", file=sys.stderr, flush=True)
        names = list(LOSSES)
        # Another first one every round: what ran before may leave the caches warm.
        for name in names[done % len(names) :] + names[: done % len(names)]:
            seconds[name].append(forward_backward(LOSSES[name], logits, target, upstream))
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    saved = {name: bytes_saved(loss, logits, target) for name, loss in LOSSES.items()}
    results = []
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[BASELINE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        results.append(
            {
                "rows": rows,
                "classes": classes,
                "loss": name,
                "rounds": len(taken),
                "milliseconds": 1e3 * statistics.median(taken),
                "time_ratio": middle,
                "time_ratio_quartiles": [low, high],
                "bytes_saved": saved[name],
                "bytes_ratio": saved[name] / saved[BASELINE],
            }
        )
    return results


def processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no", "--", "../src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def machine(device: str) -> dict[str, Any]:
    """What every result has to say about where it comes from."""
    return {
        "device": processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polylosses": polylosses.__version__,
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = machine(device)
    for name, value in about.items():
        print(f"{name + ':':15} {value}")
    print("\nfloat32, reduction 'none', forward + backward, upstream gradient 0.125")
    print("ratios to F.cross_entropy in the same round: median (quartiles)\n")
    print(f"{'logits':14} {'loss':16} {'ms':>8}   {'time':^20} {'MB saved':>9} {'ratio':>7}")
    results = []
    for rows, classes in SHAPES:
        for result in measure(rows, classes, device):
            low, high = result["time_ratio_quartiles"]
            print(
                f"{f'{rows} x {classes}':14} {result['loss']:16} {result['milliseconds']:8.2f}   "
                f"{result['time_ratio']:5.3f} ({low:5.3f}-{high:5.3f})  {result['bytes_saved'] / 1e6:9.2f} "
                f"{result['bytes_ratio']:7.3f}"
            )
            results.append(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
