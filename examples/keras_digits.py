"""Keras 3: a compiled model, with class weights, saved and loaded with its loss.

    pip install 'polylosses[keras]' jax scikit-learn
    KERAS_BACKEND=jax python examples/keras_digits.py

The saved file has the loss and its epsilon. To load it, only ``polylosses.keras`` must be imported.
"""

import tempfile
from pathlib import Path

import keras
from sklearn.datasets import load_digits

from polylosses.keras import PolySparseCategoricalCrossentropy


def main() -> float:
    """Trains, prints the accuracy of the reloaded model on held-out rows, and returns it."""
    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    model = keras.Sequential(
        [keras.layers.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(0.005),
        loss=PolySparseCategoricalCrossentropy(from_logits=True, epsilon=1.0),
        metrics=["accuracy"],
    )
    model.fit(
        x[:1200] / 16, y[:1200], epochs=10, class_weight={label: 1.0 + (label == 8) for label in range(10)}, verbose=0
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "digits.keras")
        loaded = keras.models.load_model(Path(folder) / "digits.keras")
    accuracy = loaded.evaluate(x[1200:] / 16, y[1200:], verbose=0)[1]
    print(f"accuracy on held-out digits: {accuracy:.3f}")
    return float(accuracy)


if __name__ == "__main__":
    main()
