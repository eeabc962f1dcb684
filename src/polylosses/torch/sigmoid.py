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
from polylosses.torch.targets import BinaryTargets
from polylosses.two_sided import TwoSided


class Side(NamedTuple):
    """The loss of negatives or of positives, ``factor * L(p)``.

    Attributes:
        factor: a number, or a tensor that broadcasts to the logits.
        polynomial: L. (Its ``log_weight`` may have that shape, too.)
    """

    factor: Any
    polynomial: Polynomial


class Sides(NamedTuple):
    """The losses of negatives and positives; the ``1 - p`` of negatives is less by ``margin``, and at least 0."""

    negative: Side
    positive: Side
    margin: float = 0.0

    def are_alike(self) -> bool:
        """Whether they are one polynomial up to factors, of the whole loss and of the logarithm."""
        negative, positive = self.negative.polynomial, self.positive.polynomial
        pairs = zip((negative.gamma, *negative.coefficients), (positive.gamma, *positive.coefficients), strict=False)
        same = all(a is b or (isinstance(a, float) and isinstance(b, float) and a == b) for a, b in pairs)
        return same and len(negative.coefficients) == len(positive.coefficients) and self.margin == 0.0


def sides_of(loss: Polynomial | TwoSided, alpha: Any, alpha_on_epsilon: bool, dtype: torch.dtype) -> Sides:
    """The sides of a loss with focal loss's balance ``alpha``, on the whole loss or on the logarithm alone.

    ``dtype`` is that of the computation.
    """
    if isinstance(loss, TwoSided):
        negative, positive, margin = loss.negative, loss.positive, loss.margin
    else:
        negative, positive, margin = loss, loss, 0.0
    if alpha is None:
        return Sides(Side(1.0, negative), Side(1.0, positive), margin)
    alpha = float(alpha) if isinstance(alpha, Real) else at_least(dtype, alpha)

    def side(polynomial: Polynomial, factor: Any) -> Side:
        if alpha_on_epsilon:
            return Side(factor, polynomial)
        given = polynomial.log_weight
        return Side(1.0, polynomial if is_zero(given) else _with_log_weight(polynomial, given * factor))

    return Sides(side(negative, 1.0 - alpha), side(positive, alpha), margin)


def _with_log_weight(polynomial: Polynomial, log_weight: Any) -> Polynomial:
    return unchecked(polynomial.coefficients, polynomial.gamma, log_weight)


def losses_of_elements(sides: Sides, logits: Tensor, targets: BinaryTargets) -> Tensor:
    """``weight * (pos_weight * y L(p) + (1 - y) L(1 - p))`` of every element, ``L`` being that of the side.

    Ignored elements give 0, with gradients of 0, whatever their logits are.
    """
    logits, ignored, pos_weight = upcast(logits), targets.ignored(logits), targets.pos_weight
    if ignored is not None:
        logits = logits.masked_fill(ignored, 0.0)
    dense = targets.are_dense(logits)
    if dense:
        y = upcast(targets.target)
        y = y if ignored is None else y.masked_fill(ignored, 0.0)
    else:
        y = targets.one_hot(logits)
    if dense or not sides.are_alike():
        losses = _side(sides.positive, -logits, targets.weighted(y if pos_weight is None else pos_weight * y))
        losses = losses + _side(sides.negative, logits, targets.weighted(1.0 - y), sides.margin)
    else:
        positive = y == 1.0
        target_weight = logits.new_ones(()) if pos_weight is None else _where(positive, pos_weight, 1.0, logits)
        factor = _of_each(positive, sides.negative.factor, sides.positive.factor, logits)
        polynomial = sides.positive.polynomial
        log_weight = _of_each(positive, sides.negative.polynomial.log_weight, polynomial.log_weight, logits)
        side = Side(factor, _with_log_weight(polynomial, log_weight))
        losses = _side(side, torch.where(positive, -logits, logits), targets.weighted(target_weight))
    return losses if ignored is None else losses.masked_fill(ignored, 0.0)


def _side(side: Side, wrong: Tensor, target_weight: Tensor, margin: float = 0.0) -> Tensor:
    """``target_weight * factor * L(p)`` for ``1 - p = sigmoid(wrong) - margin``; 0 where the target weight is 0."""
    if not (isinstance(side.factor, float) and side.factor == 1.0):
        target_weight = target_weight * side.factor
    most = torch.finfo(wrong.dtype).max ** 0.5
    if not is_known_within(wrong, -most, most):
        wrong = wrong.masked_fill((target_weight == 0) & (wrong > most), 0.0)
    if margin:
        q = F.relu(torch.sigmoid(wrong) - margin)
        # Of two expressions, the one that keeps its digits; the other has finite derivatives there.
        logp = torch.where(q < 0.5, torch.log1p(-q.clamp(max=0.5)), torch.log(torch.sigmoid(-wrong) + margin))
    else:
        # It is logsigmoid(-wrong), whose second derivative is 0 in torch where p rounds to 1. (From the threshold on,
        # softplus is its argument: the default is for float32.)
        q, logp = torch.sigmoid(wrong), -F.softplus(wrong, threshold=40.0)
    return target_weight * polynomial_at(side.polynomial, logp, q)


def _of_each(positive: Tensor, a: Any, b: Any, like: Tensor) -> Any:
    """``b`` for positives and ``a`` for negatives; one number if both are equal."""
    if isinstance(a, float) and isinstance(b, float) and a == b:
        return b
    return _where(positive, b, a, like)


def _where(condition: Tensor, a: Any, b: Any, like: Tensor) -> Tensor:
    """:func:`torch.where` of numbers and tensors; numbers alone would give it the default dtype."""
    a, b = (x if isinstance(x, Tensor) and x.is_floating_point() else like.new_ones(()) * x for x in (a, b))
    return torch.where(condition, a, b)
