"""The CPU kernels of native.cpp: found, and called with tensors. What they compute is said in kernels.py."""

import ctypes
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

# at::parallel_for's own: less is not worth a thread.
_LOGITS_A_THREAD = 32768


class _Logits(ctypes.Structure):
    """Of (outer, classes, inner); the same as in native.cpp."""

    _fields_ = (
        ("data", c_void_p),
        ("in_bfloat16", c_int64),
        *((name, c_int64) for name in ("outers", "classes", "inners", "by_outer", "by_class", "by_inner")),
    )


class _Sigmoids(ctypes.Structure):
    """Logits as they lie in memory, and what to take of them; the same as in native.cpp."""

    _fields_ = (
        ("logits", c_void_p),
        ("in_bfloat16", c_int64),
        ("count", c_int64),
        ("dense", c_void_p),
        ("ids", c_void_p),
        *((name, c_int64) for name in ("rows", "classes", "inners", "classes_last", "ignores", "ignore_index")),
        ("coefficients", c_void_p),
        ("degree", c_int64),
        ("gamma", c_float),
        ("factor", c_float * 2),
        ("log_weight", c_float * 2),
    )


def _load() -> Any:
    # It is built like an extension module, which it isn't: so Python knows where it is, and ctypes loads it.
    found = importlib.util.find_spec("polylosses.torch._native")
    if found is None or found.origin is None:
        return None
    library = ctypes.CDLL(found.origin)
    library.polylosses_softmax_statistics.argtypes = [POINTER(_Logits), c_void_p, c_int64, *[c_void_p] * 5, c_int]
    library.polylosses_softmax_statistics.restype = c_int64
    library.polylosses_softmax_gradient.argtypes = [POINTER(_Logits), *[c_void_p] * 7, POINTER(_Logits), c_int]
    library.polylosses_softmax_gradient.restype = None
    library.polylosses_sigmoids.argtypes = [POINTER(_Sigmoids), *[c_void_p] * 4, c_int64, c_int]
    library.polylosses_sigmoids.restype = c_int64
    library.polylosses_elements_of_a_sum.restype = c_int64
    return library


_LIBRARY = _load()


def why_not(logits: Tensor) -> str | None:
    """Why these kernels can't take the logits, if they can't."""
    if _LIBRARY is None:
        return (
            "its kernels were not built when polylosses was installed; that needs Linux and g++. With these, "
            "pip install --force-reinstall --no-cache-dir --no-deps polylosses"
        )
    if logits.device.type != "cpu":
        return f"it serves the CPU, and the logits are on {logits.device}"
    if logits.dtype not in (torch.float32, torch.bfloat16):
        return f"it serves float32 and bfloat16 logits, and these are {logits.dtype}"
    return None


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, ...]:
    """See :func:`polylosses.torch.kernels.statistics`."""
    rows, target = as_rows(logits), target.contiguous()
    found = tuple(torch.empty(target.shape) for _ in range(5))
    wrong = _LIBRARY.polylosses_softmax_statistics(
        _described(rows), *_pointers(target), ignore_index, *_pointers(*found), _threads(rows)
    )
    if wrong >= 0:
        raise IndexError(f"Target {target.flatten()[wrong].item()} is out of bounds.")  # torch's own words
    return found


def softmax_gradient(logits: Tensor, target: Tensor, *of_rows: Tensor) -> Tensor:
    """See :func:`polylosses.torch.kernels.gradient`."""
    rows = as_rows(logits)
    of_rows = tuple(tensor.contiguous() for tensor in (target, *of_rows))
    gradient = torch.empty_like(rows)
    _LIBRARY.polylosses_softmax_gradient(_described(rows), *_pointers(*of_rows), _described(gradient), _threads(rows))
    return gradient.view(logits.shape)


def sigmoid_loss(
    logits: Tensor, target: Tensor, ignore_index: int | None, numbers: Sequence[float], summed: bool
) -> Tensor:
    """See :func:`polylosses.torch.kernels.sigmoid_loss`."""
    logits = in_order(logits)
    if not summed:
        losses = torch.empty_like(logits)
        _sigmoids(logits, target, ignore_index, numbers, losses=losses)
        return losses
    sums = torch.empty(-(-logits.numel() // _LIBRARY.polylosses_elements_of_a_sum()), dtype=torch.float64)
    _sigmoids(logits, target, ignore_index, numbers, sums=sums)
    return sums.sum().float()


def sigmoid_gradient(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    upstream: Tensor,
) -> Tensor:
    """See :func:`polylosses.torch.kernels.sigmoid_gradient`."""
    logits = in_order(logits)
    gradient = torch.empty_like(logits)
    if upstream.shape == logits.shape:
        upstream = upstream.contiguous(memory_format=_memory_format(logits))
    _sigmoids(logits, target, ignore_index, numbers, gradient=gradient, upstream=upstream)
    return gradient


def as_rows(logits: Tensor) -> Tensor:
    """As (outer, classes, inner), where classes or inner are contiguous; without a copy in all usual layouts."""
    rows = logits.unsqueeze(0) if logits.dim() == 1 else logits
    rows = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
    beside = rows.stride(2) == 1 and rows.shape[2] > 1
    return rows if rows.stride(1) == 1 or beside else rows.contiguous()


def _described(rows: Tensor) -> Any:
    outers, classes, inners = rows.shape
    by_outer, by_class, by_inner = rows.stride()
    in_bfloat16 = rows.dtype == torch.bfloat16
    # A stride that nothing is stepped by may be any number; that of the classes says how they lie.
    by_class = 1 if classes == 1 else by_class
    return _Logits(rows.data_ptr(), in_bfloat16, outers, classes, inners, by_outer, by_class, by_inner)


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _threads(rows: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), rows.numel() // _LOGITS_A_THREAD))


def in_order(tensor: Tensor) -> Tensor:
    """Without gaps, in torch's order or with the channels last."""
    return tensor.contiguous(memory_format=_memory_format(tensor))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _sigmoids(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    *,
    losses: Tensor | None = None,
    sums: Tensor | None = None,
    gradient: Tensor | None = None,
    upstream: Tensor | None = None,
) -> None:
    gamma, *of_sides = numbers[:5]
    coefficients = numbers[5:] or (0.0,)
    outers, classes, inners = as_rows(logits).shape if logits.dim() > 0 else (1, 1, 1)
    dense = target.shape == logits.shape
    target = target.contiguous(memory_format=_memory_format(logits)) if dense else target.contiguous()
    upstream = None if upstream is None else upstream.float()
    given = (c_float * len(coefficients))(*coefficients)
    of = _Sigmoids(
        logits.data_ptr(),
        logits.dtype == torch.bfloat16,
        logits.numel(),
        target.data_ptr() if dense else None,
        None if dense else target.data_ptr(),
        outers * inners,
        classes,
        inners,
        inners == 1 or _memory_format(logits) == torch.channels_last,
        ignore_index is not None,
        ignore_index or 0,
        ctypes.addressof(given),
        len(given),
        gamma,
        (c_float * 2)(*of_sides[:2]),
        (c_float * 2)(*of_sides[2:]),
    )
    to = (None if tensor is None else tensor.data_ptr() for tensor in (losses, sums, gradient, upstream))
    by_upstream = 0 if upstream is None or upstream.shape != logits.shape else 1
    wrong = _LIBRARY.polylosses_sigmoids(of, *to, by_upstream, _threads(logits))
    if wrong >= 0:
        # As torch's own scatter has it, of which one-hot rows are made.
        raise RuntimeError(
            f"index {target.flatten()[wrong].item()} is out of bounds for dimension 1 with size {classes}"
        )
