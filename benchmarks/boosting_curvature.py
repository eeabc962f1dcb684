"""Compares the curvatures that boosting can divide by, on data sets and for losses, and the posterior with the truth.

    python benchmarks/boosting_curvature.py --out benchmarks/results/boosting_curvature.json

All trainings with a loss in a library on a data set start from the same score and see the same rows; they differ in the
curvature alone. Two of them are no options of the objectives:

* "gradient": the gradient's absolute value, which XGBoost takes for a softmax from its pull request 12537 on. Elsewhere
  it is halved, so that for cross-entropy it is what the library divides by on average, as it is there.
* "second derivative": the expected one alone, where "expected" is the larger of it and half the expected gradient.

A held-out log loss is that of the posterior.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost
import lightgbm
import numpy as np
import pandas
import sklearn
import xgboost
from scipy.special import expit, softmax
from sklearn import datasets
from sklearn.model_selection import train_test_split

from measuring import machine
from polylosses import Polynomial, focal, poly1, poly1_focal, symmetric_cross_entropy, taylor_cross_entropy
from polylosses.boosting import CatBoostObjective, LightGBMObjective, PolyObjective, XGBoostObjective
from polylosses.boosting.derivatives import _second_derivative, _spread
from polylosses.boosting.derivatives import softmax as softmax_of

Array = np.ndarray

LOSSES: dict[str, Polynomial] = {
    "Poly-1, epsilon -0.5": poly1(-0.5),
    "Poly-1, epsilon 2": poly1(2.0),
    "Poly-1, epsilon 5": poly1(5.0),
    "focal, gamma 2": focal(2.0),
    "Poly-1 focal, epsilon 1": poly1_focal(1.0),
    "symmetric cross-entropy": symmetric_cross_entropy(),
    "Taylor cross-entropy, order 6": taylor_cross_entropy(6),
}
CURVATURES = ("cross-entropy", "exact", "expected", "gradient", "second derivative")
OPTIONS = {"gradient": "exact", "second derivative": "expected"}
ROUNDS, RATE = 50, 0.3
WORST = 10.0  # a log loss above counts as this

# ------------------------------------------------------------------------------------------------------------ data sets


def openml(file: str, label: str, leave_out: tuple[str, ...] = (), quote: str = '"') -> tuple[Array, Array]:
    """A data set of OpenML that scikit-learn's wheel has for its tests. Categories are numbered."""
    path = Path(sklearn.__file__).parent / "datasets" / "tests" / "data" / "openml" / file
    text = gzip.decompress(path.read_bytes()).decode()
    head, _, body = text.partition("@data" if "@data" in text else "@DATA")
    names = [line.split()[1].strip("'") for line in head.splitlines() if line.lower().startswith("@attribute")]
    table = pandas.read_csv(io.StringIO(body.strip()), names=names, quotechar=quote, na_values=["?"], comment="%")
    y = pandas.factorize(table[label], sort=True)[0]
    table = table.drop(columns=[label, *leave_out])
    for name in table.columns[[not pandas.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]:
        table[name] = pandas.factorize(table[name], sort=True)[0]
    return table.to_numpy(float), y


def titanic() -> tuple[Array, Array]:
    # The lifeboat and the body's number tell who survived.
    left_out = ("name", "ticket", "cabin", "boat", "body", "home.dest")
    return openml("id_40945/data-v1-dl-16826755.arff.gz", "survived", left_out)


def diabetes() -> tuple[Array, Array]:
    X, y = datasets.load_diabetes(return_X_y=True)
    return X, (y > np.median(y)).astype(int)


def hastie() -> tuple[Array, Array]:
    X, y = datasets.make_hastie_10_2(2000, random_state=0)
    return X, (y > 0).astype(int)


def mislabelled() -> tuple[Array, Array]:
    X, y = hastie()
    return X, np.where(np.random.default_rng(0).uniform(size=len(y)) < 0.2, 1 - y, y)


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "breast cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
    "diabetes, above the median": diabetes,
    "titanic": titanic,
    "king-rook against king-pawn": lambda: openml("id_3/data-v1-dl-3.arff.gz", "class", quote="'"),
    "glass": lambda: openml("id_40675/data-v1-dl-4965250.arff.gz", "class"),
    "Hastie": hastie,
    "Hastie, a fifth mislabelled": mislabelled,
    "a twentieth of class 1": lambda: datasets.make_classification(
        2000, weights=[0.95], flip_y=0.02, n_informative=6, random_state=0
    ),
    "iris": lambda: datasets.load_iris(return_X_y=True),
    "wine": lambda: datasets.load_wine(return_X_y=True),
    "penguins": lambda: openml("id_42585/data-v1-dl-21854866.arff.gz", "species"),
    "digits": lambda: datasets.load_digits(return_X_y=True),
    "4 quantiles of a Gaussian": lambda: datasets.make_gaussian_quantiles(
        n_samples=1500, n_features=5, n_classes=4, random_state=0
    ),
    "5 classes, a fifth mislabelled": lambda: datasets.make_classification(
        1500, n_classes=5, n_informative=8, flip_y=0.2, weights=[0.5, 0.2, 0.15, 0.1], random_state=0
    ),
}

