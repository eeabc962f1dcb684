"""The CPU kernels of cpu/, called with tensors. What they compute is documented in operators.py."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from polylosses.torch.kernels import native_library
from polylosses.torch.kernels.layout import as_rows, as_rows_like, empty_like_rows, in_order, memory_format
from polylosses.torch.targets import batch_shape

# at::parallel_for's own: less is not worth a thread.
_LOGITS_A_THREAD = 32768


# The most learned terms of a polynomial; Terms::MOST in cpu/common.hpp.
MOST_TENSORS = 3


class _Logits(ctypes.Structure):
    """Logits of shape (outer, classes, inner); the same as in cpu/common.hpp."""

    _fields_ = (
        ("data", c_void_p),
        ("in_bfloat16", c_int64),
        *((name, c_int64) for name in ("outers", "classes", "inners", "by_outer", "by_class", "by_inner")),
    )


class _Polynomial(ctypes.Structure):
    _fields_ = (("coefficients", POINTER(c_float)), ("degree", c_int64), ("gamma", c_float))


class _Terms(ctypes.Structure):
    _fields_ = (("count", c_int64), ("powers", c_int64 * MOST_TENSORS))


class _Statistics(ctypes.Structure):
    _fields_ = (
        ("polynomial", POINTER(_Polynomial)),
        ("weight", c_void_p),
        ("log_weight", c_float),
        *((name, c_void_p) for name in ("scales", "q", "maximum", "inverse", "losses", "tail", "p")),
    )


class _Scales(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("scales", "q", "maximum", "inverse", "grad_output")),
        ("grad_stride", c_int64),
    )


class _SoftTargets(ctypes.Structure):
    """Targets that give a weight to every class; the same as in cpu/soft_targets.cpp, like the next two."""

    _fields_ = (
        ("probabilities", c_void_p),
        ("in_bfloat16", c_int64),
        *((name, c_int64) for name in ("by_outer", "by_class", "by_inner")),
        ("labels", c_void_p),
        ("ignore_index", c_int64),
        ("weight", c_void_p),
        ("keep", c_float),
        ("spread", c_float),
    )


class _Loss(ctypes.Structure):
    _fields_ = (("polynomial", _Polynomial), ("log_weight", c_float), ("learned", _Terms))


class _SoftStatistics(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("scale", "rest", "q", "maximum", "inverse", "losses", "terms")),
        ("rows", c_int64),
    )


class _Broadcast(ctypes.Structure):
    """A factor of the elements; the same as in cpu/sigmoid.cpp, like the next two."""

    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64) for name in ("middles", "inners", "by_outer", "by_middle", "by_inner")),
    )


class _Side(ctypes.Structure):
    _fields_ = (("polynomial", _Polynomial), ("factor", c_float), ("log_weight", c_float))


_SIDES = _Side * 2


class _Sigmoids(ctypes.Structure):
    _fields_ = (
        ("logits", c_void_p),
        ("in_bfloat16", c_int64),
        ("count", c_int64),
        ("dense", c_void_p),
        ("dense_in_bfloat16", c_int64),
        ("ids", c_void_p),
        *((name, c_int64) for name in ("rows", "classes", "inners", "classes_last", "ignores", "ignore_index")),
        *((name, _Broadcast) for name in ("weight", "neg_weight", "pos_weight")),
        ("sides", _SIDES),
        ("learned", _Terms),
        ("alike", c_int64),
        ("result_in_bfloat16", c_int64),
        ("margin", c_float),
    )


def _load() -> tuple[Any, str | None]:
    library, why_none = native_library.load(
        {
            "polylosses_softmax_sizes": (_Logits, _Polynomial, _Statistics, _Scales),
            "polylosses_soft_target_sizes": (_SoftTargets, _Loss, _SoftStatistics),
            "polylosses_sigmoid_sizes": (_Sigmoids,),
        }
    )
    if library is None:
        return None, why_none
    library.polylosses_softmax_statistics.argtypes = [
        *(POINTER(_Logits), c_void_p, c_int64, POINTER(_Statistics), c_void_p, c_int, c_int)
    ]
    library.polylosses_softmax_statistics.restype = c_int64
    library.polylosses_softmax_gradient.argtypes = [
        *(POINTER(_Logits), c_void_p, POINTER(_Scales), POINTER(_Logits), c_int)
    ]
    library.polylosses_softmax_gradient.restype = c_int64
    library.polylosses_soft_target_loss.argtypes = [
        *(POINTER(_Logits), POINTER(_SoftTargets), POINTER(_Loss), POINTER(_SoftStatistics), c_void_p, c_int)
    ]
    library.polylosses_soft_target_loss.restype = c_int64
    library.polylosses_soft_target_gradient.argtypes = [
        *(POINTER(_Logits), POINTER(_SoftTargets), POINTER(_Loss), POINTER(_SoftStatistics)),
        *(c_void_p, c_int64, POINTER(_Logits), c_int),
    ]
    library.polylosses_soft_target_gradient.restype = c_int64
    library.polylosses_sigmoids.argtypes = [POINTER(_Sigmoids), *[c_void_p] * 6, c_int64, c_int]
    library.polylosses_sigmoids.restype = c_int64
    library.polylosses_sigmoid_group.restype = c_int64
    return library, None


_LIBRARY, _WHY_NONE = _load()


def why_not(logits: Tensor) -> str | None:
    """Why these kernels cannot take the logits, or None."""
    if _WHY_NONE is not None:
        return _WHY_NONE
    if logits.device.type != "cpu":
        return f"it serves the CPU, and the logits are on {logits.device}"
    if logits.dtype not in (torch.float32, torch.bfloat16):
        return f"it serves float32 and bfloat16 logits, and these are {logits.dtype}"
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
    gamma, log_weight, *coefficients = numbers
    row_stats, losses = _float32(target, 4, *target.shape), _float32(target, *target.shape)
    weight = None if weight is None else weight.float().contiguous().resolve_neg()
    polynomial = ctypes.pointer(_polynomial(coefficients, gamma))
    out = _Statistics(polynomial, _pointer(weight), log_weight, *_each(row_stats), losses.data_ptr(), None, None)
    total = None if reduction == "none" else _float32(target)
    _softmax_statistics(logits, target, ignore_index, out, total, reduction == "mean")
    return losses if total is None else total, row_stats


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
    """See :func:`polylosses.torch.kernels.operators.softmax_statistics`."""
    shape = target.shape
    row_stats, tail, p = _float32(target, 4, *shape), _float32(target, *shape), _float32(target, *shape)
    out = _Statistics(None, None, 1.0, *_each(row_stats), None, tail.data_ptr(), p.data_ptr())
    _softmax_statistics(logits, target, ignore_index, out)
    return row_stats[1].clone(), tail, p, row_stats


def _softmax_statistics(
    logits: Tensor, target: Tensor, ignore_index: int, out: Any, total: Tensor | None = None, mean: bool = False
) -> None:
    logits, target = _as_rows(logits), target.contiguous().resolve_neg()
    wrong = _LIBRARY.polylosses_softmax_statistics(
        _described(logits), target.data_ptr(), int(ignore_index), out, _pointer(total), mean, _threads(logits)
    )
    if wrong >= 0:
        raise IndexError(f"Target {target.flatten()[wrong].item()} is out of bounds.")  # torch's own words


def softmax_gradient(logits: Tensor, target: Tensor, row_stats: Tensor, grad_output: Tensor) -> Tensor:
    """See :func:`polylosses.torch.kernels.operators.softmax_gradient`."""
    x, target = _as_rows(logits), target.contiguous().resolve_neg()
    gradient = x.new_empty(x.shape) if x.dim() == 2 else empty_like_rows(x)
    grad_output = grad_output.float().contiguous().resolve_neg()
    scales = _Scales(*_each(row_stats), grad_output.data_ptr(), 0 if grad_output.shape != target.shape else 1)
    wrong = _LIBRARY.polylosses_softmax_gradient(
        _described(x), target.data_ptr(), scales, _described(gradient), _threads(x)
    )
    if wrong >= 0:
        label = target.flatten()[wrong].item()
        raise IndexError(f"Target {label} is out of bounds: it was changed in place after the forward pass.")
    return gradient if x.dim() == logits.dim() == 2 else gradient.view(logits.shape)


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
    """See :func:`polylosses.torch.kernels.operators.soft_target_loss`; and its terms of ``powers``, of every row."""
    shape = batch_shape(logits)
    row_stats, losses = _float32(logits, 5, *shape), _float32(logits, *shape)
    terms = _float32(logits, len(powers), *shape) if powers else ()
    total = _float32(logits) if summed else None
    x = _as_rows(logits)
    held, targets = _soft_targets(x, logits, target, weight, ignore_index, label_smoothing)
    to_terms = terms.data_ptr() if isinstance(terms, Tensor) else None
    out = _SoftStatistics(*_each(row_stats), losses.data_ptr(), to_terms, losses.numel())
    wrong = _LIBRARY.polylosses_soft_target_loss(
        _described(x), targets, _loss(numbers, powers), out, _pointer(total), _threads(x)
    )
    if wrong >= 0:
        raise IndexError(f"Target {held[0].flatten()[wrong].item()} is out of bounds.")  # torch's own words
    if total is None:
        return losses, row_stats, list(terms)
    return total, row_stats, [term.sum() for term in terms]


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
    x = _as_rows(logits)
    held, targets = _soft_targets(x, logits, target, weight, ignore_index, label_smoothing)
    gradient = x.new_empty(x.shape) if x.dim() == 2 else empty_like_rows(x)
    grad_output = grad_output.float().contiguous().resolve_neg()
    wrong = _LIBRARY.polylosses_soft_target_gradient(
        *(_described(x), targets, _loss(numbers), _SoftStatistics(*_each(row_stats))),
        *(grad_output.data_ptr(), 0 if grad_output.dim() == 0 else 1, _described(gradient), _threads(x)),
    )
    if wrong >= 0:
        label = held[0].flatten()[wrong].item()
        raise IndexError(f"Target {label} is out of bounds: it was changed in place after the forward pass.")
    return gradient if x.dim() == logits.dim() == 2 else gradient.view(logits.shape)


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
    """See :func:`polylosses.torch.kernels.operators.sigmoid_loss`; and its terms of ``powers``, or their sums."""
    logits = in_order(logits)
    arguments = (logits, target, weights, ignore_index, negatives, positives, margin)
    if dtype is None:
        results, groups = 1 + len(powers), -(-logits.numel() // _LIBRARY.polylosses_sigmoid_group())
        sums = logits.new_empty(results * groups, dtype=torch.float64)
        if not powers:
            total = _float32(logits)
            _sigmoids(*arguments, sums=sums, totals=total)
            return total, ()
        totals = _float32(logits, results)
        _sigmoids(*arguments, sums=sums, totals=totals, powers=powers)
        total, *totals_of_terms = totals
        return total.clone(), totals_of_terms
    order = memory_format(logits)
    losses = torch.empty_like(logits, dtype=dtype, memory_format=order)
    if not powers:
        _sigmoids(*arguments, losses=losses)
        return losses, ()
    terms = _float32(logits, len(powers), logits.numel())
    _sigmoids(*arguments, losses=losses, term_losses=terms, powers=powers)
    return losses, [torch.as_strided(term, losses.shape, losses.stride(), term.storage_offset()) for term in terms]


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
    logits = in_order(logits)
    gradient = torch.empty_like(logits, memory_format=memory_format(logits))
    if grad_output.shape == logits.shape:
        grad_output = grad_output.contiguous(memory_format=memory_format(logits))
    arguments = (logits, target, weights, ignore_index, negatives, positives, margin)
    _sigmoids(*arguments, gradient=gradient, grad_output=grad_output)
    return gradient


def _as_rows(logits: Tensor) -> Tensor:
    """:func:`as_rows`; contiguous logits of two dimensions stay as they are, since a third dimension costs 3 us."""
    if logits.dim() == 2 and logits.stride(1) == 1:
        return logits.resolve_neg()
    return as_rows(logits)


def _described(rows: Tensor) -> Any:
    if rows.dim() == 2:
        (outers, classes), (by_outer, by_class) = rows.shape, rows.stride()
        inners = by_inner = 1
    else:
        outers, classes, inners = rows.shape
        by_outer, by_class, by_inner = rows.stride()
    in_bfloat16 = rows.dtype == torch.bfloat16
    # The stride of a dimension of size 1 is arbitrary; the kernel takes 1 for contiguous classes.
    by_class = 1 if classes == 1 else by_class
    return _Logits(rows.data_ptr(), in_bfloat16, outers, classes, inners, by_outer, by_class, by_inner)


def _soft_targets(
    rows: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[tuple[Tensor, Tensor | None], Any]:
    """The tensors that the kernel reads, to be kept alive, and their description; ``rows`` are the logits'."""
    weight = None if weight is None else weight.float().contiguous().resolve_neg()
    classes = rows.shape[1]
    numbers = (_pointer(weight), 1.0 - label_smoothing, label_smoothing / classes if classes else 0.0)
    if target.shape != logits.shape or not target.is_floating_point():
        target = target.contiguous().resolve_neg()
        return (target, weight), _SoftTargets(None, 0, 0, 0, 0, target.data_ptr(), int(ignore_index), *numbers)
    if rows.dim() == target.dim() == 2 and target.stride(1) == 1:
        y = target.resolve_neg()
        strides: tuple[int, ...] = (y.stride(0), 1, 1)
    else:
        y = as_rows_like(target, rows if rows.dim() == 3 else rows.unsqueeze(2))
        strides = y.stride()
    description = (y.data_ptr(), y.dtype == torch.bfloat16, *strides, None, 0, *numbers)
    return (y, weight), _SoftTargets(*description)


