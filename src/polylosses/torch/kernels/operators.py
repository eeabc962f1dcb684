"""The fused loss operators, ``torch.ops.polylosses``, and their derivatives.

A polynomial loss needs two numbers of every row: ``q = 1 - p`` and the tail ``-log p - q``. All else is arithmetic on
these: done by the kernel for a polynomial of numbers, and in Python for one with tensors in it (a learned epsilon). The
gradient with respect to the logits is one number for every row times ``softmax - onehot``, so that nothing of the
logits' size is kept between forward and backward. Second derivatives are autograd's, of the plain loss.

torch dispatches the operators to a kernel by the logits' device, so that they can be compiled and exported. Whoever
calls them, they check dtype, device and shape of all that a kernel reads by address; so does every backward, since what
was saved may have been changed since.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylosses.polynomial import Polynomial, unchecked
from polylosses.torch.kernels import native, triton
from polylosses.torch.kernels.dispatch import KERNELS, MOST_COEFFICIENTS, numbers_and_tensors, why_not
from polylosses.torch.kernels.internals import is_by_address, is_traced
from polylosses.torch.kernels.layout import as_rows, empty_like_rows, memory_format
from polylosses.torch.precision import upcast, upcast_dtype
from polylosses.torch.reduction import check_reduction, reduce
from polylosses.torch.sigmoid import Side, Sides, losses_of_elements
from polylosses.torch.softmax import losses_of_indices, losses_of_probabilities
from polylosses.torch.targets import BinaryTargets, ClassTargets, batch_shape, broadcasts, class_dim

# Of class probabilities. Others would have to be converted first.
SOFT_TARGET_DTYPES = (torch.float32, torch.bfloat16)


def softmax_loss(
    logits: Tensor, targets: ClassTargets, polynomial: Polynomial, reduction: str, implementation: str
) -> Tensor:
    """The loss of class indices, for a polynomial of numbers.

    Args:
        logits: of shape (C), (N, C) or (N, C, d_1, ...).
        targets: class indices of dtype int64, without label smoothing.
        polynomial: one that :func:`are_numbers` is true of.
        reduction: as for :func:`poly_cross_entropy`.
        implementation: as chosen.

    Returns:
        The loss in float32.

    Raises:
        IndexError: a target is not in [0, C), and not ignored.
    """
    numbers = (polynomial.gamma, polynomial.log_weight, *polynomial.coefficients)
    arguments = (logits, targets.target, targets.weight, targets.ignore_index, numbers, reduction)
    if is_traced():
        loss: Tensor = torch.ops.polylosses.softmax_loss(*arguments)[0]
    else:
        loss = _SoftmaxLoss.apply(KERNELS[implementation], *arguments)[0]  # type: ignore[no-untyped-call]
    return loss


def soft_target_loss(
    logits: Tensor, targets: ClassTargets, polynomial: Polynomial, summed: bool, implementation: str
) -> Tensor:
    """The loss of class probabilities, or of class indices with label smoothing.

    Args:
        logits: of shape (C), (N, C) or (N, C, d_1, ...), with at least one class.
        targets: class probabilities in float32 or bfloat16, or class indices of dtype int64.
        polynomial: one that :func:`evaluates` is true of.
        summed: whether to give the sum of all rows.
        implementation: as chosen.

    Returns:
        The losses of rows, or their sum, in float32.

    Raises:
        IndexError: a target is not in [0, C), and not ignored.
    """
    polynomial, tensors = numbers_and_tensors(polynomial)
    numbers = (polynomial.gamma, polynomial.log_weight, *polynomial.coefficients)
    target, weight, ignore_index, label_smoothing = targets
    arguments = (logits, target, weight, ignore_index, label_smoothing, numbers, summed)
    if is_traced():
        loss: Tensor = torch.ops.polylosses.soft_target_loss(*arguments)[0]
    else:
        kernel = KERNELS[implementation]
        loss = _SoftTargetLoss.apply(kernel, tuple(tensors), *arguments, *tensors.values())[0]  # type: ignore[no-untyped-call]
    return loss


def softmax_statistics(logits: Tensor, targets: ClassTargets, implementation: str) -> tuple[Tensor, Tensor]:
    """Row statistics from which any polynomial can be evaluated: ``q = 1 - p`` and the tail ``-log p - q``.

    Both are right to a few units in the last place of themselves, however small; 0 in ignored rows. Arguments and
    errors as for :func:`softmax_loss`, both results in float32 and the shape of the class indices.
    """
    arguments = (logits, targets.target, targets.ignore_index)
    if is_traced():
        q, tail, *_ = torch.ops.polylosses.softmax_statistics(*arguments)
    else:
        q, tail, *_ = _SoftmaxStatistics.apply(KERNELS[implementation], *arguments)  # type: ignore[no-untyped-call]
    return q, tail


def sigmoid_loss(
    logits: Tensor, targets: BinaryTargets, sides: Sides, dtype: torch.dtype | None, implementation: str
) -> Tensor:
    """The loss of each element, ``weight * (pos_weight * y L(p) + (1 - y) L(1 - p))``, or their sum.

    Args:
        logits: of shape (N, C) or (N, C, d_1, ...) for class ids, or else any.
        targets: of the logits' shape and a floating dtype, or class ids of dtype int64; the weights without gradients.
        sides: with polynomials that :func:`evaluates` is true of, and the same tensors in both.
        dtype: of the losses, the logits' or float32; None for their sum.
        implementation: as chosen.

    Returns:
        The losses in the logits' shape, or their sum in float32.

    Raises:
        RuntimeError: a class id is not in [0, C), and not ignored.
    """
    target, weight, pos_weight, ignore_index = targets
    tensors = numbers_and_tensors(sides.positive.polynomial)[1]
    negatives, neg_weight = _numbers_of(sides.negative, None)
    positives, pos_weight = _numbers_of(sides.positive, pos_weight)
    ignore_index = None if ignore_index is None else int(ignore_index)
    weights = (weight, pos_weight, neg_weight)
    arguments = (logits, target, *weights, ignore_index, negatives, positives, sides.margin, dtype)
    loss: Tensor
    if is_traced():
        loss = torch.ops.polylosses.sigmoid_loss(*arguments)
    else:
        loss = _SigmoidLoss.apply(KERNELS[implementation], tuple(tensors), *arguments, *tensors.values())  # type: ignore[no-untyped-call]
    return loss


def _numbers_of(side: Side, weight: Tensor | None) -> tuple[tuple[float, ...], Tensor | None]:
    """A side as the operators take it, and the weight of its elements."""
    factor, polynomial = side
    polynomial, _ = numbers_and_tensors(polynomial)
    if isinstance(factor, Tensor):
        weight, factor = (factor if weight is None else upcast(weight) * factor), 1.0
    numbers = (factor, polynomial.log_weight, polynomial.gamma, *polynomial.coefficients)
    return tuple(map(float, numbers)), weight


def _check(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    others: Sequence[Tensor | None],
    dense: Sequence[torch.dtype] = (),
    coefficients: int = 0,
) -> torch.Size:
    """The batch shape; raises ValueError for arguments that a kernel must not read.

    Args:
        kernel: what is going to read them.
        logits, target: as for the operators.
        others: all other tensors that it is going to read.
        dense: the dtypes of a target of the logits' shape.
        coefficients: how many the polynomial has.
    """
    reason = kernel.why_not(logits) or why_not(logits, (target, *others), None)
    shape = batch_shape(logits)
    if dense and target.shape == logits.shape:
        if target.dtype not in dense:
            names = " or ".join(map(str, dense))
            reason = reason or f"a target of the logits' shape must be {names} here; got {target.dtype}"
    elif target.dtype != torch.int64 or target.shape != shape or logits.dim() == 0:
        reason = reason or (
            f"class indices for logits of shape {tuple(logits.shape)} must be torch.int64 of shape {tuple(shape)}; "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )
    if not 0 <= coefficients <= MOST_COEFFICIENTS:
        reason = reason or f"kernels take at most {MOST_COEFFICIENTS} coefficients; got {coefficients}"
    if reason is not None:
        raise ValueError(f"the kernel can't take these arguments: {reason}.")
    return shape


def _check_grad_output(grad_output: Tensor, shape: torch.Size) -> None:
    """Raises ValueError unless ``grad_output`` is a scalar or of the given shape."""
    if not grad_output.is_floating_point() or (grad_output.dim() > 0 and grad_output.shape != shape):
        raise ValueError(
            f"grad_output must be floating-point, of shape () or {tuple(shape)}; "
            f"got {grad_output.dtype} of shape {tuple(grad_output.shape)}."
        )


def _check_weight(weight: Tensor | None, logits: Tensor) -> None:
    """Raises ValueError unless there is one factor for each class, or none at all."""
    classes = logits.shape[:2][-1:]
    if weight is not None and (not weight.is_floating_point() or weight.shape != classes):
        raise ValueError(
            f"the class weights must be floating-point, of shape {tuple(classes)}; "
            f"got {weight.dtype} of shape {tuple(weight.shape)}."
        )


def _check_row_stats(row_stats: Tensor, shape: Sequence[int]) -> None:
    if row_stats.dtype != torch.float32 or row_stats.shape != tuple(shape):
        raise ValueError(
            f"row_stats must be torch.float32 of shape {tuple(shape)}; "
            f"got {row_stats.dtype} of shape {tuple(row_stats.shape)}."
        )


# What the registered operators run, with the kernel of the logits' device. All that it reads by address is checked.


def _softmax_loss(
    kernel: ModuleType,
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
    _check(kernel, logits, target, (weight,), coefficients=len(numbers) - 2)
    _check_weight(weight, logits)
    check_reduction(reduction)
    result: tuple[Tensor, Tensor] = kernel.softmax_loss(logits, target, weight, ignore_index, numbers, reduction)
    return result


def _softmax_statistics(
    kernel: ModuleType, logits: Tensor, target: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``q``, the tail and ``p`` of every row; and ``row_stats``, where all factors are 1."""
    _check(kernel, logits, target, ())
    result: tuple[Tensor, Tensor, Tensor, Tensor] = kernel.softmax_statistics(logits, target, ignore_index)
    return result


