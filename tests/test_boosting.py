"""Gradient, curvature, starting score and probabilities for boosting, against 50 digits and more."""

import importlib.util
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import pytest
from scipy.optimize import minimize

import reference
from cases import CATALOGUE, HARD, Array
from polylosses import Polynomial, focal, poly1, poly_n, taylor_cross_entropy
from polylosses.boosting import CatBoostObjective, LightGBMObjective, PolyObjective, XGBoostObjective, objectives
from polylosses.boosting.derivatives import derivatives

LOSSES = {name: loss for name, loss in {**CATALOGUE, **HARD}.items() if name != "nothing"}

MARGINS: list[tuple[float, ...]] = [
    (0.0, 0.0),
    (0.0, 1.25),
    (0.0, -3.0),
    (0.0, 80.0),
    (0.0, -80.0),
    (0.5, -1.0, 2.25),
    (-80.0, 80.0, 0.0),
    (80.0, 80.0, -20.0, 1.0),
    tuple(2.0 * np.sin(np.arange(50)).round(3)),
    (30.0, *[0.0] * 49),
]


def objective(loss: Polynomial, **options: Any) -> PolyObjective:
    return PolyObjective(polynomial=loss, **options)


needs_numba = pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="needs Numba")


@pytest.fixture(params=["numpy", pytest.param("numba", marks=needs_numba)])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each implementation of the derivatives, for any number of margins."""
    monkeypatch.setattr(objectives, "ENOUGH", 0 if request.param == "numba" else sys.maxsize)
    if request.param == "numpy":
        monkeypatch.setattr(objectives, "_compiled", lambda: None)
    else:
        assert objectives.compiled(1) is not None
    return str(request.param)


class Known(NamedTuple):
    """For each label and each of the first three margins, the derivatives and the terms that cancel in the second.

    And the probabilities of the labels under which these margins are optimal, with two expectations under these: of the
    second derivative, and of half the gradient's absolute value.
    """

    first: Array
    exact: Array
    terms: Array
    posterior: Array
    expected: Array
    half: Array


@cache
def known(name: str, margins: tuple[float, ...]) -> Known:
    """The second derivatives are computed numerically, at 160 digits."""
    loss = LOSSES[name]
    with mp.workdps(160):
        exponentials = [mp.exp(mp.mpf(z)) for z in margins]

        def bend(y: int, k: int) -> Any:
            others = mp.fsum(e for c, e in enumerate(exponentials) if c != k)

            def of(z: Any) -> Any:
                total = others + mp.exp(z)
                own = mp.exp(z) if y == k else exponentials[y]
                return reference.value(loss, own / total, (total - own) / total)

            return mp.diff(of, mp.mpf(margins[k]), 2)

        total = mp.fsum(exponentials)
        p = [e / total for e in exponentials]
        slopes = [reference.slope(loss, pk, 1 - pk) for pk in p]
        density = [pk / -s for pk, s in zip(p, slopes, strict=True)]
        posterior = [d / mp.fsum(density) for d in density]
        table = [[bend(y, k) for k in range(min(3, len(margins)))] for y in range(len(margins))]
        expected = [mp.fsum(w * row[k] for w, row in zip(posterior, table, strict=True)) for k in range(len(table[0]))]
        terms = [[-s * pk * (1 - pk) for pk in p[:3]] for s in slopes]
        first = [[s * ((1 if k == y else 0) - pk) for k, pk in enumerate(p[:3])] for y, s in enumerate(slopes)]
        half = [
            mp.fsum(w * abs(row[k]) for w, row in zip(posterior, first, strict=True)) / 2 for k in range(len(p[:3]))
        ]
        return Known(
            first=np.array([floats(row) for row in first]),
            exact=np.array([floats(row) for row in table]),
            terms=np.array([floats(row) for row in terms]),
            posterior=floats(posterior),
            expected=floats(expected),
            half=floats(half),
        )


def floats(numbers: list[Any]) -> Array:
    return np.array([float(x) for x in numbers])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_oracles(name: str) -> None:
    loss, options = LOSSES[name], {"curvature": "exact"}
    for margins in MARGINS:
        classes = len(margins)
        logits, labels = np.tile(margins, (classes, 1)), np.arange(classes)
        for dtype in (np.float64, np.float32):
            found = objective(loss, **options).derivatives(logits.astype(dtype), labels)[0]
            assert found.dtype == dtype
            oracle = reference.cross_entropy(loss, logits.astype(dtype).astype(float), labels, reduction="none")
            rounding = np.finfo(dtype).eps * np.abs(found) + np.finfo(dtype).tiny
            allowed = 4 * np.finfo(float).eps * oracle.gradient_scale + rounding
            assert (np.abs(found - oracle.gradient) <= allowed).all()
        # In float64 also the smallest ones have their digits.
        first = known(name, margins).first
        found = objective(loss, **options).derivatives(logits, labels)[0]
        np.testing.assert_allclose(found[:, :3], first, rtol=1e-9, atol=1e-300)
        if classes == 2:
            one = objective(loss, **options).derivatives(logits[:, 1] - logits[:, 0], labels)[0]
            np.testing.assert_allclose(one, first[:, 1], rtol=1e-9, atol=1e-300)
    weighted = objective(loss, class_weight=[1.0, 3.0], **options)
    plain = objective(loss, **options).derivatives(np.array([1.0, 1.0]), np.array([0, 1]))
    for found, one in zip(weighted.derivatives(np.array([1.0, 1.0]), np.array([0, 1]), [2.0, 0.5]), plain, strict=True):
        np.testing.assert_allclose(found, one * [2.0, 1.5])


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", LOSSES)
def test_the_exact_curvature_is_the_second_derivative_or_0(name: str) -> None:
    for margins in MARGINS:
        labels = np.arange(len(margins))
        expected = known(name, margins)
        found = objective(LOSSES[name], curvature="exact").derivatives(np.tile(margins, (len(margins), 1)), labels)[1]
        error = np.abs(found[:, :3] - np.maximum(expected.exact, 0))
        assert (error <= 1e-12 * (np.abs(expected.exact) + expected.terms)).all()
        if len(margins) == 2:
            one = objective(LOSSES[name], curvature="exact").derivatives(np.full(2, margins[1] - margins[0]), labels)[1]
            np.testing.assert_allclose(one, found[:, 1])


def catboost(loss: Polynomial) -> CatBoostObjective:
    return CatBoostObjective(polynomial=loss)


@pytest.mark.usefixtures("implementation", "libraries")
@pytest.mark.parametrize("name", LOSSES)
def test_the_expected_curvature_is_the_larger_expectation(name: str) -> None:
    for margins in MARGINS:
        expected = np.maximum(known(name, margins).expected, known(name, margins).half)
        found = objective(LOSSES[name]).derivatives(np.array([margins]), np.array([0]))[1]
        assert (found >= 0).all()
        np.testing.assert_allclose(found[0, :3], expected, rtol=1e-9, atol=1e-300)
        if len(margins) == 3:
            rows = catboost(LOSSES[name]).calc_ders_multi(np.array(margins), 0.0, 1.0)[1]
            matrix = -np.array(list(rows))
            larger = max(known(name, margins).expected, known(name, margins).half, key=np.sum)
            np.testing.assert_allclose(np.diag(matrix), larger, rtol=1e-9, atol=1e-300)
            # Beside the diagonal, terms cancel where a class is sure.
            np.testing.assert_allclose(matrix.sum(0), 0.0, atol=1e-12 * larger.max() if max(margins) < 10 else 1e-14)
        if len(margins) == 2:
            one = objective(LOSSES[name]).derivatives(np.array([margins[1] - margins[0]]), np.array([0]))[1]
            np.testing.assert_allclose(one, found[:, 1])


@pytest.mark.usefixtures("implementation")
def test_the_curvature_of_poly_1_is_the_documented_one() -> None:
    z = np.linspace(-9, 9, 25)
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    for e in (-1.0, 0.0, 2.0, 40.0):
        found = PolyObjective(e).derivatives(z, np.zeros(25))[1]
        numerator = 1 + e + np.maximum(-2 * e * p * q, e**2 * p * q)
        np.testing.assert_allclose(found, p * q * numerator / (1 + 2 * e * p * q), rtol=1e-9)
        exact = PolyObjective(e, curvature="exact").derivatives(z, np.ones(25))[1]
        assert ((exact == 0) == (p <= (e - 1) / (2 * e) if e > 1 else p < 0)).all()
    np.testing.assert_allclose(PolyObjective(3.0, curvature="cross-entropy").derivatives(z, z * 0)[1], p * q)


@pytest.mark.usefixtures("implementation")
def test_one_against_all_is_a_problem_of_two_classes_each() -> None:
    margins, labels, weight = np.array([[0.5, -1.0, 2.0], [1.0, 3.0, -2.0]]), np.array([2, 0]), np.array([1.0, 3.0])
    each, alone = PolyObjective(2.0, one_vs_all=True), PolyObjective(2.0)
    found = each.derivatives(margins, labels, weight)
    for k in range(3):
        expected = alone.derivatives(margins[:, k], labels == k, weight)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[:, k], other)
        np.testing.assert_array_equal(each.probabilities(margins)[:, k], alone.probabilities(margins[:, k]))
    losses = [alone.log_loss(margins[:, k], labels == k, weight) for k in range(3)]
    assert each.log_loss(margins, labels, weight) == pytest.approx(np.mean(losses))
    start = each.starting_score([0, 1, 1, 2, 2, 2])
    assert start[2] == pytest.approx(alone.starting_score([0, 0, 0, 1, 1, 1]), abs=1e-12)
    assert start[0] == pytest.approx(alone.starting_score([1, 0, 0, 0, 0, 0]))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", LOSSES)
def test_a_masked_class_changes_nothing(name: str) -> None:
    margins, labels = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -2.0]]), np.array([0, 2])
    expected = objective(LOSSES[name]).derivatives(margins, labels)
    found = objective(LOSSES[name]).derivatives(np.column_stack([margins, [-np.inf, -np.inf]]), labels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[:, :3], other, rtol=1e-12)
        np.testing.assert_array_equal(one[:, 3], 0.0)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("curvature", ["expected", "exact", "cross-entropy"])
def test_no_margin_is_too_large(name: str, curvature: str) -> None:
    extreme = [-np.inf, -1e308, -800.0, -80.0, 0.0, 30.0, 1e308, np.inf]
    margins = np.array([(a, b, c) for a in extreme for b in extreme for c in (0.0, np.inf)])
    loss = objective(LOSSES[name], curvature=curvature)
    with np.errstate(all="raise", under="ignore"):
        for z in (margins, margins[:, 0], np.array([[-np.inf, 700.0]])):
            for label in (0, 1):
                labels = np.full(len(z), label)
                gradient, second = loss.derivatives(z, labels)
                assert np.isfinite(gradient).all()
                assert np.isfinite(second).all()
                assert (second >= 0).all()
                assert np.isfinite(loss.probabilities(z)).all()
                assert not np.isnan(loss.log_loss(z, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_are_the_posterior(name: str) -> None:
    loss = objective(LOSSES[name], curvature="cross-entropy")
    for margins in MARGINS:
        expected = known(name, margins).posterior
        found = loss.probabilities(np.array([margins]))
        np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-30)
        np.testing.assert_allclose(found.sum(), 1.0)
        assert loss.log_loss(np.array([margins]), [1]) == pytest.approx(-np.log(expected[1]), rel=1e-9, abs=1e-15)
        if len(margins) == 2:
            one = np.array([margins[1] - margins[0]])
            np.testing.assert_allclose(loss.probabilities(one), expected[1], rtol=1e-9, atol=1e-30)
    assert loss.probabilities(np.zeros(1, np.float32)).dtype == np.float32
    weighted = objective(LOSSES[name], curvature="cross-entropy", class_weight=[1.0, 3.0])
    two = np.array([-0.5, 2.0])
    no, yes = 1 - loss.probabilities(two)[0], loss.probabilities(two)[1]
    expected_loss = -(0.5 * np.log(no) + 2.0 * 3.0 * np.log(yes)) / 6.5
    assert weighted.log_loss(two, [0, 1], [0.5, 2.0]) == pytest.approx(expected_loss)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("options", [{}, {"one_vs_all": True}, {"curvature": "exact"}])
def test_many_rows_are_as_each_alone(order: Any, dtype: Any, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    rows, loss = objectives.BLOCK + 3, PolyObjective(2.0, **options)
    labels, weight = rng.integers(0, 3, rows), rng.uniform(0, 2, rows)
    for shape in ((rows,), (rows, 3)):
        margins, y = np.asarray(rng.normal(0, 3, shape), dtype, order=order), labels % (2 if len(shape) == 1 else 3)
        found, some = loss.derivatives(margins, y, weight), rng.choice(rows, 500)
        for whole, part in zip(found, loss.derivatives(margins[some], y[some], weight[some]), strict=True):
            assert whole.dtype == dtype
            np.testing.assert_allclose(whole[some], part, rtol=1e-6 if dtype == np.float32 else 1e-14)
        of_double = loss.derivatives(margins.astype(float), y, weight)
        for one, other in zip(found, of_double, strict=True):
            np.testing.assert_array_equal(one, other.astype(dtype))
        np.testing.assert_allclose(loss.probabilities(margins)[some], loss.probabilities(margins[some]), rtol=1e-6)
        parts = [loss.log_loss(margins[part], y[part], weight[part]) for part in (slice(0, 7), slice(7, None))]
        expected = np.average(parts, weights=[weight[:7].sum(), weight[7:].sum()])
        assert loss.log_loss(margins, y, weight) == pytest.approx(expected)


PROPER_STARTS = [poly1(0.0), poly1(2.0), poly1(-1.0), poly1(40.0), focal(2.0), focal(0.5), poly_n(1.0, -0.4, 0.2)]


@pytest.mark.parametrize("loss", PROPER_STARTS, ids=str)
@pytest.mark.parametrize("counts", [(5, 3), (97, 3), (5, 3, 9), (1, 200, 50, 8)])
def test_the_starting_score_minimizes_the_loss(loss: Polynomial, counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    weight = 0.5 + np.arange(len(labels)) % 3
    totals = np.bincount(labels, weights=weight)
    start = objective(loss).starting_score(labels, weight)
    margins = np.array([0.0, start]) if len(counts) == 2 else start

    def risk(free: Array) -> Any:
        z = np.array([0.0, *free])
        logp = z - np.logaddexp.reduce(z)
        return totals @ loss.value(logp, -np.expm1(logp)) / totals.sum()

    best = minimize(risk, margins[1:] - margins[0] + 0.3, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
    np.testing.assert_allclose(margins[1:] - margins[0], best.x, atol=1e-5)
    rows = np.full(len(labels), start) if len(counts) == 2 else np.tile(start, (len(labels), 1))
    gradient = objective(loss).derivatives(rows, labels, weight)[0]
    np.testing.assert_allclose(gradient.sum(0), 0.0, atol=1e-9 * totals.sum())
    shares = objective(loss).probabilities(rows)[0]
    np.testing.assert_allclose(shares, totals[1] / totals.sum() if len(counts) == 2 else totals / totals.sum())


def test_the_starting_score_of_cross_entropy_is_the_log_odds() -> None:
    assert PolyObjective(0.0).starting_score([0, 1, 1, 1]) == pytest.approx(np.log(3))
    weighted = PolyObjective(0.0, class_weight=[1.0, 2.0, 5.0])
    np.testing.assert_allclose(weighted.starting_score([0, 0, 1, 2]), np.log([2 / 9, 2 / 9, 5 / 9]))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed for all that the objectives look at; tests/test_boosting_libraries.py trains with the real ones."""
    for name in ("xgboost", "lightgbm", "catboost"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__="99.1"))


