"""The named losses of the family. To add one, write its function here and add its name to ``__all__``."""

from collections.abc import Callable
from typing import Any

from polylosses.polynomial import Polynomial, as_nonnegative, as_number, as_numbers

__all__ = [
    "cross_entropy",
    "focal",
    "mean_absolute_error",
    "poly1",
    "poly1_focal",
    "poly_n",
    "symmetric_cross_entropy",
    "taylor_cross_entropy",
]


def cross_entropy() -> Polynomial:
    """Cross-entropy, ``-log p``.

    Example:
        >>> cross_entropy().series(3)
        (1.0, 0.5, 0.3333333333333333)
    """
    return Polynomial()


def poly1(epsilon: Any = 1.0) -> Polynomial:
    """Poly-1, ``-log p + epsilon (1 - p)``: Leng et al. 2022, equation 4.

    Args:
        epsilon: a number, or a 0-dimensional tensor or array. Below -1 the loss is no longer monotone, and it warns.

    Example:
        >>> poly1(2.0)
        Polynomial(coefficients=(2.0,), gamma=0.0, log_weight=1.0)
    """
    return Polynomial((as_number("epsilon", epsilon),))


def poly_n(*epsilons: Any) -> Polynomial:
    """Poly-N, ``-log p + sum_j epsilons[j-1] (1 - p)^j``: Leng et al. 2022, equation 3.

    Args:
        epsilons: the coefficients of ``(1 - p)^1, (1 - p)^2, ...`` With none, it is cross-entropy.

    Example:
        >>> poly_n(1.0, 0.5).series(3)
        (2.0, 1.0, 0.3333333333333333)
    """
    return Polynomial(as_numbers("epsilons", epsilons))


def focal(gamma: Any = 2.0) -> Polynomial:
    """Focal loss, ``-(1 - p)^gamma log p``: Lin et al., ICCV 2017 (arXiv 1708.02002), equation 4.

    Args:
        gamma: the focal exponent, at least 0: how strongly well-classified examples are down-weighted; with 0 it is
            cross-entropy.

    Example:
        >>> focal(2.0)
        Polynomial(coefficients=(), gamma=2.0, log_weight=1.0)
    """
    return Polynomial(gamma=gamma)


def poly1_focal(epsilon: Any = 1.0, gamma: Any = 2.0) -> Polynomial:
    """Poly-1 focal loss, ``-(1 - p)^gamma log p + epsilon (1 - p)^(gamma + 1)``: Leng et al. 2022, section 5.2.

    Args:
        epsilon: as for :func:`poly1`.
        gamma: as for :func:`focal`.

    Example:
        >>> poly1_focal(1.0, 2.0).series(2)  # of (1 - p)^3 and (1 - p)^4
        (2.0, 0.5)
    """
    return Polynomial((as_number("epsilon", epsilon),), gamma)


def taylor_cross_entropy(order: int = 2) -> Polynomial:
    """Taylor cross-entropy, ``sum_{j <= order} (1 - p)^j / j``: cross-entropy truncated after ``order`` powers.

    It is L_drop of Leng et al. 2022, section 4.1, and the loss of Feng et al., IJCAI 2020, "Can Cross Entropy Loss Be
    Robust to Label Noise?"

    Args:
        order: the number of powers kept, at least 1. 1 is :func:`mean_absolute_error`.

    Raises:
        ValueError: ``order`` is not an integer of at least 1.

    Example:
        >>> taylor_cross_entropy(3).series(4)
        (1.0, 0.5, 0.3333333333333333, 0.0)
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be an integer of at least 1; got {order!r}.")
    return Polynomial(tuple(1 / j for j in range(1, order + 1)), log_weight=0.0)


def mean_absolute_error() -> Polynomial:
    """``1 - p``: half the absolute error between the one-hot label and the probabilities, summed over classes.

    Ghosh et al., AAAI 2017, "Robust Loss Functions under Label Noise for Deep Neural Networks".

    Example:
        >>> mean_absolute_error().value(-0.2876820724517809, 0.25)
        0.25
    """
    return Polynomial((1.0,), log_weight=0.0)


def symmetric_cross_entropy(alpha: float = 0.1, beta: float = 1.0, A: float = -4.0) -> Polynomial:
    """Symmetric cross-entropy, ``-alpha log p + beta |A| (1 - p)``: Poly-1 with epsilon = beta |A| / alpha, scaled.

    Wang et al., ICCV 2019 (arXiv 1908.06112), equations 5 to 7. The reverse term -sum_k p_k log y_k, with ``A`` in
    place of log 0, is ``-A (1 - p)`` for a hard label.

    Args:
        alpha: weight of cross-entropy. The default is the paper's for CIFAR-10.
        beta: weight of the reverse cross-entropy.
        A: the negative number in place of log 0.

    Raises:
        ValueError: ``A`` is not below 0, ``alpha`` is negative, or a number is not finite.

    Example:
        >>> symmetric_cross_entropy(alpha=0.5, beta=1.0, A=-4.0)
        Polynomial(coefficients=(4.0,), gamma=0.0, log_weight=0.5)
    """
    alpha, beta, A = as_nonnegative("alpha", alpha), as_number("beta", beta), as_number("A", A)
    if not A < 0:
        raise ValueError(f"A is in place of log 0 and must be below 0, such as -4; got {A!r}.")
    return Polynomial((beta * -A,), log_weight=alpha)


ALL: dict[str, Callable[..., Polynomial]] = {name: globals()[name] for name in __all__}
