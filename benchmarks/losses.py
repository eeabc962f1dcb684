"""Measures the time and memory of the losses against torch's own and other published PolyLosses.

    python benchmarks/losses.py [--tables TABLE ...] [--out results.json]

The first two tables are "softmax" (class indices) and "sigmoid" (focal losses). The others are those of recipes.py,
each with its own targets, options and baseline.

Forward and backward with reduction "mean" and grad_output 0.125. Every round runs each loss once, and ratios are taken
within rounds, so that a slow moment of the machine affects both sides. Results are the median over rounds and the
quartiles. torch.compile compiles for each shape, before anything is timed.

"kept" is the memory that autograd saves for backward, without logits and target. "peak" is the peak memory besides
these, including the gradient, of a second call in a child process: the first loads libraries and compiles. Of recipes,
it is measured at the first shape only.

The floor is the time of a memory copy of the same size: the logits are read twice and the gradient is written, in
memory that is already allocated. The target is not part of it.

The other packages are installed into a temporary folder, at the versions in docs/coming_from.py. optax is measured in
jax_losses.py, since XLA's and torch's threads disturb each other.

With a CUDA device, everything runs there, with the Triton kernels and larger shapes (see cuda.py). Liger-Kernel and
quack are measured too, if they are installed:

    pip install liger-kernel==0.8.5 quack-kernels==0.6.5
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import interleaved, machine, peak_in_another_process, peak_memory, ratios, say
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy
from recipes import BALANCED, DEVICE, KERNEL, RECIPES, Loss, Shape

sys.path.append(str(Path(__file__).parent.parent / "docs"))
import coming_from

# Of softmax and sigmoid; of a recipe; of a recipe with fewer than SMALL logits. The most rounds of each.
SECONDS_A_SHAPE, ROUNDS = {"cpu": 20.0, "cuda": 4.0}, 300
SECONDS_OF_A_RECIPE = 2.0
SECONDS_OF_SMALL, ROUNDS_OF_SMALL, SMALL = 1.0, 5000, 2**17
GRAD_OUTPUT = 0.125
FLOOR = "floor"

SOFTMAX_BASELINE = "F.cross_entropy"
SOFTMAX: dict[str, Loss] = {
    SOFTMAX_BASELINE: F.cross_entropy,
    "torch.compile(F.cross_entropy)": torch.compile(F.cross_entropy),
    "Poly-1": partial(poly_cross_entropy, epsilon=1.0, **KERNEL),
    "focal, gamma 0.5": partial(poly_cross_entropy, epsilon=0.0, gamma=0.5, **KERNEL),
    "Poly-3": partial(poly_cross_entropy, epsilon=(1.0, 0.5, 0.25), **KERNEL),
    "Poly-1, plain": partial(poly_cross_entropy, epsilon=1.0, implementation="plain"),
}
if DEVICE == "cuda":
    SOFTMAX |= {
        "F.cross_entropy, smoothing": partial(F.cross_entropy, label_smoothing=0.1),
        "Poly-1, smoothing": partial(poly_cross_entropy, epsilon=1.0, label_smoothing=0.1, **KERNEL),
        "F.cross_entropy, probabilities": F.cross_entropy,
        "Poly-1, probabilities": partial(poly_cross_entropy, epsilon=1.0, **KERNEL),
    }
SOFTMAX_PEERS = {"timm": "timm", "Holocron": "Holocron", "spells": "pytorch-lightning-spells", "polyloss": "polyloss"}
SOFTMAX_SHAPES: list[Shape] = [(1024, 1000), (1024, 21843), (512, 50257), (8, 150, 128, 128), (65536, 21)]
# (package, module, function)
SOFTMAX_PEERS_ON_CUDA = {
    "Liger": ("liger-kernel", "liger_kernel.transformers.functional", "liger_cross_entropy"),
    "quack": ("quack-kernels", "quack.cross_entropy", "cross_entropy"),
}
SOFTMAX_SHAPES_ON_CUDA: list[Shape] = [(8192, 128256), (8, 150, 512, 512)]

POLY: dict[str, Any] = BALANCED | {"epsilon": 1.0}
SIGMOID_BASELINE = "torchvision"
SIGMOID_BASELINE_OF_TORCH = "F.binary_cross_entropy_with_logits"  # if torchvision could not be installed
SIGMOID: dict[str, Loss] = {
    "F.binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "focal": partial(poly_binary_cross_entropy_with_logits, **BALANCED, **KERNEL),
    "Poly-1 focal": partial(poly_binary_cross_entropy_with_logits, **POLY, **KERNEL),
    "Poly-1 focal, class ids": partial(poly_binary_cross_entropy_with_logits, **POLY, **KERNEL),
    "Poly-1 focal, plain": partial(poly_binary_cross_entropy_with_logits, **POLY, implementation="plain"),
}
SIGMOID_PEERS = {"torchvision": "torchvision", "timm": "timm", "spells": "pytorch-lightning-spells"}
SIGMOID_SHAPES: list[Shape] = [(4000, 80), (100_000, 80), (8, 20, 128, 128)]
SIGMOID_SHAPES_ON_CUDA: list[Shape] = [(800_000, 80)]

TABLES = ["softmax", "sigmoid", *RECIPES]

# dtypes of the logits in the first two tables, other than float32
DTYPES: dict[Shape, torch.dtype] = {(8192, 128256): torch.bfloat16}

# Small shapes, to find the size from which the kernel is faster.
CROSSOVER_SHAPES: list[Shape] = [
    (64, 10),
    (512, 10),
    (4096, 10),
    (8, 1000),
    (16, 1000),
    (32, 1000),
    (64, 1000),
    (256, 1000),
]


def package(title: str) -> coming_from.Peer:
    """The other package of this title."""
    (found,) = (peer for peer in coming_from.PEERS if peer.title == title)
    return found


@cache
def load(folder: str, title: str, file: str = "") -> Any:
    """The module of another package in ``folder``, or None if that could not be installed."""
    if not Path(folder, title).exists():
        return None
    peer = package(title)
    return coming_from.load(replace(peer, file=file or peer.file), f"{folder}/{title}")


def losses(folder: str, table: str, options: dict[str, Any]) -> dict[str, Loss]:
    """Torch's losses, ours, and those of the other packages in ``folder``, as functions of logits and target."""
    found: dict[str, Loss] = {}
    if table in RECIPES:
        recipe = RECIPES[table]
        found |= {name: partial(loss, **options) for name, loss in recipe.losses.items()}
        for name, peer in recipe.peers.items():
            if module := load(folder, peer.title, peer.file):
                found[name] = peer.make(module, **options)
        return found
    found |= SOFTMAX if table == "softmax" else SIGMOID
    of_table = coming_from.SOFTMAX if table == "softmax" else coming_from.SIGMOID
    options = {"epsilon": 1.0} if table == "softmax" else BALANCED
    for name, title in (SOFTMAX_PEERS if table == "softmax" else SIGMOID_PEERS).items():
        if module := load(folder, title):
            (loss,) = (loss for loss in package(title).losses if loss.link is of_table)
            found[name] = partial(loss.call, module, **options)
    if table == "softmax" and DEVICE == "cuda":
        for name, (_, module_name, function) in SOFTMAX_PEERS_ON_CUDA.items():
            found[name] = partial(from_package, module_name, function)
    return found


