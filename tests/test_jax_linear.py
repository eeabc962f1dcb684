"""``linear_poly_cross_entropy`` of JAX: the loss of a linear head, without the whole logits in memory."""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import LOSSES, slow_but
from polylosses.jax import linear, linear_poly_cross_entropy, poly_cross_entropy_with_integer_labels

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(2, 7, 4)).astype("float32")
KERNEL = RANDOM.normal(size=(4, 11)).astype("float32")
BIAS = RANDOM.normal(size=11).astype("float32")
# int32, since JAX caches the conversion of 64-bit constants even when jax_enable_x64 changes.
LABELS = RANDOM.integers(0, 11, (2, 7)).astype("int32")
WHERE = RANDOM.random((2, 7)) < 0.7


def of_logits(inputs: Any, kernel: Any, bias: Any, **options: Any) -> Any:
    logits = inputs @ kernel if bias is None else inputs @ kernel + bias
    return poly_cross_entropy_with_integer_labels(logits, LABELS, **options)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"epsilon": 2.0},
    "where": {"epsilon": jnp.float32(2.0), "gamma": 0.5, "where": WHERE},
    "smoothed": {"polynomial": LOSSES["everything"], "label_smoothing": 0.1},
}


def with_gradients(losses: Callable[..., Any], bias: Any) -> Any:
    """The gradients of a weighted sum of the losses, and the losses."""

    def total(inputs: Any, kernel: Any, bias: Any) -> Any:
        found = losses(inputs, kernel, bias)
        return (found * jnp.arange(14.0).reshape(2, 7)).sum(), found

    return jax.jit(jax.grad(total, (0, 1) if bias is None else (0, 1, 2), has_aux=True))(INPUTS, KERNEL, bias)


@cache
def right(options: str, biased: bool) -> Any:
    return with_gradients(partial(of_logits, **OPTIONS[options]), BIAS if biased else None)


# (rows of a chunk, options, bias) for 14 rows. All options run with chunks of 4 rows, where the last chunk is smaller.
CASES = [
    (4, "plain", True),
    (4, "where", False),
    (4, "smoothed", False),
    (1, "where", False),
    (7, "smoothed", True),
    (14, "plain", False),
    (128, "where", True),
]


