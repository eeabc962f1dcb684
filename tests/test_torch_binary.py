"""Laws of ``poly_binary_cross_entropy_with_logits`` over the whole product of losses, options and dtypes.

Every test goes through all cells of :data:`cases.BINARY_CELLS`; a failure names the cells and what differs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
import reference
from cases import BINARY_CELLS, LOSSES, Array, BinaryCell, binary_arrays
from polylosses import Polynomial
from polylosses.torch import (
    Poly1FocalLoss,
    PolyBCEWithLogitsLoss,
    poly_binary_cross_entropy_with_logits,
    poly_cross_entropy,
    poly_sigmoid,
    poly_softmax,
)
from reference import Expected
from test_torch_cross_entropy import FULL, LOW, Found, compare, report, rounded_once, spacing

INF = float("inf")
PLAIN = polylosses.cross_entropy()


def given(cell: BinaryCell, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Logits, target and torch's own options."""
    numbers = binary_arrays(cell)
    dense = cell.target != "class ids"
    logits = torch.tensor(numbers.logits, dtype=dtype, requires_grad=True)
    target = torch.tensor(numbers.target, dtype=dtype if dense else torch.long, requires_grad=dense)
    options: dict[str, Any] = {"reduction": cell.reduction}
    if cell.weighted:
        options["weight"] = torch.tensor(numbers.weight, dtype=dtype)
        options["pos_weight"] = torch.tensor(numbers.pos_weight, dtype=dtype)
    return logits, target, options


def run(function: Callable[..., Tensor], cell: BinaryCell, dtype: torch.dtype, **chosen: Any) -> Found:
    logits, target, options = given(cell, dtype)
    value = function(logits, target, **options, **chosen)
    upstream = torch.tensor(binary_arrays(cell).upstream, dtype=value.dtype) if cell.reduction == "none" else None
    value.backward(upstream)  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return Found(value.detach(), logits.grad, target.grad)


def run_ours(cell: BinaryCell, dtype: torch.dtype, **chosen: Any) -> Found:
    chosen |= {"alpha": cell.alpha, "alpha_on_epsilon": cell.alpha_on_epsilon, "ignore_index": cell.ignore_index}
    return run(poly_binary_cross_entropy_with_logits, cell, dtype, **chosen)


@cache
def expected(loss: Polynomial, cell: BinaryCell) -> Expected:
    numbers = binary_arrays(cell)
    right = reference.binary_cross_entropy(
        loss,
        numbers.logits,
        numbers.target,
        numbers.weight,
        numbers.pos_weight,
        alpha=cell.alpha,
        alpha_on_epsilon=cell.alpha_on_epsilon,
        ignore_index=cell.ignore_index,
        reduction=cell.reduction,
        upstream=numbers.upstream,
    )
    if cell.target == "class ids":
        return right
    # What is ignored has no gradient.
    kept = np.ones(()) if cell.ignore_index is None else numbers.target != cell.ignore_index
    return replace(right, target_gradient=kept * right.target_gradient)


@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm moves the bound
@pytest.mark.parametrize("dtype", FULL.values(), ids=FULL)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradients_are_the_oracles(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(
                run_ours(cell, dtype, polynomial=loss), expected(loss, cell), lambda _, scale: spacing(dtype) * scale
            )
            for cell in BINARY_CELLS
        }
    )


