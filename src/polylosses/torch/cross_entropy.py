"""``poly_cross_entropy``: targets, the softmax link, the polynomial and the reduction, composed."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial
from polylosses.torch import kernels
from polylosses.torch.likelihood import given_polynomial, polynomial_of_tail
from polylosses.torch.precision import result_dtype
from polylosses.torch.reduction import check_reduction, count, mean, reduce
from polylosses.torch.sharded import as_sharded_as
from polylosses.torch.softmax import losses_of_indices, losses_of_probabilities
from polylosses.torch.targets import ClassTargets, as_int64, batch_shape


def poly_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    implementation: str | None = None,
) -> Tensor:
    r"""PolyLoss between logits and targets: :func:`torch.nn.functional.cross_entropy` for the whole PolyLoss family.

    With ``p`` the softmax of ``input`` and ``L`` the polynomial (by default Poly-1, ``-log p + epsilon (1 - p)``), the
    loss of one position is

    * ``weight[y] * L(p[y])`` for a class index ``y``,
    * ``sum_c weight[c] * y[c] * L(p[c])`` for class probabilities ``y``, and for an index under label smoothing, with
      the smoothed target as ``y``.

    Everything else is as in torch: with ``epsilon=0`` and ``gamma=0`` this *is* ``F.cross_entropy`` under every option.

    Args:
        input: logits of shape :math:`(C)`, :math:`(N, C)` or :math:`(N, C, d_1, ..., d_K)`, of any floating dtype.
            float16 and bfloat16 are computed in float32. Logits of minus infinity mask a class.
        target: class indices in [0, C), of shape :math:`()`, :math:`(N)` or :math:`(N, d_1, ..., d_K)` and dtype int64
            or uint8; or class probabilities, of ``input``'s shape and a floating dtype (a sparse tensor is made dense).
        weight: one factor for each class, of shape :math:`(C)`. It multiplies the whole loss: the ``alpha`` of
            softmax focal losses, but that a mean over class indices divides by the weights.
        ignore_index: positions with this target give no loss and no gradient, whatever their logits are, and don't
            count in the mean. It may be any number, a class included; one that the target's dtype can't hold ignores
            nothing. Class indices only.
        reduction: ``"mean"`` (for class indices divided by the weights of the kept targets, for probabilities by the
            number of positions), ``"sum"`` or ``"none"``.
        label_smoothing: in [0, 1]: how much of the target is spread over all classes.
        epsilon: the coefficient of ``1 - p``; a number or a tensor, which gets a gradient if it wants one. A sequence,
            or a tensor of one dimension, gives the coefficients of ``(1 - p)^1, (1 - p)^2, ...`` (Poly-N).
        gamma: the focal exponent, at least 0: multiplies the loss by ``(1 - p)^gamma``.
        polynomial: any other loss of the family, such as ``polylosses.taylor_cross_entropy(3)``, instead of
            ``epsilon`` and ``gamma``.
        implementation: ``"plain"`` is made of torch's own operations and serves everything. ``"native"`` is a kernel
            for CPUs, for logits of float32 or bfloat16; ``"triton"`` one for CUDA devices, for float16 too. Default
            None: the kernel where it serves.

    Returns:
        The loss, in the dtype that ``F.cross_entropy`` gives (autocast included): a scalar, or the shape of the
        target's positions for ``reduction="none"``. The mean over no kept target is nan, and its derivatives are 0.

    Raises:
        TypeError, ValueError: as for :class:`polylosses.Polynomial`; for a ``reduction`` that does not exist or a
            ``label_smoothing`` below 0; if ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its default.
        ValueError: ``implementation`` can't serve; it says why.
        RuntimeError, IndexError, ValueError: those of ``F.cross_entropy``, for shapes, dtypes and indices out of range.

    Note:
        The kernels are exact in ``1 - p``, so that losses and gradients keep their digits however sure the model is
        (but for ``finfo.eps * (1 - p)^2``, where Poly-N cancels the second power as well): the plain implementation
        rounds ``1 - p`` to 0 from a logit margin of some 17 on. They read the logits again in the backward pass, which
        must not have been changed in place since.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), equations 3 and 4 and listing 1.

    Example:
        >>> logits = torch.tensor([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
        >>> poly_cross_entropy(logits, torch.tensor([0, 1]), epsilon=2.0, reduction="none")
        tensor([0.4823, 0.0736])
        >>> probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]])
        >>> poly_cross_entropy(logits, probabilities, epsilon=2.0, reduction="none")
        tensor([0.4823, 1.2567])
    """
    polynomial = kernels.with_numbers(given_polynomial(epsilon, gamma, polynomial))
    check(input, target, weight, ignore_index, reduction, label_smoothing)
    targets = class_targets(input, target, weight, ignore_index, label_smoothing)
    implementation = dispatch(polynomial, input, targets, implementation)
    loss = upcast_loss(polynomial, input, targets, reduction, implementation)
    return loss.to(dtype_of_the_loss(input, targets.target, targets.weight))


def class_targets(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> ClassTargets:
    """The targets, made dense, int64 if they are class indices, and sharded like the logits."""
    if target.layout != torch.strided and target.shape == input.shape:
        target = target.to_dense()
    target = as_sharded_as(input, as_int64(target))
    weight = None if weight is None else as_sharded_as(input, weight)
    return ClassTargets(target, weight, ignore_index, label_smoothing)


def dispatch(polynomial: Polynomial, input: Tensor, targets: ClassTargets, implementation: str | None) -> str:
    """The implementation that serves, given the user's ``implementation``."""
    soft, fuses = targets.are_soft(input), _fuses(polynomial, targets)
    unsupported = _unsupported(input, targets)
    if soft and not (kernels.evaluates(polynomial) and _without_gradient(targets.weight)):
        unsupported = unsupported or (
            "with soft targets or label smoothing, kernels take at most "
            f"{kernels.MOST_COEFFICIENTS} coefficients, of these {kernels.MOST_TENSORS} scalar tensors on the CPU, a "
            "gamma that is a number, and no gradient of the class weights"
        )
    fewest_logits = 0 if soft or fuses else kernels.FEWEST_LOGITS
    tensors = (targets.target, targets.weight)
    return kernels.choose(implementation, input, tensors, targets.ignore_index, unsupported, fewest_logits)