def _softmax_gradient(
    kernel: ModuleType, logits: Tensor, target: Tensor, row_stats: Tensor, grad_output: Tensor
) -> Tensor:
    """The gradient with respect to the logits; ``grad_output`` is one number, or one for every row."""
    shape = _check(kernel, logits, target, (row_stats, grad_output))
    _check_grad_output(grad_output, shape)
    _check_row_stats(row_stats, (4, *shape))
    result: Tensor = kernel.softmax_gradient(logits, target, row_stats.contiguous(), grad_output)
    return result


def _soft_target_loss(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    numbers: Sequence[float],
    summed: bool,
) -> tuple[Tensor, Tensor]:
    """The losses of rows, or their sum; and ``row_stats``, five numbers of every row.

    With ``t`` the weights of classes and ``s = -dL / d log p``, these are the sum of ``t s`` over all classes; that
    over the classes without the largest logit; ``1 - p`` of the largest logit; that logit; and 1 over the sum of
    ``exp(z - largest)``, which is 0 where the row is ignored.
    """
    _check(kernel, logits, target, (weight,), SOFT_TARGET_DTYPES, len(numbers) - 2)
    _check_weight(weight, logits)
    loss, row_stats, _ = kernel.soft_target_loss(logits, target, weight, ignore_index, label_smoothing, numbers, summed)
    return loss, row_stats


