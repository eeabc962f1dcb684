"""Sigmoid losses with a polynomial for positives and one for negatives: ASL, APL, margins; and learned coefficients."""

import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor

import polylosses
from cases import LOSSES
from polylosses import Polynomial, TwoSided, asymmetric, asymmetric_polynomial, focal, poly1
from polylosses.jax import sigmoid_poly_cross_entropy
from polylosses.torch import (
    AsymmetricLoss,
    AsymmetricPolynomialLoss,
    PolyBCEWithLogitsLoss,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
)
from test_torch_kernels import each_kernel, needs_native, same
from test_torch_transforms import gradients

EPS = torch.finfo(torch.float64).eps


def published_asl(p: Any, y: Any, gamma_neg: float, gamma_pos: float, margin: float) -> Any:
    """Ridnik et al., equation 7: the loss of one element, which is minus the expression there."""
    shifted = max(p - margin, mp.mpf(0))
    return -(y * (1 - p) ** gamma_pos * mp.log(p) + (1 - y) * shifted**gamma_neg * mp.log(1 - shifted))


def published_apl(p: Any, y: Any, gamma_neg: float, gamma_pos: float, margin: float) -> Any:
    """The authors' code, with epsilon_pos 1, epsilon_neg 0 and epsilon_pos_pow -2.5."""
    positive = mp.log(p) + 1.0 * (1 - p) + -2.5 * 0.5 * (1 - p) ** 2
    no = min(1 - p + margin, mp.mpf(1))
    return -(y * (1 - p) ** gamma_pos * positive + (1 - y) * (1 - no) ** gamma_neg * mp.log(no))


PUBLISHED: dict[str, tuple[TwoSided, Callable[[Any, Any], Any]]] = {
    "asymmetric()": (asymmetric(), lambda p, y: published_asl(p, y, 4, 1, 0.05)),
    "asymmetric(4, 0, 0.05)": (asymmetric(4, 0, 0.05), lambda p, y: published_asl(p, y, 4, 0, 0.05)),
    "asymmetric(1.5, 0.5, 0)": (asymmetric(1.5, 0.5, 0), lambda p, y: published_asl(p, y, 1.5, 0.5, 0)),
    "asymmetric_polynomial()": (asymmetric_polynomial(), lambda p, y: published_apl(p, y, 4, 0, 0.05)),
    "asymmetric_polynomial(2, 1, 0.3)": (
        asymmetric_polynomial(2, 1, 0.3),
        lambda p, y: published_apl(p, y, 2, 1, 0.3),
    ),
}
MARGINS = torch.tensor([-30.0, -8.0, -2.9, -2.0, -0.4, 0.3, 1.0, 4.0, 12.0], dtype=torch.float64)

IMPLEMENTATIONS = [pytest.param("plain"), *each_kernel.args[1]]
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@pytest.mark.parametrize("name", PUBLISHED)
@every_implementation
def test_named_losses_are_the_published_formulas(implementation: str, name: str) -> None:
    loss, formula = PUBLISHED[name]
    dtype = torch.float64 if implementation == "plain" else torch.float32
    z = MARGINS.repeat(3).to(dtype).requires_grad_()
    y = torch.tensor([0.0, 1.0, 0.25], dtype=dtype).repeat_interleave(len(MARGINS))
    value = poly_binary_cross_entropy_with_logits(
        z, y, polynomial=loss, reduction="none", implementation=implementation
    )
    (gradient,) = torch.autograd.grad(value.sum(), z)
    precision = 64 * torch.finfo(dtype).eps
    for logit, target, found, slope in zip(z.tolist(), y.tolist(), value.tolist(), gradient.tolist(), strict=True):
        with mp.workdps(50):

            def of(s: Any, target: float = target) -> Any:
                return formula(1 / (1 + mp.exp(-s)), target)

            right, derivative = of(mp.mpf(logit)), mp.diff(of, mp.mpf(logit))
        # What is left of p after the margin has the rounding error of p.
        assert found == pytest.approx(float(right), rel=precision, abs=precision * 0.05), (logit, target)
        assert slope == pytest.approx(float(derivative), rel=precision, abs=precision), (logit, target)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "nothing"])
