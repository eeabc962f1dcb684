"""The operators that do in one pass what is of the logits' size, for every polynomial; and the choice between them.

A polynomial loss needs two numbers of every row: ``q = 1 - p`` and the tail ``-log p - q``. The polynomial and all
options are arithmetic on these, in Python. Its gradient with respect to the logits is one number for every row times
``softmax - onehot``, so that nothing of the logits' size is kept between the passes.

The operators are torch's (``torch.ops.polylosses``): they can be compiled and exported.
"""

from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad
from torch import Tensor, nn

from polylosses.torch import native

_KERNELS = {"native": native}

# With fewer logits, the plain path is faster.
_FEWEST_LOGITS = 2**15


def choose(implementation: str | None, logits: Tensor, unsupported: str | None) -> str:
    """Which implementation serves: ``"plain"``, or one of the kernels.

    Args:
        implementation: what the user wants, or None for the fastest.
        logits: what to take the loss of.
        unsupported: the option that no kernel serves, in words; None if there is none.

    Raises:
        ValueError: the implementation that is wanted does not exist, or can't serve.
    """
    if implementation == "plain":
        return "plain"
    if implementation is None:
        if logits.numel() < _FEWEST_LOGITS:
            return "plain"
        wanted = "native"
    elif implementation in _KERNELS:
        wanted = implementation
    else:
        raise ValueError(f"implementation must be 'plain', 'native', 'triton' or None; got {implementation!r}.")
    reason = unsupported or _why_not(logits) or _KERNELS[wanted].why_not(logits)
    if reason is None:
        return wanted
    if implementation is None:
        return "plain"
    raise ValueError(f"implementation={implementation!r} can't serve here: {reason}.")


def _why_not(logits: Tensor) -> str | None:
    if type(logits) not in (Tensor, nn.Parameter):
        return f"kernels take ordinary tensors, and the logits are a {type(logits).__name__}"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func and forward-mode derivatives take the plain implementation"
    return None


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int, implementation: str) -> tuple[Tensor, Tensor]:
    """What a polynomial needs to know of every row: ``q = 1 - p`` and the tail, ``-log p - q``.

    Both are right to a few units in the last place of themselves, however small; 0 in ignored rows.

    Args:
        logits: of shape (C), (N, C) or (N, C, d_1, ...).
        target: class indices, int64, without the class dimension.
        ignore_index: as for :func:`poly_cross_entropy`.
        implementation: as chosen.

    Returns:
        ``q`` and the tail, in float32 and the shape of ``target``.

    Raises:
        IndexError: a target is not in [0, C), and not ignored.
    """
    operator: Any = torch.ops.polylosses.softmax_statistics
    if not torch.compiler.is_compiling():
        operator = _SoftmaxStatistics.apply
    q, tail, *_ = operator(logits, target, ignore_index, implementation)
    return q, tail


def statistics(logits: Tensor, target: Tensor, ignore_index: int, implementation: str) -> tuple[Tensor, ...]:
    """``q`` and the tail; and for the gradient ``p``, the largest logit, and 1 over the sum of ``exp(z - largest)``."""
    found: tuple[Tensor, ...] = _KERNELS[implementation].softmax_statistics(logits, target, ignore_index)
    return found


def gradient(implementation: str, logits: Tensor, target: Tensor, *of_rows: Tensor) -> Tensor:
    """``(by_q p + by_tail q) (softmax - onehot)`` of each row, 0 in ignored ones.

    That is the chain rule: with respect to the logits, d(-log p) is ``softmax - onehot``, dq is ``p`` times and d(tail)
    is ``q`` times that. ``of_rows`` are all that :func:`statistics` gives but the tail, ``by_q`` and ``by_tail``.
    """
    result: Tensor = _KERNELS[implementation].softmax_gradient(logits, target, *of_rows)
    return result


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    logits, target, ctx.ignore_index, ctx.implementation = inputs
    q, _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(logits, target, q, *others)


def _pull(operator: Any, ctx: Any, by_q: Tensor, by_tail: Tensor, *_: Any) -> Any:
    logits, target, q, *others = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return operator(ctx.implementation, logits, target, q, *others, by_q, by_tail), None, None, None
    # To be differentiated again: the same of torch's own operations.
    class_dim = 0 if logits.dim() == 1 else 1
    ignored = target == ctx.ignore_index
    label = target.masked_fill(ignored, 0).unsqueeze(class_dim)
    softmax = torch.softmax(logits.float(), class_dim)
    p = softmax.gather(class_dim, label)
    scale = (by_q.unsqueeze(class_dim) * p + by_tail.unsqueeze(class_dim) * q.unsqueeze(class_dim)).masked_fill(
        ignored.unsqueeze(class_dim), 0.0
    )
    return (scale * softmax).scatter_add(class_dim, label, -scale).to(logits.dtype), None, None, None


class _SoftmaxStatistics(torch.autograd.Function):
    """The operator without its dispatch, which takes some 80 us more: as long as 100 000 logits."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        # Not the two steps of the operator, nor all of its outputs: these take some 50 us.
        logits, target, ctx.ignore_index, ctx.implementation = inputs
        q, tail, *others = statistics(*inputs)
        ctx.save_for_backward(logits, target, q, *others)
        return q, tail

    backward = staticmethod(partial(_pull, gradient))


def _register() -> None:
    schemas = {
        "softmax_statistics": "(Tensor logits, Tensor target, SymInt ignore_index, str implementation)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        "softmax_gradient": "(str implementation, Tensor logits, Tensor target, Tensor q, Tensor p, Tensor maximum, "
        "Tensor inverse, Tensor by_q, Tensor by_tail) -> Tensor",
    }
    for name, schema in schemas.items():
        torch.library.define(f"polylosses::{name}", schema)
    torch.library.impl("polylosses::softmax_statistics", "default", statistics)
    torch.library.impl("polylosses::softmax_gradient", "default", gradient)

    def like_statistics(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return tuple(target.new_empty(target.shape, dtype=torch.float32) for _ in range(5))

    def like_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(native.as_rows(logits)).view(logits.shape)

    torch.library.register_fake("polylosses::softmax_statistics", like_statistics)
    torch.library.register_fake("polylosses::softmax_gradient", like_gradient)
    pull = partial(_pull, torch.ops.polylosses.softmax_gradient)
    torch.library.register_autograd("polylosses::softmax_statistics", pull, setup_context=_keep)


_register()
