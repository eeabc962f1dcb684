"""Fused loss operators, and the dispatch between their implementations.

The losses use this package only: :func:`choose` names the implementation of a call, and ``softmax_loss``,
``soft_target_loss``, ``softmax_statistics`` and ``sigmoid_loss`` run the kernel that was chosen.
"""

from polylosses.torch.kernels.dispatch import (
    FEWEST_LOGITS,
    MOST_COEFFICIENTS,
    are_numbers,
    choose,
    evaluates,
    implementation,
    with_numbers,
)
from polylosses.torch.kernels.internals import is_by_address
from polylosses.torch.kernels.native import MOST_TENSORS
from polylosses.torch.kernels.operators import (
    SOFT_TARGET_DTYPES,
    sigmoid_loss,
    soft_target_loss,
    softmax_loss,
    softmax_statistics,
)

__all__ = [
    "FEWEST_LOGITS",
    "MOST_COEFFICIENTS",
    "MOST_TENSORS",
    "SOFT_TARGET_DTYPES",
    "are_numbers",
    "choose",
    "evaluates",
    "implementation",
    "is_by_address",
    "sigmoid_loss",
    "soft_target_loss",
    "softmax_loss",
    "softmax_statistics",
    "with_numbers",
]
