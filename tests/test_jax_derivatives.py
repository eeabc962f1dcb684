"""First and second derivatives in JAX at all confidences: finite, and right against 60 digits."""

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from mpmath import mp, mpf

from cases import LOSSES, slow_but
from on_jax import stacked
from polylosses import Polynomial
from polylosses.jax import (
    linear_poly_cross_entropy,
    poly_cross_entropy,
    poly_cross_entropy_with_integer_labels,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
    sigmoid_poly_cross_entropy,
)
from reference import slope

MARGINS = np.array([-120.0, -88, -20, -4, -0.5, 0, 1, 3, 8, 15, 18, 26, 40, 60, 80, 87, 100, 300])
FINFO = np.finfo(np.float32)
EXTREME = np.array([-np.inf, FINFO.min, FINFO.min / 2, -1e30, 1e30, FINFO.max, np.inf])

Loss = Callable[[Array, Polynomial], Array]


def pair(m: Array) -> Array:
    return jnp.stack([m, jnp.zeros_like(m)], -1)


# Functions of the logit margin. Sigmoids give 1 - p to full relative accuracy, softmax only up to the rounding error
# of p.
SIGMOIDS: dict[str, Loss] = {
    "sigmoid": lambda m, loss: sigmoid_poly_cross_entropy(m, jnp.ones_like(m), polynomial=loss),
    "sigmoid, negatives": lambda m, loss: sigmoid_poly_cross_entropy(-m, jnp.zeros_like(m), polynomial=loss),
    "from nll": lambda m, loss: poly_from_nll(-jax.nn.log_sigmoid(m), polynomial=loss),
}
SOFTMAXES: dict[str, Loss] = {
    "integers": lambda m, loss: poly_cross_entropy_with_integer_labels(pair(m), 0, polynomial=loss),
    "probabilities": lambda m, loss: poly_cross_entropy(pair(m), jnp.array([1.0, 0.0]), polynomial=loss),
    "head": lambda m, loss: linear_poly_cross_entropy(
        m[None, None], jnp.array([[1.0, 0.0]]), jnp.zeros(1, int), polynomial=loss
    )[0],
}
POSTERIORS: dict[str, Loss] = {
    "poly_softmax": lambda m, loss: poly_softmax(pair(m), polynomial=loss)[..., 0],
    "poly_sigmoid": lambda m, loss: poly_sigmoid(m, polynomial=loss),
}


def three(function: Loss, margins: Array, polynomial: Polynomial) -> Any:
    """The value and the first and second derivative at every margin."""

    def of(m: Array) -> Any:
        (value, first), (_, second) = jax.jvp(
            jax.value_and_grad(lambda m: function(m, polynomial)), (m,), (jnp.ones_like(m),)
        )
        return value, first, second

    return jax.vmap(of)(margins)


ALL = SIGMOIDS | SOFTMAXES | POSTERIORS
POINTS = np.concatenate([MARGINS, EXTREME])


@cache
def of_all_losses(name: str) -> list[Any]:
    """The value and derivatives of every loss at every point, in one compiled program."""
    each = jax.jit(jax.vmap(partial(three, ALL[name], jnp.asarray(POINTS, jnp.float32))))
    return [np.asarray(numbers, np.float64) for numbers in each(stacked())]


def at(name: str, points: Any) -> list[Any]:
    """The results of :func:`of_all_losses` at some of the points."""
    return [numbers[:, np.isin(POINTS, points)] for numbers in of_all_losses(name)]


def exact(loss: Polynomial, margin: float) -> tuple[float, float]:
    """The first and second derivative of ``L(sigmoid(margin))`` with respect to the margin."""
    with mp.workdps(60):

        def first(m: Any) -> Any:
            q = 1 / (1 + mp.exp(m))
            return slope(loss, 1 / (1 + mp.exp(-m)), q) * q

        return float(first(mpf(margin))), float(mp.diff(first, mpf(margin)))


EXACT = np.array([[exact(loss, m) for m in MARGINS] for loss in LOSSES.values()])


