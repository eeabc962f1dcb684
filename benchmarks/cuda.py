"""Runs everything that needs a CUDA device: tests of the Triton kernels, then the benchmarks.

    python benchmarks/cuda.py OUT [--wheels FOLDER]

It needs Python, torch and Triton, but no installation of this library and no network, and takes at most 8 minutes.
tests/on_cuda.py runs first, the benchmarks only if it passes. The folder OUT gets their output and the numbers as
JSON. Other packages ("peers") are measured if they are installed, or if FOLDER has their wheels
(``pip download --no-deps -d FOLDER PEER==VERSION``, with the versions in losses.py and docs/coming_from.py).
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
# (command, timeout in seconds)
STEPS: dict[str, tuple[list[str], float]] = {
    "correctness": (["tests/on_cuda.py", "cuda"], 220.0),
    "losses": (["benchmarks/losses.py", "--tables", "softmax", "sigmoid", "--out", "losses.json"], 160.0),
    "linear_head": (["benchmarks/linear_head.py", "--out", "linear_head.json"], 80.0),
}


def environment(wheels: Path | None) -> dict[str, str]:
    """Environment variables: no Triton interpreter, this source tree on the path, and pip limited to the wheels."""
    folders = [ROOT / "src", ROOT / "tests", *([wheels / "installed"] if wheels else [])]
    path = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PIP_NO_INDEX": "1", "TRITON_INTERPRET": "0"}
    return found | ({"PIP_FIND_LINKS": str(wheels)} if wheels else {})


def run(command: list[str], seconds: float, log: Path, env: dict[str, str]) -> int | None:
    """The exit status, or None for a timeout. The output is written to the log and to stdout."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout
        for line in process.stdout:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)
        status = process.wait()
        in_time = timer.is_alive()
        timer.cancel()
    return status if in_time else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="the folder for logs and results")
    parser.add_argument("--wheels", type=Path, help="a folder with wheels of other packages to measure")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device")
    wheels = arguments.wheels.resolve() if arguments.wheels else None
    if wheels and not list(wheels.glob("*.whl")):
        parser.error(f"--wheels {wheels} holds no wheels")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    env = environment(wheels)
    if wheels:
        pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(wheels / "installed")]
        run([*pip, *map(str, wheels.glob("*.whl"))], 60.0, out / "wheels.log", env)
    summary: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "steps": {}}
    for name, (command, seconds) in STEPS.items():
        print(f"== {name}", flush=True)
        start = time.monotonic()
        status = run(
            [str(out / word) if word.endswith(".json") else word for word in command], seconds, out / f"{name}.log", env
        )
        said = "too slow" if status is None else "passed" if status == 0 else f"exit status {status}"
        summary["steps"][name] = {"result": said, "seconds": round(time.monotonic() - start, 1)}
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        print(f"== {name}: {said}", flush=True)
        if status != 0 and name == "correctness":
            break  # don't time wrong kernels
    return 0 if all(step["result"] == "passed" for step in summary["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
