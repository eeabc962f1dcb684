"""Inside XGBoost, LightGBM and CatBoost: with epsilon = 0, the models are those of the built-in objectives.

The built-in objectives have their weights in float32, and start from the frequencies by these: so do ours here. A
starting score that differs by 1e-8 is enough for other trees, where two thresholds, or two features, part the rows of a
node in the same way: their gains are equal but for rounding.
"""

import doctest
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
from scipy.special import expit, softmax
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from cases import Array
from polylosses.boosting import CatBoostObjective, LightGBMObjective, XGBoostObjective, objectives

pytestmark = pytest.mark.slow


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


ROUNDS = 8

Table = tuple[Array, Array, Array, Array]


def drawn(classes: int) -> tuple[Array, Array]:
    """Features and labels; the classes overlap and are not balanced."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 6))
    scores = features[:, :classes] * 1.5 + rng.gumbel(size=(1200, classes)) - 0.7 * np.arange(classes)
    return features, scores.argmax(1)


DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "two classes": lambda: drawn(2),
    "three classes": lambda: drawn(3),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "wine": lambda: load_wine(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
}
each_data = pytest.mark.parametrize("name", DATA)


def table(name: str, rows: int = 600) -> Table:
    """Features, labels and weights of at most so many rows, and the features of others to predict."""
    X, y = DATA[name]()
    rng = np.random.default_rng(1)
    order = rng.permutation(len(y))
    train, test = order[: min(rows, len(y) // 2)], order[-min(rows, len(y) // 2) :]
    weight = rng.uniform(0.5, 2.0, len(train)).astype(np.float32).astype(np.float64)
    return X[train], y[train], weight, X[test]


def start_of(objective: Any, labels: Array, weight: Array) -> Any:
    start = objective.starting_score(labels, weight)
    assert np.ndim(start) == (len(np.unique(labels)) > 2)
    return start


def same(found: Array, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.3  # the model has learned something


@needs("xgboost")
@each_data
def test_xgboost(name: str) -> None:
    xgboost = importlib.import_module("xgboost")
    X, y, weight, others = table(name)
    classes = len(np.unique(y))
    data, test = xgboost.DMatrix(X, y, weight=weight), xgboost.DMatrix(others)
    objective = XGBoostObjective(0.0)
    start = start_of(objective, y, weight)
    shared = {"nthread": 1, "max_depth": 4, "seed": 1}
    builtin, link = ("binary:logistic", expit) if classes == 2 else ("multi:softprob", softmax)
    own = {"base_score": expit(start) if classes == 2 else start.tolist(), "objective": builtin}
    if classes > 2:
        own["num_class"] = shared["num_class"] = classes
    theirs = xgboost.train(shared | own, data, ROUNDS)
    scores: dict[str, Any] = {}
    ours = xgboost.train(
        shared | {"base_score": own["base_score"] if classes > 2 else start, "disable_default_eval_metric": True},
        data,
        ROUNDS,
        obj=objective,
        custom_metric=objective.metric,
        evals=[(data, "train")],
        evals_result=scores,
        verbose_eval=False,
    )
    margins = ours.predict(test, output_margin=True)
    same(margins, theirs.predict(test, output_margin=True))
    assert [tree.split("leaf")[0] for tree in ours.get_dump()] == [tree.split("leaf")[0] for tree in theirs.get_dump()]
    same(objective.probabilities(margins), theirs.predict(test))
    assert (link(margins, axis=1) if classes > 2 else link(margins)) == pytest.approx(objective.probabilities(margins))
    expected = float(theirs.eval(data).split(":")[1])
    assert scores["train"]["posterior_log_loss"][-1] == pytest.approx(expected, abs=1e-5)
    # scikit-learn's interface
    options: Any = {"n_estimators": ROUNDS, "max_depth": 4, "n_jobs": 1, "random_state": 1}
    model = xgboost.XGBClassifier(
        objective=objective, eval_metric=objective.metric, base_score=own["base_score"], **options
    )
    model.fit(X, y, sample_weight=weight, eval_set=[(X, y)], sample_weight_eval_set=[weight], verbose=False)
    np.testing.assert_allclose(model.predict(others, output_margin=True), margins, atol=1e-5)
    assert model.evals_result()["validation_0"]["metric"][-1] == pytest.approx(expected, abs=1e-5)


@needs("lightgbm")
@each_data
@pytest.mark.parametrize("one_vs_all", [False, True])
def test_lightgbm(name: str, one_vs_all: bool) -> None:
    lightgbm = importlib.import_module("lightgbm")
    X, y, weight, test = table(name)
    classes = len(np.unique(y))
    objective = LightGBMObjective(0.0, one_vs_all=one_vs_all)
    start = start_of(objective, y, weight)
    many = "multiclassova" if one_vs_all else "multiclass"
    builtin = {"objective": "binary" if classes == 2 else many, "metric": "binary_logloss" if classes == 2 else many}
    shared: dict[str, Any] = {"num_threads": 1, "deterministic": True, "verbosity": -1}
    if classes > 2:
        shared["num_class"] = classes
    theirs = lightgbm.train(shared | builtin, lightgbm.Dataset(X, y, weight=weight), ROUNDS)
    init = np.tile(start, (len(y), 1)) if classes > 2 else np.full(len(y), start)
    data = lightgbm.Dataset(X, y, weight=weight, init_score=init)
    scores: dict[str, Any] = {}
    ours = lightgbm.train(
        shared | {"objective": objective},
        data,
        ROUNDS,
        valid_sets=[data],
        feval=objective.metric,
        callbacks=[lightgbm.record_evaluation(scores)],
    )
    margins = ours.predict(test) + start
    same(margins, theirs.predict(test, raw_score=True))
    splits = ["tree_index", "node_index", "split_feature", "threshold"]
    pandas.testing.assert_frame_equal(ours.trees_to_dataframe()[splits], theirs.trees_to_dataframe()[splits])
    same(objective.probabilities(margins), theirs.predict(test))
    loss = objective.log_loss(ours.predict(X) + start, y, weight)
    assert scores["training"]["posterior_log_loss"][-1] == pytest.approx(loss, abs=1e-7)
    # scikit-learn's interface
    options: Any = {"n_estimators": ROUNDS, "n_jobs": 1, "deterministic": True, "verbosity": -1}
    model = lightgbm.LGBMClassifier(objective=objective, **options)
    model.fit(X, y, sample_weight=weight, init_score=init, eval_metric=objective.metric)
    np.testing.assert_allclose(model.predict(test, raw_score=True) + start, margins, atol=1e-7)


@needs("catboost")
@each_data
@pytest.mark.parametrize("one_vs_all", [False, True])
def test_catboost(name: str, one_vs_all: bool) -> None:
    catboost = importlib.import_module("catboost")
    X, y, weight, test = table(name, rows=300)
    classes = len(np.unique(y))
    objective = CatBoostObjective(0.0, one_vs_all=one_vs_all)
    start = start_of(objective, y, weight)
    baseline = np.tile(start, (len(y), 1)) if classes > 2 else np.full(len(y), start)
    many = "MultiClassOneVsAll" if one_vs_all else "MultiClass"
    options: Any = {
        "iterations": ROUNDS,
        "depth": 4,
        "learning_rate": 0.3,
        "thread_count": 1,
        "verbose": False,
        "allow_writing_files": False,
        "leaf_estimation_method": "Newton",
        "leaf_estimation_iterations": 1,
        "bootstrap_type": "No",
        "random_strength": 0,
        "boost_from_average": False,
        "random_seed": 1,
        "boosting_type": "Plain",
    }
    if classes > 2:
        options.pop("boost_from_average")
    pool = catboost.Pool(X, y, weight=weight, baseline=baseline)
    builtin = "Logloss" if classes == 2 else many
    theirs = catboost.CatBoostClassifier(loss_function=builtin, **options).fit(pool)
    if classes > 2:
        options["classes_count"] = classes
    ours = catboost.CatBoostClassifier(loss_function=objective, eval_metric=objective, **options).fit(pool)
    for model in (theirs, ours):
        model.set_scale_and_bias(1.0, start if classes == 2 else start.tolist())
    np.testing.assert_array_equal(ours.calc_leaf_indexes(test), theirs.calc_leaf_indexes(test))
    margins = ours.predict(test, prediction_type="RawFormulaVal")
    same(margins, theirs.predict(test, prediction_type="RawFormulaVal"))
    probabilities = objective.probabilities(margins)
    expected = theirs.predict_proba(test)
    same(probabilities, expected[:, 1] if classes == 2 else expected)
    loss = objective.log_loss(ours.predict(X, prediction_type="RawFormulaVal"), y, weight)
    assert ours.get_evals_result()["learn"][type(objective).__name__][-1] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(("name", "version"), [("xgboost", "2.1"), ("lightgbm", "4.0"), ("catboost", "1.2")])
@pytest.mark.parametrize("found", [None, "1.0.5"])
def test_a_library_that_is_missing_or_too_old_is_named(name: str, version: str, found: str | None) -> None:
    module = "None" if found is None else f"types.SimpleNamespace(__version__={found!r})"
    objective = {"xgboost": "XGBoost", "lightgbm": "LightGBM", "catboost": "CatBoost"}[name]
    code = f"import sys, types; sys.modules[{name!r}] = {module}; import polylosses.boosting as b; "
    code += f"b.{objective}Objective()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: this objective needs {name} {version} or later")
    assert last.endswith(f"pip install '{name}>={version}'")
    assert (found is None) != (f"not {found}" in last)


@needs("xgboost")
@needs("lightgbm")
@needs("catboost")
def test_the_examples_run() -> None:
    found = doctest.testmod(objectives)
    assert found.attempted == 30
    assert not found.failed