# ------------------------------------------------------------------------------------------------------------- training


class Curves:
    """The training loss and the held-out log loss after every round, as a metric of XGBoost and LightGBM."""

    def __init__(self, objective: PolyObjective, held_out: Any) -> None:
        self.objective, self.held_out = objective, held_out
        self.training: list[float] = []
        self.log_loss: list[float] = []
        self.margins = np.zeros(0)  # held-out ones, of the last round

    def __call__(self, margins: Array, data: Any) -> tuple[str, float, bool]:
        margins, labels = np.asarray(margins, float), data.get_label().astype(int)
        return "", self.add(margins, labels, data is self.held_out), False

    def add(self, margins: Array, labels: Array, held_out: bool) -> float:
        if held_out:
            self.log_loss.append(self.objective.log_loss(margins, labels))
            self.margins = margins
        else:
            both = np.stack([np.zeros(len(margins)), margins], 1) if margins.ndim == 1 else margins
            logp = (both - np.logaddexp.reduce(both, axis=1, keepdims=True))[np.arange(len(labels)), labels]
            self.training.append(float(np.mean(self.objective.polynomial.value(logp, -np.expm1(logp)))))
        return 0.0


def derivatives(objective: Any, curvature: str, scale: float) -> Any:
    """The objective, also with the curvatures that it doesn't have."""

    def of_the_gradient(margins: Array, data: Any) -> tuple[Array, Array]:
        first, _ = objective(margins, data)
        if curvature == "gradient":
            return first, scale * np.abs(first)
        both = np.stack([np.zeros(len(margins)), margins], 1) if margins.ndim == 1 else margins
        at = softmax_of(both.T)
        second = _second_derivative(_spread(objective.polynomial, at)[0], at).T
        return first, 2 * scale * (second[:, 1] if margins.ndim == 1 else second)

    return of_the_gradient if curvature in OPTIONS else objective


def start_of(loss: Polynomial, labels: Array) -> Any:
    """The loss's own starting score, or cross-entropy's, where it has none."""
    try:
        return PolyObjective(polynomial=loss).starting_score(labels)
    except ValueError:
        return PolyObjective(0.0).starting_score(labels)


def with_xgboost(rows: tuple[Any, ...], loss: Polynomial, start: Any, curvature: str) -> Curves:
    X, test, y, labels = rows
    classes = y.max() + 1
    objective = XGBoostObjective(polynomial=loss, curvature=OPTIONS.get(curvature, curvature))
    fitted, held_out = xgboost.DMatrix(X, y), xgboost.DMatrix(test, labels)
    curves = Curves(objective, held_out)
    parameters = {
        "base_score": start if classes == 2 else start.tolist(),
        "disable_default_eval_metric": True,
        "eta": RATE,
        "max_depth": 4,
        "nthread": 1,
        "seed": 0,
    }
    if classes > 2:
        parameters["num_class"] = int(classes)
    xgboost.train(
        parameters,
        fitted,
        ROUNDS,
        evals=[(fitted, "train"), (held_out, "test")],
        obj=derivatives(objective, curvature, 0.5 if classes == 2 else 1.0),
        custom_metric=lambda margins, data: curves(margins, data)[:2],
        verbose_eval=False,
    )
    return curves


