"""The polynomial at probabilities, with finite derivatives; and PolyLoss from negative log-likelihoods."""

import math
from typing import Any

import torch
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, is_zero, parse, unchecked
from polylosses.torch.concrete import is_known_within
from polylosses.torch.precision import at_least, upcast


def poly_from_nll(
    nll: Tensor, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Tensor:
    """PolyLoss from negative log-likelihoods, elementwise: for any cross-entropy that can give one number per row.

    ``p = exp(-nll)``, then the polynomial; that is all that sets PolyLoss apart from cross-entropy. So it composes
    with what computes the negative log-likelihood in its own way: fused or sharded cross-entropy, the token
    log-probabilities of a language model's trainer.

    Args:
        nll: negative log-likelihoods of the true class, at least 0, of any shape. An ignored row with ``nll = 0``
            gives 0.
        epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`.

    Returns:
        The losses, in the shape and dtype of ``nll``; float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: ``nll`` is not a floating-point tensor; otherwise as :func:`poly_cross_entropy`.

    Example:
        >>> nll = -torch.log_softmax(torch.tensor([[4.0, 2.0, 1.0]]), dim=1)[:, 0]
        >>> poly_from_nll(nll, epsilon=2.0)
        tensor([0.4823])
    """
    if not isinstance(nll, Tensor) or not nll.is_floating_point():
        got = nll.dtype if isinstance(nll, Tensor) else type(nll).__name__
        raise TypeError(f"nll must be a floating-point tensor of negative log-likelihoods; got {got}.")
    return polynomial_of_nll(given_polynomial(epsilon, gamma, polynomial), upcast(nll)).to(nll.dtype)


def given_polynomial(epsilon: Any, gamma: Any, polynomial: Polynomial | None) -> Polynomial:
    """:func:`from_arguments`, without the warning inside ``torch.compile``, which can't trace it."""
    return (parse if torch.compiler.is_compiling() else from_arguments)(epsilon, gamma, polynomial)


def polynomial_of_nll(polynomial: Polynomial, nll: Tensor) -> Tensor:
    """The polynomial at negative log-likelihoods, with derivatives that stay finite at p = 0 and p = 1."""
    return polynomial_at(polynomial, -nll, -torch.expm1(-nll))


def polynomial_at(polynomial: Polynomial, logp: Tensor, q: Tensor) -> Tensor:
    """The polynomial at ``log p`` and ``q = 1 - p``, with derivatives that stay finite at p = 0 and p = 1.

    0 log 0 is 0, also for a ``log_weight`` that is a tensor.
    """
    if isinstance(polynomial.log_weight, Tensor):
        logp = logp.masked_fill((polynomial.log_weight == 0) & (logp == -torch.inf), 0.0)
    loss: Tensor
    if is_zero(polynomial.gamma):
        loss = polynomial.value(logp, q)
        return loss
    limits = torch.finfo(q.dtype)
    if is_known_within(q, limits.eps**0.5, 1.0) and is_known_within(logp, 2.0 * math.log(limits.tiny), 0.0):
        # The guards of polynomial_of_tail take a third of the time of the whole loss.
        loss = in_dtype(q, polynomial).value_of_tail(q, -logp - q)
    else:
        loss = polynomial_of_tail(polynomial, q, tail(logp, q))
    return loss


def polynomial_of_tail(polynomial: Polynomial, q: Tensor, tail: Tensor) -> Tensor:
    """The polynomial at ``q = 1 - p`` and ``tail = -log p - q``, with derivatives that stay finite.

    The only guard against infinite derivatives. For gamma < 1, those of q^gamma are infinite at q = 0, and overflow
    below the smallest normal number; they would meet a factor 0: nan. The loss is 0 there. At p = 0, q' = 0 would be
    multiplied by an infinite logarithm; q is taken as 1 from where p rounds to 0. (Conditions that let nan stay nan.)
    """
    loss: Tensor
    if is_zero(polynomial.gamma):
        loss = polynomial.value_of_tail(q, tail)
        return loss
    polynomial, tiny = in_dtype(q, polynomial), torch.finfo(q.dtype).tiny
    certain, hopeless = q < tiny, tail > -2.0 * math.log(tiny)
    loss = polynomial.value_of_tail(q.masked_fill(certain | hopeless, 1.0), tail)
    return loss.masked_fill(certain, 0.0)


def tail(logp: Tensor, q: Tensor) -> Tensor:
    """``-log p - q``; for small q the first term of its series, since the difference has lost its digits."""
    return torch.where(q < torch.finfo(q.dtype).eps ** 0.5, 0.5 * q * q, -logp - q)


def in_dtype(input: Tensor, polynomial: Polynomial) -> Polynomial:
    """The polynomial with its tensors cast to a wider dtype of the input."""
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    *coefficients, gamma, log_weight = (at_least(input.dtype, number) for number in numbers)
    return unchecked(tuple(coefficients), gamma, log_weight)
