"""The choice between the implementations of a loss: torch's own operations, or a kernel."""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylosses.polynomial import Polynomial, unchecked
from polylosses.torch.kernels import native, triton
from polylosses.torch.kernels.internals import is_by_address, is_ordinary, is_traced, why_not_by_address

PLAIN = "plain"
KERNELS: dict[str, ModuleType] = {"native": native, "triton": triton}

# The most coefficients of a polynomial that kernels evaluate; Powers::MOST in cpu/common.hpp.
MOST_COEFFICIENTS = 64

# Where the polynomial is evaluated in Python: with fewer logits the plain path is faster (2 cores of an AMD EPYC: the
# kernel takes 1.15 of its time at 64 x 1000, 0.85 at 256 x 1000). Otherwise the kernel is faster at every size.
FEWEST_LOGITS = 2**17


class Implementation(NamedTuple):
    """What :func:`implementation` returns.

    Attributes:
        name: ``"plain"``, ``"native"`` or ``"triton"``.
        why_not: for each faster implementation on this device, why it does not serve.
    """

    name: str
    why_not: dict[str, str]


class _Answer(BaseException):
    """Ends a call that :func:`implementation` asks about. Not an Exception, which the callable might catch."""

    def __init__(self, found: Implementation) -> None:
        self.found = found


_asked: ContextVar[bool] = ContextVar("polylosses_asked", default=False)


