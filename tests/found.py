"""The result of an adapter, and its comparison with the reference implementation."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from cases import Array
from reference import Expected

# The machine epsilon (the spacing of the numbers from 1 to 2), and the smallest normal number.
SPACING = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
FULL, LOW = ["float64", "float32"], ["float16", "bfloat16"]


@dataclass(frozen=True)
class Found:
    """A loss and its gradients with respect to the logits and, for soft targets, the target."""

    value: Array
    gradient: Array
    target_gradient: Array | None = None


def far(name: str, found: Array, right: Array, tolerance: Array) -> list[str]:
    """A list with a line of the failure message, or an empty list if the shape and all elements are right."""
    if found.shape != right.shape:
        return [f"{name} has shape {found.shape}, not {right.shape}"]
    with np.errstate(invalid="ignore"):
        off = ~((np.abs(found - right) <= tolerance) | (np.isnan(found) & np.isnan(right)))
    if not off.any():
        return []
    return [f"{name} {found[off][0]!r}, not {right[off][0]!r} within {tolerance[off][0]:.2g}"]


def compare(found: Found, right: Expected, tolerance: Callable[[Array, Array], Array]) -> list[str]:
    """Lists the differences that exceed ``tolerance``, a function of the exact numbers and their scales."""
    wrong = far("value", found.value, right.value, tolerance(right.value, right.value_scale))
    wrong += far("gradient", found.gradient, right.gradient, tolerance(right.gradient, right.gradient_scale))
    if found.target_gradient is None or right.target_gradient is None:
        if found.target_gradient is not right.target_gradient:
            wrong.append(f"gradient of the target {found.target_gradient}, not {right.target_gradient}")
    else:
        bound = tolerance(right.target_gradient, right.target_gradient_scale)
        wrong += far("gradient of the target", found.target_gradient, right.target_gradient, bound)
    return wrong


def report(failures: dict[str, list[str]]) -> None:
    """Fails the test if there are differences. ``failures`` has the result of :func:`compare` for every cell."""
    assert failures, "nothing was compared"
    lines = [f"{cell}: {'; '.join(wrong)}" for cell, wrong in failures.items() if wrong]
    if lines:
        pytest.fail("\n".join([f"{len(lines)} of {len(failures)} cells differ. The first:", *lines[:5]]))


def rounded_once(dtype: str) -> Callable[[Array, Array], Array]:
    """The tolerance of a result that is computed in float32 and rounded to ``dtype`` once."""

    def tolerance(right: Array, scale: Array) -> Array:
        size = np.maximum(np.abs(right), TINY[dtype])
        unit = SPACING[dtype] * 2.0 ** np.floor(np.log2(size))
        return np.asarray(unit / 2 + SPACING["float32"] * scale)

    return tolerance
