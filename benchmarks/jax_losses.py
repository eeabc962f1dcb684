"""Measures the time and memory of polylosses.jax against optax, for jitted value and gradient.

    python benchmarks/jax_losses.py [--out results.json]

Every round runs each loss, and ratios are taken within rounds. Results are the median over rounds and the quartiles.
"kept" is the size of jax.vjp's residuals, without the logits; "temporary" is the memory that value and gradient need
besides arguments and results. Both are relative to the size of the logits.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from measuring import machine
from polylosses.jax import poly_cross_entropy_with_integer_labels, poly_loss_cross_entropy

Loss = Callable[[Any, Any], Any]

INTEGER, POLY = "optax integer labels", "optax poly, one-hot"
LOSSES: dict[str, Loss] = {
    INTEGER: optax.losses.softmax_cross_entropy_with_integer_labels,
    POLY: lambda z, y: optax.losses.poly_loss_cross_entropy(z, jax.nn.one_hot(y, z.shape[-1]), epsilon=2.0),
    "Poly-1": lambda z, y: poly_cross_entropy_with_integer_labels(z, y, epsilon=2.0),
    "focal 0.5": lambda z, y: poly_cross_entropy_with_integer_labels(z, y, epsilon=0.0, gamma=0.5),
    "Poly-3": lambda z, y: poly_cross_entropy_with_integer_labels(z, y, epsilon=(1.0, 0.5, 0.25)),
    "Poly-1, one-hot": lambda z, y: poly_loss_cross_entropy(z, jax.nn.one_hot(y, z.shape[-1]), epsilon=2.0),
}
SHAPES = [(1024, 1000), (1024, 21843), (512, 50257)]
SECONDS_A_SHAPE = 40.0
FEWEST_ROUNDS, MOST_ROUNDS = 9, 300


def step(loss: Loss) -> Any:
    def total(logits: Any, labels: Any) -> Any:
        return (0.125 * loss(logits, labels)).sum()

    return jax.jit(jax.value_and_grad(total))


def kept(loss: Loss, logits: Any, labels: Any) -> int:
    """The bytes that jax.vjp saves for the backward pass, without the logits."""
    pull = jax.jit(lambda z: jax.vjp(lambda z: loss(z, labels), z)[1])(logits)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(pull)]
    given = np.asarray(logits)
    return sum(leaf.nbytes for leaf in leaves if leaf.shape != given.shape or not np.array_equal(leaf, given))


def measure(rows: int, classes: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(rows, classes)), "float32")
    labels = jnp.asarray(random.integers(0, classes, rows), "int32")
    compiled = {name: step(loss).lower(logits, labels).compile() for name, loss in LOSSES.items()}
    for run in compiled.values():
        jax.block_until_ready(run(logits, labels))
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > SECONDS_A_SHAPE:
            break
        if sys.stderr.isatty():
            print(f"\r{rows} x {classes}: round {done + 1} ", end="", file=sys.stderr, flush=True)
        names = list(LOSSES)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            # Take the second of two runs: the first has page faults, for memory that the previous loss has freed.
            for _ in range(2):
                began = time.perf_counter()
                jax.block_until_ready(compiled[name](logits, labels))
                taken = time.perf_counter() - began
            seconds[name].append(taken)
    if sys.stderr.isatty():
        print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)
    results = []
    for name, of_loss in seconds.items():
        ratios = [a / b for a, b in zip(of_loss, seconds[INTEGER], strict=True)]
        to_poly = [b / a for a, b in zip(of_loss, seconds[POLY], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        results.append(
            {
                "rows": rows,
                "classes": classes,
                "loss": name,
                "rounds": len(of_loss),
                "milliseconds": 1e3 * statistics.median(of_loss),
                "time_ratio": middle,
                "time_ratio_quartiles": [low, high],
                "times_as_fast_as_optax_poly": statistics.median(to_poly),
                "kept_in_logits": kept(LOSSES[name], logits, labels) / logits.nbytes,
                "temporary_in_logits": compiled[name].memory_analysis().temp_size_in_bytes / logits.nbytes,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    about = machine("cpu") | {"jax": jax.__version__, "optax": optax.__version__, "backend": jax.default_backend()}
    for name, value in about.items():
        print(f"{name + ':':15} {value}")
    print("\nfloat32, value and gradient of the sum times 0.125, jitted")
    print("time: ratio to optax's integer-label cross-entropy in the same round, median (quartiles)\n")
    print(f"{'logits':14} {'loss':22} {'ms':>8}   {'time':^20} {'optax poly':>11} {'kept':>6} {'temporary':>10}")
    results = []
    for rows, classes in SHAPES:
        for result in measure(rows, classes):
            low, high = result["time_ratio_quartiles"]
            print(
                f"{f'{rows} x {classes}':14} {result['loss']:22} {result['milliseconds']:8.2f}   "
                f"{result['time_ratio']:5.3f} ({low:5.3f}-{high:5.3f})  "
                f"{result['times_as_fast_as_optax_poly']:9.2f} x {result['kept_in_logits']:6.2f} "
                f"{result['temporary_in_logits']:10.2f}"
            )
            results.append(result)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
