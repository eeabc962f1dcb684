""":class:`polylosses.Polynomial`: values and slopes of all test losses, and the constructor's arguments."""

import math
import pickle
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch

import polylosses
import reference
from cases import LOSSES
from polylosses import Polynomial, poly1
from polylosses.polynomial import DEFAULT_EPSILON, from_arguments

EPS = float(np.finfo(float).eps)
SMALLEST = float(np.finfo(float).tiny)  # results below it may underflow to 0
Q = [1e-300, 1e-100, 1e-30, 1e-17, 1e-9, 1e-3, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-9, 1 - 2.0**-53]


def exactly(q: float) -> tuple[Any, Any, float]:
    """``p`` and ``q`` as mpmath numbers, and ``log p`` rounded to a float."""
    p = 1 - mp.mpf(q)
    return p, mp.mpf(q), float(mp.log(p))


def condition(loss: Polynomial, q: Any) -> tuple[Any, Any]:
    """The conditions of value and slope: the sums of the absolute values of their terms in powers of q."""
    c = [abs(mp.mpf(x)) for x in loss.coefficients]
    # log_weight + p S', where the coefficients of p S' in powers of q are (j + 1) c[j+1] - j c[j].
    signed = [mp.mpf(j * x) for j, x in enumerate(loss.coefficients, start=1)]
    powers = [b - a for a, b in zip([-mp.mpf(loss.log_weight), *signed], [*signed, mp.mpf(0)], strict=True)]
    logp = abs(mp.log1p(-q)) * loss.log_weight
    terms = q ** mp.mpf(loss.gamma) * (logp + mp.fsum(x * q**j for j, x in enumerate(c, start=1)))
    slope_terms = q ** mp.mpf(loss.gamma) * mp.fsum(abs(x) * q**j for j, x in enumerate(powers))
    return terms, slope_terms + loss.gamma * terms / q


@pytest.mark.parametrize("name", LOSSES)
def test_slope_of_the_oracle_is_its_derivative(name: str) -> None:
    loss = LOSSES[name]
    with mp.workdps(100):
        for q in Q[4:-2]:
            p = 1 - mp.mpf(q)
            # A step relative to q, since the curvature near q = 0 is of order 1 / q.
            step = mp.mpf(10) ** -30 * q

            def at(logp: Any) -> Any:
                return reference.value(loss, mp.exp(logp), -mp.expm1(logp))

            quotient = (at(mp.log(p) + step) - at(mp.log(p) - step)) / (2 * step)
            found = reference.slope(loss, p, mp.mpf(q))
            assert abs(quotient - found) <= 1e-15 * abs(found), f"at q = {q}"


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_the_oracles(name: str) -> None:
    loss = LOSSES[name]
    with mp.workdps(400):
        for q in Q:
            p, exact_q, logp = exactly(q)
            found, right = loss.value(logp, q), reference.value(loss, p, exact_q)
            # Each term is rounded for each power, for its coefficient and in the sum.
            steps = 3 + 2 * len(loss.coefficients)
            assert abs(found - right) <= steps * EPS * condition(loss, exact_q)[0] + SMALLEST, (
                f"at q = {q}: {found}, not {float(right)}"
            )


@pytest.mark.parametrize("name", LOSSES)
def test_slope_is_the_oracles(name: str) -> None:
    loss = LOSSES[name]
    with mp.workdps(400):
        for q in Q:
            p, exact_q, logp = exactly(q)
            found, right = loss.slope(logp, q), reference.slope(loss, p, exact_q)
            steps = 5 + 3 * len(loss.coefficients)
            assert abs(found - right) <= steps * EPS * condition(loss, exact_q)[1] + SMALLEST, (
                f"at q = {q}: {found}, not {float(right)}"
            )


def test_slope_keeps_its_digits_where_the_leading_term_cancels() -> None:
    for q in [5e-324, 1e-310, *Q]:
        assert poly1(-1.0).slope(math.log1p(-q), q) == -q