@pytest.mark.filterwarnings("ignore:epsilon = .* below the bound")  # alpha on the logarithm moves the bound
@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
@pytest.mark.parametrize("name", ["cross_entropy", "poly1", "focal(0.5)", "poly1_focal(-1, 0.5)", "poly_n of degree 8"])
def test_low_precision_is_the_oracle_rounded_once(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    report(
        {
            str(cell): compare(run_ours(cell, dtype, polynomial=loss), expected(loss, cell), rounded_once(dtype))
            for cell in BINARY_CELLS
        }
    )


def test_the_bound_of_epsilon_moves_with_alpha_on_the_logarithm() -> None:
    z, y = torch.zeros(2), torch.ones(2)
    poly_binary_cross_entropy_with_logits(z, y, alpha=0.25, epsilon=-1.0)
    with pytest.warns(UserWarning, match=r"epsilon = -1 .* below the bound -0\.[27]5"):  # either side
        poly_binary_cross_entropy_with_logits(z, y, alpha=0.25, alpha_on_epsilon=False, epsilon=-1.0)


@pytest.mark.parametrize("dtype", (FULL | LOW).values(), ids=FULL | LOW)
def test_with_epsilon_0_it_is_torchs(dtype: torch.dtype) -> None:
    """Torch's in float64, since the numbers of a cell are exact in every dtype: torch rounds more often than we do."""
    within = rounded_once(dtype) if dtype in LOW.values() else lambda _, scale: spacing(dtype) * scale
    failures = {}
    for cell in BINARY_CELLS:
        if cell.target == "class ids" or cell.alpha is not None or cell.ignore_index is not None:
            continue
        found = run_ours(cell, dtype, epsilon=0.0)
        torchs = run(F.binary_cross_entropy_with_logits, cell, torch.float64)
        assert torchs.target_gradient is not None
        right = replace(
            expected(PLAIN, cell),
            value=torchs.value.numpy(),
            gradient=torchs.gradient.numpy(),
            target_gradient=torchs.target_gradient.numpy(),
        )
        # Torch's gradient is sigmoid(z) - y, right to a spacing of 1, times factors of at most 4 * 4 * 2.
        failures[str(cell)] = compare(
            found, right, lambda right, scale: within(right, scale) + 32 * spacing(torch.float64)
        )
    report(failures)


def test_class_ids_are_their_one_hot_rows() -> None:
    failures = {}
    for name in ("poly1", "focal(0.5)", "everything"):
        for cell in BINARY_CELLS:
            if cell.target != "class ids" or cell.ignore_index is not None:
                continue
            logits, target, options = given(cell, torch.float64)
            axis = 0 if logits.dim() == 1 else 1
            one_hot = F.one_hot(target, logits.shape[axis]).movedim(-1, axis).double()
            options |= {"alpha": cell.alpha, "alpha_on_epsilon": cell.alpha_on_epsilon, "polynomial": LOSSES[name]}
            right = poly_binary_cross_entropy_with_logits(logits, one_hot, **options).detach().numpy()
            for ids in (target, target.int(), target.to(torch.uint8)):
                found = poly_binary_cross_entropy_with_logits(logits, ids, **options).detach().numpy()
                scale = expected(LOSSES[name], cell).value_scale
                off = np.abs(found - right) > 2 * spacing(torch.float64) * scale
                failures[f"{name}, {cell}, {ids.dtype}"] = ["not the same"] if off.any() else []
    report(failures)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    "autocast", [None, torch.bfloat16, torch.float16], ids=["plain", "autocast bf16", "autocast f16"]
)
def test_dtype_of_the_result_is_torchs(autocast: torch.dtype | None) -> None:
    differing = []
    for dtype in DTYPES:
        for target_dtype in DTYPES:
            for factor_dtype in (None, *DTYPES):
                logits = torch.tensor([1.0, 2.0], dtype=dtype)
                target = torch.tensor([1.0, 0.0], dtype=target_dtype)
                factor = None if factor_dtype is None else torch.ones(2, dtype=factor_dtype)
                with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                    for option in ("weight", "pos_weight"):
                        options: dict[str, Any] = {option: factor}
                        found = poly_binary_cross_entropy_with_logits(logits, target, **options).dtype
                        torchs = F.binary_cross_entropy_with_logits(logits, target, **options).dtype
                        if found != torchs:
                            differing.append(f"{dtype}, {target_dtype}, {factor_dtype}: {found}, not {torchs}")
    assert not differing, "\n".join(differing)


EXTREME = [1e4, -1e4, 0.0, 8.0, 15.0, 17.0, 18.0, 37.0, -37.0, 80.0, 88.0, 89.0, 104.0, -104.0, 710.0, 746.0, INF, -INF]


