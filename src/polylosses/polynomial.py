"""The one idea of the library: a classification loss is a polynomial in 1 - p, held as data."""

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

DEFAULT_EPSILON = 1.0


@dataclass(frozen=True)
class Polynomial:
    r"""A loss of the PolyLoss family, as a value.

    With ``p`` the probability of the true class and ``q = 1 - p``,

    .. math:: L(p) = q^\gamma \Big( -\text{log\_weight} \log p + \sum_{j \ge 1} \text{coefficients}[j-1]\, q^j \Big)

    Source: Leng et al., "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022
    (arXiv 2204.12511), sections 3 and 4. There, Poly-N is equation 3 and Poly-1 is equation 4; :math:`\gamma` is the
    exponent of focal loss (Lin et al., ICCV 2017).

    The methods use arithmetic operators only, so floats, NumPy arrays, torch tensors and JAX arrays all work, and a
    coefficient may itself be a (0-dimensional) tensor or array: learnable, scheduled or mapped over.

    Args:
        coefficients: the :math:`\epsilon_j` of :math:`q^j`, from ``j = 1`` on. Default ``()``.
        gamma: the focal exponent, at least 0. Default 0.
        log_weight: the factor of ``-log p``, at least 0. Default 1.

    Raises:
        TypeError: an argument is not a number (or, for ``coefficients``, not a sequence of numbers).
        ValueError: a number is not finite, or ``gamma`` or ``log_weight`` is negative.

    Warns:
        UserWarning: the series coefficient of some ``q^j`` is negative, that is
            ``coefficients[j-1] < -log_weight / j``. Numbers are checked; tensors and arrays are taken as they are.

    Example:
        >>> import math
        >>> poly1 = Polynomial(coefficients=(2.0,))
        >>> p = 0.75
        >>> round(poly1.value(math.log(p), 1 - p), 6)  # -log 0.75 + 2 * 0.25
        0.787682
        >>> poly1.slope(math.log(p), 1 - p)  # -(1 + 2 * 0.75)
        -2.5
        >>> poly1.series(3)
        (3.0, 0.5, 0.3333333333333333)
        >>> print(poly1)
        -log p + 2 (1 - p)
    """

    coefficients: tuple[Any, ...] = ()
    gamma: Any = 0.0
    log_weight: Any = 1.0

    def __post_init__(self) -> None:
        given = self.coefficients
        if isinstance(given, str) or not (isinstance(given, Sequence) or getattr(given, "ndim", 0) == 1):
            raise TypeError(
                f"coefficients must be a sequence of numbers, one for each power of 1 - p; got {given!r}. "
                "For a single one, write (epsilon,)."
            )
        object.__setattr__(self, "coefficients", numbers("coefficients", given))
        object.__setattr__(self, "gamma", at_least_0("gamma", self.gamma))
        object.__setattr__(self, "log_weight", at_least_0("log_weight", self.log_weight))
        warn_of_negative_series(self)

    def __str__(self) -> str:
        """The formula."""

        def times(factor: Any, power: str) -> str:
            if isinstance(factor, float):
                return power if factor == 1 else f"{factor:g} {power}"
            return f"{factor} {power}"

        terms = [] if is_zero(self.log_weight) else ["-" + times(self.log_weight, "log p")]
        powers = ["(1 - p)", *(f"(1 - p)^{j}" for j in range(2, len(self.coefficients) + 1))]
        terms += [times(c, power) for c, power in zip(self.coefficients, powers, strict=False) if not is_zero(c)]
        formula = " + ".join(terms).replace("+ -", "- ") or "0"
        if is_zero(self.gamma):
            return formula
        gamma = f"{self.gamma:g}" if isinstance(self.gamma, float) else self.gamma
        return f"(1 - p)^{gamma} ({formula})"

    def value(self, logp: Any, q: Any) -> Any:
        """The loss at log-probability ``logp`` and ``q = 1 - p``, elementwise.

        ``q`` is an argument because it can't be had from ``p``: in float32, ``1 - p`` is exactly 0 from a logit
        margin of 18 on, where the sum of the other classes' probabilities still has all its digits.

        Args:
            logp: ``log p``, at most 0; a float, array or tensor of any shape.
            q: ``1 - p``, in [0, 1], of the same shape.

        Returns:
            The loss, in the arguments' shape and dtype.
        """
        loss = horner(self.coefficients, q) * q if self.coefficients else 0.0
        # A factor that is 0 by definition is left out, so that it can't turn an infinite logp into nan.
        if not is_zero(self.log_weight):
            loss = loss - self.log_weight * logp
        elif not self.coefficients:
            loss = 0.0 * q
        return loss if is_zero(self.gamma) else q**self.gamma * loss

    def value_of_tail(self, q: Any, tail: Any) -> Any:
        r"""The loss at ``q = 1 - p``, with ``tail = -log p - q`` in the place of the logarithm, elementwise.

        It is :meth:`value` without what cancels there for ``epsilon`` near -1: for ``epsilon = -1`` the loss *is* the
        tail, about ``q^2 / 2`` near ``p = 1``, which the difference of ``-log p`` and ``q`` can't give. So a kernel
        that knows ``q`` and the tail to all their digits knows the loss to all its digits, as long as the second power
        does not cancel too: for Poly-N with ``-1, -1/2, ...`` the error is ``finfo.eps * q^2``, of a loss of ``q^3``.

        Args:
            q: as for :meth:`value`; not 0, unless ``gamma`` is the number 0.
            tail: :math:`-\log(1 - q) - q = \sum_{j \ge 2} q^j / j`, at least 0, of the same shape.
        """
        first, *following = self.coefficients or (0.0,)
        powers = horner((self.log_weight + first, *following), q)
        if is_zero(self.gamma):
            return powers * q if is_zero(self.log_weight) else powers * q + self.log_weight * tail
        if not is_zero(self.log_weight):
            powers = powers + self.log_weight * (tail / q)
        # With one more power of q, the second derivative is finite wherever q is a normal number; that of q^gamma
        # overflows below some 1e-19 in float32.
        return q ** (self.gamma + 1.0) * powers

    def slope(self, logp: Any, q: Any) -> Any:
        """The derivative dL / d log p, elementwise: all that a backward pass needs.

        For a hard label, the gradient with respect to the logits is ``slope * (onehot - softmax)``: that of
        cross-entropy (slope -1) times a number. For Poly-1, ``slope = -(1 + epsilon p)``.

        It is written in powers of ``q``, so that it keeps its relative accuracy where terms cancel (``epsilon = -1``:
        the slope is ``-q``, however small). ``logp`` must be finite.

        Args and shapes as for :meth:`value`.
        """
        # With S = sum_j c_j q^j:  dL/dlog p = -q^gamma (log_weight + p S') - gamma p q^(gamma-1) (S - log_weight log p)
        c = self.coefficients
        scaled = [j * c[j - 1] for j in range(1, len(c) + 1)]
        following = [*scaled, 0.0]
        # log_weight + (1 - q) S', collected in powers of q.
        powers = [self.log_weight + following[0], *(b - a for a, b in zip(scaled, following[1:], strict=True))]
        slope = -horner(powers, q) + 0.0 * q
        if is_zero(self.gamma):
            return slope
        # (S - log_weight log p) / q, which tends to a number as q -> 0; at q = 0 it is multiplied by q^gamma = 0.
        ratio = -self.log_weight * logp / (q + (q == 0))
        if c:
            ratio = ratio + horner(c, q)
        return q**self.gamma * (slope - self.gamma * (1 - q) * ratio)

    def series(self, n: int) -> tuple[Any, ...]:
        r"""The first ``n`` coefficients of the loss as a power series in ``q = 1 - p``.

        The ``j``-th, from 1 on, belongs to :math:`q^{j + \gamma}` and is ``log_weight / j + coefficients[j-1]``, since
        :math:`-\log p = \sum_j q^j / j` (equation 1 of the paper).

        Args:
            n: how many, at least 0.

        Raises:
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"series(n) takes n of at least 0; got {n!r}.")
        padded = (*self.coefficients, *([0.0] * n))
        return tuple(self.log_weight / j + padded[j - 1] for j in range(1, n + 1))


def from_arguments(epsilon: Any, gamma: Any, polynomial: Polynomial | None, *, warn: bool = True) -> Polynomial:
    """The polynomial that a loss's ``epsilon``, ``gamma`` and ``polynomial`` arguments stand for.

    ``warn``: whether to warn as :class:`Polynomial` does. (Of ``polynomial`` it did so itself, when that was made.)

    Raises:
        TypeError: ``polynomial`` is no :class:`Polynomial`, or ``epsilon`` no number, array or sequence of numbers.
        ValueError: ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its default; a number is not finite, or
            ``gamma`` is negative.
    """
    if polynomial is None:
        polynomial = unchecked(_coefficients(epsilon), at_least_0("gamma", gamma), 1.0)
        if warn:
            warn_of_negative_series(polynomial)
        return polynomial
    if not isinstance(polynomial, Polynomial):
        raise TypeError(
            f"polynomial must be a polylosses.Polynomial, such as polylosses.poly1(2.0); got {polynomial!r}."
        )
    # By value: torch.compile(dynamic=True) and files of hyperparameters give another object for the default.
    if not (isinstance(epsilon, Real) and epsilon == DEFAULT_EPSILON and is_zero(gamma)):
        raise ValueError(
            f"give either polynomial or epsilon and gamma, not both; got epsilon={epsilon!r}, gamma={gamma!r}, "
            f"polynomial={polynomial!r}."
        )
    return polynomial


def _coefficients(epsilon: Any) -> tuple[Any, ...]:
    if isinstance(epsilon, Real):
        return (number("epsilon", epsilon),)
    dimensions = getattr(epsilon, "ndim", None)
    if dimensions is None and (isinstance(epsilon, str) or not isinstance(epsilon, Sequence)):
        raise TypeError(f"epsilon must be a number, an array or a sequence of numbers; got {epsilon!r}.")
    if dimensions is not None and dimensions > 1:
        raise ValueError(
            f"epsilon must be a number or hold one for each power of 1 - p; got shape {tuple(epsilon.shape)}."
        )
    return (number("epsilon", epsilon),) if dimensions == 0 else numbers("epsilon", epsilon)


def unchecked(coefficients: tuple[Any, ...], gamma: Any, log_weight: Any) -> Polynomial:
    """A :class:`Polynomial` of numbers that have been checked, and of which the user has been warned."""
    polynomial = object.__new__(Polynomial)
    object.__setattr__(polynomial, "coefficients", coefficients)
    object.__setattr__(polynomial, "gamma", gamma)
    object.__setattr__(polynomial, "log_weight", log_weight)
    return polynomial


def warn_of_negative_series(polynomial: Polynomial) -> None:
    """Warns, at the user's line, of series coefficients that are numbers and negative."""
    if not isinstance(polynomial.log_weight, float):
        return
    for j, epsilon in enumerate(polynomial.coefficients, start=1):
        bound = -polynomial.log_weight / j
        if isinstance(epsilon, float) and epsilon < bound:
            # Below the bound of j = 1 both harms are certain: near p = 1 the loss is about (1 + epsilon) (1 - p).
            # Those of a later j can be outweighed by the powers before it.
            harm = (
                "the loss is no longer monotone in p and goes negative near p = 1"
                if j == 1
                else "the loss may no longer be monotone in p and may go negative"
            )
            message = f"epsilon = {epsilon:g} for (1 - p)^{j} is below the bound {bound:g}: {harm}."
            warnings.warn(message, stacklevel=_frames_of_ours())


