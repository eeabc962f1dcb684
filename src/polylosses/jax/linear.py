"""Fused linear layer and softmax loss, which never holds all the logits of a large vocabulary."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from polylosses.jax.likelihood import as_floating_array, upcast
from polylosses.jax.softmax import check_label_smoothing, poly_cross_entropy_with_integer_labels
from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments

# The size of a chunk of logits, in float32. On a CPU, 16 MiB took 1.24 times as long as all logits at once and 62 MB
# instead of 524 MB; 64 MiB took 1.19 times as long and 198 MB (2 cores of an AMD EPYC, value and gradient,
# 2048 x 256 x 32000). Below some 100 rows a matrix product is slow. Other devices were not measured.
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

    The result is that of :func:`poly_cross_entropy_with_integer_labels` on these logits. They are computed in chunks of
    rows by a scan, and recomputed in the backward pass: besides the arguments and their gradients, memory holds a few
    chunks, however many rows there are. Products and gradients are accumulated in float32.

    Args:
        inputs: hidden states of shape ``[..., H]``.
        kernel: of shape ``[H, V]``, as in flax's and Keras's dense layers.
        labels: class indices in [0, V), of shape ``[...]``.
        bias: of shape ``[V]``. Minus infinity masks a class for all examples, such as the padding of a vocabulary.
        where: mask of shape ``[...]``: True for the examples that count.
        label_smoothing, epsilon, gamma, polynomial: as for :func:`poly_cross_entropy_with_integer_labels`.

    Returns:
        The loss of every example, of shape ``[...]`` and the dtype of ``inputs`` and ``kernel``.

    Raises:
        TypeError, ValueError: as for :func:`poly_cross_entropy_with_integer_labels`; the shapes do not match.

    Example:
        >>> jnp.set_printoptions(precision=4, suppress=True)
        >>> hidden = jnp.array([[[1.0, 0.0], [0.0, 2.0]]])  # one sequence of two tokens
        >>> head = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
        >>> print(linear_poly_cross_entropy(hidden, head, jnp.array([[0, 2]]), epsilon=2.0))
        [[0.4823 1.822 ]]
    """
    polynomial = from_arguments(epsilon, gamma, polynomial)
    inputs, kernel, labels = (
        as_floating_array("inputs", inputs),
        as_floating_array("kernel", kernel),
        jnp.asarray(labels),
    )
    if kernel.ndim != 2 or inputs.ndim < 1 or inputs.shape[-1] != kernel.shape[0]:
        raise ValueError(f"inputs must have shape (..., H) and kernel (H, V); got {inputs.shape} and {kernel.shape}.")
    batch_shape, classes = inputs.shape[:-1], kernel.shape[1]
    if bias is not None:
        bias = as_floating_array("bias", bias)
        if bias.shape != (classes,):
            raise ValueError(f"bias must have shape {(classes,)}, one number for each class; got {bias.shape}.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers; got {labels.dtype}.")
    if labels.shape != batch_shape:
        raise ValueError(f"labels must have shape {batch_shape}, one class index for each example; got {labels.shape}.")
    valid = jnp.ones(batch_shape, bool) if where is None else jnp.asarray(where)
    if valid.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean; got {valid.dtype}. Write where.astype(bool).")
    if valid.shape != batch_shape:
        raise ValueError(f"where must have shape {batch_shape}, for examples; got {valid.shape}.")
    check_label_smoothing(label_smoothing)
    dtype = jnp.result_type(inputs, kernel)
    kernel_dtype, compute_dtype = kernel.dtype, upcast(jnp.zeros(0, dtype)).dtype
    # Cast outside of the scan, so that the scan accumulates the gradients in float32.
    kernel, bias = kernel.astype(compute_dtype), None if bias is None else bias.astype(compute_dtype)

    # Inside a scan, the compiler can't merge the recomputation with the forward pass: nothing has to prevent it.
    @partial(jax.checkpoint, prevent_cse=False)
    def row_loss(row: Array, label: Array, valid: Array) -> Array:
        # A masked row may be nan, which 0 times it in the gradient of the kernel would keep.
        row = jnp.where(valid, row, 0.0)
        logits = jnp.matmul(row, kernel.astype(kernel_dtype), preferred_element_type=compute_dtype)
        logits = logits if bias is None else logits + bias
        return poly_cross_entropy_with_integer_labels(
            logits, label, label_smoothing=label_smoothing, polynomial=polynomial, where=valid
        )

    rows = inputs.reshape(-1, inputs.shape[-1]), labels.reshape(-1), valid.reshape(-1)
    chunk_rows = max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * max(1, classes)))
    losses: Array = jax.lax.map(lambda row: row_loss(*row), rows, batch_size=chunk_rows)
    return losses.reshape(batch_shape).astype(dtype)
