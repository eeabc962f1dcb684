"""``poly_binary_cross_entropy_with_logits`` against torch's own function: numbers, dtypes, errors, modules."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses
from cases import BINARY_CELLS, LOSSES, Array, BinaryCell, binary_arrays, covering
from found import FULL, LOW, SPACING, Found, compare, report, rounded_once
from on_torch import found_by
from polylosses.torch import Poly1FocalLoss, PolyBCEWithLogitsLoss, poly_binary_cross_entropy_with_logits, poly_sigmoid
from test_sigmoid_laws import expected

INF = float("inf")
PLAIN = polylosses.cross_entropy()


def given(cell: BinaryCell, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The logits, the target and the options that torch's own function has."""
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
    grad_output = binary_arrays(cell).grad_output if cell.reduction == "none" else None
    return found_by(function(logits, target, **options, **chosen), logits, target, grad_output)


def test_the_bound_of_epsilon_moves_with_alpha_on_the_logarithm() -> None:
    z, y = torch.zeros(2), torch.ones(2)
    poly_binary_cross_entropy_with_logits(z, y, alpha=0.25, epsilon=-1.0)
    with pytest.warns(UserWarning, match=r"epsilon = -1 .* below the bound -0\.[27]5"):  # positives or negatives
        poly_binary_cross_entropy_with_logits(z, y, alpha=0.25, alpha_on_epsilon=False, epsilon=-1.0)


@pytest.mark.parametrize("dtype", FULL + LOW)
def test_with_epsilon_0_it_is_torchs(dtype: str) -> None:
    """Compares with torch in float64, for the same inputs: in low precision, torch rounds more often."""
    within = rounded_once(dtype) if dtype in LOW else lambda _, scale: SPACING[dtype] * scale
    failures = {}
    for cell in BINARY_CELLS:
        if cell.target == "class ids" or cell.alpha is not None or cell.ignore_index is not None:
            continue
        found = run(poly_binary_cross_entropy_with_logits, cell, getattr(torch, dtype), epsilon=0.0)
        torchs = run(F.binary_cross_entropy_with_logits, cell, torch.float64)
        assert torchs.target_gradient is not None
        right = replace(
            expected(PLAIN, cell),
            value=torchs.value,
            gradient=torchs.gradient,
            target_gradient=torchs.target_gradient,
        )
        # Torch's gradient is sigmoid(z) - y, with an error of finfo.eps, times factors of at most 4 * 4 * 2.
        failures[str(cell)] = compare(found, right, lambda right, scale: within(right, scale) + 32 * SPACING["float64"])
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
                off = np.abs(found - right) > 2 * SPACING["float64"] * scale
                failures[f"{name}, {cell}, {ids.dtype}"] = ["not the same"] if off.any() else []
    report(failures)


def test_a_side_without_a_logarithm_is_finite_at_p_0() -> None:
    logits = torch.tensor([[-torch.inf, 1.0], [1.0, torch.inf]])
    ids = torch.tensor([0, 0])
    for alpha in (0.0, torch.tensor(0.0)):
        options: dict[str, Any] = {"alpha": alpha, "alpha_on_epsilon": False, "reduction": "none"}
        for target in (ids, torch.eye(2)[ids]):
            for implementation in ("plain", None):
                z = logits.clone().requires_grad_()
                loss = poly_binary_cross_entropy_with_logits(z, target, **options, implementation=implementation)
                (by_z,) = torch.autograd.grad(loss[0, 0], z)
                assert loss[0, 0] == 1.0  # epsilon (1 - p)
                assert (by_z == 0.0).all()


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


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3, 0)], ids=str)
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    for reduction in ("none", "mean", "sum"):
        z = torch.zeros(shape, requires_grad=True)
        right = F.binary_cross_entropy_with_logits(z, torch.zeros(shape), reduction=reduction)
        targets = [torch.zeros(shape)]
        if len(shape) > 1:
            targets.append(torch.zeros(shape[:1] + shape[2:], dtype=torch.long))
        for target in targets[: 1 if shape == (2, 0) else 2]:  # class ids need at least one class
            found = poly_binary_cross_entropy_with_logits(z, target, epsilon=2.0, gamma=0.5, reduction=reduction)
            torch.testing.assert_close(found, right, equal_nan=True, rtol=0, atol=0)
            assert torch.autograd.grad(found.sum(), z)[0].shape == shape


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
    "sparse targets": ((torch.zeros(3), torch.ones(3).to_sparse()), {}),
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


