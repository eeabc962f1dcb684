"""Properties of ``poly_softmax`` and of losses from negative log-likelihoods, on every backend."""

from typing import Any

import mpmath as mp
import numpy as np
import pytest

import reference
from backends import on_every_backend
from cases import LOSSES
from found import FULL, LOW, SPACING, TINY
from polylosses import Polynomial

INF = float("inf")


@on_every_backend("softmax", [n for n in LOSSES if n != "nothing"])
def test_the_posterior_is_the_oracles(backend: Any, name: str) -> None:
    rows = np.random.default_rng(0).integers(-64, 65, (20, 5)) / 16
    found = backend.softmax(LOSSES[name], rows)
    for row, of_row in zip(rows.tolist(), found, strict=True):
        right = reference.posterior(LOSSES[name], tuple(row))
        # The relative error of the posterior is that of the slope.
        numbers = reference.row(LOSSES[name], tuple(row))
        relative = SPACING["float64"] * (1 + np.max(numbers.slope_scale / -numbers.slope))
        assert of_row == pytest.approx(right, rel=2 * relative)


@pytest.mark.parametrize("dtype", FULL + LOW)
@on_every_backend("softmax", LOSSES, low_precision=True)
def test_extremes(backend: Any, name: str, dtype: str) -> None:
    margins = [0.0, 5.0, 10.0, 15.0, 16.0, 17.0, 18.0, 20.0, 36.0, 37.0, 40.0, 88.0, 104.0, 710.0, 746.0, 1e4]
    rows = [
        *([m, 0.0, -1.0, 1.0] for m in margins),
        *([-m, 0.0, -1.0, 1.0] for m in margins),
        [1e4, 1e4, -1e4, 0.0],
        [-INF, 0.0, 1.0, 2.0],
        [-INF, -INF, -INF, 2.0],
        [-INF, 1e4, 0.0, -1e4],
    ]
    logits = np.array(rows)
    found = backend.softmax(LOSSES[name], logits, dtype)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert np.abs(found.sum(1) - 1).max() <= 4 * SPACING[dtype]
    assert (found[logits == -INF] == 0).all(), "masked classes"
    # The order of classes is preserved, up to ties where the dtype can't tell them apart.
    in_order = np.take_along_axis(found, logits.argsort(1), 1)
    assert (np.diff(in_order, axis=1) >= -8 * SPACING[dtype]).all(), "order of classes"


@on_every_backend("softmax", low_precision=True)
def test_a_heavy_logarithm_does_not_overflow_on_masked_classes(backend: Any) -> None:
    for loss in (Polynomial((1.0,), 2.0, log_weight=100.0), Polynomial((), 0.5, log_weight=1e6)):
        found = backend.softmax(loss, np.array([[-INF, 0.0, 1.0]]), "float32")
        assert np.isfinite(found).all()
        assert found[0, 0] == 0


@pytest.mark.parametrize("dtype", FULL)
@on_every_backend("from_nll", LOSSES)
def test_small_likelihoods_keep_their_digits(backend: Any, name: str, dtype: str) -> None:
    """``q`` must have full relative accuracy, which ``1 - exp(-nll)`` has not."""
    loss = LOSSES[name]
    nll = np.array([1e-30, 1e-16, 1e-12, 1e-8, 1e-3, 0.1, 1.0, 10.0, 50.0]).astype(dtype)
    steps = 8 + 3 * len(loss.coefficients) + loss.gamma
    with mp.workdps(100):
        for number, found in zip(nll.tolist(), backend.from_nll(loss, nll, dtype).value.tolist(), strict=True):
            p, q = mp.exp(-mp.mpf(number)), -mp.expm1(-mp.mpf(number))
            bound = steps * SPACING[dtype] * reference.value_terms(loss, p, q) + TINY[dtype]
            assert abs(found - reference.value(loss, p, q)) <= bound, f"at nll = {number}"


@pytest.mark.parametrize("dtype", FULL + LOW)
@on_every_backend("from_nll")
def test_likelihoods_at_the_edges(backend: Any, dtype: str) -> None:
    nll = np.array([0.0, 1e-7, 1.0, 100.0, INF, np.nan])
    for name, loss in LOSSES.items():
        found = backend.from_nll(loss, nll, dtype)
        assert found.value[0] == 0, name
        impossible = INF if loss.log_weight else sum(loss.coefficients)
        assert found.value[4] == pytest.approx(impossible, rel=SPACING[dtype]), name
        assert np.isnan(found.value).tolist() == [False] * 5 + [True], name
        assert np.isfinite(found.gradient[:5]).all(), name
