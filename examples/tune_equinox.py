"""Tunes the loss of an Equinox model, trained with optax.

    pip install 'polylosses[jax,tune]' equinox optax
    polylosses tune examples/tune_equinox.py:train --param lr=1e-3:1e-1:log --param dropout=0.0,0.3 --points 6

The step is compiled once for each loss, and not again for other learning rates and seeds, which are arrays.
"""

import equinox
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from polylosses import Polynomial
from polylosses.jax import poly_cross_entropy_with_integer_labels
from polylosses.tune import Trial

STEPS, BATCH = 200, 64
TEST, VALIDATION = slice(1300, None), slice(1000, 1300)

optimizer = optax.inject_hyperparams(optax.adamw)(learning_rate=0.01)


@equinox.filter_jit
def step(
    model: equinox.nn.Sequential,
    state: optax.OptState,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    polynomial: Polynomial,
) -> tuple[equinox.nn.Sequential, optax.OptState]:
    def loss(model: equinox.nn.Sequential) -> jax.Array:
        logits = jax.vmap(lambda row, key: model(row, key=key))(x, jax.random.split(key, len(x)))
        return poly_cross_entropy_with_integer_labels(logits, y, polynomial=polynomial).mean()

    updates, state = optimizer.update(equinox.filter_grad(loss)(model), state, equinox.filter(model, equinox.is_array))
    return equinox.apply_updates(model, updates), state


def train(trial: Trial) -> dict[str, jax.Array]:
    """Trains once, and returns for each validation and test row whether its prediction was right."""
    features, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(features / 16, "float32"), jnp.asarray(labels)
    key, *keys = jax.random.split(jax.random.key(trial.seed), 3)
    layers = equinox.nn.Linear(64, 64, key=keys[0]), equinox.nn.Linear(64, 10, key=keys[1])
    dropout = equinox.nn.Dropout(trial.parameters.get("dropout", 0.0))
    model = equinox.nn.Sequential([layers[0], equinox.nn.Lambda(jax.nn.relu), dropout, layers[1]])
    state = optimizer.init(equinox.filter(model, equinox.is_array))
    state.hyperparams["learning_rate"] = jnp.asarray(trial.parameters.get("lr", 0.01))
    for number in range(STEPS):
        draw, drop = jax.random.split(jax.random.fold_in(key, number))
        rows = jax.random.randint(draw, (BATCH,), 0, 1000)
        model, state = step(model, state, x[rows], y[rows], drop, trial.polynomial)
    right = jax.vmap(equinox.nn.inference_mode(model))(x).argmax(1) == y
    return {"validation": right[VALIDATION], "test": right[TEST]}
