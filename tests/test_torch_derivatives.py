"""First and second derivatives, however sure or wrong the model is: finite everywhere, and right against 60 digits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from cases import LOSSES
from polylosses import Polynomial
from polylosses.torch import (
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
)
from reference import slope

MARGINS = [
    -120.0,
    -88.0,
    -20.0,
    -4.0,
    -1.0,
    0.0,
    0.5,
    3.0,
    8.0,
    15.0,
    18.0,
    26.0,
    40.0,
    60.0,
    80.0,
    100.0,
    300.0,
    800.0,
]
FINFO = {dtype: torch.finfo(dtype) for dtype in (torch.float32, torch.float64)}


def of_margin(loss: Polynomial, margin: float) -> tuple[Any, Any]:
    """First and second derivative by the margin of ``L(sigmoid(margin))``."""
    with mp.workdps(60):

        def first(m: Any) -> Any:
            q = 1 / (1 + mp.exp(m))
            return slope(loss, 1 / (1 + mp.exp(-m)), q) * q

        return first(mpf(margin)), mp.diff(first, mpf(margin))


EXACT = {name: [of_margin(loss, m) for m in MARGINS] for name, loss in LOSSES.items()}

Loss = Callable[[Tensor, Polynomial], Tensor]
# Losses of margins of shape (N), each in two classes where there are classes.
SIGMOIDS: dict[str, Loss] = {
    "dense": lambda m, loss: poly_binary_cross_entropy_with_logits(
        m, torch.ones_like(m), polynomial=loss, reduction="none"
    ),
    "dense, negatives": lambda m, loss: poly_binary_cross_entropy_with_logits(
        -m, torch.zeros_like(m), polynomial=loss, reduction="none"
    ),
    "class ids": lambda m, loss: poly_binary_cross_entropy_with_logits(
        torch.stack([m, torch.full_like(m, -1e4)], 1), torch.zeros(len(m)).long(), polynomial=loss, reduction="none"
    )[:, 0],
    "from nll": lambda m, loss: poly_from_nll(-torch.nn.functional.logsigmoid(m), polynomial=loss),
}
SOFTMAXES: dict[str, Loss] = {
    "indices": lambda m, loss: poly_cross_entropy(
        torch.stack([m, torch.zeros_like(m)], 1), torch.zeros(len(m)).long(), polynomial=loss, reduction="none"
    ),
    "epsilon a tensor": lambda m, loss: poly_cross_entropy(
        torch.stack([m, torch.zeros_like(m)], 1),
        torch.zeros(len(m)).long(),
        polynomial=Polynomial(
            (*(m.new_tensor(c) for c in loss.coefficients), m.new_zeros(())), loss.gamma, loss.log_weight
        ),
        reduction="none",
        implementation="native" if m.dtype == torch.float32 else "plain",
    ),
    "probabilities": lambda m, loss: poly_cross_entropy(
        torch.stack([m, torch.zeros_like(m)], 1),
        torch.tensor([[1.0, 0.0]]).to(m).expand(len(m), 2),
        polynomial=loss,
        reduction="none",
    ),
    "head": lambda m, loss: linear_poly_cross_entropy(
        m.unsqueeze(1),
        torch.tensor([[1.0], [0.0]]).to(m),
        torch.zeros(len(m)).long(),
        polynomial=loss,
        reduction="none",
    ),
}


def derivatives(loss: Loss, polynomial: Polynomial, margins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, the same with ``create_graph``, and the second derivative, of each margin."""
    m = margins.clone().requires_grad_()
    (plain,) = torch.autograd.grad(loss(m, polynomial).sum(), m)
    (first,) = torch.autograd.grad(loss(m, polynomial).sum(), m, create_graph=True)
    second = torch.zeros_like(m) if first.grad_fn is None else torch.autograd.grad(first.sum(), m)[0]
    return plain, first.detach(), second