@pytest.mark.parametrize("dtype", FULL.values(), ids=FULL)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits(name: str, dtype: torch.dtype) -> None:
    loss, limits = LOSSES[name], torch.finfo(dtype)
    # torch's sigmoid is 0 where it would be below the smallest normal number.
    lost = limits.tiny * (1 + sum(abs(c) for c in loss.coefficients))
    wrong = []
    for logit in EXTREME:
        for label in (0.0, 1.0, 0.5):
            if abs(logit) == INF and label != float(logit > 0):
                continue  # an impossible label: below
            z, y = np.array([logit]), np.array([label])
            # The oracle knows -inf as a masked class; +inf is that of the other side.
            right = (
                reference.binary_cross_entropy(loss, z, y, reduction="sum")
                if abs(logit) < INF
                else Expected(*[np.zeros(1)] * 6)
            )
            logits = torch.tensor(z, dtype=dtype, requires_grad=True)
            value = poly_binary_cross_entropy_with_logits(
                logits, torch.tensor(y, dtype=dtype), reduction="sum", polynomial=loss
            )
            gradient = torch.autograd.grad(value, logits)[0].numpy()
            off = abs(value.item() - right.value) > limits.eps * right.value_scale + lost
            off_gradient = np.abs(gradient - right.gradient) > limits.eps * right.gradient_scale + lost
            if np.any(off) or np.any(off_gradient) or np.isnan(gradient).any():
                wrong.append(f"{logit}, {label}: {value}, {gradient}, not {right.value}, {right.gradient}")
    assert not wrong, "\n".join(wrong[:5])


@pytest.mark.parametrize("name", LOSSES)
def test_an_impossible_label_costs_what_it_should_and_its_gradient_is_finite(name: str) -> None:
    loss = LOSSES[name]
    logits = torch.tensor([-INF, INF], dtype=torch.float64, requires_grad=True)
    value = poly_binary_cross_entropy_with_logits(
        logits, torch.tensor([1.0, 0.0], dtype=torch.float64), reduction="none", polynomial=loss
    )
    assert value.tolist() == pytest.approx([loss.value(-INF, 1.0)] * 2, rel=1e-15)
    assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()


@pytest.mark.parametrize("dense", [False, True], ids=["class ids", "dense"])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_positions_count_nothing(name: str, dense: bool) -> None:
    loss = LOSSES[name]
    z = torch.tensor([[0.0, 1, 2], [1e4, -INF, INF], [3, 1, 0], [float("nan"), 0, 1]], dtype=torch.float64)
    kept = [0, 2]
    for ignore_index in (-100, 255, 1, 0):
        free = 2 if ignore_index != 2 else 0
        ids = torch.tensor([free, ignore_index, free, ignore_index])
        target = ids[:, None].expand(4, 3).double() if dense else ids
        for reduction in ("none", "mean", "sum"):
            chosen: dict[str, Any] = {"ignore_index": ignore_index, "reduction": reduction, "polynomial": loss}
            logits = z.clone().requires_grad_()
            value = poly_binary_cross_entropy_with_logits(logits, target, **chosen)
            gradient = torch.autograd.grad(value.sum(), logits)[0]
            few = z[kept].clone().requires_grad_()
            right = poly_binary_cross_entropy_with_logits(few, target[kept], **chosen)
            if reduction == "none":
                assert (value[[1, 3]] == 0).all()
                value = value[kept]
            torch.testing.assert_close(value, right, rtol=1e-14, atol=0)
            torch.testing.assert_close(gradient[kept], torch.autograd.grad(right.sum(), few)[0], rtol=1e-14, atol=0)
            assert (gradient[[1, 3]] == 0).all()
    none_kept = torch.full_like(target, 255)
    results = {
        reduction: poly_binary_cross_entropy_with_logits(
            z, none_kept, ignore_index=255, reduction=reduction, polynomial=loss
        )
        for reduction in ("none", "mean", "sum")
    }
    assert (results["none"] == 0).all()
    assert results["sum"] == 0
    assert torch.isnan(results["mean"])


