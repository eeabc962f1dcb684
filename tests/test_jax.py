"""What is JAX's alone: transformations, axes, masks, dtypes, errors, and optax's own tests."""

import unittest
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from optax.losses import _classification, _classification_test

import polylosses
from cases import LOSSES
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
LABELS = RANDOM.integers(0, 5, 6)
SOFT = RANDOM.dirichlet(np.ones(5), 6).astype("float32")


def close(found: Any, right: Any, within: float = 2e-6) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(right), rtol=within, atol=within)


# Which of optax's own tests of a function ours has to pass in its place.
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


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_with_epsilon_0_it_is_optaxs_sigmoid_focal_loss(gamma: float, alpha: float | None) -> None:
    labels = (SOFT > 0.2).astype("float32")
    found = sigmoid_poly_cross_entropy(LOGITS, labels, epsilon=0.0, gamma=gamma, alpha=alpha)
    close(found, optax.losses.sigmoid_focal_loss(LOGITS, labels, gamma=gamma, alpha=alpha))


def test_optaxs_poly_loss_where_it_is_right() -> None:
    for epsilon in (-1.0, 0.0, 2, jnp.float32(5.0), np.arange(6.0, dtype="float32"), jnp.ones((3, 1))):
        close(
            poly_loss_cross_entropy(LOGITS, SOFT, epsilon=epsilon),
            optax.losses.poly_loss_cross_entropy(LOGITS, SOFT, epsilon=epsilon),
        )
    close(poly_loss_cross_entropy(LOGITS, SOFT), optax.losses.poly_loss_cross_entropy(LOGITS, SOFT))


# One function for each loss, of logits, epsilon, gamma.
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


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_another_epsilon_or_gamma_is_no_retrace(function: Callable[..., Any]) -> None:
    traced = []

    @jax.jit
    def loss(epsilon: Any, gamma: Any) -> Any:
        traced.append(1)
        return function(jnp.asarray(LOGITS), epsilon=epsilon, gamma=gamma)

    for epsilon, gamma in ((1.0, 0.0), (2.0, 0.0), (-0.5, 2.0), (0.0, 0.5)):
        close(loss(epsilon, gamma), function(jnp.asarray(LOGITS), epsilon=epsilon, gamma=gamma))
    assert len(traced) == 1


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_polynomial_is_an_argument(function: Callable[..., Any]) -> None:
    z = jnp.asarray(LOGITS)
    for name in ("poly1", "focal(0.5)", "everything", "mean_absolute_error", "taylor_cross_entropy(8)", "no logarithm"):
        close(jax.jit(function)(z, polynomial=LOSSES[name]), function(z, polynomial=LOSSES[name]), 1e-5)
    several = Polynomial(
        (jnp.array([0.0, 1.0, 2.0]), jnp.full(3, 0.5)), jnp.array([0.0, 1.0, 0.5]), jnp.array([1.0, 2.0, 0.5])
    )
    found = jax.vmap(lambda polynomial: function(z, polynomial=polynomial))(several)
    for k in range(3):
        one = jax.tree.map(lambda numbers, k=k: numbers[k], several)
        close(found[k], function(z, polynomial=one), 1e-5)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_maps_over_epsilons_and_over_examples(function: Callable[..., Any]) -> None:
    z = jnp.asarray(LOGITS)
    epsilons, many = jnp.array([-0.5, 0.0, 2.0]), jnp.stack([z, 2 * z, -z])
    by_epsilon = jax.vmap(lambda epsilon: function(z, epsilon=epsilon, gamma=0.5))(epsilons)
    by_logits = jax.vmap(function)(many)
    for k in range(3):
        close(by_epsilon[k], function(z, epsilon=epsilons[k], gamma=0.5))
        close(by_logits[k], function(many[k]))