@pytest.mark.parametrize("name", slow_but([*SIGMOIDS, *SOFTMAXES], "sigmoid", "integers"))
def test_derivatives_of_every_loss_are_right(name: str) -> None:
    _, *found = at(name, MARGINS)
    q = 1 / (1 + np.exp(MARGINS))
    size = [
        1 + loss.log_weight + sum(j * abs(c) for j, c in enumerate(loss.coefficients, start=1))
        for loss in LOSSES.values()
    ]
    # The second derivative of JAX's own log_sigmoid also has the rounding error of p.
    for numbers, right, rounded in zip(found, np.moveaxis(EXACT, -1, 0), (name in SOFTMAXES, True), strict=True):
        allowed = 64 * FINFO.eps * (np.abs(right) + q + rounded) + 1e3 * FINFO.tiny
        off = np.abs(numbers - right) > allowed * np.array(size)[:, None]
        where = [(list(LOSSES)[i], MARGINS[k], numbers[i, k], right[i, k]) for i, k in np.argwhere(off)]
        assert not where, where[:5]


@pytest.mark.parametrize("name", slow_but([*SIGMOIDS, *SOFTMAXES], "sigmoid", "integers"))
def test_numbers_at_extreme_logits(name: str) -> None:
    # The softmax of an infinite logit is nan, and so is inf * 0 in a linear head.
    margins = EXTREME[1:-1] if name == "head" else EXTREME[:-1] if name in SOFTMAXES else EXTREME
    value, first, second = at(name, margins)
    assert not np.isnan(value).any()
    assert np.isfinite(first).all()
    assert np.isfinite(second[:, np.isfinite(margins)]).all()


@pytest.mark.parametrize("name", slow_but(POSTERIORS))
def test_posteriors_have_finite_derivatives(name: str) -> None:
    for margins in (MARGINS, EXTREME[1:-1]):
        for numbers in at(name, margins):
            assert np.isfinite(numbers).all()
    # Constant numbers compile to another program.
    losses = Polynomial((1.0,)), Polynomial(gamma=0.5), Polynomial((1.0,), log_weight=0.0), Polynomial((-1.0,))
    known = jax.jit(lambda margins: [three(POSTERIORS[name], margins, loss) for loss in losses])
    for loss, found in zip(losses, known(jnp.asarray(MARGINS, jnp.float32)), strict=True):
        for numbers in found:
            assert np.isfinite(numbers).all(), loss


ALPHAS: dict[str, Any] = {
    "0": 0.0,
    "1": 1.0,
    "0 as an array": jnp.array(0.0),
    "1 as an array": jnp.array(1.0),
    "several": jnp.array([0.0, 1.0] * 3 + [0.0]),
}


@pytest.mark.parametrize("gamma", slow_but([0.0, 0.5, 2.0], 0.5))
def test_what_alpha_leaves_no_share_of_counts_nothing(gamma: float) -> None:
    cases = list(product(ALPHAS, (0.0, 1.0)))

    @jax.jit
    def with_gradients(z: Array) -> Any:
        def loss(z: Array, alpha: str, label: float) -> Any:
            losses = sigmoid_poly_cross_entropy(z, jnp.full(7, label), alpha=ALPHAS[alpha], gamma=gamma)
            return losses.sum(), losses

        return [jax.grad(loss, has_aux=True)(z, *case) for case in cases]

    for (alpha, label), (gradient, value) in zip(cases, with_gradients(jnp.asarray(EXTREME, jnp.float32)), strict=True):
        assert not np.isnan(value).any(), alpha
        assert np.isfinite(gradient).all(), alpha
        share = np.broadcast_to(ALPHAS[alpha] if label else 1 - ALPHAS[alpha], 7)
        assert (np.asarray(value)[share == 0] == 0).all(), alpha
        assert (np.asarray(gradient)[share == 0] == 0).all(), alpha


def test_a_traced_gamma_of_0_is_a_known_one_at_a_likelihood_of_1() -> None:
    slope_of = jax.grad(lambda nll, gamma: poly_from_nll(nll, epsilon=2.0, gamma=gamma))
    assert slope_of(0.0, 0.0) == jax.jit(slope_of)(0.0, 0.0) == 3.0