class Data:
    """What XGBoost and LightGBM give to an objective beside the margins."""

    def __init__(self, labels: Array, weight: Array | None) -> None:
        self.get_label, self.get_weight = lambda: labels, lambda: weight


THREE, TWO = np.array([[0.5, -1.0, 2.0], [1.0, 3.0, -2.0]]), np.array([0.5, -2.0])
LABELS, ROW_WEIGHT = np.array([1, 0]), np.array([2.0, 0.5])


@pytest.mark.usefixtures("libraries", "implementation")
@pytest.mark.parametrize(("kind", "factor"), [(XGBoostObjective, 2.0), (LightGBMObjective, 1.5)])
@pytest.mark.parametrize("weight", [None, ROW_WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("margins", [TWO, THREE], ids=["binary", "softmax"])
def test_xgboost_and_lightgbm_get_what_they_expect(kind: Any, factor: float, weight: Any, margins: Array) -> None:
    theirs, plain = kind(2.0), PolyObjective(2.0)
    gradient, curvature = plain.derivatives(margins, LABELS, weight)
    curvature = curvature * (factor if margins.ndim == 2 else 1.0)
    loss = plain.log_loss(margins, LABELS, weight)
    data = Data(LABELS, np.array([]) if weight is None and kind is XGBoostObjective else weight)
    for found in (theirs(margins, data), theirs(LABELS, margins, sample_weight=weight)):
        np.testing.assert_allclose(found, (gradient, curvature))
    assert theirs.metric(margins, data)[:2] == ("posterior_log_loss", loss)
    native = theirs.metric(LABELS, margins, sample_weight=weight)
    assert native == (loss if kind is XGBoostObjective else ("posterior_log_loss", loss, False))
    for options in ({"curvature": "exact"}, {"one_vs_all": True}):
        expected = PolyObjective(2.0, **options).derivatives(margins, LABELS, weight)
        np.testing.assert_allclose(kind(2.0, **options)(margins, data), expected)


@pytest.mark.usefixtures("libraries", "implementation")
@pytest.mark.parametrize("curvature", ["expected", "exact", "cross-entropy"])
@pytest.mark.parametrize("weight", [None, ROW_WEIGHT], ids=["plain", "weighted"])
def test_catboost_gets_what_it_expects(curvature: str, weight: Any) -> None:
    theirs, plain = CatBoostObjective(2.0, curvature=curvature), PolyObjective(2.0, curvature=curvature)
    theirs.get_final_error(0.0, 1.0)  # after a round, compiled functions may be used
    gradient, second = plain.derivatives(TWO, LABELS, weight)
    np.testing.assert_allclose(theirs.calc_ders_range(TWO, LABELS, weight), np.stack([-gradient, -second], axis=1))
    gradient, second = plain.derivatives(THREE, LABELS, weight)
    for row in range(2):
        one = 1.0 if weight is None else weight[row]
        first, rows = theirs.calc_ders_multi(THREE[row], float(LABELS[row]), one)
        matrix = np.array(list(rows))
        np.testing.assert_allclose(first, -gradient[row])
        np.testing.assert_allclose(np.diag(matrix), -second[row])
        if curvature == "exact":
            np.testing.assert_array_equal(matrix, np.diag(np.diag(matrix)))
        else:  # adding the same to every margin changes nothing
            np.testing.assert_allclose(np.sum(matrix, axis=0), 0.0, atol=1e-14)
            np.testing.assert_allclose(matrix, np.transpose(matrix))
            assert np.linalg.eigvalsh(matrix).max() < 1e-14
    total, size = theirs.evaluate(list(THREE.T), LABELS, weight)
    assert theirs.get_final_error(total, size) == pytest.approx(plain.log_loss(THREE, LABELS, weight))
    assert size == (2.0 if weight is None else 2.5)
    assert theirs.evaluate([TWO], LABELS, weight)[0] == pytest.approx(size * plain.log_loss(TWO, LABELS, weight))
    assert not theirs.is_max_optimal()
    by_class = CatBoostObjective(2.0, curvature=curvature, class_weight=[1.0, 3.0, 1.0])
    (first, rows), (one, others) = (o.calc_ders_multi(THREE[0], 1.0, w) for o, w in ((by_class, 2.0), (theirs, 6.0)))
    np.testing.assert_allclose(first, one)
    np.testing.assert_allclose(list(rows), list(others))
    weighted = CatBoostObjective(2.0, curvature=curvature, class_weight=[1.0, 3.0])
    weighted.get_final_error(0.0, 1.0)
    found = weighted.calc_ders_range(TWO, LABELS.astype(np.float32), weight)
    np.testing.assert_allclose(found, theirs.calc_ders_range(TWO, LABELS, weight) * np.array([[3.0], [1.0]]))
    with_sigmoids = CatBoostObjective(2.0, curvature=curvature, one_vs_all=True)
    first, rows = with_sigmoids.calc_ders_multi(THREE[0], 1.0, 2.0)
    gradient, second = with_sigmoids.derivatives(THREE[:1], [1], [2.0])
    np.testing.assert_allclose(first, -gradient[0])
    np.testing.assert_allclose(list(rows), -np.diag(second[0]))


@needs_numba
@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{}, {"curvature": "exact"}, {"curvature": "cross-entropy"}, {"one_vs_all": True}])
def test_numba_computes_a_row_as_numpy_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = CatBoostObjective(polynomial=LOSSES[name], **options)
    # What follows in memory is not to be read.
    objective._numbers = np.append(objective._numbers, 1e9)[:-1]
    rows = [np.array([0.3, -2.0, 1.1, 5.0]), np.array([40.0, -3.0, 39.0, -80.0])]

    def all_of_it() -> list[Array]:
        asked = [objective.calc_ders_multi(row, label, 1.5) for row in rows for label in (0.0, 3.0)]
        return [np.array([first, *matrix]) for first, matrix in asked]

    found = all_of_it()
    monkeypatch.setattr(objectives, "_compiled", lambda: None)
    for one, other in zip(found, all_of_it(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-300)


@pytest.mark.usefixtures("libraries", "implementation")
def test_catboost_is_told_what_is_wrong() -> None:
    theirs = CatBoostObjective(2.0)
    theirs.get_final_error(0.0, 1.0)
    for labels in ([0.0, 2.0], [0.5, 1.0], [-1.0, 0.0], [1.0, np.nan]):
        wrong = f"labels must be classes from 0 to 1; got ({labels[0]}|{labels[1]})"
        with pytest.raises(ValueError, match=wrong):
            theirs.calc_ders_range(TWO, np.array(labels), None)
        with pytest.raises(ValueError, match=wrong):
            theirs.evaluate([TWO], np.array(labels), None)
    with pytest.raises(ValueError, match="1 of 2 are nan"):
        theirs.calc_ders_range(np.array([0.0, np.nan]), LABELS, None)
    with pytest.raises(ValueError, match="1 of 2 are nan"):
        theirs.evaluate([np.array([0.0, np.nan])], LABELS, None)
    for label in (3.0, -1.0, 0.5):
        with pytest.raises(ValueError, match=f"labels must be classes from 0 to 2; got {label}"):
            theirs.calc_ders_multi(THREE[0], label, 1.0)
    for labels, weight, message in (
        ([0.0, 1.0, 1.0], None, r"labels must have shape \(2,\)"),
        ([0.0, 1.0], [1.0], r"weight must have shape \(2,\)"),
        ([0.0, 1.0], [1.0, -2.0], "weight must be .* of at least 0; got -2.0"),
        ([0.0, 1.0], [np.inf, 2.0], "weight must be .* of at least 0; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            theirs.calc_ders_range(TWO, np.array(labels), weight)
        with pytest.raises(ValueError, match=message):
            theirs.evaluate([TWO], np.array(labels), None if weight is None else np.array(weight))
    for options in ({}, {"curvature": "exact"}, {"one_vs_all": True}):
        with pytest.raises(ValueError, match="some are nan"):
            CatBoostObjective(2.0, **options).calc_ders_multi(np.array([0.0, np.nan, 1.0]), 1.0, 1.0)
    with pytest.raises(ValueError, match="class_weight must have 3 numbers; got 2"):
        CatBoostObjective(2.0, class_weight=[1.0, 2.0]).calc_ders_multi(THREE[0], 1.0, 1.0)


@pytest.mark.usefixtures("libraries", "implementation")
@pytest.mark.parametrize("class_weight", [None, [1.0, 3.0]], ids=["plain", "weighted"])
def test_catboosts_metric_is_that_of_its_parts(class_weight: Any) -> None:
    """Some rows at once, of which a part may have no weight at all."""
    theirs = CatBoostObjective(2.0, class_weight=class_weight)
    theirs.get_final_error(0.0, 1.0)
    margins, labels = np.linspace(-3, 3, 9), np.array([0, 1, 1, 0, 1, 0, 0, 1, 1], np.float32)
    weight = np.array([2.0, 1.0, 1.0, 0.0, 0.0, 0.0, 3.0, 1.0, 0.5], np.float32)
    parts = [theirs.evaluate([margins[k : k + 3]], labels[k : k + 3], weight[k : k + 3]) for k in (0, 3, 6)]
    found = theirs.get_final_error(*np.sum(parts, axis=0))
    assert found == pytest.approx(theirs.log_loss(margins, labels, weight), rel=1e-14)


@needs_numba
def test_numba_computes_where_it_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    margins, labels = np.zeros((objectives.ENOUGH // 5, 5)), np.zeros(objectives.ENOUGH // 5)
    assert objectives.compiled(margins.size - 1) is None
    asked: list[Any] = []

    def recorded(polynomial: Polynomial, margins: Array, *others: Any) -> tuple[Array, Array]:
        asked.append(margins.shape)
        return margins, margins

    monkeypatch.setattr(objectives.compiled(margins.size), "derivatives", recorded)
    for rows in (len(labels) - 1, len(labels)):
        PolyObjective(2.0).derivatives(margins[:rows], labels[:rows])
    assert asked == [margins.shape]


@needs_numba
@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("name", ["poly1", "poly1_focal(3, 5)", "taylor_cross_entropy", "mean_absolute_error"])
@pytest.mark.parametrize("weight", [False, True])
def test_numba_computes_catboosts_rows_after_a_large_round(
    name: str, weight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, rng = CatBoostObjective(polynomial=LOSSES[name]), np.random.default_rng(0)
    margins = np.array([*rng.normal(0, 4, 60), 900.0, -900.0, np.inf, -np.inf])
    labels = (rng.uniform(size=64) < 0.5).astype(np.float32)
    weights = rng.uniform(0.5, 2, 64).astype(np.float32) if weight else None
    monkeypatch.setattr(objectives, "ENOUGH", 128)

    def all_of_it() -> list[Any]:
        found = objective.evaluate([margins[:60]], labels[:60], None if weights is None else weights[:60])
        ends = [objective.evaluate([margins[k : k + 1]], labels[k : k + 1], None)[0] for k in range(60, 64)]
        return [objective.calc_ders_range(margins, labels, weights), *found, np.array(ends)]

    before = all_of_it()
    assert objective.get_final_error(3.0, 2.0) == 1.5
    assert not objective._large  # 64 rows in this round
    all_of_it()
    objective.get_final_error(3.0, 2.0)
    assert not objective._large  # and in the next
    all_of_it(), all_of_it()
    objective.get_final_error(3.0, 2.0)
    assert objective._large
    calls = []
    monkeypatch.setattr(objectives, "binary_derivatives", lambda *_: calls.append(1))
    monkeypatch.setattr(PolyObjective, "_log_losses", lambda *_: calls.append(1))
    for one, other in zip(all_of_it(), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-149)  # e^-345 is the smallest number of exponential
    assert not calls


@needs_numba
def test_the_exponential_and_logarithms_for_numba_have_all_their_digits() -> None:
    compiled: Any = objectives.compiled(objectives.ENOUGH)
    x, rtol = np.linspace(0.0, 345.0, 5000), 3 * np.finfo(float).eps
    np.testing.assert_allclose([compiled.exponential(-one) for one in x], np.exp(-x), rtol=rtol)
    x = np.concatenate([np.exp(-x), np.linspace(0.0, 1.0, 5000)])
    np.testing.assert_allclose([compiled.log_one_plus(one) for one in x], np.log1p(x), rtol=rtol)
    x = np.concatenate([x[x > 0], 1 / x[x > 0]])
    np.testing.assert_allclose([compiled.logarithm(one) for one in x], np.log(x), rtol=rtol, atol=rtol)


def fails(**options: Any) -> None:
    raise RuntimeError("cannot cache function: no locator available")


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("numba", [None, SimpleNamespace(njit=fails)], ids=["missing", "broken"])
def test_numpy_computes_where_numba_does_not_work(numba: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", numba)
    monkeypatch.delitem(sys.modules, "polylosses.boosting.compiled", raising=False)
    monkeypatch.setattr(objectives, "_compiled", objectives._compiled.__wrapped__)
    assert objectives.compiled(objectives.ENOUGH) is None
    rows = objectives.ENOUGH
    gradient, curvature = PolyObjective(0.0).derivatives(np.zeros(rows), np.zeros(rows))
    assert ((gradient == 0.5) & (curvature == 0.25)).all()
    assert CatBoostObjective(0.0).calc_ders_multi(np.zeros(2), 0.0, 1.0)[0] == [0.5, -0.5]


@pytest.mark.usefixtures("implementation")
def test_arrays_of_any_layout_are_taken() -> None:
    rng = np.random.default_rng(0)
    margins, labels, weight = rng.normal(size=(9, 3)), rng.integers(0, 2, 9), rng.uniform(size=9)
    odd = [np.repeat(of, 2, axis=0)[::2] for of in (margins, labels, weight)]
    for of in odd:
        of.flags.writeable = False
    for k in (slice(None), 0):
        expected = PolyObjective(2.0).derivatives(margins[:, k].copy(), labels, weight)
        np.testing.assert_allclose(PolyObjective(2.0).derivatives(odd[0][:, k], *odd[1:]), expected, rtol=1e-14)


def wrong(**options: Any) -> Any:
    """Calls what is wrong."""
    arguments: dict[str, Any] = {"margins": np.zeros((2, 3)), "labels": np.array([0, 2]), "weight": None}
    return PolyObjective().derivatives(**(arguments | options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wrong(labels=np.array([0, 3])), "labels must be classes from 0 to 2; got 3."),
        (lambda: wrong(labels=np.array([0.5, 1])), "got 0.5"),
        (lambda: wrong(labels=np.array([-1, 1])), "got -1"),
        (lambda: wrong(labels=np.array([np.nan, 1])), "got nan"),
        (lambda: wrong(labels=np.zeros((2, 1))), r"labels must have shape \(2,\)"),
        (lambda: wrong(weight=[1.0, np.nan]), "weight must be .* at least 0; got nan"),
        (lambda: wrong(weight=[1.0, -2.0]), "got -2"),
        (lambda: wrong(weight=[1.0]), r"weight must have shape \(2,\)"),
        (lambda: wrong(margins=np.array([[0.0, np.nan, 0], [0, 0, 0]])), "margins must be numbers; 1 of 6 are nan"),
        (lambda: wrong(margins=np.zeros((2, 1))), r"margins must have shape \(rows,\)"),
        (lambda: PolyObjective(class_weight=[1.0]).derivatives(np.zeros(1), [0]), "class_weight must have 2 numbers"),
        (lambda: PolyObjective().log_loss([0.0, 1.0], [0, 1], [0.0, 0.0]), "weight must be above 0 for some row"),
        (
            lambda: PolyObjective(curvature="true"),
            "curvature must be one of expected, exact, cross-entropy; got 'true'",
        ),
        (lambda: PolyObjective().starting_score([1, 1]), "two classes at least; got 1 alone"),
        (lambda: PolyObjective().starting_score([0, 0]), "two classes at least; got 0 alone"),
        (lambda: PolyObjective().starting_score([]), "two classes at least; got none"),
        (lambda: PolyObjective().starting_score([0, 2**40]), "none of 1099511627777 classes is 1"),
        (lambda: PolyObjective().starting_score([0, 2]), "none of 3 classes is 1"),
        (lambda: PolyObjective().starting_score([0, 1], [1.0, 0.0]), "none of 2 classes is 1"),
        (lambda: PolyObjective().starting_score([0, np.nan]), "got nan"),
        (
            lambda: PolyObjective(polynomial=taylor_cross_entropy(2)).starting_score([0, 0, 0, 0, 1]),
            r"no finite starting score on these labels: start from cross-entropy's",
        ),
    ],
)
def test_mistakes_are_explained(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("implementation")
def test_an_epsilon_below_the_bound_warns_and_has_no_negative_curvature() -> None:
    with pytest.warns(UserWarning, match="epsilon = -3") as warned:
        low = PolyObjective(-3.0)
    assert warned[0].filename == __file__
    margins = np.random.default_rng(0).normal(size=(50, 4))
    gradient, curvature = low.derivatives(margins, np.zeros(50))
    assert np.isfinite(gradient).all()
    assert (curvature >= 0).all()
    with pytest.raises(ValueError, match="no finite starting score"):
        low.starting_score([0, 1, 1])
    with pytest.warns(UserWarning, match="epsilon = -2"):
        concave = PolyObjective([0.0, -2.0])  # the curvature in p is negative near p = 1
    assert (concave.derivatives(margins, np.zeros(50))[1] >= 0).all()
    for loss in (low, concave):
        of_numpy = derivatives(loss.polynomial, margins.T, np.zeros(50, int), "expected")[1].T
        np.testing.assert_allclose(loss.derivatives(margins, np.zeros(50))[1], of_numpy, rtol=1e-9)
