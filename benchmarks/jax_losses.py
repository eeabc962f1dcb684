"""Measures the time and memory of polylosses.jax against optax, for jitted value and gradient.

    python benchmarks/jax_losses.py [--out results.json] [--kinds KIND ...] [--shapes ROWSxCLASSES ...]

Every round runs each loss of one kind of target, and ratios are taken within rounds. Results are the median over
rounds and the quartiles. "kept" is the size of jax.vjp's residuals, without the arguments; "temporary" is the memory
that value and gradient need besides arguments and results. Both are relative to the size of the logits.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from measuring import machine
from polylosses.jax import (
    poly_cross_entropy,
    poly_cross_entropy_with_integer_labels,
    poly_loss_cross_entropy,
    sigmoid_poly_cross_entropy,
)

Loss = Callable[[Any, Any], Any]
OPTAX, POLY = "optax cross-entropy", "optax poly"


def one_hot(z: Any, y: Any) -> Any:
    return jax.nn.one_hot(y, z.shape[-1])


def smoothed(z: Any, y: Any) -> Any:
    return optax.smooth_labels(one_hot(z, y), 0.1)


def of_indices(z: Any, y: Any, **options: Any) -> Any:
    return poly_cross_entropy_with_integer_labels(z, y, **options)


# By kind of target; the losses are functions of the logits and the target. Class masks come with the labels.
KINDS: dict[str, dict[str, Loss]] = {
    "class indices": {
        OPTAX: optax.losses.softmax_cross_entropy_with_integer_labels,
        POLY: lambda z, y: optax.losses.poly_loss_cross_entropy(z, one_hot(z, y), epsilon=2.0),
        "Poly-1": partial(of_indices, epsilon=2.0),
        "focal 0.5": partial(of_indices, epsilon=0.0, gamma=0.5),
        "Poly-3": partial(of_indices, epsilon=(1.0, 0.5, 0.25)),
        "Poly-1, one-hot": lambda z, y: poly_loss_cross_entropy(z, one_hot(z, y), epsilon=2.0),
    },
    "dense labels": {
        OPTAX: optax.losses.softmax_cross_entropy,
        POLY: partial(optax.losses.poly_loss_cross_entropy, epsilon=2.0),
        "cross-entropy": partial(poly_cross_entropy, epsilon=0.0),
        "Poly-1": partial(poly_cross_entropy, epsilon=2.0),
        "focal 2": partial(poly_cross_entropy, epsilon=0.0, gamma=2.0),
        "Poly-3": partial(poly_cross_entropy, epsilon=(1.0, 0.5, 0.25)),
    },
    "label smoothing": {
        OPTAX: lambda z, y: optax.losses.softmax_cross_entropy(z, smoothed(z, y)),
        POLY: lambda z, y: optax.losses.poly_loss_cross_entropy(z, smoothed(z, y), epsilon=2.0),
        "Poly-1": partial(of_indices, epsilon=2.0, label_smoothing=0.1),
    },
    "dense labels, class mask": {
        OPTAX: lambda z, y: optax.losses.softmax_cross_entropy(z, y[0], where=y[1]),
        POLY: lambda z, y: optax.losses.poly_loss_cross_entropy(z, y[0], epsilon=2.0, where=y[1]),
        "Poly-1": lambda z, y: poly_cross_entropy(z, y[0], epsilon=2.0, where=y[1]),
    },
    "class indices, class mask": {
        OPTAX: lambda z, y: optax.losses.softmax_cross_entropy_with_integer_labels(z, y[0], where=y[1]),
        POLY: lambda z, y: optax.losses.poly_loss_cross_entropy(z, one_hot(z, y[0]), epsilon=2.0, where=y[1]),
        "Poly-1": lambda z, y: of_indices(z, y[0], epsilon=2.0, where=y[1]),
    },
    "sigmoid": {
        OPTAX: optax.losses.sigmoid_binary_cross_entropy,
        "optax focal": partial(optax.losses.sigmoid_focal_loss, alpha=0.25, gamma=2.0),
        "Poly-1": partial(sigmoid_poly_cross_entropy, epsilon=2.0),
        "focal": partial(sigmoid_poly_cross_entropy, epsilon=0.0, alpha=0.25, gamma=2.0),
    },
}
SHAPES = [(1024, 1000), (1024, 21843), (512, 50257), (65536, 21)]
SECONDS_A_KIND = 15.0
FEWEST_ROUNDS, MOST_ROUNDS = 9, 300


def step(loss: Loss) -> Any:
    def total(logits: Any, labels: Any) -> Any:
        return (0.125 * loss(logits, labels)).sum()

    return jax.jit(jax.value_and_grad(total))


def kept(loss: Loss, logits: Any, labels: Any) -> int:
    """The bytes that jax.vjp saves for the backward pass, without the arguments."""
    pull = jax.jit(lambda z, y: jax.vjp(lambda z: loss(z, y), z)[1])(logits, labels)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(pull)]
    given = [np.asarray(leaf) for leaf in jax.tree.leaves((logits, labels))]
    return sum(leaf.nbytes for leaf in leaves if not any(np.array_equal(leaf, one) for one in given))


def targets(kind: str, rows: int, classes: int) -> Any:
    random = np.random.default_rng(0)
    labels = jnp.asarray(random.integers(0, classes, rows), "int32")
    if kind == "sigmoid":
        return jnp.asarray(random.random((rows, classes)) < 0.1, "float32")
    if kind.startswith("dense"):
        soft = random.random((rows, classes), "float32")
        labels = jnp.asarray(soft / soft.sum(1, keepdims=True))
    if not kind.endswith("class mask"):
        return labels
    mask = jnp.asarray(random.random((rows, classes), "float32") < 0.9)
    return labels, mask if kind.startswith("dense") else mask.at[jnp.arange(rows), labels].set(True)


def measure(kind: str, rows: int, classes: int) -> list[dict[str, Any]]:
    losses, labels = KINDS[kind], targets(kind, rows, classes)
    logits = jnp.asarray(np.random.default_rng(1).standard_normal((rows, classes), "float32"))
    compiled = {name: step(loss).lower(logits, labels).compile() for name, loss in losses.items()}
    for run in compiled.values():
        jax.block_until_ready(run(logits, labels))
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    start = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > SECONDS_A_KIND:
            break
        if sys.stderr.isatty():
            print(f"\r{kind}, {rows} x {classes}: round {done + 1} ", end="", file=sys.stderr, flush=True)
        names = list(losses)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            # Take the second of two runs: the first has page faults, for memory that the previous loss has freed.
            for _ in range(2):
                began = time.perf_counter()
                jax.block_until_ready(compiled[name](logits, labels))
                taken = time.perf_counter() - began
            seconds[name].append(taken)
    if sys.stderr.isatty():
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)
    results = []
    for name, of_loss in seconds.items():
        ratios = [a / b for a, b in zip(of_loss, seconds[OPTAX], strict=True)]
        other = seconds.get(POLY, seconds.get("optax focal", []))
        low, middle, high = statistics.quantiles(ratios, n=4)
        results.append(
            {
                "kind": kind,
                "rows": rows,
                "classes": classes,
                "loss": name,
                "rounds": len(of_loss),
                "milliseconds": 1e3 * statistics.median(of_loss),
                "time_ratio": middle,
                "time_ratio_quartiles": [low, high],
                "times_as_fast_as_optax_poly": statistics.median(b / a for a, b in zip(of_loss, other, strict=True)),
                "kept_in_logits": kept(losses[name], logits, labels) / logits.nbytes,
                "temporary_in_logits": compiled[name].memory_analysis().temp_size_in_bytes / logits.nbytes,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, type=lambda text: tuple(map(int, text.split("x"))))
    given = parser.parse_args()
    about = machine("cpu") | {"jax": jax.__version__, "optax": optax.__version__, "backend": jax.default_backend()}
    for name, value in about.items():
        print(f"{name + ':':15} {value}")
    print("\nfloat32, value and gradient of the sum times 0.125, jitted")
    print("time: ratio to optax's cross-entropy of the same kind in the same round, median (quartiles)")
    print("speed: how many times as fast as optax's poly loss (sigmoid: focal loss) of the same kind")
    results = []
    for rows, classes in given.shapes:
        for kind in given.kinds:
            title = f"{kind}, {rows} x {classes}"
            print(f"\n{title:42} {'ms':>8}   {'time':^20} {'speed':>6} {'kept':>6} {'temporary':>10}")
            for result in measure(kind, rows, classes):
                low, high = result["time_ratio_quartiles"]
                print(
                    f"    {result['loss']:38} {result['milliseconds']:8.2f}   "
                    f"{result['time_ratio']:5.3f} ({low:5.3f}-{high:5.3f})  "
                    f"{result['times_as_fast_as_optax_poly']:5.2f}x {result['kept_in_logits']:6.2f} "
                    f"{result['temporary_in_logits']:10.2f}"
                )
                results.append(result)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
