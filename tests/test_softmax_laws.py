"""Properties of the softmax losses, on every backend: all losses and options against the reference, and edge cases.

Tests run over cells of :data:`cases.CELLS`. Failure messages name the cells and the differences.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

import on_jax
import polylosses
import reference
from backends import on_every_backend, on_every_backend_in_full_precision
from cases import CELLS, CLASSES, LOSSES, SHAPES, Array, Cell, arrays, covering, some
from found import FULL, LOW, SPACING, TINY, Found, compare, report, rounded_once
from polylosses import Polynomial

SOME = ["cross_entropy", "poly1", "focal(0.5)", "poly1_focal(-1, 0.5)", "poly_n of degree 8"]
INF = float("inf")


def run(backend: Any, loss: Polynomial, cell: Cell, dtype: str) -> Found:
    numbers = arrays(cell)
    found: Found = backend.cross_entropy(
        loss, numbers.logits, numbers.target, **options_of(cell), grad_output=numbers.grad_output, dtype=dtype
    )
    return found


def options_of(cell: Cell) -> dict[str, Any]:
    return {
        "weight": arrays(cell).weight,
        "label_smoothing": cell.label_smoothing,
        "ignore_index": cell.ignore_index,
        "reduction": cell.reduction,
    }


@cache
def expected(loss: Polynomial, cell: Cell) -> reference.Expected:
    numbers = arrays(cell)
    options = options_of(cell) | {"ignore_index": -100 if cell.ignore_index is None else cell.ignore_index}
    return reference.cross_entropy(loss, numbers.logits, numbers.target, **options, grad_output=numbers.grad_output)


@pytest.mark.parametrize("name", LOSSES)
@on_every_backend_in_full_precision("cross_entropy")
def test_value_and_gradients_are_the_oracles(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(
                run(backend, loss, cell, dtype), expected(loss, cell), lambda _, scale: SPACING[dtype] * scale
            )
            for cell in some(CELLS, name)
        }
    )


@pytest.mark.parametrize("dtype", LOW)
@on_every_backend(
    "cross_entropy",
    ["cross_entropy", "poly1", "focal", "poly1_focal(-1, 0.5)", "poly_n of degree 8"],
    low_precision=True,
)
def test_low_precision_is_the_oracle_rounded_once(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    cells = some(CELLS, name)
    if backend is on_jax:
        # Options that the backend lacks are added by the adapter, with more rounding.
        own = [c for c in CELLS if c.reduction == "none" and not c.weighted and c.shape == SHAPES[1]]
        cells = covering([c for c in own if c.target == "indices" or c.label_smoothing == 0])
    report(
        {
            str(cell): compare(run(backend, loss, cell, dtype), expected(loss, cell), rounded_once(dtype))
            for cell in cells
        }
    )


LISTING_LOGITS = np.array([[0.14, 1.456, 2.356, -0.124, -2.47]])
LISTING_TARGET = np.array([[0.1, 0.15, 0.2, 0.25, 0.3]])
GOLDEN = [  # (epsilon, label smoothing, loss) from a float64 run of the paper's listing 1
    (2.0, 0.0, 4.531657285679147),
    (1.0, 0.0, 3.7153301084365054),
    (0.0, 0.0, 2.8990029311938637),
    (-1.0, 0.0, 2.082675753951222),
    (2.0, 0.1, 4.494391850230619),
]


@pytest.mark.parametrize(("epsilon", "smoothing", "right"), GOLDEN)
@on_every_backend("cross_entropy")
def test_numbers_of_the_papers_listing(backend: Any, epsilon: float, smoothing: float, right: float) -> None:
    given = polylosses.poly1(epsilon), LISTING_LOGITS, LISTING_TARGET
    assert backend.cross_entropy(*given, label_smoothing=smoothing).value == pytest.approx(right, rel=1e-15)
    assert reference.cross_entropy(*given, label_smoothing=smoothing).value == pytest.approx(right, rel=1e-15)


@on_every_backend("cross_entropy")
def test_numbers_of_optaxs_documentation(backend: Any) -> None:
    logits, target = np.array([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]]), np.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]])
    found = backend.cross_entropy(polylosses.poly1(2.0), logits, target, reduction="none", dtype="float32")
    assert found.value.tolist() == pytest.approx([0.48225655, 1.25670369], abs=5e-9 + 2e-7)  # 8 float32 digits


def with_gradient(
    backend: Any, loss: Polynomial, logits: Array, target: Array, dtype: str = "float64", **options: Any
) -> tuple[Array, Array]:
    """The loss, and the gradient of its sum."""
    found = backend.cross_entropy(loss, logits, target, **options, dtype=dtype)
    return found.value, found.gradient


def positionwise(name: str, shapes: Sequence[tuple[int, ...]] = SHAPES[1:]) -> list[Cell]:
    cells = [cell for cell in CELLS if cell.reduction == "none" and cell.shape in shapes]
    return covering(cells, 31 * SOME.index(name))


def scales(loss: Polynomial, cell: Cell, logits: Array) -> reference.Expected:
    options = options_of(cell) | {"ignore_index": -100 if cell.ignore_index is None else cell.ignore_index}
    return reference.cross_entropy(loss, logits, arrays(cell).target, **options)


@on_every_backend("cross_entropy", SOME)
def test_a_shift_of_the_logits_changes_nothing(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    for cell in positionwise(name):
        numbers = arrays(cell)
        value, gradient = with_gradient(backend, loss, numbers.logits, numbers.target, **options_of(cell))
        for shift in (-3.0, 1e4):
            shifted = numbers.logits + shift
            found, found_gradient = with_gradient(backend, loss, shifted, numbers.target, **options_of(cell))
            scale = scales(loss, cell, shifted)
            assert (np.abs(found - value) <= 2 * SPACING["float64"] * scale.value_scale).all(), cell
            assert (np.abs(found_gradient - gradient) <= 2 * SPACING["float64"] * scale.gradient_scale).all(), cell


@on_every_backend("cross_entropy", SOME)
def test_a_batch_is_its_rows(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    for cell in positionwise(name, SHAPES[2:3]):
        numbers = arrays(cell)
        value, gradient = with_gradient(backend, loss, numbers.logits, numbers.target, **options_of(cell))
        rows = [
            with_gradient(backend, loss, z[None], y[None], **options_of(cell))
            for z, y in zip(numbers.logits, numbers.target, strict=True)
        ]
        scale = scales(loss, cell, numbers.logits)
        by_row = np.concatenate([v for v, _ in rows]), np.concatenate([g for _, g in rows])
        assert (np.abs(by_row[0] - value) <= 2 * SPACING["float64"] * scale.value_scale).all(), cell
        assert (np.abs(by_row[1] - gradient) <= 2 * SPACING["float64"] * scale.gradient_scale).all(), cell


@on_every_backend("cross_entropy", SOME)
def test_the_order_of_classes_does_not_matter(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    order = np.array([3, 0, 4, 2, 1])  # the new class k is the old class order[k]
    place = np.argsort(order)
    for cell in positionwise(name):
        numbers, options = arrays(cell), options_of(cell)
        value, gradient = with_gradient(backend, loss, numbers.logits, numbers.target, **options)
        if cell.target == "probabilities":
            target = numbers.target[:, order]
        else:
            inside = (numbers.target >= 0) & (numbers.target < CLASSES)
            target = np.where(inside, place[np.where(inside, numbers.target, 0)], numbers.target)
        if options["weight"] is not None:
            options["weight"] = options["weight"][order]
        if options["ignore_index"] is not None and 0 <= options["ignore_index"] < CLASSES:
            options["ignore_index"] = int(place[options["ignore_index"]])
        found, found_gradient = with_gradient(backend, loss, numbers.logits[:, order], target, **options)
        scale = scales(loss, cell, numbers.logits)
        assert (np.abs(found - value) <= 2 * SPACING["float64"] * scale.value_scale).all(), cell
        difference = np.abs(found_gradient - gradient[:, order])
        assert (difference <= 2 * SPACING["float64"] * scale.gradient_scale[:, order]).all(), cell


@on_every_backend("cross_entropy", SOME)
def test_an_index_is_its_one_hot_row(backend: Any, name: str) -> None:
    """The weighted mean is an exception: torch divides by the sum of weights only for class indices."""
    loss = LOSSES[name]
    for cell in covering(
        [
            cell
            for cell in CELLS
            if cell.target == "indices"
            and cell.ignore_index is None
            and not (cell.weighted and cell.reduction == "mean")
        ]
    ):
        numbers = arrays(cell)
        one_hot = np.eye(CLASSES)[numbers.target]
        one_hot = np.moveaxis(one_hot, -1, 0 if len(cell.shape) == 1 else 1)
        found, found_gradient = with_gradient(backend, loss, numbers.logits, numbers.target, **options_of(cell))
        value, gradient = with_gradient(backend, loss, numbers.logits, one_hot, **options_of(cell))
        scale = scales(loss, cell, numbers.logits)
        assert (np.abs(found - value) <= 2 * SPACING["float64"] * scale.value_scale).all(), cell
        assert (np.abs(found_gradient - gradient) <= 2 * SPACING["float64"] * scale.gradient_scale).all(), cell


@on_every_backend("cross_entropy", LOSSES)
def test_the_gradient_is_the_slope_times_that_of_cross_entropy(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    z = arrays(CELLS[0]).logits * np.array([[0.25], [1.0], [4.0]])
    probabilities = np.exp(z - z.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    z, target = np.repeat(z, CLASSES, axis=0), np.tile(np.arange(CLASSES), 3)
    probabilities, one_hot = np.repeat(probabilities, CLASSES, axis=0), np.eye(CLASSES)[target]
    q = probabilities.sum(1, where=one_hot == 0)
    slope = loss.slope(np.log(probabilities[one_hot == 1]), q)
    right = slope[:, None] * (one_hot - probabilities)
    _, found = with_gradient(backend, loss, z, target, reduction="sum")
    scale = reference.cross_entropy(loss, z, target, reduction="sum").gradient_scale
    assert (np.abs(found - right) <= 2 * SPACING["float64"] * scale).all()


IGNORED = list(product([-100, -1, 0, 2, 255, 10**6], [0.0, 0.125], [False, True], ["none", "mean", "sum"]))


@on_every_backend("cross_entropy", LOSSES)
def test_ignored_positions_count_nothing(backend: Any, name: str) -> None:
    loss = LOSSES[name]
    kept = [0, 2]
    for ignore_index, smoothing, weighted, reduction in covering(IGNORED, list(LOSSES).index(name)):
        # Ignored rows may have extreme logits, as padding often does.
        z = np.array([[0.0, 1, 2, 3], [1e4, -1e4, 0, 0], [3, 1, 0, 2], [-INF, 0, 1, -INF], [9e3, 0, 0, 0]])
        target = np.array([1, ignore_index, 3, ignore_index, ignore_index])
        options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": reduction}
        options["weight"] = np.array([1.0, 2.0, 0.5, 0.25]) if weighted else None
        value, gradient = with_gradient(backend, loss, z, target, **options)
        right, right_gradient = with_gradient(backend, loss, z[kept], target[kept], **options)
        if reduction == "none":
            assert (value[[1, 3, 4]] == 0).all()
            value = value[kept]
        assert value == pytest.approx(right, rel=1e-14), options
        assert gradient[kept] == pytest.approx(right_gradient, rel=1e-14), options
        assert (gradient[[1, 3, 4]] == 0).all(), options


@on_every_backend("cross_entropy", SOME)
def test_nothing_but_ignored_positions(backend: Any, name: str) -> None:
    z, target = np.arange(8.0).reshape(2, 4), np.array([-100, -100])
    for weight, smoothing in product([None, np.ones(4)], [0.0, 0.125]):
        options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing, "ignore_index": -100}
        results = {
            r: with_gradient(backend, LOSSES[name], z, target, reduction=r, **options) for r in ("none", "mean", "sum")
        }
        assert results["none"][0].tolist() == [0, 0]
        assert results["sum"][0] == 0
        assert np.isnan(results["mean"][0])
        assert (results["none"][1] == 0).all()
        assert (results["sum"][1] == 0).all()


EXTREME: dict[str, list[float]] = {
    "one far above": [1e4, 0.0, 1.0, -1.0],
    "one far below": [-1e4, 0.0, 1.0, -1.0],
    "far apart": [1e4, -1e4, 0.0, 1e4],
    "all far above": [1e4, 1e4 - 1, 1e4 - 2, 1e4],
    "all far below": [-1e4, -1e4 + 1, -1e4 + 2, -1e4],
    "equal": [0.0, 0.0, 0.0, 0.0],
    **{f"margin {m}": [float(m), 0.0, 0.0, 0.0] for m in (8, 15, 16, 17, 18, 20, 36, 37, 40, 88, 89, 104, 710, 746)},
    "one masked": [-INF, 0.0, 1.0, -1.0],
    "all but one masked": [-INF, -INF, 1.0, -INF],
    "masked and saturated": [-INF, 1e4, 0.0, 40.0],
}


@pytest.mark.parametrize("dtype", FULL)
@on_every_backend("cross_entropy", LOSSES)
def test_extreme_logits(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    # Numbers below the smallest normal number may be flushed to 0.
    lost = TINY[dtype] * (1 + loss.log_weight + sum(j * abs(c) for j, c in enumerate(loss.coefficients, start=1)))
    rows = np.array(list(EXTREME.values()))
    possible = np.isfinite(rows)
    hard = [np.where(possible[:, [label]], np.eye(4)[label], np.nan) for label in range(4)]
    soft = np.where(possible, [0.5, 0.25, 0.125, 0.125], 0.0)
    labels = np.concatenate([*hard, soft / soft.sum(1, keepdims=True)])
    z, there = np.tile(rows, (5, 1)), np.isfinite(labels).all(1)
    z, labels, is_hard = z[there], labels[there], labels[there].max(1) == 1
    for logits, target in ((z, labels), (z[is_hard], labels[is_hard].argmax(1))):
        right = reference.cross_entropy(loss, logits, target, reduction="none")
        value, gradient = with_gradient(backend, loss, logits, target, dtype, reduction="none")
        close = np.abs(value - right.value) <= SPACING[dtype] * right.value_scale + lost
        close &= (np.abs(gradient - right.gradient) <= SPACING[dtype] * right.gradient_scale + lost).all(1)
        wrong = [
            f"{logits[k]}, target {target[k]}: {value[k]}, {gradient[k]}, not {right.value[k]}, {right.gradient[k]}"
            for k in np.flatnonzero(~close)
        ]
        assert not wrong, "\n".join(wrong[:5])


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("gamma", [0.01, 0.25, 0.5, 0.99])
@on_every_backend("cross_entropy")
def test_gradients_of_a_small_focal_exponent_vanish_at_saturation(backend: Any, gamma: float, dtype: str) -> None:
    """The derivative of ``q^gamma`` is infinite at q = 0, but that of the loss is about ``(1 + gamma) q^gamma``."""
    margins = np.array([37.0, 89.0, 750.0, 1e4])
    z, q = margins[:, None] * [1.0, 0.0, 0.0], 2 * np.exp(-margins)
    for target in (np.zeros(4, int), np.tile([1.0, 0.0, 0.0], (4, 1))):
        value, gradient = with_gradient(backend, Polynomial(gamma=gamma), z, target, dtype, reduction="none")
        assert ((value >= 0) & (value <= np.maximum(q, SPACING[dtype]) ** (1 + gamma))).all()
        assert (np.abs(gradient) <= (2 * np.maximum(q, SPACING[dtype]) ** gamma * q)[:, None]).all()


@pytest.mark.parametrize("dtype", FULL)
@on_every_backend("cross_entropy", LOSSES)
def test_a_masked_label_costs_what_an_impossible_one_does(backend: Any, name: str, dtype: str) -> None:
    loss = LOSSES[name]
    z, impossible = np.array([[-INF, 0.0, 1.0]]), loss.value(-INF, 1.0)
    for target in (np.array([0]), np.array([[1.0, 0.0, 0.0]])):
        value, gradient = with_gradient(backend, loss, z, target, dtype, reduction="sum")
        assert value == pytest.approx(impossible, rel=4 * SPACING[dtype])
        assert np.isfinite(gradient).all()
        assert gradient[0, 0] <= 0  # as with cross-entropy, the label's logit is never pushed down


@on_every_backend("cross_entropy", LOSSES)
def test_the_gradient_where_all_is_lost_is_finite_under_smoothing(backend: Any, name: str) -> None:
    """Label smoothing spreads the target over masked classes too: the loss is infinite, as in torch, but not nan."""
    loss = LOSSES[name]
    z, target = np.array([[-INF, 0.0, 1.0]]), np.array([1])
    value, gradient = with_gradient(backend, loss, z, target, reduction="sum", label_smoothing=0.1)
    assert not np.isnan(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [1, 2, 300])
@on_every_backend("cross_entropy", SOME)
def test_numbers_of_classes(backend: Any, name: str, classes: int) -> None:
    loss = LOSSES[name]
    random = np.random.default_rng(classes)
    z = random.integers(-64, 65, (2, classes)) / 16
    indices = random.integers(0, classes, 2)
    for target in (indices, random.dirichlet(np.ones(classes), 2)):
        for smoothing in (0.0, 0.125):
            right = reference.cross_entropy(loss, z, target, reduction="sum", label_smoothing=smoothing)
            value, gradient = with_gradient(backend, loss, z, target, reduction="sum", label_smoothing=smoothing)
            # A sum of n numbers may have an error of n * finfo.eps.
            assert np.abs(value - right.value) <= classes * SPACING["float64"] * right.value_scale
            assert (np.abs(gradient - right.gradient) <= classes * SPACING["float64"] * right.gradient_scale).all()
            if classes == 1:
                assert value == 0
                assert (gradient == 0).all()


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@on_every_backend("cross_entropy", LOSSES)
def test_nan_stays_nan(backend: Any, name: str, soft: bool) -> None:
    z = np.array([[0.0, float("nan"), 1.0], [0.0, 1.0, 2.0]])
    target = np.array([[0.5, 0.25, 0.25]] * 2) if soft else np.array([0, 0])
    value, gradient = with_gradient(backend, LOSSES[name], z, target, reduction="none")
    assert np.isnan(value).tolist() == [True, False]
    assert np.isfinite(gradient[1]).all()