def _soft_target_gradient(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    numbers: Sequence[float],
    row_stats: Tensor,
    grad_output: Tensor,
) -> Tensor:
    """The gradient with respect to the logits; ``grad_output`` is one number, or one for every row."""
    others = (weight, row_stats, grad_output)
    _check(kernel, logits, target, others, SOFT_TARGET_DTYPES, len(numbers) - 2)
    _check_weight(weight, logits)
    shape = batch_shape(logits)
    _check_grad_output(grad_output, shape)
    _check_row_stats(row_stats, (5, *shape))
    result: Tensor = kernel.soft_target_gradient(
        logits, target, weight, ignore_index, label_smoothing, numbers, row_stats.contiguous(), grad_output
    )
    return result


def _sigmoid_loss(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    neg_weight: Tensor | None,
    ignore_index: int | None,
    negatives: Sequence[float],
    positives: Sequence[float],
    margin: float,
    dtype: torch.dtype | None,
) -> Tensor:
    """The losses of elements, in the logits' dtype or in float32, or else their sum.

    The numbers of ``negatives`` and ``positives`` are a factor, ``log_weight``, gamma, and the coefficients. All three
    weights broadcast to the logits.
    """
    _check_sigmoid(kernel, logits, target, (weight, pos_weight, neg_weight), (), negatives, positives)
    if dtype not in (None, logits.dtype, torch.float32):
        raise ValueError(f"dtype must be that of the logits, {logits.dtype}, torch.float32 or None; got {dtype!r}.")
    result: Tensor
    result, _ = kernel.sigmoid_loss(
        logits, target, (weight, pos_weight, neg_weight), ignore_index, negatives, positives, margin, dtype
    )
    return result


