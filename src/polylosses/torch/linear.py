"""A linear layer and a softmax loss, computed in chunks of rows so that all logits never exist at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, unchecked
from polylosses.torch.concrete import is_known_false
from polylosses.torch.cross_entropy import (
    check,
    class_targets,
    dispatch,
    dtype_of_the_loss,
    poly_cross_entropy,
    upcast_loss,
)
from polylosses.torch.kernels import is_by_address, with_numbers
from polylosses.torch.likelihood import given_polynomial
from polylosses.torch.precision import autocast_dtype, upcast, upcast_dtype
from polylosses.torch.reduction import count, mean
from polylosses.torch.sharded import as_sharded_as, is_sharded, logsumexp
from polylosses.torch.targets import ClassTargets, as_int64

# The size of a chunk of logits in float32. On a CPU, 16 MiB were faster than half of it and four times it (2 cores of
# an AMD EPYC, 2048 x 256 x 32000: 1.07 s, against 1.11 s and 1.85 s, and 2.10 s for all rows at once). But below some
# 100 rows a matrix product is slow (512 x 1024 x 128256: 6.1 s with 32 rows, 4.5 s with 130). Other devices were not
# measured.
_CHUNK_BYTES_ON_CPU, _CHUNK_BYTES = 2**24, 2**30
_FEWEST_ROWS = 128

# Whether torch.addmm adds products of bfloat16 to float32: on NVIDIA devices from compute capability 8.0 on
# (Liger-Kernel, pull request 1316); earlier versions of torch refuse some or all of it.
_ADDS_TO_FLOAT32 = TorchVersion(torch.__version__) >= "2.13" and torch.version.cuda is not None


def linear_poly_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss_weight: float = 0.0,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    implementation: str | None = None,
) -> Tensor:
    r"""PolyLoss of the logits ``linear(input, linear_weight, linear_bias)``, without ever holding all of them.

    The numbers are those of :func:`poly_cross_entropy` on these logits. Where the logits are too many for one chunk,
    they are made some rows at a time, in the forward pass together with their gradients (three matrix products in all;
    for ``reduction="none"`` they are made again in the backward pass: four). So what is held besides the arguments and
    their gradients is a few chunks, however many rows there are. Gradients are added up in float32.

    With ``s`` the sample weight of a row and ``z`` its logits, after ``z = softcap * tanh(z / softcap)``, the loss of
    the row is ``s * (poly_cross_entropy(z, y, weight) + z_loss_weight * logsumexp(z)^2)``.

    Args:
        input: hidden states of shape :math:`(H)`, :math:`(N, H)` or :math:`(B, T, H)`, or with more leading dimensions.
        linear_weight: of shape :math:`(V, H)`, as in :class:`torch.nn.Linear`.
        target: class indices in [0, V) of ``input``'s leading shape, such as :math:`(B, T)`; or class probabilities,
            with :math:`V` as one more dimension at the end.
        linear_bias: of shape :math:`(V)`.
        weight, ignore_index, label_smoothing, epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`.
        sample_weight: a factor for each row, of ``input``'s leading shape and any dtype, bool included. It may be
            negative (an advantage), and gets a gradient if it wants one. With ``reduction="sum"`` and ``"mean"`` there
            are three matrix products; multiplying the result of ``"none"`` takes four.
        reduction: as for :func:`poly_cross_entropy`. With sample weights, ``"mean"`` divides by the sum over kept rows
            of ``sample_weight``, for class indices times ``weight[y]``. For another denominator, divide a ``"sum"``.
        softcap: bounds the logits by ``softcap * tanh(logits / softcap)``, computed in float32 at least, as Gemma 2
            does (``final_logit_softcapping``).
        z_loss_weight: the coefficient of the z-loss, ``logsumexp(logits)^2`` (``lse_square_scale`` in Liger-Kernel and
            FlashAttention). Neither ``weight`` nor label smoothing enters it.
        implementation: as for :func:`poly_cross_entropy`: of the loss, not of the layer.

    Returns:
        The loss as :func:`poly_cross_entropy` gives it; for ``reduction="none"`` of ``input``'s leading shape.

    Raises:
        TypeError, ValueError: an argument is no tensor, or the shapes do not fit each other; ``softcap`` is no positive
            number or ``z_loss_weight`` none from 0 on.
        TypeError, ValueError, RuntimeError, IndexError: as for :func:`poly_cross_entropy`.
        NotImplementedError: a forward-mode derivative by ``target`` or ``weight``, of more than one chunk.

    Note:
        All logits are held for derivatives of derivatives, for those by ``torch.func``, and where class probabilities
        or class weights want a gradient. So they are, by each device its share, where ``input`` or ``linear_weight`` is
        spread over devices (DTensor).

    Source: for making the gradients in the forward pass, Hsu et al., 2024, "Liger Kernel: Efficient Triton Kernels for
    LLM Training" (arXiv 2410.10989), section 3.2. For the z-loss, Chowdhery et al., 2022, "PaLM: Scaling Language
    Modeling with Pathways" (arXiv 2204.02311), section 5. For softcapping, Gemma Team, 2024, "Gemma 2" (arXiv
    2408.00118), section 2.

    Example:
        >>> hidden = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # one sequence of two tokens
        >>> head = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
        >>> linear_poly_cross_entropy(hidden, head, torch.tensor([[0, 2]]), epsilon=2.0)
        tensor(1.1521)
        >>> poly_cross_entropy((hidden @ head.T)[0], torch.tensor([0, 2]), epsilon=2.0)
        tensor(1.1521)
    """
    polynomial = with_numbers(given_polynomial(epsilon, gamma, polynomial))
    _check(input, linear_weight, linear_bias, target, sample_weight, softcap, z_loss_weight)
    rows = input.flatten(0, -2) if input.dim() > 1 else input.unsqueeze(0)
    classes = linear_weight.shape[0]
    labels = target.reshape(rows.shape[0], classes) if target.dim() == input.dim() else target.reshape(-1)
    labels = as_int64(labels)
    chunk_bytes = _CHUNK_BYTES_ON_CPU if input.device.type == "cpu" else _CHUNK_BYTES
    chunk_rows = max(_FEWEST_ROWS, chunk_bytes // (4 * max(1, classes)))
    in_one = (
        rows.shape[0] <= chunk_rows
        or labels.requires_grad
        or (weight is not None and weight.requires_grad)
        or is_sharded(rows)
        or is_sharded(linear_weight)
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # it would record no gradient
    )
    # Of no rows where there are chunks, so that wrong arguments are found before much is computed.
    x, y = (rows, labels) if in_one else (rows[:0], labels[:0])
    logits = F.linear(_without_ignored(x, y, ignore_index), linear_weight, linear_bias)
    if in_one and sample_weight is None and softcap is None and z_loss_weight == 0.0:
        loss = poly_cross_entropy(
            logits,
            labels,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            polynomial=polynomial,
            implementation=implementation,
        )
        return loss.reshape(input.shape[:-1]) if reduction == "none" else loss
    check(logits, y, weight, ignore_index, reduction, label_smoothing)
    targets = class_targets(logits, labels, weight, ignore_index, label_smoothing)
    row_scale = _row_scale(sample_weight, z_loss_weight, logits, targets)
    if in_one:
        loss = _row_losses(polynomial, logits, targets, implementation, softcap, z_loss_weight, row_scale)
        loss = loss if reduction == "none" else loss.sum()
    else:
        upcast_loss(polynomial, logits, targets._replace(target=targets.target[:0]), reduction, "plain")
        # What autocast would cast to before F.linear is cast to inside, so that gradients keep their own dtype.
        dtype = rows.dtype if rows.dtype == torch.float64 else autocast_dtype(rows) or rows.dtype
        # Kernels read bfloat16 and write its gradient, without a copy in float32. In float16, much of it would be 0.
        wide = torch.promote_types(dtype, torch.float32)
        logits_dtype = dtype if dtype == torch.bfloat16 else wide
        of_chunk = rows.new_empty((1, classes), dtype=logits_dtype).expand(chunk_rows, classes)
        on_chunk = dispatch(polynomial, of_chunk, targets._replace(target=targets.target[:chunk_rows]), implementation)
        how = _How(
            polynomial=polynomial,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            softcap=softcap,
            z_loss_weight=z_loss_weight,
            implementation=implementation,
            chunk_rows=chunk_rows,
            dtype=dtype,
            logits_dtype=wide if on_chunk == "plain" else logits_dtype,
        )
        loss = _in_chunks(how, targets, reduction == "none", (rows, linear_weight, linear_bias, row_scale))
    if reduction == "mean":
        ignored = targets.ignored() if labels.dim() == 1 else None
        row_weight = targets.row_weight(ignored, loss.dtype) if labels.dim() == 1 else 1
        if row_scale is not None:
            row_weight, ignored = row_weight * row_scale, row_scale == 0
        loss = mean(loss, count(row_weight, rows.shape[0]), ignored)
    loss = loss.to(dtype_of_the_loss(rows, targets.target, weight))
    return loss.reshape(input.shape[:-1]) if reduction == "none" else loss


def _check(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    sample_weight: Tensor | None,
    softcap: float | None,
    z_loss_weight: float,
) -> None:
    for name, tensor in (("input", input), ("linear_weight", linear_weight), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor; got {tensor!r}.")
    if linear_weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != linear_weight.shape[1]:
        raise ValueError(
            "input must have shape (..., H) and linear_weight (V, H), as for torch.nn.functional.linear; "
            f"got {tuple(input.shape)} and {tuple(linear_weight.shape)}."
        )
    classes = linear_weight.shape[0]
    if linear_bias is not None and (not isinstance(linear_bias, Tensor) or linear_bias.shape != (classes,)):
        got = tuple(linear_bias.shape) if isinstance(linear_bias, Tensor) else linear_bias
        raise ValueError(f"linear_bias must be a tensor of shape {(classes,)}, one number for each class; got {got}.")
    places = tuple(input.shape[:-1])
    if tuple(target.shape) not in (places, (*places, classes)):
        raise ValueError(
            f"target must have shape {places} (class indices) or {(*places, classes)} (class probabilities); "
            f"got {tuple(target.shape)}."
        )
    if sample_weight is not None and (not isinstance(sample_weight, Tensor) or tuple(sample_weight.shape) != places):
        got = tuple(sample_weight.shape) if isinstance(sample_weight, Tensor) else sample_weight
        raise ValueError(f"sample_weight must be a tensor of shape {places}, one number for each row; got {got}.")
    if sample_weight is not None and sample_weight.is_complex():
        raise ValueError(f"sample_weight must be real; got {sample_weight.dtype}.")
    check_logit_options(softcap, z_loss_weight)


def check_logit_options(softcap: float | None, z_loss_weight: float) -> None:
    """Raises a ValueError unless they are numbers that mean something."""
    if softcap is not None and not (_is_number(softcap) and 0.0 < float(softcap) < math.inf):
        raise ValueError(f"softcap must be a number above 0, or None for no softcapping; got {softcap!r}.")
    if not (_is_number(z_loss_weight) and 0.0 <= float(z_loss_weight) < math.inf):
        raise ValueError(f"z_loss_weight must be a number, at least 0; got {z_loss_weight!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _row_scale(
    sample_weight: Tensor | None, z_loss_weight: float, logits: Tensor, targets: ClassTargets
) -> Tensor | None:
    """The factor of each row's loss in its dtype, 0 for ignored ones; None if the loss needs none."""
    if sample_weight is None and z_loss_weight == 0.0:
        return None
    dtype = upcast_dtype(logits)
    if sample_weight is None:
        scale = torch.ones(targets.target.shape[:1], dtype=dtype, device=logits.device)
    else:
        scale = sample_weight.reshape(-1).to(dtype)
    scale = as_sharded_as(logits, scale)
    # The z-loss of an ignored row would not be 0.
    return scale.masked_fill(targets.target == targets.ignore_index, 0.0) if targets.target.dim() == 1 else scale


def _row_losses(
    polynomial: Polynomial,
    logits: Tensor,
    targets: ClassTargets,
    implementation: str | None,
    softcap: float | None,
    z_loss_weight: float,
    row_scale: Tensor | None,
) -> Tensor:
    """The loss of each row, in float32 or float64."""
    if softcap is not None:
        logits = softcap * torch.tanh(upcast(logits) / softcap)
    chosen = dispatch(polynomial, logits, targets, implementation)
    losses = upcast_loss(polynomial, logits, targets, "none", chosen)
    if z_loss_weight != 0.0:
        losses = losses + z_loss_weight * logsumexp(upcast(logits), 1).square()
    return losses if row_scale is None else losses * row_scale


class _How(NamedTuple):
    """The options that all chunks share.

    Attributes:
        polynomial, ignore_index, label_smoothing, softcap, z_loss_weight, implementation: the user's.
        chunk_rows: how many rows a chunk has.
        dtype: in which the layer is computed.
        logits_dtype: in which the logits are given to the loss.
    """

    polynomial: Polynomial
    ignore_index: int
    label_smoothing: float
    softcap: float | None
    z_loss_weight: float
    implementation: str | None
    chunk_rows: int
    dtype: torch.dtype
    logits_dtype: torch.dtype


def _in_chunks(how: _How, targets: ClassTargets, per_row: bool, layer: tuple[Tensor | None, ...]) -> Tensor:
    """The loss of each row, or their sum. ``layer``: rows, weight, bias, and a factor for each row's loss."""
    numbers = (*how.polynomial.coefficients, how.polynomial.gamma, how.polynomial.log_weight)
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    inputs = (*layer, *(tensor if tensor.is_floating_point() else tensor.float() for tensor in tensors))
    wanted = tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in inputs)
    loss: Tensor = _apply(how, wanted, per_row, targets.target, targets.weight, *inputs)[0]
    return loss


class _Chunked(torch.autograd.Function):
    """The loss in chunks. For a sum, the forward pass computes the gradients too, and the backward pass scales them."""

    @staticmethod
    def forward(how: _How, wanted: Any, per_row: bool, target: Any, weight: Any, *inputs: Any) -> tuple[Tensor, ...]:
        rows, linear_weight, linear_bias, row_scale, *tensors = inputs
        with _without_autocast(rows):
            if not per_row and any(wanted):
                # Of the sum, also for the mean: a factor of 1 over the number of rows would make gradients vanish in
                # float16, before the scale of a GradScaler has come.
                return _loss_and_gradients(how, wanted, _one(rows), target, weight, *inputs)
            linear_weight = linear_weight.to(how.dtype)
            losses = (
                _of_logits(how, y, weight, x, linear_weight, linear_bias, s, *tensors)
                for x, y, s in _chunks(how, rows, target, row_scale)
            )
            loss = torch.cat([of(*given) for of, given in losses])
            return (loss if per_row else loss.sum(),)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.how, ctx.wanted, ctx.per_row, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # torch would make zeros for what has no gradient, as large as the weight
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.ready = output[1:]

    @staticmethod
    def backward(ctx: Any, grad_output: Any, *_: Any) -> Any:
        if grad_output is None:
            return (None,) * (5 + len(ctx.wanted))
        tensors = ctx.saved_tensors
        if ctx.per_row or (torch.is_grad_enabled() and not torch.compiler.is_compiling()):
            # One number for each row; or derivatives of derivatives, which need the gradients as a function of inputs.
            with _without_autocast(grad_output):
                gradients = list(_loss_and_gradients(ctx.how, ctx.wanted, grad_output, *tensors)[1:])
        else:
            ready = ctx.ready
            if not ready and not torch.compiler.is_compiling():
                with _without_autocast(grad_output):
                    ready = _loss_and_gradients(ctx.how, ctx.wanted, _one(tensors[2]), *tensors)[1:]
            if torch.compiler.is_compiling() or not is_by_address(grad_output):
                gradients = [(upcast(gradient) * grad_output).to(gradient.dtype) for gradient in ready]
            else:
                # In place, and given away: they may be as large as the weight. A second backward recomputes them.
                ctx.ready = ()
                # In float32: a GradScaler starts with a scale that float16 can't hold.
                gradients = [upcast(gradient).mul_(grad_output).to(gradient.dtype) for gradient in ready]
        given = iter(gradients)
        return None, None, None, None, None, *(next(given) if wanted else None for wanted in ctx.wanted)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        # One after another: what is mapped over must not multiply a chunk.
        results = []
        for k in range(info.batch_size):
            pairs = zip(arguments, in_dims, strict=True)
            # Only tensors have a dimension that is mapped over.
            one = [x.select(dim, k) if isinstance(dim, int) else x for x, dim in pairs]
            results.append(_apply(*one))
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)


class _ChunkedBothWays(_Chunked):
    """With forward-mode derivatives, in a class of its own since torch.compile takes no Function that has them."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        target, weight, rows, linear_weight, linear_bias, row_scale, *tensors = ctx.saved_tensors
        along_target, along_class_weight, along_rows, along_weight, along_bias, along_scale = tangents[3:9]
        along_tensors = tangents[9:]
        if along_target is not None or along_class_weight is not None:
            raise NotImplementedError(
                "linear_poly_cross_entropy has no forward-mode derivatives by target and weight; "
                "use poly_cross_entropy of torch.nn.functional.linear's logits."
            )
        chunk_rows, dtype = ctx.how.chunk_rows, ctx.how.dtype
        linear_weight = linear_weight.to(dtype)
        parts = []
        chunks = _chunks(ctx.how, rows, target, row_scale)
        for k, (x, y, s) in zip(range(0, rows.shape[0], chunk_rows), chunks, strict=True):
            with _without_autocast(rows):
                of, given = _of_logits(ctx.how, y, weight, x, linear_weight, linear_bias, s, *tensors)
                along = torch.zeros_like(given[0])
                if along_rows is not None:
                    along = along + _linear(dtype, along_rows[k : k + chunk_rows], linear_weight, None)
                if along_weight is not None:
                    along = along + _linear(dtype, x, along_weight, None)
                if along_bias is not None:
                    along = along + along_bias
                along_chunk = None if along_scale is None else along_scale[k : k + chunk_rows]
                along_others = along_tensors if s is None else (along_chunk, *along_tensors)
                others = [
                    torch.zeros_like(t) if to is None else to for t, to in zip(given[1:], along_others, strict=True)
                ]
                # What pulls back is linear, so that its own pullback pushes forward.
                some, pull, *_ = torch.func.vjp(of, *given)
                _, push, *_ = torch.func.vjp(pull, torch.ones_like(some))
                parts.append(push((along, *others))[0])
        pushed = torch.cat(parts)
        return pushed if ctx.per_row else pushed.sum(), *(None for _ in ctx.ready)


def _apply(*arguments: Any) -> tuple[Tensor, ...]:
    function = _Chunked if torch.compiler.is_compiling() else _ChunkedBothWays
    results: tuple[Tensor, ...] = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return results


def _one(rows: Tensor) -> Tensor:
    """A gradient of 1, in float32 or float64."""
    return rows.new_ones((), dtype=torch.promote_types(rows.dtype, torch.float32))


def _without_autocast(input: Tensor) -> AbstractContextManager[Any]:
    """Disables autocast, if it is on: inside, tensors are cast explicitly."""
    return nullcontext() if autocast_dtype(input) is None else torch.autocast(input.device.type, enabled=False)


def _without_ignored(rows: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The rows, with ignored ones set to 0: nan or infinity in one would spread to the weight's gradient."""
    if labels.dim() != 1 or not isinstance(ignore_index, int) or not -(2**63) <= ignore_index < 2**63:
        return rows  # probabilities, or what torch's own errors are for
    ignored = labels == ignore_index
    return rows if is_known_false(ignored.any()) else rows.masked_fill(as_sharded_as(rows, ignored.unsqueeze(1)), 0.0)


def _chunks(
    how: _How, rows: Tensor, target: Tensor, row_scale: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    xs, ys = torch.split(rows, how.chunk_rows), torch.split(target, how.chunk_rows)
    scales = [None] * len(xs) if row_scale is None else torch.split(row_scale, how.chunk_rows)
    for x, y, s in zip(xs, ys, scales, strict=True):
        yield _without_ignored(x, y, how.ignore_index), y, s


def _loss_and_gradients(
    how: _How, wanted: Any, grad_output: Tensor, target: Tensor, weight: Tensor | None, *inputs: Any
) -> tuple[Tensor, ...]:
    """The sum of the losses, and the gradients of ``(losses * grad_output).sum()``; that is a scalar or one a row."""
    rows, linear_weight, linear_bias, row_scale, *tensors = inputs
    chunk_rows, dtype = how.chunk_rows, how.dtype
    linear_weight = linear_weight.to(dtype)  # once, and not for every chunk
    # Gradients that are to be differentiated again are made anew; others are written and added up in place. (Some
    # transforms have no rule for that; and small pieces kept between large ones that come and go scatter the memory.)
    again = torch.is_grad_enabled() or not (torch.compiler.is_compiling() or is_by_address(grad_output))
    loss: Any = 0.0
    by_rows = torch.empty_like(rows)
    by_weight: Any = 0.0 if again else None  # never twice: it is as large as the weight
    by_bias: Any = 0.0
    by_scale: list[Tensor] = []
    by_tensors: list[Any] = [0.0] * len(tensors)
    pieces = []
    pieces_of = (torch.split(tensor, chunk_rows) for tensor in (grad_output.expand(rows.shape[0]), by_rows))
    for (x, y, s), grad, by_x in zip(_chunks(how, rows, target, row_scale), *pieces_of, strict=True):
        some, pull = _value_and_pullback(*_of_logits(how, y, weight, x, linear_weight, linear_bias, s, *tensors))
        loss = loss + some.sum()
        by_logits, *more = pull(grad.to(some.dtype), retain_graph=again)
        if wanted[0]:
            piece = (by_logits.to(dtype) @ linear_weight).to(x.dtype)
            pieces.append(piece) if again else by_x.copy_(piece)
        if wanted[1]:
            if again:
                by_weight = by_weight + upcast(by_logits).t() @ upcast(x)
            else:
                by_weight = _plus_product(by_weight, by_logits.t(), x.to(by_logits.dtype))
        if wanted[2]:
            by_bias = by_bias + upcast(by_logits).sum(0)
        if s is not None:
            by_s = more.pop(0)
            if wanted[3]:
                by_scale.append(by_s)
        by_tensors = [total + part for total, part in zip(by_tensors, more, strict=True)]
        del some, pull, by_logits  # before the next chunk is made
    by_row_scale = torch.cat(by_scale) if by_scale else None
    gradients = [torch.cat(pieces) if pieces else by_rows, by_weight, by_bias, by_row_scale, *by_tensors]
    return loss, *(gradient for gradient, want in zip(gradients, wanted, strict=True) if want)


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` in float32 or float64, in the memory of ``total``."""
    if (
        a.is_cuda
        and a.dtype == torch.bfloat16
        and _ADDS_TO_FLOAT32
        and torch.cuda.get_device_capability(a.device) >= (8, 0)
    ):
        if total is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    a, b = upcast(a), upcast(b)
    return a @ b if total is None else total.addmm_(a, b)


def _of_logits(
    how: _How,
    target: Tensor,
    weight: Tensor | None,
    rows: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    row_scale: Tensor | None,
    *tensors: Tensor,
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The losses of a chunk as a function of its logits, ``row_scale`` if there is one, and the polynomial's tensors.

    Also these arguments.
    """
    targets = ClassTargets(target, weight, how.ignore_index, how.label_smoothing)
    scales = () if row_scale is None else (row_scale,)

    def of(logits: Tensor, *others: Tensor) -> Tensor:
        polynomial = _with_tensors(how.polynomial, others[len(scales) :])
        options = (how.implementation, how.softcap, how.z_loss_weight)
        return _row_losses(polynomial, logits, targets, *options, others[0] if scales else None)

    return of, (_linear(how.dtype, rows, linear_weight, linear_bias).to(how.logits_dtype), *scales, *tensors)


