"""Compares published focal losses for boosting with this library; writes coming-from-boosting.json and .md.

    python docs/coming_from_boosting.py

Every package ("peer") is installed at the version named below, into a temporary folder and without its dependencies,
and runs with the XGBoost, LightGBM and SciPy of this environment.
"""

import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
from scipy.special import expit

from polylosses import Polynomial, focal
from polylosses.boosting import PolyObjective

HERE = Path(__file__).parent
KEPT = HERE / "coming-from-boosting.json"
PAGE = HERE / "coming-from-boosting.md"

Array = Any
Measured = float | str
Results = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------ the data


class Data:
    """What an objective is given beside the margins."""

    def __init__(self, labels: Array, weight: Array | None = None) -> None:
        self.label, self.weight = labels.astype(np.float32), weight

    def get_label(self) -> Array:
        return self.label

    def get_weight(self) -> Array:
        return np.zeros(0) if self.weight is None else self.weight


def known() -> tuple[Array, Array, Array, Array]:
    """24 rows of two features, the probability of class 1 in each, and 100 labels drawn for each row with its features.

    It is that of benchmarks/boosting_curvature.py.
    """
    X = np.array([(a, b) for a in range(8) for b in range(3)], dtype=float)
    p = expit(1.5 * (np.sin(1.3 * X[:, 0]) + 0.5 * X[:, 1]) - 0.7)
    labels = (np.random.default_rng(0).uniform(size=(24, 100)) < p[:, None]).astype(int).ravel()
    return X, p, np.repeat(X, 100, axis=0), labels


# ------------------------------------------------------------------------------------------------------------ the rows

NEAR, FAR = np.linspace(-4.0, 4.0, 17), np.linspace(-40.0, 40.0, 17)
GRADIENT, FAR_GRADIENT = "gradient, margins of -4 to 4", "gradient, margins of -40 to 40"
CURVATURE, FAR_CURVATURE = "curvature, margins of -4 to 4", "curvature, margins of -40 to 40"
NEGATIVE, START = "negative curvatures, of 34", "starting score, a tenth of class 1"
WEIGHTS, PROBABILITIES, RUNS = "rows of weight 2", "probabilities", "as written above"
ROWS = (GRADIENT, FAR_GRADIENT, CURVATURE, FAR_CURVATURE, NEGATIVE, START, WEIGHTS, PROBABILITIES, RUNS)

# ---------------------------------------------------------------------------------------------------- the peers' losses


@dataclass(frozen=True)
class Loss:
    """A loss of a peer.

    ``call`` gets the folder's import function, margins and data, and returns their gradient and second derivative. Both
    codes train on ``data`` or on ``X`` and ``y``, and predict ``probabilities``. ``reasons`` has, for every row that
    differs, the reason.
    """

    name: str
    library: str
    polynomial: Polynomial
    class_weight: tuple[float, float] | None
    call: Callable[..., tuple[Array, Array]]
    before: str
    after: str
    reasons: dict[str, str]


@dataclass(frozen=True)
class Peer:
    """A published package, and its pip requirements."""

    title: str
    about: str
    requirements: tuple[str, ...]
    losses: tuple[Loss, ...]


def imbalance_focal(load: Any, margins: Array, data: Data) -> Any:
    return load("imxgboost.focal_loss").Focal_Binary_Loss(2.0).focal_binary_object(margins, data)


def imbalance_weighted(load: Any, margins: Array, data: Data) -> Any:
    loss = load("imxgboost.weighted_loss").Weight_Binary_Cross_Entropy(4.0)
    return loss.weighted_binary_cross_entropy(margins, data)


def bokbokbok_focal(load: Any, margins: Array, data: Data) -> Any:
    module = load("bokbokbok.loss_functions.classification")
    return module.WeightedFocalLoss(alpha=1.0, gamma=2.0)(margins, data)


def bokbokbok_weighted(load: Any, margins: Array, data: Data) -> Any:
    return load("bokbokbok.loss_functions.classification").WeightedCrossEntropyLoss(alpha=4.0)(margins, data)


