"""PolyLoss from negative log-likelihoods, and what the losses of all links do alike."""

import math
from collections.abc import Callable
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
    polynomial = from_arguments(epsilon, gamma, polynomial, warn=not torch.compiler.is_compiling())
    return polynomial_of_nll(polynomial, at_least_float32(nll)).to(nll.dtype)


def polynomial_of_nll(polynomial: Polynomial, nll: Tensor) -> Tensor:
    """The polynomial at negative log-likelihoods, with first and second derivatives that stay finite.

    At ``nll = inf`` (a label that is masked) the value is infinite unless ``log_weight`` is 0.
    """
    limits = torch.finfo(nll.dtype)
    if isinstance(polynomial.log_weight, Tensor):  # a number that is 0 is left out by the polynomial
        nll = nll.masked_fill((polynomial.log_weight == 0) & (nll == torch.inf), limits.max)
    if is_zero(polynomial.gamma):
        loss: Tensor = polynomial.value(-nll, -torch.expm1(-nll))
        return loss
    # The clamp, where p is 0 in this dtype: it cuts dq / d nll = 0 off from an nll that may overflow or be infinite.
    return _times_power(
        polynomial,
        nll,
        lambda inside: polynomial.value(-inside, -torch.expm1(-inside.clamp(max=-math.log(limits.tiny)))),
    )


def polynomial_of_tail(polynomial: Polynomial, q: Tensor, tail: Tensor) -> Tensor:
    """The polynomial at ``q = 1 - p`` and ``-log p - q``, both exact, with derivatives that stay finite."""
    loss: Tensor
    if is_zero(polynomial.gamma):
        loss = polynomial.value_of_tail(q, tail)
        return loss
    # As above: where p is 0, q is constant.
    impossible = tail > -math.log(torch.finfo(q.dtype).tiny)
    return _times_power(
        polynomial, q, lambda inside: polynomial.value_of_tail(inside.masked_fill(impossible, 1.0), tail)
    )


def _times_power(polynomial: Polynomial, q: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """``loss_of(q)``, a loss with a focal exponent; ``q`` is ``1 - p`` or, which is the same where it matters, the nll.

    The derivatives of ``q^gamma`` are infinite at ``q = 0`` for small gamma, and those of higher order overflow before;
    either gives nan where the chain rule multiplies by 0. So from the root of the smallest normal number down the loss
    is its leading power, which is exact there, and below that number itself it is 0.
    """
    tiny = torch.finfo(q.dtype).tiny
    first = polynomial.coefficients[0] if polynomial.coefficients else 0.0
    small, certain = q < tiny**0.5, q < tiny
    leading = (polynomial.log_weight + first) * q.masked_fill(certain | ~small, 1.0) ** (polynomial.gamma + 1.0)
    return torch.where(small, leading, loss_of(q.masked_fill(small, 1.0))).masked_fill(certain, 0.0)


def log_density(polynomial: Polynomial, logp: Tensor, log_q: Tensor) -> Tensor:
    """The logarithm of ``p / -slope``, which the posterior is proportional to, from ``log p`` and ``log(1 - p)``.

    ``-slope / p = q^gamma (log_weight (1 / p + gamma r) + sum_j (j + gamma) c_j q^(j - 1))`` with ``r = -log p / q``.
    """
    limits = torch.finfo(logp.dtype)
    gamma, log_weight, coefficients = polynomial.gamma, polynomial.log_weight, polynomial.coefficients or (0.0,)
    logp_inside, log_q = logp.clamp(min=-(limits.max**0.5)), log_q.clamp(min=-(limits.max**0.5))
    p, q = logp_inside.exp(), log_q.exp()
    powers = horner([(j + gamma) * c for j, c in enumerate(coefficients, start=1)], q)
    density = -gamma * log_q
    if is_zero(log_weight):  # p / -slope has no p; 1 - q would be noise where p is small
        density = density.masked_fill(logp == -torch.inf, -torch.inf)
        steepness = powers + torch.zeros_like(q)
    else:
        density = density + logp
        # log_weight + p powers, which may cancel where p is near 1.
        steepness = torch.where(q < 0.5, (log_weight + powers) - q * powers, log_weight + p * powers)
        if not is_zero(gamma):
            # r is 1 at q = 0, to less than the last digit from the root of the smallest normal number down.
            small = q < limits.tiny**0.5
            near = q.masked_fill((q >= 0.5) | small, 0.25)
            nll_by_q = torch.where(q < 0.5, -torch.log1p(-near) / near, -logp_inside / q.clamp(min=0.5))
            steepness = steepness + log_weight * gamma * p * nll_by_q.masked_fill(small, 1.0)
    # The slope of some losses is 0 at p = 1; the clamp leaves such a class all the probability.
    result: Tensor = density - steepness.clamp(min=limits.tiny).log()
    return result


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
