"""The softmax link: the losses of rows of logits, in torch's own operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import Polynomial
from polylosses.torch.concrete import is_known_within
from polylosses.torch.likelihood import polynomial_of_nll
from polylosses.torch.precision import upcast
from polylosses.torch.sharded import is_sharded, log_softmax
from polylosses.torch.targets import ClassTargets, class_dim


def losses_of_probabilities(polynomial: Polynomial, logits: Tensor, targets: ClassTargets) -> Tensor:
    """``sum_c weight[c] * y[c] * L(p[c])`` of every row, with ``y`` the class probabilities after label smoothing."""
    logp = log_softmax(upcast(logits), class_dim(logits))
    target_weight = targets.smoothed(logp.shape[class_dim(logp)])
    weight = targets.class_weight(logp)
    return _expectation(polynomial, logp, target_weight if weight is None else target_weight * weight)


def losses_of_indices(
    polynomial: Polynomial, logits: Tensor, targets: ClassTargets, ignored: Tensor | None
) -> tuple[Tensor, Tensor | int]:
    """``weight[y] * L(p[y])`` of every row, and how much it counts in the mean.

    Under label smoothing the loss is that of :func:`losses_of_probabilities` for the smoothed one-hot row. Ignored rows
    give 0, with gradients of 0, whatever their logits are.
    """
    dim, smoothing, logp = class_dim(logits), targets.label_smoothing, None
    valid = upcast(logits if ignored is None else logits.masked_fill(ignored.unsqueeze(dim), 0.0))
    if smoothing != 0.0:
        logp = log_softmax(valid, dim)
    if logp is None or is_sharded(valid):  # whose nll_loss is right after torch's own log_softmax alone
        nll = F.cross_entropy(valid, targets.target, ignore_index=targets.ignore_index, reduction="none")
    else:
        nll = F.nll_loss(logp, targets.target, ignore_index=targets.ignore_index, reduction="none")
    # torch gives ignored rows a negative log-likelihood of 0, where every polynomial is 0.
    losses = polynomial_of_nll(polynomial, nll)
    row_weight = targets.row_weight(ignored, losses.dtype)
    if targets.weight is not None:
        losses = losses * row_weight
    if logp is not None:
        weight = targets.class_weight(logp)
        spread = _expectation(polynomial, logp, logp.new_ones(()) if weight is None else weight)
        smoothing_weight = targets.smoothing_weight(logp.shape[dim])
        spread = spread if ignored is None else spread.masked_fill(ignored, 0.0)
        losses = (1.0 - smoothing) * losses + smoothing_weight * spread
    return losses, row_weight


def _expectation(polynomial: Polynomial, logp: Tensor, target_weight: Tensor) -> Tensor:
    """``sum_c target_weight[c] * L(p[c])``; a weight of 0 times an infinite loss is 0."""
    least = -(torch.finfo(logp.dtype).max ** 0.5)
    if not is_known_within(logp, least, 0.0):
        logp = logp.masked_fill((target_weight == 0) & (logp < least), 0.0)
    return (target_weight * polynomial_of_nll(polynomial, -logp)).sum(class_dim(logp))
