"""The operators that do in one pass what is of the logits' size, for every polynomial; and the choice between them.

A polynomial loss needs two numbers of every row: ``q = 1 - p`` and the tail ``-log p - q``. All else is arithmetic on
these: done by the kernel for a polynomial of numbers, and in Python for one with tensors in it (a learned epsilon). The
gradient with respect to the logits is one number for every row times ``softmax - onehot``, so that nothing of the
logits' size is kept between the passes.

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
from polylosses.torch import native, triton
from polylosses.torch.layout import as_rows, in_order

_KERNELS = {"native": native, "triton": triton}

# Of a polynomial that a kernel evaluates itself; Powers::MOST in native.cpp.
MOST_COEFFICIENTS = 64

# Where the polynomial is computed in Python: with fewer, the plain path is faster (2 cores of an AMD EPYC: 1.15 of its
# time at 64 x 1000, 0.85 at 256 x 1000). Otherwise it is slower from the first one on.
FEWEST_LOGITS = 2**17


def choose(
    implementation: str | None,
    logits: Tensor,
    others: Sequence[Tensor | None],
    ignore_index: int | None,
    unsupported: str | None,
    fewest_logits: int = 0,
) -> str:
    """Which implementation serves: ``"plain"``, or one of the kernels.

    Args:
        implementation: what the user wants, or None for the fastest.
        logits: what to take the loss of.
        others: what else the kernel would read.
        ignore_index: the user's.
        unsupported: the option that no kernel serves, in words; None if there is none.
        fewest_logits: from how many on the CPU's kernel is faster.

    Raises:
        ValueError: the implementation that is wanted does not exist, or can't serve.
    """
    if implementation == "plain":
        return "plain"
    if implementation is None:
        wanted = "triton" if logits.device.type == "cuda" else "native"
        if wanted == "native" and logits.numel() < fewest_logits:
            return "plain"
    elif implementation in _KERNELS:
        wanted = implementation
    else:
        names = ", ".join(map(repr, ("plain", *_KERNELS)))
        raise ValueError(f"implementation must be {names} or None; got {implementation!r}.")
    reason = unsupported or _why_not(logits, others, ignore_index) or _KERNELS[wanted].why_not(logits)
    if reason is None:
        return wanted
    if implementation is None:
        return "plain"
    raise ValueError(f"implementation={implementation!r} can't serve here: {reason}.")


def _why_not(logits: Tensor, others: Sequence[Tensor | None], ignore_index: int | None) -> str | None:
    """Why no kernel can read these, if none can: kernels take addresses, which nobody checks."""
    for tensor in (logits, *others):
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"kernels take ordinary tensors, and one is a {type(tensor).__name__}"
        if tensor.layout != torch.strided:
            return f"kernels take dense tensors, and one is {tensor.layout}"
        if tensor.device != logits.device:
            return f"kernels take tensors of one device, and these are on {logits.device} and {tensor.device}"
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**63:
        return f"kernels take an ignore_index of 64 bits, and it is {ignore_index}"
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "torch.func and forward-mode derivatives take the plain implementation"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace takes the plain implementation"
    return None


def _is_watched() -> bool:
    """Whether somebody has to see the operators: a compiler, or a mode that records or replaces operations."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def are_numbers(polynomial: Polynomial) -> bool:
    """Whether a kernel can evaluate the polynomial itself."""
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    return all(isinstance(number, float) for number in numbers) and len(polynomial.coefficients) <= MOST_COEFFICIENTS


def softmax_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    polynomial: Polynomial,
    reduction: str,
    implementation: str,
) -> Tensor:
    """The loss of class indices, for a polynomial of numbers.

    Args:
        logits: of shape (C), (N, C) or (N, C, d_1, ...).
        target: class indices, int64, without the class dimension.
        weight, ignore_index, reduction: as for :func:`poly_cross_entropy`.
        polynomial: as :func:`are_numbers` has it.
        implementation: as chosen.

    Returns:
        The loss in float32.

    Raises:
        IndexError: a target is not in [0, C), and not ignored.
    """
    numbers = (polynomial.gamma, polynomial.log_weight, *polynomial.coefficients)
    operator: Any = torch.ops.polylosses.softmax_loss if _is_watched() else _SoftmaxLoss.apply
    loss: Tensor = operator(implementation, logits, target, weight, ignore_index, numbers, reduction)[0]
    return loss


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int, implementation: str) -> tuple[Tensor, Tensor]:
    """What any polynomial needs to know of every row: ``q = 1 - p`` and the tail, ``-log p - q``.

    Both are right to a few units in the last place of themselves, however small; 0 in ignored rows. Arguments and
    errors as for :func:`softmax_loss`, both results in float32 and the shape of ``target``.
    """
    operator: Any = torch.ops.polylosses.softmax_statistics if _is_watched() else _SoftmaxStatistics.apply
    q, tail, *_ = operator(implementation, logits, target, ignore_index)
    return q, tail