@every_implementation
def test_each_side_is_the_loss_of_its_own_polynomial(implementation: str, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if implementation == "plain" else torch.float32
    z = (3 * torch.randn(7, 40, generator=generator)).to(dtype)
    soft = torch.rand(7, 40, generator=generator).to(dtype)
    ids, other = torch.arange(7) % 40, LOSSES["poly1_focal(3, 5)"]
    options: dict[str, Any] = {"reduction": "none", "implementation": implementation}
    weights: dict[str, Any] = {"pos_weight": 0.5 + soft[0], "weight": soft, "alpha": 0.3}
    for targets in (soft, soft.round(), (soft > 0.97).to(dtype), torch.ones_like(z), ids):
        x = z.clone().requires_grad_()
        found = poly_binary_cross_entropy_with_logits(
            x, targets, polynomial=(LOSSES[name], other), **weights, **options
        )
        x2 = z.double().requires_grad_()
        y = torch.nn.functional.one_hot(targets, 40).double() if targets.dim() == 1 else targets.double()
        of = {key: value if key == "alpha" else value.double() for key, value in weights.items()}
        of["pos_weight"] = y * of["pos_weight"]
        ones, plain = torch.ones_like(y), options | {"implementation": "plain"}
        yes = poly_binary_cross_entropy_with_logits(x2, ones, polynomial=LOSSES[name], **of, **plain)
        of["weight"], of["pos_weight"] = (1 - y) * of["weight"], None
        right = yes + poly_binary_cross_entropy_with_logits(x2, 0 * ones, polynomial=other, **of, **plain)
        same(found.detach(), right.detach(), 64 * torch.finfo(dtype).eps)
        same(gradients(found, x)[0], gradients(right, x2)[0], 64 * torch.finfo(dtype).eps)


@every_implementation
def test_nothing_is_lost_or_gained_below_the_margin(implementation: str) -> None:
    for gamma in (0.0, 0.5, 4.0):
        z = torch.tensor([-torch.inf, -90.0, -30.0, -2.95, -2.94], requires_grad=True)  # sigmoid(-2.944) = 0.05
        value = poly_binary_cross_entropy_with_logits(
            z,
            torch.zeros(5),
            polynomial=TwoSided(focal(0.0), Polynomial((1.0,), gamma), margin=0.05),
            reduction="none",
            implementation=implementation,
        )
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value[:4].tolist() == gradient[:4].tolist() == [0.0] * 4
        assert value[4] > 0
        assert gradient[4] > 0


@every_implementation
def test_where_the_margin_leaves_a_little_the_gradient_is_finite(implementation: str) -> None:
    z = torch.linspace(-2.96, -2.93, 501, requires_grad=True)
    for gamma in (0.1, 0.5, 1.5):
        loss = TwoSided(focal(0.0), Polynomial((-0.5, 1.0), gamma), margin=0.05)
        value = poly_binary_cross_entropy_with_logits(
            z, torch.zeros(501), polynomial=loss, reduction="none", implementation=implementation
        )
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert gradient.isfinite().all()
        assert (gradient >= 0).all()


@every_implementation
def test_a_pair_is_a_two_sided_loss_and_a_pair_of_one_is_that_one(implementation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(9, 11, generator=generator), torch.rand(9, 11, generator=generator)

    def of(polynomial: Any, target: Tensor = y) -> Tensor:
        return poly_binary_cross_entropy_with_logits(z, target, polynomial=polynomial, implementation=implementation)

    assert torch.equal(of((poly1(2.0), focal(2.0))), of(TwoSided(poly1(2.0), focal(2.0))))
    for target in (y, y.round()):
        assert torch.equal(of((focal(2.0), focal(2.0)), target), of(focal(2.0), target))


PAIRS: dict[str, Any] = {
    "asymmetric()": asymmetric(),
    "asymmetric_polynomial(gamma_neg=0.5)": asymmetric_polynomial(0.5),
    "a pair": (poly1(2.0), focal(0.5)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_jax_has_the_same_numbers(name: str) -> None:
    logits = np.linspace(-6.0, 6.0, 49)
    for label in (0.0, 1.0, 0.25):
        labels = np.full_like(logits, label)
        z = torch.tensor(logits, requires_grad=True)
        right = poly_binary_cross_entropy_with_logits(
            z, torch.tensor(labels), alpha=0.3, polynomial=PAIRS[name], reduction="none"
        )
        (by_z,) = torch.autograd.grad(right.sum(), z)
        loss = partial(sigmoid_poly_cross_entropy, labels=labels, alpha=0.3, polynomial=PAIRS[name])
        with jax.enable_x64(True):
            found, pull = jax.vjp(loss, jnp.asarray(logits))
            np.testing.assert_allclose(found, right.detach().numpy(), rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(pull(jnp.ones(49))[0], by_z.numpy(), rtol=1e-11, atol=1e-14)


def test_jax_has_finite_derivatives_below_the_margin() -> None:
    below = jnp.linspace(-30.0, -2.95, 20)
    for derivative in (jax.grad, jax.hessian):
        of = derivative(lambda z: sigmoid_poly_cross_entropy(z, 0.0 * z, polynomial=asymmetric(0.5)).sum())
        assert (of(below) == 0).all()


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "text as margin": (lambda: asymmetric(margin="0.1"), TypeError, "margin must be a number; got '0.1'"),  # type: ignore[arg-type]
    "truth as margin": (lambda: asymmetric(margin=True), TypeError, "margin must be a number; got True"),
    "alpha of more elements": (
        lambda: poly_binary_cross_entropy_with_logits(torch.zeros(4), torch.zeros(4), alpha=torch.full((3, 4), 0.5)),
        ValueError,
        "alpha must be real and broadcast to input, of shape (4,); got torch.float32 of shape (3, 4)",
    ),
    "an exponent that would not be learned": (
        lambda: AsymmetricLoss(gamma_neg=torch.nn.Parameter(torch.tensor(4.0))),
        TypeError,
        "AsymmetricLoss is made of numbers; got Parameter",
    ),
    "a name of the constructor": (
        lambda: setattr(AsymmetricLoss(), "clip", 0.1),
        AttributeError,
        "clip = 0.1 would have no effect",
    ),
    "margin of 1": (
        lambda: TwoSided(poly1(), poly1(), 1.0),
        ValueError,
        "margin must be a probability below 1; got 1.0",
    ),
    "margin below 0": (lambda: asymmetric(margin=-0.1), ValueError, "margin must be at least 0; got -0.1"),
    "margin of nan": (lambda: asymmetric(margin=float("nan")), ValueError, "margin must be finite; got nan"),
    "a tensor as margin": (
        lambda: asymmetric(margin=torch.tensor(0.1)),  # type: ignore[arg-type]
        TypeError,
        "margin must be a number; got tensor",
    ),
    "a number as a side": (lambda: TwoSided(2.0, poly1()), TypeError, "positive must be a"),  # type: ignore[arg-type]
    "gamma below 0": (lambda: asymmetric(-1.0), ValueError, "gamma_neg must be at least 0; got -1.0"),
    "three": (
        lambda: poly_binary_cross_entropy_with_logits(
            torch.zeros(2),
            torch.zeros(2),
            polynomial=(poly1(), poly1(), poly1()),  # type: ignore[arg-type]
        ),
        TypeError,
        "polynomial must be a polylosses.Polynomial, or a pair of these, of positives and negatives; got (Poly",
    ),
    "a pair of numbers": (
        lambda: PolyBCEWithLogitsLoss(polynomial=(1.0, 2.0)),  # type: ignore[arg-type]
        TypeError,
        "positive must be a polylosses.Polynomial, such as polylosses.focal(4.0); got 1.0",
    ),
    "epsilon too": (
        lambda: PolyBCEWithLogitsLoss(epsilon=2.0, polynomial=asymmetric()),
        ValueError,
        "give either polynomial or epsilon and gamma, not both",
    ),
    "a pair for softmax": (
        lambda: poly_cross_entropy(torch.zeros(1, 3), torch.zeros(1).long(), polynomial=asymmetric()),  # type: ignore[arg-type]
        TypeError,
        "polynomial must be a polylosses.Polynomial",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), WRONG.values(), ids=WRONG)
def test_errors_repeat_what_was_typed(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def test_alpha_on_the_logarithm_moves_the_bound_of_each_side() -> None:
    z, y = torch.zeros(2), torch.ones(2)
    pair = (poly1(-0.3), poly1(-0.3))
    with pytest.warns(UserWarning, match=r"below the bound -0\.25") as caught:
        poly_binary_cross_entropy_with_logits(z, y, polynomial=pair, alpha=0.25, alpha_on_epsilon=False)
    assert len(caught) == 1  # not for negatives, whose bound is -0.75


def test_modules_have_the_names_of_the_authors_code_and_can_be_changed() -> None:
    generator = torch.Generator().manual_seed(2)
    z, y = torch.randn(5, 6, generator=generator), torch.rand(5, 6, generator=generator).round()
    for module, loss in (
        (AsymmetricLoss(), asymmetric()),
        (AsymmetricLoss(gamma_neg=2, gamma_pos=0, clip=0.1, reduction="sum"), asymmetric(2, 0, 0.1)),
        (AsymmetricPolynomialLoss(), asymmetric_polynomial()),
        (AsymmetricPolynomialLoss(2, 1, 0.0, weight=torch.ones(6)), asymmetric_polynomial(2, 1, 0.0)),
    ):
        right = poly_binary_cross_entropy_with_logits(z, y, polynomial=loss, reduction=module.reduction)
        assert torch.equal(module(z, y), right)
        assert module.polynomial == loss
        assert f"polynomial={loss}" in repr(module)
        module.polynomial = (poly1(1.0), poly1(2.0))
        with pytest.raises(TypeError, match="positive must be"):
            module.polynomial = (1.0, 2.0)
        assert module(z, y) != right


# The derivative by a coefficient is the loss of that power alone, so that kernels serve learned coefficients, too.
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid of class ids", "smoothing", "probabilities"])
@each_kernel
def test_learned_coefficients(implementation: str, loss: str, reduction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    z32, y = torch.randn(6, 9, generator=generator), torch.rand(6, 9, generator=generator)
    ids = torch.arange(6)
    results = []
    for dtype, which in ((torch.float64, "plain"), (torch.float32, implementation)):
        z = z32.to(dtype).requires_grad_()
        learned = torch.tensor([0.5, -0.25], dtype=dtype, requires_grad=True)
        log_weight = torch.tensor(1.5, dtype=dtype, requires_grad=True)
        options: dict[str, Any] = {"reduction": reduction, "implementation": which}
        options["polynomial"] = Polynomial((learned[0], 2.0, learned[1]), 1.5, log_weight)
        if loss == "sigmoid":
            value = poly_binary_cross_entropy_with_logits(z, y.to(dtype), y.to(dtype), alpha=0.25, **options)
        elif loss == "sigmoid of class ids":
            value = poly_binary_cross_entropy_with_logits(z, ids, **options)
        elif loss == "smoothing":
            value = poly_cross_entropy(z, ids, label_smoothing=0.1, ignore_index=2, **options)
        else:
            value = poly_cross_entropy(z, y.to(dtype), **options)
        grad_output = torch.linspace(0.5, 2, value.numel()).reshape(value.shape).to(dtype)
        inputs = (z, learned, log_weight)
        first = torch.autograd.grad(value, inputs, grad_output, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs)
        results.append([x.detach() for x in (value, *first, *second)])
        assert value.dtype == dtype
    for right, found in zip(*results, strict=True):
        same(found, right, 3e-5)


@needs_native
@pytest.mark.parametrize("loss", [poly_cross_entropy, poly_binary_cross_entropy_with_logits])
def test_a_scheduled_coefficient_is_a_number(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = torch.randn(6, 9, generator=torch.Generator().manual_seed(4)), torch.arange(6)
    schedule = torch.tensor(2.0)
    for given in (schedule, torch.nn.Parameter(schedule)):
        with torch.set_grad_enabled(given is schedule):
            assert torch.equal(loss(z, y, epsilon=given), loss(z, y, epsilon=2.0))
            found = polylosses.torch.implementation(loss, z, y, epsilon=given, gamma=torch.tensor(2.0))
            assert found.name == "native"
    # A negative exponent and infinite numbers are what they are on the plain path.
    for options, scale in (({"gamma": torch.tensor(-3.0)}, 60), ({"epsilon": torch.tensor(torch.inf)}, 1)):
        right = loss(scale * z, y, implementation="plain", **options)
        torch.testing.assert_close(loss(scale * z, y, **options), right, equal_nan=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@needs_native
def test_compiled_with_both_sides_and_weights(reduction: str) -> None:
    torch._dynamo.reset()
    z, y = torch.randn(8, 9, generator=torch.Generator().manual_seed(5)), torch.eye(8, 9)
    epsilon = torch.tensor(0.5, requires_grad=True)
    for loss in (
        PolyBCEWithLogitsLoss(torch.rand(8, 1), pos_weight=torch.rand(9), polynomial=asymmetric(), reduction=reduction),
        PolyBCEWithLogitsLoss(alpha=torch.rand(9), epsilon=torch.nn.Parameter(epsilon), reduction=reduction),
    ):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        x, again = z.clone().requires_grad_(), z.clone().requires_grad_()
        found, right = compiled(x, y), loss(again, y)
        torch.testing.assert_close(found, right)
        torch.testing.assert_close(gradients(found, x)[0], gradients(right, again)[0])


def test_learned_coefficients_keep_the_digits_of_numbers() -> None:
    """Where terms cancel: as in the sum of one loss for each term, in bfloat16 or near p = 1."""
    generator = torch.Generator().manual_seed(7)
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.cat([4 * torch.randn(30, 20, generator=generator), torch.linspace(5, 14, 20)[None]]).to(dtype)
        y = (z > 0).to(dtype)
        soft = torch.nn.functional.one_hot(z.argmax(1), 20).to(dtype)
        for loss, target in ((poly_binary_cross_entropy_with_logits, y), (poly_cross_entropy, soft)):
            results = []
            for epsilon in ((-1.0, -0.5), torch.tensor([-1.0, -0.5], requires_grad=True)):
                x = z.clone().requires_grad_()
                value = loss(x, target, epsilon=epsilon, reduction="none")
                results.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
            for right, found in zip(*results, strict=True):
                assert torch.equal(found, right)


def test_small_margins_and_logits_that_stand_for_infinity() -> None:
    least = torch.finfo(torch.float32).min
    for which, dtype in (("plain", torch.float64), (None, torch.float32)):
        z = torch.tensor([10.0, 20.0, 100.0], dtype=dtype, requires_grad=True)
        for margin in (1e-9, 1e-4):
            value = poly_binary_cross_entropy_with_logits(
                z, torch.zeros(3, dtype=dtype), polynomial=TwoSided(poly1(1.0), poly1(1.0), margin), reduction="none",
                implementation=which,
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(value.sum(), z)
            with mp.workdps(50):
                for logit, found, slope in zip(z.tolist(), value.tolist(), gradient.tolist(), strict=True):

                    def of(s: Any, margin: float = margin) -> Any:
                        p = 1 / (1 + mp.exp(-s))
                        return -mp.log(1 - (p - margin)) + p - margin

                    assert found == pytest.approx(float(of(mp.mpf(logit))), rel=1e-5)
                    assert slope == pytest.approx(float(mp.diff(of, mp.mpf(logit))), rel=1e-5, abs=1e-30)
        found = poly_binary_cross_entropy_with_logits(
            torch.tensor([least, 1.0], dtype=dtype), torch.tensor([0.0, 0.5], dtype=dtype),
            polynomial=Polynomial((1.0,), 0.0, 2.0), reduction="none", implementation=which,
        )  # fmt: skip
        assert found.tolist() == pytest.approx([0.0, 2.126523], rel=1e-5)


def test_no_elements() -> None:
    z, pos_weight = torch.rand(3, 4, 0, requires_grad=True), torch.ones(4, 1)
    for reduction, right in (("sum", 0.0), ("mean", torch.nan)):
        found = poly_binary_cross_entropy_with_logits(z, z.detach(), pos_weight=pos_weight, reduction=reduction)
        assert found.item() == pytest.approx(right, nan_ok=True)
        assert torch.autograd.grad(found, z)[0].shape == z.shape


def test_float64_targets_are_compared_as_they_are() -> None:
    z, y = torch.tensor([1.0, 2.0]), torch.tensor([1 - 1e-9, 0.5], dtype=torch.float64)
    found = poly_binary_cross_entropy_with_logits(z, y, ignore_index=1, reduction="none")
    assert found.tolist() == pytest.approx([0.582203, 1.626928], rel=1e-6)


def test_every_pair_of_factors_and_layouts_is_read_where_it_is() -> None:
    """Against factors of the logits' own shape, which broadcast nothing."""
    generator = torch.Generator().manual_seed(6)
    for shape in ((3, 4), (40, 300), (2, 3, 5, 30), (2, 3, 40, 16), (2, 3, 2, 3, 4), (3, 2100), (1, 5), (7, 1)):
        logits = torch.randn(shape, generator=generator)
        memory = [logits, logits.to(memory_format=torch.channels_last)] if len(shape) == 4 else [logits]
        for z, mask in product(memory, product([False, True], repeat=len(shape))):
            weight = torch.rand([n if keep else 1 for n, keep in zip(shape, mask, strict=True)], generator=generator)
            if len(shape) == 4:
                weight = weight.to(memory_format=torch.channels_last)
            y = torch.rand(shape, generator=generator).round()
            for options in ({"weight": weight}, {"pos_weight": weight}, {"alpha": weight}):
                whole = {key: factor.expand(shape).contiguous() for key, factor in options.items()}
                found = poly_binary_cross_entropy_with_logits(z, y, reduction="none", **options)  # type: ignore[arg-type]
                right = poly_binary_cross_entropy_with_logits(
                    z.contiguous(),
                    y,
                    reduction="none",
                    implementation="plain",
                    **whole,  # type: ignore[arg-type]
                )
                torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
