"""The sigmoid link: the losses of elements, in torch's own operations."""

from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import Polynomial, is_zero, unchecked
from polylosses.torch.concrete import is_known_within
from polylosses.torch.likelihood import polynomial_at
from polylosses.torch.precision import at_least, upcast
from polylosses.torch.targets import BinaryTargets, class_dim

Pair = tuple[Any, Any]


class Sides(NamedTuple):
    """The losses of negatives and positives: one polynomial up to factors, which are pairs in this order.

    Attributes:
        coefficients, gamma: those of the polynomial.
        balance: the factor of the whole loss.
        log_weight: the factor of the logarithm.
    """

    coefficients: tuple[Any, ...]
    gamma: Any
    balance: Pair
    log_weight: Pair


def sides_of(polynomial: Polynomial, alpha: Any, alpha_on_epsilon: bool, dtype: torch.dtype) -> Sides:
    """The sides of a polynomial with focal loss's balance ``alpha``, on the whole loss or on the logarithm alone.

    ``dtype`` is that of the computation.
    """
    given = polynomial.log_weight
    whole = (1.0, 1.0)
    if alpha is None:
        balance = whole
    else:
        alpha = float(alpha) if isinstance(alpha, Real) else at_least(dtype, alpha)
        balance = (1.0 - alpha, alpha)
    on_logarithm = whole if alpha_on_epsilon or is_zero(given) else balance
    log_weight = (given, given) if on_logarithm is whole else (given * balance[0], given * balance[1])
    return Sides(polynomial.coefficients, polynomial.gamma, balance if alpha_on_epsilon else whole, log_weight)


def losses_of_elements(sides: Sides, logits: Tensor, targets: BinaryTargets) -> Tensor:
    """``weight * (pos_weight * y L(p) + (1 - y) L(1 - p))`` of every element, ``L`` being that of the side.

    Ignored elements give 0, with gradients of 0, whatever their logits are.
    """
    logits, ignored, pos_weight = upcast(logits), targets.ignored(logits), targets.pos_weight
    if ignored is not None:
        logits = logits.masked_fill(ignored, 0.0)
    if targets.are_dense(logits):
        y = upcast(targets.target)
        if ignored is not None:
            y = y.masked_fill(ignored, 0.0)
        target_weight = y if pos_weight is None else pos_weight * y
        losses = _side(sides, sides.balance[1], sides.log_weight[1], -logits, target_weight)
        losses = losses + _side(sides, sides.balance[0], sides.log_weight[0], logits, 1.0 - y)
    else:
        ids = targets.target.long()
        if ignored is not None:
            ids = ids.masked_fill(targets.target == targets.ignore_index, 0)
        dim = class_dim(logits)
        # Of numbers: torch.jit.trace can't scatter a truth value.
        positive = torch.zeros_like(logits).scatter(dim, ids.unsqueeze(dim), 1.0) == 1.0
        target_weight = logits.new_ones(()) if pos_weight is None else _where(positive, pos_weight, 1.0, logits)
        balance, log_weight = (_of_each(positive, pair, logits) for pair in (sides.balance, sides.log_weight))
        losses = _side(sides, balance, log_weight, torch.where(positive, -logits, logits), target_weight)
    if targets.weight is not None:
        losses = losses * targets.weight
    return losses if ignored is None else losses.masked_fill(ignored, 0.0)


def _side(sides: Sides, balance: Any, log_weight: Any, wrong: Tensor, target_weight: Tensor) -> Tensor:
    """``target_weight * balance * L(p)`` for ``1 - p = sigmoid(wrong)``; 0 where the target weight is 0."""
    if not (isinstance(balance, float) and balance == 1.0):
        target_weight = target_weight * balance
    most = torch.finfo(wrong.dtype).max ** 0.5
    if not is_known_within(wrong, -most, most):
        wrong = wrong.masked_fill((target_weight == 0) & (wrong > most), 0.0)
    # It is logsigmoid(-wrong), whose second derivative is 0 in torch where p rounds to 1. (From the threshold on,
    # softplus is its argument: the default is for float32.)
    logp = -F.softplus(wrong, threshold=40.0)
    return target_weight * polynomial_at(
        unchecked(sides.coefficients, sides.gamma, log_weight), logp, torch.sigmoid(wrong)
    )


def _of_each(positive: Tensor, pair: Pair, like: Tensor) -> Any:
    """Each element's number of the pair; one number if both are equal."""
    negatives, positives = pair
    if isinstance(negatives, float) and isinstance(positives, float) and negatives == positives:
        return positives
    return _where(positive, positives, negatives, like)


def _where(condition: Tensor, a: Any, b: Any, like: Tensor) -> Tensor:
    """:func:`torch.where` of numbers and tensors; numbers alone would give it the default dtype."""
    a, b = (x if isinstance(x, Tensor) and x.is_floating_point() else like.new_ones(()) * x for x in (a, b))
    return torch.where(condition, a, b)
