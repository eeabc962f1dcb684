"""The class posterior of a model that was trained with a PolyLoss, which its softmax or sigmoid is not."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, horner, is_zero, unchecked
from polylosses.torch.likelihood import given_polynomial, in_dtype, tail
from polylosses.torch.precision import upcast


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
    logp = torch.log_softmax(upcast(input), dim)
    return torch.softmax(_log_density(polynomial, logp, _log_of_others(logp, dim)), dim).to(input.dtype)


def poly_sigmoid(
    input: Tensor, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Tensor:
    """The probabilities of a model that was trained with a sigmoid PolyLoss.

    The probability of yes is to that of no as ``p / -slope(p)`` is to the same of ``1 - p``, with
    ``slope = dL / d log p``. With ``epsilon=0`` this is :func:`torch.sigmoid`.

    Args:
        input: logits, of any shape and floating dtype.
        epsilon, gamma, polynomial: those that the model was trained with, as for :func:`poly_softmax`. What ``alpha``
            and ``pos_weight`` did stays in the result, as it does in a sigmoid.

    Returns:
        Probabilities, in the shape and dtype of ``input``.

    Raises:
        TypeError: ``input`` is not a floating-point tensor; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> poly_sigmoid(torch.tensor([2.0, 0.0, -2.0]), epsilon=2.0)
        tensor([0.7682, 0.5000, 0.2318])
    """
    if not isinstance(input, Tensor) or not input.is_floating_point():
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise TypeError(f"input must be a floating-point tensor of logits; got {got}.")
    polynomial = given_polynomial(epsilon, gamma, polynomial)
    logits = upcast(input)
    logp, logq = F.logsigmoid(logits), F.logsigmoid(-logits)
    yes, no = _log_density(polynomial, logp, logq), _log_density(polynomial, logq, logp)
    return torch.sigmoid(yes - no).to(input.dtype)


def _log_density(polynomial: Polynomial, logp: Tensor, logq: Tensor) -> Tensor:
    """The logarithm of ``p / -slope``, which the posterior is proportional to, from ``log p`` and ``log(1 - p)``."""
    limits = torch.finfo(logp.dtype)
    polynomial = in_dtype(logp, polynomial)
    coefficients, gamma, log_weight = polynomial.coefficients, polynomial.gamma, polynomial.log_weight
    # Masked classes have log p = -inf, and log q is -inf where all others are masked.
    logq = logq.clamp(min=-(limits.max**0.5))
    q = logq.exp()
    # -slope = steepness * q^gamma. For steepness, q and the quotients by it must be finite, also when differentiated.
    if is_zero(log_weight):
        # The slope is p times a polynomial in q, and p / -slope has no p. (1 - q would be noise where p is small.)
        steepness = horner([(j + gamma) * c for j, c in enumerate(coefficients or (0.0,), start=1)], q) + 0.0 * q
        density = torch.zeros_like(logp).masked_fill(logp == -torch.inf, -torch.inf)
    else:
        density, logp = logp, logp.clamp(min=-(limits.max**0.5))
        q = q.clamp(min=limits.tiny)
        steepness = -unchecked(coefficients, 0.0, log_weight).slope(logp, q)
        if not is_zero(gamma):
            over_q = unchecked(coefficients, -1.0, log_weight).value_of_tail(q, tail(logp, q))
            steepness = steepness + gamma * logp.exp() * over_q
    # It is 0 where p = 1 for some losses; the limit leaves such a class all the probability. And where the loss is not
    # monotone it is negative. The square of 1 over the limit, which the second derivative holds, is finite.
    density = density - steepness.clamp(min=2.0 * limits.tiny**0.5).log()
    return density if is_zero(gamma) else torch.sub(density, gamma * logq)


def _log_of_others(logp: Tensor, dim: int) -> Tensor:
    """``log(1 - p)`` of softmax probabilities, accurate however close to 1 the probability is."""
    # Only one class can have more than half of it: what is left is the sum of the others.
    likely = logp > -math.log(2.0)
    others = logp.masked_fill(likely, -torch.inf).clamp(min=-(torch.finfo(logp.dtype).max ** 0.5))
    unlikely = torch.log1p(-logp.masked_fill(likely, -1.0).exp())
    return torch.where(likely, torch.logsumexp(others, dim, keepdim=True), unlikely)
