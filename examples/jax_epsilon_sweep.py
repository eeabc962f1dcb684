"""JAX: a sweep over epsilon and seeds, all models trained in one compiled program.

    pip install 'polylosses[jax]' optax scikit-learn
    python examples/jax_epsilon_sweep.py

It shows that epsilon can be traced and mapped over. It does not show which epsilon is better, since all share one
learning rate and one split of the data: see ``polylosses tune`` for that.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from polylosses.jax import poly_cross_entropy_with_integer_labels

EPSILONS, SEEDS, ROWS, STEPS, BATCH = jnp.array([-1.0, 0.0, 1.0, 2.0, 5.0]), jnp.arange(12), 943, 405, 64


def logits_of(weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """A network with one hidden layer."""
    return jax.nn.relu(x @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def accuracy_of(epsilon: jax.Array, seed: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Trains a network on the first rows, and returns its accuracy on the others."""
    key, *keys = jax.random.split(jax.random.key(seed), 3)
    w1, w2 = jax.random.normal(keys[0], (64, 64)) / 8, jax.random.normal(keys[1], (64, 10)) / 8
    weights = {"w1": w1, "b1": jnp.zeros(64), "w2": w2, "b2": jnp.zeros(10)}
    optimizer = optax.adamw(optax.linear_schedule(0.01, 0.0, STEPS))

    def loss(weights: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        return poly_cross_entropy_with_integer_labels(logits_of(weights, x[rows]), y[rows], epsilon=epsilon).mean()

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        gradients = jax.grad(loss)(state[0], jax.random.randint(key, (BATCH,), 0, ROWS))
        updates, moments = optimizer.update(gradients, state[1], state[0])
        return (optax.apply_updates(state[0], updates), moments), None

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), jax.random.split(key, STEPS))
    return (logits_of(weights, x[ROWS:]).argmax(1) == y[ROWS:]).mean()


# vmap over seeds inside, over epsilons outside: a table of accuracies with a row for each epsilon.
sweep = jax.jit(jax.vmap(jax.vmap(accuracy_of, (None, 0, None, None)), (0, None, None, None)))


def main() -> float:
    """Prints the mean accuracy for every epsilon, and returns the lowest."""
    x, y = load_digits(return_X_y=True)
    accuracies = sweep(EPSILONS, SEEDS, x.astype("float32") / 16, y)
    for epsilon, of_seeds in zip(EPSILONS, accuracies, strict=True):
        print(f"epsilon = {epsilon:g}: accuracy {of_seeds.mean():.3f} over {len(SEEDS)} seeds")
    return float(accuracies.mean(1).min())


if __name__ == "__main__":
    main()