def _softmax_loss(implementation: str, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss; and four numbers of every row: the factor of its gradient ``softmax - onehot``, ``q``, the largest
    logit, and 1 over the sum of ``exp(z - largest)``, which is 0 where the row is ignored.
    """
    result: tuple[Tensor, Tensor] = _KERNELS[implementation].softmax_loss(*arguments)
    return result


def _softmax_statistics(implementation: str, *arguments: Any) -> tuple[Tensor, ...]:
    """``q``, the tail and ``p``; and the four numbers as above, the factors being 1."""
    result: tuple[Tensor, ...] = _KERNELS[implementation].softmax_statistics(*arguments)
    return result


def _softmax_gradient(implementation: str, *arguments: Any) -> Tensor:
    """The gradient, from logits, target, the four numbers and what is to be multiplied with the losses."""
    result: Tensor = _KERNELS[implementation].softmax_gradient(*arguments)
    return result


def _keep_of_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, weight, ctx.ignore_index, ctx.numbers, ctx.reduction = inputs
    _, rows = output
    ctx.mark_non_differentiable(rows)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, rows)


def _pull_loss(operator: Any, ctx: Any, upstream: Tensor, *_: Any) -> Any:
    logits, target, weight, rows = ctx.saved_tensors
    if not torch.is_grad_enabled():
        result = operator(ctx.implementation, logits, target, rows, upstream)
    else:
        result = _gradient_again(logits, target, ctx.ignore_index, upstream * _factor(ctx, logits, target, weight))
    return None, result, *(None,) * 5


def _factor(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """That of each row's ``softmax - onehot``, to be differentiated."""
    class_dim = 0 if logits.dim() == 1 else 1
    ignored = target == ctx.ignore_index
    label = target.masked_fill(ignored, 0)
    logp = torch.log_softmax(logits.float(), class_dim).gather(class_dim, label.unsqueeze(class_dim)).squeeze(class_dim)
    logp = logp.masked_fill(ignored, -1.0)
    gamma, log_weight, *coefficients = ctx.numbers
    with warnings.catch_warnings(action="ignore"):  # the user has been warned
        polynomial = Polynomial(tuple(coefficients), gamma, log_weight)
    counted = torch.ones_like(logp) if weight is None else weight.float()[label]
    counted = counted.masked_fill(ignored, 0.0)
    if ctx.reduction == "mean":
        counted = counted / counted.sum()
    factor: Tensor = -polynomial.slope(logp, -torch.expm1(logp)) * counted
    return factor


def _keep_of_statistics(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, ctx.ignore_index = inputs
    q, _, p, rows = output
    ctx.mark_non_differentiable(p, rows)
    ctx.save_for_backward(logits, target, q, p, rows)


def _pull_statistics(operator: Any, ctx: Any, by_q: Tensor, by_tail: Tensor, *_: Any) -> Any:
    logits, target, q, p, rows = ctx.saved_tensors
    # With respect to the logits, d(-log p) is softmax - onehot, dq is p times and d(tail) is q times that.
    if not torch.is_grad_enabled():
        result = operator(ctx.implementation, logits, target, rows, torch.addcmul(by_q * p, by_tail, q))
    else:
        p = 1.0 - q
        result = _gradient_again(logits, target, ctx.ignore_index, torch.addcmul(by_q * p, by_tail, q))
    return None, result, None, None


def _gradient_again(logits: Tensor, target: Tensor, ignore_index: int, factor: Tensor) -> Tensor:
    """``factor * (softmax - onehot)`` of torch's own operations, to be differentiated."""
    class_dim = 0 if logits.dim() == 1 else 1
    ignored = target == ignore_index
    factor = factor.masked_fill(ignored, 0.0).unsqueeze(class_dim)
    label = target.masked_fill(ignored, 0).unsqueeze(class_dim)
    softmax = torch.softmax(logits.float(), class_dim)
    return (factor * softmax).scatter_add(class_dim, label, -factor).to(logits.dtype)


class _SoftmaxLoss(torch.autograd.Function):
    """The operator without its dispatch, which takes some 80 us more: as long as 100 000 logits."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _softmax_loss(*inputs)
        _keep_of_loss(ctx, inputs, output)
        return output

    backward = staticmethod(partial(_pull_loss, _softmax_gradient))


class _SoftmaxStatistics(torch.autograd.Function):
    """As above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _softmax_statistics(*inputs)
        _keep_of_statistics(ctx, inputs, output)
        return output

    backward = staticmethod(partial(_pull_statistics, _softmax_gradient))


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
    operator: Any = torch.ops.polylosses.sigmoid_loss if _is_watched() else _SigmoidLoss.apply
    loss: Tensor = operator(implementation, logits, target, ignore_index, numbers, summed)
    return loss


def _sigmoid_loss(implementation: str, *arguments: Any) -> Tensor:
    result: Tensor = _KERNELS[implementation].sigmoid_loss(*arguments)
    return result


def _sigmoid_gradient(implementation: str, *arguments: Any) -> Tensor:
    """From the arguments of the loss but ``summed``, and what is to be multiplied with the losses."""
    result: Tensor = _KERNELS[implementation].sigmoid_gradient(*arguments)
    return result


def _keep_of_sigmoid(ctx: Any, inputs: Any, output: Any) -> None:
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
    """As above."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep_of_sigmoid(ctx, inputs, None)
        return _sigmoid_loss(*inputs)

    backward = staticmethod(partial(_pull_sigmoid, _sigmoid_gradient))


def _register() -> None:
    schemas = {
        "softmax_loss": "(str implementation, Tensor logits, Tensor target, Tensor? weight, SymInt ignore_index, "
        "float[] numbers, str reduction) -> (Tensor, Tensor)",
        "softmax_statistics": "(str implementation, Tensor logits, Tensor target, SymInt ignore_index)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        "softmax_gradient": "(str implementation, Tensor logits, Tensor target, Tensor rows, Tensor upstream)"
        " -> Tensor",
        "sigmoid_loss": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "bool summed) -> Tensor",
        "sigmoid_gradient": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "Tensor upstream) -> Tensor",
    }

    def rows_of(target: Tensor, *first: int) -> Tensor:
        return target.new_empty((*first, *target.shape), dtype=torch.float32)

    def like_loss(_: str, logits: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        loss = rows_of(target) if others[-1] == "none" else target.new_empty((), dtype=torch.float32)
        return loss, rows_of(target, 4)

    def like_statistics(_: str, logits: Tensor, target: Tensor, __: Any) -> tuple[Tensor, ...]:
        return rows_of(target), rows_of(target), rows_of(target), rows_of(target, 4)

    def like_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(as_rows(logits)).view(logits.shape)

    def like_sigmoid_loss(_: str, logits: Tensor, *others: Any) -> Tensor:
        return logits.new_empty((), dtype=torch.float32) if others[-1] else torch.empty_like(in_order(logits))

    def like_sigmoid_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(in_order(logits))

    kernels: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "softmax_loss": (_softmax_loss, like_loss),
        "softmax_statistics": (_softmax_statistics, like_statistics),
        "softmax_gradient": (_softmax_gradient, like_gradient),
        "sigmoid_loss": (_sigmoid_loss, like_sigmoid_loss),
        "sigmoid_gradient": (_sigmoid_gradient, like_sigmoid_gradient),
    }
    for name, (kernel, fake) in kernels.items():
        torch.library.define(f"polylosses::{name}", schemas[name])
        torch.library.impl(f"polylosses::{name}", "default", kernel)
        torch.library.register_fake(f"polylosses::{name}", fake)
    operators = torch.ops.polylosses
    for name, pull, keep in (
        ("softmax_loss", partial(_pull_loss, operators.softmax_gradient), _keep_of_loss),
        ("softmax_statistics", partial(_pull_statistics, operators.softmax_gradient), _keep_of_statistics),
        ("sigmoid_loss", partial(_pull_sigmoid, operators.sigmoid_gradient), _keep_of_sigmoid),
    ):
        torch.library.register_autograd(f"polylosses::{name}", pull, setup_context=keep)


_register()
