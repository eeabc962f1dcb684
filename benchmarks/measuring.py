"""Helpers to measure time and memory, and the description of the machine."""

import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

import polylosses

T = TypeVar("T")


def interleaved(
    what: str, calls: dict[str, Callable[[], Any]], seconds: float, fewest: int = 7, most: int = 300
) -> dict[str, list[float]]:
    """The seconds of each call in every round. Warm-up calls are not counted.

    Every round calls each once, so that a slow moment of the machine affects all. Rounds end after ``seconds``, but not
    before ``fewest`` of them.
    """
    for call in calls.values():
        for _ in range(2):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    start = time.perf_counter()
    for done in range(most):
        if done >= fewest and time.perf_counter() - start > seconds:
            break
        say(f"{what}: round {done + 1}")
        order.shuffle(names)  # the previous call may leave caches warm and threads awake
        for name in names:
            begin = time.perf_counter()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - begin)
    say("")
    return taken


def ratios(taken: dict[str, list[float]], name: str, baseline: str) -> tuple[float, float, float]:
    """The lower quartile, median and upper quartile of the time ratios within rounds."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(taken[name], taken[baseline], strict=True)], n=4, method="inclusive"
    )
    return low, middle, high


def peak_in_another_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls the function in a child process whose malloc returns freed memory to the system at once.

    Otherwise, resident memory varies by tens of MB.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "100000"  # for child processes
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_memory(call: Callable[[], Any], device: str) -> int:
    """The increase of peak memory during the call, in bytes: resident memory, or on CUDA torch's allocations."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    """Resident memory in bytes: current (VmRSS) or peak (VmHWM)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(text.partition(what + ":")[2].split()[0])


def say(text: str) -> None:
    """Prints a progress line in place, if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:60}", end="" if text else "\r", file=sys.stderr, flush=True)


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no", "--", "../src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def machine(device: str) -> dict[str, Any]:
    """Describes the machine and the versions, to be stored with every result."""
    return {
        "device": _processor(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "polylosses": polylosses.__version__,
        "commit": _commit(),
    }
