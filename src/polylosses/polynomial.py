"""Classification losses as polynomials in 1 - p: the :class:`Polynomial` value, and the parsing of loss arguments."""

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
    r"""A loss of the PolyLoss family as an immutable value: coefficients, focal exponent and log weight.

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
            ``coefficients[j-1] < -log_weight / j``. Only numbers are checked, not the values of tensors and arrays.

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
        object.__setattr__(self, "coefficients", as_numbers("coefficients", given))
        object.__setattr__(self, "gamma", as_nonnegative("gamma", self.gamma))
        object.__setattr__(self, "log_weight", as_nonnegative("log_weight", self.log_weight))
        warn_of_negative_series(self)

    def __str__(self) -> str:
        """The formula of the loss, such as ``-log p + 2 (1 - p)``."""

        def times(factor: Any, power: str) -> str:
            if isinstance(factor, float):
                return {1.0: "", -1.0: "-"}.get(factor, f"{factor:g} ") + power
            return f"{factor} {power}"

        terms = [] if is_zero(self.log_weight) else ["-" + times(self.log_weight, "log p")]
        powers = ["(1 - p)", *(f"(1 - p)^{j}" for j in range(2, len(self.coefficients) + 1))]
        terms += [times(c, power) for c, power in zip(self.coefficients, powers, strict=False) if not is_zero(c)]
        formula = " + ".join(terms).replace("+ -", "- ") or "0"
        if is_zero(self.gamma):
            return formula
        gamma = f"{self.gamma:g}" if isinstance(self.gamma, float) else self.gamma
        return f"(1 - p) ({formula})" if gamma == "1" else f"(1 - p)^{gamma} ({formula})"

    def value(self, logp: Any, q: Any) -> Any:
        """The loss at log-probability ``logp`` and ``q = 1 - p``, elementwise.

        ``q`` is an argument because ``1 - p`` loses all digits near ``p = 1``: in float32 it is exactly 0 from a logit
        margin of 18 on, where the sum of the other classes' probabilities is still accurate.

        Args:
            logp: ``log p``, at most 0; a float, array or tensor of any shape.
            q: ``1 - p``, in [0, 1], of the same shape.

        Returns:
            The loss, in the arguments' shape and dtype.
        """
        loss = horner(self.coefficients, q) * q if self.coefficients else 0.0
        # Without this branch, log_weight = 0 would turn an infinite logp into nan.
        if not is_zero(self.log_weight):
            loss = loss - self.log_weight * logp
        elif not self.coefficients:
            loss = 0.0 * q
        return loss if is_zero(self.gamma) else q**self.gamma * loss

    def value_of_tail(self, q: Any, tail: Any) -> Any:
        r"""The loss at ``q = 1 - p``, computed from ``tail = -log p - q`` instead of the logarithm, elementwise.

        It avoids the cancellation of :meth:`value` for ``epsilon`` near -1: for ``epsilon = -1`` the loss *is* the
        tail, about ``q^2 / 2`` near ``p = 1``, and the difference of ``-log p`` and ``q`` would be rounding error. With
        accurate ``q`` and ``tail`` the loss is accurate, unless the second power cancels as well: for Poly-N with
        ``-1, -1/2, ...`` the error is ``finfo.eps * q^2``, of a loss of order ``q^3``.

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
        # The second derivative of q^(gamma + 1) is finite for every normal q; that of q^gamma overflows below about
        # 1e-19 in float32.
        return q ** (self.gamma + 1.0) * powers

    def slope(self, logp: Any, q: Any) -> Any:
        """The derivative ``dL / d log p``, elementwise: all that a backward pass needs.

        For a hard label, the gradient with respect to the logits is ``slope * (onehot - softmax)``: the gradient of
        cross-entropy (slope -1), scaled. For Poly-1, ``slope = -(1 + epsilon p)``.

        It is evaluated in powers of ``q``, so that it keeps its relative accuracy where terms cancel (for
        ``epsilon = -1`` the slope is ``-q``, however small).

        Args:
            logp: as for :meth:`value`, but finite.
            q: as for :meth:`value`.

        Returns:
            The derivative, in the arguments' shape and dtype.
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
        # (S - log_weight log p) / q has a finite limit as q -> 0. At q = 0 it only has to be finite: q^gamma is 0.
        ratio = -self.log_weight * logp / (q + (q == 0))
        if c:
            ratio = ratio + horner(c, q)
        return q**self.gamma * (slope - self.gamma * (1 - q) * ratio)

    def series(self, n: int) -> tuple[Any, ...]:
        r"""The first ``n`` coefficients of the loss as a power series in ``q = 1 - p``.

        The ``j``-th, from 1 on, belongs to :math:`q^{j + \gamma}` and is ``log_weight / j + coefficients[j-1]``, since
        :math:`-\log p = \sum_j q^j / j` (equation 1 of the paper).

        Args:
            n: the number of coefficients, at least 0.

        Raises:
            ValueError: ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"n must be at least 0; got {n!r}.")
        padded = (*self.coefficients, *([0.0] * n))
        return tuple(self.log_weight / j + padded[j - 1] for j in range(1, n + 1))


def from_arguments(epsilon: Any, gamma: Any, polynomial: Polynomial | None) -> Polynomial:
    """Parses the arguments ``epsilon``, ``gamma`` and ``polynomial`` of a public function, checks them and warns.

    Raises:
        TypeError: ``polynomial`` is no :class:`Polynomial`, or ``epsilon`` no number, array or sequence of numbers.
        ValueError: ``polynomial`` is given, and ``epsilon`` or ``gamma`` is not its default; a number is not finite, or
            ``gamma`` is negative.

    Warns:
        UserWarning: as :class:`Polynomial`. (A given ``polynomial`` has warned when it was constructed.)
    """
    parsed = parse(epsilon, gamma, polynomial)
    if polynomial is None:
        warn_of_negative_series(parsed)
    return parsed


