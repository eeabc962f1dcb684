"""Which adapters the laws run on. A new backend writes one, names it here, and has its tests.

An adapter is a module with some of the functions ``cross_entropy``, ``binary_cross_entropy``, ``softmax``, ``sigmoid``
and ``from_nll``, each from a :class:`polylosses.Polynomial` and NumPy arrays to NumPy arrays. ``LOW_PRECISION`` says
whether the backend takes float16 and bfloat16, ``serves_binary`` which cells of :data:`cases.BINARY_CELLS` it has the
options for.
"""

from collections.abc import Callable
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


def on_every_backend(function: str, *, low_precision: bool = False) -> Callable[[Any], Any]:
    """Runs a test on every backend that has the function. On JAX it is slow, since JAX compiles for each shape."""
    having = [b for b in BACKENDS if hasattr(b, function) and (b.LOW_PRECISION or not low_precision)]
    names = [b.__name__.removeprefix("on_") for b in having]
    return pytest.mark.parametrize("backend", slow_but(having, *(b for b in having if b is not on_jax)), ids=names)


def on_every_backend_in_full_precision(function: str) -> Callable[[Any], Any]:
    """Runs a test on every backend that has the function, in each full precision: JAX in one, and never slow."""
    having = [backend for backend in BACKENDS if hasattr(backend, function)]
    pairs = [(b, dtype) for b in having for dtype in (["float64"] if b is on_jax else FULL)]
    names = [f"{b.__name__.removeprefix('on_')}-{dtype}" for b, dtype in pairs]
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=names)
