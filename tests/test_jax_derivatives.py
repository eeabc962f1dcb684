"""First and second derivatives in JAX, however sure or wrong the model is: finite, and right against 60 digits."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from mpmath import mp, mpf

from cases import LOSSES
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


# Of one margin; which of them know 1 - p only up to the rounding of p.
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


def padded(loss: Polynomial) -> Polynomial:
    """As arrays, so that all losses are one compiled program."""
    coefficients = (*loss.coefficients, *[0.0] * (8 - len(loss.coefficients)))
    arrays: Polynomial = jax.tree.map(jnp.float32, replace(loss, coefficients=coefficients))
    return arrays


def three(function: Loss, polynomial: Polynomial, margins: Array) -> tuple[Array, Array, Array]:
    """Value, first and second derivative, each of all margins."""

    def of(m: Array) -> Array:
        return function(m, polynomial)

    first = jax.grad(of)
    return jax.vmap(of)(margins), jax.vmap(first)(margins), jax.vmap(jax.jacfwd(first))(margins)


ALL = {name: jax.jit(partial(three, function)) for name, function in (SIGMOIDS | SOFTMAXES | POSTERIORS).items()}
STACKED: Any = jax.tree.map(lambda *numbers: jnp.stack(numbers), *map(padded, LOSSES.values()))


def at(name: str, margins: Any) -> tuple[Any, ...]:
    """For every loss and every margin."""
    each = jax.vmap(partial(ALL[name], margins=jnp.asarray(margins, jnp.float32)))
    return tuple(np.asarray(numbers, np.float64) for numbers in each(STACKED))


def exact(loss: Polynomial, margin: float) -> tuple[float, float]:
    """First and second derivative by the margin of ``L(sigmoid(margin))``."""
    with mp.workdps(60):

        def first(m: Any) -> Any:
            q = 1 / (1 + mp.exp(m))
            return slope(loss, 1 / (1 + mp.exp(-m)), q) * q

        return float(first(mpf(margin))), float(mp.diff(first, mpf(margin)))


EXACT = np.array([[exact(loss, m) for m in MARGINS] for loss in LOSSES.values()])


@pytest.mark.parametrize("name", [*SIGMOIDS, *SOFTMAXES])
def test_derivatives_of_every_loss_are_right(name: str) -> None:
    _, *found = at(name, MARGINS)
    q = 1 / (1 + np.exp(MARGINS))
    size = [
        1 + loss.log_weight + sum(j * abs(c) for j, c in enumerate(loss.coefficients, start=1))
        for loss in LOSSES.values()
    ]
    # Second derivatives of JAX's own log_sigmoid are right up to the rounding of p, too.
    for numbers, right, rounded in zip(found, np.moveaxis(EXACT, -1, 0), (name in SOFTMAXES, True), strict=True):
        allowed = 64 * FINFO.eps * (np.abs(right) + q + rounded) + 1e3 * FINFO.tiny
        off = np.abs(numbers - right) > allowed * np.array(size)[:, None]
        where = [(list(LOSSES)[i], MARGINS[k], numbers[i, k], right[i, k]) for i, k in np.argwhere(off)]
        assert not where, where[:5]


@pytest.mark.parametrize("name", [*SIGMOIDS, *SOFTMAXES])
def test_numbers_at_extreme_logits(name: str) -> None:
    # The softmax of infinity is nan, and so is a head's product of infinity and 0.
    margins = EXTREME[1:-1] if name == "head" else EXTREME[:-1] if name in SOFTMAXES else EXTREME
    value, first, second = at(name, margins)
    assert not np.isnan(value).any()
    assert np.isfinite(first).all()
    assert np.isfinite(second[:, np.isfinite(margins)]).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors_have_finite_derivatives(name: str) -> None:
    for margins in (MARGINS, EXTREME[1:-1]):
        for numbers in at(name, margins):
            assert np.isfinite(numbers).all()
    # Of known numbers, too: the program is another one.
    for loss in (Polynomial((1.0,)), Polynomial(gamma=0.5), Polynomial((1.0,), log_weight=0.0), Polynomial((-1.0,))):
        for numbers in three(POSTERIORS[name], loss, jnp.asarray(MARGINS, jnp.float32)):
            assert np.isfinite(numbers).all(), loss


@pytest.mark.parametrize(
    "alpha", [0.0, 1.0, jnp.array(0.0), jnp.array(1.0), jnp.array([0.0, 1.0] * 3 + [0.0])], ids=str
)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_what_alpha_leaves_no_share_of_counts_nothing(gamma: float, alpha: Any) -> None:
    for label in (0.0, 1.0):

        def loss(z: Array, label: float = label) -> Array:
            return sigmoid_poly_cross_entropy(z, jnp.full(7, label), alpha=alpha, gamma=gamma)

        z = jnp.asarray(EXTREME, jnp.float32)
        value, gradient = loss(z), jax.grad(lambda z: loss(z).sum())(z)
        assert not jnp.isnan(value).any()
        assert jnp.isfinite(gradient).all()
        share = jnp.broadcast_to(alpha if label else 1 - alpha, 7)
        assert (value[share == 0] == 0).all()
        assert (gradient[share == 0] == 0).all()