def by_differences(_: Any, margins: Array, data: Data) -> tuple[Array, Array]:
    """Not on a package registry: its formula, and SciPy's central differences, in other words."""
    y, step = data.label, 1e-6

    def loss(z: Array) -> Array:
        p = 1.0 / (1.0 + np.exp(-z))
        of_label = y * p + (1 - y) * (1 - p)
        return -np.where(y == 1, 0.25, 0.75) * (1 - of_label) ** 2 * (y * np.log(p) + (1 - y) * np.log(1 - p))

    up, here, down = loss(margins + step), loss(margins), loss(margins - step)
    return (up - down) / (2 * step), (up - 2 * here + down) / step**2


NOT_A_NUMBER = "where the probability rounds to 1, the logarithm of 0 is multiplied by 0"
LOST = "`1 - p` has no digits left where `p` is near 1, in the float32 of XGBoost"
NEGATIVE_REASON = (
    "it is the second derivative; of a leaf, XGBoost takes a negative sum as 0, and LightGBM divides by it"
)
NO_START = "it starts where the library does, not where the loss is least"
NO_WEIGHTS = "they are not looked at, and nothing says so"
SIGMOID = "the sigmoid of a margin is no probability when the loss isn't cross-entropy"
NO_FEVAL = "`feval` is no argument of `xgboost.train` any more; the objective alone still runs"
OURS_XGBOOST = (
    'booster = xgboost.train({"base_score": objective.starting_score(y)}, data, 100, obj=objective)\n'
    "probabilities = objective.probabilities(booster.predict(test, output_margin=True))"
)