def _linear(dtype: torch.dtype, rows: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    return F.linear(rows.to(dtype), linear_weight.to(dtype), None if linear_bias is None else linear_bias.to(dtype))


def _value_and_pullback(of: Callable[..., Tensor], given: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    """``torch.func.vjp(of, *given)``, also under hooks for saved tensors, which torch.func refuses."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.func.vjp(of, *given)  # type: ignore[return-value]  # it has no third one
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    with torch.enable_grad(), ExitStack() as stack:
        # Checkpointing and offloading of activations hook in where tensors are saved. What is saved here is used at
        # once: hooks that do nothing hide it from them. (They detach: a tensor that is saved by what made it would not
        # be freed. And torch.func forbids hooks, so that there are none to hide from.)
        with suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda x: x))
        loss = of(*leaves)
    return loss.detach(), partial(torch.autograd.grad, loss, leaves)


def _with_tensors(polynomial: Polynomial, tensors: Sequence[Tensor]) -> Polynomial:
    """The polynomial with its tensors replaced."""
    if not tensors:
        return polynomial
    given = iter(tensors)

    def new(number: Any) -> Any:
        return next(given) if isinstance(number, Tensor) else number

    return unchecked(tuple(new(c) for c in polynomial.coefficients), new(polynomial.gamma), new(polynomial.log_weight))
