"""The classifiers of XGBoost, LightGBM and CatBoost with PolyLoss: probabilities, start, scikit-learn's rules."""

import copy
import doctest
import importlib
import importlib.util
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.special import expit
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import polylosses
from cases import Array
from polylosses.boosting import CatBoostObjective, PolyObjective

pytestmark = [
    pytest.mark.slow,
    # CatBoost warns of a package that it does not depend on; LightGBM before 4.7 has no other name for it.
    pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated"),
]

OURS = {"xgboost": "PolyXGBClassifier", "lightgbm": "PolyLGBMClassifier", "catboost": "PolyCatBoostClassifier"}
OWN = {"xgboost": "XGBClassifier", "lightgbm": "LGBMClassifier", "catboost": "CatBoostClassifier"}
QUICK: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 8, "n_jobs": 1, "max_depth": 3},
    "lightgbm": {"n_estimators": 8, "n_jobs": 1, "num_leaves": 8, "verbosity": -1},
    "catboost": {
        "iterations": 6,
        "thread_count": 1,
        "depth": 3,
        "learning_rate": 0.3,
        "verbose": False,
        "allow_writing_files": False,
        "bootstrap_type": "No",
        "random_strength": 0,
    },
}
TREES = {"xgboost": "n_estimators", "lightgbm": "n_estimators", "catboost": "iterations"}


def installed(*names: str) -> list[Any]:
    """Parameters, skipped where the library is missing."""
    return [
        pytest.param(
            name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
        )
        for name in names
    ]


each = pytest.mark.parametrize("library", installed(*OURS))


def ours(library: str, *loss: Any, **parameters: Any) -> Any:
    kind = getattr(importlib.import_module("polylosses.boosting"), OURS[library])
    return kind(*loss, **{**QUICK[library], **parameters})


def own(library: str, **parameters: Any) -> Any:
    return getattr(importlib.import_module(library), OWN[library])(**{**QUICK[library], **parameters})


