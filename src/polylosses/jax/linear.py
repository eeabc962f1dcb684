"""A linear layer and a softmax loss in one, so that the logits of a large vocabulary never exist all at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.jax.likelihood import at_least_float32, floating
from polylosses.jax.softmax import check_label_smoothing, poly_cross_entropy_with_integer_labels
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments

# Some rows of logits at a time: as many as fill this, in float32. On a CPU, 16 MiB took 1.24 times as long as all
# logits at once and 62 MB instead of 524 MB; 64 MiB took 1.19 times as long and 198 MB (2 cores of an AMD EPYC, value
# and gradient, 2048 x 256 x 32000). Below some 100 rows a matrix product is slow. Other devices were not measured.
_CHUNK_BYTES = 2**24
_FEWEST_ROWS = 128


def linear_poly_cross_entropy(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    label_smoothing: float | Array = 0.0,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """PolyLoss of the logits ``inputs @ kernel + bias``, without ever holding all of them.

    The numbers are those of :func:`poly_cross_entropy_with_integer_labels` of these logits. They are made some rows at
    a time by a scan, and again for the backward pass: what is held besides the arguments and their gradients is a few
    chunks, however many rows there are. Products and gradients are added up in float32.

    Args:
        inputs: hidden states of shape ``[..., H]``.
        kernel: of shape ``[H, V]``, as in flax's and Keras's dense layers.
        labels: class indices in [0, V), of shape ``[...]``.
        bias: of shape ``[V]``. Minus infinity takes a class out for all examples, such as the padding of a vocabulary.
        where: booleans of shape ``[...]``: which examples count.
        label_smoothing, epsilon, gamma, polynomial: as for :func:`poly_cross_entropy_with_integer_labels`.

    Returns:
        The loss of every example, of shape ``[...]`` and the dtype of ``inputs`` and ``kernel``.

    Raises:
        TypeError, ValueError: as for :func:`poly_cross_entropy_with_integer_labels`; the shapes do not fit each other.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> hidden = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])  # one sequence of two tokens
        >>> head = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
        >>> print(linear_poly_cross_entropy(hidden, head, jnp.array([[0, 2]]), epsilon=2.0))
        [[0.4823 1.822 ]]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    inputs, kernel, labels = floating("inputs", inputs), floating("kernel", kernel), jnp.asarray(labels)
    if kernel.ndim != 2 or inputs.ndim < 1 or inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(f"inputs must have shape (..., H) and kernel (H, V); got {inputs.shape} and {kernel.shape}.")
    places, classes = inputs.shape[:-1], kernel.shape[1]
    if bias is not None:
        bias = floating("bias", bias)
        if bias.shape != (classes,):
            raise ValueError(f"bias must have shape {(classes,)}, one number for each class; got {bias.shape}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}.")
    if labels.shape != places:
        raise ValueError(f"labels must have shape {places}, one class index for each example; got {labels.shape}.")
    counted = jnp.ones(places, bool) if where is None else jnp.asarray(where)
    if counted.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean; got {counted.dtype}. Write where.astype(bool).")
    if counted.shape != places:
        raise ValueError(f"where must have shape {places}, for examples; got {counted.shape}.")
    check_label_smoothing(label_smoothing)
    dtype = jnp.result_type(inputs, kernel)
    low, wide = kernel.dtype, at_least_float32(jnp.zeros(0, dtype)).dtype
    # In float32 outside of the scan, so that the gradients are added up in it.
    kernel, bias = kernel.astype(wide), None if bias is None else bias.astype(wide)

    # In a scan nothing is shared between forward and backward pass that would have to be kept apart.
    @partial(jax.checkpoint, prevent_cse=False)
    def of_row(row: Array, label: Array, counts: Array) -> Array:
        # What does not count may be nan, which the gradient of the kernel would multiply by 0.
        row = jnp.where(counts, row, 0.0)
        logits = jnp.matmul(row, kernel.astype(low), preferred_element_type=wide)
        logits = logits if bias is None else logits + bias
        return poly_cross_entropy_with_integer_labels(
            logits, label, label_smoothing=label_smoothing, polynomial=polynomial, where=counts
        )

    rows = inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1), counted.reshape(-1)
    chunk_rows = max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * max(1, classes)))
    losses: Array = jax.lax.map(lambda row: of_row(*row), rows, batch_size=chunk_rows)
    return losses.reshape(places).astype(dtype)
