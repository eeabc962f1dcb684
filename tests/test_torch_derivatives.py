"""First and second derivatives for confident predictions, infinite logits and all-ignored targets: finite, and right.

The exact derivatives are those of the reference implementation (tests/reference.py), in mpmath.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import reference
from cases import LOSSES, Array
from polylosses import Polynomial
from polylosses.torch import (
    linear_poly_cross_entropy,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_from_nll,
    poly_sigmoid,
    poly_softmax,
)

INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float64]
# Logit margins of the label. At 17 and 37, 1 - p is rounded to 0 in float32 and float64. At 90, the exact 1 - p is
# below the normal numbers of float32.
MARGINS = [-100.0, -30.0, -3.0, -0.5, 0.0, 1.0, 3.0, 8.0, 12.0, 16.0, 18.0, 26.0, 36.0, 60.0, 85.0, 95.0, 100.0, 200.0]


def absolute(loss: Polynomial) -> Polynomial:
    return Polynomial(tuple(map(abs, loss.coefficients)), loss.gamma, loss.log_weight)


def times(loss: Polynomial) -> float:
    """A bound on the exponents of q, and so on the factor that a derivative multiplies a term by."""
    return float(loss.gamma + len(loss.coefficients) + 1.0)


def sigmoids(m: Any) -> tuple[Any, Any]:
    return 1 / (1 + mp.exp(-m)), 1 / (1 + mp.exp(m))


@cache
def by_margin(loss: Polynomial, margin: float) -> tuple[float, float, float, float]:
    """The loss, its two derivatives with respect to the margin, and the sum of its terms' absolute values."""
    with mp.workdps(5 * reference.DIGITS):
        value = reference.value(loss, *sigmoids(mp.mpf(margin)))

        def slope(m: Any) -> Any:
            return reference.slope(loss, *sigmoids(m)) * sigmoids(m)[1]

        scale = reference.value(absolute(loss), *sigmoids(mp.mpf(margin)))
        return float(value), float(slope(mp.mpf(margin))), float(mp.diff(slope, margin)), float(scale)


