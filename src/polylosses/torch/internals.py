"""The private names of torch that the kernels depend on, and what to do where a release of torch lacks one.

Kernels read memory by address, so they must not run on tensors that only stand for others. torch has no public way to
ask for all such states. Where one of these names is missing the state is unknown: the plain implementation serves.
"""

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn


def why_not_by_address() -> str | None:
    """Why no tensor's memory may be read at the moment, or None: transforms are active, or that is unknown."""
    try:
        if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
            return "torch.func and forward-mode derivatives take the plain implementation"
        if not torch.compiler.is_compiling():
            torch._C._len_torch_dispatch_stack()
    except AttributeError as error:
        return f"this version of torch, {torch.__version__}, does not tell what the kernels must know ({error})"
    return None


def is_traced() -> bool:
    """Whether operators must go through torch's dispatcher: a compiler or a dispatch mode records or replaces them."""
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._len_torch_dispatch_stack() > 0
    except AttributeError:
        return True


def is_ordinary(tensor: Tensor) -> bool:
    """Whether the tensor is neither a subclass nor, while operators are traced, other than torch's own stand-ins."""
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
    """Whether the tensor's numbers lie at its address: not those of subclasses, batched, functional or zero tensors."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    try:
        # Not tensor.data_ptr(): that of a view with an offset is never 0.
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() != 0
    except RuntimeError:
        return False