PEERS = (
    Peer(
        "imbalance-xgboost",
        "[jhwjhw0123/Imbalance-XGBoost](https://github.com/jhwjhw0123/Imbalance-XGBoost). A classifier of two classes "
        "around XGBoost. Where it doesn't run, the numbers are of its objectives inside today's XGBoost.",
        ("imbalance-xgboost==0.8.1",),
        (
            Loss(
                "imxgboost.focal_loss.Focal_Binary_Loss",
                "xgboost",
                focal(2.0),
                None,
                imbalance_focal,
                "from imxgboost.imbalance_xgb import imbalance_xgboost\n"
                'model = imbalance_xgboost(special_objective="focal", focal_gamma=2.0, num_round=100)\n'
                "model.fit(X, y)\n"
                "probabilities = model.predict_sigmoid(rows)",
                "from polylosses.boosting import XGBoostObjective\n"
                "objective = XGBoostObjective(epsilon=0.0, gamma=2.0)\n" + OURS_XGBOOST,
                {
                    FAR_GRADIENT: LOST,
                    FAR_CURVATURE: "it divides 0 by 0 where the probability rounds to 1",
                    NEGATIVE: NEGATIVE_REASON,
                    START: NO_START,
                    WEIGHTS: NO_WEIGHTS,
                    PROBABILITIES: SIGMOID,
                    RUNS: NO_FEVAL,
                },
            ),
            Loss(
                "imxgboost.weighted_loss.Weight_Binary_Cross_Entropy",
                "xgboost",
                Polynomial(),
                (1.0, 4.0),
                imbalance_weighted,
                "from imxgboost.imbalance_xgb import imbalance_xgboost\n"
                'model = imbalance_xgboost(special_objective="weighted", imbalance_alpha=4.0, num_round=100)\n'
                "model.fit(X, y)\n"
                "probabilities = model.predict_sigmoid(rows)",
                "from polylosses.boosting import XGBoostObjective\n"
                "objective = XGBoostObjective(epsilon=0.0, class_weight=[1.0, 4.0])\n" + OURS_XGBOOST,
                {FAR_GRADIENT: LOST, START: NO_START, WEIGHTS: NO_WEIGHTS, RUNS: NO_FEVAL},
            ),
        ),
    ),
    Peer(
        "bokbokbok",
        "[orchardbirds/bokbokbok](https://github.com/orchardbirds/bokbokbok). Objectives and metrics of two classes "
        "for XGBoost and LightGBM; measured in XGBoost.",
        ("bokbokbok==1.0.5",),
        (
            Loss(
                "bokbokbok.loss_functions.classification.WeightedFocalLoss",
                "xgboost",
                focal(2.0),
                None,
                bokbokbok_focal,
                "from bokbokbok.loss_functions.classification import WeightedFocalLoss\n"
                "booster = xgboost.train({}, data, 100, obj=WeightedFocalLoss(alpha=1.0, gamma=2.0))\n"
                "probabilities = 1 / (1 + numpy.exp(-booster.predict(test)))",
                "from polylosses.boosting import XGBoostObjective\n"
                "objective = XGBoostObjective(epsilon=0.0, gamma=2.0)\n" + OURS_XGBOOST,
                {
                    FAR_GRADIENT: NOT_A_NUMBER,
                    CURVATURE: "it has `1 - y` in the place of `1 - p`: that of class 1 is 0 everywhere",
                    FAR_CURVATURE: NOT_A_NUMBER,
                    NEGATIVE: NEGATIVE_REASON,
                    START: NO_START,
                    WEIGHTS: NO_WEIGHTS,
                    PROBABILITIES: SIGMOID,
                },
            ),
            Loss(
                "bokbokbok.loss_functions.classification.WeightedCrossEntropyLoss",
                "xgboost",
                Polynomial(),
                (1.0, 4.0),
                bokbokbok_weighted,
                "from bokbokbok.loss_functions.classification import WeightedCrossEntropyLoss\n"
                "booster = xgboost.train({}, data, 100, obj=WeightedCrossEntropyLoss(alpha=4.0))\n"
                "probabilities = 1 / (1 + numpy.exp(-booster.predict(test)))",
                "from polylosses.boosting import XGBoostObjective\n"
                "objective = XGBoostObjective(epsilon=0.0, class_weight=[1.0, 4.0])\n" + OURS_XGBOOST,
                {FAR_GRADIENT: LOST, START: NO_START, WEIGHTS: NO_WEIGHTS},
            ),
        ),
    ),
    Peer(
        "LightGBM-with-Focal-Loss",
        "[jrzaurin/LightGBM-with-Focal-Loss](https://github.com/jrzaurin/LightGBM-with-Focal-Loss) on GitHub only, and "
        "many copies of it. Both derivatives are differences of the loss, by `scipy.misc.derivative`, which SciPy has "
        "removed; the numbers come from the same differences, which the script writes down in other words.",
        (),
        (
            Loss(
                "focal_loss_lgb",
                "lightgbm",
                focal(2.0),
                (0.75, 0.25),
                by_differences,
                "from scipy.misc import derivative\n"
                "# and focal_loss_lgb, with alpha=0.25 and gamma=2\n"
                'booster = lightgbm.train({"objective": focal_loss_lgb}, data, 100)\n'
                "probabilities = 1 / (1 + numpy.exp(-booster.predict(rows)))",
                "from polylosses.boosting import LightGBMObjective\n"
                "objective = LightGBMObjective(epsilon=0.0, gamma=2.0, class_weight=[0.75, 0.25])\n"
                "start = objective.starting_score(y)\n"
                "data.set_init_score(numpy.full(len(y), start))\n"
                'booster = lightgbm.train({"objective": objective, "verbosity": -1}, data, 100)\n'
                "probabilities = objective.probabilities(booster.predict(rows) + start)",
                {
                    FAR_GRADIENT: NOT_A_NUMBER,
                    CURVATURE: "the second difference of a step of 1e-6 keeps two digits",
                    FAR_CURVATURE: NOT_A_NUMBER,
                    NEGATIVE: NEGATIVE_REASON,
                    START: NO_START,
                    WEIGHTS: NO_WEIGHTS,
                    PROBABILITIES: SIGMOID,
                    RUNS: "SciPy has removed `derivative`",
                },
            ),
        ),
    ),
)

# ------------------------------------------------------------------------------------------------------------ measuring


def objective_of(loss: Loss, **options: Any) -> PolyObjective:
    return PolyObjective(polynomial=loss.polynomial, class_weight=loss.class_weight, **options)


def exact(loss: Loss, margins: Array) -> tuple[Array, Array]:
    """Both derivatives for the labels 0 and then 1, by 60 digits."""
    weight = loss.class_weight or (1.0, 1.0)

    def of(y: int, order: int, z: float) -> float:
        def value(x: Any) -> Any:
            p = 1 / (1 + mp.exp(-x if y else x))
            return -weight[y] * (1 - p) ** mp.mpf(loss.polynomial.gamma) * mp.log(p)

        return float(mp.diff(value, mp.mpf(z), order))

    with mp.workdps(60):
        first, second = (np.array([of(y, order, z) for y in (0, 1) for z in margins]) for order in (1, 2))
    return first, second


