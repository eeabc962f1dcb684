"""The CUDA kernels of triton_kernels.py, called with tensors. What they compute is documented in operators.py.

Nothing here waits for the device, so that a CUDA graph can capture it. With ``TRITON_INTERPRET=1`` in the environment
Triton runs kernels on the CPU, slowly: that is how they are tested.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from polylosses.torch.kernels.layout import as_rows, as_rows_like, empty_like_rows, in_order, memory_format
from polylosses.torch.targets import batch_shape

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INSTALLED = importlib.util.find_spec("triton") is not None and TorchVersion(torch.__version__) >= "2.7"

# Logits of a tile: of rows that are read to their end, one long one or several short ones; of rows side by side; of
# sigmoids; and of soft targets. Not timed. More of short rows or of sigmoids took over 100 registers a thread, and
# 2048 of soft targets spilled some (Triton 3.9, for an H100).
_LONG, _SHORT, _BESIDE, _SIGMOIDS, _SOFT = 4096, 512, 2048, 512, 1024

# Targets out of range stop the kernel, as they do in torch's; without `debug` Triton leaves that out.
_OPTIONS = {"debug": True, "sanitize_overflow": False, "enable_fp_fusion": True}


def why_not(logits: Tensor) -> str | None:
    """Why these kernels cannot take the logits, or None."""
    if not _INSTALLED:
        return "it needs the package triton of torch 2.7 or later (triton 3.3)"
    if logits.device.type != "cuda" and not _INTERPRETED:
        return f"it serves CUDA devices, and the logits are on {logits.device}"
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it serves float32, bfloat16 and float16 logits, and these are {logits.dtype}"
    if logits.dim() > 0 and logits.shape[:2][-1] >= 2**30:  # the kernels count them in 32 bits
        return f"it serves fewer than 2^30 classes, and there are {logits.shape[:2][-1]}"
    return None


def softmax_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    numbers: Sequence[float],
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """See :func:`polylosses.torch.kernels.operators.softmax_loss`."""
    weight = None if weight is None else weight.contiguous().resolve_neg()
    row_stats, losses, row_weight = _softmax_statistics(logits, target, weight, ignore_index, numbers)
    if reduction == "none":
        return losses, row_stats
    total = losses.sum(dtype=torch.float64)
    if reduction == "mean":
        scale = 1.0 / row_weight.sum(dtype=torch.float64)
        total *= scale
        row_stats[0] *= scale.float()
    return total.float(), row_stats


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
    """See :func:`polylosses.torch.kernels.operators.softmax_statistics`."""
    row_stats, tail, p = _softmax_statistics(logits, target, None, ignore_index, None)
    return row_stats[1].clone(), tail, p, row_stats


def _softmax_statistics(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, numbers: Sequence[float] | None
) -> tuple[Tensor, Tensor, Tensor]:
    x, target = as_rows(logits), target.contiguous().resolve_neg()
    (((outers, classes, inners), strides),) = _merged(x)
    row_stats = torch.empty((4, *target.shape), dtype=torch.float32, device=x.device)
    losses, row_weight = torch.empty_like(row_stats[0]), torch.empty_like(row_stats[0])
    tile = _tile(classes, inners, strides[1])
    tiles = -(-inners // tile["ROWS"])
    gamma, log_weight, *coefficients = numbers or (0.0, 1.0)
    _launch(
        *("softmax_statistics", outers * tiles, x, target, weight, row_stats, losses, row_weight),
        *(gamma, log_weight, *_powers(coefficients), target.numel(), classes, inners, tiles),
        *(*strides, int(ignore_index)),
        EVALUATED=numbers is not None,
        **tile,
    )
    return row_stats, losses, row_weight


def softmax_gradient(logits: Tensor, target: Tensor, row_stats: Tensor, grad_output: Tensor) -> Tensor:
    """See :func:`polylosses.torch.kernels.operators.softmax_gradient`."""
    x, target = as_rows(logits), target.contiguous().resolve_neg()
    gradient = empty_like_rows(x)
    grad_output = grad_output.contiguous().resolve_neg()
    ((outers, classes, inners), of_logits), (_, of_gradient) = _merged(x, gradient)
    tile = _tile(classes, inners, of_logits[1])
    tiles, class_tiles = -(-inners // tile["ROWS"]), -(-classes // tile["CLASSES"])
    _launch(
        *("softmax_gradient", outers * tiles * class_tiles, x, target, row_stats, grad_output, gradient),
        *(target.numel(), classes, inners, tiles, class_tiles, *of_logits, *of_gradient),
        0 if grad_output.shape != target.shape else 1,
        **tile,
    )
    return gradient.view(logits.shape)


def soft_target_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    numbers: Sequence[float],
    summed: bool,
    powers: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """See :func:`polylosses.torch.kernels.native.soft_target_loss`; each power takes a pass of its own here."""
    x, y, weight, dense = _soft_targets(logits, target, weight)
    ((outers, classes, inners), of_logits), (_, of_target) = _merged(x, y if dense else x)
    row_stats = torch.empty((5, *batch_shape(logits)), dtype=torch.float32, device=x.device)
    losses = torch.empty_like(row_stats[0])
    tile = _tile(classes, inners, of_logits[1], _SOFT)
    tiles = -(-inners // tile["ROWS"])
    _launch(
        *("soft_target_loss", outers * tiles, x, y, weight, row_stats, losses),
        *(*_soft_numbers(label_smoothing, classes, numbers), losses.numel(), classes, inners, tiles),
        *(*of_logits, *of_target, int(ignore_index)),
        DENSE=dense,
        **tile,
    )
    arguments = (logits, target, weight, ignore_index, label_smoothing)
    terms = [soft_target_loss(*arguments, (numbers[0], *_unit(power)), summed)[0] for power in powers]
    return losses.sum(dtype=torch.float64).float() if summed else losses, row_stats, terms


def soft_target_gradient(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    numbers: Sequence[float],
    row_stats: Tensor,
    grad_output: Tensor,
) -> Tensor:
    """See :func:`polylosses.torch.kernels.operators.soft_target_gradient`."""
    x, y, weight, dense = _soft_targets(logits, target, weight)
    gradient = empty_like_rows(x)
    grad_output = grad_output.contiguous().resolve_neg()
    ((outers, classes, inners), of_logits), (_, of_target), (_, of_gradient) = _merged(x, y if dense else x, gradient)
    tile = _tile(classes, inners, of_logits[1], _SOFT)
    tiles, class_tiles = -(-inners // tile["ROWS"]), -(-classes // tile["CLASSES"])
    _launch(
        *("soft_target_gradient", outers * tiles * class_tiles, x, y, weight, row_stats),
        *(grad_output, gradient, *_soft_numbers(label_smoothing, classes, numbers)),
        *(row_stats[0].numel(), classes, inners, tiles, class_tiles, *of_logits, *of_target, *of_gradient),
        0 if grad_output.dim() == 0 else 1,
        DENSE=dense,
        **tile,
    )
    return gradient.view(logits.shape)


def _soft_targets(logits: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """The logits, targets and class weights as the kernels read them, and whether the targets are probabilities."""
    x, dense = as_rows(logits), target.shape == logits.shape
    target = as_rows_like(target, x) if dense else target.contiguous().resolve_neg()
    return x, target, None if weight is None else weight.contiguous().resolve_neg(), dense


def _soft_numbers(label_smoothing: float, classes: int, numbers: Sequence[float]) -> tuple[Any, ...]:
    gamma, log_weight, *coefficients = numbers
    spread = label_smoothing / classes if classes else 0.0
    return 1.0 - label_smoothing, spread, gamma, log_weight, *_powers(coefficients)


def sigmoid_loss(
    logits: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    ignore_index: int | None,
    negatives: Sequence[float],
    positives: Sequence[float],
    margin: float,
    dtype: torch.dtype | None,
    powers: Sequence[int] = (),
) -> tuple[Tensor, Sequence[Tensor]]:
    """See :func:`polylosses.torch.kernels.native.sigmoid_loss`; each power takes a pass of its own here."""

    def of(*sides: Sequence[float], dtype: torch.dtype | None) -> Tensor:
        if dtype is not None:
            return _sigmoids(logits, target, weights, ignore_index, sides, margin, None, "losses", dtype)
        sums = _sigmoids(logits, target, weights, ignore_index, sides, margin, None, "sum")
        return sums.sum(dtype=torch.float64).float()

    terms = []
    for power in powers:
        log_weight, *coefficients = _unit(power)
        sides = ((factor, log_weight, gamma, *coefficients) for factor, _, gamma, *_ in (negatives, positives))
        terms.append(of(*sides, dtype=None if dtype is None else torch.float32))
    return of(negatives, positives, dtype=dtype), terms


def sigmoid_gradient(
    logits: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    ignore_index: int | None,
    negatives: Sequence[float],
    positives: Sequence[float],
    margin: float,
    grad_output: Tensor,
) -> Tensor:
    """See :func:`polylosses.torch.kernels.operators.sigmoid_gradient`."""
    return _sigmoids(logits, target, weights, ignore_index, (negatives, positives), margin, grad_output, "gradient")


def _sigmoids(
    logits: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    ignore_index: int | None,
    sides: Sequence[Sequence[float]],
    margin: float,
    grad_output: Tensor | None,
    what: str,
    dtype: torch.dtype | None = None,
) -> Tensor:
    logits = in_order(logits)
    dense = target.shape == logits.shape
    order = memory_format(logits)
    target = target.contiguous(memory_format=order if dense else torch.contiguous_format).resolve_neg()
    grad_output_stride = 0
    if grad_output is not None:
        grad_output_stride = 0 if grad_output.shape != logits.shape else 1
        grad_output = grad_output.contiguous(
            memory_format=order if grad_output_stride else torch.contiguous_format
        ).resolve_neg()
    factors = [None if weight is None else _rows(weight.resolve_neg().expand(logits.shape)) for weight in weights]
    given = [factor for factor in factors if factor is not None]
    rows = logits.flatten()[None, :, None] if dense and not given else as_rows(logits)
    ((outers, classes, inners), by), *merged = _merged(rows, *given)
    strides_of = iter([strides for _, strides in merged])
    strides = tuple((0, 0, 0) if factor is None else next(strides_of) for factor in factors)
    tile = _tile(classes, inners, by[1], _SIGMOIDS)
    tiles, class_tiles = -(-inners // tile["ROWS"]), -(-classes // tile["CLASSES"])
    programs = outers * tiles * class_tiles
    into = torch.empty_like(logits, dtype=dtype, memory_format=order)
    if what == "sum":
        into = torch.empty(programs, dtype=torch.float32, device=logits.device)
    _launch(
        *("sigmoids", programs, logits, target, into, grad_output, *factors),
        *((*side[:3], *_powers(side[3:])) for side in sides),
        *(margin, classes, inners, tiles, class_tiles, by, strides, grad_output_stride, int(ignore_index or 0)),
        DENSE=dense,
        IGNORES=ignore_index is not None,
        ALIKE=margin == 0.0 and sides[0][2:] == sides[1][2:],
        SHIFTED=margin != 0.0,
        WHAT=what,
        **tile,
    )
    return into


def _rows(tensor: Tensor) -> Tensor:
    """A view of shape (outer, classes, inner), if there is one, or else a copy."""
    tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
    return tensor.flatten(2) if tensor.dim() > 2 else tensor.reshape(*(tensor.shape or (1, 1)), 1)


def _unit(power: int) -> list[float]:
    """``log_weight`` and the coefficients of one term alone."""
    return [float(k == power) for k in range(power + 1)]


def _launch(name: str, programs: int, logits: Tensor, *arguments: Any, **options: Any) -> None:
    if programs == 0:
        return
    # Not before it is needed: importing Triton takes half a second.
    from polylosses.torch.kernels import triton_kernels  # noqa: PLC0415

    # Triton takes the current device, whatever the tensors are on.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        getattr(triton_kernels, name)[(programs,)](logits, *arguments, **options, **_OPTIONS)


def _powers(coefficients: Sequence[float]) -> tuple[Any, ...]:
    """The coefficients of ``S = sum_j c_j q^j`` and its derivative, as in cpu/common.hpp.

    Returns:
        The first coefficient; and those of 1, q, ... in ``S / q`` less the first, in ``S'``, and in ``(1 - q) S'`` less
        the first.
    """
    c = tuple(coefficients) or (0.0,)
    slopes = [j * c[j - 1] for j in range(1, len(c) + 1)]
    near_one = (b - a for a, b in zip(slopes, [*slopes[1:], 0.0], strict=True))
    return c[0], (0.0, *c[1:]), tuple(slopes), (0.0, *near_one)


def _merged(*tensors: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes and strides of tensors of one shape (outer, classes, inner); outer is merged into inner where possible."""
    outers, classes, inners = tensors[0].shape
    strides = [tensor.stride() for tensor in tensors]
    if inners == 1:
        return [((1, classes, outers), (0, by[1], by[0])) for by in strides]
    if all(by[0] == inners * by[2] for by in strides):
        return [((1, classes, outers * inners), (0, *by[1:])) for by in strides]
    return [((outers, classes, inners), tuple(by)) for by in strides]


def _tile(classes: int, inners: int, by_class: int, longest: int = _LONG) -> dict[str, Any]:
    """The tile of a program: its numbers of rows and classes."""

    def least_power_of_2(number: int) -> int:
        return 1 << max(0, number - 1).bit_length()

    if by_class == 1 or classes == 1:
        columns = min(longest, least_power_of_2(classes))
        rows = min(max(1, _SHORT // columns), least_power_of_2(inners))
    else:
        most = min(longest, _BESIDE)
        rows = min(128, least_power_of_2(inners))
        columns = min(most // rows, least_power_of_2(classes))
    return {"ROWS": rows, "CLASSES": columns, "num_warps": 8 if rows * columns > _BESIDE else 4}
