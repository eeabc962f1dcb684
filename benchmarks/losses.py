"""Measures the time and memory of the losses against torch's own and other published PolyLosses.

    python benchmarks/losses.py [--out results.json]

Forward and backward with reduction "mean" and grad_output 0.125. Every round runs each loss once, and ratios are taken
within rounds, so that a slow moment of the machine affects both sides. Results are the median over rounds and the
quartiles. "kept" is the memory that autograd saves for backward, without logits and target; "peak" is the peak memory
besides these, including the gradient, in a child process. The floor is the time of a memory copy of the same size: the
logits are read twice and the gradient is written, in memory that is already allocated.

The other packages are installed into a temporary folder, at the versions in docs/coming_from.py. optax is measured in
jax_losses.py, since XLA's and torch's threads disturb each other.

With a CUDA device, everything runs there, with the Triton kernels and larger shapes (see cuda.py). Liger-Kernel and
quack are measured too, if they are installed:

    pip install liger-kernel==0.8.5 quack-kernels==0.6.5
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
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

sys.path.append(str(Path(__file__).parent.parent / "docs"))
import coming_from

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]

SECONDS_A_SHAPE = {"cpu": 20.0, "cuda": 4.0}
GRAD_OUTPUT = 0.125
FLOOR = "floor"

# Not yet the default on CUDA (see dispatch.py).
KERNEL: dict[str, Any] = {"implementation": "triton"} if torch.cuda.is_available() else {}

SOFTMAX_BASELINE = "F.cross_entropy"
SOFTMAX: dict[str, Loss] = {
    SOFTMAX_BASELINE: F.cross_entropy,
    "torch.compile(F.cross_entropy)": torch.compile(F.cross_entropy),
    "Poly-1": partial(poly_cross_entropy, epsilon=1.0, **KERNEL),
    "focal, gamma 0.5": partial(poly_cross_entropy, epsilon=0.0, gamma=0.5, **KERNEL),
    "Poly-3": partial(poly_cross_entropy, epsilon=(1.0, 0.5, 0.25), **KERNEL),
    "Poly-1, plain": partial(poly_cross_entropy, epsilon=1.0, implementation="plain"),
}
if torch.cuda.is_available():
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

BALANCED: dict[str, Any] = {"epsilon": 0.0, "gamma": 2.0, "alpha": 0.25}
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

# dtypes of the logits other than float32
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


@cache
def losses(folder: str, link: str) -> dict[str, Loss]:
    """Our losses, torch's, and those of the other packages in ``folder``."""
    ours, peers = (SOFTMAX, SOFTMAX_PEERS) if link == "softmax" else (SIGMOID, SIGMOID_PEERS)
    found = dict(ours)
    of_link = coming_from.SOFTMAX if link == "softmax" else coming_from.SIGMOID
    options = {"epsilon": 1.0} if link == "softmax" else BALANCED
    for name, title in peers.items():
        (peer,) = (peer for peer in coming_from.PEERS if peer.title == title)
        if not Path(folder, title).exists():
            continue  # it could not be installed
        module = coming_from.load(peer, f"{folder}/{title}")
        (loss,) = (loss for loss in peer.losses if loss.link is of_link)
        found[name] = partial(loss.call, module, **options)
    if link == "softmax" and torch.cuda.is_available():
        for name, (_, module_name, function) in SOFTMAX_PEERS_ON_CUDA.items():
            found[name] = partial(from_package, module_name, function)
    return found


def sigmoid_baseline(folder: str) -> str:
    return SIGMOID_BASELINE if SIGMOID_BASELINE in losses(folder, "sigmoid") else SIGMOID_BASELINE_OF_TORCH


def from_package(module: str, function: str, logits: Tensor, target: Tensor) -> Tensor:
    """Calls another package's loss. Raises ImportError if it is not installed."""
    loss: Tensor = getattr(import_module(module), function)(logits, target)
    return loss


def shapes_of(link: str, device: str) -> list[Shape]:
    if link == "softmax":
        return SOFTMAX_SHAPES + (SOFTMAX_SHAPES_ON_CUDA if device == "cuda" else [])
    return SIGMOID_SHAPES + (SIGMOID_SHAPES_ON_CUDA if device == "cuda" else [])