def table(classes: int = 2, rows: int = 160, seed: int = 0) -> tuple[Array, Array, Array]:
    """Features, labels that are strings and not in the order of the scores, and weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 5))
    scores = features[:, :classes] * 1.5 + rng.gumbel(size=(rows, classes)) - 0.7 * np.arange(classes)
    return features, np.array(["maple", "birch", "elm"])[scores.argmax(1)], rng.uniform(0.5, 2.0, rows)


def saved_and_loaded(library: str, model: Any, X: Any, path: Path) -> Array:
    """The margins of the saved model in the library alone."""
    module = importlib.import_module(library)
    if library == "xgboost":
        model.save_model(path / "model.json")
        booster = module.Booster(model_file=path / "model.json")
        best = getattr(model, "best_iteration", None) if model.early_stopping_rounds else None
        margins = booster.predict(
            module.DMatrix(X), output_margin=True, iteration_range=(0, 0) if best is None else (0, best + 1)
        )
    elif library == "lightgbm":
        model.booster_.save_model(path / "model.txt")
        margins = module.Booster(model_file=path / "model.txt").predict(X)
    else:
        model.save_model(path / "model.cbm")
        margins = module.CatBoost().load_model(path / "model.cbm").predict(X, prediction_type="RawFormulaVal")
    return np.asarray(margins)


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_without_epsilon_it_is_the_librarys_own_classifier(library: str, classes: int) -> None:
    X, y, weight = table(classes)
    test = table(classes, seed=1)[0]
    model = ours(library, 0.0).fit(X, y, sample_weight=weight)
    indices = np.searchsorted(model.classes_, y)
    start = PolyObjective(0.0).starting_score(indices, weight)
    if library == "xgboost":
        theirs = own(library, base_score=expit(start) if classes == 2 else start.tolist())
        theirs.fit(X, indices, sample_weight=weight)
    elif library == "lightgbm":
        theirs = own(library).fit(X, y, sample_weight=weight)
    else:
        rows = np.full(len(y), start) if classes == 2 else np.tile(start, (len(y), 1))
        theirs = own(library, leaf_estimation_iterations=1, leaf_estimation_method="Newton")
        theirs.fit(X, y, sample_weight=weight, baseline=rows)
        theirs.set_scale_and_bias(1.0, start if classes == 2 else start.tolist())
    np.testing.assert_allclose(model.predict_proba(test), theirs.predict_proba(test), atol=1e-5)
    assert np.ptp(model.predict_proba(test)) > 0.3  # it has learned something
    predicted = np.ravel(theirs.predict(test))
    assert (model.predict(test) == (model.classes_[predicted] if library == "xgboost" else predicted)).all()


@each
@pytest.mark.parametrize(("classes", "one_vs_all"), [(2, False), (3, False), (3, True)])
def test_the_posterior_of_the_margins_which_a_saved_model_has_too(
    library: str, classes: int, one_vs_all: bool, tmp_path: Path
) -> None:
    X, y, weight = table(classes)
    model = ours(library, 2.0, one_vs_all=one_vs_all).fit(X, y, sample_weight=weight)
    margins, posterior = model.decision_function(X), model.predict_proba(X)
    assert margins.shape == ((len(X),) if classes == 2 else (len(X), classes))
    assert posterior.shape == (len(X), classes)
    expected = PolyObjective(2.0, one_vs_all=one_vs_all).probabilities(margins.astype(float))
    if classes == 2:
        expected = np.stack([1 - expected, expected], axis=1)
    np.testing.assert_allclose(posterior, expected / expected.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(posterior.sum(1), 1.0, rtol=1e-12)
    assert model.classes_.tolist() == sorted(set(y))
    assert (model.predict(X) == model.classes_[posterior.argmax(1)]).all()
    assert model.score(X, y) > 0.7
    np.testing.assert_allclose(saved_and_loaded(library, model, X, tmp_path), margins, atol=1e-6)


@each
@pytest.mark.parametrize(("classes", "one_vs_all"), [(2, False), (3, False), (3, True)])
def test_it_starts_from_the_classes_shares(library: str, classes: int, one_vs_all: bool) -> None:
    """Of the weights, those of the classes included; whatever the loss."""
    X, y, weight = table(classes)
    factors = {"birch": 3.0, "elm": 0.5}
    given = {label: factors[label] for label in set(y) & set(factors)}
    still = ours(library, 1.5, 1.0, one_vs_all=one_vs_all, class_weight=given, learning_rate=1e-5)
    still.fit(X, y, sample_weight=weight)
    weight = weight * [factors.get(label, 1.0) for label in y]
    shares = np.array([weight[y == label].sum() for label in still.classes_]) / weight.sum()
    np.testing.assert_allclose(still.predict_proba(X), np.tile(shares, (len(X), 1)), atol=3e-4)


@each
def test_losses_without_a_finite_start_have_that_of_cross_entropy(library: str) -> None:
    X, y, _ = table()
    loss = polylosses.mean_absolute_error()
    model = ours(library, polynomial=loss, curvature="cross-entropy", learning_rate=1e-5).fit(X, y)
    share = (y == model.classes_[1]).mean()
    np.testing.assert_allclose(model.decision_function(X), np.log(share / (1 - share)), atol=3e-4)
    # Its posterior is the same for all margins, so that predictions come from these.
    model = ours(library, polynomial=loss, curvature="cross-entropy").fit(X, y)
    assert model.score(X, y) > 0.7
    assert np.ptp(model.predict_proba(X)) < 1e-12


@each
def test_a_start_of_the_users_is_used_instead(library: str) -> None:
    X, y, _ = table()
    still = ours(library, learning_rate=1e-5, **({"base_score": 0.5} if library == "xgboost" else {}))
    name = {"xgboost": None, "lightgbm": "init_score", "catboost": "baseline"}[library]
    still.fit(X, y, **({name: np.zeros(len(y))} if name else {}))
    np.testing.assert_allclose(still.decision_function(X), 0.0, atol=3e-4)


def evaluated(library: str, X: Any, y: Any) -> dict[str, Any]:
    if library != "lightgbm":
        return {"eval_set": [(X, y)]}
    new = importlib.import_module(library).__version__ >= "4.7"
    return {"eval_X": X, "eval_y": y} if new else {"eval_set": [(X, y)]}


def stopping(library: str, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and arguments of ``fit`` that stop early."""
    if library == "xgboost":
        return {"early_stopping_rounds": rounds}, {"verbose": False}
    if library == "lightgbm":
        callback = importlib.import_module(library).early_stopping(rounds, verbose=False)
        return {}, {"callbacks": [callback]}
    return {}, {"early_stopping_rounds": rounds}


