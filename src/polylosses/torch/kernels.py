"""Fused loss operators, and the dispatch between their implementations.

A polynomial loss needs two numbers of every row: ``q = 1 - p`` and the tail ``-log p - q``. All else is arithmetic on
these: done by the kernel for a polynomial of numbers, and in Python for one with tensors in it (a learned epsilon). The
gradient with respect to the logits is one number for every row times ``softmax - onehot``, so that nothing of the
logits' size is kept between forward and backward.

The operators are torch's (``torch.ops.polylosses``): they can be compiled and exported. Whoever calls them, they check
dtype, device and shape of all that a kernel reads by address; so does every backward, since what was saved may have
been changed since.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import Polynomial, unchecked
from polylosses.torch import native, triton
from polylosses.torch.internals import is_by_address, is_ordinary, is_traced, why_not_by_address
from polylosses.torch.layout import as_rows, empty_like_rows, memory_format
from polylosses.torch.likelihood import polynomial_of_nll, weight_of_indices

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
        # Not "triton" on CUDA: no kernel of ours has passed tests/on_cuda.py on a device yet.
        if logits.device.type != "cpu" or logits.numel() < fewest_logits:
            return "plain"
        wanted = "native"
    else:
        wanted = _known(implementation)
    reason = unsupported or _KERNELS[wanted].why_not(logits) or _why_not(logits, others, ignore_index)
    if reason is None:
        return wanted
    if implementation is None:
        return "plain"
    raise ValueError(f"implementation={implementation!r} can't serve here: {reason}.")


def _known(implementation: str) -> str:
    if implementation not in _KERNELS:
        names = ", ".join(map(repr, ("plain", *_KERNELS)))
        raise ValueError(f"implementation must be {names} or None; got {implementation!r}.")
    return implementation


def _why_not(logits: Tensor, others: Sequence[Tensor | None], ignore_index: int | None) -> str | None:
    """Why no kernel can read these tensors by address, or None."""
    # First: torch.compile can't trace all of the questions below inside of torch.func's transforms.
    if reason := why_not_by_address():
        return reason
    traced = is_traced()
    for tensor in (logits, *others):
        if tensor is None:
            continue
        if tensor.device != logits.device:
            return f"kernels take tensors of one device, and these are on {logits.device} and {tensor.device}"
        # Not asked of what is traced: it has no address yet, and torch.compile can't trace the question.
        if not traced and is_by_address(tensor):
            continue
        if not is_ordinary(tensor):
            return f"kernels take ordinary tensors, and one is a {type(tensor).__name__}"
        if tensor.layout != torch.strided:
            return f"kernels take dense tensors, and one is {tensor.layout}"
        if not traced:
            return "kernels read memory, and one tensor has none of its own"
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**63:
        return f"kernels take an ignore_index of 64 bits, and it is {ignore_index}"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace takes the plain implementation"
    return None


def are_numbers(polynomial: Polynomial) -> bool:
    """Whether a kernel can evaluate the polynomial itself."""
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    return all(isinstance(number, float) for number in numbers) and len(polynomial.coefficients) <= MOST_COEFFICIENTS


# The implementations below are what the registered operators call. Each checks all that its kernel reads by address.


def _check(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    *,
    dense: bool = False,
    weight: Tensor | None = None,
    numbers: int | None = None,
    row_stats: Tensor | None = None,
    grad_output: Tensor | None = None,
) -> None:
    """Raises ValueError for what a kernel must not read.

    Args:
        implementation: the name of a kernel.
        logits, target, weight, row_stats, grad_output: as for the operators.
        dense: whether the target may have the logits' shape and dtype.
        numbers: how many numbers describe the coefficients.
    """
    others = (target, weight, row_stats, grad_output)
    reason = _KERNELS[_known(implementation)].why_not(logits) or _why_not(logits, others, None)
    positions = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    grad_shapes = [torch.Size(()), logits.shape if row_stats is None else positions]
    if dense and target.shape == logits.shape:
        if target.dtype != logits.dtype:
            reason = (
                reason or f"a target of the logits' shape must have their dtype, {logits.dtype}; got {target.dtype}"
            )
    elif logits.dim() == 0 or target.dtype != torch.int64 or target.shape != positions:
        reason = reason or (
            f"class indices for logits of shape {tuple(logits.shape)} must be torch.int64 of shape "
            f"{tuple(positions)}; got {target.dtype} of shape {tuple(target.shape)}"
        )
    if weight is not None and (not weight.is_floating_point() or weight.shape != logits.shape[:2][-1:]):
        reason = reason or (
            f"the class weights must be floating-point, of shape {tuple(logits.shape[:2][-1:])}; "
            f"got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    if numbers is not None and not 0 <= numbers <= MOST_COEFFICIENTS:
        reason = reason or f"kernels take at most {MOST_COEFFICIENTS} coefficients; got {numbers}"
    if row_stats is not None and (row_stats.dtype != torch.float32 or row_stats.shape != (4, *positions)):
        reason = reason or (
            f"row_stats must be torch.float32 of shape {(4, *positions)}; "
            f"got {row_stats.dtype} of shape {tuple(row_stats.shape)}"
        )
    if grad_output is not None and (not grad_output.is_floating_point() or grad_output.shape not in grad_shapes):
        reason = reason or (
            f"grad_output must be floating-point, of shape {' or '.join(str(tuple(s)) for s in grad_shapes)}; "
            f"got {grad_output.dtype} of shape {tuple(grad_output.shape)}"
        )
    if reason:
        raise ValueError(f"the kernel {implementation!r} can't take these arguments: {reason}.")


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")


def _softmax_loss(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    numbers: Sequence[float],
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss; and ``row_stats``, four numbers of every row: the factor of its gradient ``softmax - onehot``, ``q``,
    the largest logit, and 1 over the sum of ``exp(z - largest)``, which is 0 where the row is ignored.
    """
    _check(implementation, logits, target, weight=weight, numbers=len(numbers) - 2)
    _check_reduction(reduction)
    arguments = (logits, target, weight, ignore_index, numbers, reduction)
    result: tuple[Tensor, Tensor] = _KERNELS[implementation].softmax_loss(*arguments)
    return result