def with_lightgbm(rows: tuple[Any, ...], loss: Polynomial, start: Any, curvature: str) -> Curves:
    X, test, y, labels = rows
    classes = y.max() + 1
    objective = LightGBMObjective(polynomial=loss, curvature=OPTIONS.get(curvature, curvature))
    init = [np.full(len(of), start) if classes == 2 else np.tile(start, (len(of), 1)) for of in (y, labels)]
    fitted = lightgbm.Dataset(X, y, init_score=init[0])
    held_out = lightgbm.Dataset(test, labels, init_score=init[1], reference=fitted)
    curves = Curves(objective, held_out)
    parameters = {
        "objective": derivatives(objective, curvature, 0.5 if classes == 2 else 0.5 * classes / (classes - 1)),
        "learning_rate": RATE,
        "num_leaves": 15,
        "num_threads": 1,
        "deterministic": True,
        "verbosity": -1,
        "metric": "none",
    }
    if classes > 2:
        parameters["num_class"] = int(classes)
    lightgbm.train(parameters, fitted, ROUNDS, valid_sets=[fitted, held_out], feval=curves)
    return curves


def with_catboost(rows: tuple[Any, ...], loss: Polynomial, start: Any, curvature: str) -> Curves:
    X, test, y, labels = rows
    classes = y.max() + 1
    objective = CatBoostObjective(polynomial=loss, curvature=curvature)
    model = catboost.CatBoostClassifier(
        iterations=ROUNDS,
        learning_rate=RATE,
        depth=4,
        loss_function=objective,
        eval_metric="Logloss" if classes == 2 else "MultiClass",
        leaf_estimation_method="Newton",
        thread_count=1,
        random_seed=0,
        verbose=False,
        allow_writing_files=False,
        **({} if classes == 2 else {"classes_count": int(classes)}),
    )
    model.fit(catboost.Pool(X, y, baseline=np.full(len(y), start) if classes == 2 else np.tile(start, (len(y), 1))))
    curves = Curves(objective, None)
    for data, of in ((X, y), (test, labels)):
        for margins in model.staged_predict(data, prediction_type="RawFormulaVal"):
            curves.add(np.asarray(margins) + start, of, of is labels)
    return curves


LIBRARY_MODULES = {"xgboost": xgboost, "lightgbm": lightgbm, "catboost": catboost, "scikit-learn": sklearn}
LIBRARIES = {"XGBoost": with_xgboost, "LightGBM": with_lightgbm, "CatBoost": with_catboost}


