"""Tests specific to JAX: transformations, axes, masks, dtypes, errors, and optax's own tests."""

import unittest
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.losses import _classification, _classification_test

import polylosses
from cases import LOSSES, slow_but
from on_jax import stacked
from polylosses import Polynomial
from polylosses.jax import (
    linear_poly_cross_entropy,
    poly_cross_entropy,
    poly_cross_entropy_with_integer_labels,
    poly_from_nll,
    poly_loss_cross_entropy,
    poly_sigmoid,
    poly_softmax,
    sigmoid_poly_cross_entropy,
)

INF = float("inf")
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 5)).astype("float32")
# int32, since JAX caches the conversion of 64-bit constants even when jax_enable_x64 changes.
LABELS = RANDOM.integers(0, 5, 6).astype("int32")
SOFT = RANDOM.dirichlet(np.ones(5), 6).astype("float32")


# Losses as compile-time constants, one for each combination of zeros, since each compiles to a different program. ALL
# stands for all losses with traced numbers, in one program.
KNOWN = ["poly1", "focal(0.5)", "everything", "mean_absolute_error", "no logarithm"]
ALL = "all, traced"


def of_polynomial(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiles and calls a function of a polynomial and arrays. Results are stacked over the losses of that name."""
    if name == ALL:
        found = jax.jit(jax.vmap(function, (0, *[None] * len(arguments))))(stacked(), *arguments)
        return jax.tree.map(np.asarray, found)
    return jax.tree.map(lambda array: np.asarray(array)[None], jax.jit(partial(function, LOSSES[name]))(*arguments))


def with_gradient(function: Callable[[Any], Any], z: Any) -> Any:
    """The losses, and the gradient of their sum."""

    def total(z: Any) -> Any:
        losses = function(z)
        return losses.sum(), losses

    gradient, losses = jax.grad(total, has_aux=True)(z)
    return losses, gradient


def close(found: Any, right: Any, within: float = 2e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(right), rtol=within, atol=within)


# (optax's test case, the function that it tests, our function to replace it)
OPTAXS: list[tuple[str, str, Callable[..., Any]]] = [
    ("PolyLossTest", "poly_loss_cross_entropy", poly_loss_cross_entropy),
    ("SoftmaxCrossEntropyTest", "softmax_cross_entropy", partial(poly_cross_entropy, epsilon=0.0)),
    (
        "SoftmaxCrossEntropyWithIntegerLabelsTest",
        "softmax_cross_entropy_with_integer_labels",
        partial(poly_cross_entropy_with_integer_labels, epsilon=0.0),
    ),
    ("SigmoidCrossEntropyTest", "sigmoid_binary_cross_entropy", partial(sigmoid_poly_cross_entropy, epsilon=0.0)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "ours"), OPTAXS, ids=[case for case, *_ in OPTAXS])
def test_optaxs_own_tests_pass(case: str, name: str, ours: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def noted(logits: Any, labels: Any, *axis: Any, **options: Any) -> Any:
        called.append(name)
        return ours(logits, labels, **({"axis": axis[0]} if axis else {}), **options)

    monkeypatch.setattr(_classification, name, noted)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(getattr(_classification_test, case)).run(result)
    assert result.testsRun > 5
    assert called
    assert not result.errors + result.failures, "\n".join(trace for _, trace in result.errors + result.failures)


def test_with_epsilon_0_it_is_optaxs_sigmoid_focal_loss() -> None:
    labels = (SOFT > 0.2).astype("float32")

    @jax.jit
    def both(z: Any) -> Any:
        return [
            (
                sigmoid_poly_cross_entropy(z, labels, epsilon=0.0, gamma=gamma, alpha=alpha),
                optax.losses.sigmoid_focal_loss(z, labels, gamma=gamma, alpha=alpha),
            )
            for gamma, alpha in product((0.0, 0.5, 1.0, 2.0), (None, 0.25))
        ]

    for found, right in both(LOGITS):
        close(found, right)


def test_optaxs_poly_loss_where_it_is_right() -> None:
    epsilons = -1.0, 0.0, 2, jnp.float32(5.0), np.arange(6.0, dtype="float32"), jnp.ones((3, 1))
    chosen = [{}, *({"epsilon": epsilon} for epsilon in epsilons)]

    def of_all(function: Callable[..., Any]) -> Any:
        return jax.jit(lambda z: [function(z, SOFT, **options) for options in chosen])(LOGITS)

    for found, right in zip(of_all(poly_loss_cross_entropy), of_all(optax.losses.poly_loss_cross_entropy), strict=True):
        close(found, right)


# Each loss as a function of the logits, with options epsilon, gamma and polynomial.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "dense": lambda z, **o: poly_cross_entropy(z, SOFT.astype(z.dtype), **o),
    "integers": lambda z, **o: poly_cross_entropy_with_integer_labels(z, LABELS, **o),
    "smoothed": lambda z, **o: poly_cross_entropy_with_integer_labels(z, LABELS, label_smoothing=0.1, **o),
    "masked classes": lambda z, **o: poly_cross_entropy_with_integer_labels(z, LABELS, where=SOFT > 0.1, **o),
    "masked examples": lambda z, **o: poly_cross_entropy(z, SOFT.astype(z.dtype), where=LABELS > 1, **o),
    "sigmoid": lambda z, **o: sigmoid_poly_cross_entropy(z, SOFT.astype(z.dtype), alpha=0.25, **o).sum(-1),
    "from_nll": lambda z, **o: poly_from_nll(jax.nn.softplus(z), **o).sum(-1),
    "linear": lambda z, **o: linear_poly_cross_entropy(z, jnp.eye(5, dtype=z.dtype) * 2, LABELS, **o),
    "softmax": lambda z, **o: poly_softmax(z, **o)[:, 0],
    "sigmoid's posterior": lambda z, **o: poly_sigmoid(z, **o)[:, 0],
}


@pytest.mark.parametrize("name", slow_but(FUNCTIONS, "integers", "sigmoid", "softmax"))
def test_epsilon_and_gamma_may_be_known_traced_or_mapped_over(name: str) -> None:
    z, function, traced = jnp.asarray(LOGITS), FUNCTIONS[name], []

    @jax.jit
    def loss(z: Any, epsilon: Any, gamma: Any) -> Any:
        traced.append(1)
        return function(z, epsilon=epsilon, gamma=gamma)

    numbers = (1.0, 0.0), (2.0, 0.0), (-0.5, 2.0), (0.0, 0.5)
    known = jax.jit(lambda z: [function(z, epsilon=epsilon, gamma=gamma) for epsilon, gamma in numbers])
    for (epsilon, gamma), right in zip(numbers, known(z), strict=True):
        close(loss(z, epsilon, gamma), right)
    epsilons, many = np.array([-0.5, 0.0, 2.0], "float32"), jnp.stack([z, 2 * z, -z])
    by_epsilon = jax.jit(jax.vmap(lambda z, epsilon: function(z, epsilon=epsilon, gamma=0.5), (None, 0)))(z, epsilons)
    by_logits = jax.jit(jax.vmap(function))(many)
    for k in range(3):
        close(by_epsilon[k], loss(z, float(epsilons[k]), 0.5))
        close(by_logits[k], loss(many[k], 1.0, 0.0))
    assert len(traced) == 1


@pytest.mark.parametrize("name", slow_but(FUNCTIONS, "smoothed", "sigmoid"))
def test_a_polynomial_is_an_argument(name: str) -> None:
    z, function = jnp.asarray(LOGITS), FUNCTIONS[name]
    known = jax.jit(lambda z: [function(z, polynomial=LOSSES[name]) for name in KNOWN])(z)
    mapped = of_polynomial(ALL, lambda polynomial, z: function(z, polynomial=polynomial), z)
    for other, right in zip(KNOWN, known, strict=True):
        close(mapped[list(LOSSES).index(other)], right, 1e-5)
    # The mapped losses are padded with coefficients; this one has none.
    close(jax.jit(function)(z, polynomial=LOSSES["focal(0.5)"]), known[KNOWN.index("focal(0.5)")], 1e-5)


@pytest.mark.parametrize(
    ("name", "gamma"),
    slow_but(
        [("dense", 0.0), ("integers", 0.0), *((name, 0.5) for name in FUNCTIONS)],
        ("integers", 0.5),
        ("masked classes", 0.5),
        ("sigmoid", 0.5),
    ),
)
def test_derivatives_of_both_modes_and_orders(name: str, gamma: float) -> None:
    direction, share, step = np.cos(np.arange(30.0)).reshape(6, 5), 2 + np.cos(np.arange(6.0)), 1e-5
    known = jax.jit(partial(FUNCTIONS[name], epsilon=2.0, gamma=gamma))
    # The other losses call these, or have no rematerialization that could change second derivatives.
    second_over_forward = gamma > 0 and name in ("dense", "integers", "sigmoid", "linear")

    @jax.jit
    def of(z: Any, numbers: Any) -> dict[str, Any]:
        """Values and derivatives: by the logits for constant coefficients, and by traced coefficients."""

        def traced(numbers: Any) -> Any:
            return FUNCTIONS[name](z, epsilon=numbers[0], gamma=numbers[1])

        def total(z: Any) -> Any:
            return (known(z) * share).sum()

        def forward(z: Any) -> Any:
            return jax.jvp(total, (z,), (direction,))[1]

        def by_direction(z: Any) -> Any:
            return (jax.grad(total)(z) * direction).sum()

        found = {"reverse over reverse": jax.grad(by_direction)(z)}
        if second_over_forward:
            found["reverse over forward"] = jax.grad(forward)(z)
            found["forward over forward"] = jax.jvp(forward, (z,), (direction,))[1]
        found["reverse"], found["forward over reverse"] = jax.jvp(jax.grad(total), (z,), (direction,))
        found["value"], found["forward"] = jax.jvp(known, (z,), (direction,))
        found["of numbers"], pull = jax.vjp(traced, numbers)
        found["of numbers, forward"], found["of numbers, reverse"] = jax.jacfwd(traced)(numbers), pull(share)[0]
        return found

    with jax.enable_x64(True):
        z, numbers = LOGITS.astype("float64"), np.array([2.0, gamma + 0.25])
        found = of(z, numbers)

        def difference(quantity: str, of_z: Any, of_numbers: Any) -> Any:
            above, below = (of(z + h * of_z, numbers + h * of_numbers)[quantity] for h in (step, -step))
            return (np.asarray(above) - np.asarray(below)) / (2 * step)

        second = difference("reverse", direction, 0)
        assert np.abs(second).max() > 1e-3
        close(found["forward"], difference("value", direction, 0), 1e-7)
        close((found["reverse"] * direction).sum(), (found["forward"] * share).sum(), 1e-9)
        close(found["forward over reverse"], second, 1e-7)
        close(found["reverse over reverse"], found["forward over reverse"], 1e-9)
        if second_over_forward:
            close(found["reverse over forward"], found["forward over reverse"], 1e-9)
            close(found["forward over forward"], (direction * found["forward over reverse"]).sum(), 1e-9)
        for k, one in enumerate(np.eye(2)):
            close(found["of numbers, forward"][:, k], difference("of numbers", 0, one), 1e-7)
        close(found["of numbers, reverse"], share @ found["of numbers, forward"], 1e-9)


@pytest.mark.parametrize("name", slow_but([ALL, *KNOWN, "cross_entropy", "nothing"], "focal(0.5)", "everything"))
def test_derivatives_are_finite_in_forward_mode_at_the_edges(name: str) -> None:
    rows = [[0.0, -INF, 1.0], [100.0, 0.0, 0.0], [1e4, -1e4, 0.0], [-INF, 0.0, -INF]]
    labels = np.array([1, 0, 0, 1], "int32")  # impossible, certain, certain, certain
    losses: list[Callable[..., Any]] = [
        partial(poly_cross_entropy_with_integer_labels, labels=labels),
        partial(poly_cross_entropy, labels=np.eye(3, dtype="float32")[labels]),
        partial(sigmoid_poly_cross_entropy, labels=np.eye(3, dtype="float32")[labels]),
    ]

    def derivatives(polynomial: Any, z: Any) -> list[Any]:
        found = []
        for loss in losses:
            of = jax.jit(partial(loss, polynomial=polynomial))
            value, pull = jax.vjp(of, z)
            along = [jax.jvp(of, (z,), (jnp.broadcast_to(one, z.shape),))[1] for one in np.eye(3, dtype="float32")]
            found.append((value, (*along, *pull(jnp.ones_like(value)))))
        return found

    for value, found in of_polynomial(name, derivatives, np.array(rows, "float32")):
        assert not np.isnan(value).any()
        assert all(np.isfinite(derivative).all() for derivative in found)


@pytest.mark.parametrize("name", ["dense", "integers", "smoothed", "masked classes", "masked examples", "sigmoid"])
@pytest.mark.parametrize("chosen", [{"epsilon": 2.0}, {"gamma": 0.5}, {"epsilon": (1.0, 2.0, 3.0)}], ids=str)
def test_nothing_as_large_as_the_logits_is_kept(name: str, chosen: dict[str, Any]) -> None:
    given = [jnp.asarray(LOGITS), jnp.asarray(SOFT), jnp.asarray(SOFT > 0.1)]
    pull = jax.jit(lambda z: jax.vjp(partial(FUNCTIONS[name], **chosen), z)[1])(given[0])
    # Residuals of the logits' size must be arguments.
    for kept in jax.tree.leaves(pull):
        if np.size(kept) >= LOGITS.size:
            assert any(np.array_equal(kept, one) for one in given), kept


AXES: list[tuple[tuple[int, ...], Any]] = [
    ((4, 5, 6), 0),
    ((4, 5, 6), 1),
    ((4, 5, 6), -1),
    ((4, 5, 6), (0, 2)),
    ((4, 5, 6), (2, 0)),
    ((4, 5, 6), (-2,)),
    ((4, 5, 6), (0, 1, 2)),
    ((4, 5, 6), None),
    ((7,), 0),
    ((7,), None),
]


@pytest.mark.parametrize(("shape", "axis"), slow_but(AXES, ((4, 5, 6), -1), ((4, 5, 6), (2, 0)), ((7,), None)), ids=str)
def test_axes_are_moved_to_the_end(shape: tuple[int, ...], axis: Any) -> None:
    random = np.random.default_rng(1)
    z, soft = random.normal(size=shape).astype("float32"), random.random(shape).astype("float32")
    given = tuple(range(len(shape))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(k % len(shape) for k in given)
    others = tuple(k for k in range(len(shape)) if k not in axes)

    def flat(array: Any) -> Any:
        array = array.transpose(others + axes)
        return array.reshape(*array.shape[: len(others)], -1)

    rows, classes = flat(z).astype("float64"), flat(z).shape[-1]
    labels = random.integers(0, classes, rows.shape[:-1]).astype("int32")
    single, few = random.random(rows.shape[:-1]) < 0.6, random.random(shape) < 0.6
    loss = Polynomial((2.0, 0.5), gamma=0.5)

    def right(class_mask: Any, valid: Any) -> tuple[Any, Any, Any]:
        """The losses in NumPy: for soft targets, for class indices, and for class indices with label smoothing."""
        weights = np.exp(rows) * class_mask
        p = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        each = np.where(class_mask, loss.value(np.log(np.where(class_mask, p, 1.0)), 1 - p), 0.0)
        of_label = np.take_along_axis(each, labels[..., None], -1)[..., 0]
        spread = each.sum(-1) / np.maximum(np.sum(class_mask, -1), 1)
        return (
            np.where(valid, (flat(soft) * each).sum(-1), 0.0),
            np.where(valid, of_label, 0.0),
            np.where(valid, 0.9 * of_label + 0.1 * spread, 0.0),
        )

    @jax.jit
    def found(z: Any, single: Any, few: Any) -> Any:
        chosen: dict[str, Any] = {"axis": axis, "epsilon": (2.0, 0.5), "gamma": 0.5}
        losses = []
        for where in (None, single, few):
            of_labels = partial(poly_cross_entropy_with_integer_labels, z, labels, where=where, **chosen)
            losses.append(
                (poly_cross_entropy(z, soft, where=where, **chosen), of_labels(), of_labels(label_smoothing=0.1))
            )
        return losses, poly_softmax(z, axis, epsilon=2.0)

    losses, posterior = found(z, single, few)
    everywhere = np.ones(rows.shape, bool)
    masks = (everywhere, True), (everywhere, single), (flat(few), True)
    for of_mask, mask in zip(losses, masks, strict=True):
        for one, correct in zip(of_mask, right(*mask), strict=True):
            assert one.shape == labels.shape
            close(one, correct)
    close(posterior.sum(given), np.ones(labels.shape))


@pytest.mark.parametrize("chosen", [{"epsilon": 2.0}, {"gamma": 0.5}], ids=str)
def test_labels_broadcast_with_logits(chosen: dict[str, Any]) -> None:
    """And Poly-1, which is computed from sums, is the loss of a traced gamma of 0, which is not."""
    z, labels = np.random.default_rng(1).normal(size=(3, 4, 5)), np.random.default_rng(2).random((3, 4, 5))
    parts = [labels[0, 0], labels[0], labels[:1, :1, :1], labels[:, :1], labels[..., :1], labels[:, :1, :1]]

    def of(labels: Any, axis: Any, **options: Any) -> Any:
        losses, pull = jax.vjp(lambda z, y: poly_cross_entropy(z, y, axis=axis, **options), z, labels)
        gradient, by_labels = pull(jnp.cos(losses))
        # The gradient of broadcast labels is the sum over what they were broadcast to.
        return losses, gradient, by_labels.sum()

    @jax.jit
    def both(parts: list[Any], gamma: Any) -> Any:
        traced = {**chosen, "gamma": gamma}
        pairs = product(parts, (-1, 1, (1, 2), (0, 2)))
        return [(of(part, axis, **chosen), of(jnp.broadcast_to(part, z.shape), axis, **traced)) for part, axis in pairs]

    with jax.enable_x64(True):
        for found, right in both(parts, chosen.get("gamma", 0.0)):
            for numbers, correct in zip(found, right, strict=True):
                close(numbers, correct, 1e-12)


def test_a_share_of_an_impossible_class_is_an_infinite_loss() -> None:
    z, labels = np.array([[0.0, 1.0, -INF]] * 3, "float32"), np.array([[1, 0, 0], [0.5, 0.5, 0], [0.9, 0, 0.1]], "f")
    for chosen in ({"epsilon": 2.0}, {"epsilon": 0.0}, {"gamma": 2.0}, {"epsilon": (1.0, 2.0)}):
        losses = poly_cross_entropy(z, labels, **chosen)
        assert np.isfinite(losses).tolist() == [True, True, False]
        assert losses[2] == INF


@pytest.mark.parametrize("name", slow_but([ALL, "poly1", "everything"], "everything"))
def test_an_index_is_its_one_hot_row(name: str) -> None:
    masks = (None, LABELS > 1, SOFT > 0.1, (SOFT > 0.1)[:1], (LABELS > 1)[:, None])
    cells = list(product(masks if name == ALL else masks[1:3], (0.0, 0.25)))

    def both(polynomial: Any, z: Any) -> list[tuple[Any, Any]]:
        losses = []
        for where, smoothing in cells:
            found = poly_cross_entropy_with_integer_labels(
                z, LABELS, label_smoothing=smoothing, where=where, polynomial=polynomial
            )
            mask = np.broadcast_to(True if where is None else where if where.ndim == 2 else where[:, None], SOFT.shape)
            labels = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / np.maximum(mask.sum(1, keepdims=True), 1)
            right = poly_cross_entropy(z, labels.astype("float32"), where=where, polynomial=polynomial)
            losses.append((found, right))
        return losses

    for found, right in of_polynomial(name, both, LOGITS):
        close(found, right, 1e-5)


@pytest.mark.parametrize("name", slow_but([ALL, *KNOWN], "focal(0.5)"))
def test_masked_classes_are_as_if_they_were_not_there(name: str) -> None:
    mask = np.array([True, False, True, True, False])
    z = LOGITS.copy()
    z[:, 1], z[:, 4] = np.nan, INF

    def both(polynomial: Any, z: Any, without: Any) -> Any:
        found = with_gradient(lambda z: poly_cross_entropy(z, SOFT, where=mask[None], polynomial=polynomial), z)
        return found, with_gradient(lambda z: poly_cross_entropy(z, SOFT[:, mask], polynomial=polynomial), without)

    (found, gradient), (right, right_gradient) = of_polynomial(name, both, z, LOGITS[:, mask])
    close(found, right)
    close(gradient[..., mask], right_gradient)
    assert (gradient[..., ~mask] == 0).all()


def test_logits_that_stand_for_minus_infinity() -> None:
    """Several classes have the least number there is, as masks of attention do: sums of these would overflow."""
    least = float(jnp.finfo(jnp.float32).min)
    logits, labels = jnp.array([[1.0, 0.0, least, least, least]]), jnp.array([0])
    right = poly_cross_entropy_with_integer_labels(logits[:, :2], labels)
    for smoothing in (0.0, jnp.array(0.0)):
        found = poly_cross_entropy_with_integer_labels(logits, labels, label_smoothing=smoothing)
        np.testing.assert_allclose(found, right, rtol=1e-6)
    smoothed = poly_cross_entropy_with_integer_labels(logits, labels, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, [-0.1 * 3 / 5 * least], rtol=1e-6)


@pytest.mark.parametrize("name", slow_but([ALL, "focal(0.5)", "everything"], "focal(0.5)"))
def test_masked_examples_count_nothing_whatever_they_are(name: str) -> None:
    """There are as many examples as classes, so that masks of examples and of classes could be mixed up."""

    def of_three(polynomial: Any, z: Any, labels: Any, soft: Any, where: Any = None) -> list[Any]:
        chosen = {"polynomial": polynomial, "where": where}
        integers = partial(poly_cross_entropy_with_integer_labels, labels=labels, **chosen)
        functions = integers, partial(integers, label_smoothing=0.1), partial(poly_cross_entropy, labels=soft, **chosen)
        return [with_gradient(function, z) for function in functions]

    soft = np.eye(5, dtype="float32")[LABELS]
    right = of_polynomial(name, of_three, LOGITS, LABELS, soft)
    for examples, dimensions in ((5, 1), (6, 2)) if name == ALL else ((5, 1),):
        z, labels, shares = LOGITS[:examples].copy(), LABELS[:examples].copy(), soft[:examples].copy()
        kept = np.array([True, False, True, False, False, True])[:examples]
        z[1], z[3], z[4, 0], labels[1], labels[3], shares[1] = np.nan, -INF, INF, -100, 77, np.nan
        where = kept.reshape(-1, *[1] * (dimensions - 1))
        for found, correct in zip(of_polynomial(name, of_three, z, labels, shares, where), right, strict=True):
            for numbers, of_all in zip(found, correct, strict=True):
                close(numbers[:, kept], of_all[:, :examples][:, kept])
                assert (numbers[:, ~kept] == 0).all()


def test_labels_out_of_range_give_nan_and_no_other_example_suffers() -> None:
    loss = jax.jit(partial(poly_cross_entropy_with_integer_labels, epsilon=2.0))
    for wrong in (-1, 5, -100, 2**31 - 1):
        labels = LABELS.copy()
        labels[2] = wrong
        for dtype in ("int32", "int64", "uint32", "int8", "uint8"):
            info = np.iinfo(dtype)
            if info.min <= wrong <= info.max:
                found = loss(LOGITS, labels.astype(dtype))
                assert np.isnan(found).tolist() == [False, False, True, False, False, False]
    for dtype in ("int8", "uint8", "int16", "uint32"):
        found = jax.jit(poly_cross_entropy_with_integer_labels)(np.zeros((1, 300)), np.array([100], dtype))
        close(found, [np.log(300) + 1 - 1 / 300])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_the_results_are_optaxs(dtype: str) -> None:
    z = jnp.asarray(LOGITS, dtype)

    def dtype_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return jax.eval_shape(partial(function, **options), *arguments).dtype

    for labels_dtype in ("float16", "bfloat16", "float32", "int32"):
        labels = jnp.asarray(np.eye(5)[LABELS], labels_dtype)
        right = dtype_of(optax.losses.softmax_cross_entropy, z, labels)
        assert dtype_of(poly_cross_entropy, z, labels) == right
        assert dtype_of(sigmoid_poly_cross_entropy, z, labels) == z.dtype
    options: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1}, {"epsilon": jnp.float32(2.0)}]
    for chosen in options:
        assert dtype_of(poly_cross_entropy_with_integer_labels, z, LABELS, **chosen) == z.dtype
    for function in (poly_from_nll, poly_softmax, poly_sigmoid):
        assert dtype_of(function, z) == z.dtype


def test_labels_of_more_digits_than_logits_widen_the_result() -> None:
    with jax.enable_x64(True):
        loss = jax.jit(partial(poly_cross_entropy, epsilon=2.0))
        found, right = (loss(z, SOFT.astype("float64")) for z in (LOGITS, LOGITS.astype("float64")))
        assert found.dtype == "float64"
        close(found, right, 1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (0,)], ids=str)
def test_nothing_at_all(shape: tuple[int, ...]) -> None:
    @jax.jit
    def of(z: Any) -> tuple[list[Any], list[Any]]:
        losses, elementwise = [], []
        choices: list[dict[str, Any]] = [{"epsilon": 2.0}, {"gamma": 0.5}]
        for chosen in choices:
            loss, gradient = with_gradient(partial(poly_cross_entropy, labels=z, **chosen), z)
            losses.append(loss)
            elementwise += [gradient, sigmoid_poly_cross_entropy(z, z, **chosen)]
        if len(shape) > 1 and (shape[-1] or not shape[0]):
            labels = jnp.zeros(shape[:-1], int)
            for smoothing in (0.0, 0.1):
                losses.append(poly_cross_entropy_with_integer_labels(z, labels, label_smoothing=smoothing))
        return losses, elementwise

    losses, elementwise = of(np.zeros(shape, "float32"))
    for loss in losses:
        assert loss.shape == shape[:-1]
        assert (np.asarray(loss) == 0).all()
    for numbers in elementwise:
        assert numbers.shape == shape


def test_a_polynomial_is_a_tree_of_its_numbers() -> None:
    loss = polylosses.poly1_focal(2.0, 0.5)
    leaves, structure = jax.tree.flatten(loss)
    assert leaves == [2.0, 0.5, 1.0]
    assert jax.tree.unflatten(structure, leaves) == loss
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(loss)[0]]
    assert paths == [".coefficients[0]", ".gamma", ".log_weight"]
    assert jax.tree.unflatten(structure, [None, "anything", object()]).gamma == "anything"
    by_loss = jax.grad(lambda loss: poly_cross_entropy_with_integer_labels(LOGITS, LABELS, polynomial=loss).sum())(loss)
    assert isinstance(by_loss, Polynomial)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(by_loss))


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "integer logits": (
        lambda: poly_cross_entropy(LABELS, SOFT),
        TypeError,
        "logits must be a floating-point array; got int",
    ),
    "float labels": (
        lambda: poly_cross_entropy_with_integer_labels(LOGITS, SOFT[:, 0]),
        TypeError,
        "labels must be integers; got float32. For probabilities, use poly_cross_entropy",
    ),
    "bool labels": (lambda: poly_cross_entropy_with_integer_labels(LOGITS, LABELS > 1), TypeError, "got bool"),
    "class indices for probabilities": (
        lambda: poly_cross_entropy(LOGITS, LABELS),
        ValueError,
        r"labels of shape \(6,\) and dtype int32 look like class indices",
    ),
    "another shape": (lambda: poly_cross_entropy(LOGITS, SOFT[:4]), ValueError, r"got shapes \(4, 5\) and \(6, 5\)"),
    "one-hot for integers": (
        lambda: poly_cross_entropy_with_integer_labels(LOGITS, np.eye(5, dtype=int)[LABELS]),
        ValueError,
        r"must have shape \(6,\); got \(6, 5\)",
    ),
    "complex labels": (lambda: poly_cross_entropy(LOGITS, SOFT * 1j), TypeError, "labels must be real; got complex64"),
    "axis out of bounds": (lambda: poly_cross_entropy(LOGITS, SOFT, axis=2), ValueError, "axis 2 is out of bounds"),
    "axis twice": (lambda: poly_cross_entropy(LOGITS, SOFT, axis=(1, -1)), ValueError, r"got \(1, -1\)"),
    "no axis": (lambda: poly_cross_entropy(LOGITS, SOFT, axis=()), ValueError, r"got \(\)"),
    "axis of a string": (
        lambda: poly_cross_entropy(LOGITS, SOFT, axis="1"),  # type: ignore[arg-type]
        TypeError,
        "axis must be an integer",
    ),
    "where of numbers": (
        lambda: poly_cross_entropy(LOGITS, SOFT, where=np.ones(6)),
        TypeError,
        "where must be boolean; got float32",
    ),
    "where of classes, one dimension": (
        lambda: poly_cross_entropy(LOGITS, SOFT, where=np.ones(5, bool)),
        ValueError,
        r"where must have shape \(6,\), for examples, or broadcast to \(6, 5\) with as many dimensions",
    ),
    "smoothing out of range": (
        lambda: poly_cross_entropy_with_integer_labels(LOGITS, LABELS, label_smoothing=1.5),
        ValueError,
        "label_smoothing must be between 0 and 1; got 1.5",
    ),
    "smoothing of a string": (
        lambda: poly_cross_entropy_with_integer_labels(LOGITS, LABELS, label_smoothing="0.1"),  # type: ignore[arg-type]
        TypeError,
        "got '0.1'",
    ),
    "alpha out of range": (
        lambda: sigmoid_poly_cross_entropy(LOGITS, SOFT, alpha=-1),
        ValueError,
        "alpha must be between 0 and 1, or None for no balance; got -1",
    ),
    "alpha of a string": (lambda: sigmoid_poly_cross_entropy(LOGITS, SOFT, alpha="0.25"), TypeError, "got '0.25'"),
    "sigmoid labels that make the result larger": (
        lambda: sigmoid_poly_cross_entropy(LOGITS[:, :1], SOFT),
        ValueError,
        r"labels must broadcast to the shape of logits, \(6, 1\); got shape \(6, 5\)",
    ),
    "both": (lambda: poly_cross_entropy(LOGITS, SOFT, gamma=1.0, polynomial=LOSSES["poly1"]), ValueError, "not both"),
    "gamma below 0": (lambda: poly_cross_entropy(LOGITS, SOFT, gamma=-1.0), ValueError, "gamma must be at least 0"),
    "epsilon of a string": (lambda: poly_cross_entropy(LOGITS, SOFT, epsilon="2"), TypeError, "got '2'"),
    "nll of integers": (lambda: poly_from_nll(LABELS), TypeError, "nll must be a floating-point array; got int"),
    "integer labels for optax's": (
        lambda: poly_loss_cross_entropy(LOGITS, LABELS),
        TypeError,
        "labels must be a floating",
    ),
    "a kernel that does not fit": (
        lambda: linear_poly_cross_entropy(LOGITS, np.ones((4, 3), "f"), LABELS),
        ValueError,
        r"kernel \(H, V\); got \(6, 5\) and \(4, 3\)",
    ),
    "a bias that does not fit": (
        lambda: linear_poly_cross_entropy(LOGITS, np.ones((5, 3), "f"), LABELS, bias=np.ones(5, "f")),
        ValueError,
        r"bias must have shape \(3,\), one number for each class; got \(5,\)",
    ),
    "labels that do not fit": (
        lambda: linear_poly_cross_entropy(LOGITS, np.ones((5, 3), "f"), LABELS[:3]),
        ValueError,
        r"labels must have shape \(6,\), one class index for each example; got \(3,\)",
    ),
    "probabilities for a linear head": (
        lambda: linear_poly_cross_entropy(LOGITS, np.ones((5, 5), "f"), SOFT),
        TypeError,
        "labels must be integers",
    ),
    "where of classes for a linear head": (
        lambda: linear_poly_cross_entropy(LOGITS, np.ones((5, 3), "f"), LABELS, where=np.ones(3, bool)),
        ValueError,
        r"where must have shape \(6,\), for examples; got \(3,\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