def packages(table: str) -> set[str]:
    """The titles of the packages that the table needs."""
    if table in RECIPES:
        return {peer.title for peer in RECIPES[table].peers.values()}
    return set((SOFTMAX_PEERS if table == "softmax" else SIGMOID_PEERS).values())


def baseline_of(folder: str, table: str) -> str:
    if table in RECIPES:
        return RECIPES[table].baseline
    if table == "softmax":
        return SOFTMAX_BASELINE
    return SIGMOID_BASELINE if load(folder, SIGMOID_PEERS[SIGMOID_BASELINE]) else SIGMOID_BASELINE_OF_TORCH


def from_package(module: str, function: str, logits: Tensor, target: Tensor) -> Tensor:
    """Calls another package's loss. Raises ImportError if it is not installed."""
    loss: Tensor = getattr(import_module(module), function)(logits, target)
    return loss


def shapes_of(table: str) -> list[tuple[Shape, torch.dtype]]:
    if table in RECIPES:
        shapes = RECIPES[table].shapes
        return [*((shape, torch.float32) for shape in shapes), (shapes[0], torch.bfloat16)]
    if table == "softmax":
        shapes = SOFTMAX_SHAPES + (SOFTMAX_SHAPES_ON_CUDA if DEVICE == "cuda" else [])
    else:
        shapes = SIGMOID_SHAPES + (SIGMOID_SHAPES_ON_CUDA if DEVICE == "cuda" else [])
    return [(shape, DTYPES.get(shape, torch.float32)) for shape in shapes]