def parse(epsilon: Any, gamma: Any, polynomial: Polynomial | None) -> Polynomial:
    """Parses and checks as :func:`from_arguments` does, without the warning.

    For code that runs after a public function or constructor, which has warned.
    """
    if polynomial is None:
        return unchecked(_coefficients(epsilon), as_nonnegative("gamma", gamma), 1.0)
    if not isinstance(polynomial, Polynomial):
        raise TypeError(
            f"polynomial must be a polylosses.Polynomial, such as polylosses.poly1(2.0); got {polynomial!r}."
        )
    # Compared by value: torch.compile(dynamic=True) and hyperparameter files pass the default as another object.
    if not (isinstance(epsilon, Real) and epsilon == DEFAULT_EPSILON and is_zero(gamma)):
        raise ValueError(
            f"give either polynomial or epsilon and gamma, not both; got epsilon={epsilon!r}, gamma={gamma!r}, "
            f"polynomial={polynomial!r}."
        )
    return polynomial


def _coefficients(epsilon: Any) -> tuple[Any, ...]:
    """The coefficients given by ``epsilon``: a scalar for Poly-1, a sequence or 1-dimensional array for Poly-N."""
    if isinstance(epsilon, Real):
        return (as_number("epsilon", epsilon),)
    dimensions = getattr(epsilon, "ndim", None)
    if dimensions is None and (isinstance(epsilon, str) or not isinstance(epsilon, Sequence)):
        raise TypeError(f"epsilon must be a number, an array or a sequence of numbers; got {epsilon!r}.")
    if dimensions is not None and dimensions > 1:
        raise ValueError(
            f"epsilon must be a number or hold one for each power of 1 - p; got shape {tuple(epsilon.shape)}."
        )
    return (as_number("epsilon", epsilon),) if dimensions == 0 else as_numbers("epsilon", epsilon)


def epsilon_of(polynomial: Polynomial) -> float | None:
    """The epsilon of a Poly-1, 0 for cross-entropy; None for any other loss.

    Example:
        >>> epsilon_of(Polynomial((2.0,))), epsilon_of(Polynomial()), epsilon_of(Polynomial(gamma=2.0))
        (2.0, 0.0, None)
    """
    if polynomial.gamma != 0 or polynomial.log_weight != 1 or len(polynomial.coefficients) > 1:
        return None
    return float(sum(polynomial.coefficients))


def unchecked(coefficients: tuple[Any, ...], gamma: Any, log_weight: Any) -> Polynomial:
    """Builds a :class:`Polynomial` without checks or warnings: for one that is derived from a checked one."""
    polynomial = object.__new__(Polynomial)
    object.__setattr__(polynomial, "coefficients", coefficients)
    object.__setattr__(polynomial, "gamma", gamma)
    object.__setattr__(polynomial, "log_weight", log_weight)
    return polynomial


def warn_of_negative_series(polynomial: Polynomial) -> None:
    """Warns, at the user's line, about each series coefficient that is a negative number."""
    if not isinstance(polynomial.log_weight, float):
        return
    for j, epsilon in enumerate(polynomial.coefficients, start=1):
        bound = -polynomial.log_weight / j
        if isinstance(epsilon, float) and epsilon < bound:
            # For j = 1 both effects are certain: near p = 1 the loss is about (log_weight + epsilon) (1 - p). For a
            # later j, lower powers may outweigh them.
            effect = (
                "the loss is no longer monotone in p and goes negative near p = 1"
                if j == 1
                else "the loss may no longer be monotone in p and may go negative"
            )
            message = f"epsilon = {epsilon:g} for (1 - p)^{j} is below the bound {bound:g}: {effect}."
            warnings.warn(message, stacklevel=_user_stacklevel())


def _user_stacklevel() -> int:
    """The ``stacklevel`` of the first caller outside of this package (``skip_file_prefixes`` needs Python 3.12)."""
    frame, level = sys._getframe(1), 1
    # dataclasses.replace calls the constructor on the user's behalf.
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("polylosses", "dataclasses"):
        frame, level = frame.f_back, level + 1
    return level


def as_number(name: str, value: Any) -> Any:
    """Converts a number to a finite float, and returns a tensor or array unchanged; raises for anything else."""
    # A 0-dimensional NumPy array is converted as well: array * tensor would be NumPy's operation, not torch's.
    if isinstance(value, Real) or (type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0):
        value = float(value)
        if not -math.inf < value < math.inf:  # math.isfinite can't be traced by torch.compile
            raise ValueError(f"{name} must be finite; got {value!r}.")
    elif isinstance(value, str) or not hasattr(value, "dtype"):
        raise TypeError(f"{name} must be a number or a 0-dimensional array or tensor; got {value!r}.")
    return value


def as_numbers(name: str, values: Any) -> tuple[Any, ...]:
    """Applies :func:`as_number` to each element of a sequence or 1-dimensional array."""
    return tuple(as_number(f"{name}[{j}]", values[j]) for j in range(len(values)))


def as_nonnegative(name: str, value: Any) -> Any:
    """Converts as :func:`as_number`, and raises for a negative number."""
    value = as_number(name, value)
    if isinstance(value, float) and value < 0:
        raise ValueError(f"{name} must be at least 0; got {value!r}.")
    return value


def is_zero(value: Any) -> bool:
    """Whether a value is the Python number 0; False for tensors and arrays, whose values are not read."""
    return isinstance(value, float | int) and value == 0


def horner(coefficients: Sequence[Any], q: Any) -> Any:
    """``coefficients[0] + coefficients[1] q + ...``, by Horner's method."""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = coefficient + total * q
    return total
