"""The warning about an epsilon below its bound: once, at the user's line, from everything that takes an epsilon."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import polylosses
import polylosses.jax
import polylosses.keras
import polylosses.torch as losses
from polylosses import Polynomial

Z, Y = torch.zeros(4, 3), torch.arange(4) % 3
HEAD, NLL, DENSE = torch.zeros(3, 3), torch.ones(4), torch.eye(4)[:, :3]
ONE_HOT = np.eye(4, 3, dtype=np.float32)
MODULE = losses.PolyCrossEntropyLoss()


def set_later(name: str, value: Any) -> None:
    setattr(MODULE, name, value)


# One line each, since the test checks the line number of the warning.
CALLS: dict[str, Callable[[], Any]] = {
    "Polynomial": lambda: Polynomial((-2.0,)),
    "poly1": lambda: polylosses.poly1(-2.0),
    "poly_n": lambda: polylosses.poly_n(-2.0, 0.5),
    "poly1_focal": lambda: polylosses.poly1_focal(-2.0),
    "torch, softmax": lambda: losses.poly_cross_entropy(Z, Y, epsilon=-2.0),
    "torch, several": lambda: losses.poly_cross_entropy(Z, Y, epsilon=(0.0, -2.0)),
    "torch, sigmoid": lambda: losses.poly_binary_cross_entropy_with_logits(Z, DENSE, epsilon=-2.0),
    "torch, head": lambda: losses.linear_poly_cross_entropy(Z, HEAD, Y, epsilon=-2.0),
    "torch, from nll": lambda: losses.poly_from_nll(NLL, epsilon=-2.0),
    "torch, poly_softmax": lambda: losses.poly_softmax(Z, 1, epsilon=-2.0),
    "torch, poly_sigmoid": lambda: losses.poly_sigmoid(Z, epsilon=-2.0),
    "torch, module": lambda: losses.PolyCrossEntropyLoss(epsilon=-2.0)(Z, Y),
    "torch, Poly1CrossEntropyLoss": lambda: losses.Poly1CrossEntropyLoss(-2.0)(Z, Y),
    "torch, Poly1FocalLoss": lambda: losses.Poly1FocalLoss(-2.0)(Z, DENSE),
    "torch, head's module": lambda: losses.LinearPolyCrossEntropyLoss(3, 5, epsilon=-2.0)(Z, Y),
    "torch, set later": lambda: set_later("epsilon", -2.0),
    "jax, softmax": lambda: polylosses.jax.poly_cross_entropy(jnp.zeros((4, 3)), jnp.asarray(ONE_HOT), epsilon=-2.0),
    "jax, sigmoid": lambda: polylosses.jax.sigmoid_poly_cross_entropy(jnp.zeros(4), jnp.zeros(4), epsilon=-2.0),
    "jax, poly_softmax": lambda: polylosses.jax.poly_softmax(jnp.zeros((4, 3)), epsilon=-2.0),
    "keras": lambda: polylosses.keras.poly_categorical_crossentropy(ONE_HOT, 1 - ONE_HOT, True, epsilon=-2.0),
    "keras, class": lambda: polylosses.keras.PolyCategoricalCrossentropy(epsilon=-2.0)(ONE_HOT, ONE_HOT),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_points_at_the_users_line_once(name: str) -> None:
    call = CALLS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [str(w.message)[:12] for w in caught] == ["epsilon = -2"], [str(w.message) for w in caught]
    assert caught[0].category is UserWarning
    expected = inspect.getsourcelines(set_later if "later" in name else call)[1] + ("later" in name)
    assert (caught[0].filename, caught[0].lineno) == (__file__, expected)


def test_a_loss_that_is_compiled_is_not_stopped_by_it() -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = losses.PolyCrossEntropyLoss(epsilon=-2.0)
        right = module(Z, Y)
    for loss in (module, lambda z, y: losses.poly_cross_entropy(z, y, epsilon=-2.0)):
        compiled = torch.compile(loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(Z, Y), right)