def twice(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Array, Array]:
    """The first and second derivative of an elementwise function."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x) if first.requires_grad else (torch.zeros_like(x),)
    return first.detach().double().numpy(), second.double().numpy()


def assert_near(found: Array, right: Any, allowed: Any, dtype: torch.dtype) -> None:
    allowed = np.asarray(allowed) + torch.finfo(dtype).tiny
    far = ~(np.abs(found - np.asarray(right)) <= allowed)
    assert not far.any(), f"{dtype}: {found[far]}, not {np.asarray(right)[far]} within {allowed[far]}"


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_sigmoid_losses(name: str) -> None:
    loss = LOSSES[name]
    rows = [by_margin(loss, m) for m in MARGINS]
    for dtype, dense in itertools.product(DTYPES, (True, False)):
        z = torch.tensor(MARGINS, dtype=dtype)
        ids = torch.arange(2).expand(len(z), 2)[:, 0]

        def losses(m: Tensor, dense: bool = dense, ids: Tensor = ids) -> Tensor:
            options: dict[str, Any] = {"polynomial": loss, "implementation": "plain", "reduction": "none"}
            if dense:
                return poly_binary_cross_entropy_with_logits(m, torch.ones_like(m), **options)
            both = torch.stack([m, torch.full_like(m, -INF)], 1)
            return poly_binary_cross_entropy_with_logits(both, ids, **options)

        first, second = twice(losses, z)
        scale = np.array([row[3] for row in rows]) * times(loss) ** 2 * 16 * torch.finfo(dtype).eps
        assert_near(first, [row[1] for row in rows], scale, dtype)
        assert_near(second, [row[2] for row in rows], scale, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_softmax_losses(name: str) -> None:
    """The label's logit is the margin, and the other logit is 0. The absolute error of q is finfo.eps."""
    loss = LOSSES[name]
    for dtype, soft, smoothing in itertools.product(DTYPES, (True, False), (0.0, 0.25)):
        target = torch.zeros(len(MARGINS), dtype=torch.long)
        y = F.one_hot(target, 2).to(dtype) if soft else target
        options: dict[str, Any] = {"polynomial": loss, "implementation": "plain", "label_smoothing": smoothing}

        def losses(m: Tensor, y: Tensor = y, options: dict[str, Any] = options) -> Tensor:
            return poly_cross_entropy(torch.stack([m, 0.0 * m], 1), y, reduction="none", **options)

        first, second = twice(losses, torch.tensor(MARGINS, dtype=dtype))
        # (share of the target, sign of the margin), for the label and for the other class.
        shares = ((1 - smoothing / 2, 1), (smoothing / 2, -1))
        sides = [(share, sign, [by_margin(loss, sign * m) for m in MARGINS]) for share, sign in shares]
        right = [sum(share * np.array([r[k] for r in rows]) * sign**k for share, sign, rows in sides) for k in (1, 2)]
        eps = torch.finfo(dtype).eps
        size = 1 + np.abs(MARGINS)
        allowed = 0.0
        for share, sign, rows_of_side in sides:
            of_side = [float(sigmoids(sign * m)[1]) for m in MARGINS]
            # The relative error of the terms, which is 1 where the error of q is as large as q.
            off = np.minimum(1.0, eps * size / np.array(of_side))
            known = [by_margin(absolute(loss), float(-np.log(max(p, eps)))) for p in of_side]
            allowed = allowed + share * off * np.array(
                [max(a[3], b[3]) for a, b in zip(rows_of_side, known, strict=True)]
            )
        allowed = 16 * times(loss) ** 3 * allowed
        assert_near(first, right[0], allowed, dtype)
        assert_near(second, right[1], allowed, dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_losses_from_likelihoods(name: str) -> None:
    """With respect to the likelihood, the second derivative of q^(1 + gamma) is unbounded, but right."""
    loss = LOSSES[name]
    nll = [1e-37, 1e-30, 1e-26, 1e-20, 1e-13, 1e-8, 1e-5, 1e-3, 0.1, 1.0, 5.0, 50.0, 100.0]
    with mp.workdps(2 * reference.DIGITS):

        def value(x: Any) -> Any:
            return reference.value(loss, mp.exp(-x), -mp.expm1(-x))

        def slope(x: Any) -> Any:
            return -reference.slope(loss, mp.exp(-x), -mp.expm1(-x))

        right = [[float(f(mp.mpf(x))) for x in nll] for f in (value, slope)]
        right.append([float(mp.diff(slope, x, h=mp.mpf(x) * mp.mpf(10) ** -25)) for x in nll])
        scale = np.array([float(reference.value(absolute(loss), mp.exp(-x), -mp.expm1(-mp.mpf(x)))) for x in nll])
    q = -np.expm1(-np.array(nll))
    for dtype in DTYPES:
        x = torch.tensor(nll, dtype=dtype)
        function = partial(poly_from_nll, polynomial=loss)
        found = function(x).double().numpy(), *twice(function, x)
        for k in range(3):
            allowed = scale * (times(loss) / q) ** k * 16 * torch.finfo(dtype).eps
            # One more factor for the rounding of x, since nll has decimal numbers.
            assert_near(found[k], right[k], allowed * times(loss), dtype)


def links(loss: Polynomial, dtype: torch.dtype, rows: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Losses and posteriors of logits of three classes, with one result for each row or element."""
    y = torch.zeros(rows, dtype=torch.long)
    probabilities = torch.tensor([0.5, 0.5, 0.0], dtype=dtype).expand(rows, 3)
    options: dict[str, Any] = {"polynomial": loss, "implementation": "plain", "reduction": "none"}
    return {
        "indices": lambda z: poly_cross_entropy(z, y, **options),
        "smoothing": lambda z: poly_cross_entropy(z, y, label_smoothing=0.1, **options),
        "probabilities": lambda z: poly_cross_entropy(z, probabilities, **options),
        "class ids": lambda z: poly_binary_cross_entropy_with_logits(z, y, **options),
        "dense": lambda z: poly_binary_cross_entropy_with_logits(z, probabilities, **options),
        "linear head": lambda z: linear_poly_cross_entropy(z, torch.eye(3, dtype=dtype), y, **options),
        "likelihoods": lambda z: poly_from_nll(z.clamp(min=0.0), polynomial=loss),
        "poly_softmax": lambda z: poly_softmax(z, 1, polynomial=loss),
        "poly_sigmoid": lambda z: poly_sigmoid(z, polynomial=loss),
    }


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_are_finite_at_all_finite_logits(name: str) -> None:
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max
        numbers = [0.0, 17.0, 60.0, 87.5, 100.0, 104.0, 710.0, 745.0, 1e4, largest**0.5, largest]
        z = torch.tensor([[sign * x, 0.0, -1.0] for x in numbers for sign in (1, -1)], dtype=dtype)
        for link, function in links(LOSSES[name], dtype, len(z)).items():
            for derivative in twice(function, z):
                assert np.isfinite(derivative).all(), f"{link}, {dtype}: {derivative}"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, forward mode
@pytest.mark.parametrize("tool", ["hessian", "jacrev of jacrev", "jvp of grad"])
def test_torch_func_has_the_same_second_derivatives(tool: str) -> None:
    z = torch.tensor([[60.0, 0.0, -1.0], [1.0, 0.0, 2.0]], dtype=torch.float64)
    for link, function in links(LOSSES["focal(0.5)"], z.dtype, len(z)).items():

        def total(z: Tensor, function: Callable[[Tensor], Tensor] = function) -> Tensor:
            return function(z).sum()

        right = torch.autograd.functional.hessian(total, z).sum((0, 1))  # type: ignore[no-untyped-call]
        if tool == "hessian":
            found = torch.func.hessian(total)(z).sum((0, 1))
        elif tool == "jvp of grad":
            found = torch.func.jvp(torch.func.grad(total), (z,), (torch.ones_like(z),))[1]
        else:
            found = torch.func.jacrev(torch.func.jacrev(total))(z).sum((0, 1))
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-15, msg=link)


def posterior(loss: Polynomial, margin: Any) -> Any:
    """The posterior of the first of two classes, for a logit margin."""
    p, q = sigmoids(margin)
    yes, no = p / -reference.slope(loss, p, q), q / -reference.slope(loss, q, p)
    return yes / (yes + no)


# There is no posterior where the slope is 0.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "nothing"])
def test_derivatives_of_posteriors(name: str) -> None:
    loss = LOSSES[name]
    margins = [0.0, 0.5, 3.0, 8.0, 16.0, 18.0, 26.0, 36.0, 60.0, 100.0]
    with mp.workdps(4 * reference.DIGITS):
        right = [[float(mp.diff(partial(posterior, loss), m, k)) for m in margins] for k in range(3)]
    for dtype in DTYPES:
        m = torch.tensor(margins, dtype=dtype)
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda m: poly_sigmoid(m, polynomial=loss),
            lambda m: poly_softmax(torch.stack([m, 0.0 * m]), 0, polynomial=loss)[0],
        ]
        for function in functions:
            found = function(m).double().numpy(), *twice(function, m)
            for k in range(3):
                allowed = 16 * times(loss) ** (k + 1) * torch.finfo(dtype).eps
                assert_near(found[k], right[k], np.full(len(margins), allowed), dtype)


# Logits of a single float64 element.
EXTREMES = [-INF, -np.finfo(np.float64).max, -1e4, 0.0, 1e4, np.finfo(np.float64).max, INF]


def at(loss: Polynomial, z: float) -> tuple[float, float]:
    """L(sigmoid(z)) and its derivative, with the limits at infinite logits."""
    if z > 1e3:
        return 0.0, 0.0
    if z < -1e3:
        logarithm = -loss.log_weight * z if loss.log_weight else 0.0
        return logarithm + sum(loss.coefficients), -loss.log_weight
    return by_margin(loss, z)[:2]


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm changes the bound
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # log_weight times the largest number
def test_extreme_logits_of_sigmoids(name: str, implementation: str | None) -> None:
    loss = LOSSES[name]
    for alpha, on_epsilon in [(None, True), *itertools.product((0.0, 1.0, 0.25), (True, False))]:
        for y in (0.0, 1.0, 0.5):
            right = np.zeros((2, len(EXTREMES)))
            for share, balance, sign in ((y, alpha, 1), (1 - y, None if alpha is None else 1 - alpha, -1)):
                factor = 1.0 if balance is None else balance
                side = loss if on_epsilon else Polynomial(loss.coefficients, loss.gamma, loss.log_weight * factor)
                weight = share * (factor if on_epsilon else 1.0)
                if weight:
                    numbers = np.array([at(side, sign * z) for z in EXTREMES]).T
                    right += weight * numbers * [[1], [sign]]
            forms = [alpha] if alpha is None else [alpha, torch.tensor(alpha), torch.full((len(EXTREMES),), alpha)]
            for form in forms:
                z = torch.tensor(EXTREMES, dtype=torch.float64, requires_grad=True)
                options: dict[str, Any] = {"alpha": form, "alpha_on_epsilon": on_epsilon, "reduction": "none"}
                options |= {"polynomial": loss, "implementation": implementation}
                value = poly_binary_cross_entropy_with_logits(z, torch.full_like(z, y), **options)
                (gradient,) = torch.autograd.grad(value.sum(), z)
                np.testing.assert_allclose(value.detach(), right[0], rtol=1e-13, err_msg=f"{alpha} {on_epsilon} {y}")
                np.testing.assert_allclose(gradient, right[1], rtol=1e-13, err_msg=f"{alpha} {on_epsilon} {y}")


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_of_softmax(name: str, implementation: str | None) -> None:
    """For two classes with label 0, softmax is the sigmoid of the margin. For an infinite margin, p is 1."""
    loss = LOSSES[name]
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max
        margins = [-INF, -largest, -1e4, 0.0, 1e4, largest, INF]
        with np.errstate(over="ignore"):
            right = np.array([at(loss, m) for m in margins]).astype(str(dtype).removeprefix("torch."))
        pairs = [[m, 0.0] if m < 0 else [0.0, -m] for m in margins]
        for target in (torch.zeros(len(pairs), dtype=torch.long), torch.tensor([[1.0, 0.0]] * len(pairs), dtype=dtype)):
            z = torch.tensor(pairs, dtype=dtype, requires_grad=True)
            options: dict[str, Any] = {"polynomial": loss, "implementation": implementation, "reduction": "none"}
            value = poly_cross_entropy(z, target, **options)
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=True)
            (second,) = torch.autograd.grad(gradient[:, 0].sum(), z)
            assert second.isfinite().all()
            np.testing.assert_allclose(value.detach(), right[:, 0], rtol=1e-5)
            np.testing.assert_allclose(gradient.detach(), np.outer(right[:, 1], [1, -1]), rtol=1e-5, atol=1e-7)


IGNORING: dict[str, Callable[..., Tensor]] = {
    "indices": poly_cross_entropy,
    "smoothing": partial(poly_cross_entropy, label_smoothing=0.25),
    "weights": lambda z, y, **o: poly_cross_entropy(z, y, torch.tensor([1.0, 2.0, 0.5], dtype=z.dtype), **o),
    "class ids": partial(poly_binary_cross_entropy_with_logits, ignore_index=-100),
    "dense": lambda z, y, **o: poly_binary_cross_entropy_with_logits(
        z, torch.where(y[:, None] == -100, -100, F.one_hot(y.clamp(min=0), 3)).to(z.dtype), ignore_index=-100, **o
    ),
}
# More rows than a chunk of the linear head.
ROWS = 300


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", IGNORING)
def test_ignored_rows_count_nothing_whatever_they_hold(name: str, reduction: str, implementation: str | None) -> None:
    for dtype, gamma in itertools.product(DTYPES, (0.0, 0.5)):
        options: dict[str, Any] = {"reduction": reduction, "gamma": gamma, "implementation": implementation}
        z = torch.linspace(-3, 3, 12, dtype=dtype).reshape(4, 3)
        z = torch.cat([z, torch.tensor([[NAN, 0, 0], [INF, INF, 0], [-INF, -INF, -INF], [0, 1, 2]], dtype=dtype)])
        y = torch.tensor([0, 1, 2, 1, -100, -100, -100, -100])
        epsilons = [torch.tensor(2.0, dtype=dtype, requires_grad=True) for _ in range(2)]
        results = []
        for epsilon, rows in zip(epsilons, (8, 4), strict=True):
            some = z[:rows].clone().requires_grad_()
            value = IGNORING[name](some, y[:rows], epsilon=epsilon, **options)
            by_z, by_epsilon = torch.autograd.grad(value.sum(), (some, epsilon))
            assert (value.reshape(-1)[4 * (value.numel() // rows) :] == 0).all() or reduction != "none"
            assert (by_z[4:] == 0).all()
            results.append((value[:4] if reduction == "none" else value, by_z[:4], by_epsilon))
        torch.testing.assert_close(*results, rtol=1e-5, atol=0)


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("rows", [8, ROWS], ids=["at once", "in chunks"])
def test_ignored_rows_of_the_linear_head(rows: int, implementation: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("polylosses.torch.linear._CHUNK_BYTES_ON_CPU", 1)
    hidden = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(rows) % 5
    y[1::2] = -100
    hidden[1::2] = NAN
    hidden[3::4] = INF
    for reduction, twice_over in itertools.product(("mean", "sum", "none"), (False, True)):
        results = []
        for step in (1, 2):
            x, w = hidden[::step].clone().requires_grad_(), head.clone().requires_grad_()
            epsilon = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
            options: dict[str, Any] = {"reduction": reduction, "epsilon": epsilon, "implementation": implementation}
            value = linear_poly_cross_entropy(x, w, y[::step], gamma=0.5, **options)
            by_x, *others = torch.autograd.grad(value.sum(), (x, w, epsilon), create_graph=twice_over)
            assert (by_x[1::2] == 0).all() or step == 2
            results.append([value.detach().sum(), by_x.detach()[:: 3 - step], *(g.detach() for g in others)])
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


NOTHING_KEPT: dict[str, Callable[..., Tensor]] = IGNORING | {
    "linear head": lambda z, y, **o: linear_poly_cross_entropy(z, torch.eye(3, dtype=z.dtype), y, **o),
}


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("name", NOTHING_KEPT)
def test_where_nothing_is_kept_all_derivatives_are_0(name: str, implementation: str | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("polylosses.torch.linear._CHUNK_BYTES_ON_CPU", 1)
    y = torch.full((ROWS,), -100)
    for dtype, gamma in itertools.product(DTYPES, (0.0, torch.tensor(0.5, requires_grad=True))):
        z = torch.zeros(ROWS, 3, dtype=dtype, requires_grad=True)
        epsilon = torch.tensor([2.0, 1.0], requires_grad=True)
        value = NOTHING_KEPT[name](z, y, epsilon=epsilon, gamma=gamma, implementation=implementation)
        assert value.isnan()
        given = (z, epsilon, *([gamma] if isinstance(gamma, Tensor) else []))
        for gradient in torch.autograd.grad(value, given):
            assert (gradient == 0).all()


def test_a_logit_of_nan_leaves_the_derivatives_of_sure_ones_finite() -> None:
    z = torch.tensor([torch.nan, 300.0, 90.0, 1.0], requires_grad=True)
    loss = poly_binary_cross_entropy_with_logits(z, torch.ones(4), gamma=0.5, reduction="none", implementation="plain")
    (first,) = torch.autograd.grad(loss[1:].sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first[1:].sum(), z)
    assert first[1:].isfinite().all()
    assert second[1:].isfinite().all()


MEANS_OVER_NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "indices": lambda z: poly_cross_entropy(z, torch.zeros(0, dtype=torch.int64)),
    "indices, weighted": lambda z: poly_cross_entropy(z, torch.zeros(0, dtype=torch.int64), torch.ones(3)),
    "smoothing": lambda z: poly_cross_entropy(z, torch.zeros(0, dtype=torch.int64), label_smoothing=0.1),
    "learned": lambda z: poly_cross_entropy(
        z, torch.zeros(0, dtype=torch.int64), epsilon=torch.tensor(1.0, requires_grad=True)
    ),
    "probabilities": lambda z: poly_cross_entropy(z, torch.zeros(0, 3)),
    "sigmoid": lambda z: poly_binary_cross_entropy_with_logits(z, torch.zeros(0, 3)),
    "sigmoid, ignoring": lambda z: poly_binary_cross_entropy_with_logits(z, torch.zeros(0, 3), ignore_index=7),
    "head": lambda z: linear_poly_cross_entropy(torch.zeros(0, 2), z.new_ones(3, 2), torch.zeros(0, dtype=torch.int64)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, forward mode
@pytest.mark.parametrize("name", MEANS_OVER_NOTHING)
def test_the_mean_over_no_rows_is_nan_with_derivatives_of_0(name: str) -> None:
    loss, z = MEANS_OVER_NOTHING[name], torch.zeros(0, 3)
    value, tangent = torch.func.jvp(loss, (z,), (z,))[:2]
    assert value.isnan()
    assert tangent.item() == 0
    epsilon = torch.tensor(1.0, requires_grad=True)
    learned = poly_cross_entropy(
        z, torch.zeros(0, 3) if name == "probabilities" else torch.zeros(0).long(), epsilon=epsilon
    )
    learned.backward()  # type: ignore[no-untyped-call]
    assert epsilon.grad is not None
    assert epsilon.grad.item() == 0