@pytest.mark.parametrize("name", LOSSES)
def test_certain_and_impossible_labels(name: str) -> None:
    loss = LOSSES[name]
    assert loss.value(0.0, 0.0) == 0
    first = loss.coefficients[0] if loss.coefficients else 0.0
    assert loss.slope(0.0, 0.0) == (-(loss.log_weight + first) if loss.gamma == 0 else 0)
    assert loss.value(-math.inf, 1.0) == (math.inf if loss.log_weight else sum(loss.coefficients))
    assert math.isnan(loss.value(math.nan, math.nan))
    assert math.isnan(loss.slope(math.nan, math.nan))


ARRAYS: dict[str, Callable[[list[float]], Any]] = {
    "numpy": np.array,
    "torch": lambda numbers: torch.tensor(numbers, dtype=torch.float64),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_arrays_are_elementwise_floats(name: str, make: Callable[[list[float]], Any]) -> None:
    loss = LOSSES[name]
    logp = [math.log1p(-q) for q in Q]
    for method in (loss.value, loss.slope):
        found = method(make(logp), make(Q))
        assert type(found) is type(make(Q))
        assert found.dtype == make(Q).dtype
        for q, number, element in zip(Q, [method(*x) for x in zip(logp, Q, strict=True)], found.tolist(), strict=True):
            # Powers may be rounded differently in each library, and that difference remains where a sum cancels.
            bound = 2 * EPS * float(sum(condition(loss, mp.mpf(q))))
            assert abs(element - number) <= bound, f"{method.__name__} at q = {q}"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_arrays_stay_narrow(dtype: type[np.floating[Any]]) -> None:
    for name, loss in LOSSES.items():
        q = np.array([0.25, 0.5], dtype)
        assert loss.value(np.log1p(-q), q).dtype == dtype, name
        assert loss.slope(np.log1p(-q), q).dtype == dtype, name


@pytest.mark.parametrize("name", LOSSES)
def test_series_is_taylors(name: str) -> None:
    loss = LOSSES[name]
    with mp.workdps(60):
        taylor = mp.taylor(
            lambda q: (
                -mp.mpf(loss.log_weight) * mp.log(1 - q)
                + mp.fsum(mp.mpf(c) * q**j for j, c in enumerate(loss.coefficients, start=1))
            ),
            0,
            12,
        )
    assert loss.series(12) == pytest.approx([float(x) for x in taylor[1:]], rel=4 * EPS, abs=1e-15)
    assert loss.series(3) == loss.series(12)[:3]
    assert loss.series(0) == ()


def test_series_of_a_negative_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="-1"):
        poly1().series(-1)


@pytest.mark.parametrize(
    "number",
    [2, 2.0, np.float64(2), np.float32(2), np.float16(2), np.int64(2), np.uint8(2), Fraction(2)],
    ids=lambda x: type(x).__name__,
)
def test_every_kind_of_number_is_a_float_inside(number: Any) -> None:
    for loss in (
        Polynomial((number,), number, number),
        Polynomial([number], number, number),  # type: ignore[arg-type]
        Polynomial(np.array([2.0]), number, number),  # type: ignore[arg-type]
    ):
        assert loss == Polynomial((2.0,), 2.0, 2.0)
        assert type(loss.coefficients) is tuple
        assert {type(x) for x in (*loss.coefficients, loss.gamma, loss.log_weight)} == {float}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, np.float32("nan")], ids=str)
@pytest.mark.parametrize("name", ["coefficients[0]", "coefficients[1]", "gamma", "log_weight"])
def test_numbers_must_be_finite(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} must be finite; got {float(wrong)!r}")):
        construct(name, wrong)


