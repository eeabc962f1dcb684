"""Private names of torch that the kernels depend on, each with a fallback for releases that lack it.

Kernels read memory by address, so they must not run on tensors that stand in for others (in transforms, compilers and
dispatch modes). torch has no public way to detect all of these states. Where a name is missing, the plain
implementation serves.
"""

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn


def why_not_by_address() -> str | None:
    """Why no kernel can run now, or None: transforms are active, or that is unknown."""
    try:
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return "torch.func and forward-mode derivatives take the plain implementation"
        if not torch.compiler.is_compiling():
            torch._C._len_torch_dispatch_stack()
    except AttributeError as error:
        return f"this version of torch, {torch.__version__}, does not tell what the kernels must know ({error})"
    return None


def is_traced() -> bool:
    """Whether operators must go through torch's dispatcher, because a compiler or a dispatch mode is active."""
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._len_torch_dispatch_stack() > 0
    except AttributeError:
        return True


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the tensor is no subclass; while operators are traced, torch's own fake tensors pass."""
    if type(tensor) in (Tensor, nn.Parameter):
        return True
    if not is_traced():
        return False
    try:
        from torch._subclasses.fake_tensor import FakeTensor  # noqa: PLC0415
        from torch._subclasses.functional_tensor import FunctionalTensor  # noqa: PLC0415
    except ImportError:
        return False
    return isinstance(tensor, FakeTensor | FunctionalTensor)


def is_by_address(tensor: Tensor) -> bool:
    """Whether the tensor has memory of its own: subclasses, batched, functional and zero tensors don't."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    try:
        # Not tensor.data_ptr(): that of a view with an offset is never 0.
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() != 0
    except RuntimeError:
        return False
