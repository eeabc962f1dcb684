"""What is known of a tensor's values without synchronizing with a device or breaking a graph."""

import torch
from torch import Tensor


def is_known_false(condition: Tensor) -> bool:
    """Whether a condition is false, as far as that can be read: on a CPU, outside of transforms and compilers."""
    try:
        return _is_concrete(condition) and not bool(condition)
    except RuntimeError:  # batched by vmap: there is no single value
        return False


def is_known_within(input: Tensor, low: float, high: float) -> bool:
    """Whether all values are known to lie in [low, high], in the sense of :func:`is_known_false`; nan does not."""
    if input.numel() == 0 or not _is_concrete(input):
        return False
    least, most = input.detach().aminmax()
    try:
        return low <= least.item() and most.item() <= high
    except RuntimeError:
        return False


def _is_concrete(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor or tensor.device.type != "cpu":
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]