@pytest.mark.parametrize("name", LOSSES)
def test_a_flip_of_signs_and_labels_changes_nothing(name: str) -> None:
    logits, target, _ = given(next(c for c in BINARY_CELLS if c.target == "soft" and len(c.shape) == 3), torch.float64)
    chosen: dict[str, Any] = {"polynomial": LOSSES[name], "reduction": "none"}
    found = poly_binary_cross_entropy_with_logits(-logits, 1 - target, alpha=0.75, **chosen)
    right = poly_binary_cross_entropy_with_logits(logits, target, alpha=0.25, **chosen)
    torch.testing.assert_close(found, right, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_a_softmax_of_two_classes(name: str) -> None:
    logits = torch.linspace(-6, 6, 41, dtype=torch.float64)
    two = torch.stack([logits, torch.zeros_like(logits)], dim=1)
    chosen: dict[str, Any] = {"polynomial": LOSSES[name], "reduction": "none"}
    for label in (1.0, 0.0, 0.25):
        target = torch.full_like(logits, label)
        found = poly_binary_cross_entropy_with_logits(logits, target, **chosen)
        right = poly_cross_entropy(two, torch.stack([target, 1 - target], dim=1), **chosen)
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-13)  # softmax knows q up to a spacing of 1


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3, 0)], ids=str)
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    for reduction in ("none", "mean", "sum"):
        z = torch.zeros(shape, requires_grad=True)
        right = F.binary_cross_entropy_with_logits(z, torch.zeros(shape), reduction=reduction)
        targets = [torch.zeros(shape)]
        if len(shape) > 1:
            targets.append(torch.zeros(shape[:1] + shape[2:], dtype=torch.long))
        for target in targets[: 1 if shape == (2, 0) else 2]:  # without classes there is no class id
            found = poly_binary_cross_entropy_with_logits(z, target, epsilon=2.0, gamma=0.5, reduction=reduction)
            torch.testing.assert_close(found, right, equal_nan=True, rtol=0, atol=0)
            assert torch.autograd.grad(found.sum(), z)[0].shape == shape


@pytest.mark.parametrize("name", LOSSES)
def test_nan_stays_nan(name: str) -> None:
    z = torch.tensor([float("nan"), 1.0], requires_grad=True)
    value = poly_binary_cross_entropy_with_logits(
        z, torch.tensor([1.0, 0.5]), polynomial=LOSSES[name], reduction="none"
    )
    assert torch.isnan(value).tolist() == [True, False]


# The margin is up to where q = sigmoid(-z) is a normal float32 number.
@pytest.mark.parametrize("name", ["poly1(-1)", "focal(0.5)", "poly1_focal(-1, 0.5)"])
def test_small_losses_keep_their_digits(name: str) -> None:
    """The sigmoid knows ``q = sigmoid(-z)`` to its last digit, where ``1 - sigmoid(z)`` is 0 from a margin of 17 on."""
    loss = LOSSES[name]
    for margin in range(0, 81, 4):
        z = torch.tensor(float(margin), requires_grad=True)
        q = reference.row(loss, (float(margin), 0.0)).probability[1]
        loss_of_the_power = poly_binary_cross_entropy_with_logits(
            z, torch.tensor(1.0), polynomial=Polynomial((1.0,), loss.gamma, log_weight=0.0)
        )
        assert loss_of_the_power.item() == pytest.approx(q ** (1 + loss.gamma), rel=1e-5)


