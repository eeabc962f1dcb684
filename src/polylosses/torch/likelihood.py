"""PolyLoss from negative log-likelihoods, and what the losses of all links do alike."""

import math
from typing import Any

import torch
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, horner, is_zero, unchecked

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
    return polynomial_of_nll(given_polynomial(epsilon, gamma, polynomial), at_least_float32(nll)).to(nll.dtype)


def given_polynomial(epsilon: Any, gamma: Any, polynomial: Polynomial | None) -> Polynomial:
    """:func:`from_arguments`, which does not warn inside ``torch.compile``: it has no way to."""
    return from_arguments(epsilon, gamma, polynomial, warn=not torch.compiler.is_compiling())


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
        loss = _in_dtype_of(q, polynomial).value_of_tail(q, -logp - q)
    else:
        loss = polynomial_of_tail(polynomial, q, _tail(logp, q))
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
    polynomial, tiny = _in_dtype_of(q, polynomial), torch.finfo(q.dtype).tiny
    certain, hopeless = q < tiny, tail > -2.0 * math.log(tiny)
    loss = polynomial.value_of_tail(q.masked_fill(certain | hopeless, 1.0), tail)
    return loss.masked_fill(certain, 0.0)


def _tail(logp: Tensor, q: Tensor) -> Tensor:
    """``-log p - q``; the first term of its series where the others round to 0, and the difference is noise."""
    return torch.where(q < torch.finfo(q.dtype).eps ** 0.5, 0.5 * q * q, -logp - q)


def in_dtype_of(input: Tensor, number: Any) -> Any:
    """The number, cast to a wider dtype of the input if it is a tensor: arithmetic on it alone would round it."""
    return number.to(torch.promote_types(number.dtype, input.dtype)) if isinstance(number, Tensor) else number


def _in_dtype_of(input: Tensor, polynomial: Polynomial) -> Polynomial:
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    *coefficients, gamma, log_weight = (in_dtype_of(input, number) for number in numbers)
    return unchecked(tuple(coefficients), gamma, log_weight)


def log_density(polynomial: Polynomial, logp: Tensor, logq: Tensor) -> Tensor:
    """The logarithm of ``p / -slope``, which the posterior is proportional to, from ``log p`` and ``log(1 - p)``."""
    limits = torch.finfo(logp.dtype)
    polynomial = _in_dtype_of(logp, polynomial)
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
            over_q = unchecked(coefficients, -1.0, log_weight).value_of_tail(q, _tail(logp, q))
            steepness = steepness + gamma * logp.exp() * over_q
    # It is 0 where p = 1 for some losses; the limit leaves such a class all the probability. And where the loss is not
    # monotone it is negative. The square of 1 over the limit, which the second derivative holds, is finite.
    density = density - steepness.clamp(min=2.0 * limits.tiny**0.5).log()
    return density if is_zero(gamma) else torch.sub(density, gamma * logq)


def log_of_others(logp: Tensor, dim: int) -> Tensor:
    """``log(1 - p)`` of softmax probabilities, to all digits however close to 1 the probability is."""
    # Only one class can have more than half of it: what is left is the sum of the others.
    likely = logp > -math.log(2.0)
    others = logp.masked_fill(likely, -torch.inf).clamp(min=-(torch.finfo(logp.dtype).max ** 0.5))
    unlikely = torch.log1p(-logp.masked_fill(likely, -1.0).exp())
    return torch.where(likely, torch.logsumexp(others, dim, keepdim=True), unlikely)


def held_by(dtype: torch.dtype, ignore_index: int | None) -> Any:
    """``ignore_index`` as a target of this dtype holds it; None if it can't: a comparison would take another number."""
    if ignore_index is None:
        return None
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return ignore_index if limits.min <= ignore_index <= limits.max else None
    # Some comparisons round it, and some (of compilers and kernels) don't.
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    if abs(ignore_index) <= 2**bits:
        return ignore_index
    if ignore_index.bit_length() > 1024:  # too large for a float of Python
        return math.inf if ignore_index > 0 else -math.inf
    spacing = 2.0 ** (math.frexp(ignore_index)[1] - bits)
    rounded = round(ignore_index / spacing) * spacing
    return rounded if abs(rounded) <= torch.finfo(dtype).max else math.copysign(math.inf, rounded)


def weight_of_indices(target: Tensor, weight: Tensor | None, ignored: Tensor) -> Tensor:
    """How much every position counts in the mean: nothing if it is ignored."""
    if weight is None:
        return ~ignored
    if weight.numel() == 0:  # of no class, so that every position is ignored
        return torch.zeros_like(target, dtype=weight.dtype)
    return weight[target.masked_fill(ignored, 0).long()].masked_fill(ignored, 0.0)


def mean_of_kept(total: Tensor, count: Tensor, ignored: Tensor) -> Tensor:
    """``total / count``; nan if all is ignored, with derivatives of 0."""
    nothing = ignored.all()
    return (total / count.masked_fill(nothing, 1)).masked_fill(nothing, torch.nan)


def is_known_false(condition: Tensor) -> bool:
    """Whether it is seen to be false without waiting for a device, and not from inside of a transformation."""
    try:
        return _may_be_read(condition) and not bool(condition)
    except RuntimeError:  # it is mapped over, and so has no single value
        return False


def is_known_within(input: Tensor, low: float, high: float) -> bool:
    """Whether all numbers are seen to lie in an interval, as for :func:`is_known_false`; nan does not."""
    if input.numel() == 0 or not _may_be_read(input):
        return False
    least, most = input.detach().aminmax()
    return is_known_false(~((least >= low) & (most <= high)))


def _may_be_read(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor or tensor.device.type != "cpu":
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


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
