"""PolyLoss from negative log-likelihoods, and what the losses of all links do alike."""

from typing import Any

import torch
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, horner, is_zero

_LOW_PRECISION = (torch.float16, torch.bfloat16)


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
    return polynomial_of_nll(from_arguments(epsilon, gamma, polynomial), at_least_float32(nll)).to(nll.dtype)


def polynomial_of_nll(polynomial: Polynomial, nll: Tensor) -> Tensor:
    """The polynomial at negative log-likelihoods, with derivatives that stay finite at p = 0 and p = 1."""
    loss: Tensor
    if is_zero(polynomial.gamma):
        loss = polynomial.value(-nll, -torch.expm1(-nll))
        return loss
    # The derivative of q^gamma is infinite at q = 0 for gamma < 1, and overflows below the smallest normal number; it
    # would meet a factor 0: nan. The loss and its slope are 0 there. The condition lets nan stay nan.
    certain = nll < torch.finfo(nll.dtype).tiny
    inside = nll.masked_fill(certain, 1.0)
    # Likewise at p = 0: the clamp cuts d q / d nll = 0 off from the infinite nll that it would be multiplied by.
    q = -torch.expm1(-inside.clamp(max=torch.finfo(nll.dtype).max))
    loss = polynomial.value(-inside, q)
    return loss.masked_fill(certain, 0.0)


def polynomial_of_tail(polynomial: Polynomial, q: Tensor, tail: Tensor) -> Tensor:
    """The polynomial at ``q = 1 - p`` and ``-log p - q``, both exact, with derivatives that stay finite."""
    loss: Tensor
    if is_zero(polynomial.gamma):
        loss = polynomial.value_of_tail(q, tail)
        return loss
    # As above: q^gamma has an infinite derivative at q = 0, and at p = 0 that of q is multiplied by an infinite tail.
    certain = q < torch.finfo(q.dtype).tiny
    loss = polynomial.value_of_tail(q.masked_fill(certain | (tail == torch.inf), 1.0), tail)
    return loss.masked_fill(certain, 0.0)


def log_density(polynomial: Polynomial, logp: Tensor, q: Tensor) -> Tensor:
    """The logarithm of ``p / -slope``, which the posterior is proportional to."""
    limits = torch.finfo(logp.dtype)
    if is_zero(polynomial.log_weight):
        # The slope is p times a polynomial in q, and p / -slope has no p. (1 - q would be noise where p is small.)
        gamma, coefficients = polynomial.gamma, polynomial.coefficients or (0.0,)
        steepness = q**gamma * horner([(j + gamma) * c for j, c in enumerate(coefficients, start=1)], q)
        weight = torch.zeros_like(logp).masked_fill(logp == -torch.inf, -torch.inf)
    else:
        # A masked class has log p = -inf; the slope wants it finite, where p is 0 all the same.
        steepness, weight = -polynomial.slope(logp.clamp(min=-(limits.max**0.5)), q), logp
    # Where p rounds to 1 the slope of some losses is 0; the clamp leaves such a class all the probability.
    density: Tensor = weight - steepness.clamp(min=limits.tiny).log()
    return density


def at_least_float32(input: Tensor) -> Tensor:
    """What low precision is computed in."""
    return input.float() if input.dtype in _LOW_PRECISION else input


def result_dtype(input: Tensor, dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 under autocast, where ``F.cross_entropy`` is one of the operations kept in float32."""
    return torch.float32 if dtype in _LOW_PRECISION and autocast_dtype(input) is not None else dtype


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """What autocast computes matrix products of ``input`` in, if it is on."""
    device = input.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
