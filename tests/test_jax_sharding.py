"""Sharded logits give the same results, and are never gathered on a device.

Virtual CPU devices must be configured before JAX starts, so all cases run in one child process.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CASES = r"""
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from polylosses.jax import *

CLASSES, ROWS = 512, 16
random = np.random.default_rng(0)
logits = random.normal(size=(ROWS, CLASSES)).astype("float32")
labels = random.integers(0, CLASSES, ROWS)
soft = random.dirichlet(np.ones(CLASSES), ROWS).astype("float32")
LOSSES = {
    "integers": lambda z, y, s: poly_cross_entropy_with_integer_labels(z, y, epsilon=2.0, gamma=0.5),
    "smoothed": lambda z, y, s: poly_cross_entropy_with_integer_labels(z, y, label_smoothing=0.1),
    "masked classes": lambda z, y, s: poly_cross_entropy_with_integer_labels(z, y, where=s > 1e-4),
    "masked examples": lambda z, y, s: poly_cross_entropy_with_integer_labels(z, y, where=y > 9),
    "dense": lambda z, y, s: poly_cross_entropy(z, s, epsilon=(2.0, 1.0)),
    "sigmoid": lambda z, y, s: sigmoid_poly_cross_entropy(z, s, gamma=2.0).sum(1),
    "posterior": lambda z, y, s: poly_softmax(z, epsilon=2.0).max(1),
}
MESHES = [(4, P("x", None)), (8, P(None, "x")), (8, P("x", "y"))]
@jax.jit
def step(z, y, s):
    # Of all losses: one program for each mesh.
    return [jax.value_and_grad(lambda z: loss(z, y, s).mean())(z) for loss in LOSSES.values()]
right = step(logits, labels, soft)
results = []
for mode in (AxisType.Auto, AxisType.Explicit):
    for number, spec in MESHES if mode is AxisType.Auto else MESHES[-2:]:
        if "y" in spec:
            mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(mode, mode))
        else:
            mesh = jax.make_mesh((number,), ("x",), axis_types=(mode,), devices=jax.devices()[:number])
        def put(array, *spec):
            return jax.device_put(array, NamedSharding(mesh, P(*spec)))
        given = put(logits, *spec), put(labels, spec[0]), put(soft, *spec)
        case = f"{number} devices, {spec}, {mode.name}"
        compiled = step.lower(*given).compile()
        sent = re.findall(r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)[-(]",
                          compiled.as_text())
        for name, (found, found_gradient), (value, gradient) in zip(LOSSES, compiled(*given), right, strict=True):
            results.append({
                "case": f"{name}, {case}",
                "off": abs(float(found) - float(value)) / abs(float(value)),
                "gradient_off": float(np.abs(np.asarray(found_gradient) - gradient).max() / np.abs(gradient).max()),
                "stays": found_gradient.sharding.is_equivalent_to(given[0].sharding, 2),
                "sent": sent,
            })
# A program that gathers, as a check of the search.
mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
z = jax.device_put(logits, NamedSharding(mesh, P(None, "x")))
gathered = jax.jit(lambda z: z, out_shardings=NamedSharding(mesh, P())).lower(z).compile().as_text()
json.dump([results, gathered], sys.stdout)
"""


@cache
def output() -> tuple[list[dict[str, Any]], str]:
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-W", "error", "-c", CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found, gathered = json.loads(done.stdout)
    assert len(found) == (3 + 2) * 7
    return found, gathered


def results() -> list[dict[str, Any]]:
    return output()[0]


def elements(shapes: str) -> list[int]:
    """The sizes of the arrays in a line of HLO."""
    sizes = []
    for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes):
        size = 1
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        sizes.append(size)
    return sizes


def test_the_sizes_in_a_line_of_hlo() -> None:
    assert elements("(f32[16]{0}, s32[4,512]{1,0}, f32[])") == [16, 2048, 1]


def test_the_numbers_are_those_of_one_device() -> None:
    wrong = [r["case"] for r in results() if not (r["off"] < 2e-6 and r["gradient_off"] < 2e-6)]
    assert not wrong, wrong
    assert not [r["case"] for r in results() if not r["stays"]]


def test_logits_are_never_gathered() -> None:
    """Devices exchange arrays with at most one number per row (16)."""
    for result in results():
        for shapes, operation in result["sent"]:
            assert operation == "all-reduce", f"{result['case']}: {operation} of {shapes}"
            assert max(elements(shapes)) <= 16, f"{result['case']}: {operation} of {shapes}"
    across = [r for r in results() if "None, 'x'" in r["case"]]
    assert across
    assert all(r["sent"] for r in across), "or the helper has found nothing"


def test_a_gather_would_be_found() -> None:
    assert "all-gather" in output()[1]