def derivatives(loss: Loss, call: Callable[..., Any], margins: Array, weight: Array | None = None) -> Any:
    """In the dtype that the library has margins in, for the labels 0 and then 1."""
    both = np.tile(margins, 2).astype(np.float32 if loss.library == "xgboost" else np.float64)
    labels = np.repeat([0, 1], len(margins))
    with np.errstate(all="ignore"):
        first, second = call(both, Data(labels, weight))
    return np.asarray(first, float), np.asarray(second, float)


def of_derivatives(loss: Loss, call: Callable[..., Any], least: float) -> Results:
    """The rows about derivatives. ``least`` is what a negative curvature should be: 0, or -inf for itself."""
    found: Results = {}
    for margins, gradient, curvature in ((NEAR, GRADIENT, CURVATURE), (FAR, FAR_GRADIENT, FAR_CURVATURE)):
        first, second = derivatives(loss, call, margins)
        right, right_second = exact(loss, margins)
        right_second = np.maximum(right_second, least)
        least_normal = np.finfo(np.float32 if loss.library == "xgboost" else np.float64).tiny
        found[gradient] = number(np.max(np.abs(first - right) / np.maximum(np.abs(right), least_normal)))
        found[curvature] = number(np.max(np.abs(second - right_second)) / np.abs(right_second).max())
    found[NEGATIVE] = int((derivatives(loss, call, NEAR)[1] < 0).sum())
    twice = derivatives(loss, call, NEAR, np.full(34, 2.0))[0] / derivatives(loss, call, NEAR)[0]
    found[WEIGHTS] = number(twice.mean())
    return found


def number(value: Any) -> Measured:
    return float(value) if math.isfinite(value) else str(float(value))


def train(loss: Loss, objective: Any, start: float | None) -> Array:
    """The margins of the 24 rows after 100 rounds; ``start`` None for the library's own."""
    X, _, rows, labels = known()
    library = import_module(loss.library)
    if loss.library == "xgboost":
        options = {"nthread": 1} | ({} if start is None else {"base_score": start})
        booster = library.train(options, library.DMatrix(rows, labels), 100, obj=objective)
        return booster.predict(library.DMatrix(X), output_margin=True)
    options = {"objective": objective, "verbosity": -1, "num_threads": 1}
    init = None if start is None else np.full(len(labels), start)
    booster = library.train(options, library.Dataset(rows, labels, init_score=init), 100)
    return booster.predict(X) + (start or 0.0)


def error(loss: Loss, probabilities: Array) -> Measured:
    """The root mean square error; class weights stand for more rows of a class."""
    _, p, *_ = known()
    none, one = loss.class_weight or (1.0, 1.0)
    return number(np.sqrt(np.mean((probabilities - one * p / (one * p + none * (1 - p))) ** 2)))


TENTH = np.repeat([0, 1], [90, 10])


def measure_ours(loss: Loss) -> Results:
    """All but the rows that need the boosting library."""
    objective = objective_of(loss, curvature="exact")

    def call(margins: Array, data: Data) -> Any:
        return objective.derivatives(margins, data.label, data.weight)

    return of_derivatives(loss, call, 0.0) | {START: objective.starting_score(TENTH)}


def trained_ours(loss: Loss) -> Results:
    objective: Any = objective_of(loss)

    def call(margins: Array, data: Any) -> Any:
        return objective.derivatives(margins, data.get_label())

    margins = train(loss, call, objective.starting_score(known()[3]))
    return {PROBABILITIES: error(loss, objective.probabilities(margins)), RUNS: execute(loss, loss.after)}


def measure_theirs(loss: Loss, load: Any) -> Results:
    def call(margins: Array, data: Any) -> Any:
        return loss.call(load, margins, data)

    found = of_derivatives(loss, call, -math.inf)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = import_module(loss.library)
        if loss.library == "xgboost":
            data = library.DMatrix(np.zeros((100, 1)), TENTH)
            none = library.train({"base_score": None}, data, 0, obj=call)
            found[START] = float(none.predict(data, output_margin=True)[0])
        else:
            found[START] = 0.0  # LightGBM's, of a custom objective
        try:
            found[PROBABILITIES] = error(loss, expit(train(loss, lambda m, d: call(m, labelled(d)), None)))
        except Exception as problem:
            found[PROBABILITIES] = first_line(problem)
        found[RUNS] = execute(loss, loss.before)
    return found