def _loss(numbers: Sequence[float], powers: Sequence[int] = ()) -> Any:
    gamma, log_weight, *coefficients = numbers
    return _Loss(_polynomial(coefficients, gamma), log_weight, _terms(powers))


_NO_TERMS = _Terms()


def _terms(powers: Sequence[int]) -> Any:
    return _Terms(len(powers), (c_int64 * MOST_TENSORS)(*powers)) if powers else _NO_TERMS


def _polynomial(coefficients: Sequence[float], gamma: float) -> Any:
    coefficients = coefficients or (0.0,)
    return _Polynomial((c_float * len(coefficients))(*coefficients), len(coefficients), gamma)


def _float32(like: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor on the device of ``like``. (``torch.empty`` with a device takes twice as long.)"""
    return like.new_empty(shape, dtype=torch.float32)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _each(row_stats: Tensor) -> tuple[int, ...]:
    """The addresses of the statistics."""
    first, by = row_stats.data_ptr(), row_stats.stride(0) * row_stats.element_size()
    return tuple(range(first, first + len(row_stats) * by, by)) if by else (first,) * len(row_stats)


def _threads(rows: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), rows.numel() // _LOGITS_A_THREAD))


def _sigmoids(
    logits: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    ignore_index: int | None,
    negatives: Sequence[float],
    positives: Sequence[float],
    margin: float,
    *,
    losses: Tensor | None = None,
    term_losses: Tensor | None = None,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
    gradient: Tensor | None = None,
    grad_output: Tensor | None = None,
    powers: Sequence[int] = (),
) -> None:
    dense = target.shape == logits.shape
    outers, classes, inners = (1, 1, 1) if dense else as_rows(logits).shape
    order = memory_format(logits) if dense else torch.contiguous_format
    target = target.contiguous(memory_format=order).resolve_neg()
    if dense and target.dtype not in (torch.float32, torch.bfloat16):
        target = target.float()
    grad_output = None if grad_output is None else grad_output.float().resolve_neg()
    negative = _side(negatives)
    positive = negative if positives == negatives else _side(positives)
    # With the tensors that the kernel reads, which must stay until then.
    (_held, weight), (_held_pos, pos_weight), (_held_neg, neg_weight) = (_broadcast(x, logits) for x in weights)
    of = _Sigmoids(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        logits.numel(),
        target.data_ptr() if dense else None,
        target.dtype == torch.bfloat16,
        None if dense else target.data_ptr(),
        outers * inners,
        classes,
        inners,
        inners == 1 or memory_format(logits) == torch.channels_last,
        ignore_index is not None,
        int(ignore_index or 0),
        weight,
        neg_weight,
        pos_weight,
        _SIDES(negative, positive),
        _terms(powers),
        margin == 0.0 and negatives[2:] == positives[2:],
        logits.dtype == torch.bfloat16 and (losses is None or losses.dtype == torch.bfloat16),
        margin,
    )
    to = map(_pointer, (losses, term_losses, sums, totals, gradient, grad_output))
    grad_stride = 0 if grad_output is None or grad_output.shape != logits.shape else 1
    wrong = _LIBRARY.polylosses_sigmoids(of, *to, grad_stride, _threads(logits))
    if wrong >= 0:
        # The error of torch's scatter, which makes one-hot rows on the plain path.
        raise RuntimeError(
            f"index {target.flatten()[wrong].item()} is out of bounds for dimension 1 with size {classes}"
        )


def _side(numbers: Sequence[float]) -> Any:
    factor, log_weight, gamma, *coefficients = numbers
    return _Side(_polynomial(coefficients, gamma), factor, log_weight)


_NONE = _Broadcast()


def _broadcast(factor: Tensor | None, logits: Tensor) -> tuple[Tensor | None, Any]:
    """The memory that the kernel reads, to be kept alive, and its description; ``logits`` are in memory order."""
    if factor is None or logits.numel() == 0:
        return None, _NONE
    if factor.dtype != torch.float32 or factor.is_neg():
        factor = factor.float().resolve_neg()
    shape, missing = logits.shape, logits.dim() - factor.dim()
    own = zip(factor.shape, factor.stride(), strict=True)
    axes = list(zip(shape, [*[0] * missing, *(0 if size == 1 else by for size, by in own)], strict=True))
    if memory_format(logits) == torch.channels_last:
        axes = [axes[0], axes[2], axes[3], axes[1]]
    dims: list[tuple[int, int]] = []  # sizes and strides, of dimensions that can't be merged
    for size, stride in axes:
        if size == 1:
            continue
        if dims and dims[-1][1] == stride * size:
            dims[-1] = (dims[-1][0] * size, stride)
        else:
            dims.append((size, stride))
    if len(dims) > 3:
        factor = factor.expand(shape).contiguous(memory_format=memory_format(logits))
        dims = [(factor.numel(), 1)]
    (_, by_outer), (middles, by_middle), (inners, by_inner) = [*[(1, 0)] * (3 - len(dims)), *dims]
    return factor, _Broadcast(factor.data_ptr(), middles, inners, by_outer, by_middle, by_inner)
