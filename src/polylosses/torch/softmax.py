"""The softmax losses, composed of torch's own cross-entropy and arithmetic on its result."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial
from polylosses.torch.kernels import FEWEST_LOGITS, are_numbers, choose, softmax_loss, softmax_statistics
from polylosses.torch.likelihood import (
    at_least_float32,
    given_polynomial,
    is_known_false,
    is_known_within,
    log_density,
    log_of_others,
    mean_of_kept,
    polynomial_of_nll,
    polynomial_of_tail,
    result_dtype,
    weight_of_indices,
)
from polylosses.torch.sharded import as_sharded_as, is_sharded, log_softmax


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
        weight: one factor for each class, of shape :math:`(C)`. It multiplies the whole loss.
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
            for CPUs, for class indices without label smoothing and logits of float32 or bfloat16; ``"triton"`` one for
            CUDA devices, for float16 too. Default None: the kernel where it serves.

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
    polynomial = given_polynomial(epsilon, gamma, polynomial)
    _check(input, target, weight, ignore_index, reduction, label_smoothing)
    if target.layout != torch.strided and target.shape == input.shape:
        target = target.to_dense()
    target = as_int64(target)
    target = as_sharded_as(input, target)
    weight = None if weight is None else as_sharded_as(input, weight)
    options = (weight, ignore_index, label_smoothing)
    implementation = choose_for(polynomial, input, target, *options, implementation)
    loss = before_rounding(polynomial, input, target, *options, reduction, implementation)
    return loss.to(dtype_of_the_loss(input, target, weight))


def as_int64(target: Tensor) -> Tensor:
    """Indices of type uint8, which torch takes too: -100 is none of its numbers."""
    return target.long() if target.dtype == torch.uint8 else target


def choose_for(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    implementation: str | None,
) -> str:
    """Which implementation serves, if ``implementation`` is what the user wants."""
    fewest_logits = 0 if _in_kernel(polynomial, weight) else FEWEST_LOGITS
    unsupported = _unsupported(input, target, label_smoothing)
    return choose(implementation, input, (target, weight), ignore_index, unsupported, fewest_logits)


def _in_kernel(polynomial: Polynomial, weight: Tensor | None) -> bool:
    """Whether a kernel may go on to the loss; otherwise it ends with the statistics of the rows."""
    return are_numbers(polynomial) and not (weight is not None and weight.requires_grad)


def before_rounding(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    implementation: str,
) -> Tensor:
    """:func:`poly_cross_entropy` with an implementation that serves, in the dtype that it is computed in."""
    class_dim = 0 if input.dim() == 1 else 1
    if target.shape == input.shape:
        loss = _with_probabilities(polynomial, input, target, weight, label_smoothing, class_dim)
        if reduction == "mean":
            # Positions, not elements: torch's own denominator, which is 0 where there are no classes, too.
            loss = loss.sum() / (loss.numel() if input.numel() else 0)
        elif reduction == "sum":
            loss = loss.sum()
        return loss
    if implementation != "plain" and _in_kernel(polynomial, weight):
        return softmax_loss(input, target, weight, ignore_index, polynomial, reduction, implementation)
    options = (weight, ignore_index, label_smoothing, class_dim)
    loss, counted, ignored = _with_indices(polynomial, input, target, *options, implementation)
    if reduction == "mean":
        loss = mean_of_kept(loss.sum(), counted.sum(), ignored)
    elif reduction == "sum":
        loss = loss.sum()
    return loss


def poly_softmax(
    input: Tensor,
    dim: int,
    *,
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
) -> Tensor:
    """The class probabilities of a model that was trained with a PolyLoss.

    A polynomial other than cross-entropy's is no proper loss: the softmax ``p`` that minimizes it is not the class
    posterior. The posterior is proportional to ``p / -slope(p)``, with ``slope = dL / d log p``; for Poly-1, to
    ``p / (1 + epsilon p)``. With ``epsilon=0`` this is :func:`torch.softmax`. The order of the classes stays.

    Args:
        input: logits, of any shape and floating dtype.
        dim: the class dimension, as for :func:`torch.softmax`.
        epsilon, gamma, polynomial: those that the model was trained with; see :func:`poly_cross_entropy`. There is
            no posterior where the loss is not monotone (``epsilon < -1``): there the slope is taken as 0 from below.

    Returns:
        Probabilities that sum to 1 along ``dim``, in the shape of ``input`` and the dtype of ``torch.softmax``.

    Raises:
        TypeError: ``input`` is not a floating-point tensor; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> poly_softmax(logits, 1, epsilon=0.0)
        tensor([[0.8808, 0.1192]])
        >>> poly_softmax(logits, 1, epsilon=2.0)
        tensor([[0.7682, 0.2318]])
    """
    if not isinstance(input, Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(f"input must be a floating-point tensor of logits; got {got}.")
    polynomial = given_polynomial(epsilon, gamma, polynomial)
    logp = torch.log_softmax(at_least_float32(input), dim)
    return torch.softmax(log_density(polynomial, logp, log_of_others(logp, dim)), dim).to(input.dtype)


def dtype_of_the_loss(input: Tensor, target: Tensor, weight: Tensor | None) -> torch.dtype:
    """That of ``F.cross_entropy``."""
    dtype = input.dtype
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
        if weight is not None:
            dtype = torch.promote_types(dtype, weight.dtype)
    return result_dtype(input, dtype)


def _unsupported(input: Tensor, target: Tensor, label_smoothing: float) -> str | None:
    """What no kernel serves."""
    positions = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    if target.dtype != torch.int64 or target.shape != positions:
        return (
            f"kernels take class indices of dtype int64 and shape {tuple(positions)}; "
            f"the target has {target.dtype} and {tuple(target.shape)}"
        )
    if label_smoothing != 0.0:
        return f"kernels take no label smoothing, and it is {label_smoothing!r}"
    return None


def _with_indices(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    class_dim: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of every position, how much it counts in the mean, and whether it is ignored."""
    logp = None
    ignored = target == ignore_index
    # Ignored positions have p = 1 and so no loss: every term of the family vanishes there.
    if implementation != "plain":
        q, tail = softmax_statistics(input, target, ignore_index, implementation)
        loss = polynomial_of_tail(polynomial, q, tail)
    else:
        # Their logits may be nan or infinite, and their gradient is 0 all the same. (That takes as long as the loss.)
        of_kept = input if is_known_false(ignored.any()) else input.masked_fill(ignored.unsqueeze(class_dim), 0.0)
        logits = at_least_float32(of_kept)
        logp = None if label_smoothing == 0.0 else log_softmax(logits, class_dim)
        if logp is None or is_sharded(logits):  # whose nll_loss is right after torch's own log_softmax alone
            nll = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
        else:
            nll = F.nll_loss(logp, target, ignore_index=ignore_index, reduction="none")
        loss = polynomial_of_nll(polynomial, nll)
    if weight is not None:
        weight = weight.to(loss.dtype)
    counted = weight_of_indices(target, weight, ignored)
    if weight is not None:
        loss = loss * counted
    if logp is not None:
        spread = _expectation(polynomial, logp, _along(weight, logp, class_dim), class_dim)
        share = _share_of_all(label_smoothing, logp.shape[class_dim])
        loss = (1.0 - label_smoothing) * loss + share * spread.masked_fill(ignored, 0.0)
    return loss, counted, ignored


