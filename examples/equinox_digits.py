"""Equinox and optax: training on digits, with a schedule for epsilon.

    pip install 'polylosses[jax]' equinox optax scikit-learn
    python examples/equinox_digits.py

Epsilon is an argument of the compiled step, so that changing it does not recompile.
"""

import equinox
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from polylosses.jax import poly_cross_entropy_with_integer_labels

optimizer = optax.adamw(0.005)
schedule = optax.linear_schedule(0.0, 2.0, 200)  # for epsilon


@equinox.filter_jit
def step(
    model: equinox.nn.MLP, state: optax.OptState, x: jax.Array, y: jax.Array, epsilon: jax.Array
) -> tuple[equinox.nn.MLP, optax.OptState]:
    """One step of the optimizer, compiled once for all epsilons."""

    def loss(model: equinox.nn.MLP) -> jax.Array:
        return poly_cross_entropy_with_integer_labels(jax.vmap(model)(x), y, epsilon=epsilon).mean()

    updates, state = optimizer.update(equinox.filter_grad(loss)(model), state, equinox.filter(model, equinox.is_array))
    return equinox.apply_updates(model, updates), state


def main() -> float:
    """Trains, prints the accuracy on held-out rows, and returns it."""
    features, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(features / 16, "float32"), jnp.asarray(labels)
    model = equinox.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    state = optimizer.init(equinox.filter(model, equinox.is_array))
    key = jax.random.key(1)
    for number in range(300):
        key, draw = jax.random.split(key)
        rows = jax.random.randint(draw, (128,), 0, 1200)
        model, state = step(model, state, x[rows], y[rows], schedule(number))
    accuracy = float((jax.vmap(model)(x[1200:]).argmax(1) == y[1200:]).mean())
    print(f"accuracy on held-out digits: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