def given(shape: Shape, name: str, link: str, device: str) -> tuple[Tensor, Tensor]:
    """The logits and the target."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(shape, generator=generator, device=device).to(DTYPES.get(shape, torch.float32))
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator, device=device)
    if link == "sigmoid" and "class ids" not in name:
        target = torch.zeros(shape, device=device).scatter_(1, target.unsqueeze(1), 1.0)
    elif "probabilities" in name:
        target = logits.flip(0).softmax(1)
    return logits.requires_grad_(), target


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


def peak(folder: str, name: str, link: str, shape: Shape, device: str, threads: int) -> int:
    """The peak memory of forward and backward in this process, in bytes."""
    torch.set_num_threads(threads)
    loss = losses(folder, link)[name]
    small = (2, *shape[1:2], *(2 for _ in shape[2:]))
    step(loss, *given(small, name, link, device))  # warm up: loads libraries, compiles
    logits, target = given(shape, name, link, device)
    return peak_memory(lambda: step(loss, logits, target), device)


def floor(shape: Shape, device: str) -> Callable[[], Any]:
    """Copies 1.5 times the logits: the two reads and one write of a loss are half reads, half writes in a copy."""
    source = torch.randn(3 * torch.Size(shape).numel() // 2, device=device).to(DTYPES.get(shape, torch.float32))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def works(loss: Loss, logits: Tensor, target: Tensor) -> str:
    """The first line of the error that the loss raises, or an empty string."""
    try:
        step(loss, logits, target)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def measure(folder: str, link: str, shape: Shape, device: str) -> list[dict[str, Any]]:
    torch._dynamo.reset()
    baseline = SOFTMAX_BASELINE if link == "softmax" else sigmoid_baseline(folder)
    calls: dict[str, Callable[[], Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, loss in losses(folder, link).items():
        numbers = given(shape, name, link, device)
        wrong = works(loss, *numbers)
        results[name] = {"link": link, "shape": shape, "loss": name, "wrong": wrong}
        if not wrong:
            calls[name] = partial(step, loss, *numbers)
            results[name]["bytes_kept"] = bytes_kept(loss, *numbers)
    calls[FLOOR] = floor(shape, device)
    title = " x ".join(map(str, shape))
    taken = interleaved(title, calls, SECONDS_A_SHAPE[device])
    for name, seconds in taken.items():
        result = results.setdefault(name, {"link": link, "shape": shape, "loss": name, "wrong": ""})
        low, middle, high = ratios(taken, name, baseline)
        result |= {"rounds": len(seconds), "milliseconds": 1e3 * sorted(seconds)[len(seconds) // 2]}
        result |= {"time_ratio": middle, "time_ratio_quartiles": [low, high]}
        if "bytes_kept" in result:
            say(f"{title}: memory of {name}")
            arguments = (folder, name, link, shape, device, torch.get_num_threads())
            # torch counts its allocations on a GPU. Resident memory needs a fresh process.
            result["peak_bytes"] = peak(*arguments) if device == "cuda" else peak_in_another_process(peak, *arguments)
            say("")
    return list(results.values())


def show(result: dict[str, Any]) -> None:
    name = f"{' x '.join(map(str, result['shape'])):18} {result['loss']:35}"
    if result["wrong"]:
        print(f"{name} {result['wrong'][:60]}")
        return
    low, high = result["time_ratio_quartiles"]
    line = f"{name} {result['milliseconds']:8.2f}   {result['time_ratio']:6.3f} ({low:5.3f}-{high:5.3f})"
    if "peak_bytes" in result:
        line += f" {result['peak_bytes'] / 1e6:9.1f} {result['bytes_kept'] / 1e6:9.2f}"
    print(line, flush=True)


def crossover(shape: Shape) -> dict[str, Any]:
    """The time of the kernel, relative to the plain implementation."""
    numbers = given(shape, "", "softmax", "cpu")
    calls: dict[str, Callable[[], Any]] = {
        which: partial(step, partial(poly_cross_entropy, epsilon=1.0, implementation=which), *numbers)
        for which in ("plain", "native")
    }
    taken = interleaved(" x ".join(map(str, shape)), calls, seconds=3.0, most=1000)
    low, middle, high = ratios(taken, "native", "plain")
    return {"shape": shape, "time_ratio": middle, "time_ratio_quartiles": [low, high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = machine(device)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for peer in coming_from.PEERS:
            if peer.title in {*SOFTMAX_PEERS.values(), *SIGMOID_PEERS.values()}:
                try:
                    coming_from.install(peer, f"{folder}/{peer.title}")
                except subprocess.CalledProcessError:
                    about[peer.title] = "not installed"
                else:
                    about[peer.title] = " ".join(peer.requirements)
        for name, (package, module, _) in SOFTMAX_PEERS_ON_CUDA.items() if device == "cuda" else ():
            about[name] = f"{package}=={version(package)}" if find_spec(module.partition(".")[0]) else "not installed"
        for name, value in about.items():
            print(f"{name + ':':26} {value}")
        on_cuda = " (bfloat16 at 8192 x 128256)" if device == "cuda" else ""
        print(f"\nfloat32{on_cuda}, reduction 'mean', forward + backward, incoming gradient 0.125;")
        print("median (quartiles) of ratios to", end=" ")
        print(f"{SOFTMAX_BASELINE} (softmax) and {sigmoid_baseline(folder)} (sigmoid, gamma 2, alpha 0.25)\n")
        print(f"{'logits':18} {'loss':35} {'ms':>8}   {'time':^20} {'peak, MB':>9} {'kept, MB':>9}")
        for link in ("softmax", "sigmoid"):
            for shape in shapes_of(link, device):
                for result in measure(folder, link, shape, device):
                    show(result)
                    results.append(result)
    small = [crossover(shape) for shape in CROSSOVER_SHAPES] if device == "cpu" else []
    print("\nPoly-1, the kernel's time as a ratio to that of the plain implementation")
    for result in small:
        print(f"{' x '.join(map(str, result['shape'])):18} {result['time_ratio']:6.3f}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": about, "results": results, "crossover": small}
        out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
