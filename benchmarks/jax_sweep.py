"""Times the sweep of examples/jax_epsilon_sweep.py against the batched training of `polylosses tune`.

    python benchmarks/jax_sweep.py [--out results.json]

Both train 60 networks of 64 hidden units for 405 steps of 64 rows of digits, with AdamW and falling learning rates.
Rounds alternate between the two, and ratios are taken within rounds. Results are medians over rounds. JAX's compile
time is reported separately, since other epsilons don't need another compilation.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import torch
from sklearn.datasets import load_digits

from measuring import machine
from polylosses import poly1
from polylosses.tune import batched

ROUNDS = 5


def the_example() -> Any:
    path = Path(__file__).parent.parent / "examples" / "jax_epsilon_sweep.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    example = the_example()
    features, labels = load_digits(return_X_y=True)
    x = (features / 16).astype("float32")
    X, y = torch.tensor(x[: example.ROWS]), torch.tensor(labels[: example.ROWS])
    epsilons, repeats = example.EPSILONS.tolist(), len(example.SEEDS)

    given = example.EPSILONS, example.SEEDS, x, labels
    start = time.perf_counter()
    compiled = example.sweep.lower(*given).compile()
    compiling = time.perf_counter() - start
    jax.block_until_ready(compiled(*given))

    by_torch: list[float] = []
    by_jax: list[float] = []
    for number in range(ROUNDS):
        print(f"\rround {number + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()
        batched.train(
            X.expand(repeats, -1, -1),
            y.expand(repeats, -1),
            10,
            [poly1(epsilon) for epsilon in epsilons],
            [0.01] * len(epsilons),
            list(range(repeats)),
        )
        middle = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        by_torch.append(middle - start)
        by_jax.append(time.perf_counter() - middle)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)

    found = {
        "models": len(epsilons) * repeats,
        "steps": example.STEPS,
        "seconds_torch": statistics.median(by_torch),
        "seconds_jax": statistics.median(by_jax),
        "seconds_jax_compiling": compiling,
        "ratio": statistics.median(a / b for a, b in zip(by_torch, by_jax, strict=True)),
    }
    about = machine("cpu") | {"jax": jax.__version__}
    for name, value in (about | found).items():
        print(f"{name + ':':27} {value:.3g}" if isinstance(value, float) else f"{name + ':':27} {value}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