def _sigmoid_gradient(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    neg_weight: Tensor | None,
    ignore_index: int | None,
    negatives: Sequence[float],
    positives: Sequence[float],
    margin: float,
    grad_output: Tensor,
) -> Tensor:
    """The gradient with respect to the logits; ``grad_output`` is one number, or one for every element."""
    weights = (weight, pos_weight, neg_weight)
    _check_sigmoid(kernel, logits, target, weights, (grad_output,), negatives, positives)
    _check_grad_output(grad_output, logits.shape)
    result: Tensor = kernel.sigmoid_gradient(
        logits, target, weights, ignore_index, negatives, positives, margin, grad_output
    )
    return result


def _check_sigmoid(
    kernel: ModuleType,
    logits: Tensor,
    target: Tensor,
    weights: Sequence[Tensor | None],
    others: Sequence[Tensor],
    *sides: Sequence[float],
) -> None:
    dense = (target.dtype,) if target.is_floating_point() else (logits.dtype,)
    if min(map(len, sides)) < 3:
        raise ValueError(f"a side has a factor, log_weight and gamma, and then coefficients; got {sides!r}.")
    _check(kernel, logits, target, (*weights, *others), dense, max(map(len, sides)) - 3)
    for weight in weights:
        if weight is not None and not broadcasts(weight, logits.shape):
            raise ValueError(
                f"weights must be real and broadcast to the logits, of shape {tuple(logits.shape)}; "
                f"got {weight.dtype} of shape {tuple(weight.shape)}."
            )


