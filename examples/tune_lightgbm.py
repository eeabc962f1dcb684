"""Tunes the loss of LightGBM's trees, as an objective of its own.

    pip install 'polylosses[tune]' lightgbm
    polylosses tune examples/tune_lightgbm.py:train --param learning_rate=0.02:0.3:log --param num_leaves=4:32

Two classes; the gradient is that of the polynomial, the curvature a bound that is never negative.
"""

from collections.abc import Callable

import lightgbm
import numpy as np
from scipy.special import expit, log_expit
from sklearn.datasets import load_breast_cancer

from polylosses import Polynomial
from polylosses.tune import Trial

ROUNDS = 100

Objective = Callable[[np.ndarray, lightgbm.Dataset], tuple[np.ndarray, np.ndarray]]


def objective(polynomial: Polynomial) -> Objective:
    """The loss's derivative by the margin; as its second one, cross-entropy's, scaled as the first is."""

    def derivatives(margin: np.ndarray, data: lightgbm.Dataset) -> tuple[np.ndarray, np.ndarray]:
        sign = 2 * data.get_label() - 1
        q = expit(-sign * margin)  # the other class's probability; 1 - p would lose its digits
        slope = polynomial.slope(log_expit(sign * margin), q)
        return slope * sign * q, np.abs(slope) * q * (1 - q)

    return derivatives


def train(trial: Trial) -> dict[str, np.ndarray]:
    """Trains once, and returns for each validation and test row whether its prediction was right."""
    features, labels = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(trial.seed).permutation(400)  # the others are the test
    fitted, validation = rows[:300], rows[300:]
    recipe = {
        "learning_rate": 0.1,
        "num_leaves": 15,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "feature_fraction": 0.5,
    }
    fixed = {"objective": objective(trial.polynomial), "seed": trial.seed, "deterministic": True, "verbosity": -1}
    data = lightgbm.Dataset(features[fitted], labels[fitted])
    model = lightgbm.train(recipe | dict(trial.parameters) | fixed, data, ROUNDS)
    right = (model.predict(features) > 0) == labels
    return {"validation": right[validation], "test": right[400:]}