PLACES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "another shape": ((torch.zeros(3, 2), torch.ones(3)), {}),
    "transposed": ((torch.zeros(3, 2), torch.ones(2, 3)), {}),
    "integer targets of the input's shape": ((torch.zeros(3), torch.ones(3, dtype=torch.long)), {}),
    "bool targets": ((torch.zeros(3), torch.ones(3, dtype=torch.bool)), {}),
    "integer logits": ((torch.zeros(3, dtype=torch.long), torch.ones(3)), {}),
    "complex logits": ((torch.zeros(3, dtype=torch.complex64), torch.ones(3)), {}),
    "reduction avg": ((torch.zeros(3), torch.ones(3)), {"reduction": "avg"}),
    "reduction None": ((torch.zeros(3), torch.ones(3)), {"reduction": None}),
    "weight of another shape": ((torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3)), {}),
    "weight that is larger": ((torch.zeros(3, 2), torch.ones(3, 2), torch.ones(4, 3, 2)), {}),
    "pos_weight of another shape": ((torch.zeros(3, 2), torch.ones(3, 2)), {"pos_weight": torch.ones(3)}),
    "pos_weight that is larger": ((torch.zeros(3, 2), torch.ones(3, 2)), {"pos_weight": torch.ones(4, 3, 2)}),
    "weight as a list": ((torch.zeros(3), torch.ones(3), [1.0] * 3), {}),
    "logits as a list": (([0.0], torch.ones(1)), {}),
    "targets as a list": ((torch.zeros(1), [1.0]), {}),
    "no targets": ((torch.zeros(1), None), {}),
}


@pytest.mark.parametrize("chosen", [{}, {"epsilon": 0.0}, {"gamma": 0.5}], ids=["Poly-1", "epsilon=0", "gamma=0.5"])
@pytest.mark.parametrize(("tensors", "options"), PLACES.values(), ids=PLACES)
def test_what_torch_refuses_is_refused_alike(
    tensors: tuple[Any, ...], options: dict[str, Any], chosen: dict[str, Any]
) -> None:
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        F.binary_cross_entropy_with_logits(*tensors, **options)
    function: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
    with pytest.raises(torchs.type) as ours:
        function(*tensors, **options, **chosen)
    assert ours.type is torchs.type
    assert str(ours.value)


@pytest.mark.parametrize("make", [PolyBCEWithLogitsLoss, Poly1FocalLoss])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "alpha must be between 0 and 1, or None for no balance; got -1"),
        ({"alpha": 1.5}, ValueError, "got 1.5"),
        ({"alpha": "0.25"}, TypeError, "alpha must be a number between 0 and 1, a tensor, or None; got '0.25'"),
        ({"alpha": True}, TypeError, "got True"),
        ({"alpha": float("nan")}, ValueError, "got nan"),
        ({"reduction": "avg"}, ValueError, "'avg'"),
        ({"gamma": -1.0}, ValueError, "gamma must be at least 0; got -1.0"),
        ({"epsilon": "2"}, TypeError, "got '2'"),
    ],
    ids=str,
)
def test_options_without_a_meaning(
    make: Callable[..., Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)
    function: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
    with pytest.raises(error, match=message):
        function(torch.zeros(2), torch.ones(2), **options)


@pytest.mark.parametrize("wrong", [float("nan"), 1.0, "1"], ids=repr)
def test_an_ignore_index_that_is_none(wrong: Any) -> None:
    with pytest.raises(TypeError, match="ignore_index must be an integer"):
        poly_binary_cross_entropy_with_logits(torch.zeros(2), torch.ones(2), ignore_index=wrong)


def test_class_ids_that_do_not_fit() -> None:
    function: Callable[..., Tensor] = poly_binary_cross_entropy_with_logits
    with pytest.raises(ValueError, match=r"input of shape \(3, 5, 2\) must have shape \(3, 2\); got \(3, 5\)"):
        function(torch.zeros(3, 5, 2), torch.zeros(3, 5, dtype=torch.long))
    for wrong in (5, -1, -100):
        with pytest.raises(RuntimeError, match=str(wrong)):
            function(torch.zeros(2, 5), torch.tensor([0, wrong]))
    with pytest.raises(RuntimeError, match="size of tensor"):
        function(torch.zeros(2, 5), torch.tensor([0, 1]), pos_weight=torch.ones(4))


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "nothing"])
def test_poly_sigmoid_is_poly_softmax_of_two_classes(name: str) -> None:
    logits = torch.linspace(-12, 12, 49, dtype=torch.float64)
    two = torch.stack([logits, torch.zeros_like(logits)], dim=1)
    found = poly_sigmoid(logits, polynomial=LOSSES[name])
    torch.testing.assert_close(found, poly_softmax(two, polynomial=LOSSES[name])[:, 0], rtol=1e-6, atol=1e-9)