def history(library: str, model: Any) -> dict[str, list[float]]:
    results = model.get_evals_result() if library == "catboost" else model.evals_result_
    return dict(results[{"xgboost": "validation_0", "lightgbm": "valid_0", "catboost": "validation"}[library]])


@each
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, {"birch": 4.0}], ids=["", "class_weight"])
def test_it_stops_early_by_the_log_loss_of_the_posterior(
    library: str, classes: int, class_weight: Any, tmp_path: Path
) -> None:
    X, y, _ = table(classes, rows=200)
    held_out, labels, _ = table(classes, rows=200, seed=1)
    parameters, options = stopping(library, 3)
    # LightGBM stops where any metric does.
    beside = {
        "xgboost": {"eval_metric": ["auc" if classes == 2 else "merror"]},
        "lightgbm": {},
        "catboost": {"custom_metric": ["Accuracy"]},
    }[library]
    parameters |= {TREES[library]: 60, "learning_rate": 0.5, **beside, "class_weight": class_weight}
    model = ours(library, 1.0, **parameters).fit(X, y, **evaluated(library, held_out, labels), **options)
    scores = history(library, model)
    assert len(scores) > len(beside)
    losses = scores["CatBoostObjective" if library == "catboost" else "posterior_log_loss"]
    assert len(losses) == np.argmin(losses) + 4 < 60
    weight = np.array([(class_weight or {}).get(label, 1.0) for label in labels])
    found = log_loss(labels, model.predict_proba(held_out), sample_weight=weight)
    assert found == pytest.approx(min(losses), abs=1e-5)
    margins = saved_and_loaded(library, model, held_out, tmp_path)
    np.testing.assert_allclose(margins, model.decision_function(held_out), atol=1e-6)


@pytest.mark.parametrize("library", installed("xgboost", "lightgbm"))
@pytest.mark.parametrize("classes", [2, 3])
def test_a_function_as_metric_gets_labels_and_posterior(library: str, classes: int) -> None:
    X, y, weight = table(classes)

    def brier(labels: Array, posterior: Array, weight: Array) -> Any:
        if posterior.ndim == 1:
            posterior = np.stack([1 - posterior, posterior], axis=1)
        loss = np.average(((posterior - np.eye(classes)[labels.astype(int)]) ** 2).sum(1), weights=weight)
        return ("brier", loss, False) if library == "lightgbm" else loss

    def weighed(labels: Array, posterior: Array, sample_weight: Array) -> Any:
        return brier(labels, posterior, sample_weight)

    if library == "xgboost":
        model = ours(library, eval_metric=["error" if classes == 2 else "merror", weighed])
        model.fit(X, y, eval_set=[(X, y)], sample_weight_eval_set=[weight], verbose=False)
    else:
        model = ours(library)
        model.fit(
            X,
            y,
            **evaluated(library, X.copy(), y),
            eval_sample_weight=[weight],
            eval_metric=[brier, "auc" if classes == 2 else "auc_mu"],
        )
    expected = brier(np.searchsorted(model.classes_, y), model.predict_proba(X), weight)
    value = expected[1] if library == "lightgbm" else expected
    assert history(library, model)["brier" if library == "lightgbm" else "weighed"][-1] == pytest.approx(
        value, abs=1e-5
    )


