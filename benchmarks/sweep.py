"""Times the batched training of `polylosses tune` against the same models trained one after another.

    python benchmarks/sweep.py [--out results.json]

Rounds alternate between the two, and ratios are taken within rounds. Results are medians over rounds.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measuring import machine
from polylosses import poly1
from polylosses.torch import PolyCrossEntropyLoss
from polylosses.tune import batched, load
from polylosses.tune.data import check, encode

REPEATS = 3
EPSILONS = [-1.0, 0.0, 1.0, 2.0, 5.0]
RATES = [0.001, 0.003, 0.01, 0.03]
ROUNDS = 3


def one_after_another(X: Tensor, y: Tensor, classes: int, arms: list[tuple[float, float]]) -> None:
    """A plain training loop, with torch's module, optimizer and learning rate schedule."""
    for repeat in range(REPEATS):
        for epsilon, rate in arms:
            model = batched.network(X.shape[1], classes, repeat)
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
            loss = PolyCrossEntropyLoss(epsilon=epsilon)
            epochs = batched.epochs_for(len(X))
            steps = epochs * math.ceil(len(X) / batched.BATCH_ROWS)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps - 1)
            for epoch in range(epochs):
                for rows in torch.split(batched.order(len(X), epoch, repeat), batched.BATCH_ROWS):
                    optimizer.zero_grad()
                    loss(model(X[rows]), y[rows]).backward()
                    optimizer.step()
                    schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    out: Path | None = parser.parse_args().out
    frame, labels, names, *_ = check(*load("digits"), 8)
    rows = np.arange(943)
    X = torch.tensor(encode(frame).split(rows, rows)[0])
    y = torch.tensor(labels)[:943]
    arms = [(epsilon, rate) for epsilon in EPSILONS for rate in RATES]

    together: list[float] = []
    alone: list[float] = []
    for number in range(ROUNDS):
        print(f"\rround {number + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        start = time.perf_counter()
        batched.train(
            X.expand(REPEATS, -1, -1),
            y.expand(REPEATS, -1),
            len(names),
            [poly1(epsilon) for epsilon, _ in arms],
            [rate for _, rate in arms],
            list(range(REPEATS)),
        )
        middle = time.perf_counter()
        one_after_another(X, y, len(names), arms)
        together.append(middle - start)
        alone.append(time.perf_counter() - middle)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)

    found: dict[str, Any] = {
        "models": REPEATS * len(arms),
        "steps": batched.epochs_for(len(X)) * math.ceil(len(X) / batched.BATCH_ROWS),
        "seconds_batched": statistics.median(together),
        "seconds_one_after_another": statistics.median(alone),
        "ratio": statistics.median(b / a for a, b in zip(together, alone, strict=True)),
    }
    about = machine("cpu")
    for name, value in (about | found).items():
        print(f"{name + ':':27} {value:.3g}" if isinstance(value, float) else f"{name + ':':27} {value}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": about, "results": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
