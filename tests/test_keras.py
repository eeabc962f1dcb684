"""``polylosses.keras`` beside Keras's own losses, in compiled models and in files; on the torch and the JAX backend."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import polylosses
from cases import LOSSES
from polylosses import Polynomial
from polylosses.keras import (
    PolyBinaryCrossentropy,
    PolyCategoricalCrossentropy,
    PolySparseCategoricalCrossentropy,
    poly_binary_crossentropy,
    poly_categorical_crossentropy,
    poly_sparse_categorical_crossentropy,
)

# Keras's own, of numpy.array(tensor, copy=False) on torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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


def test_the_other_backend() -> None:
    """All of this file, and some of the laws."""
    other = "jax" if keras.backend.backend() == "torch" else "torch"
    if os.environ.get("POLYLOSSES_BOTH_BACKENDS"):
        return
    here = Path(__file__).parent
    chosen = "test_keras or (keras and poly1_focal and oracles and float32)"
    files = [here / name for name in ("test_keras.py", "test_softmax_laws.py", "test_sigmoid_laws.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-k", chosen, *files],
        env={**os.environ, "KERAS_BACKEND": other, "POLYLOSSES_BOTH_BACKENDS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 80


OWN: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "categorical": (poly_categorical_crossentropy, keras.losses.categorical_crossentropy, SOFT),
    "sparse": (poly_sparse_categorical_crossentropy, keras.losses.sparse_categorical_crossentropy, LABELS),
    "binary": (poly_binary_crossentropy, keras.losses.binary_crossentropy, YES),
}


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize(("ours", "kerass", "labels"), OWN.values(), ids=OWN)
def test_with_epsilon_0_it_is_kerass(
    ours: Callable[..., Any], kerass: Callable[..., Any], labels: Any, from_logits: bool
) -> None:
    predicted = LOGITS if from_logits else PROBABILITIES
    options: list[dict[str, Any]] = [{}]
    options += [{"ignore_class": 2}, {"ignore_class": 0}] if labels is LABELS else [{"label_smoothing": 0.1}]
    for option in options:
        for chosen in ({"epsilon": 0.0}, {"polynomial": polylosses.focal(0.0)}):
            found = ours(labels, predicted, from_logits=from_logits, **option, **chosen)
            close(found, kerass(labels, predicted, from_logits=from_logits, **option))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axes(axis: int) -> None:
    z = RANDOM.normal(size=(5, 5, 5)).astype("float32")
    y, labels = RANDOM.dirichlet(np.ones(5), (5, 5)).astype("float32"), RANDOM.integers(0, 5, (5, 5))
    options: dict[str, Any] = {"from_logits": True, "epsilon": 2.0, "gamma": 0.5}
    moved: Any = [np.moveaxis(given, axis, -1) for given in (y, z)]
    close(poly_categorical_crossentropy(y, z, axis=axis, **options), poly_categorical_crossentropy(*moved, **options))
    found = poly_sparse_categorical_crossentropy(labels, z, axis=axis, **options)
    close(found, poly_sparse_categorical_crossentropy(labels, moved[1], **options))


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
    for weight in (None, np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32")):
        close(found(labels, LOGITS, sample_weight=weight), right(labels, LOGITS, sample_weight=weight))


def test_one_output_and_flat_labels_are_kerass() -> None:
    """Labels of shape (N,) for predictions of shape (N, 1), and the other way round: never N x N."""
    for y, z in ((YES[:, 0], LOGITS[:, :1]), (YES[:, :1], LOGITS[:, 0]), (YES[:, :, None], LOGITS)):
        right = keras.losses.BinaryCrossentropy(from_logits=True)(y, z)
        close(PolyBinaryCrossentropy(from_logits=True, epsilon=0.0)(y, z), right)


def model(outputs: int = 5, activation: str | None = None) -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(outputs, activation=activation)])


@pytest.mark.parametrize(("ours", "kerass", "labels", "options"), CLASSES.values(), ids=CLASSES)
def test_training_with_epsilon_0_is_kerass(ours: type, kerass: type, labels: Any, options: dict[str, Any]) -> None:
    weights = []
    for loss in (ours(from_logits=True, epsilon=0.0, **options), kerass(from_logits=True, **options)):
        trained = model()
        trained.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss, metrics=["accuracy"])
        fit: dict[str, Any] = {"sample_weight": np.arange(6.0)}
        if labels is LABELS:
            fit = {"class_weight": {k: k + 0.5 for k in range(5)}}
        trained.fit(LOGITS, labels, epochs=3, batch_size=6, verbose=0, shuffle=False, **fit)
        weights.append(trained.get_weights())
    for found, right in zip(*weights, strict=True):
        close(found, right, 1e-5)


def test_it_learns() -> None:
    trained = model(activation="softmax")
    trained.compile(optimizer=keras.optimizers.Adam(0.1), loss=PolySparseCategoricalCrossentropy(gamma=1.0))
    history = trained.fit(LOGITS, LABELS, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2


CONFIGURED: list[Any] = [
    PolyCategoricalCrossentropy(True, 0.25, -1, "sum", "mine", epsilon=2.0, gamma=0.5),
    PolyCategoricalCrossentropy(epsilon=(1.0, 0.5)),
    PolySparseCategoricalCrossentropy(True, 3, polynomial=polylosses.taylor_cross_entropy(3)),
    PolySparseCategoricalCrossentropy(epsilon=np.float32(2.0)),
    PolyBinaryCrossentropy(True, alpha=0.25, gamma=2.0),
    PolyBinaryCrossentropy(polynomial=Polynomial((np.array(2.0),), 0.5, 2.0)),
]


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
    z = ops.cast(LOGITS, dtype)
    wide = ops.cast(z, "float32")
    for function, _, labels in OWN.values():
        found = function(labels, z, from_logits=True, epsilon=2.0, gamma=0.5)
        assert keras.backend.standardize_dtype(found.dtype) == dtype
        right = function(ops.cast(ops.cast(labels, dtype), "float32"), wide, from_logits=True, epsilon=2.0, gamma=0.5)
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
    "smoothing": (
        lambda: PolyCategoricalCrossentropy(label_smoothing=-0.1),
        ValueError,
        "label_smoothing must be between 0 and 1; got -0.1",
    ),
    "reduction": (lambda: PolyCategoricalCrossentropy(reduction="average"), ValueError, "average"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