@pytest.mark.parametrize(
    ("name", "gamma"), [("dense", 0.0), ("integers", 0.0), *((name, 0.5) for name in FUNCTIONS)], ids=str
)
def test_derivatives_of_both_modes_and_orders(name: str, gamma: float) -> None:
    function = FUNCTIONS[name]
    with jax.enable_x64(True):
        z = jnp.asarray(LOGITS, "float64")
        check_grads(partial(function, epsilon=2.0, gamma=gamma), (z,), 1, atol=1e-6, rtol=1e-6)
        by_numbers = lambda epsilon, gamma: function(z, epsilon=epsilon, gamma=gamma)  # noqa: E731
        check_grads(by_numbers, (2.0, gamma + 0.25), 1, atol=1e-6, rtol=1e-6)
        gradient = jax.grad(lambda z: function(z, epsilon=2.0, gamma=gamma).sum())
        direction, step = jnp.cos(jnp.arange(30.0)).reshape(6, 5), 1e-5
        right = (gradient(z + step * direction) - gradient(z - step * direction)) / (2 * step)
        assert np.abs(right).max() > 1e-3
        forward_over_reverse = jax.jvp(gradient, (z,), (direction,))[1]
        close(forward_over_reverse, right, 1e-7)
        close(jax.vjp(gradient, z)[1](direction)[0], forward_over_reverse, 1e-9)
        forward = lambda z: jax.jvp(lambda z: function(z, epsilon=2.0, gamma=gamma).sum(), (z,), (direction,))[1]  # noqa: E731
        close(jax.grad(forward)(z), forward_over_reverse, 1e-9)
        close(jax.jvp(forward, (z,), (direction,))[1], (direction * forward_over_reverse).sum(), 1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_are_finite_in_forward_mode_at_the_edges(name: str) -> None:
    rows = [[0.0, -INF, 1.0], [100.0, 0.0, 0.0], [1e4, -1e4, 0.0], [-INF, 0.0, -INF]]
    z, labels = jnp.array(rows), jnp.array([1, 0, 0, 1])  # impossible, certain, certain, certain
    for traced in (False, True):
        chosen: Any = {"polynomial": jax.tree.map(jnp.asarray, LOSSES[name]) if traced else LOSSES[name]}
        losses: list[Callable[..., Any]] = [
            partial(poly_cross_entropy_with_integer_labels, labels=labels, **chosen),
            partial(poly_cross_entropy, labels=jax.nn.one_hot(labels, 3), **chosen),
            partial(sigmoid_poly_cross_entropy, labels=jax.nn.one_hot(labels, 3), **chosen),
        ]
        for loss in losses:
            assert not np.isnan(loss(z)).any()
            for one in np.eye(3, dtype="float32"):
                tangent = jnp.broadcast_to(one, z.shape)
                assert np.isfinite(jax.jvp(loss, (z,), (tangent,))[1]).all()
            assert np.isfinite(jax.vjp(loss, z)[1](jnp.ones_like(loss(z)))[0]).all()


@pytest.mark.parametrize("name", ["dense", "integers", "smoothed", "masked classes", "masked examples", "sigmoid"])
@pytest.mark.parametrize("chosen", [{"epsilon": 2.0}, {"gamma": 0.5}, {"epsilon": (1.0, 2.0, 3.0)}], ids=str)
def test_nothing_as_large_as_the_logits_is_kept(name: str, chosen: dict[str, Any]) -> None:
    given = [jnp.asarray(LOGITS), jnp.asarray(SOFT), jnp.asarray(SOFT > 0.1)]
    _, pull = jax.vjp(partial(FUNCTIONS[name], **chosen), given[0])
    # What is as large has to be one of the arguments.
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


@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_axes_are_moved_to_the_end(shape: tuple[int, ...], axis: Any) -> None:
    random = np.random.default_rng(1)
    z, soft = random.normal(size=shape).astype("float32"), random.random(shape).astype("float32")
    given = tuple(range(len(shape))) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(k % len(shape) for k in given)
    others = tuple(k for k in range(len(shape)) if k not in axes)

    def flat(array: Any) -> Any:
        array = array.transpose(others + axes)
        return array.reshape(*array.shape[: len(others)], -1)

    chosen: dict[str, Any] = {"epsilon": (2.0, 0.5), "gamma": 0.5}
    rows, classes = flat(z), flat(z).shape[-1]
    labels = random.integers(0, classes, rows.shape[:-1])
    single, few = random.random(rows.shape[:-1]) < 0.6, random.random(shape) < 0.6
    for where, flat_where in ((None, None), (single, single), (few, flat(few))):
        found = poly_cross_entropy(z, soft, axis=axis, where=where, **chosen)
        close(found, poly_cross_entropy(rows, flat(soft), where=flat_where, **chosen))
        for smoothing in (0.0, 0.1):
            found = poly_cross_entropy_with_integer_labels(
                z, labels, axis=axis, where=where, label_smoothing=smoothing, **chosen
            )
            right = poly_cross_entropy_with_integer_labels(
                rows, labels, where=flat_where, label_smoothing=smoothing, **chosen
            )
            close(found, right)
            assert found.shape == labels.shape
    close(poly_softmax(z, axis, epsilon=2.0).sum(given), np.ones(rows.shape[:-1]))


@pytest.mark.parametrize("name", LOSSES)
def test_an_index_is_its_one_hot_row(name: str) -> None:
    for where in (None, LABELS > 1, SOFT > 0.1, (SOFT > 0.1)[:1], (LABELS > 1)[:, None]):
        for smoothing in (0.0, 0.25):
            found = poly_cross_entropy_with_integer_labels(
                LOGITS, LABELS, label_smoothing=smoothing, where=where, polynomial=LOSSES[name]
            )
            mask = np.broadcast_to(True if where is None else where if where.ndim == 2 else where[:, None], SOFT.shape)
            labels = (1 - smoothing) * np.eye(5)[LABELS] + smoothing / np.maximum(mask.sum(1, keepdims=True), 1)
            right = poly_cross_entropy(LOGITS, labels.astype("float32"), where=where, polynomial=LOSSES[name])
            close(found, right, 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_classes_are_as_if_they_were_not_there(name: str) -> None:
    mask = np.array([True, False, True, True, False])
    z = LOGITS.copy()
    z[:, 1], z[:, 4] = np.nan, INF

    def of_all(z: Any) -> Any:
        return poly_cross_entropy(z, SOFT, where=mask[None], polynomial=LOSSES[name])

    def of_some(z: Any) -> Any:
        return poly_cross_entropy(z, SOFT[:, mask], polynomial=LOSSES[name])

    close(of_all(z), of_some(LOGITS[:, mask]))
    gradient = np.asarray(jax.grad(lambda z: of_all(z).sum())(z))
    close(gradient[:, mask], jax.grad(lambda z: of_some(z).sum())(LOGITS[:, mask]))
    assert (gradient[:, ~mask] == 0).all()


@pytest.mark.parametrize("shape", [(6,), (6, 1)], ids=str)
@pytest.mark.parametrize("name", ["poly1", "focal(0.5)", "everything"])
def test_masked_examples_count_nothing_whatever_they_are(name: str, shape: tuple[int, ...]) -> None:
    """Also with as many examples as classes, where a mask of examples could be taken for one of classes."""
    loss = LOSSES[name]
    losses: list[Callable[..., Any]] = [
        lambda z, y, where: poly_cross_entropy_with_integer_labels(z, y, where=where, polynomial=loss),
        lambda z, y, where: poly_cross_entropy_with_integer_labels(
            z, y, where=where, polynomial=loss, label_smoothing=0.1
        ),
        lambda z, y, where: poly_cross_entropy(
            z, np.where(y[:, None] < 0, np.nan, np.eye(5)[y % 5]), where=where, polynomial=loss
        ),
    ]

    def with_gradient(function: Callable[..., Any], z: Any, *others: Any) -> Any:
        return function(z, *others), jax.grad(lambda z: function(z, *others).sum())(z)

    for examples in (6, 5):
        z, labels = LOGITS[:examples].copy(), LABELS[:examples].copy()
        kept = np.array([True, False, True, False, False, True])[:examples]
        z[1], z[3], z[4, 0], labels[1], labels[3] = np.nan, -INF, INF, -100, 77
        for function in losses:
            found, gradient = with_gradient(function, z, labels, kept.reshape((examples, *shape[1:])))
            right, right_gradient = with_gradient(function, z[kept], labels[kept], None)
            close(found[kept], right)
            close(gradient[kept], right_gradient)
            assert (found[~kept] == 0).all()
            assert (gradient[~kept] == 0).all()


def test_labels_out_of_range_give_nan_and_no_other_example_suffers() -> None:
    for wrong in (-1, 5, -100, 2**31 - 1):
        labels = LABELS.copy()
        labels[2] = wrong
        for dtype in ("int32", "int64", "uint32", "int8", "uint8"):
            info = np.iinfo(dtype)
            if info.min <= wrong <= info.max:
                found = poly_cross_entropy_with_integer_labels(LOGITS, labels.astype(dtype), epsilon=2.0)
                assert np.isnan(found).tolist() == [False, False, True, False, False, False]
    for dtype in ("int8", "uint8", "int16", "uint32"):
        found = poly_cross_entropy_with_integer_labels(np.zeros((1, 300)), np.array([100], dtype))
        close(found, [np.log(300) + 1 - 1 / 300])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_the_results_are_optaxs(dtype: str) -> None:
    z = jnp.asarray(LOGITS, dtype)
    for labels_dtype in ("float16", "bfloat16", "float32", "int32"):
        labels = jnp.asarray(np.eye(5)[LABELS], labels_dtype)
        assert poly_cross_entropy(z, labels).dtype == optax.losses.softmax_cross_entropy(z, labels).dtype
        assert sigmoid_poly_cross_entropy(z, labels).dtype == z.dtype
    assert poly_cross_entropy_with_integer_labels(z, LABELS).dtype == z.dtype
    assert poly_cross_entropy_with_integer_labels(z, LABELS, label_smoothing=0.1).dtype == z.dtype
    assert poly_cross_entropy_with_integer_labels(z, LABELS, epsilon=jnp.float32(2.0)).dtype == z.dtype
    assert poly_from_nll(z).dtype == poly_softmax(z).dtype == poly_sigmoid(z).dtype == z.dtype


def test_labels_of_more_digits_than_logits_widen_the_result() -> None:
    with jax.enable_x64(True):
        found = poly_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(SOFT, "float64"), epsilon=2.0)
        right = poly_cross_entropy(jnp.asarray(LOGITS, "float64"), jnp.asarray(SOFT, "float64"), epsilon=2.0)
        assert found.dtype == "float64"
        close(found, right, 1e-15)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (0,)], ids=str)
def test_nothing_at_all(shape: tuple[int, ...]) -> None:
    z = jnp.zeros(shape)
    choices: list[dict[str, Any]] = [{"epsilon": 2.0}, {"gamma": 0.5}]
    for chosen in choices:
        found = poly_cross_entropy(z, z, **chosen)
        assert found.shape == shape[:-1]
        assert (found == 0).all()
        assert sigmoid_poly_cross_entropy(z, z, **chosen).shape == shape
        assert jax.grad(lambda z, o=chosen: poly_cross_entropy(z, z, **o).sum())(z).shape == shape
    for smoothing in (0.0, 0.1):
        if len(shape) > 1 and (shape[-1] or not shape[0]):
            labels = jnp.zeros(shape[:-1], int)
            found = poly_cross_entropy_with_integer_labels(z, labels, label_smoothing=smoothing)
            assert found.shape == shape[:-1]


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
