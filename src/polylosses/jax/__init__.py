"""PolyLoss for JAX, with optax's conventions: losses are not reduced, and options are keyword arguments."""

try:
    import jax as _jax  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.jax needs JAX: pip install 'polylosses[jax]'") from error

from polylosses.jax.likelihood import poly_from_nll
from polylosses.jax.linear import linear_poly_cross_entropy
from polylosses.jax.sigmoid import poly_sigmoid, sigmoid_poly_cross_entropy
from polylosses.jax.softmax import (
    poly_cross_entropy,
    poly_cross_entropy_with_integer_labels,
    poly_loss_cross_entropy,
    poly_softmax,
)

__all__ = [
    "linear_poly_cross_entropy",
    "poly_cross_entropy",
    "poly_cross_entropy_with_integer_labels",
    "poly_from_nll",
    "poly_loss_cross_entropy",
    "poly_sigmoid",
    "poly_softmax",
    "sigmoid_poly_cross_entropy",
]
