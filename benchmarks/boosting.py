"""Times training of XGBoost, LightGBM and CatBoost with our objectives, against their built-in ones.

    pip install imbalance-xgboost bokbokbok     in an environment of its own, for the peers
    python benchmarks/boosting.py --out benchmarks/results/boosting.json

Data sets (DMatrix, Dataset, Pool) are made beforehand; a time is that of training with the library's default trees, and
with no metric but CatBoost's, which always has one. ``epsilon = 0`` finds the same trees as the built-in objective: the
largest difference of two margins says so. Peers are timed where they are installed.
"""

import argparse
import functools
import importlib
import json
import os
import platform
import statistics
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from measuring import interleaved, machine, ratios
from polylosses import focal, poly1
from polylosses.boosting import CatBoostObjective, LightGBMObjective, XGBoostObjective

COLUMNS = 30
LOSSES = {"epsilon = 0": poly1(0.0), "Poly-1, epsilon = 2": poly1(2.0), "focal, gamma = 2": focal(2.0)}
THREADS = os.cpu_count() or 1

# CatBoost asks Python for one row at a time where there are several classes: fewer rows, in the place of 100,000. Each
# training bins its columns anew, which takes as long as 20 rounds of the built-in objective: enough rounds.
FEWER = {("catboost", 5): 5_000}
ROUNDS = {("xgboost", 2): 20, ("xgboost", 5): 10, ("lightgbm", 2): 20, ("lightgbm", 5): 10, ("catboost", 2): 100}

Train = Callable[[], Any]