def implementation(loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Implementation:
    """Which implementation would serve a call of a loss, and why not a faster one; the loss is not computed.

    Args:
        loss: a loss function or module of :mod:`polylosses.torch`, or anything that calls one.
        args, kwargs: the arguments of the call.

    Returns:
        The name of the implementation, as in the losses' argument ``implementation``, and for each faster one the
        reason why it does not serve.

    Raises:
        ValueError: the call makes no choice that can be observed: that of ``poly_from_nll``, which has one
            implementation, of a compiled or traced loss, or in another thread.
        TypeError, ValueError, RuntimeError: as the call itself, for wrong arguments.

    Example:
        >>> from polylosses.torch import poly_cross_entropy
        >>> logits, target = torch.zeros(8, 10, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
        >>> found = implementation(poly_cross_entropy, logits, target)
        >>> found.name
        'plain'
        >>> found.why_not
        {'native': 'it serves float32 and bfloat16 logits, and these are torch.float64'}
    """
    token = _asked.set(True)
    try:
        loss(*args, **kwargs)
    except _Answer as answer:
        return answer.found
    finally:
        _asked.reset(token)
    raise ValueError(
        f"no choice between implementations was observed in the call of {loss!r}: the loss has only one, or it is "
        "compiled, traced, or called in another thread. Ask about the loss itself."
    )


def choose(
    implementation: str | None,
    logits: Tensor,
    others: Sequence[Tensor | None],
    ignore_index: int | None,
    unsupported: str | None,
    fewest_logits: int = 0,
) -> str:
    """Which implementation serves: ``"plain"``, or one of the kernels.

    Args:
        implementation: the user's, or None for the fastest.
        logits: the logits.
        others: the other tensors that a kernel would read.
        ignore_index: the user's.
        unsupported: why no kernel supports the options; None if one does.
        fewest_logits: the number of logits from which on the CPU's kernel is faster.

    Raises:
        ValueError: the user's implementation does not exist, or does not serve.
    """
    asked = not torch.compiler.is_compiling() and _asked.get()
    forced = implementation not in (None, PLAIN)
    if not forced and not asked and (implementation == PLAIN or logits.numel() < fewest_logits):
        return PLAIN
    wanted = "triton" if asked and logits.device.type == "cuda" else "native"
    wanted = known(implementation) if forced else wanted
    reason = unsupported or KERNELS[wanted].why_not(logits) or why_not(logits, others, ignore_index)
    if forced and reason is not None:
        raise ValueError(f"implementation={implementation!r} can't serve here: {reason}.")
    if forced or reason is not None:
        pass
    elif implementation == PLAIN:
        reason = "implementation='plain' was asked for"
    # Not "triton" by default: no kernel of ours has passed tests/on_cuda.py on a device yet.
    elif wanted == "triton":
        reason = "it has not been run on a GPU yet; implementation='triton' asks for it"
    elif logits.numel() < fewest_logits:
        reason = (
            f"it does not evaluate this polynomial (with tensors, more than {MOST_COEFFICIENTS} coefficients, or a "
            f"gradient of the class weights), and is then faster from {fewest_logits} logits on; "
            f"these are {logits.numel()}"
        )
    if asked:
        raise _Answer(Implementation(wanted, {}) if reason is None else Implementation(PLAIN, {wanted: reason}))
    return wanted if reason is None else PLAIN


def known(implementation: Any) -> str:
    """The name of a kernel; raises a ValueError for any other."""
    if not isinstance(implementation, str) or implementation not in KERNELS:
        names = ", ".join(map(repr, (PLAIN, *KERNELS)))
        raise ValueError(f"implementation must be {names} or None; got {implementation!r}.")
    return str(implementation)


def why_not(logits: Tensor, others: Sequence[Tensor | None], ignore_index: int | None) -> str | None:
    """Why no kernel can read these tensors, or None."""
    # First, since torch.compile can't trace all of what follows inside of torch.func's transforms.
    if reason := why_not_by_address():
        return reason
    traced = is_traced()
    for tensor in (logits, *others):
        if tensor is None:
            continue
        if tensor.device != logits.device:
            return f"kernels take tensors of one device, and these are on {logits.device} and {tensor.device}"
        # Traced tensors have no memory yet, and torch.compile can't trace the check.
        if not traced and is_by_address(tensor):
            continue
        if not is_ordinary(tensor):
            return f"kernels take ordinary tensors, and one is a {type(tensor).__name__}"
        if tensor.layout != torch.strided:
            return f"kernels take dense tensors, and one is {tensor.layout}"
        if not traced:
            return "kernels read memory, and one tensor has none of its own"
    if ignore_index is not None and not -(2**63) <= ignore_index < 2**63:
        return f"kernels take an ignore_index of 64 bits, and it is {ignore_index}"
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return "torch.jit.trace takes the plain implementation"
    return None


def with_numbers(polynomial: Polynomial) -> Polynomial:
    """The polynomial with numbers for tensors, where these can be read at no cost: on a CPU, and without a gradient.

    So a scheduled epsilon costs what a number does.
    """
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    if all(isinstance(number, float) for number in numbers) or not _are_readable():
        return polynomial

    def read(number: Any) -> Any:
        learned = isinstance(number, Tensor) and number.requires_grad and torch.is_grad_enabled()
        return number if learned or not _is_readable(number) else _value(number)

    *coefficients, gamma, log_weight = map(read, numbers)
    if isinstance(gamma, float) and gamma < 0.0:  # kernels take no negative exponent
        return polynomial
    if not all(isinstance(number, Tensor) or math.isfinite(number) for number in (*coefficients, gamma, log_weight)):
        return polynomial
    return unchecked(tuple(coefficients), gamma, log_weight)


def _are_readable() -> bool:
    """Whether no transform, compiler or tracer would take the value of a tensor for a constant."""
    return not (why_not_by_address() or is_traced() or torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def _value(number: Any) -> float:
    return float(number.item() if isinstance(number, Tensor) else number)


def _is_readable(number: Any) -> bool:
    return not isinstance(number, Tensor) or (
        number.device.type == "cpu" and number.numel() == 1 and is_by_address(number)
    )


def numbers_and_tensors(polynomial: Polynomial) -> tuple[Polynomial, dict[int, Tensor]]:
    """The polynomial at the values of its tensors; and these, by the power of ``1 - p``, or 0 for ``log_weight``."""
    given = (polynomial.log_weight, *polynomial.coefficients)
    tensors = {power: number for power, number in enumerate(given) if isinstance(number, Tensor)}
    if not tensors:
        return polynomial, tensors
    log_weight, *coefficients = map(_value, given)
    return unchecked(tuple(coefficients), polynomial.gamma, log_weight), tensors


def evaluates(polynomial: Polynomial) -> bool:
    """Whether kernels can evaluate the polynomial, and its derivatives by the tensors in it."""
    numbers = (polynomial.log_weight, *polynomial.coefficients)
    tensors = [number for number in numbers if isinstance(number, Tensor)]
    if not isinstance(polynomial.gamma, float) or len(polynomial.coefficients) > MOST_COEFFICIENTS:
        return False
    return not tensors or (
        len(tensors) <= native.MOST_TENSORS
        and _are_readable()
        and all(tensor.dim() == 0 and _is_readable(tensor) and math.isfinite(_value(tensor)) for tensor in tensors)
    )


def are_numbers(polynomial: Polynomial) -> bool:
    """Whether a kernel can evaluate the polynomial itself."""
    numbers = (*polynomial.coefficients, polynomial.gamma, polynomial.log_weight)
    return all(isinstance(number, float) for number in numbers) and len(polynomial.coefficients) <= MOST_COEFFICIENTS
