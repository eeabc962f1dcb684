"""``polylosses.keras`` against Keras's own losses, in compiled models and saved files, on each of Keras's backends."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import keras
import mpmath as mp
import numpy as np
import pytest
from keras import ops

import on_keras
import polylosses
import reference
from cases import BINARY_CELLS, CELLS, LOSSES, arrays, binary_arrays
from found import SPACING, compare, report
from polylosses import Polynomial, asymmetric, focal, poly1
from polylosses.keras import (
    PolyBinaryCrossentropy,
    PolyCategoricalCrossentropy,
    PolySparseCategoricalCrossentropy,
    poly_binary_crossentropy,
    poly_categorical_crossentropy,
    poly_sparse_categorical_crossentropy,
)

# Keras itself causes this warning, by numpy.array(tensor, copy=False) on torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
FIRST = "POLYLOSSES_OTHER_BACKEND" not in os.environ
# On the other backends a few losses are enough, since JAX takes long to compile.
SOME = list(LOSSES) if FIRST else ["poly1_focal(-1, 0.5)", "no logarithm"]
once = pytest.mark.skipif(not FIRST, reason="the same on every backend")

if BACKEND == "tensorflow":
    import tensorflow as tf

INF = float("inf")
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 5)).astype("float32")
LABELS = RANDOM.integers(0, 5, 6)
SOFT = RANDOM.dirichlet(np.ones(5), 6).astype("float32")
YES = (SOFT > 0.2).astype("float32")
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)).astype("float32")


def array(tensor: Any) -> Any:
    return ops.convert_to_numpy(tensor)


def close(found: Any, right: Any, within: float = 2e-6) -> None:
    np.testing.assert_allclose(array(found), array(right), rtol=within, atol=within)


@once
@pytest.mark.slow
@pytest.mark.parametrize("backend", sorted({"jax", "tensorflow", "torch"} - {BACKEND}))
def test_the_other_backends(backend: str) -> None:
    """Runs this file on another backend, without the tests marked ``once``."""
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    # Without conftest.py, which imports torch.
    options = ["-q", "-n0", "-m", "", "-p", "no:cacheprovider", "--noconftest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env={**os.environ, "KERAS_BACKEND": backend, "POLYLOSSES_OTHER_BACKEND": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 40


@pytest.mark.parametrize("name", SOME)
def test_values_and_gradients_are_the_oracles(name: str) -> None:
    """Runs on every backend, in one shape. The shared tests run on the first backend only, in all shapes."""
    loss, failures = LOSSES[name], {}
    for cell in CELLS:
        if cell.shape == (6, 5) and cell.reduction == "none" and not cell.weighted and cell.ignore_index in (None, 255):
            numbers = arrays(cell)
            options: dict[str, Any] = {"ignore_index": cell.ignore_index, "label_smoothing": cell.label_smoothing}
            given: dict[str, Any] = {"reduction": "none", "grad_output": numbers.grad_output}
            found = on_keras.cross_entropy(loss, numbers.logits, numbers.target, **given, **options, dtype="float32")
            options["ignore_index"] = -100 if cell.ignore_index is None else cell.ignore_index
            right = reference.cross_entropy(loss, numbers.logits, numbers.target, **given, **options)
            failures[str(cell)] = compare(found, right, lambda _, scale: SPACING["float32"] * scale)
    for binary in BINARY_CELLS:
        if binary.shape == (6, 5) and binary.reduction == "none" and on_keras.serves_binary(binary):
            of_binary = binary_arrays(binary)
            given = {"reduction": "none", "grad_output": of_binary.grad_output, "alpha": binary.alpha}
            found = on_keras.binary_cross_entropy(loss, of_binary.logits, of_binary.target, **given, dtype="float32")
            right = reference.binary_cross_entropy(loss, of_binary.logits, of_binary.target, **given)
            failures[str(binary)] = compare(found, right, lambda _, scale: SPACING["float32"] * scale)
    assert len(failures) >= 11
    report(failures)


OWN: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "categorical": (poly_categorical_crossentropy, keras.losses.categorical_crossentropy, SOFT),
    "sparse": (poly_sparse_categorical_crossentropy, keras.losses.sparse_categorical_crossentropy, LABELS),
    "binary": (poly_binary_crossentropy, keras.losses.binary_crossentropy, YES),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "categorical": [{}, {"label_smoothing": 0.1}],
    "sparse": [{}, {"ignore_class": 2}, {"ignore_class": -1}, {"ignore_class": 255}],
    "binary": [{}, {"label_smoothing": 0.1}],
}
# (shape of the predictions, class axis)
SHAPES: list[tuple[tuple[int, ...], int]] = [((6, 5), -1), ((2, 5, 3), 1), ((5,), 0)]


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_with_epsilon_0_value_and_gradient_are_kerass(name: str, from_logits: bool) -> None:
    ours, kerass, _ = OWN[name]
    random = np.random.default_rng(1)
    for (shape, axis), option in product(SHAPES if FIRST else SHAPES[:1], OPTIONS[name]):
        z = random.normal(size=shape).astype("float32")
        # Probabilities are not normalized, and may be above 1.
        z = z if from_logits else np.abs(z) + 0.1 if name != "binary" else 1 / (1 + np.exp(-z))
        y: Any = random.random(shape).astype("float32")
        y = y / y.sum(axis, keepdims=True)  # TensorFlow's gradient needs normalized labels
        if name == "sparse":
            y = random.integers(0, 5, np.delete(shape, axis))
            if option:
                y.reshape(-1)[::2] = option["ignore_class"]

        def of_ours(z: Any, y: Any = y, axis: int = axis, option: dict[str, Any] = option) -> Any:
            return ours(y, z, from_logits, axis=axis, **option, epsilon=0.0)

        # On some backends Keras supports the last axis only, and its label smoothing always counts the last axis.
        def of_keras(z: Any, y: Any = y, axis: int = axis, option: dict[str, Any] = option) -> Any:
            moved = y if name == "sparse" else ops.moveaxis(ops.convert_to_tensor(y), axis, -1)
            return kerass(moved, ops.moveaxis(z, axis, -1), from_logits, **option)

        factor = np.random.default_rng(2).random(np.delete(shape, axis))
        found, right = (on_keras.with_gradients(f, factor, [z], "float32") for f in (of_ours, of_keras))
        close(found.value, right.value)
        close(found.gradient, right.gradient)


@pytest.mark.parametrize("from_logits", [False, True])
def test_with_alpha_it_is_kerass_focal_loss(from_logits: bool) -> None:
    weights, one_hot = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32"), np.eye(5, dtype="float32")[LABELS]
    several: Any = [0.25, [0.1, 0.2, 0.0, 2.0, 1.0], np.arange(5.0)]
    z = LOGITS if from_logits else PROBABILITIES
    for alpha, smoothing, reduction in product(several, (0.0, 0.1), ("none", "sum_over_batch_size")):
        options: dict[str, Any] = {"from_logits": from_logits, "alpha": alpha, "gamma": 2.0, "reduction": reduction}
        ours = PolyCategoricalCrossentropy(label_smoothing=smoothing, epsilon=0.0, **options)
        kerass = keras.losses.CategoricalFocalCrossentropy(label_smoothing=smoothing, **options)
        sparse = PolySparseCategoricalCrossentropy(epsilon=0.0, **options)
        for weight, y in product((None, weights), (one_hot, SOFT)):
            close(ours(y, z, sample_weight=weight), kerass(y, z, sample_weight=weight))
        if not smoothing:
            close(sparse(LABELS, z, sample_weight=weights), ours(one_hot, z, sample_weight=weights))


def test_alpha_belongs_to_the_class_axis_and_may_be_a_tensor() -> None:
    alpha, factor = [0.5, 0.0, 2.0, 1.0, 4.0], np.random.default_rng(2).random((2, 5))
    z = np.random.default_rng(1).normal(size=(2, 5, 5)).astype("float32")  # as many positions as classes
    z[0, 1] = -INF  # alpha leaves nothing of this class, whose loss is infinite
    labels = np.array([[1, 0, 2, 3, 4], [4, 1, 2, 2, 0]])
    y = np.moveaxis(np.eye(5, dtype="float32")[labels], -1, 1)
    chosen: dict[str, Any] = {"axis": 1, "epsilon": 2.0}
    with np.errstate(invalid="ignore"):
        right = array(poly_sparse_categorical_crossentropy(labels, z, True, **chosen)) * np.array(alpha)[labels]
    right[labels == 1] = 0
    for given in (alpha, np.array(alpha), keras.Variable(alpha), ops.convert_to_tensor(alpha, "float32")):
        for function, target in ((poly_sparse_categorical_crossentropy, labels), (poly_categorical_crossentropy, y)):

            def of_logits(z: Any, function: Any = function, target: Any = target, alpha: Any = given) -> Any:
                return function(target, z, True, alpha=alpha, **chosen)

            found = on_keras.with_gradients(of_logits, factor, [z], "float32")
            close(found.value, right)
            assert np.isfinite(found.gradient).all()


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_with_epsilon_0_it_is_kerass_after_an_activation(link: str) -> None:
    """Also for probabilities of 0 and 1: on TensorFlow, Keras recovers the logits if the activation comes last."""
    activation = getattr(keras.activations, link)
    activations = [activation, lambda z: 1.0 * activation(z)]
    if BACKEND == "tensorflow":
        activations.append(getattr(tf.nn, link))
    cells = [
        (*OWN[name], option)
        for name in OWN
        for option in OPTIONS[name][:2]
        if (name == "binary") == (link == "sigmoid")
    ]

    def both(z: Any) -> Any:
        pairs = []
        for activate, (ours, kerass, labels, option) in product(activations, cells):
            y_pred = activate(z)
            pairs.append((ours(labels, y_pred, epsilon=0.0, **option), kerass(labels, y_pred, **option)))
        return pairs

    for run in [both, on_keras.compiled(both)[0]] if BACKEND == "tensorflow" else [both]:
        for found, right in run(ops.convert_to_tensor(30 * LOGITS)):
            close(found, right)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only there Keras looks for the logits")
def test_logits_that_are_probabilities_are_named() -> None:
    for (ours, kerass, labels), link in zip(OWN.values(), ["softmax", "softmax", "sigmoid"], strict=True):
        y_pred = getattr(keras.activations, link)(ops.convert_to_tensor(LOGITS))
        with pytest.warns(UserWarning, match=f"y_pred comes from a {link}") as seen:
            found = ours(labels, y_pred, from_logits=True, epsilon=0.0)
        assert [warning.filename for warning in seen] == [__file__]
        close(found, kerass(labels, y_pred))


@pytest.mark.parametrize("ignore_class", [None, 255, -1, 2, 2**32])
def test_a_label_that_is_no_class_trains_none(ignore_class: int | None) -> None:
    def function(y: Any, z: Any, ignore_class: int | None = ignore_class) -> Any:
        return poly_sparse_categorical_crossentropy(y, z, True, ignore_class, epsilon=2.0, gamma=0.5)

    of_each = np.stack([array(function(np.full(6, k), LOGITS, None)) for k in range(5)], 1)
    runs = [function] if ignore_class != 255 else [function, *on_keras.compiled(function)]
    for run, dtype in product(runs, ["uint8", "int8", "int32", "int64", "float32"]):
        if run is not function and dtype != "float32":
            continue
        y = np.array([0, 4, 5, -1, 255, 2]).astype(dtype)
        valid = (y >= 0) & (y < 5)
        right = np.where(valid, of_each[np.arange(6), np.where(valid, y, 0).astype(int)], np.nan)
        right[y == ignore_class] = 0

        def of_logits(z: Any, y: Any = y, run: Any = run) -> Any:
            return run(ops.convert_to_tensor(y), z)

        found = on_keras.with_gradients(of_logits, np.ones(6), [LOGITS], "float32")
        close(found.value, right)
        assert np.array_equal(np.abs(found.gradient).sum(1) > 0, valid & (y != ignore_class))


@once
def test_labels_of_floats_that_cannot_hold_them() -> None:
    """keras.losses.Loss casts labels to its dtype: class 257 of 300 would become 256 in bfloat16."""
    loss = PolySparseCategoricalCrossentropy(True, dtype="bfloat16")
    assert np.isfinite(float(ops.cast(loss([255], np.zeros((1, 256), "float32")), "float32")))
    with pytest.raises(ValueError, match="y_true of dtype bfloat16 can't represent the indices of 300 classes"):
        loss([257], np.zeros((1, 300), "float32"))


@once
def test_labels_that_kept_the_class_axis() -> None:
    z, labels = RANDOM.normal(size=(2, 5, 3, 4)).astype("float32"), RANDOM.integers(0, 5, (2, 3, 4))
    right = poly_sparse_categorical_crossentropy(labels, z, True, axis=1)
    for kept in (labels[:, None], labels[..., None]):
        close(poly_sparse_categorical_crossentropy(kept, z, True, axis=1), right, 0)
        close(poly_sparse_categorical_crossentropy(kept, z, True, axis=-3), right, 0)
    loss, own = PolySparseCategoricalCrossentropy(True, epsilon=0.0), keras.losses.SparseCategoricalCrossentropy(True)
    for given in (LABELS, LABELS[:, None], LABELS[:, None, None]):
        close(loss(given, LOGITS), own(given, LOGITS))


FOCAL = [name for name in SOME if LOSSES[name].gamma]
MARGINS = np.array([-200, -60, -5, 0.5, 5, 17, 30, 45, 60, 80, 87, 100], "float32")


@pytest.mark.parametrize("name", FOCAL)
def test_first_and_second_derivatives_of_sure_models(name: str) -> None:
    """At margins where derivatives of powers of q overflow, for sigmoids and for softmax over two classes."""
    loss = LOSSES[name]

    def of_sigmoid(z: Any) -> Any:
        return poly_binary_crossentropy(np.ones((12, 1), "float32"), z, True, polynomial=loss)

    def of_softmax(z: Any) -> Any:
        return poly_sparse_categorical_crossentropy(np.zeros(12, int), z, True, polynomial=loss)

    direction = np.array([[1.0, 0.0]], "float32")
    sigmoids = on_keras.second_derivatives(of_sigmoid, MARGINS[:, None], direction[:, :1])
    softmaxes = on_keras.second_derivatives(of_softmax, np.stack([MARGINS, 0 * MARGINS], 1), direction)
    with mp.workdps(60):

        def exact(z: Any) -> Any:
            return reference.value(loss, 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z)))

        for k, z in enumerate(map(mp.mpf, MARGINS.tolist())):
            # The gradient of a sigmoid loss is as accurate as q. Otherwise, q has an absolute error of finfo.eps.
            terms, lost = (float(reference.value_terms(loss, 1 - q, q)) for q in (1 / (1 + mp.exp(z)), mp.mpf(1e-6)))
            for order in (1, 2):
                right = float(mp.diff(exact, z, order))
                bound = 1e-4 * abs(right) + 1e-5 * terms + 1e-37
                assert abs(sigmoids[order][k, 0] - right) <= bound + lost * (order == 2), (z, order)
                assert abs(softmaxes[order][k, 0] - right) <= bound + lost, (z, order)


@pytest.mark.parametrize("name", SOME)
def test_infinite_and_huge_logits_give_no_nan(name: str) -> None:
    loss, huge = LOSSES[name], float(np.finfo("float32").max)
    z = np.array([-INF, -huge, -1e6, 1e6, huge, INF])  # margins
    with np.errstate(over="ignore"):
        logarithm = loss.log_weight * -z if loss.log_weight else 0 * np.sign(z)
        right = np.where(z < 0, sum(loss.coefficients) + logarithm, 0).astype("float32")
    y, logits = np.repeat([1.0, 0.0], 6)[:, None], np.append(z, -z)[:, None].astype("float32")
    for alpha in (None, 0.0, 1.0) if FIRST else (0.0,):

        def of_logits(z: Any, alpha: float | None = alpha) -> Any:
            return poly_binary_crossentropy(y, z, True, alpha=alpha, polynomial=loss)

        found, *derivatives = on_keras.second_derivatives(of_logits, logits, np.array([[1.0]], "float32"))
        close(found, np.append(right if alpha != 0 else 0 * y[:6], right if alpha != 1 else 0 * y[:6]))
        assert np.isfinite(derivatives).all()
    rows = np.stack([np.resize(z[:3], 12), np.zeros(12)], 1).astype("float32")
    labels = np.repeat([0, 1], 6)

    def of_rows(z: Any) -> Any:
        return poly_sparse_categorical_crossentropy(labels, z, True, polynomial=loss)

    found, *derivatives = on_keras.second_derivatives(of_rows, rows, np.array([[1.0, 0.0]], "float32"))
    close(found, np.append(np.resize(right[:3], 6), np.zeros(6)))
    assert np.isfinite(derivatives).all()


def test_a_learned_epsilon() -> None:
    """Epsilon may be variables or tensors. Its gradient is 0 if all targets are ignored."""
    right = poly_binary_crossentropy(YES, LOGITS, True, epsilon=(2.0, 0.5))
    numbers = [keras.Variable(2.0), keras.Variable(0.5)]
    several: list[Any] = [numbers, ops.convert_to_tensor([2.0, 0.5]), keras.Variable([2.0, 0.5])]
    if BACKEND == "tensorflow":
        several += [tf.Variable([2.0, 0.5]), tf.constant([2.0, 0.5], "float64")]
    for epsilon in several:
        close(poly_binary_crossentropy(YES, LOGITS, True, epsilon=epsilon), right)
    for loss in (PolyBinaryCrossentropy(True, epsilon=keras.Variable([2.0, 0.5])), PolyBinaryCrossentropy(True)):
        loss.epsilon = keras.Variable([0.0, 0.0])
        loss.epsilon.assign([2.0, 0.5])
        close(loss(YES, LOGITS), ops.sum(right) / 6)
        assert loss.get_config()["epsilon"] == [2.0, 0.5]
    q = 1 - PROBABILITIES[np.arange(6), LABELS]
    for labels, gradient in ((LABELS, q.mean()), (np.full(6, -1), 0.0)):

        def of_epsilon(epsilon: Any, labels: Any = labels) -> Any:
            return PolySparseCategoricalCrossentropy(True, ignore_class=-1, epsilon=epsilon)(labels, LOGITS)

        close(on_keras.with_gradients(of_epsilon, np.ones(()), [np.array(2.0)], "float32").gradient, gradient)


@once
def test_an_epsilon_below_its_bound_warns_once_when_it_is_given() -> None:
    with pytest.warns(UserWarning, match="epsilon = -2") as seen:
        loss = PolyBinaryCrossentropy(True, epsilon=(-2.0, keras.Variable(0.5)))
    assert len(seen) == 1
    loss(YES, LOGITS)  # does not warn again: a warning would be an error
    loss.epsilon = -3.0
    with pytest.warns(UserWarning, match="epsilon = -3") as seen:
        loss(YES, LOGITS)
    assert len(seen) == 1
    loss(YES, LOGITS)


def test_shapes_that_are_not_known_yet() -> None:
    for (ours, _, labels), from_logits in product(OWN.values(), (False, True)):
        y = keras.Input(labels.shape[1:], dtype="int32" if labels is LABELS else "float32")
        z = keras.Input((5,))
        options: dict[str, Any] = {"from_logits": from_logits, "epsilon": 2.0, "gamma": 0.5}
        options |= {"ignore_class": 2} if labels is LABELS else {"label_smoothing": 0.1}
        options |= {"alpha": 0.25 if labels is YES else [0.25, 0.5, 1.0, 2.0, 4.0]}
        given, right = PROBABILITIES, ours(labels, PROBABILITIES, **options)
        symbolic = ours(y, z, **options)
        assert symbolic.shape == (None,)
        close(keras.Function([y, z], symbolic)([labels, given]), right)
        if BACKEND == "tensorflow":
            of_any = [tf.TensorSpec([None] * labels.ndim, y.dtype), tf.TensorSpec([None, None], "float32")]
            traced = tf.function(lambda y, z, ours=ours, options=options: ours(y, z, **options), input_signature=of_any)
            close(traced(labels, given), right)


@once
def test_no_samples() -> None:
    for ours, kerass, labels in OWN.values():
        assert (
            tuple(ours(labels[:0], LOGITS[:0], gamma=0.5).shape) == tuple(kerass(labels[:0], LOGITS[:0]).shape) == (0,)
        )


def test_integers_are_predictions_of_floatx() -> None:
    """Integer predictions are cast to floatx: a loss in an integer dtype would be 0."""
    for ours, _, labels in OWN.values():
        whole = np.round(LOGITS).astype("int32")
        close(ours(labels, whole, from_logits=True), ours(labels, whole.astype("float32"), from_logits=True), 0)


@once
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axes(axis: int) -> None:
    z = RANDOM.normal(size=(5, 5, 5)).astype("float32")
    y, labels = RANDOM.dirichlet(np.ones(5), (5, 5)).astype("float32"), RANDOM.integers(0, 5, (5, 5))
    options: dict[str, Any] = {"from_logits": True, "epsilon": 2.0, "gamma": 0.5}
    moved: Any = [np.moveaxis(given, axis, -1) for given in (y, z)]
    close(poly_categorical_crossentropy(y, z, axis=axis, **options), poly_categorical_crossentropy(*moved, **options))
    found = poly_sparse_categorical_crossentropy(labels, z, axis=axis, **options)
    close(found, poly_sparse_categorical_crossentropy(labels, moved[1], **options))


@once
@pytest.mark.parametrize("name", LOSSES)
def test_probabilities_are_as_good_as_logits(name: str) -> None:
    chosen: dict[str, Any] = {"polynomial": LOSSES[name]}
    close(
        poly_categorical_crossentropy(SOFT, PROBABILITIES, **chosen),
        poly_categorical_crossentropy(SOFT, LOGITS, from_logits=True, **chosen),
        1e-4,
    )
    sigmoids = 1 / (1 + np.exp(-LOGITS))
    close(
        poly_binary_crossentropy(YES, sigmoids, **chosen),
        poly_binary_crossentropy(YES, LOGITS, from_logits=True, **chosen),
        1e-4,
    )
    for predicted, from_logits in ((PROBABILITIES, False), (LOGITS, True)):
        of_one_hot = poly_categorical_crossentropy(np.eye(5)[LABELS], predicted, from_logits, **chosen)
        close(poly_sparse_categorical_crossentropy(LABELS, predicted, from_logits, **chosen), of_one_hot, 1e-4)


CLASSES: dict[str, tuple[type, type, Any, dict[str, Any]]] = {
    "categorical": (PolyCategoricalCrossentropy, keras.losses.CategoricalCrossentropy, SOFT, {"label_smoothing": 0.1}),
    "sparse": (PolySparseCategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy, LABELS, {}),
    "sparse, ignoring": (
        PolySparseCategoricalCrossentropy,
        keras.losses.SparseCategoricalCrossentropy,
        LABELS,
        {"ignore_class": int(LABELS[0])},
    ),
    "binary": (PolyBinaryCrossentropy, keras.losses.BinaryCrossentropy, YES, {"label_smoothing": 0.1}),
}


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", "none", None])
@pytest.mark.parametrize(("ours", "kerass", "labels", "options"), CLASSES.values(), ids=CLASSES)
def test_reductions_and_sample_weights_are_kerass(
    ours: type, kerass: type, labels: Any, options: dict[str, Any], reduction: str | None
) -> None:
    right = kerass(from_logits=True, reduction=reduction, **options)
    found = ours(from_logits=True, reduction=reduction, epsilon=0.0, **options)
    masked = ops.convert_to_tensor(LOGITS)
    masked._keras_mask = ops.convert_to_tensor(np.arange(6) % 3 > 0) if BACKEND != "jax" else None
    for weight in (None, np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32")):
        for z in (LOGITS, masked):
            close(found(labels, z, sample_weight=weight), right(labels, z, sample_weight=weight))


@once
def test_one_output_and_flat_labels_are_kerass() -> None:
    """Labels of shape (N,) for predictions of shape (N, 1), and vice versa, are not broadcast to (N, N)."""
    for y, z in ((YES[:, 0], LOGITS[:, :1]), (YES[:, :1], LOGITS[:, 0]), (YES[:, :, None], LOGITS)):
        right = keras.losses.BinaryCrossentropy(from_logits=True)(y, z)
        close(PolyBinaryCrossentropy(from_logits=True, epsilon=0.0)(y, z), right)


def model(outputs: int = 5, activation: str | None = None) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(outputs, activation=activation)])


@pytest.mark.slow
def test_training_with_epsilon_0_is_kerass() -> None:
    """A compiled model with an output for each loss: logits, or probabilities near 0 and 1."""
    given, weights = 10 * LOGITS, []
    ignoring: dict[str, Any] = {"from_logits": True, "ignore_class": int(LABELS[0])}
    ours = [PolyCategoricalCrossentropy(epsilon=0.0), PolyBinaryCrossentropy(epsilon=0.0)]
    kerass = [keras.losses.CategoricalCrossentropy(), keras.losses.BinaryCrossentropy()]
    ours.append(PolySparseCategoricalCrossentropy(**ignoring, epsilon=0.0))
    kerass.append(keras.losses.SparseCategoricalCrossentropy(**ignoring))
    for losses in (ours, kerass):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        outputs = [keras.layers.Dense(5, activation=link)(inputs) for link in ("softmax", "sigmoid", None)]
        trained = keras.Model(inputs, outputs)
        trained.compile(optimizer=keras.optimizers.SGD(0.5), loss=losses)
        of_each = [np.arange(6.0)] * 3
        trained.fit(given, [SOFT, YES, LABELS], sample_weight=of_each, epochs=3, batch_size=6, verbose=0, shuffle=False)
        weights.append(trained.get_weights())
    for found, right in zip(*weights, strict=True):
        close(found, right, 1e-5)


@once
@pytest.mark.slow
def test_class_weights_are_kerass() -> None:
    losses = []
    for loss in (
        PolySparseCategoricalCrossentropy(True, epsilon=0.0),
        keras.losses.SparseCategoricalCrossentropy(True),
    ):
        trained = model()
        trained.compile(optimizer="sgd", loss=loss)
        fitted = trained.fit(LOGITS, LABELS, class_weight={k: k + 0.5 for k in range(5)}, batch_size=6, verbose=0)
        losses += fitted.history["loss"]
    close(*losses)


@once
def test_it_learns() -> None:
    trained = model(activation="softmax")
    trained.compile(optimizer=keras.optimizers.Adam(0.1), loss=PolySparseCategoricalCrossentropy(gamma=1.0))
    history = trained.fit(LOGITS, LABELS, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2


CONFIGURED: list[Any] = [
    PolyCategoricalCrossentropy(True, 0.25, -1, "sum", "mine", epsilon=2.0, gamma=0.5),
    PolyCategoricalCrossentropy(epsilon=(1.0, 0.5)),
    PolyCategoricalCrossentropy(alpha=(0.25, 1.0, 2.0, 0.0, 4.0), gamma=2.0),
    PolySparseCategoricalCrossentropy(True, alpha=np.arange(5.0)),
    PolySparseCategoricalCrossentropy(True, 3, alpha=np.float32(0.25), polynomial=polylosses.taylor_cross_entropy(3)),
    PolySparseCategoricalCrossentropy(epsilon=np.float32(2.0)),
    PolySparseCategoricalCrossentropy(True, np.int64(255), "none", np.int64(1), "numpys", "float64"),  # type: ignore[arg-type]
    PolyBinaryCrossentropy(True, 0.1, 1, "mean_with_sample_weight", "sided", "float64", alpha=0.25, gamma=2.0),
    PolyBinaryCrossentropy(alpha=np.float32(0.25), label_smoothing=np.float32(0.5)),  # type: ignore[arg-type]
    PolyBinaryCrossentropy(polynomial=Polynomial((np.array(2.0),), 0.5, 2.0)),
    PolyBinaryCrossentropy(alpha=0.25, polynomial=asymmetric()),
    PolyBinaryCrossentropy(from_logits=True, polynomial=(poly1(2.0), focal(1.5))),
]


def test_asymmetric_loss_is_the_published_formula() -> None:
    z, y = np.linspace(-8.0, 8.0, 33), np.linspace(0.0, 1.0, 33)
    for gamma_neg, gamma_pos, margin in ((4.0, 1.0, 0.05), (0.5, 0.0, 0.2), (2.0, 0.5, 0.0)):
        p = 1 / (1 + np.exp(-z))
        shifted = np.maximum(p - margin, 0.0)
        right = -y * (1 - p) ** gamma_pos * np.log(p) - (1 - y) * shifted**gamma_neg * np.log1p(-shifted)
        loss = asymmetric(gamma_neg, gamma_pos, margin)
        for predictions, from_logits in ((z, True), (p, False)):
            found = poly_binary_crossentropy(y[:, None], predictions[:, None], from_logits, polynomial=loss)
            close(found, right, 1e-5)
    with pytest.raises(TypeError, match="polynomial must be"):
        PolyCategoricalCrossentropy(polynomial=asymmetric())  # type: ignore[arg-type]
    changed = PolyBinaryCrossentropy(from_logits=True)
    changed.polynomial = asymmetric()
    close(changed(y, z), PolyBinaryCrossentropy(from_logits=True, polynomial=asymmetric())(y, z), 0)


@once
@pytest.mark.parametrize("loss", CONFIGURED, ids=lambda loss: loss.name)
def test_it_is_written_and_read_back(loss: Any, tmp_path: Path) -> None:
    config = loss.get_config()
    again = type(loss).from_config(config)
    assert again.get_config() == config
    read = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(read) is type(loss)
    assert read.get_config() == config
    labels = LABELS if isinstance(loss, PolySparseCategoricalCrossentropy) else YES
    z = LOGITS if loss.from_logits else PROBABILITIES
    close(read(labels, z), loss(labels, z), 0)
    trained = model()
    trained.compile(optimizer="sgd", loss=loss)
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(loss)
    assert loaded.loss.get_config() == config
    assert loaded.evaluate(LOGITS, labels, verbose=0) == trained.evaluate(LOGITS, labels, verbose=0)


@once
def test_a_function_is_a_loss_too(tmp_path: Path) -> None:
    trained = model(activation="softmax")
    trained.compile(optimizer="sgd", loss=poly_categorical_crossentropy)
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(LOGITS, SOFT, verbose=0) == trained.evaluate(LOGITS, SOFT, verbose=0)


def test_masked_classes_are_finite() -> None:
    z = LOGITS.copy()
    z[:, 0] = -INF
    labels = np.maximum(LABELS, 1)
    for name, loss in LOSSES.items():
        sparse = poly_sparse_categorical_crossentropy(labels, z, from_logits=True, polynomial=loss)
        dense = poly_categorical_crossentropy(np.eye(5)[labels], z, from_logits=True, polynomial=loss)
        assert np.isfinite(array(sparse)).all(), name
        close(dense, sparse)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_computed_in_float32(dtype: str) -> None:
    """Labels and predictions are rounded to the low precision, but nothing after that, label smoothing included."""
    for (function, _, labels), from_logits in product(OWN.values(), (False, True)):
        options: dict[str, Any] = {"from_logits": from_logits, "epsilon": 2.0, "gamma": 0.5}
        options |= {} if labels is LABELS else {"label_smoothing": 0.1}
        z = ops.cast(LOGITS if from_logits else PROBABILITIES, dtype)
        found = function(labels, z, **options)
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        right = function(ops.cast(ops.cast(labels, dtype), "float32"), ops.cast(z, "float32"), **options)
        assert np.array_equal(array(ops.cast(found, "float32")), array(ops.cast(ops.cast(right, dtype), "float32")))


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "class indices for probabilities": (
        lambda: poly_categorical_crossentropy(LABELS, LOGITS),
        ValueError,
        r"same shape; got \(6,\) and \(6, 5\). For class indices, use the sparse loss",
    ),
    "one-hot for indices": (
        lambda: poly_sparse_categorical_crossentropy(SOFT, LOGITS),
        ValueError,
        r"y_true must have shape \(6,\) for y_pred of shape \(6, 5\) and axis -1; got \(6, 5\)",
    ),
    "axis out of bounds": (
        lambda: poly_sparse_categorical_crossentropy(LABELS, LOGITS, axis=2),
        ValueError,
        "axis 2 is out of bounds for y_pred of 2 dimensions",
    ),
    "axis of all": (lambda: poly_binary_crossentropy(YES, LOGITS, axis=None), TypeError, "axis must be an integer"),  # type: ignore[arg-type]
    "no axis": (lambda: poly_categorical_crossentropy(1.0, 1.0), ValueError, "out of bounds for y_pred of 0 dim"),
    "no classes": (
        lambda: poly_sparse_categorical_crossentropy(LABELS, LOGITS[:, :0], ignore_class=0),
        ValueError,
        r"must have classes along axis -1; got shape \(6, 0\)",
    ),
    "no classes to smooth over": (
        lambda: poly_categorical_crossentropy(SOFT[:, :0], LOGITS[:, :0], label_smoothing=0.1),
        ValueError,
        "must have classes",
    ),
    "ignored string": (
        lambda: PolySparseCategoricalCrossentropy(ignore_class="255"),  # type: ignore[arg-type]
        TypeError,
        "ignore_class must be an integer, or None; got '255'",
    ),
    "ignored half": (
        lambda: poly_sparse_categorical_crossentropy(LABELS, LOGITS, ignore_class=0.5),  # type: ignore[arg-type]
        ValueError,
        "ignore_class must be an integer, or None; got 0.5",
    ),
    "other shapes": (lambda: poly_binary_crossentropy(YES[:, 0], LOGITS), ValueError, r"got \(6,\) and \(6, 5\)"),
    "both": (
        lambda: PolyBinaryCrossentropy(gamma=1.0, polynomial=polylosses.poly1(1.0)),
        ValueError,
        "give either polynomial or epsilon and gamma, not both",
    ),
    "epsilon of a string": (lambda: PolyCategoricalCrossentropy(epsilon="2"), TypeError, "got '2'"),
    "gamma below 0": (lambda: PolySparseCategoricalCrossentropy(gamma=-1.0), ValueError, "gamma must be at least 0"),
    "alpha": (lambda: PolyBinaryCrossentropy(alpha=2.0), ValueError, "alpha must be between 0 and 1, or None"),
    "alpha of a string": (lambda: PolyBinaryCrossentropy(alpha="1"), TypeError, "got '1'"),  # type: ignore[arg-type]
    "alpha of too few classes": (
        lambda: poly_categorical_crossentropy(SOFT, LOGITS, alpha=[1.0, 2.0]),
        ValueError,
        "one number for each of the 5 classes along axis -1; got 2 numbers",
    ),
    "alpha of too many classes": (
        lambda: PolySparseCategoricalCrossentropy(alpha=np.ones(6))(LABELS, LOGITS),
        ValueError,
        "one number for each of the 5 classes along axis -1; got 6 numbers",
    ),
    "alpha of rows": (
        lambda: PolyCategoricalCrossentropy(alpha=np.ones((6, 5))),
        ValueError,
        r"alpha must be a number, or one number for each class; got shape \(6, 5\)",
    ),
    "alpha below 0": (
        lambda: PolySparseCategoricalCrossentropy(alpha=[1.0, -2.0]),
        ValueError,
        r"alpha\[1\] must be at least 0; got -2.0",
    ),
    "alpha of classes by name": (
        lambda: PolyCategoricalCrossentropy(alpha={0: 1.0}),
        TypeError,
        r"alpha must be a number, one number for each class, or None; got \{0: 1.0\}",
    ),
    "smoothing": (
        lambda: PolyCategoricalCrossentropy(label_smoothing=-0.1),
        ValueError,
        "label_smoothing must be between 0 and 1; got -0.1",
    ),
    "reduction": (lambda: PolyCategoricalCrossentropy(reduction="average"), ValueError, "average"),
}


@once
@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
