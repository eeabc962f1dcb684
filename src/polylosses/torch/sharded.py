"""Support for logits that are sharded over devices (torch's DTensor), without gathering them."""

from typing import Any

import torch
from torch import Tensor


def is_sharded(input: Tensor) -> bool:
    """Whether the tensor is a DTensor; checked without the class, which would import all of torch.distributed."""
    return hasattr(input, "device_mesh") and hasattr(input, "placements")


def as_sharded_as(input: Any, tensor: Tensor) -> Tensor:
    """``tensor`` as a replicated DTensor if ``input`` is a DTensor: torch does not mix them."""
    if not is_sharded(input) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    mesh = input.device_mesh
    replicated: Tensor = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """:func:`torch.log_softmax`, also where the classes are sharded over devices.

    There, torch's own has a wrong gradient inside ``loss_parallel`` for everything but ``F.cross_entropy`` of class
    indices, and gathers all logits outside of it.
    """
    return _shifted_by_logsumexp(input, dim)[0] if is_sharded(input) else torch.log_softmax(input, dim)


def logsumexp(input: Tensor, dim: int) -> Tensor:
    """:func:`torch.logsumexp`, also where the classes are sharded over devices: torch's own gathers all logits."""
    return _shifted_by_logsumexp(input, dim)[1].squeeze(dim) if is_sharded(input) else torch.logsumexp(input, dim)


def _shifted_by_logsumexp(input: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``input - logsumexp`` and ``logsumexp``. Devices exchange one maximum and one sum for every row."""
    maximum = input.detach().amax(dim, keepdim=True)
    shifted = input - maximum
    logsumexp: Any = shifted.exp().sum(dim, keepdim=True).log()
    # To the placements that it has, so that its gradient is summed over devices before it has the logits' size.
    logsumexp = logsumexp.redistribute(placements=logsumexp.placements)
    return shifted - logsumexp, maximum + logsumexp
