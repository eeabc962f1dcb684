"""Properties of the sigmoid losses, on every backend.

Tests run over cells of :data:`cases.BINARY_CELLS`. Failure messages name the cells and the differences.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest

import on_torch
import reference
from backends import BACKENDS, on_every_backend, on_every_backend_in_full_precision
from cases import BINARY_CELLS, LOSSES, SHAPES, BinaryCell, binary_arrays, covering, some
from found import FULL, LOW, SPACING, TINY, Found, compare, report, rounded_once
from polylosses import Polynomial
from reference import Expected

INF = float("inf")


SERVED = {
    backend.__name__: tuple(filter(backend.serves_binary, BINARY_CELLS))
    for backend in BACKENDS
    if hasattr(backend, "serves_binary")
}


def test_how_many_cells_each_backend_serves() -> None:
    assert {name: len(cells) for name, cells in SERVED.items()} == {"on_torch": 720, "on_jax": 144, "on_keras": 48}


def run(backend: Any, loss: Polynomial, cell: BinaryCell, dtype: str) -> Found:
    numbers = binary_arrays(cell)
    found: Found = backend.binary_cross_entropy(
        loss,
        numbers.logits,
        numbers.target,
        numbers.weight,
        numbers.pos_weight,
        alpha=cell.alpha,
        alpha_on_epsilon=cell.alpha_on_epsilon,
        ignore_index=cell.ignore_index,
        reduction=cell.reduction,
        grad_output=numbers.grad_output,
        dtype=dtype,
    )
    return found


@cache
def expected(loss: Polynomial, cell: BinaryCell) -> Expected:
    numbers = binary_arrays(cell)
    return reference.binary_cross_entropy(
        loss,
        numbers.logits,
        numbers.target,
        numbers.weight,
        numbers.pos_weight,
        alpha=cell.alpha,
        alpha_on_epsilon=cell.alpha_on_epsilon,
        ignore_index=cell.ignore_index,
        reduction=cell.reduction,
        grad_output=numbers.grad_output,
    )


@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm changes the bound
@pytest.mark.parametrize("name", LOSSES)
@on_every_backend_in_full_precision("binary_cross_entropy")
def test_value_and_gradients_are_the_oracles(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(
                run(backend, loss, cell, dtype), expected(loss, cell), lambda _, scale: SPACING[dtype] * scale
            )
            for cell in some(SERVED[backend.__name__], name)
        }
    )


@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm changes the bound
@pytest.mark.parametrize("dtype", LOW)
@on_every_backend(
    "binary_cross_entropy",
    ["cross_entropy", "poly1", "focal(0.5)", "poly1_focal(-1, 0.5)", "poly_n of degree 8"],
    low_precision=True,
)
def test_low_precision_is_the_oracle_rounded_once(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    cells = some(BINARY_CELLS, name)
    if backend is not on_torch:
        # Options that the backend lacks are added by the adapter, with more rounding.
        own = [c for c in SERVED[backend.__name__] if c.reduction == "none" and not c.weighted]
        cells = covering([c for c in own if c.shape == SHAPES[1]])
    report(
        {
            str(cell): compare(run(backend, loss, cell, dtype), expected(loss, cell), rounded_once(dtype))
            for cell in cells
        }
    )


EXTREME = [1e4, -1e4, 0.0, 8.0, 15.0, 17.0, 18.0, 37.0, -37.0, 80.0, 88.0, 89.0, 104.0, -104.0, 710.0, 746.0, INF, -INF]


@pytest.mark.parametrize("dtype", FULL)
@on_every_backend("binary_cross_entropy", LOSSES)
def test_extreme_logits(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    # A sigmoid below the smallest normal number may be 0.
    lost = TINY[dtype] * (1 + sum(abs(c) for c in loss.coefficients))
    # The reference implementation supports -inf (a masked class), but not +inf. Impossible labels are tested below.
    z, y = np.array([(z, y) for z in EXTREME for y in (0.0, 1.0, 0.5) if abs(z) < INF or y == float(z > 0)]).T
    right = reference.binary_cross_entropy(loss, np.nan_to_num(z, posinf=0, neginf=0), y, reduction="none")
    found = backend.binary_cross_entropy(loss, z, y, reduction="none", dtype=dtype)
    finite = np.isfinite(z)
    for one, other, scale in (
        (found.value, right.value, right.value_scale),
        (found.gradient, right.gradient, right.gradient_scale),
    ):
        wrong = ~(np.abs(one - finite * other) <= finite * SPACING[dtype] * scale + lost)
        assert not wrong.any(), f"{z[wrong]}, {y[wrong]}: {one[wrong]}, not {other[wrong]}"


@on_every_backend("binary_cross_entropy", LOSSES)
def test_an_impossible_label_costs_what_it_should_and_its_gradient_is_finite(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    found = backend.binary_cross_entropy(loss, np.array([-INF, INF]), np.array([1.0, 0.0]), reduction="none")
    assert found.value.tolist() == pytest.approx([loss.value(-INF, 1.0)] * 2, rel=1e-15)
    assert np.isfinite(found.gradient).all()


@on_every_backend("binary_cross_entropy", LOSSES)
def test_a_flip_of_signs_and_labels_changes_nothing(backend: Any, name: str) -> None:
    numbers = binary_arrays(next(c for c in BINARY_CELLS if c.target == "soft" and len(c.shape) == 3))
    flipped, given = (-numbers.logits, 1 - numbers.target), (numbers.logits, numbers.target)
    found = backend.binary_cross_entropy(LOSSES[name], *flipped, alpha=0.75, reduction="none")
    right = backend.binary_cross_entropy(LOSSES[name], *given, alpha=0.25, reduction="none")
    np.testing.assert_allclose(found.value, right.value, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(found.gradient, -right.gradient, rtol=1e-14, atol=1e-15)


@on_every_backend("binary_cross_entropy", LOSSES)
def test_it_is_a_softmax_of_two_classes(backend: Any, name: str) -> None:
    logits = np.linspace(-6, 6, 41)
    two = np.stack([logits, np.zeros_like(logits)], axis=1)
    for label in (1.0, 0.0, 0.25):
        target = np.full_like(logits, label)
        found = backend.binary_cross_entropy(LOSSES[name], logits, target, reduction="none")
        right = backend.cross_entropy(LOSSES[name], two, np.stack([target, 1 - target], axis=1), reduction="none")
        # The q of softmax has an absolute error of finfo.eps.
        np.testing.assert_allclose(found.value, right.value, rtol=1e-11, atol=1e-13)


@on_every_backend("binary_cross_entropy", LOSSES)
def test_nan_stays_nan(backend: Any, name: str) -> None:
    found = backend.binary_cross_entropy(LOSSES[name], np.array([np.nan, 1.0]), np.array([1.0, 0.5]), reduction="none")
    assert np.isnan(found.value).tolist() == [True, False]


# Margins are limited to where q = sigmoid(-z) is a normal float32 number.
@on_every_backend("binary_cross_entropy", ["poly1(-1)", "focal(0.5)", "poly1_focal(-1, 0.5)"])
def test_small_losses_keep_their_digits(backend: Any, name: str) -> None:
    """``q`` is computed as ``sigmoid(-z)``, to full accuracy: ``1 - sigmoid(z)`` is 0 from a margin of 17 on."""
    loss = LOSSES[name]
    power = Polynomial((1.0,), loss.gamma, log_weight=0.0)
    margins = np.arange(0.0, 81.0, 4.0)
    q = np.array([reference.row(loss, (margin, 0.0)).probability[1] for margin in margins.tolist()])
    found = backend.binary_cross_entropy(power, margins, np.ones_like(margins), reduction="none", dtype="float32")
    assert found.value == pytest.approx(q ** (1 + loss.gamma), rel=1e-5, abs=TINY["float32"])


@on_every_backend("sigmoid", [n for n in LOSSES if n != "nothing"])
def test_poly_sigmoid_is_poly_softmax_of_two_classes(backend: Any, name: str) -> None:
    logits = np.linspace(-12, 12, 49)
    two = np.stack([logits, np.zeros_like(logits)], axis=1)
    found, right = backend.sigmoid(LOSSES[name], logits), backend.softmax(LOSSES[name], two)[:, 0]
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-9)


# Finds the minimum of share * L(p) + (1 - share) * L(1 - p). Where L' is bounded, only nearly even shares have one.
@on_every_backend("sigmoid", ["cross_entropy", "poly1", "focal", "poly1_focal", "poly_n", "everything", "poly1(-1)"])
def test_poly_sigmoid_is_the_share_that_the_logit_is_optimal_for(backend: Any, name: str) -> None:
    share = np.array([0.1, 0.5, 0.875])
    low, high = np.full(3, -30.0), np.full(3, 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        slope = backend.binary_cross_entropy(LOSSES[name], middle, share).gradient
        low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
    assert backend.sigmoid(LOSSES[name], low) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("dtype", FULL + LOW)
@on_every_backend("sigmoid", low_precision=True)
def test_poly_sigmoid_at_the_edges(backend: Any, dtype: str) -> None:
    logits = np.array([0.0, 1e4, -1e4, 17.0, -17.0, 89.0, -104.0, INF, -INF])
    for name, loss in LOSSES.items():
        found = backend.sigmoid(loss, logits, dtype)
        assert ((found >= 0) & (found <= 1)).all(), name
        assert found[7:].tolist() == [1, 0], name
        assert (np.diff(found[logits.argsort()]) >= 0).all(), name