# What minimizes share * L(p) + (1 - share) * L(1 - p); where L' is bounded, only even shares have a minimum inside.
@pytest.mark.parametrize(
    "name", ["cross_entropy", "poly1", "focal", "poly1_focal", "poly_n", "everything", "poly1(-1)"]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.875])
def test_poly_sigmoid_is_the_share_that_the_logit_is_optimal_for(name: str, share: float) -> None:
    target = torch.tensor(share, dtype=torch.float64)

    def loss(logit: Tensor) -> Tensor:
        return poly_binary_cross_entropy_with_logits(logit, target, polynomial=LOSSES[name])

    slope = torch.func.grad(loss)

    low, high = torch.tensor(-30.0, dtype=torch.float64), torch.tensor(30.0, dtype=torch.float64)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    assert poly_sigmoid(low, polynomial=LOSSES[name]).item() == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("dtype", (FULL | LOW).values(), ids=FULL | LOW)
def test_poly_sigmoid_at_the_edges(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 1e4, -1e4, 17.0, -17.0, 89.0, -104.0, INF, -INF], dtype=dtype)
    for name, loss in LOSSES.items():
        found = poly_sigmoid(logits, polynomial=loss)
        assert found.dtype == dtype
        assert ((found >= 0) & (found <= 1)).all(), name
        assert found[7:].tolist() == [1, 0], name
        assert (found[logits.argsort()].double().diff() >= 0).all(), name
    torch.testing.assert_close(poly_sigmoid(logits, epsilon=0.0), logits.sigmoid(), rtol=1e2 * spacing(dtype), atol=0)


def test_modules_pass_every_option_on() -> None:
    failures = {}
    for cell in BINARY_CELLS:
        logits, target, options = given(cell, torch.float64)
        options |= {"alpha": cell.alpha, "alpha_on_epsilon": cell.alpha_on_epsilon, "ignore_index": cell.ignore_index}
        wrong = []
        for chosen in ({"epsilon": 2.0, "gamma": 0.5}, {"polynomial": LOSSES["everything"]}, {"epsilon": (1.0, 2.0)}):
            right = poly_binary_cross_entropy_with_logits(logits, target, **options, **chosen)
            if not torch.equal(PolyBCEWithLogitsLoss(**options, **chosen)(logits, target), right):
                wrong.append(f"{chosen}")
        right = poly_binary_cross_entropy_with_logits(logits, target, **options, epsilon=3.0, gamma=1.0)
        if not torch.equal(Poly1FocalLoss(3.0, 1.0, **options)(logits, target), right):
            wrong.append("Poly1FocalLoss")
        failures[str(cell)] = wrong
    report(failures)


def the_papers_listing(logits: Array, target: Array, epsilon: float, gamma: float, alpha: float) -> Array:
    """Poly-1 focal loss with alpha on both terms, from its formula."""
    p = 1 / (1 + np.exp(-logits))
    p_of_label = target * p + (1 - target) * (1 - p)
    balance = target * alpha + (1 - target) * (1 - alpha)
    focal = (1 - p_of_label) ** gamma * -np.log(p_of_label)
    return np.asarray(balance * (focal + epsilon * (1 - p_of_label) ** (gamma + 1)))


def test_the_defaults_of_poly1_focal_loss_are_the_known_ones() -> None:
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(6, 5)), random.integers(0, 2, (6, 5)).astype(float)
    found = Poly1FocalLoss()(torch.tensor(logits), torch.tensor(target))
    assert found.item() == pytest.approx(the_papers_listing(logits, target, 1.0, 2.0, 0.25).mean(), rel=1e-13)
