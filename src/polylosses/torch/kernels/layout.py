"""Memory layouts of logits: as rows of classes for softmax kernels, in memory order for sigmoid kernels."""

import torch
from torch import Tensor


def as_rows(logits: Tensor) -> Tensor:
    """A view of shape (outer, classes, inner) in which classes or inner are contiguous; copies unusual layouts."""
    rows = logits.resolve_neg()  # of a view that is to be negated when it is read, as of conjugates
    rows = rows.unsqueeze(0) if rows.dim() == 1 else rows
    rows = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
    return rows if _classes_contiguous(rows) or _inner_contiguous(rows) else rows.contiguous()


def as_rows_like(tensor: Tensor, rows: Tensor) -> Tensor:
    """:func:`as_rows` of a tensor of the same elements, with the same contiguous axis as ``rows``; copies any other."""
    own = as_rows(tensor)
    same = _classes_contiguous(own) if _classes_contiguous(rows) else _inner_contiguous(own)
    return own if same else empty_like_rows(rows, own.dtype).copy_(own)


def empty_like_rows(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of the shape of ``rows``, dense, with the same contiguous axis; of their dtype by default.

    ``torch.empty_like`` doesn't promise that: where elements of ``rows`` share memory, or two strides are equal, it
    takes another order of axes.
    """
    _, classes, inners = rows.shape
    if _classes_contiguous(rows):
        return rows.new_empty_strided(rows.shape, (classes * inners, 1, classes), dtype=dtype)
    return rows.new_empty_strided(rows.shape, (classes * inners, inners, 1), dtype=dtype)


def _classes_contiguous(rows: Tensor) -> bool:
    return rows.stride(1) == 1 or rows.shape[1] == 1


def _inner_contiguous(rows: Tensor) -> bool:
    return rows.stride(2) == 1 and rows.shape[2] > 1


def in_order(tensor: Tensor) -> Tensor:
    """The tensor, made dense: contiguous, or channels last if it is so already."""
    return tensor.contiguous(memory_format=memory_format(tensor)).resolve_neg()


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The memory format of :func:`in_order`'s result."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
