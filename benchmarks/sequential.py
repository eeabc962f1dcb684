"""Simulates the confirmation of studies: how often its verdict is false, how often a difference is found, with how
many seeds.

    python benchmarks/sequential.py --out benchmarks/results/sequential.json

For every law of the paired differences, 20,000 studies of at most 20 seeds without a difference, with the one that a
fixed design of 20 seeds sees with a power of 0.8, and with twice that.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from measuring import machine
from polylosses.tune import sequential

SEEDS, ROWS = 20, 100

Law = Callable[[np.random.Generator], np.ndarray]

# Differences with mean 0. Those of rows are for each seed and row: of the seed, of the row, and of both.
LAWS: dict[str, Law] = {
    "normal": lambda rng: rng.normal(size=SEEDS),
    "skewed (gamma, skewness 1)": lambda rng: rng.gamma(4, 1, SEEDS) - 4,
    "very skewed (exponential)": lambda rng: rng.exponential(1, SEEDS) - 1,
    "difference of skewed (exponential)": lambda rng: rng.exponential(1, SEEDS) - rng.exponential(1, SEEDS),
    "heavy tails (t, 3 degrees)": lambda rng: rng.standard_t(3, SEEDS),
    "discrete (accuracy on 100 rows)": lambda rng: (
        (rng.binomial(100, 0.9, SEEDS) - rng.binomial(100, 0.9, SEEDS)) / 100
    ),
    "tied (+1, -1 or, mostly, 0)": lambda rng: rng.choice([-1.0, 1.0, *[0.0] * 6], SEEDS),
    "rows matter little": lambda rng: of_rows(rng, 1.0, 0.5, 1.0),
    "rows matter as much as seeds": lambda rng: of_rows(rng, 0.5, 1.0, 1.0),
    "rows matter more": lambda rng: of_rows(rng, 0.1, 1.0, 0.3),
}


def of_rows(rng: np.random.Generator, by_seed: float, by_row: float, by_both: float) -> np.ndarray:
    """Differences of seeds and rows; these are normal."""
    seeds, rows = by_seed * rng.normal(size=(SEEDS, 1)), by_row * rng.normal(size=(1, ROWS))
    return np.asarray(seeds + rows + by_both * rng.normal(size=(SEEDS, ROWS)))


def simulated(law: str, difference: float, studies: int, fixed: bool) -> tuple[float, float]:
    """The share of studies with a verdict, and their mean number of seeds."""
    rng = np.random.default_rng(2022)
    found = [sequential.confirm(LAWS[law](rng) + difference, SEEDS, fixed=fixed) for _ in range(studies)]
    verdicts = [not one.low <= 0 <= one.high for one in found]
    return float(np.mean(verdicts)), float(np.mean([one.looks[-1].seeds for one in found]))


def smallest(law: str) -> float:
    """The difference that a fixed design sees with a power of 0.8, by bisection."""
    low, high = 0.0, 6.0 * float(np.std([LAWS[law](np.random.default_rng(k)).mean() for k in range(1000)]))
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if simulated(law, middle, 2000, fixed=True)[0] < 0.8 else (low, middle)
    return high


def row(arguments: tuple[str, int]) -> dict[str, Any]:
    """All numbers of a law."""
    law, studies = arguments
    effect = smallest(law)
    false, seeds_without = simulated(law, 0.0, studies, fixed=False)
    power, seeds_at = simulated(law, effect, studies, fixed=False)
    power_of_twice, seeds_at_twice = simulated(law, 2 * effect, studies, fixed=False)
    return {
        "law": law,
        "false verdicts": false,
        "seeds without a difference": seeds_without,
        "power": power,
        "seeds at the smallest difference": seeds_at,
        "power at twice that": power_of_twice,
        "seeds at twice that": seeds_at_twice,
        "false verdicts, fixed": simulated(law, 0.0, studies, fixed=True)[0],
        "power, fixed": simulated(law, effect, studies, fixed=True)[0],
    }


def main() -> None:
    """Simulate all laws, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    start = time.monotonic()
    print(f"{'':36s} false  seeds   power  seeds   twice  seeds   fixed: false  power")
    rows = []
    with multiprocessing.Pool() as pool:
        for one in pool.imap(row, [(law, options.studies) for law in LAWS]):
            rows.append(one)
            law, false, seeds, power, seeds_at, twice, seeds_at_twice, false_fixed, power_fixed = one.values()
            print(
                f"{law:36s} {false:5.3f}  {seeds:5.2f}   {power:5.3f}  {seeds_at:5.2f}   {twice:5.3f}  "
                f"{seeds_at_twice:5.2f}          {false_fixed:5.3f}  {power_fixed:5.3f}",
                flush=True,
            )
    if options.out:
        found = {"machine": machine("cpu"), "studies": options.studies, "most seeds": SEEDS, "laws": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{options.studies} studies each, in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