def table(rows: int, classes: int) -> tuple[Any, Any]:
    """Features and labels of classes that overlap."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    scores = 1.5 * X[:, :classes] + rng.gumbel(size=(rows, classes)) - 0.3 * np.arange(classes)
    return X, scores.argmax(1)


def of_xgboost(X: Any, y: Any, classes: int, rounds: int) -> tuple[dict[str, Train], Callable[[Any], Any]]:
    xgboost = importlib.import_module("xgboost")
    data = xgboost.DMatrix(X, y)
    shared: dict[str, Any] = {"nthread": THREADS, "disable_default_eval_metric": True}
    start = XGBoostObjective(0.0).starting_score(y)
    if classes > 2:
        shared |= {"num_class": classes}
        own = {"objective": "multi:softprob", "base_score": start.tolist()}
    else:
        own = {"objective": "binary:logistic", "base_score": 1 / (1 + np.exp(-start))}
    calls: dict[str, Train] = {"built in": lambda: xgboost.train(shared | own, data, rounds)}
    for name, loss in LOSSES.items():
        objective = XGBoostObjective(polynomial=loss)
        base = objective.starting_score(y)
        parameters = shared | {"base_score": base if classes == 2 else base.tolist()}
        calls[name] = functools.partial(xgboost.train, parameters, data, rounds, obj=objective)
    if classes == 2:
        for name, objective in peers("xgboost").items():
            calls[name] = functools.partial(xgboost.train, shared | {"base_score": 0.0}, data, rounds, obj=objective)
    return calls, lambda model: model.predict(data, output_margin=True)


def of_lightgbm(X: Any, y: Any, classes: int, rounds: int) -> tuple[dict[str, Train], Callable[[Any], Any]]:
    lightgbm = importlib.import_module("lightgbm")
    shared: dict[str, Any] = {"num_threads": THREADS, "verbosity": -1, "metric": "none"}
    if classes > 2:
        shared |= {"num_class": classes}

    def train(objective: Any, start: Any = None) -> Train:
        init = None if start is None else np.tile(start, (len(y), 1)) if classes > 2 else np.full(len(y), start)
        named = shared | {"objective": objective if isinstance(objective, str) else "none"}
        data = lightgbm.Dataset(X, y, init_score=init, free_raw_data=False, params=named).construct()

        def run() -> Any:
            model = lightgbm.train(shared | {"objective": objective}, data, rounds)
            model.start = 0.0 if start is None else start
            return model

        return run

    calls = {"built in": train("binary" if classes == 2 else "multiclass")}
    for name, loss in LOSSES.items():
        objective = LightGBMObjective(polynomial=loss)
        calls[name] = train(objective, objective.starting_score(y))
    if classes == 2:
        calls |= {name: train(objective) for name, objective in peers("lightgbm").items()}
    return calls, lambda model: model.predict(X, raw_score=True) + model.start


def of_catboost(
    X: Any, y: Any, classes: int, rounds: int, threads: int = THREADS
) -> tuple[dict[str, Train], Callable[[Any], Any]]:
    catboost = importlib.import_module("catboost")
    shared: dict[str, Any] = {
        "iterations": rounds,
        "thread_count": threads,
        "verbose": False,
        "allow_writing_files": False,
        "leaf_estimation_method": "Newton",
        "leaf_estimation_iterations": 1,
        "learning_rate": 0.1,
        "bootstrap_type": "No",
        "random_strength": 0,
        "boosting_type": "Plain",
    }

    def train(objective: Any, metric: Any, start: Any) -> Train:
        pool = catboost.Pool(X, y, baseline=np.tile(start, (len(y), 1)) if classes > 2 else np.full(len(y), start))
        own = {} if isinstance(objective, str) or classes == 2 else {"classes_count": classes}

        def run() -> Any:
            model = catboost.CatBoostClassifier(loss_function=objective, eval_metric=metric, **shared, **own).fit(pool)
            model.set_scale_and_bias(1.0, start if classes == 2 else start.tolist())
            return model

        return run

    own = "Logloss" if classes == 2 else "MultiClass"
    calls = {"built in": train(own, own, CatBoostObjective(0.0).starting_score(y))}
    for name, loss in LOSSES.items():
        objective = CatBoostObjective(polynomial=loss)
        calls[name] = train(objective, objective, objective.starting_score(y))
    calls["constants from Python"] = train(Constants(0.0), own, CatBoostObjective(0.0).starting_score(y))
    return calls, lambda model: model.predict(X, prediction_type="RawFormulaVal")


class Constants(CatBoostObjective):
    """What any objective in Python takes at least: it only looks up what it answers."""

    first, second = (np.eye(5) - 0.2).tolist(), (-0.16 * np.eye(5)).tolist()

    def __init__(self, epsilon: float) -> None:
        super().__init__(epsilon)
        self._of_rows: dict[int, Any] = {}

    def calc_ders_range(self, approxes: Any, targets: Any, weights: Any) -> Any:
        """The same for all calls with as many rows; trees are as large as others only if gradients differ."""
        rows = len(targets)
        if rows not in self._of_rows:
            gradient = np.random.default_rng(rows).normal(size=rows)
            self._of_rows[rows] = np.stack([gradient, np.full(rows, -0.25)], axis=1)
        return self._of_rows[rows]

    def calc_ders_multi(self, approxes: Any, target: float, weight: float) -> Any:
        """The same for all rows of a class."""
        return self.first[int(target)], self.second


def peers(library: str) -> dict[str, Any]:
    """Binary focal losses with gamma = 2 that are installed."""
    found: dict[str, Any] = {}
    try:
        objectives = importlib.import_module("bokbokbok.loss_functions.classification")
        found["bokbokbok, focal"] = objectives.WeightedFocalLoss(alpha=1.0, gamma=2.0)
    except ImportError:
        pass
    if library == "xgboost":
        try:
            objective = importlib.import_module("imxgboost.focal_loss").Focal_Binary_Loss(gamma_indct=2.0)
            found["imbalance-xgboost, focal"] = objective.focal_binary_object
        except ImportError:
            pass
    return found


def main() -> None:
    """Measure all, and print a table."""
    warnings.filterwarnings("ignore", module="bokbokbok")  # of overflow
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", default=["xgboost", "lightgbm", "catboost"])
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 5])
    parser.add_argument("--seconds", type=float, default=40.0, help="for each library and number of classes")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    described = machine("cpu")
    for name in ("numpy", "numba", *options.libraries, "imbalance-xgboost", "bokbokbok"):
        for installed in (name, f"{name}-cpu"):
            try:
                described[name] = version(installed)
            except PackageNotFoundError:
                continue
    print(
        f"{described['device']}, {THREADS} threads, {platform.node()}, commit {described['commit']}; {COLUMNS} columns"
    )
    print(f"{'library':18s} {'classes':>7s} {'objective':26s} {'ms a round':>10s} {'of built in':>22s} {'margins':>9s}")
    alone = functools.partial(of_catboost, threads=1)
    makers: dict[str, Any] = {
        "xgboost": of_xgboost,
        "lightgbm": of_lightgbm,
        "catboost": of_catboost,
        "catboost, 1 thread": alone,
    }
    results = []
    for library in [name for name in makers if name.partition(",")[0] in options.libraries]:
        for classes in options.classes:
            which = library.partition(",")[0], classes
            X, y = table(FEWER.get(which, 100_000), classes)
            rounds = ROUNDS.get(which, 10)
            calls, margins = makers[library](X, y, classes, rounds)
            differences = np.abs(margins(calls["epsilon = 0"]()) - margins(calls["built in"]()))
            taken = interleaved(f"{library}, {classes} classes", calls, options.seconds, fewest=5)
            for name in calls:
                low, middle, high = ratios(taken, name, "built in")
                row = {
                    "library": library,
                    "classes": classes,
                    "rows": len(y),
                    "objective": name,
                    "ms": 1e3 * statistics.median(taken[name]) / rounds,
                    "ratio": middle,
                    "low": low,
                    "high": high,
                    "runs": len(taken[name]),
                    "largest_difference": float(differences.max()) if name == "epsilon = 0" else None,
                }
                results.append(row)
                same = f"{row['largest_difference']:9.1e}" if name == "epsilon = 0" else ""
                of_built_in = f"{middle:8.2f} ({low:.2f} to {high:.2f})"
                print(f"{library:18s} {classes:7d} {name:26s} {row['ms']:10.1f} {of_built_in} {same}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": described, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
