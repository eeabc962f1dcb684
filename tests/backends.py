"""The backends that the shared tests run on. A new backend needs an adapter module, listed in ``BACKENDS``.

An adapter is a module with some of the functions ``cross_entropy``, ``binary_cross_entropy``, ``softmax``, ``sigmoid``
and ``from_nll``. Each takes a :class:`polylosses.Polynomial` and NumPy arrays, and returns NumPy arrays.
``LOW_PRECISION`` says whether the backend supports float16 and bfloat16, ``serves_binary`` which cells of
:data:`cases.BINARY_CELLS` it supports.
"""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest

import on_jax
import on_keras
import on_numpy
import on_torch
from cases import slow_but
from found import FULL

BACKENDS: list[ModuleType] = [on_numpy, on_torch, on_jax, on_keras]


# One loss of each kind, since JAX compiles every loss anew. The others differ in their numbers only, and run on the
# other backends.
JAX_LOSSES = ["poly1", "poly1_focal(-1, 0.5)", "poly_n of degree 8", "everything", "no logarithm"]


def on_every_backend(
    function: str, losses: Iterable[str] | None = None, *, low_precision: bool = False
) -> Callable[[Any], Any]:
    """Parametrizes a test over the backends that have ``function``, and over the names of losses if given.

    On JAX it is marked as slow, and runs for the losses in ``JAX_LOSSES`` only.
    """
    having = [b for b in BACKENDS if hasattr(b, function) and (b.LOW_PRECISION or not low_precision)]
    quick = [b for b in having if b is not on_jax]
    of = {b: b.__name__.removeprefix("on_") for b in having}
    if losses is None:
        return pytest.mark.parametrize("backend", slow_but(having, *quick), ids=of.values())
    losses = list(losses)
    pairs = [(b, name) for b in having for name in losses if b is not on_jax or name in JAX_LOSSES]
    ids = [f"{of[b]}-{name}" for b, name in pairs]
    return pytest.mark.parametrize(
        ("backend", "name"), slow_but(pairs, *(pair for pair in pairs if pair[0] is not on_jax)), ids=ids
    )


def on_every_backend_in_full_precision(function: str) -> Callable[[Any], Any]:
    """Parametrizes a test over the backends that have ``function``, and float64 and float32; JAX in float64 only."""
    having = [backend for backend in BACKENDS if hasattr(backend, function)]
    pairs = [(b, dtype) for b in having for dtype in (["float64"] if b is on_jax else FULL)]
    names = [f"{b.__name__.removeprefix('on_')}-{dtype}" for b, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=names)