def _fuses(polynomial: Polynomial, targets: ClassTargets) -> bool:
    """Whether a kernel can evaluate the polynomial itself; otherwise it computes row statistics only."""
    return kernels.are_numbers(polynomial) and _without_gradient(targets.weight)


def _without_gradient(weight: Tensor | None) -> bool:
    return weight is None or not weight.requires_grad


def _unsupported(input: Tensor, targets: ClassTargets) -> str | None:
    """Why no kernel supports these targets, or None."""
    target, shape = targets.target, batch_shape(input)
    if targets.are_probabilities(input):
        if target.dtype not in kernels.SOFT_TARGET_DTYPES:
            return f"kernels take class probabilities in float32 or bfloat16, and these are {target.dtype}"
        if target.requires_grad:
            return "kernels have no derivatives by the target"
        if not input.numel():
            return "there are no logits"
    elif target.dtype != torch.int64 or target.shape != shape:
        return (
            f"kernels take class indices of dtype int64 and shape {tuple(shape)}; "
            f"the target has {target.dtype} and {tuple(target.shape)}"
        )
    elif targets.label_smoothing != 0.0 and not input.numel():
        return "there are no logits"
    return None


def upcast_loss(
    polynomial: Polynomial, input: Tensor, targets: ClassTargets, reduction: str, implementation: str
) -> Tensor:
    """The loss by an implementation that serves, in float32 or float64."""
    if implementation != "plain" and targets.are_soft(input):
        return _loss_of_soft_targets(polynomial, input, targets, reduction, implementation)
    if targets.are_probabilities(input):
        # torch divides by the number of rows, which is 0 where there are no classes.
        each = 1 if input.numel() else 0
        return reduce(losses_of_probabilities(polynomial, input, targets), reduction, each, None)
    if implementation != "plain" and _fuses(polynomial, targets):
        return kernels.softmax_loss(input, targets, polynomial, reduction, implementation)
    ignored = targets.ignored()
    if implementation == "plain":
        losses, row_weight = losses_of_indices(polynomial, input, targets, ignored)
    else:
        losses = polynomial_of_tail(polynomial, *kernels.softmax_statistics(input, targets, implementation))
        row_weight = targets.row_weight(ignored, losses.dtype)
        losses = losses if targets.weight is None else losses * row_weight
    return reduce(losses, reduction, row_weight, ignored)


def _loss_of_soft_targets(
    polynomial: Polynomial, input: Tensor, targets: ClassTargets, reduction: str, implementation: str
) -> Tensor:
    """The loss of probabilities or label smoothing by a kernel, which sums over the rows."""
    loss = kernels.soft_target_loss(input, targets, polynomial, reduction != "none", implementation)
    if reduction != "mean":
        return loss
    rows = math.prod(batch_shape(input))
    if targets.are_probabilities(input):
        return mean(loss, rows, None)
    ignored = targets.ignored()
    return mean(loss, count(targets.row_weight(ignored, loss.dtype), rows), ignored)


def dtype_of_the_loss(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """The dtype of ``F.cross_entropy``'s result."""
    dtype = input.dtype
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
        if weight is not None:
            dtype = torch.promote_types(dtype, weight.dtype)
    return result_dtype(input, dtype)


def check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    """Raises torch's own errors, by calling torch, and ours for what torch lets pass although it has no meaning."""
    check_reduction(reduction)
    if not isinstance(label_smoothing, (float, int)):
        F.cross_entropy(input, target, label_smoothing=label_smoothing)
    if not label_smoothing >= 0.0:  # nan too, which torch takes for 0
        raise ValueError(f"label_smoothing must be between 0 and 1; got {label_smoothing!r}.")
    if (
        not isinstance(input, Tensor)
        or not isinstance(target, Tensor)
        or input.dim() == 0
        or not input.is_floating_point()
        or label_smoothing > 1.0
        or not isinstance(ignore_index, int)
        or isinstance(ignore_index, bool)
        or not -(2**63) <= ignore_index < 2**63
        or target.shape not in (input.shape, batch_shape(input))
        or (target.shape == input.shape and (ignore_index >= 0 or not target.is_floating_point()))
        or (
            weight is not None
            and (
                not isinstance(weight, Tensor)
                or weight.shape != input.shape[:2][-1:]
                or weight.dtype != input.dtype  # torch takes some, and all of low precision under autocast
            )
        )
    ):
        F.cross_entropy(input, target, weight, ignore_index=ignore_index, label_smoothing=label_smoothing)
