"""Fused loss operators, and the dispatch between their implementations.

Nothing outside of this folder depends on how the kernels work: :func:`choose` says whether one serves a call, and the
others are losses of rows that one serves.
"""

from polylosses.torch.kernels.dispatch import FEWEST_LOGITS, MOST_COEFFICIENTS, are_numbers, choose, implementation
from polylosses.torch.kernels.internals import is_by_address
from polylosses.torch.kernels.operators import sigmoid_loss, softmax_loss, softmax_statistics

__all__ = [
    "FEWEST_LOGITS",
    "MOST_COEFFICIENTS",
    "are_numbers",
    "choose",
    "implementation",
    "is_by_address",
    "sigmoid_loss",
    "softmax_loss",
    "softmax_statistics",
]