@each
def test_in_scikit_learns_tools(library: str, tmp_path: Path) -> None:
    X, y, _ = table(rows=120)
    leaf = "reg_lambda"
    grid = {"epsilon": [0.0, 2.0], "gamma": [0.0, 1.0], leaf: [0.5, 5.0]}
    search = GridSearchCV(ours(library), grid, cv=2, scoring="neg_log_loss", n_jobs=2).fit(X, y)
    assert set(search.best_params_) == set(grid)
    assert len(set(search.cv_results_["mean_test_score"].round(9))) == 8  # every parameter counts
    best = search.best_estimator_
    assert {name: best.get_params()[name] for name in grid} == search.best_params_
    assert best.objective_.polynomial == polylosses.poly1_focal(
        search.best_params_["epsilon"], search.best_params_["gamma"]
    )

    piped = make_pipeline(StandardScaler(), ours(library, 1.0))
    probabilities = cross_val_predict(piped, X, y, cv=2, method="predict_proba")
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    assert log_loss(y, probabilities) < 0.6
    calibrated = CalibratedClassifierCV(ours(library, 1.0), cv=2).fit(X, y)
    assert log_loss(y, calibrated.predict_proba(X)) < 0.6

    twin = clone(ours(library, polynomial=polylosses.poly1(1.0), class_weight="balanced"))
    assert twin.get_params()["polynomial"] == polylosses.poly1(1.0)
    assert twin.set_params(polynomial=None, epsilon=3.0, gamma=1.0, **{leaf: 2.0}) is twin
    found = clone(twin).get_params()
    assert [found[name] for name in ("epsilon", "gamma", "class_weight", leaf)] == [3.0, 1.0, "balanced", 2.0]
    assert "objective" not in found
    assert "epsilon=3.0" in repr(twin)
    joblib.dump(best, tmp_path / "model")
    for other in (pickle.loads(pickle.dumps(best)), joblib.load(tmp_path / "model"), copy.deepcopy(best)):
        assert other.get_params() == best.get_params() or library == "xgboost"  # nan is not nan
        assert (other.predict_proba(X) == best.predict_proba(X)).all()
        assert (other.predict(X) == best.predict(X)).all()