def labelled(data: Any) -> Data:
    return Data(data.get_label())


def execute(loss: Loss, code: str) -> str:
    """Runs the code of the page: "runs", or the first line of the error."""
    X, _, rows, labels = known()
    library = import_module(loss.library)
    kind = library.DMatrix if loss.library == "xgboost" else library.Dataset
    names = {loss.library: library, "numpy": np, "data": kind(rows, labels), "X": rows, "y": labels, "rows": X}
    if loss.library == "xgboost":
        names["test"] = library.DMatrix(X)
    try:
        exec(code, names)
    except Exception as problem:
        return first_line(problem)
    return "runs"


def first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).splitlines()[0].partition(' (')[0]}"


# ------------------------------------------------------------------------------------------------------------- the page


def run() -> Results:
    """Installs the peers, and measures their losses and ours."""
    measured: Results = {}
    versions = {name: import_module(name).__version__ for name in ("xgboost", "lightgbm", "scipy")}
    for peer in PEERS:
        with tempfile.TemporaryDirectory() as folder:
            if peer.requirements:
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
                subprocess.run([*pip, *peer.requirements], check=True)
            sys.path.append(folder)
            for loss in peer.losses:
                theirs, ours = measure_theirs(loss, import_module), measure_ours(loss) | trained_ours(loss)
                measured[loss.name] = {row: {"theirs": theirs[row], "ours": ours[row]} for row in ROWS}
            sys.path.remove(folder)
    return {"versions": versions, "losses": measured}


def differs(row: str, theirs: Measured, ours: Measured) -> bool:
    """Errors differ if theirs is above a thousandth, and a twentieth above ours; what is no error, if it's another."""
    if isinstance(theirs, str) or isinstance(ours, str):
        return theirs != ours
    if row in (NEGATIVE, START, WEIGHTS):
        return abs(theirs - ours) > 1e-6
    return theirs > max(1e-3, 1.05 * ours)


def page(results: Results) -> str:
    versions = results["versions"]
    parts = [
        "# Coming from another focal loss for boosting",
        "What to write instead, and what changes. `python docs/coming_from_boosting.py` installs every peer at the "
        "version named here, runs it beside this library, with XGBoost "
        f"{versions['xgboost']}, LightGBM {versions['lightgbm']} and SciPy {versions['scipy']}, and writes this page. "
        "Tests recompute our numbers and run our code. [Gradient boosting](boosting.md) explains what is different.",
        "## Reading the tables",
        "*Gradient* is the largest relative error of 17 margins with both labels, against 60 digits; *curvature* is "
        "the largest error, relative to the largest second derivative. Margins are in float32 for XGBoost, in float64 "
        'for LightGBM. Ours is `curvature="exact"` there: the second derivative, with 0 for what is negative. '
        "*Starting score*: a tenth of the labels are 1. *Rows of weight 2*: the factor of their gradient. "
        "*Probabilities*: the root mean square error after 100 rounds on 2,400 rows whose probabilities are known, "
        "with class weights as more rows of a class. *As written above*: what becomes of the code.",
    ]
    for peer in PEERS:
        installed = f" Installed: `{' '.join(peer.requirements)}`." if peer.requirements else ""
        parts += [f"## {peer.title}", peer.about + installed]
        for loss in peer.losses:
            lines = [f"-{line}" for line in loss.before.splitlines()] + [f"+{line}" for line in loss.after.splitlines()]
            parts += [f"### {loss.name}", "\n".join(["```diff", *lines, "```"]), table(results["losses"][loss.name])]
            parts.append("\n".join(f"* {row}: {reason}." for row, reason in loss.reasons.items()))
    return "\n\n".join(parts) + "\n"


def table(rows: dict[str, dict[str, Measured]]) -> str:
    lines = ["| | theirs | ours |", "| --- | --- | --- |"]
    for row, of in rows.items():
        theirs = f"**{shown(of['theirs'])}**" if differs(row, of["theirs"], of["ours"]) else shown(of["theirs"])
        lines.append(f"| {row} | {theirs} | {shown(of['ours'])} |")
    return "\n".join(lines)


def shown(value: Measured) -> str:
    if isinstance(value, str):
        return value if value in ("nan", "runs") else f"`{value}`"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


if __name__ == "__main__":
    found = run()
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print("wrote", KEPT.name, "and", PAGE.name)
