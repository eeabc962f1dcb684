"""The operators that do in one pass what is of the logits' size, for every polynomial; and the choice between them.

A polynomial loss needs two numbers of every row: ``q = 1 - p`` and the tail ``-log p - q``. The polynomial and all
options are arithmetic on these, in Python. Its gradient with respect to the logits is one number for every row times
``softmax - onehot``, so that nothing of the logits' size is kept between the passes.

The operators are torch's (``torch.ops.polylosses``): they can be compiled and exported.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.autograd.forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from polylosses.polynomial import Polynomial
from polylosses.torch import native

_KERNELS = {"native": native}

# Of a polynomial that a kernel evaluates itself.
MOST_COEFFICIENTS = 64

# Of softmaxes: with fewer, the plain path is faster. (Of sigmoids, the plain path is slower from the first one on.)
FEWEST_LOGITS = 2**15


def choose(implementation: str | None, logits: Tensor, unsupported: str | None, fewest_logits: int = 0) -> str:
    """Which implementation serves: ``"plain"``, or one of the kernels.

    Args:
        implementation: what the user wants, or None for the fastest.
        logits: what to take the loss of.
        unsupported: the option that no kernel serves, in words; None if there is none.
        fewest_logits: from how many on a kernel is faster.

    Raises:
        ValueError: the implementation that is wanted does not exist, or can't serve.
    """
    if implementation == "plain":
        return "plain"
    if implementation is None:
        if logits.numel() < fewest_logits:
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


def sigmoid_loss(
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    summed: bool,
    implementation: str,
) -> Tensor:
    """The loss of each element's sigmoid ``p``, ``positive y L(p) + negative (1 - y) L(1 - p)``, or their sum.

    Args:
        logits: of shape (N, C) or (N, C, d_1, ...) for class ids, or else any.
        target: ``y``, of the logits' shape and dtype; or class ids, int64, without the class dimension.
        ignore_index: elements with this target give 0; None for no such.
        numbers: gamma; the factors negative and positive; ``log_weight`` of negatives and positives; coefficients.
        summed: whether to give the sum of all.
        implementation: as chosen.

    Returns:
        The losses in the logits' shape and dtype, or their sum in float32.

    Raises:
        RuntimeError: a class id is not in [0, C), and not ignored.
    """
    operator: Any = torch.ops.polylosses.sigmoid_loss if torch.compiler.is_compiling() else _SigmoidLoss.apply
    loss: Tensor = operator(implementation, logits, target, ignore_index, numbers, summed)
    return loss


def _sigmoid_loss(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    summed: bool,
) -> Tensor:
    result: Tensor = _KERNELS[implementation].sigmoid_loss(logits, target, ignore_index, numbers, summed)
    return result


def _sigmoid_gradient(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    upstream: Tensor,
) -> Tensor:
    result: Tensor = _KERNELS[implementation].sigmoid_gradient(logits, target, ignore_index, numbers, upstream)
    return result


def _keep_sigmoid(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, ctx.ignore_index, ctx.numbers, _ = inputs
    ctx.save_for_backward(logits, target)


def _pull_sigmoid(operator: Any, ctx: Any, upstream: Tensor) -> Any:
    logits, target = ctx.saved_tensors
    if not torch.is_grad_enabled():
        result = operator(ctx.implementation, logits, target, ctx.ignore_index, ctx.numbers, upstream)
    else:
        result = _sigmoid_gradient_again(logits, target, ctx.ignore_index, ctx.numbers, upstream)
    return None, result, None, None, None, None


def _sigmoid_gradient_again(
    logits: Tensor, target: Tensor, ignore_index: int | None, numbers: Sequence[float], upstream: Tensor
) -> Tensor:
    """:func:`_sigmoid_gradient` of torch's own operations, to be differentiated."""
    gamma, *of_sides = numbers[:5]
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
    y = target.float()
    if target.shape != logits.shape:
        y = torch.zeros_like(logits, dtype=torch.float32)
        y = y.scatter(1, target.masked_fill(ignored, 0).unsqueeze(1), 1.0)
        ignored = ignored.unsqueeze(1).expand(logits.shape)
    gradient: Any = 0.0
    for sign, share, factor, log_weight in zip((-1, 1), (1 - y, y), of_sides[:2], of_sides[2:], strict=True):
        with warnings.catch_warnings(action="ignore"):  # the user has been warned
            polynomial = Polynomial(tuple(numbers[5:]), gamma, log_weight)
        # Elements without a share may be infinite.
        s = (sign * logits.float()).masked_fill(ignored | (share == 0), 0.0)
        q = torch.sigmoid(-s)
        gradient = gradient + sign * factor * share * polynomial.slope(F.logsigmoid(s), q) * q
    result: Tensor = (gradient * upstream).masked_fill(ignored, 0.0).to(logits.dtype)
    return result


class _SigmoidLoss(torch.autograd.Function):
    """As :class:`_SoftmaxStatistics`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep_sigmoid(ctx, inputs, None)
        return _sigmoid_loss(*inputs)

    backward = staticmethod(partial(_pull_sigmoid, _sigmoid_gradient))


def _register() -> None:
    schemas = {
        "softmax_statistics": "(Tensor logits, Tensor target, SymInt ignore_index, str implementation)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        "softmax_gradient": "(str implementation, Tensor logits, Tensor target, Tensor q, Tensor p, Tensor maximum, "
        "Tensor inverse, Tensor by_q, Tensor by_tail) -> Tensor",
        "sigmoid_loss": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "bool summed) -> Tensor",
        "sigmoid_gradient": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "Tensor upstream) -> Tensor",
    }
    for name, schema in schemas.items():
        torch.library.define(f"polylosses::{name}", schema)
    kernels: dict[str, Callable[..., Any]] = {
        "softmax_statistics": statistics,
        "softmax_gradient": gradient,
        "sigmoid_loss": _sigmoid_loss,
        "sigmoid_gradient": _sigmoid_gradient,
    }
    for name, kernel in kernels.items():
        torch.library.impl(f"polylosses::{name}", "default", kernel)

    def like_statistics(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, ...]:
        return tuple(target.new_empty(target.shape, dtype=torch.float32) for _ in range(5))

    def like_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(native.as_rows(logits)).view(logits.shape)

    def like_sigmoid_loss(_: str, logits: Tensor, __: Tensor, ___: Any, ____: Any, summed: bool) -> Tensor:
        return logits.new_empty((), dtype=torch.float32) if summed else torch.empty_like(native.in_order(logits))

    def like_sigmoid_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(native.in_order(logits))

    torch.library.register_fake("polylosses::softmax_statistics", like_statistics)
    torch.library.register_fake("polylosses::softmax_gradient", like_gradient)
    torch.library.register_fake("polylosses::sigmoid_loss", like_sigmoid_loss)
    torch.library.register_fake("polylosses::sigmoid_gradient", like_sigmoid_gradient)
    pull = partial(_pull, torch.ops.polylosses.softmax_gradient)
    torch.library.register_autograd("polylosses::softmax_statistics", pull, setup_context=_keep)
    pull = partial(_pull_sigmoid, torch.ops.polylosses.sigmoid_gradient)
    torch.library.register_autograd("polylosses::sigmoid_loss", pull, setup_context=_keep_sigmoid)


_register()
