"""Reductions of row losses, and the denominators of means."""

import torch
from torch import Tensor


def check_reduction(reduction: str) -> None:
    """Raises a ValueError unless it is one of torch's three."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")


def reduce(losses: Tensor, reduction: str, row_weight: Tensor | int, ignored: Tensor | None) -> Tensor:
    """The losses, their sum, or their mean.

    Args:
        losses: of rows, or of elements.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        row_weight: how much each of them counts in the mean; one number if all count the same.
        ignored: which of them are ignored, if any can be.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return mean(losses.sum(), count(row_weight, losses.numel()), ignored)


def count(row_weight: Tensor | int, rows: int) -> Tensor | int:
    """The denominator of a mean: no float, by which torch.func makes a float32 loss's tangent float64."""
    return row_weight.sum() if isinstance(row_weight, Tensor) else row_weight * rows


def mean(total: Tensor, count: Tensor | int, ignored: Tensor | None) -> Tensor:
    """``total / count``; over nothing, or if everything is ignored, nan with derivatives of 0."""
    if not isinstance(count, Tensor):
        return total / count if count else total.masked_fill(torch.ones_like(total, dtype=torch.bool), torch.nan)
    if ignored is None:
        return total / count
    nothing = ignored.all()
    return (total / count.masked_fill(nothing, 1)).masked_fill(nothing, torch.nan)