def _share_of_all(label_smoothing: float, classes: int) -> float:
    """Of every class in the smoothed target; infinite where there is none, as in torch."""
    return label_smoothing / classes if classes else math.inf


def _with_probabilities(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    class_dim: int,
) -> Tensor:
    """The loss of every position."""
    logp = log_softmax(at_least_float32(input), class_dim)
    target = at_least_float32(target)
    if label_smoothing != 0.0:
        target = target * (1.0 - label_smoothing) + _share_of_all(label_smoothing, logp.shape[class_dim])
    return _expectation(polynomial, logp, target * _along(weight, logp, class_dim), class_dim)


def _expectation(polynomial: Polynomial, logp: Tensor, share: Tensor, class_dim: int) -> Tensor:
    """``sum_c share[c] * L(p[c])``, where a class with no share counts nothing, however large its loss."""
    least = -(torch.finfo(logp.dtype).max ** 0.5)
    if not is_known_within(logp, least, 0.0):
        logp = logp.masked_fill((share == 0) & (logp < least), 0.0)
    return (share * polynomial_of_nll(polynomial, -logp)).sum(class_dim)


def _along(weight: Tensor | None, logp: Tensor, class_dim: int) -> Tensor:
    """The class weights (ones by default), shaped to broadcast along the class dimension."""
    if weight is None:
        return logp.new_ones(())
    return at_least_float32(weight).reshape([-1 if dim == class_dim else 1 for dim in range(logp.dim())])


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    """Raises what torch would raise, by asking torch, and what torch lets pass although it has no meaning."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")
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
        or target.shape not in (input.shape, input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0])
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
