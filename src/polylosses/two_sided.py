"""Sigmoid losses with a polynomial for positives and one for negatives, and the named ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from polylosses.polynomial import Polynomial, as_nonnegative, as_number, as_numbers, parse

__all__ = ["TwoSided", "asymmetric", "asymmetric_polynomial"]


@dataclass(frozen=True)
class TwoSided:
    r"""A loss of sigmoids in which positives and negatives have different polynomials.

    With ``p`` the sigmoid and ``y`` the target, the loss is ``y L_positive(p) + (1 - y) L_negative(1 - p_m)``, where
    ``p_m = max(p - margin, 0)``: negatives below the margin cost nothing and have no gradient.

    Args:
        positive, negative: the polynomials.
        margin: the probability that is subtracted for negatives, in [0, 1). Default 0.

    Raises:
        TypeError: ``positive`` or ``negative`` is no :class:`Polynomial`, or ``margin`` no number.
        ValueError: ``margin`` is not in [0, 1).

    Source: Ridnik et al., ICCV 2021 (arXiv 2009.14119), equations 4 to 7, for the margin ("probability shifting").

    Example:
        >>> from polylosses import focal, poly1
        >>> print(TwoSided(poly1(1.0), focal(4.0), margin=0.05))
        positives -log p + (1 - p), negatives (1 - p)^4 (-log p), margin 0.05
    """

    positive: Polynomial
    negative: Polynomial
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not isinstance(getattr(self, name), Polynomial):
                raise TypeError(
                    f"{name} must be a polylosses.Polynomial, such as polylosses.focal(4.0); "
                    f"got {getattr(self, name)!r}."
                )
        if isinstance(self.margin, bool) or not isinstance(self.margin, Real):
            raise TypeError(f"margin must be a number; got {self.margin!r}.")
        margin = as_nonnegative("margin", self.margin)
        if not margin < 1.0:
            raise ValueError(f"margin must be a probability below 1; got {margin!r}.")
        object.__setattr__(self, "margin", margin)

    def __str__(self) -> str:
        """The formulas of both sides."""
        margin = f", margin {self.margin:g}" if self.margin else ""
        return f"positives {self.positive}, negatives {self.negative}{margin}"


def given_pair(epsilon: Any, gamma: Any, polynomial: Any) -> TwoSided | None:
    """The two-sided loss among the arguments of a public function, if there is one; raises if there are others, too."""
    if isinstance(polynomial, tuple | list):
        if len(polynomial) != 2:
            raise TypeError(
                "polynomial must be a polylosses.Polynomial, or a pair of these, of positives and negatives; "
                f"got {polynomial!r}."
            )
        polynomial = TwoSided(*polynomial)
    if not isinstance(polynomial, TwoSided):
        return None
    parse(epsilon, gamma, polynomial.positive)
    return polynomial


def asymmetric(gamma_neg: Any = 4.0, gamma_pos: Any = 1.0, margin: float = 0.05) -> TwoSided:
    """Asymmetric loss (ASL): focal loss with an exponent for positives and one for negatives, which have a margin.

    Ridnik et al., ICCV 2021 (arXiv 2009.14119), equation 7. Defaults, and the names of the exponents, are those of the
    authors' code; the paper's experiments have ``gamma_pos=0``.

    Args:
        gamma_neg, gamma_pos: the focal exponents, at least 0.
        margin: as for :class:`TwoSided`; ``clip`` in the authors' code.

    Example:
        >>> print(asymmetric(gamma_pos=0.0))
        positives -log p, negatives (1 - p)^4 (-log p), margin 0.05
    """
    return TwoSided(
        Polynomial(gamma=as_nonnegative("gamma_pos", gamma_pos)),
        Polynomial(gamma=as_nonnegative("gamma_neg", gamma_neg)),
        margin,
    )


def asymmetric_polynomial(
    gamma_neg: Any = 4.0,
    gamma_pos: Any = 0.0,
    margin: float = 0.05,
    *,
    epsilons_pos: Any = (-1.0, 1.25),
    epsilons_neg: Any = (),
) -> TwoSided:
    """Asymmetric polynomial loss (APL): asymmetric loss with other coefficients of the first powers of ``1 - p``.

    Huang et al., ICASSP 2023 (arXiv 2304.05361). Defaults are those of the authors' code, which subtracts: its
    ``epsilon_pos = 1`` and ``epsilon_pos_pow = -2.5`` (halved) are -1 and 1.25 here. For positives this removes
    ``1 - p`` from the series of the logarithm, and makes 1.75 of the 0.5 of ``(1 - p)^2``.

    Args:
        gamma_neg, gamma_pos, margin: as for :func:`asymmetric`.
        epsilons_pos, epsilons_neg: the coefficients of ``1 - p``, ``(1 - p)^2``, ... for positives and for negatives;
            a number gives the first.

    Example:
        >>> asymmetric_polynomial().positive.series(3)
        (0.0, 1.75, 0.3333333333333333)
    """
    return TwoSided(
        Polynomial(_coefficients("epsilons_pos", epsilons_pos), as_nonnegative("gamma_pos", gamma_pos)),
        Polynomial(_coefficients("epsilons_neg", epsilons_neg), as_nonnegative("gamma_neg", gamma_neg)),
        margin,
    )


def _coefficients(name: str, given: Any) -> tuple[Any, ...]:
    return (
        (as_number(name, given),)
        if getattr(given, "ndim", 0) == 0 and not isinstance(given, Sequence)
        else as_numbers(name, given)
    )


ALL: dict[str, Callable[..., TwoSided]] = {name: globals()[name] for name in __all__ if name != "TwoSided"}