def _gradient(
    operator: Callable[..., Tensor],
    direct: Callable[..., Tensor],
    kernel: ModuleType | None,
    arguments: tuple[Any, ...],
    grad_output: Tensor,
) -> Tensor:
    """The gradient with respect to the logits, ``arguments[0]``.

    It is linear in ``grad_output``. If that has no memory of its own (a tensor subclass, a batched or a zero tensor),
    the kernel computes the gradient for 1, and torch multiplies.

    Args:
        operator: the registered operator, for compilers and dispatch modes.
        direct: what the operator runs, called without torch's dispatcher if there is a kernel.
        kernel: the kernel of the forward pass; None if that was the operator.
        arguments: those of the operator before ``grad_output``.
        grad_output: one number, or one for each row or element.
    """
    traced = is_traced()
    gradient = operator if traced or kernel is None else partial(direct, kernel)
    if traced or is_by_address(grad_output):
        return gradient(*arguments, grad_output)
    logits: Tensor = arguments[0]
    unit = gradient(*arguments, torch.ones((), dtype=torch.float32, device=logits.device))
    if 0 < grad_output.dim() < logits.dim():
        grad_output = grad_output.unsqueeze(class_dim(logits))
    return (unit * grad_output).to(unit.dtype)


def _plain_derivatives(loss: Callable[..., Any], inputs: Sequence[Tensor], grad_output: Any) -> list[Tensor | None]:
    """The derivatives of the plain loss, with a graph, by those inputs that need them."""
    # Views, since the user's hooks would change the gradients twice.
    inputs = [tensor.view_as(tensor) for tensor in inputs]
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(loss(*inputs), needed, grad_output, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


class _Learned(NamedTuple):
    """The tensors of a polynomial, their powers as in dispatch.py, and the derivatives of the loss by each."""

    powers: Sequence[int] = ()
    tensors: Sequence[Tensor] = ()
    derivatives: Sequence[Tensor] = ()

    def backward(self, grad_output: Tensor) -> list[Tensor | None]:
        """The gradients of the tensors."""
        pairs = zip(self.derivatives, self.tensors, strict=True)
        return [(grad_output * derivative).sum().to(tensor) for derivative, tensor in pairs]

    def polynomial(self, numbers: Sequence[Any], tensors: Sequence[Tensor]) -> Polynomial:
        """The polynomial of ``numbers``, with tensors in the place of some."""
        gamma, *given = numbers
        for power, tensor in zip(self.powers, tensors, strict=True):
            given[power] = tensor
        log_weight, *coefficients = given
        return unchecked(tuple(coefficients), gamma, log_weight)


_NOTHING = _Learned()


def _save(ctx: Any, kernel: ModuleType | None, learned: _Learned, *tensors: Tensor | None) -> None:
    ctx.kernel, ctx.powers = kernel, learned.powers
    ctx.save_for_backward(*tensors, *learned.tensors, *learned.derivatives)


def _saved(ctx: Any, count: int) -> tuple[tuple[Tensor, ...], _Learned]:
    """The first ``count`` tensors that :func:`_save` was given, and what is learned."""
    saved, learned = ctx.saved_tensors, len(ctx.powers)
    tensors, derivatives = saved[count : count + learned], saved[count + learned :]
    return saved[:count], _Learned(ctx.powers, tensors, derivatives)


def _save_softmax_loss(ctx: Any, inputs: Any, output: Any, kernel: ModuleType | None = None) -> None:
    logits, target, weight, *ctx.options = inputs
    _, row_stats = output
    ctx.kernel = kernel
    ctx.mark_non_differentiable(row_stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, target, weight, row_stats)


def _backward_softmax_loss(ctx: Any, grad_output: Tensor | None, *_: Any) -> Any:
    logits, target, weight, row_stats = ctx.saved_tensors
    ignore_index, numbers, reduction = ctx.options
    result = None
    if grad_output is not None and torch.is_grad_enabled():
        targets = ClassTargets(target, weight, ignore_index)
        ignored = targets.ignored()

        def loss(logits: Tensor) -> Tensor:
            losses, row_weight = losses_of_indices(_NOTHING.polynomial(numbers, ()), logits, targets, ignored)
            return reduce(losses, reduction, row_weight, ignored)

        (result,) = _plain_derivatives(loss, (logits,), grad_output)
    elif grad_output is not None:
        saved = (logits, target, row_stats)
        result = _gradient(torch.ops.polylosses.softmax_gradient, _softmax_gradient, ctx.kernel, saved, grad_output)
    return result, *(None,) * 5


def _save_soft_target_loss(
    ctx: Any, inputs: Any, output: Any, kernel: ModuleType | None = None, learned: _Learned = _NOTHING
) -> None:
    logits, target, weight, *ctx.options = inputs
    _, row_stats = output
    ctx.mark_non_differentiable(row_stats)
    ctx.set_materialize_grads(False)
    _save(ctx, kernel, learned, logits, target, weight, row_stats)


def _backward_soft_target_loss(ctx: Any, grad_output: Tensor | None, *_: Any) -> Any:
    (logits, target, weight, row_stats), learned = _saved(ctx, 4)
    *options, summed = ctx.options
    ignore_index, label_smoothing, numbers = options
    result: Tensor | None = None
    by_tensors: list[Tensor | None] = [None] * len(learned.tensors)
    if grad_output is not None and torch.is_grad_enabled():
        targets = ClassTargets(target, weight, ignore_index, label_smoothing)

        def loss(logits: Tensor, *tensors: Tensor) -> Tensor:
            polynomial = learned.polynomial(numbers, tensors)
            if targets.are_probabilities(logits):
                losses = losses_of_probabilities(polynomial, logits, targets)
            else:
                losses = losses_of_indices(polynomial, logits, targets, targets.ignored())[0]
            return losses.sum() if summed else losses

        result, *by_tensors = _plain_derivatives(loss, (logits, *learned.tensors), grad_output)
    elif grad_output is not None:
        by_tensors = learned.backward(grad_output)
        if logits.requires_grad:
            arguments = (logits, target, weight, *options, row_stats)
            operator = torch.ops.polylosses.soft_target_gradient
            result = _gradient(operator, _soft_target_gradient, ctx.kernel, arguments, grad_output)
    return result, *(None,) * 6, *by_tensors


def _save_softmax_statistics(ctx: Any, inputs: Any, output: Any, kernel: ModuleType | None = None) -> None:
    logits, target, ctx.ignore_index = inputs
    q, _, p, row_stats = output
    ctx.kernel = kernel
    ctx.mark_non_differentiable(p, row_stats)
    ctx.save_for_backward(logits, target, q, p, row_stats)


def _backward_softmax_statistics(ctx: Any, grad_q: Tensor, grad_tail: Tensor, *_: Any) -> Any:
    logits, target, q, p, row_stats = ctx.saved_tensors
    if torch.is_grad_enabled():
        targets = ClassTargets(target, None, ctx.ignore_index)

        def statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
            nll = losses_of_indices(unchecked((), 0.0, 1.0), logits, targets, targets.ignored())[0]
            q = -torch.expm1(-nll)
            return q, nll - q

        (result,) = _plain_derivatives(statistics, (logits,), (grad_q, grad_tail))
    else:
        # With respect to the logits, d(-log p) is softmax - onehot, dq is p times and d(tail) is q times that.
        saved, grad_nll = (logits, target, row_stats), grad_q * p + grad_tail * q
        result = _gradient(torch.ops.polylosses.softmax_gradient, _softmax_gradient, ctx.kernel, saved, grad_nll)
    return result, None, None


def _save_sigmoid_loss(
    ctx: Any, inputs: Any, output: Any, kernel: ModuleType | None = None, learned: _Learned = _NOTHING
) -> None:
    logits, target, weight, pos_weight, neg_weight, *ctx.options, ctx.dtype = inputs
    _save(ctx, kernel, learned, logits, target, weight, pos_weight, neg_weight)


def _backward_sigmoid_loss(ctx: Any, grad_output: Tensor) -> Any:
    (logits, target, weight, pos_weight, neg_weight), learned = _saved(ctx, 5)
    result = None
    if torch.is_grad_enabled():
        ignore_index, negatives, positives, margin = ctx.options
        targets = BinaryTargets(target, weight, pos_weight, ignore_index)

        def loss(logits: Tensor, *tensors: Tensor) -> Tensor:
            negative = _side(negatives, neg_weight, learned, tensors)
            positive = _side(positives, None, learned, tensors)
            losses = losses_of_elements(Sides(negative, positive, margin), logits, targets)
            return losses.sum() if ctx.dtype is None else losses

        grad_output = grad_output.to(upcast_dtype(logits))
        result, *by_tensors = _plain_derivatives(loss, (logits, *learned.tensors), grad_output)
    else:
        by_tensors = learned.backward(grad_output)
        if logits.requires_grad:
            arguments = (logits, target, weight, pos_weight, neg_weight, *ctx.options)
            operator = torch.ops.polylosses.sigmoid_gradient
            result = _gradient(operator, _sigmoid_gradient, ctx.kernel, arguments, grad_output)
    return result, *(None,) * 9, *by_tensors


def _side(numbers: Sequence[float], weight: Tensor | None, learned: _Learned, tensors: Sequence[Tensor]) -> Side:
    """The inverse of :func:`_numbers_of`, with tensors in the place of some numbers."""
    factor, log_weight, gamma, *coefficients = numbers
    polynomial = learned.polynomial((gamma, log_weight, *coefficients), tensors)
    return Side(factor if weight is None else factor * weight, polynomial)


class _SoftmaxLoss(torch.autograd.Function):
    """The operator ``softmax_loss`` without torch's dispatcher, which costs some 80 us: as much as 100 000 logits.

    :func:`choose` has checked the arguments.
    """

    @staticmethod
    def forward(ctx: Any, kernel: ModuleType, *inputs: Any) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = kernel.softmax_loss(*inputs)
        _save_softmax_loss(ctx, inputs, output, kernel)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, *_backward_softmax_loss(ctx, *grad_outputs)


class _SoftTargetLoss(torch.autograd.Function):
    """The operator ``soft_target_loss`` without torch's dispatcher, with derivatives by the tensors of a polynomial.

    These are computed in the forward pass, where they cost no exponential.
    """

    @staticmethod
    def forward(ctx: Any, kernel: ModuleType, powers: tuple[int, ...], *inputs: Any) -> tuple[Tensor, Tensor]:
        count = len(inputs) - len(powers)
        inputs, tensors = inputs[:count], inputs[count:]
        loss, row_stats, derivatives = kernel.soft_target_loss(*inputs, powers)
        _save_soft_target_loss(ctx, inputs, (loss, row_stats), kernel, _Learned(powers, tensors, derivatives))
        return loss, row_stats

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None, *_backward_soft_target_loss(ctx, *grad_outputs)


class _SoftmaxStatistics(torch.autograd.Function):
    """The operator ``softmax_statistics`` without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, kernel: ModuleType, *inputs: Any) -> tuple[Tensor, ...]:
        output: tuple[Tensor, ...] = kernel.softmax_statistics(*inputs)
        _save_softmax_statistics(ctx, inputs, output, kernel)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, *_backward_softmax_statistics(ctx, *grad_outputs)


class _SigmoidLoss(torch.autograd.Function):
    """The operator ``sigmoid_loss`` without torch's dispatcher, with derivatives like :class:`_SoftTargetLoss`."""

    @staticmethod
    def forward(ctx: Any, kernel: ModuleType, powers: tuple[int, ...], *inputs: Any) -> Tensor:
        count = len(inputs) - len(powers)
        inputs, tensors = inputs[:count], inputs[count:]
        logits, target, weight, pos_weight, neg_weight, *options = inputs
        output: Tensor
        output, derivatives = kernel.sigmoid_loss(logits, target, (weight, pos_weight, neg_weight), *options, powers)
        _save_sigmoid_loss(ctx, inputs, output, kernel, _Learned(powers, tensors, derivatives))
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None, *_backward_sigmoid_loss(ctx, *grad_outputs)


def _register() -> None:
    sigmoid = (
        "Tensor logits, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? neg_weight, SymInt? ignore_index, "
        "float[] negatives, float[] positives, float margin"
    )
    schemas = {
        "softmax_loss": "(Tensor logits, Tensor target, Tensor? weight, SymInt ignore_index, float[] numbers, "
        "str reduction) -> (Tensor, Tensor)",
        "softmax_statistics": "(Tensor logits, Tensor target, SymInt ignore_index) -> (Tensor, Tensor, Tensor, Tensor)",
        "softmax_gradient": "(Tensor logits, Tensor target, Tensor row_stats, Tensor grad_output) -> Tensor",
        "soft_target_loss": "(Tensor logits, Tensor target, Tensor? weight, SymInt ignore_index, "
        "float label_smoothing, float[] numbers, bool summed) -> (Tensor, Tensor)",
        "soft_target_gradient": "(Tensor logits, Tensor target, Tensor? weight, SymInt ignore_index, "
        "float label_smoothing, float[] numbers, Tensor row_stats, Tensor grad_output) -> Tensor",
        "sigmoid_loss": f"({sigmoid}, ScalarType? dtype) -> Tensor",
        "sigmoid_gradient": f"({sigmoid}, Tensor grad_output) -> Tensor",
    }

    def rows_of(target: Tensor, *first: int) -> Tensor:
        return target.new_empty((*first, *target.shape), dtype=torch.float32)

    def like_loss(logits: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        loss = rows_of(target) if others[-1] == "none" else target.new_empty((), dtype=torch.float32)
        return loss, rows_of(target, 4)

    def like_statistics(logits: Tensor, target: Tensor, _: Any) -> tuple[Tensor, ...]:
        return rows_of(target), rows_of(target), rows_of(target), rows_of(target, 4)

    def like_soft_target_loss(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        shape = batch_shape(logits)
        loss = logits.new_empty(() if others[-1] else shape, dtype=torch.float32)
        return loss, logits.new_empty((5, *shape), dtype=torch.float32)

    def like_gradient(logits: Tensor, *_: Any) -> Tensor:
        return empty_like_rows(as_rows(logits)).view(logits.shape)

    def like_sigmoid_loss(logits: Tensor, *others: Any) -> Tensor:
        if others[-1] is None:
            return logits.new_empty((), dtype=torch.float32)
        return like_sigmoid_gradient(logits).to(others[-1])

    def like_sigmoid_gradient(logits: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(logits, memory_format=memory_format(logits))

    operators: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "softmax_loss": (_softmax_loss, like_loss),
        "softmax_statistics": (_softmax_statistics, like_statistics),
        "softmax_gradient": (_softmax_gradient, like_gradient),
        "soft_target_loss": (_soft_target_loss, like_soft_target_loss),
        "soft_target_gradient": (_soft_target_gradient, like_gradient),
        "sigmoid_loss": (_sigmoid_loss, like_sigmoid_loss),
        "sigmoid_gradient": (_sigmoid_gradient, like_sigmoid_gradient),
    }
    for name, (operator, fake) in operators.items():
        torch.library.define(f"polylosses::{name}", schemas[name])
        torch.library.impl(f"polylosses::{name}", "cpu", partial(operator, native))
        torch.library.impl(f"polylosses::{name}", "cuda", partial(operator, triton))
        torch.library.register_fake(f"polylosses::{name}", fake)
    for name, backward, save in (
        ("softmax_loss", _backward_softmax_loss, _save_softmax_loss),
        ("softmax_statistics", _backward_softmax_statistics, _save_softmax_statistics),
        ("soft_target_loss", _backward_soft_target_loss, _save_soft_target_loss),
        ("sigmoid_loss", _backward_sigmoid_loss, _save_sigmoid_loss),
    ):
        torch.library.register_autograd(f"polylosses::{name}", backward, setup_context=save)


_register()