@pytest.mark.parametrize("shape", [(1,), (3, 1), (0, 1), (2, 1, 4)], ids=str)
def test_labels_of_one_class_are_no_class_ids(shape: tuple[int, ...]) -> None:
    logits = torch.full(shape, -5.0)
    labels = torch.zeros(shape[:1] + shape[2:] if len(shape) > 1 else (), dtype=torch.long)
    squeezed = logits.squeeze(1 if len(shape) > 1 else 0)
    for ids in (labels, labels.int(), labels.to(torch.uint8)):
        with pytest.raises(
            ValueError, match=re.escape(f"input.squeeze({int(len(shape) > 1)}), target.to(input.dtype)")
        ):
            poly_binary_cross_entropy_with_logits(logits, ids)
        with pytest.raises(ValueError, match=re.escape(f"an input of shape {shape} has one class")):
            PolyBCEWithLogitsLoss(ignore_index=0)(logits, ids)
    # The fix that the error suggests: for a confident negative, the loss is nearly 0.
    assert (poly_binary_cross_entropy_with_logits(squeezed, labels.to(logits.dtype), reduction="none") < 0.02).all()


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_an_ignored_class_id_is_compared_exactly(dtype: torch.dtype, implementation: str | None) -> None:
    """No wraparound in the target's dtype: -100 would be 156 in uint8."""
    ids = [0, 100, 127, 3] if dtype == torch.int8 else [0, 100, 156, 3]
    logits = torch.linspace(-3, 3, 4 * 200).reshape(4, 200)
    per_row = poly_binary_cross_entropy_with_logits(logits, torch.tensor(ids), reduction="none", implementation="plain")
    for ignored in (-100, -1, *ids, ids[2] + 2**8, ids[2] - 2**8, ids[2] + 2**16, ids[2] + 2**32, ids[2] + 2**64):
        options: dict[str, Any] = {"ignore_index": ignored, "implementation": implementation}
        kept = torch.tensor([y != ignored for y in ids])
        found = poly_binary_cross_entropy_with_logits(logits, torch.tensor(ids, dtype=dtype), **options)
        torch.testing.assert_close(found, per_row[kept].mean())


@pytest.mark.parametrize("implementation", ["plain", None])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_ignored_number_is_rounded_as_the_targets_were(dtype: torch.dtype, implementation: str | None) -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=dtype, requires_grad=True)
    for ignored in (-100, 255, 257, 999, -1001, 2049, 2**24 + 1, -(2**24 + 3), 100_000, 2**53 + 1, 2**70):
        labels = torch.tensor([1.0, 0.25, 0.0, ignored], dtype=torch.float64).to(dtype)
        options: dict[str, Any] = {"implementation": implementation}
        found = poly_binary_cross_entropy_with_logits(logits, labels, ignore_index=ignored, **options)
        right = poly_binary_cross_entropy_with_logits(logits[:3], labels[:3], **options)
        torch.testing.assert_close(found, right, msg=f"{ignored}")
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, right)]
        torch.testing.assert_close(*gradients, msg=f"{ignored}")


@pytest.mark.parametrize("make", [PolyBCEWithLogitsLoss, Poly1FocalLoss])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": -1}, ValueError, "alpha must be between 0 and 1, or None for no balance; got -1"),
        ({"alpha": 1.5}, ValueError, "got 1.5"),
        ({"alpha": "0.25"}, TypeError, "alpha must be a number between 0 and 1, a tensor, or None; got '0.25'"),
        ({"alpha": True}, TypeError, "got True"),
        ({"alpha": float("nan")}, ValueError, "got nan"),
        ({"alpha": torch.tensor(1.5)}, ValueError, r"alpha must be between 0 and 1.*got tensor\(1.5"),
        ({"alpha": torch.tensor([0.5, -0.1])}, ValueError, r"got tensor\(\[ 0.5"),
        ({"alpha": torch.tensor(float("nan"))}, ValueError, r"got tensor\(nan"),
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_poly_sigmoid_with_epsilon_0_is_sigmoid(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.0, 1e4, -1e4, 17.0, -17.0, 89.0, -104.0, INF, -INF], dtype=dtype)
    found = poly_sigmoid(logits, epsilon=0.0)
    torch.testing.assert_close(found, logits.sigmoid(), rtol=1e2 * torch.finfo(dtype).eps, atol=0)


def test_modules_pass_every_option_on() -> None:
    failures = {}
    for cell in covering(BINARY_CELLS):
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
