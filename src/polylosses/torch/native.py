"""The CPU kernels of native.cpp: found, and called with tensors. What they compute is said in kernels.py."""

import ctypes
import importlib.util
from ctypes import POINTER, c_int, c_int64, c_void_p
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


def as_rows(logits: Tensor) -> Tensor:
    """As (outer, classes, inner), where classes or inner are contiguous; without a copy in all usual layouts."""
    rows = logits.flatten(2) if logits.dim() > 2 else logits.reshape(-1, logits.shape[-1], 1)
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
