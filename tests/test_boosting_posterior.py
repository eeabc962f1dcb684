"""Data drawn from known probabilities: what boosting converges to has a posterior that is these probabilities."""

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from cases import CATALOGUE, HARD, Array
from polylosses import Polynomial, cross_entropy
from polylosses.boosting import CatBoostObjective, LightGBMObjective, PolyObjective, XGBoostObjective

# The minimum of the mean absolute error is at infinity, whatever the frequencies.
LOSSES = {name: loss for name, loss in {**CATALOGUE, **HARD}.items() if name not in ("nothing", "mean_absolute_error")}

# The frequencies of the classes in some cells. Those of a loss without a logarithm are bounded: the first are within.
BINARY = np.array([[0.45, 0.55], [0.58, 0.42], [0.9, 0.1], [0.02, 0.98]])
FOUR = np.array([[0.22, 0.26, 0.24, 0.28], [0.1, 0.2, 0.3, 0.4], [0.02, 0.9, 0.05, 0.03]])


def minimizer(objective: PolyObjective, frequencies: Array) -> Array:
    """The margins that minimize the loss in a cell, by Newton's steps, which the size of the gradient keeps short."""
    classes = len(frequencies)
    margins = np.zeros(1 if classes == 2 else classes)
    for _ in range(20_000):
        rows = np.repeat(margins, 2) if classes == 2 else np.tile(margins, (classes, 1))
        gradient, curvature = objective.derivatives(rows, np.arange(classes), frequencies)
        if np.abs(gradient.sum(0)).max() < 1e-10:
            return margins
        # Twice the curvature stands for the whole matrix, as in XGBoost.
        curvature = curvature * (1 if classes == 2 else 2)
        margins = margins - gradient.sum(0) / np.maximum(curvature, 0.5 * np.abs(gradient)).sum(0)
    raise AssertionError(f"no minimum found: {margins}")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("frequencies", [BINARY, FOUR], ids=["two classes", "four classes"])
def test_where_the_loss_is_least_the_posterior_is_the_frequencies(name: str, frequencies: Array) -> None:
    objective = PolyObjective(polynomial=LOSSES[name])
    off = 0.0
    for cell in frequencies if LOSSES[name].log_weight else frequencies[:1]:
        margins = minimizer(objective, cell)
        if len(cell) == 2:
            found, plain, right = objective.probabilities(margins), expit(margins), cell[1:]
        else:
            found, plain, right = objective.probabilities(margins[None])[0], softmax(margins), cell
        np.testing.assert_allclose(found, right, rtol=1e-6)
        off = max(off, float(np.abs(plain - right).max()))
    # From 0.0017, of Taylor cross-entropy to the eighth order, to 0.50.
    assert (off < 1e-9) if LOSSES[name] == cross_entropy() else (off > 1e-3)


def drawn(classes: int) -> tuple[Array, Array, Array]:
    """24 rows of two features, the classes' probabilities there, and how often each was drawn, of 500 times."""
    X = np.array([(a, b) for a in range(8) for b in range(3)], dtype=float)
    wave = np.sin(1.3 * X[:, 0]) + 0.5 * X[:, 1]
    p = softmax(np.stack([1.5 * k * wave - 0.7 * k**2 for k in range(classes)], axis=1), axis=1)
    return X, p, np.random.default_rng(0).multinomial(500, p)


def boosted(library: str, loss: Polynomial, classes: int) -> tuple[Array, Array]:
    """The posterior and the softmax of the margins for every row of :func:`drawn`, when they don't change any more."""
    X, _, counts = drawn(classes)
    rows, labels = np.repeat(X, classes, axis=0), np.tile(np.arange(classes), len(X))
    weight = counts.ravel().astype(float)
    options: dict[str, Any] = {"num_class": classes} if classes > 2 else {}
    if library == "xgboost":
        xgboost = importlib.import_module("xgboost")
        objective: PolyObjective = XGBoostObjective(polynomial=loss)
        start = objective.starting_score(labels, weight)
        options |= {"base_score": np.asarray(start).tolist(), "disable_default_eval_metric": True, "nthread": 1}
        booster = xgboost.train(options, xgboost.DMatrix(rows, labels, weight=weight), 100, obj=objective)
        margins = booster.predict(xgboost.DMatrix(X), output_margin=True)
    elif library == "catboost":
        catboost = importlib.import_module("catboost")
        objective = CatBoostObjective(polynomial=loss)
        start = objective.starting_score(labels, weight)
        options = {"classes_count": classes} if classes > 2 else {}
        options |= {"iterations": 400, "learning_rate": 0.3, "leaf_estimation_method": "Newton", "thread_count": 1}
        options |= {"l2_leaf_reg": 1, "verbose": False, "allow_writing_files": False}
        init = np.full(len(labels), start) if classes == 2 else np.tile(start, (len(labels), 1))
        model = catboost.CatBoostClassifier(loss_function=objective, eval_metric=objective, **options)
        model.fit(catboost.Pool(rows, labels, weight=weight, baseline=init))
        margins = model.predict(X, prediction_type="RawFormulaVal") + start
    else:
        lightgbm = importlib.import_module("lightgbm")
        objective = LightGBMObjective(polynomial=loss)
        start = objective.starting_score(labels, weight)
        options |= {"objective": objective, "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 1}
        options |= {"min_data_in_bin": 1, "learning_rate": 0.3}
        init = np.full(len(labels), start) if classes == 2 else np.tile(start, (len(labels), 1))
        data = lightgbm.Dataset(rows, labels, weight=weight, init_score=init)
        margins = lightgbm.train(options, data, 100).predict(X) + start
    posterior = objective.probabilities(margins)
    if classes > 2:
        return posterior, softmax(margins, axis=1)
    return np.stack([1 - posterior, posterior], axis=1), np.stack([expit(-margins), expit(margins)], axis=1)


BOOSTED = ["focal", "poly1", "poly1(-1)", "poly1(-0.5)", "poly1(40)", "symmetric_cross_entropy", "poly1_focal(3, 5)"]
BOOSTED += ["poly_n of degree 8", "everything"]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
@pytest.mark.parametrize("classes", [2, 4])
def test_boosting_finds_the_probabilities_that_data_were_drawn_from(library: str, classes: int) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    right = drawn(classes)[1]

    def error(of: Array) -> float:
        return float(np.sqrt(np.mean((of - right) ** 2)))

    least = error(boosted(library, cross_entropy(), classes)[0])
    for name in BOOSTED:
        posterior, plain = boosted(library, LOSSES[name], classes)
        # The largest ratio of all these is 1.0094; the least of the softmax is 1.355.
        assert error(posterior) < 1.01 * least, name
        assert error(plain) > 1.3 * least, name