def _frames_of_ours() -> int:
    """The ``stacklevel`` of the first caller outside of this package. (``skip_file_prefixes`` is of Python 3.12.)"""
    frame, level = sys._getframe(1), 1
    # dataclasses: dataclasses.replace, which makes a Polynomial for the user.
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("polylosses", "dataclasses"):
        frame, level = frame.f_back, level + 1
    return level


def number(name: str, value: Any) -> Any:
    """``value`` as a float if it is a number, and as it is if it is a tensor or array; raises for anything else."""
    # NumPy's 0-dimensional arrays too: they would take a tensor's arithmetic over.
    if isinstance(value, Real) or (type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0):
        value = float(value)
        if not -math.inf < value < math.inf:  # math.isfinite can't be traced by torch.compile
            raise ValueError(f"{name} must be finite; got {value!r}.")
    elif isinstance(value, str) or not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be a number or a 0-dimensional array or tensor; got {value!r}.")
    return value


def numbers(name: str, values: Any) -> tuple[Any, ...]:
    """:func:`number` of every one of a sequence, or of an array of one dimension."""
    return tuple(number(f"{name}[{j}]", values[j]) for j in range(len(values)))


def at_least_0(name: str, value: Any) -> Any:
    """:func:`number`, which also raises for what is negative."""
    value = number(name, value)
    if isinstance(value, float) and value < 0:
        raise ValueError(f"{name} must be at least 0; got {value!r}.")
    return value


def is_zero(number: Any) -> bool:
    """Whether it is a Python number, and 0: known before any tensor is looked at."""
    return isinstance(number, float | int) and number == 0


def horner(coefficients: Sequence[Any], q: Any) -> Any:
    """``coefficients[0] + coefficients[1] q + ...``"""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + total * q
    return total