def curves_of(library: str, data: str) -> list[dict[str, Any]]:
    """All trainings in a library on a data set."""
    X, y = DATA[data]()
    rows = train_test_split(
        X, y, train_size=min(500, len(y) // 2), test_size=min(1000, len(y) // 2), stratify=y, random_state=0
    )
    found = []
    for name, loss in LOSSES.items():
        start = start_of(loss, rows[2])
        for curvature in CURVATURES:
            if library == "CatBoost" and curvature in OPTIONS:
                continue
            curves = LIBRARIES[library](rows, loss, start, curvature)
            rises = np.diff(curves.training) > 0.01 * abs(curves.training[0])
            log_loss = np.minimum(np.nan_to_num(curves.log_loss, nan=WORST), WORST)
            found.append(
                {
                    "library": library,
                    "data": data,
                    "loss": name,
                    "curvature": curvature,
                    "log_loss": log_loss.tolist(),
                    "rises": bool(rises.any() or not np.isfinite(curves.training).all()),
                }
            )
    return found


def summary(trainings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every library, loss and curvature, what all data sets say; and the same of all losses."""
    of = {tuple(one[key] for key in ("library", "data", "loss", "curvature")): one for one in trainings}
    found = []
    for library in dict.fromkeys(one["library"] for one in trainings):
        for loss in (*LOSSES, "all"):
            for curvature in CURVATURES:
                mine = [k for k in of if (k[0], k[3]) == (library, curvature) and loss in (k[2], "all")]
                if not mine:
                    continue
                curves = [np.array(of[k]["log_loss"]) for k in mine]
                others = [np.array(of[(*k[:3], "expected")]["log_loss"]) for k in mine]
                goals = [min(of[(*k[:3], "cross-entropy")]["log_loss"]) for k in mine]
                to_goal = [
                    int(np.argmax(c <= goal)) + 1 for c, goal in zip(curves, goals, strict=True) if (c <= goal).any()
                ]
                best = np.log([c.min() / other.min() for c, other in zip(curves, others, strict=True)])
                final = np.log([c[-1] / other[-1] for c, other in zip(curves, others, strict=True)])
                found.append(
                    {
                        "library": library,
                        "loss": loss,
                        "curvature": curvature,
                        "best": float(np.exp(best.mean())),
                        "final": float(np.exp(final.mean())),
                        "better": int((best < -1e-4).sum()),
                        "worse": int((best > 1e-4).sum()),
                        "reached": len(to_goal) / len(mine),
                        "rounds": float(np.median(to_goal)) if to_goal else None,
                        "rises": sum(of[k]["rises"] for k in mine),
                        "trainings": len(mine),
                    }
                )
    return found


# ---------------------------------------------------------------------------------------------------------- known truth


def errors(library: str, classes: int) -> list[dict[str, Any]]:
    """How far posterior and softmax are from the probabilities that labels were drawn from, by cross-entropy's error.

    24 rows of two features, 100 labels for each.
    """
    X = np.array([(a, b) for a in range(8) for b in range(3)], dtype=float)
    wave = np.sin(1.3 * X[:, 0]) + 0.5 * X[:, 1]
    p = softmax(np.stack([1.5 * k * wave - 0.7 * k**2 for k in range(classes)], axis=1), axis=1)
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.choice(classes, 100, p=row) for row in p])
    rows = np.repeat(X, 100, axis=0), X, labels, np.zeros(len(X), int)

    def error(found: Array) -> float:
        return float(np.sqrt(np.mean((found - (p if classes > 2 else p[:, 1])) ** 2)))

    found = []
    for name, loss in {"cross-entropy": Polynomial(), **LOSSES}.items():
        curves = LIBRARIES[library](rows, loss, start_of(loss, labels), "expected")
        margins = curves.margins
        plain = softmax(margins, axis=1) if classes > 2 else expit(margins)
        of = {"posterior": error(curves.objective.probabilities(margins)), "softmax": error(plain)}
        found.append({"library": library, "classes": classes, "loss": name, **of})
    return found


def run(task: tuple[Callable[..., list[dict[str, Any]]], str, Any]) -> tuple[str, list[dict[str, Any]]]:
    function, *arguments = task
    return function.__name__, function(*arguments)


def main() -> None:
    """Measure everything, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    begin = time.monotonic()
    described = machine("cpu") | {name: module.__version__ for name, module in LIBRARY_MODULES.items()}
    tasks: list[Any] = [(curves_of, library, data) for library in LIBRARIES for data in reversed(DATA)]
    tasks += [(errors, library, classes) for library in LIBRARIES for classes in (2, 4)]
    trainings: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    with multiprocessing.Pool(2) as pool:
        for done, (name, rows) in enumerate(pool.imap_unordered(run, tasks), start=1):
            (trainings if name == "curves_of" else known).extend(rows)
            print(f"{done} of {len(tasks)}, {time.monotonic() - begin:.0f} s", flush=True)
    table = summary(trainings)
    for row in table:
        print(*(f"{value:.3f}" if isinstance(value, float) else value for value in row.values()), sep="  ")
    for row in known:
        print(*(f"{value:.4f}" if isinstance(value, float) else value for value in row.values()), sep="  ")
    if options.out:
        sizes = {name: [len(y), len(np.unique(y))] for name, (_, y) in ((name, make()) for name, make in DATA.items())}
        found = {"machine": described, "rounds": ROUNDS, "rate": RATE, "data": sizes, "results": table, "known": known}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
