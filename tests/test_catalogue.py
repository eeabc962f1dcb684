"""The named losses against the formulas in their papers."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest

import polylosses
import reference
from cases import CATALOGUE
from polylosses import Polynomial, catalogue

EPS = float(np.finfo(float).eps)
P = [1e-9, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-9]

# Each paper's formula, as a function of the probability p of the true class.
FORMULAS: dict[str, tuple[Polynomial, Callable[[Any], Any]]] = {
    "cross_entropy()": (polylosses.cross_entropy(), lambda p: -mp.log(p)),
    "poly1()": (polylosses.poly1(), lambda p: -mp.log(p) + (1 - p)),
    "poly1(2.5)": (polylosses.poly1(2.5), lambda p: -mp.log(p) + 2.5 * (1 - p)),
    "poly1(-1)": (polylosses.poly1(-1), lambda p: -mp.log(p) - (1 - p)),
    "poly_n()": (polylosses.poly_n(), lambda p: -mp.log(p)),
    "poly_n(1, 0.5, -0.25)": (
        polylosses.poly_n(1, 0.5, -0.25),
        lambda p: -mp.log(p) + (1 - p) + 0.5 * (1 - p) ** 2 - 0.25 * (1 - p) ** 3,
    ),
    "focal()": (polylosses.focal(), lambda p: -((1 - p) ** 2) * mp.log(p)),
    "focal(0.5)": (polylosses.focal(0.5), lambda p: -mp.sqrt(1 - p) * mp.log(p)),
    "poly1_focal()": (polylosses.poly1_focal(), lambda p: -((1 - p) ** 2) * mp.log(p) + (1 - p) ** 3),
    "poly1_focal(-1, 0.5)": (
        polylosses.poly1_focal(-1, 0.5),
        lambda p: -mp.sqrt(1 - p) * mp.log(p) - (1 - p) ** mp.mpf(1.5),
    ),
    "taylor_cross_entropy()": (polylosses.taylor_cross_entropy(), lambda p: (1 - p) + (1 - p) ** 2 / 2),
    "taylor_cross_entropy(4)": (
        polylosses.taylor_cross_entropy(4),
        lambda p: (1 - p) + (1 - p) ** 2 / 2 + (1 - p) ** 3 / 3 + (1 - p) ** 4 / 4,
    ),
    # For a one-hot label, the term of the true class in sum_k |y_k - p_k| is 1 - p, and so is the sum of the others.
    "mean_absolute_error()": (polylosses.mean_absolute_error(), lambda p: ((1 - p) + (1 - p)) / 2),
    # The reverse term is -sum_k p_k log y_k, where log 1 = 0 and log 0 is A.
    "symmetric_cross_entropy()": (
        polylosses.symmetric_cross_entropy(),
        lambda p: mp.mpf(0.1) * -mp.log(p) - (1 - p) * -4,
    ),
    "symmetric_cross_entropy(0.5, 2, -3)": (
        polylosses.symmetric_cross_entropy(0.5, 2, -3),
        lambda p: -0.5 * mp.log(p) - 2 * (1 - p) * -3,
    ),
}


@pytest.mark.parametrize(("loss", "formula"), FORMULAS.values(), ids=FORMULAS)
def test_value_and_slope_are_the_papers(loss: Polynomial, formula: Callable[[Any], Any]) -> None:
    with mp.workdps(60):
        for probability in P:
            p = mp.mpf(probability)
            assert abs(reference.value(loss, p, 1 - p) - formula(p)) <= EPS * (1 + abs(formula(p)))
            q = float(1 - p)
            value, slope = loss.value(float(mp.log(p)), q), loss.slope(float(mp.log(p)), q)
            derivative = mp.diff(lambda logp: formula(mp.exp(logp)), mp.log(p))
            # Terms may cancel, so that the error is bounded relative to the largest term.
            largest = reference.slope_terms(loss, p, 1 - p)
            assert abs(value - formula(p)) <= 8 * EPS * max(abs(formula(p)), largest * q), f"value at p = {probability}"
            assert abs(slope - derivative) <= 8 * EPS * largest, f"slope at p = {probability}"


def test_every_name_makes_a_polynomial_without_arguments() -> None:
    assert set(catalogue.ALL) == set(catalogue.__all__)
    assert list(catalogue.__all__) == sorted(catalogue.__all__)
    for name, make in catalogue.ALL.items():
        assert make is getattr(polylosses, name)
        assert isinstance(make(), Polynomial)
        defaults = {p.default for p in inspect.signature(make).parameters.values() if p.kind != p.VAR_POSITIONAL}
        assert inspect.Parameter.empty not in defaults, name


@pytest.mark.parametrize("name", CATALOGUE)
def test_defaults_are_monotone(name: str) -> None:
    """With coefficients >= 0, the loss is nonnegative and decreases with the probability of the true class."""
    assert min(CATALOGUE[name].series(50)) >= 0


def test_they_are_one_family() -> None:
    assert polylosses.focal(0) == polylosses.cross_entropy() == polylosses.poly_n()
    assert polylosses.poly_n(3) == polylosses.poly1(3) == polylosses.poly1_focal(3, 0)
    assert polylosses.taylor_cross_entropy(1) == polylosses.mean_absolute_error()
    for order in (1, 2, 5):
        series = polylosses.taylor_cross_entropy(order).series(8)
        assert series[:order] == polylosses.cross_entropy().series(order)
        assert series[order:] == (0.0,) * (8 - order)
    alpha, beta, A = 0.5, 3.0, -4.0
    symmetric, poly1 = polylosses.symmetric_cross_entropy(alpha, beta, A), polylosses.poly1(beta * abs(A) / alpha)
    assert symmetric.series(5) == pytest.approx([alpha * x for x in poly1.series(5)])
    assert symmetric.value(-0.5, 0.4) == pytest.approx(alpha * poly1.value(-0.5, 0.4))


WRONG: dict[str, tuple[Callable[[], Polynomial], type[Exception], str]] = {
    "poly1 of text": (lambda: polylosses.poly1("2"), TypeError, "'2'"),
    "poly1 of nan": (lambda: polylosses.poly1(float("nan")), ValueError, "nan"),
    "poly_n of a list": (lambda: polylosses.poly_n([1.0, 2.0]), TypeError, "[1.0, 2.0]"),
    "focal of -2": (lambda: polylosses.focal(-2), ValueError, "gamma must be at least 0; got -2.0"),
    "poly1_focal of -0.5": (lambda: polylosses.poly1_focal(1, -0.5), ValueError, "gamma must be at least 0; got -0.5"),
    "order 0": (lambda: polylosses.taylor_cross_entropy(0), ValueError, "got 0"),
    "order -1": (lambda: polylosses.taylor_cross_entropy(-1), ValueError, "got -1"),
    "order 1.5": (lambda: polylosses.taylor_cross_entropy(1.5), ValueError, "got 1.5"),  # type: ignore[arg-type]
    "order of text": (lambda: polylosses.taylor_cross_entropy("2"), ValueError, "got '2'"),  # type: ignore[arg-type]
    "A of 0": (lambda: polylosses.symmetric_cross_entropy(A=0), ValueError, "got 0"),
    "A of 4": (lambda: polylosses.symmetric_cross_entropy(A=4.0), ValueError, "got 4.0"),
    "A of nan": (lambda: polylosses.symmetric_cross_entropy(A=float("nan")), ValueError, "got nan"),
    "alpha of -1": (lambda: polylosses.symmetric_cross_entropy(alpha=-1), ValueError, "-1.0"),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_errors_repeat_what_was_typed(make: Callable[[], Polynomial], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    "make", [lambda: polylosses.poly1(-2), lambda: polylosses.poly_n(-2), lambda: polylosses.poly1_focal(-2)]
)
def test_the_warning_points_at_the_callers_line(make: Callable[[], Polynomial]) -> None:
    with pytest.warns(UserWarning, match="bound -1") as caught:
        make()
    assert caught[0].filename == __file__