def _softmax_statistics(
    implementation: str, logits: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``q``, the tail and ``p`` of every row; and ``row_stats``, where all factors are 1."""
    _check(implementation, logits, target)
    result: tuple[Tensor, Tensor, Tensor, Tensor]
    result = _KERNELS[implementation].softmax_statistics(logits, target, ignore_index)
    return result


def _softmax_gradient(
    implementation: str, logits: Tensor, target: Tensor, row_stats: Tensor, grad_output: Tensor
) -> Tensor:
    """The gradient with respect to the logits; ``grad_output`` is one number, or one for every row."""
    _check(implementation, logits, target, row_stats=row_stats, grad_output=grad_output)
    result: Tensor = _KERNELS[implementation].softmax_gradient(logits, target, row_stats.contiguous(), grad_output)
    return result


def _sigmoid_loss(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    summed: bool,
) -> Tensor:
    """See :func:`sigmoid_loss`."""
    _check(implementation, logits, target, dense=True, numbers=len(numbers) - 5)
    result: Tensor = _KERNELS[implementation].sigmoid_loss(logits, target, ignore_index, numbers, summed)
    return result


def _sigmoid_gradient(
    implementation: str,
    logits: Tensor,
    target: Tensor,
    ignore_index: int | None,
    numbers: Sequence[float],
    grad_output: Tensor,
) -> Tensor:
    """The gradient with respect to the logits; ``grad_output`` is one number, or one for every element."""
    _check(implementation, logits, target, dense=True, numbers=len(numbers) - 5, grad_output=grad_output)
    arguments = (logits, target, ignore_index, numbers, grad_output)
    result: Tensor = _KERNELS[implementation].sigmoid_gradient(*arguments)
    return result


def _apply_gradient(gradient: Callable[[Tensor], Tensor], grad_output: Tensor, per_row: bool) -> Tensor:
    """``gradient(grad_output)``, where ``gradient`` is linear and may read its argument by address.

    What can't be read so (a tensor subclass, a batched or a zero tensor) is multiplied by torch.
    """
    if is_traced() or is_by_address(grad_output):
        return gradient(grad_output)
    unit = gradient(torch.ones((), dtype=torch.float32, device=grad_output.device))
    if per_row and grad_output.dim() > 0:
        grad_output = grad_output.unsqueeze(1)
    return (unit * grad_output).to(unit.dtype)


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
    operator: Any = torch.ops.polylosses.softmax_loss if is_traced() else _SoftmaxLoss.apply
    loss: Tensor = operator(implementation, logits, target, weight, ignore_index, numbers, reduction)[0]
    return loss


def softmax_statistics(logits: Tensor, target: Tensor, ignore_index: int, implementation: str) -> tuple[Tensor, Tensor]:
    """What any polynomial needs to know of every row: ``q = 1 - p`` and the tail, ``-log p - q``.

    Both are right to a few units in the last place of themselves, however small; 0 in ignored rows. Arguments and
    errors as for :func:`softmax_loss`, both results in float32 and the shape of ``target``.
    """
    operator: Any = torch.ops.polylosses.softmax_statistics if is_traced() else _SoftmaxStatistics.apply
    q, tail, *_ = operator(implementation, logits, target, ignore_index)
    return q, tail


def _save_softmax_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, weight, ctx.ignore_index, ctx.numbers, ctx.reduction = inputs
    _, row_stats = output
    ctx.mark_non_differentiable(row_stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, row_stats)


def _backward_softmax_loss(ctx: Any, grad_output: Tensor | None, *_: Any) -> Any:
    logits, target, weight, row_stats = ctx.saved_tensors
    result = None
    if grad_output is not None and torch.is_grad_enabled():
        loss = polynomial_of_nll(_polynomial(ctx.numbers), _nll(logits, target, ctx.ignore_index))
        valid = weight_of_indices(target, weight, target == ctx.ignore_index).float()
        valid = valid / valid.sum() if ctx.reduction == "mean" else valid
        loss = loss * valid if ctx.reduction == "none" else (loss * valid).sum()
        (result,) = torch.autograd.grad(loss, logits, grad_output, create_graph=True)
    elif grad_output is not None:
        result = _softmax_backward(ctx.implementation, logits, target, row_stats, grad_output)
    return None, result, *(None,) * 5


def _save_softmax_statistics(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, ctx.ignore_index = inputs
    q, _, p, row_stats = output
    ctx.mark_non_differentiable(p, row_stats)
    ctx.save_for_backward(logits, target, q, p, row_stats)


def _backward_softmax_statistics(ctx: Any, grad_q: Tensor, grad_tail: Tensor, *_: Any) -> Any:
    logits, target, q, p, row_stats = ctx.saved_tensors
    if torch.is_grad_enabled():
        nll = _nll(logits, target, ctx.ignore_index)
        again = -torch.expm1(-nll)
        (result,) = torch.autograd.grad((again, nll - again), logits, (grad_q, grad_tail), create_graph=True)
    else:
        # With respect to the logits, d(-log p) is softmax - onehot, dq is p times and d(tail) is q times that.
        grad_output = grad_q * p + grad_tail * q
        result = _softmax_backward(ctx.implementation, logits, target, row_stats, grad_output)
    return None, result, None, None


def _polynomial(numbers: Sequence[float]) -> Polynomial:
    gamma, log_weight, *coefficients = numbers
    return unchecked(tuple(coefficients), gamma, log_weight)


def _nll(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """By torch's own operations, in float32. Ignored rows may hold nan and infinities, and their gradient is 0."""
    ignored = (target == ignore_index).unsqueeze(min(1, logits.dim() - 1))
    kept = logits.float().masked_fill(ignored, 0.0)
    return F.cross_entropy(kept, target, ignore_index=ignore_index, reduction="none")


def _softmax_backward(
    implementation: str, logits: Tensor, target: Tensor, row_stats: Tensor, grad_output: Tensor
) -> Tensor:
    operator = torch.ops.polylosses.softmax_gradient if is_traced() else _softmax_gradient

    def gradient(grad_output: Tensor) -> Tensor:
        result: Tensor = operator(implementation, logits, target, row_stats, grad_output)
        return result

    return _apply_gradient(gradient, grad_output, per_row=True)


class _SoftmaxLoss(torch.autograd.Function):
    """The operator without torch's dispatch, which takes some 80 us more: as long as 100 000 logits.

    :func:`choose` has checked the arguments.
    """

    @staticmethod
    def forward(ctx: Any, implementation: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = _KERNELS[implementation].softmax_loss(*inputs)
        _save_softmax_loss(ctx, (implementation, *inputs), output)
        return output

    backward = staticmethod(_backward_softmax_loss)


class _SoftmaxStatistics(torch.autograd.Function):
    """:class:`_SoftmaxLoss` of the operator ``softmax_statistics``."""

    @staticmethod
    def forward(ctx: Any, implementation: str, *inputs: Any) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = _KERNELS[implementation].softmax_statistics(*inputs)
        _save_softmax_statistics(ctx, (implementation, *inputs), output)
        return output

    backward = staticmethod(_backward_softmax_statistics)


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
    operator: Any = torch.ops.polylosses.sigmoid_loss if is_traced() else _SigmoidLoss.apply
    loss: Tensor = operator(implementation, logits, target, ignore_index, numbers, summed)
    return loss


def _save_sigmoid_loss(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.implementation, logits, target, ctx.ignore_index, ctx.numbers, ctx.summed = inputs
    ctx.save_for_backward(logits, target)


def _backward_sigmoid_loss(ctx: Any, grad_output: Tensor) -> Any:
    logits, target = ctx.saved_tensors
    arguments = (target, ctx.ignore_index, ctx.numbers)
    if torch.is_grad_enabled():
        loss = _sigmoid_loss_of_torch(logits, *arguments)
        loss = loss.sum() if ctx.summed else loss
        (result,) = torch.autograd.grad(loss, logits, grad_output.to(loss.dtype), create_graph=True)
    else:
        operator = torch.ops.polylosses.sigmoid_gradient if is_traced() else _sigmoid_gradient

        def gradient(grad_output: Tensor) -> Tensor:
            result: Tensor = operator(ctx.implementation, logits, *arguments, grad_output)
            return result

        result = _apply_gradient(gradient, grad_output, per_row=False)
    return None, result, None, None, None, None


def _sigmoid_loss_of_torch(
    logits: Tensor, target: Tensor, ignore_index: int | None, numbers: Sequence[float]
) -> Tensor:
    """The losses of all elements by torch's own operations, in float32."""
    gamma, *of_sides = numbers[:5]
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target == ignore_index
    y = target.float()
    if target.shape != logits.shape:
        y = torch.zeros_like(logits, dtype=torch.float32)
        y = y.scatter(1, target.masked_fill(ignored, 0).unsqueeze(1), 1.0)
        ignored = ignored.unsqueeze(1).expand(logits.shape)
    total: Any = 0.0
    for sign, share, factor, log_weight in zip((-1, 1), (1 - y, y), of_sides[:2], of_sides[2:], strict=True):
        polynomial = unchecked(tuple(numbers[5:]), gamma, log_weight)
        # Elements without a share may be infinite.
        s = (sign * logits.float()).masked_fill(ignored | (share == 0), 0.0)
        total = total + factor * share * polynomial_of_nll(polynomial, -F.logsigmoid(s))
    result: Tensor = total.masked_fill(ignored, 0.0)
    return result


class _SigmoidLoss(torch.autograd.Function):
    """:class:`_SoftmaxLoss` of the operator ``sigmoid_loss``."""

    @staticmethod
    def forward(ctx: Any, implementation: str, *inputs: Any) -> Tensor:
        output: Tensor = _KERNELS[implementation].sigmoid_loss(*inputs)
        _save_sigmoid_loss(ctx, (implementation, *inputs), output)
        return output

    backward = staticmethod(_backward_sigmoid_loss)


def _register() -> None:
    schemas = {
        "softmax_loss": "(str implementation, Tensor logits, Tensor target, Tensor? weight, SymInt ignore_index, "
        "float[] numbers, str reduction) -> (Tensor, Tensor)",
        "softmax_statistics": "(str implementation, Tensor logits, Tensor target, SymInt ignore_index)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        "softmax_gradient": "(str implementation, Tensor logits, Tensor target, Tensor row_stats, Tensor grad_output)"
        " -> Tensor",
        "sigmoid_loss": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "bool summed) -> Tensor",
        "sigmoid_gradient": "(str implementation, Tensor logits, Tensor target, SymInt? ignore_index, float[] numbers, "
        "Tensor grad_output) -> Tensor",
    }

    def rows_of(target: Tensor, *first: int) -> Tensor:
        return target.new_empty((*first, *target.shape), dtype=torch.float32)

    def like_loss(_: str, logits: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        loss = rows_of(target) if others[-1] == "none" else target.new_empty((), dtype=torch.float32)
        return loss, rows_of(target, 4)

    def like_statistics(_: str, logits: Tensor, target: Tensor, __: Any) -> tuple[Tensor, ...]:
        return rows_of(target), rows_of(target), rows_of(target), rows_of(target, 4)

    def like_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return empty_like_rows(as_rows(logits)).view(logits.shape)

    def like_sigmoid_loss(_: str, logits: Tensor, *others: Any) -> Tensor:
        return logits.new_empty((), dtype=torch.float32) if others[-1] else like_sigmoid_gradient(_, logits)

    def like_sigmoid_gradient(_: str, logits: Tensor, *__: Any) -> Tensor:
        return torch.empty_like(logits, memory_format=memory_format(logits))

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
    for name, backward, save in (
        ("softmax_loss", _backward_softmax_loss, _save_softmax_loss),
        ("softmax_statistics", _backward_softmax_statistics, _save_softmax_statistics),
        ("sigmoid_loss", _backward_sigmoid_loss, _save_sigmoid_loss),
    ):
        torch.library.register_autograd(f"polylosses::{name}", backward, setup_context=save)


_register()
