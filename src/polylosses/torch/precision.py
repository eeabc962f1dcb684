"""Dtypes: in which a loss is computed, and which its result has."""

from typing import Any

import torch
from torch import Tensor

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def upcast(input: Tensor) -> Tensor:
    """The input, cast to float32 if it is float16 or bfloat16: losses are not computed in these."""
    return input.float() if input.dtype in _LOW_PRECISION else input


def upcast_dtype(input: Tensor) -> torch.dtype:
    """The dtype of :func:`upcast`'s result."""
    return torch.float32 if input.dtype in _LOW_PRECISION else input.dtype


def at_least(dtype: torch.dtype, number: Any) -> Any:
    """The number, cast to a wider dtype if it is a tensor: arithmetic on it alone would round it."""
    return number.to(torch.promote_types(number.dtype, dtype)) if isinstance(number, Tensor) else number


def result_dtype(input: Tensor, dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 under autocast, which keeps ``F.cross_entropy`` in float32."""
    return torch.float32 if dtype in _LOW_PRECISION and autocast_dtype(input) is not None else dtype


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes matrix products of ``input``, if it is on."""
    device = input.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