@each
def test_tables_with_categories_missing_values_and_sparse_ones(library: str) -> None:
    X, _, _ = table()
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame["kind"] = pd.Categorical(np.random.default_rng(0).choice(["p", "q", "r"], len(X)))
    y = (frame["kind"] == "q").astype(int) * 7 + 3  # 3 and 10
    frame.loc[::3, "a"] = np.nan
    parameters: dict[str, Any] = {"cat_features": ["kind"]} if library == "catboost" else {}
    if library == "xgboost":
        parameters = {"enable_categorical": True, "tree_method": "hist"}
    model = clone(ours(library, 1.0, **parameters)).fit(frame, y, **evaluated(library, frame[:50], y[:50]))
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert model.n_features_in_ == 6
    assert model.feature_importances_.argmax() == 5
    assert model.classes_.tolist() == [3, 10]
    assert (model.predict(frame) == y).all()
    assert model.predict(frame).dtype == y.dtype
    dense = np.abs(X) * (X > 0.5) + 1e-9
    dense[dense < 1e-3] = np.nan if library == "xgboost" else 0.0  # which XGBoost takes the same
    columns = sparse.csr_matrix(np.nan_to_num(dense))
    ends = [ours(library).fit(data, y).decision_function(data) for data in (dense, columns)]
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)
    assert not hasattr(ours(library).fit(dense, y), "feature_names_in_")


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_class_weights_are_row_weights(library: str, classes: int) -> None:
    X, y, weight = table(classes)
    counts = {label: (y == label).sum() for label in set(y)}
    for given, factor in (
        ({"birch": 2.5}, {"birch": 2.5}),
        ("balanced", {label: len(y) / (classes * count) for label, count in counts.items()}),
    ):
        first = ours(library, class_weight=given).fit(X, y, sample_weight=weight)
        second = ours(library).fit(X, y, sample_weight=weight * [factor.get(label, 1.0) for label in y])
        np.testing.assert_allclose(first.decision_function(X), second.decision_function(X), atol=1e-6)
        assert np.abs(first.decision_function(X) - ours(library).fit(X, y).decision_function(X)).max() > 0.1
        assert first.get_params()["class_weight"] == given


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_that_goes_on_from_another_is_the_whole_one(library: str, classes: int, tmp_path: Path) -> None:
    X, y, _ = table(classes)
    whole = ours(library).fit(X, y)
    half = ours(library, **{TREES[library]: QUICK[library][TREES[library]] // 2}).fit(X, y)
    name = "xgb_model" if library == "xgboost" else "init_model"
    file = tmp_path / "half.json"
    (half.booster_ if library == "lightgbm" else half).save_model(
        file, **({"format": "json"} if library == "catboost" else {})
    )
    for start in (half, *([] if library == "catboost" else [file])):
        again = ours(library, **{TREES[library]: QUICK[library][TREES[library]] // 2}).fit(X, y, **{name: start})
        np.testing.assert_allclose(again.decision_function(X), whole.decision_function(X), atol=1e-5)


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_a_model_that_goes_on_from_itself_or_on_other_labels_keeps_its_start(library: str, classes: int) -> None:
    X, y, weight = table(classes)
    others = np.array(["birch", "elm", "maple"])[(np.searchsorted(["birch", "elm", "maple"], y) + 1) % 3]
    others = others if classes == 3 else y[::-1]
    name = "xgb_model" if library == "xgboost" else "init_model"
    start = {"xgboost": "base_margin", "lightgbm": "init_score", "catboost": "baseline"}[library]
    half = ours(library).fit(X, y)
    margins = half.decision_function(X)
    for labels in (y, others):  # CatBoost would go on with the labels of the model in memory
        again = ours(library).fit(X, labels, sample_weight=weight, **{name: half}).decision_function(X)
        rest = ours(library, **({"base_score": 0.5 if classes == 2 else [0.0] * 3} if library == "xgboost" else {}))
        rest.fit(X, labels, sample_weight=weight, **{start: margins})
        np.testing.assert_allclose(again, margins + rest.decision_function(X), atol=1e-5)
    whole = ours(library, **{TREES[library]: 2 * QUICK[library][TREES[library]]}).fit(X, y)
    np.testing.assert_allclose(
        half.fit(X, y, **{name: half}).decision_function(X), whole.decision_function(X), atol=1e-5
    )


@pytest.mark.parametrize("library", installed("catboost"))
def test_catboost_writes_no_file_unless_it_goes_on(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    X, y, _ = table()
    assert ours(library).fit(X, y).is_fitted()


@pytest.mark.parametrize("library", installed("xgboost"))
def test_xgboost_goes_on_from_one_start(library: str) -> None:
    X, y, _ = table()
    model = ours(library).fit(X, y)
    with pytest.raises(ValueError, match=r"xgb_model has a starting score: leave out base_score=0\.1"):
        ours(library, base_score=0.1).fit(X, y, xgb_model=model)


@pytest.mark.parametrize("library", installed("lightgbm"))
def test_lightgbm_evaluates_from_the_start_that_is_given(library: str) -> None:
    X, y, _ = table()
    there = {**evaluated(library, X.copy(), y), "eval_init_score": [np.full(len(y), 3.0)]}
    model = ours(library).fit(X, y, **there)
    trees = model.decision_function(X) - ours(library, learning_rate=1e-9).fit(X, y).decision_function(X)
    expected = model.objective_.log_loss(trees + 3.0, np.searchsorted(model.classes_, y))
    assert history(library, model)["posterior_log_loss"][-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("library", installed("catboost"))
def test_what_catboost_does_with_a_loss_of_its_own_is_refused(library: str) -> None:
    model = ours(library)
    for name in ("grid_search", "randomized_search", "select_features", "set_probability_threshold"):
        with pytest.raises(TypeError, match=r"take scikit-learn's|compare predict_proba"):
            getattr(model, name)({"depth": [2]})


@pytest.mark.parametrize("library", installed("xgboost", "catboost"))
def test_a_loaded_model_of_more_classes_can_be_fitted_anew(library: str, tmp_path: Path) -> None:
    file = tmp_path / ("model.json" if library == "xgboost" else "model.cbm")
    ours(library).fit(*table(3)[:2]).save_model(file)
    model = ours(library)
    model.load_model(file)
    X, y, _ = table(2)
    np.testing.assert_allclose(
        model.fit(X, y).decision_function(X), ours(library).fit(X, y).decision_function(X), atol=1e-6
    )


@each
def test_evaluation_sets_are_pairs_and_have_a_weight_each(library: str) -> None:
    X, y, weight = table()
    with pytest.raises(ValueError, match=r"must be a pair \(X, y\); got 3 parts"):
        ours(library).fit(X, y, eval_set=[(X, y, weight)])
    with pytest.raises(ValueError, match="the target y is None"):
        ours(library).fit(X, None)
    if library == "catboost":
        return
    name = "sample_weight_eval_set" if library == "xgboost" else "eval_sample_weight"
    with pytest.raises(ValueError, match="for each of 2 evaluation sets; got 1"):
        ours(library, class_weight="balanced").fit(X, y, eval_set=[(X, y), (X[:9], y[:9])], **{name: [weight]})


@pytest.mark.parametrize("library", installed("xgboost", "catboost"))
@pytest.mark.parametrize("classes", [2, 3])
def test_a_loaded_model_has_the_posterior(library: str, classes: int, tmp_path: Path) -> None:
    X, y, _ = table(classes)
    model = ours(library, 2.0).fit(X, y)
    model.save_model(tmp_path / "model.json", **({"format": "json"} if library == "catboost" else {}))
    loaded = ours(library, 2.0)
    loaded.load_model(tmp_path / "model.json", **({"format": "json"} if library == "catboost" else {}))
    np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), atol=1e-6)
    assert (model.classes_[loaded.predict(X)] == model.predict(X)).all()
    again = clone(loaded).fit(X[:100], y[:100])
    fresh = ours(library, 2.0).fit(X[:100], y[:100])
    np.testing.assert_allclose(again.decision_function(X), fresh.decision_function(X), atol=1e-6)


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_contributions_of_features_sum_to_the_margins(library: str, classes: int) -> None:
    X, y, _ = table(classes)
    model = ours(library).fit(X, y)
    if library == "xgboost":
        data = importlib.import_module(library).DMatrix(X)
        contributions = model.get_booster().predict(data, pred_contribs=True)
    elif library == "lightgbm":
        contributions = model.predict(X, pred_contrib=True).reshape(len(X), -1, 6).squeeze()
    else:
        contributions = model.get_feature_importance(importlib.import_module(library).Pool(X), type="ShapValues")
    np.testing.assert_allclose(contributions.sum(-1), model.decision_function(X), atol=1e-5)


@pytest.mark.parametrize("library", installed("lightgbm"))
class TestLightGBM:
    """What is LightGBM's alone."""

    def test_dart(self, library: str, tmp_path: Path) -> None:
        X, y, _ = table(3)
        model = ours(library, boosting_type="dart", drop_rate=0.5, n_estimators=20).fit(X, y)
        np.testing.assert_allclose(saved_and_loaded(library, model, X, tmp_path), model.decision_function(X), atol=1e-9)
        assert model.score(X, y) > 0.7

    def test_where_no_feature_can_be_split_there_are_the_shares(self, library: str) -> None:
        y = np.repeat([0, 1], [4, 12])
        model = ours(library).fit(np.arange(16.0)[:, None], y)
        np.testing.assert_allclose(model.predict_proba([[1.0]]), [[0.25, 0.75]], atol=1e-9)

    @pytest.mark.parametrize("given", [{"boosting_type": "rf"}, {"boosting": "rf"}, {"linear_tree": True}], ids=str)
    def test_boosting_without_a_start_is_refused(self, library: str, given: dict[str, Any]) -> None:
        X, y, _ = table()
        with pytest.raises(ValueError, match=r"boosting_type=.rf.|linear_tree=True"):
            ours(library, **given).fit(X, y)

    def test_metrics_that_need_probabilities_are_refused(self, library: str) -> None:
        X, y, _ = table()
        for model, options in (
            (ours(library, metric="binary_logloss,auc"), {}),
            (ours(library), {"eval_metric": "error"}),
        ):
            with pytest.raises(ValueError, match="from margins in the place of probabilities"):
                model.fit(X, y, **evaluated(library, X, y), **options)

    def test_the_labels_of_the_training_set_evaluated_and_leaves(self, library: str) -> None:
        X, y, weight = table()
        model = ours(library, class_weight="balanced")
        model.fit(X, y, sample_weight=weight, eval_set=[(X, y)])
        total = weight * [len(y) / (2 * (y == label).sum()) for label in y]
        expected = log_loss(y, model.predict_proba(X), sample_weight=total)
        assert model.evals_result_["training"]["posterior_log_loss"][-1] == pytest.approx(expected, abs=1e-7)
        assert model.predict(X, pred_leaf=True).shape == (len(X), 8)
        assert (model.predict(X, raw_score=True) == model.decision_function(X)).all()


@pytest.mark.parametrize("library", installed("catboost"))
def test_catboost_has_one_thread_for_several_classes_unless_told(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that wait for each other after each row take 3 times as long."""
    asked: set[int] = set()

    def recorded(self: Any, approxes: Any, target: float, weight: float) -> Any:
        asked.add(threading.get_ident())
        return list(approxes - np.eye(3)[int(target)]), (-np.eye(3)).tolist()

    monkeypatch.setattr(CatBoostObjective, "calc_ders_multi", recorded)
    X, y, _ = table(3, rows=4000)
    settings = {name: value for name, value in QUICK[library].items() if name != "thread_count"}
    kind = getattr(importlib.import_module("polylosses.boosting"), OURS[library])
    for threads in (None, 2):
        asked.clear()
        kind(**settings, thread_count=threads).fit(X, y)
        assert len(asked) == (threads or 1)


@pytest.mark.parametrize("library", installed("catboost"))
@pytest.mark.parametrize("classes", [2, 3])
def test_all_that_catboost_predicts_is_the_posteriors(library: str, classes: int) -> None:
    X, y, _ = table(classes)
    model = ours(library).fit(X, y)
    posterior = model.predict_proba(X)
    np.testing.assert_allclose(model.predict(X, prediction_type="Probability"), posterior)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), posterior)
    np.testing.assert_allclose(list(model.staged_predict_proba(X))[-1], posterior)
    assert (list(model.staged_predict(X))[-1] == model.predict(X)).all()
    assert model.score(X, y) == (model.predict(X) == y).mean()
    np.testing.assert_allclose(model.predict_proba(X[0].tolist()), posterior[0])
    assert model.predict(X[0].tolist()) == model.predict(X)[0]
    staged = list(model.staged_predict(X, prediction_type="RawFormulaVal"))[-1]
    np.testing.assert_allclose(staged, model.decision_function(X))


@each
def test_it_fails_no_check_of_scikit_learn_that_the_librarys_own_passes(library: str) -> None:
    status: list[dict[str, set[str]]] = []
    for model in (own(library), ours(library)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check_estimator(model, on_fail=None, on_skip=None)
        status.append({})
        for check in found:
            status[-1].setdefault(check["check_name"], set()).add(check["status"])
    theirs, mine = status
    assert len(mine) > 50
    failed = {name for name, of in mine.items() if "failed" in of}
    assert {name for name in failed if "failed" not in theirs.get(name, ())} == set()
    # Two weights of a row and the row twice: histograms and CatBoost's trees differ, and LightGBM's constructor sets
    # a parameter that was given.
    assert "check_classifiers_train" not in failed or library == "catboost"


X, Y, _ = table(rows=60)
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one class": ({}, {"y": np.full(60, "elm")}, "one class, 'elm'"),
    "nan": ({}, {"y": np.where(Y == "elm", np.nan, 1.0) * np.where(np.arange(60) == 3, np.nan, 1.0)}, "NaN"),
    "None": ({}, {"y": np.array([None, *Y[1:]], dtype=object)}, "None: every row needs a label"),
    "continuous": ({}, {"y": np.linspace(0, 1, 60)}, "Unknown label type"),
    "columns": ({}, {"y": np.eye(2)[np.arange(60) % 2]}, "1d array"),
    "weight nan": ({}, {"sample_weight": np.full(60, np.nan)}, "finite numbers of at least 0; got nan"),
    "weight negative": ({}, {"sample_weight": np.full(60, -1.0)}, "finite numbers of at least 0; got -1"),
    "weight short": ({}, {"sample_weight": np.ones(59)}, r"\(59,\), expected \(60,\)"),
    "weight zero": ({}, {"sample_weight": (Y == "maple") * 1.0}, "every row of the class 'birch' is zero"),
    "class_weight label": ({"class_weight": {"maple": 1.0, "ash": 2.0}}, {}, "class_weight has the label 'ash'"),
    "class_weight word": ({"class_weight": "even"}, {}, "class_weight"),
    "class_weight negative": ({"class_weight": {"maple": -1.0}}, {}, "finite numbers of at least 0; got -1"),
    "curvature": (
        {"curvature": "expectd"},
        {},
        "curvature must be one of expected, exact, cross-entropy; got 'expectd'",
    ),
    "gamma": ({"gamma": -1.0}, {}, "gamma"),
    "both": ({"epsilon": 2.0, "polynomial": polylosses.focal()}, {}, "either polynomial or epsilon"),
}


@each
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(library: str, case: str) -> None:
    parameters, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ours(library, **parameters).fit(**{"X": X, "y": Y, **options})


@each
def test_labels_of_an_evaluation_set_that_are_not_trained_with(library: str) -> None:
    with pytest.raises(ValueError, match="evaluation set has the label 'ash'"):
        ours(library).fit(X, Y, **evaluated(library, X, np.where(Y == "maple", "ash", Y)))


REFUSED = {
    "xgboost": {"objective": "binary:logistic", "scale_pos_weight": 2.0},
    "lightgbm": {"objective": "binary", "loss": "binary", "is_unbalance": True, "scale_pos_weight": 2.0},
    "catboost": {"loss_function": "Logloss", "objective": "Logloss", "class_weights": [1, 2], "scale_pos_weight": 2.0},
}


@each
def test_what_takes_the_losss_place_is_refused(library: str) -> None:
    for name, value in REFUSED[library].items():
        with pytest.raises(TypeError, match=f"takes no {name}; got {name}="):
            ours(library, **{name: value})
        with pytest.raises(TypeError, match=f"takes no {name}; got {name}="):
            ours(library).set_params(**{name: value})


@pytest.mark.parametrize("library", installed("catboost"))
def test_pools_are_refused(library: str) -> None:
    pool = importlib.import_module(library).Pool(X, np.arange(60) % 2)
    with pytest.raises(TypeError, match="not a Pool"):
        ours(library).fit(pool)
    with pytest.raises(TypeError, match="not a Pool"):
        ours(library).fit(X, Y, eval_set=pool)


@each
def test_an_epsilon_below_its_bound_warns_at_the_users_line(library: str) -> None:
    model = ours(library, -3.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, Y)
    (found,) = (w for w in caught if "epsilon = -3" in str(w.message))
    assert found.filename == __file__
    assert "model.fit(X, Y)" in Path(__file__).read_text().splitlines()[found.lineno - 1]


@pytest.mark.parametrize(("library", "version"), [("xgboost", "3.1"), ("lightgbm", "4.6"), ("catboost", "1.2")])
@pytest.mark.parametrize("found", [None, "1.0.5"])
def test_a_library_that_is_missing_or_too_old_is_named(library: str, version: str, found: str | None) -> None:
    module = "None" if found is None else f"types.SimpleNamespace(__version__={found!r})"
    code = f"import sys, types; sys.modules[{library!r}] = {module}; from polylosses.boosting import {OURS[library]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {OURS[library]} needs {library} {version} or later")
    assert last.endswith(f"pip install '{library}>={version}'")
    assert (found is None) != (f"not {found}" in last)


@each
def test_scikit_learn_is_named(library: str) -> None:
    code = f"import sys; sys.modules['sklearn'] = None; from polylosses.boosting import {OURS[library]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith("needs scikit-learn 1.5 or later: pip install 'scikit-learn>=1.5'")
    )


@each
def test_the_examples_run(library: str) -> None:
    found = doctest.testmod(importlib.import_module(f"polylosses.boosting.{library}_classifier"), extraglobs={"np": np})
    assert found.attempted == (5 if library == "catboost" else 4)
    assert not found.failed