@pytest.mark.parametrize("dtype", FINFO, ids=str)
@pytest.mark.parametrize("kind", [*SIGMOIDS, *SOFTMAXES])
def test_of_every_loss_at_every_margin(kind: str, dtype: torch.dtype) -> None:
    wrong = []
    limits = FINFO[dtype]
    for name, polynomial in LOSSES.items():
        # Without a kernel, a softmax's 1 - p is right up to the rounding of p; so are second derivatives of torch's
        # own logsigmoid.
        rounded = limits.eps if kind in SOFTMAXES else 0.0
        size = 1 + polynomial.log_weight + sum(j * abs(c) for j, c in enumerate(polynomial.coefficients, start=1))
        found = derivatives((SIGMOIDS | SOFTMAXES)[kind], polynomial, torch.tensor(MARGINS, dtype=dtype))
        for k, margin in enumerate(MARGINS):
            first, second = EXACT[name][k]
            q = 1 / (1 + math.exp(min(margin, 700.0)))
            for numbers, exact, off in zip(found, (first, first, second), (rounded, rounded, limits.eps), strict=True):
                # Terms of size q may cancel; what is below the smallest number is 0.
                allowed = 64 * size * (limits.eps * (float(abs(exact)) + q) + off) + 1e3 * size * limits.tiny
                if not abs(float(numbers[k]) - float(exact)) <= allowed:
                    wrong.append(f"{name} at {margin}: {float(numbers[k])}, not {float(exact)}")
    assert not wrong, f"{len(wrong)}; {wrong[:5]}"


@pytest.mark.parametrize("dtype", FINFO, ids=str)
@pytest.mark.parametrize("kind", [*SIGMOIDS, *SOFTMAXES])
def test_derivatives_are_numbers_at_extreme_logits(kind: str, dtype: torch.dtype) -> None:
    limits = FINFO[dtype]
    extreme = torch.tensor([-math.inf, limits.min, limits.min / 2, -1e30, 1e30, limits.max], dtype=dtype)
    for name, polynomial in LOSSES.items():
        if kind == "head":
            extreme = extreme[1:]  # infinity times a weight of 0
        value = (SIGMOIDS | SOFTMAXES)[kind](extreme, polynomial)
        assert not value.isnan().any(), name
        plain, first, second = derivatives((SIGMOIDS | SOFTMAXES)[kind], polynomial, extreme)
        assert plain.isfinite().all(), (name, plain)
        assert first.isfinite().all(), (name, first)
        assert second[1:].isfinite().all(), (name, second)


@pytest.mark.parametrize("dtype", FINFO, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_posteriors_have_finite_derivatives_and_are_right(name: str, dtype: torch.dtype) -> None:
    polynomial = LOSSES[name]
    if name == "nothing":
        return  # every p is its optimum
    margins = torch.tensor(MARGINS, dtype=dtype)

    def log_odds(m: Any) -> Any:
        p, q = 1 / (1 + mp.exp(-m)), 1 / (1 + mp.exp(m))
        return mp.log(p / -slope(polynomial, p, q)) - mp.log(q / -slope(polynomial, q, p))

    posteriors: list[Callable[[Tensor], Tensor]] = [
        lambda m: poly_softmax(torch.stack([m, torch.zeros_like(m)], 1), 1, polynomial=polynomial)[:, 0],
        lambda m: poly_sigmoid(m, polynomial=polynomial),
    ]
    for posterior in posteriors:
        m = margins.clone().requires_grad_()
        value = posterior(m)
        (first,) = torch.autograd.grad(value.sum(), m, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), m)
        value, first = value.detach(), first.detach()
        for numbers in (value, first, second):
            assert numbers.isfinite().all(), numbers
        for margin in (-4.0, 0.5, 18.0):
            with mp.workdps(40):
                right = mp.taylor(lambda x: 1 / (1 + mp.exp(-log_odds(x))), mpf(margin), 2)
            for n, numbers in enumerate((value, first, second)):
                off = float(numbers[MARGINS.index(margin)]) - float(right[n] * math.factorial(n))
                assert abs(off) <= 1e3 * FINFO[dtype].eps, (margin, right)