def effort(table: str, shape: Shape) -> tuple[float, int]:
    """The seconds for all losses of a table at a shape, and the most rounds."""
    if table not in RECIPES:
        return SECONDS_A_SHAPE[DEVICE], ROUNDS
    small = math.prod(shape) < SMALL
    return (SECONDS_OF_SMALL, ROUNDS_OF_SMALL) if small else (SECONDS_OF_A_RECIPE, ROUNDS)


def given(table: str, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The logits, the target and the options."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = torch.randn(shape, generator=generator, device=DEVICE).to(dtype)
    if table in RECIPES:
        return logits, RECIPES[table].target(logits, generator), RECIPES[table].options(logits)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator, device=DEVICE), {}


def arguments(table: str, name: str, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss's own copies, so that no loss finds what another one has read; the target as the loss takes it."""
    if table == "sigmoid" and "class ids" not in name:
        target = torch.zeros(logits.shape, device=DEVICE).scatter_(1, target.unsqueeze(1), 1.0)
    elif table == "softmax" and "probabilities" in name:
        target = logits.flip(0).softmax(1)
    return logits.clone().requires_grad_(), target.clone()


def step(loss: Loss, logits: Tensor, target: Tensor) -> None:
    value = loss(logits, target)
    value.backward(torch.full_like(value, GRAD_OUTPUT))  # type: ignore[no-untyped-call]
    logits.grad = None


def bytes_kept(loss: Loss, logits: Tensor, target: Tensor) -> int:
    """The bytes that autograd saves for backward. A storage that is saved twice counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss(logits, target)  # keep it alive, so that no storage's address is reused
    del result
    for tensor in (logits, target):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def peaks(folder: str, table: str, shape: Shape, dtype: torch.dtype, names: list[str], threads: int) -> dict[str, int]:
    """The peak memory of forward and backward in this process, in bytes."""
    torch.set_num_threads(threads)
    logits, target, options = given(table, shape, dtype)
    of_table, found = losses(folder, table, options), {}
    for name in names:
        call = partial(step, of_table[name], *arguments(table, name, logits, target))
        call()  # warm up: loads libraries, compiles
        found[name] = peak_memory(call, DEVICE)
    return found


def floor(shape: Shape, dtype: torch.dtype) -> Callable[[], Any]:
    """Copies 1.5 times the logits: the two reads and one write of a loss are half reads, half writes in a copy."""
    source = torch.randn(3 * torch.Size(shape).numel() // 2, device=DEVICE).to(dtype)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def works(loss: Loss, logits: Tensor, target: Tensor) -> str:
    """The first line of the error that the loss raises, or an empty string."""
    try:
        step(loss, logits, target)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def size(shape: Shape, dtype: torch.dtype) -> str:
    return " x ".join(map(str, shape)) + (", bf16" if dtype == torch.bfloat16 else "")


def measure(folder: str, table: str, shape: Shape, dtype: torch.dtype, with_peaks: bool) -> list[dict[str, Any]]:
    torch._dynamo.reset()
    logits, target, options = given(table, shape, dtype)
    about = {"link": table, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
    calls: dict[str, Callable[[], Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, loss in losses(folder, table, options).items():
        numbers = arguments(table, name, logits, target)
        wrong = works(loss, *numbers)
        results[name] = about | {"loss": name, "wrong": wrong}
        if not wrong:
            calls[name] = partial(step, loss, *numbers)
            results[name]["bytes_kept"] = bytes_kept(loss, *numbers)
    working = list(calls)
    calls[FLOOR] = floor(shape, dtype)
    seconds_a_shape, most = effort(table, shape)
    taken = interleaved(f"{table}, {size(shape, dtype)}", calls, seconds_a_shape, most=most)
    for name, seconds in taken.items():
        result = results.setdefault(name, about | {"loss": name, "wrong": ""})
        low, middle, high = ratios(taken, name, baseline_of(folder, table))
        result |= {"rounds": len(seconds), "milliseconds": 1e3 * sorted(seconds)[len(seconds) // 2]}
        result |= {"time_ratio": middle, "time_ratio_quartiles": [low, high]}
    if with_peaks:
        say(f"{table}, {size(shape, dtype)}: memory")
        of = (folder, table, shape, dtype, working, torch.get_num_threads())
        # torch counts its allocations on a GPU. Resident memory needs a fresh process.
        found = peaks(*of) if DEVICE == "cuda" else peak_in_another_process(peaks, *of)
        for name, peak in found.items():
            results[name]["peak_bytes"] = peak
        say("")
    return list(results.values())


def show(result: dict[str, Any], dtype: torch.dtype) -> None:
    name = f"{size(result['shape'], dtype):19} {result['loss']:42}"
    if result["wrong"]:
        print(f"{name} {result['wrong'][:60]}", flush=True)
        return
    low, high = result["time_ratio_quartiles"]
    line = f"{name} {result['milliseconds']:8.3f}   {result['time_ratio']:6.3f} ({low:5.3f}-{high:5.3f})"
    if "bytes_kept" in result:
        peak = f"{result['peak_bytes'] / 1e6:9.1f}" if "peak_bytes" in result else ""
        line += f" {peak:9} {result['bytes_kept'] / 1e6:9.2f}"
    print(line, flush=True)


def run(folder: str, table: str) -> list[dict[str, Any]]:
    """Measures and prints a table."""
    print(f"\n{table}, relative to {baseline_of(folder, table)}")
    print(f"{'logits':19} {'loss':42} {'ms':>8}   {'time':^20} {'peak, MB':>9} {'kept, MB':>9}", flush=True)
    results = []
    for number, (shape, dtype) in enumerate(shapes_of(table)):
        for result in measure(folder, table, shape, dtype, with_peaks=table not in RECIPES or number == 0):
            show(result, dtype)
            results.append(result)
    return results


def crossover(shape: Shape) -> dict[str, Any]:
    """The time of the kernel, relative to the plain implementation."""
    logits, target, _ = given("softmax", shape, torch.float32)
    logits.requires_grad_()
    calls: dict[str, Callable[[], Any]] = {
        which: partial(step, partial(poly_cross_entropy, epsilon=1.0, implementation=which), logits, target)
        for which in ("plain", "native")
    }
    taken = interleaved(size(shape, torch.float32), calls, seconds=3.0, most=1000)
    low, middle, high = ratios(taken, "native", "plain")
    return {"shape": shape, "time_ratio": middle, "time_ratio_quartiles": [low, high]}


def install(folder: str, tables: list[str]) -> dict[str, str]:
    """Installs the other packages. Returns what each is, for the header."""
    about = {}
    wanted = set[str]().union(*map(packages, tables))
    for peer in coming_from.PEERS:
        if peer.title in wanted:
            try:
                coming_from.install(peer, f"{folder}/{peer.title}")
            except subprocess.CalledProcessError:
                about[peer.title] = "not installed"
            else:
                about[peer.title] = " ".join(peer.requirements)
    for name, (project, module, _) in SOFTMAX_PEERS_ON_CUDA.items() if DEVICE == "cuda" else ():
        about[name] = f"{project}=={version(project)}" if find_spec(module.partition(".")[0]) else "not installed"
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=TABLES,
        default=TABLES,
        metavar="TABLE",
        help="by default all: " + "; ".join(TABLES),
    )
    parser.add_argument("--out", type=Path, help="also write the numbers of these tables to this JSON file")
    wanted = parser.parse_args()
    tables: list[str] = wanted.tables
    out: Path | None = wanted.out
    about = machine(DEVICE)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        about |= install(folder, tables)
        for name, value in about.items():
            print(f"{name + ':':26} {value}")
        print("\nfloat32, or bfloat16 beside 'bf16'; reduction 'mean', forward + backward, incoming gradient 0.125;")
        print("time: median (quartiles) of ratios to the table's baseline")
        for table in tables:
            results += run(folder, table)
    small = [crossover(shape) for shape in CROSSOVER_SHAPES] if DEVICE == "cpu" and "softmax" in tables else []
    if small:
        print("\nPoly-1, the kernel's time as a ratio to that of the plain implementation")
    for result in small:
        print(f"{size(result['shape'], torch.float32):18} {result['time_ratio']:6.3f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": about, "results": results, "crossover": small}
        out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
