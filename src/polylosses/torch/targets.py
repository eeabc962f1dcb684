"""Targets: the weight that each row gives to each class, and how much the row counts."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylosses.torch.concrete import is_known_false
from polylosses.torch.precision import upcast


def class_dim(logits: Tensor) -> int:
    """The class dimension: 1 for a batch, as in ``F.cross_entropy``."""
    return min(1, logits.dim() - 1)


def batch_shape(logits: Tensor) -> torch.Size:
    """The logits' shape without the class dimension: that of class indices."""
    return logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]


def broadcasts(factor: Tensor, shape: torch.Size) -> bool:
    """Whether a factor is real and broadcasts to a shape without changing it."""
    pairs = zip(reversed(factor.shape), reversed(shape), strict=False)
    real = factor.dtype != torch.bool and not factor.is_complex()
    return real and factor.dim() <= len(shape) and all(size in (1, wanted) for size, wanted in pairs)


def as_int64(target: Tensor) -> Tensor:
    """Casts class indices of dtype uint8, which torch accepts, to int64: -100 would wrap around."""
    return target.long() if target.dtype == torch.uint8 else target


def held_by(dtype: torch.dtype, ignore_index: int | None) -> Any:
    """``ignore_index`` as a dtype represents it; None if it can't, since a comparison would wrap or round it."""
    if ignore_index is None:
        return None
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return ignore_index if limits.min <= ignore_index <= limits.max else None
    # Some comparisons round it, and some (of compilers and kernels) don't.
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    if abs(ignore_index) <= 2**bits:
        return ignore_index
    if ignore_index.bit_length() > 1024:  # too large for a float of Python
        return math.inf if ignore_index > 0 else -math.inf
    spacing = 2.0 ** (math.frexp(ignore_index)[1] - bits)
    rounded = round(ignore_index / spacing) * spacing
    return rounded if abs(rounded) <= torch.finfo(dtype).max else math.copysign(math.inf, rounded)


class ClassTargets(NamedTuple):
    """The targets of softmax losses, with the options of ``F.cross_entropy``.

    Attributes:
        target: class indices of the logits' batch shape, or class probabilities of their shape.
        weight: a factor for each class.
        ignore_index: class indices that give no loss and don't count.
        label_smoothing: how much of the target is spread over all classes.
    """

    target: Tensor
    weight: Tensor | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0

    def are_probabilities(self, logits: Tensor) -> bool:
        """Whether they are class probabilities, not class indices."""
        return self.target.shape == logits.shape

    def are_soft(self, logits: Tensor) -> bool:
        """Whether several classes of a row have a weight: class probabilities, or label smoothing."""
        return self.are_probabilities(logits) or self.label_smoothing != 0.0

    def smoothing_weight(self, classes: int) -> float:
        """The least weight of a class in a smoothed target; infinite where there is no class, as in torch."""
        return self.label_smoothing / classes if classes else math.inf

    def smoothed(self, classes: int) -> Tensor:
        """Class probabilities, after label smoothing."""
        target = upcast(self.target)
        if self.label_smoothing == 0.0:
            return target
        return target * (1.0 - self.label_smoothing) + self.smoothing_weight(classes)

    def class_weight(self, logp: Tensor) -> Tensor | None:
        """The class weights, shaped to broadcast to log-probabilities."""
        if self.weight is None:
            return None
        shape = [1] * logp.dim()
        shape[class_dim(logp)] = -1
        return upcast(self.weight).reshape(shape)

    def ignored(self) -> Tensor | None:
        """Which rows have the class index ``ignore_index``; None where there are rows and it is known that none has."""
        ignored = self.target == self.ignore_index
        return None if ignored.numel() and is_known_false(ignored.any()) else ignored

    def row_weight(self, ignored: Tensor | None, dtype: torch.dtype) -> Tensor | int:
        """How much each row counts in the mean: the weight of its class index, or 1; 0 if it is ignored."""
        if self.weight is None:
            return 1 if ignored is None else ~ignored
        weight = self.weight.to(dtype)
        if weight.numel() == 0:  # of no class, so that every row is ignored
            return torch.zeros_like(self.target, dtype=dtype)
        if ignored is None:
            return weight[self.target.long()]
        return weight[self.target.masked_fill(ignored, 0).long()].masked_fill(ignored, 0.0)


class BinaryTargets(NamedTuple):
    """The targets of sigmoid losses.

    Attributes:
        target: hard or soft targets of the logits' shape, or class ids of their batch shape.
        weight: a factor for each element; broadcasts to the logits.
        pos_weight: a factor for positives; broadcasts to the logits.
        ignore_index: targets that give no loss and don't count, as the target's dtype holds it; None: none.
    """

    target: Tensor
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    ignore_index: Any = None

    def are_dense(self, logits: Tensor) -> bool:
        """Whether they are elementwise, not class ids."""
        return self.target.shape == logits.shape

    def one_hot(self, logits: Tensor) -> Tensor:
        """Class ids as dense targets; 0 for some class where they are ignored."""
        ids = self.target.long()
        if self.ignore_index is not None:
            ids = ids.masked_fill(self.target == self.ignore_index, 0)
        dim = class_dim(logits)
        return torch.zeros_like(logits).scatter(dim, ids.unsqueeze(dim), 1.0)

    def weighted(self, target_weight: Tensor) -> Tensor:
        """The target weights of elements, times ``weight``."""
        return target_weight if self.weight is None else target_weight * self.weight

    def ignored(self, logits: Tensor) -> Tensor | None:
        """Which elements are ignored; None if none can be."""
        if self.ignore_index is None:
            return None
        ignored: Tensor = self.target == self.ignore_index
        return ignored if self.are_dense(logits) else ignored.unsqueeze(class_dim(logits)).expand(logits.shape)