@pytest.mark.parametrize(("rows", "options", "biased"), slow_but(CASES, (4, "where", False), (7, "smoothed", True)))
def test_value_and_gradients_are_those_of_the_logits(
    rows: int, options: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", rows)

    def losses(inputs: Any, kernel: Any, bias: Any) -> Any:
        return linear_poly_cross_entropy(inputs, kernel, LABELS, bias=bias, **OPTIONS[options])

    found = with_gradients(losses, BIAS if biased else None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, right(options, biased))


def test_masked_examples_may_be_anything() -> None:
    @jax.jit
    def with_gradients(inputs: Any, labels: Any) -> Any:
        def total(inputs: Any, kernel: Any) -> Any:
            found = linear_poly_cross_entropy(inputs, kernel, labels, where=WHERE)
            return found.sum(), found

        return jax.grad(total, (0, 1), has_aux=True)(inputs, KERNEL)

    inputs, labels = INPUTS.copy(), LABELS.copy()
    inputs[~WHERE], labels[~WHERE] = np.nan, -100
    gradients, found = with_gradients(inputs, labels)
    np.testing.assert_allclose(found, np.where(WHERE, of_logits(INPUTS, KERNEL, None), 0), rtol=1e-5)
    for gradient, of_good in zip(gradients, with_gradients(INPUTS, LABELS)[0], strict=True):
        np.testing.assert_allclose(gradient, of_good, rtol=1e-5, atol=1e-6)


def test_inputs_of_more_digits_than_the_kernel() -> None:
    with jax.enable_x64(True):
        of_rows = jax.jit(lambda x, kernel, bias: linear_poly_cross_entropy(x, kernel, LABELS, bias=bias))
        found = of_rows(INPUTS.astype("float64"), KERNEL, BIAS)
        right = jax.jit(of_logits)(*(array.astype("float64") for array in (INPUTS, KERNEL, BIAS)))
        assert found.dtype == "float64"
        np.testing.assert_allclose(found, right, rtol=1e-14)


def test_a_bias_of_minus_infinity_takes_a_class_out() -> None:
    padded = np.pad(KERNEL, ((0, 0), (0, 5)))
    bias = np.concatenate([BIAS, np.full(5, -np.inf, "float32")])

    def total(kernel: Any, bias: Any) -> Any:
        return linear_poly_cross_entropy(INPUTS, kernel, LABELS, bias=bias, gamma=0.5).sum()

    value, (by_kernel, by_bias) = jax.jit(jax.value_and_grad(total, (0, 1)))(padded, bias)
    np.testing.assert_allclose(value, of_logits(INPUTS, KERNEL, BIAS, gamma=0.5).sum(), rtol=1e-5)
    assert np.isfinite(by_kernel).all()
    assert (np.asarray(by_kernel)[:, 11:] == 0).all()
    assert (np.asarray(by_bias)[11:] == 0).all()


@pytest.mark.parametrize("batch_shape", [(), (0,), (3,), (2, 0, 3)], ids=str)
def test_shapes(batch_shape: tuple[int, ...]) -> None:
    inputs, labels = np.ones((*batch_shape, 4), "float32"), np.zeros(batch_shape, int)

    def total(kernel: Any) -> Any:
        found = linear_poly_cross_entropy(inputs, kernel, labels)
        return found.sum(), found

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(KERNEL)
    assert found.shape == batch_shape
    assert gradient.shape == KERNEL.shape
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", slow_but(["float16", "bfloat16"], "bfloat16"))
def test_gradients_of_low_precision_are_added_up_in_float32(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """600 chunks of one row: a sum in bfloat16 would stop growing at 256 times a term."""
    monkeypatch.setattr(linear, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", 1)
    inputs, kernel, labels = jnp.ones((600, 2), dtype), jnp.zeros((2, 3), dtype), jnp.zeros(600, int)

    def losses(kernel: Any, bias: Any) -> Any:
        return linear_poly_cross_entropy(inputs, kernel, labels, bias=bias, epsilon=0.0)

    def total(kernel: Any, bias: Any) -> Any:
        found = losses(kernel, bias)
        return found.sum(), found

    (by_kernel, by_bias), found = jax.jit(jax.grad(total, (0, 1), has_aux=True))(kernel, jnp.zeros(3, dtype))
    assert found.dtype == dtype
    assert by_kernel.dtype == by_bias.dtype == dtype
    for gradient in (by_kernel[0], by_kernel[1], by_bias):
        right = [-400.0, 200.0, 200.0]
        np.testing.assert_allclose(np.asarray(gradient, "float64"), right, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("second", [False, True], ids=["gradient", "of the gradient"])
def test_all_logits_are_never_held(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(linear, "_FEWEST_ROWS", 32)
    rows, classes = 1024, 3000
    given = jnp.ones((rows, 4)), jnp.ones((4, classes)), jnp.zeros(rows, int)

    def total(inputs: Any, kernel: Any, labels: Any) -> Any:
        return linear_poly_cross_entropy(inputs, kernel, labels, epsilon=2.0).mean()

    function: Any = jax.grad(total, (0, 1))
    if second:
        function = jax.grad(lambda *given: sum((g**2).sum() for g in jax.grad(total, (0, 1))(*given)))

    def largest(function: Any) -> int:
        text = jax.jit(function).lower(*given).as_text()
        return max(
            int(np.prod([int(n) for n in found.split("x")[:-1]])) for found in re.findall(r"tensor<([\dx]+f32)>", text)
        )

    assert largest(function) < rows * classes / 4
    assert largest(lambda x, k, y: (x @ k).sum()) == rows * classes, "or the helper finds nothing"