@pytest.mark.parametrize("wrong", ["1", None, [1.0], (1.0,), 1j, {}], ids=repr)
@pytest.mark.parametrize("name", ["coefficients[0]", "coefficients[1]", "gamma", "log_weight"])
def test_numbers_must_be_numbers(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{name} must be a number") + ".*" + re.escape(f"got {wrong!r}")):
        construct(name, wrong)


@pytest.mark.parametrize("name", ["gamma", "log_weight"])
def test_exponent_and_weight_are_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be at least 0; got -0\.25"):
        construct(name, -0.25)


@pytest.mark.parametrize(
    "wrong", [1.0, "abc", None, {1.0}, np.ones((2, 2)), torch.ones(())], ids=lambda x: type(x).__name__
)
def test_coefficients_must_be_a_sequence(wrong: Any) -> None:
    with pytest.raises(TypeError, match="sequence of numbers.*" + re.escape(f"got {wrong!r}")):
        Polynomial(wrong)


def construct(name: str, value: Any) -> Polynomial:
    """A polynomial with ``value`` for the named argument, and valid numbers for the others."""
    if name in ("gamma", "log_weight"):
        return Polynomial(**{name: value})
    coefficients = [0.5, 0.5]
    coefficients[int(name[-2])] = value
    return Polynomial(tuple(coefficients))


@pytest.mark.parametrize("log_weight", [1.0, 3.0])
@pytest.mark.parametrize("j", [1, 2, 3, 7])
def test_a_warning_names_the_bound(j: int, log_weight: float) -> None:
    bound = -log_weight / j
    Polynomial((*[0.0] * (j - 1), bound), log_weight=log_weight)  # does not warn at the bound: warnings are errors here
    below = bound * (1 + 1e-3)
    with pytest.warns(UserWarning, match=re.escape(f"{below:g}") + ".*" + re.escape(f"bound {bound:g}:")):
        loss = Polynomial((*[0.0] * (j - 1), below), log_weight=log_weight)
    assert loss.series(j)[-1] < 0


def test_the_warning_is_true() -> None:
    with pytest.warns(UserWarning, match="no longer monotone in p and goes negative"):
        loss = poly1(-1.5)
    q = np.linspace(0.001, 0.999, 999)
    assert loss.value(np.log1p(-q), q).min() < 0
    assert np.diff(loss.value(np.log1p(-q), q)).min() < 0
    at_the_bound = poly1(-1.0)
    assert at_the_bound.value(np.log1p(-q), q).min() > 0
    assert np.diff(at_the_bound.value(np.log1p(-q), q)).min() > 0


def test_tensors_are_taken_as_they_are() -> None:
    epsilon = torch.tensor(-7.0, requires_grad=True)
    loss = Polynomial((epsilon,), gamma=torch.tensor(2.0), log_weight=torch.tensor(1.0))
    assert loss.coefficients[0] is epsilon
    loss.value(torch.tensor(-0.5), torch.tensor(0.25)).backward()
    assert epsilon.grad == 0.25**3


def test_it_is_a_frozen_value() -> None:
    loss = Polynomial((1.0, 0.5), 2.0)
    for name in ("coefficients", "gamma", "log_weight"):
        with pytest.raises(AttributeError):
            setattr(loss, name, 0.0)
    assert loss == Polynomial([1, 0.5], 2)  # type: ignore[arg-type]
    assert hash(loss) == hash(Polynomial([1, 0.5], 2))  # type: ignore[arg-type]
    assert loss != Polynomial((1.0, 0.5))
    assert len(set(LOSSES.values())) >= len(LOSSES) - 1  # poly_n() is cross_entropy()


@pytest.mark.parametrize("name", LOSSES)
def test_it_survives_repr_and_pickle(name: str) -> None:
    assert eval(repr(LOSSES[name]), vars(polylosses).copy()) == LOSSES[name]
    assert pickle.loads(pickle.dumps(LOSSES[name])) == LOSSES[name]


FORMULAS = {
    "-log p": Polynomial(),
    "-log p + 2 (1 - p)": poly1(2.0),
    "-log p + (1 - p)": poly1(1.0),
    "-log p - 0.5 (1 - p)": poly1(-0.5),
    "-log p + 0.25 (1 - p)^3": polylosses.poly_n(0, 0, 0.25),
    "(1 - p)^2 (-log p)": polylosses.focal(2.0),
    "(1 - p)^0.5 (-3 log p + (1 - p) - 0.25 (1 - p)^2)": Polynomial((1.0, -0.25), 0.5, 3.0),
    "(1 - p) + 0.5 (1 - p)^2": polylosses.taylor_cross_entropy(2),
    "0": Polynomial(log_weight=0.0),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_str_is_the_formula(formula: str) -> None:
    assert str(FORMULAS[formula]) == formula


def test_str_of_tensors_does_not_fail() -> None:
    epsilon = torch.tensor(2.0, requires_grad=True)
    assert "2." in str(Polynomial((epsilon,), gamma=torch.nn.Parameter(torch.tensor(0.5))))


class TestArguments:
    """``from_arguments``: the polynomial given by epsilon, gamma or polynomial."""

    def test_one_epsilon_is_poly1_and_more_are_poly_n(self) -> None:
        assert from_arguments(2, 0.0, None) == poly1(2.0)
        assert from_arguments(np.float32(2), 0.0, None) == poly1(2.0)
        assert from_arguments([1, 2], 3, None) == Polynomial((1.0, 2.0), 3.0)
        assert from_arguments(np.array([1.0, 2.0]), 0.0, None) == Polynomial((1.0, 2.0))
        assert from_arguments((), 0.0, None) == Polynomial()
        assert from_arguments(DEFAULT_EPSILON, 0.0, None) == poly1(1.0)
        assert from_arguments(np.array(2.0), 0.0, None).coefficients == (np.array(2.0),)

    def test_a_polynomial_stands_for_itself(self) -> None:
        loss = polylosses.focal(2.0)
        assert from_arguments(DEFAULT_EPSILON, 0.0, loss) is loss
        assert from_arguments(DEFAULT_EPSILON, 0, loss) is loss

    @pytest.mark.parametrize(("epsilon", "gamma"), [(2.0, 0.0), (0.0, 0.0), (DEFAULT_EPSILON, 2.0), ((1.0,), 0.0)])
    def test_both_are_an_error(self, epsilon: Any, gamma: float) -> None:
        typed = re.escape(f"got epsilon={epsilon!r}, gamma={gamma!r}, polynomial=Polynomial(")
        with pytest.raises(ValueError, match="either polynomial or epsilon and gamma, not both; " + typed):
            from_arguments(epsilon, gamma, polylosses.focal(2.0))

    @pytest.mark.parametrize("wrong", ["poly1", 2.0, polylosses.poly1, Polynomial])
    def test_a_polynomial_must_be_one(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"must be a polylosses\.Polynomial.*" + re.escape(f"got {wrong!r}")):
            from_arguments(DEFAULT_EPSILON, 0.0, wrong)

    @pytest.mark.parametrize("wrong", ["1.0", None, {}, 1j], ids=repr)
    def test_epsilon_must_be_numbers(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match="epsilon must be a number.*" + re.escape(f"got {wrong!r}")):
            from_arguments(wrong, 0.0, None)

    def test_epsilon_has_one_dimension_at_most(self) -> None:
        with pytest.raises(ValueError, match=re.escape("(2, 3)")):
            from_arguments(np.ones((2, 3)), 0.0, None)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (polylosses.poly1, "epsilon"),
        (lambda x: polylosses.poly_n(1.0, x), "epsilons[1]"),
        (polylosses.poly1_focal, "epsilon"),
        (lambda x: polylosses.poly1_focal(1.0, x), "gamma"),
        (polylosses.focal, "gamma"),
        (lambda x: polylosses.symmetric_cross_entropy(alpha=x), "alpha"),
        (lambda x: polylosses.symmetric_cross_entropy(beta=x), "beta"),
        (lambda x: polylosses.symmetric_cross_entropy(A=x), "A"),
        (lambda x: from_arguments(x, 0.0, None), "epsilon"),
        (lambda x: from_arguments((1.0, x), 0.0, None), "epsilon[1]"),
        (lambda x: from_arguments(np.array([1.0, x]), 0.0, None), "epsilon[1]"),
        (lambda x: from_arguments(1.0, x, None), "gamma"),
    ],
)
def test_errors_name_the_argument_that_was_given(make: Any, named: str) -> None:
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^{re.escape(named)} must be finite; got {wrong}\.$"):
            make(wrong)
