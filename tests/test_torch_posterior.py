"""``poly_softmax`` recovers the class posterior from optimized logits. Also, comparisons with torch's softmax."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import LOSSES
from polylosses import Polynomial
from polylosses.torch import poly_cross_entropy, poly_from_nll, poly_softmax

POSTERIORS = {"sharp": [0.6, 0.25, 0.1, 0.05], "nearly even": [0.37, 0.33, 0.30]}

# At an optimum inside the simplex, posterior_c * L'(p_c) is the same for all classes. If L' is bounded, posteriors that
# are too uneven have no such point: at the optimum some class has probability 0, that is an infinite logit, and the
# posterior can't be recovered.
NO_INTERIOR_OPTIMUM = {
    ("mean_absolute_error", "sharp"): "-L' is 1 everywhere",
    ("mean_absolute_error", "nearly even"): "-L' is 1 everywhere",
    ("taylor_cross_entropy", "sharp"): "-L' is between 1 and 2",
    ("taylor_cross_entropy(8)", "sharp"): "-L' is between 1 and 8",
    ("no logarithm", "sharp"): "-L' is at most 2.75",
}
# The loss "nothing" is 0 everywhere, so that all logits are optimal.
TRIED = [(name, which) for name in LOSSES for which in POSTERIORS if name != "nothing"]


def optimal_logits(loss: Polynomial, posterior: Tensor) -> Tensor:
    """The logits that minimize the expected loss, found by Newton's method with step halving."""

    def expected(z: Tensor) -> Tensor:
        return poly_cross_entropy(z[None], posterior[None], polynomial=loss)

    z = posterior.log()
    gradient_of, hessian_of = torch.func.grad(expected), torch.func.jacrev(torch.func.grad(expected))
    for _ in range(60):
        gradient = gradient_of(z)
        # Logits are free up to a shift, and the loss may not be convex in them: the step uses the absolute curvature.
        values, vectors = torch.linalg.eigh(hessian_of(z))
        steepness = values.abs().clamp(min=1e-3 * values.abs().max())
        step = -vectors @ ((vectors.T @ gradient) / steepness)
        while expected(z + step) > expected(z) and step.abs().max() > 1e-9:
            step = step / 2
        z = z + step
        if step.abs().max() < 1e-12:
            break
    return z


@pytest.mark.parametrize(("name", "which"), [x for x in TRIED if x not in NO_INTERIOR_OPTIMUM])
def test_it_is_the_posterior_that_the_logits_are_optimal_for(name: str, which: str) -> None:
    posterior = torch.tensor(POSTERIORS[which], dtype=torch.float64)
    logits = optimal_logits(LOSSES[name], posterior)
    found = poly_softmax(logits, 0, polynomial=LOSSES[name])
    # A flat loss amplifies the rounding errors of the gradient at the optimum.
    torch.testing.assert_close(found, posterior, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "which"), NO_INTERIOR_OPTIMUM)
def test_where_none_is_claimed_there_is_no_optimum_inside(name: str, which: str) -> None:
    posterior = torch.tensor(POSTERIORS[which], dtype=torch.float64)
    assert optimal_logits(LOSSES[name], posterior).softmax(0).min() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_with_cross_entropy_it_is_softmax(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for dim in (0, 1, 2, -1):
        for chosen in ({"epsilon": 0.0}, {"polynomial": LOSSES["cross_entropy"]}, {"epsilon": torch.tensor(0.0)}):
            found, right = poly_softmax(logits, dim, **chosen), torch.softmax(logits, dim)
            assert found.dtype == right.dtype
            torch.testing.assert_close(found, right, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_it_has_gradients() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    for polynomial in (LOSSES["poly1"], LOSSES["focal(0.5)"], LOSSES["taylor_cross_entropy"]):
        assert torch.autograd.gradcheck(partial(poly_softmax, dim=1, polynomial=polynomial), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_from_likelihoods_are_those_from_logits(name: str) -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(8) % 5
    nll = F.cross_entropy(logits, target, reduction="none")
    found = poly_from_nll(nll, polynomial=LOSSES[name])
    assert torch.equal(found, poly_cross_entropy(logits, target, reduction="none", polynomial=LOSSES[name]))
    assert torch.equal(poly_from_nll(nll[:, None, None], polynomial=LOSSES[name]), found[:, None, None])
