"""The sigmoid losses: every class is a yes or no of its own."""

from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import (
    DEFAULT_EPSILON,
    Polynomial,
    from_arguments,
    is_zero,
    unchecked,
    warn_of_negative_series,
)
from polylosses.torch.kernels import MOST_COEFFICIENTS, choose, sigmoid_loss
from polylosses.torch.likelihood import (
    at_least_float32,
    given_polynomial,
    held_by,
    in_dtype_of,
    is_known_false,
    is_known_within,
    log_density,
    mean_of_kept,
    polynomial_at,
    result_dtype,
)


def poly_binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    alpha: Any = None,
    alpha_on_epsilon: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
    epsilon: Any = DEFAULT_EPSILON,
    gamma: Any = 0.0,
    polynomial: Polynomial | None = None,
    implementation: str | None = None,
) -> Tensor:
    r"""PolyLoss of sigmoid probabilities: :func:`torch.nn.functional.binary_cross_entropy_with_logits` for the family.

    With ``p`` the sigmoid of ``input``, ``y`` the target and ``L`` the polynomial (by default Poly-1,
    ``-log p + epsilon (1 - p)``), the loss of one element is

    ``weight * (pos_weight * alpha * y * L(p) + (1 - alpha) * (1 - y) * L(1 - p))``

    without the factors that are not given. With ``epsilon=0`` and ``gamma=0`` it *is*
    ``F.binary_cross_entropy_with_logits``; with ``epsilon=0`` and ``gamma=2`` it is focal loss.

    Args:
        input: logits of any shape and floating dtype. float16 and bfloat16 are computed in float32.
        target: of ``input``'s shape and a floating dtype, in [0, 1], hard or soft; or class ids in [0, C) of an
            integer dtype, of shape :math:`(N)` or :math:`(N, d_1, ..., d_K)` for an ``input`` of shape :math:`(N, C)`
            or :math:`(N, C, d_1, ..., d_K)` with C of at least 2 (one class against all: 1 for that class and 0 for all
            others).
        weight: a factor for each element; broadcasts to ``input``.
        pos_weight: a factor for the positive part; broadcasts to ``input``. For classes, of shape :math:`(C)`, or
            :math:`(C, 1, ..., 1)` where ``input`` has :math:`d_1, ..., d_K`.
        alpha: in [0, 1]: focal loss's balance, a factor ``alpha`` for positives and ``1 - alpha`` for negatives; a
            number or a tensor (whose values are checked on CPUs only, outside of transformations and compilers).
            Default None: neither.
        alpha_on_epsilon: whether ``alpha`` multiplies the whole loss, which is the balanced listing of the paper.
            False is the variant of most published copies, where it multiplies the logarithm alone and the powers of
            ``1 - p`` stay unbalanced.
        ignore_index: elements with this target (for class ids: all classes there) give no loss and no gradient,
            whatever their logits are, and don't count in the mean. It may be any integer, a class included; a floating
            target holds it rounded to its dtype, and one that an integer dtype can't hold ignores nothing. Default
            None: nothing is ignored.
        reduction: ``"mean"`` over all elements that are kept, ``"sum"`` or ``"none"``.
        epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`.
        implementation: as for :func:`poly_cross_entropy`. The kernels serve numbers (not tensors) as
            ``epsilon``, ``gamma`` and ``alpha``, no ``weight`` and ``pos_weight``, and dense targets of ``input``'s
            dtype.

    Returns:
        The loss, a scalar or of ``input``'s shape for ``reduction="none"``, in the dtype that
        ``F.binary_cross_entropy_with_logits`` gives: ``target``'s (``input``'s for class ids), or float32 under
        autocast. The mean over nothing is nan, and its derivatives are 0.

    Raises:
        TypeError, ValueError: as for :func:`poly_cross_entropy`; for an ``alpha`` outside [0, 1]; for class ids whose
            shape does not fit ``input``, or of one class only; if ``implementation`` can't serve.
        ValueError, RuntimeError, NotImplementedError: those of ``F.binary_cross_entropy_with_logits``.
        RuntimeError: a class id is out of range.

    Source: Leng et al., ICLR 2022 (arXiv 2204.12511), section 5.2 and the listings for focal loss; Lin et al., ICCV
    2017 (arXiv 1708.02002), equation 5, for ``alpha``.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
        >>> target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> poly_binary_cross_entropy_with_logits(logits, target, epsilon=2.0, reduction="none")
        tensor([[0.3653, 0.8511],
                [1.6931, 4.9537]])
        >>> poly_binary_cross_entropy_with_logits(logits, torch.tensor([0, 0]), epsilon=2.0)  # the same, by class ids
        tensor(1.9658)
    """
    polynomial = balanced_polynomial(epsilon, gamma, polynomial, alpha, alpha_on_epsilon)
    return of_polynomial(
        polynomial,
        input,
        target,
        weight,
        pos_weight,
        alpha,
        alpha_on_epsilon,
        ignore_index,
        reduction,
        implementation,
    )


def balanced_polynomial(
    epsilon: Any, gamma: Any, polynomial: Polynomial | None, alpha: Any, alpha_on_epsilon: bool
) -> Polynomial:
    """:func:`from_arguments`, with a warning of what is below the bound that ``alpha`` on the logarithm moves."""
    check_alpha(alpha)
    moved = not alpha_on_epsilon and isinstance(alpha, Real)
    if not moved or torch.compiler.is_compiling():
        return given_polynomial(epsilon, gamma, polynomial)
    given = from_arguments(epsilon, gamma, polynomial, warn=False)
    warn_of_negative_series(_with_balance(given, min(float(alpha), 1.0 - float(alpha))))
    return given


def of_polynomial(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    alpha: Any,
    alpha_on_epsilon: bool,
    ignore_index: int | None,
    reduction: str,
    implementation: str | None,
) -> Tensor:
    """:func:`poly_binary_cross_entropy_with_logits` of a polynomial that the user has been warned of."""
    _check(input, target, weight, pos_weight, ignore_index, reduction)
    unsupported = _unsupported(polynomial, input, target, weight, pos_weight, alpha)
    ignore_index = held_by(target.dtype, ignore_index)
    implementation = choose(implementation, input, (target,), ignore_index, unsupported)
    dtype = target.dtype if target.shape == input.shape else input.dtype
    ignored: Any = None if ignore_index is None else target == ignore_index
    if implementation != "plain":
        if ignore_index is not None:
            ignore_index = int(ignore_index)
        loss = _by_kernel(
            polynomial, input, target, alpha, alpha_on_epsilon, ignore_index, reduction != "none", implementation
        )
        if reduction == "mean" and ignored is None:
            loss = loss / input.numel()
        elif reduction == "mean":
            classes = input.numel() // max(1, target.numel())
            loss = mean_of_kept(loss, (~ignored).sum() * classes, ignored)
        return loss.to(result_dtype(input, dtype))
    logits = at_least_float32(input)
    alpha = in_dtype_of(logits, alpha)
    if target.shape == input.shape:
        target = at_least_float32(target)
        if ignored is not None:
            target, logits = target.masked_fill(ignored, 0.0), logits.masked_fill(ignored, 0.0)
        positive = target if pos_weight is None else pos_weight * target
        loss = _side(polynomial, -logits, positive, alpha, alpha_on_epsilon)
        loss = loss + _side(polynomial, logits, 1.0 - target, None if alpha is None else 1.0 - alpha, alpha_on_epsilon)
    else:
        class_dim = 0 if input.dim() == 1 else 1
        target = target.long() if ignored is None else target.long().masked_fill(ignored, 0)
        # Of numbers: torch.jit.trace can't scatter a truth value.
        labelled = torch.zeros_like(logits).scatter(class_dim, target.unsqueeze(class_dim), 1.0) == 1.0
        if ignored is not None:
            ignored = ignored.unsqueeze(class_dim).expand(input.shape)
            logits = logits.masked_fill(ignored, 0.0)
        balance = None if alpha is None else _where(labelled, alpha, 1.0 - alpha, logits)
        share = logits.new_ones(()) if pos_weight is None else _where(labelled, pos_weight, 1.0, logits)
        loss = _side(polynomial, torch.where(labelled, -logits, logits), share, balance, alpha_on_epsilon)
    if weight is not None:
        loss = loss * weight
    if ignored is not None:
        loss = loss.masked_fill(ignored, 0.0)
    if reduction == "mean":
        loss = loss.mean() if ignored is None else mean_of_kept(loss.sum(), (~ignored).sum(), ignored)
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(result_dtype(input, dtype))


def poly_sigmoid(
    input: Tensor, *, epsilon: Any = DEFAULT_EPSILON, gamma: Any = 0.0, polynomial: Polynomial | None = None
) -> Tensor:
    """The probabilities of a model that was trained with a PolyLoss of sigmoids: :func:`poly_softmax` for yes or no.

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
    logits = at_least_float32(input)
    logp, logq = F.logsigmoid(logits), F.logsigmoid(-logits)
    yes, no = log_density(polynomial, logp, logq), log_density(polynomial, logq, logp)
    return torch.sigmoid(yes - no).to(input.dtype)


def _unsupported(
    polynomial: Polynomial, input: Tensor, target: Tensor, weight: Any, pos_weight: Any, alpha: Any
) -> str | None:
    """What no kernel serves."""
    if weight is not None or pos_weight is not None:
        return "kernels take no weight and pos_weight"
    numbers = {"alpha": alpha, "gamma": polynomial.gamma, "log_weight": polynomial.log_weight}
    numbers |= {f"coefficients[{j}]": c for j, c in enumerate(polynomial.coefficients)}
    for name, number in numbers.items():
        if number is not None and not isinstance(number, float | int):
            return f"kernels take numbers, and {name} is a {type(number).__name__}"
    if len(polynomial.coefficients) > MOST_COEFFICIENTS:
        return f"kernels take at most {MOST_COEFFICIENTS} coefficients, and there are {len(polynomial.coefficients)}"
    if target.requires_grad:
        return "kernels have no derivatives by the target"
    if target.shape == input.shape:
        if target.dtype != input.dtype:
            return f"kernels take dense targets of the logits' dtype, {input.dtype}, and these are {target.dtype}"
    elif target.dtype != torch.int64 or input.dim() < 2:
        return (
            "kernels take class ids of dtype int64 for logits of two dimensions or more; the target has "
            f"{target.dtype}, and the logits have shape {tuple(input.shape)}"
        )
    return None


def _by_kernel(
    polynomial: Polynomial,
    input: Tensor,
    target: Tensor,
    alpha: Any,
    alpha_on_epsilon: bool,
    ignore_index: int | None,
    summed: bool,
    implementation: str,
) -> Tensor:
    """The losses of all elements, or their sum."""
    balance = (1.0, 1.0) if alpha is None else (1.0 - alpha, float(alpha))
    sides = [polynomial, polynomial]
    if not alpha_on_epsilon:
        sides = [_with_balance(polynomial, factor) for factor in balance]
        balance = (1.0, 1.0)
    numbers = (polynomial.gamma, *balance, *(side.log_weight for side in sides), *polynomial.coefficients)
    return sigmoid_loss(input, target, ignore_index, numbers, summed, implementation)


def _with_balance(polynomial: Polynomial, factor: Any) -> Polynomial:
    """The polynomial with its logarithm times ``factor``."""
    log_weight = polynomial.log_weight if is_zero(polynomial.log_weight) else polynomial.log_weight * factor
    return unchecked(polynomial.coefficients, polynomial.gamma, log_weight)


def _where(condition: Tensor, a: Any, b: Any, like: Tensor) -> Tensor:
    """:func:`torch.where` of numbers and tensors; numbers alone would give it the default dtype."""
    a, b = (x if isinstance(x, Tensor) and x.is_floating_point() else like.new_ones(()) * x for x in (a, b))
    return torch.where(condition, a, b)


def _side(polynomial: Polynomial, wrong: Tensor, share: Tensor, balance: Any, balance_epsilon: bool) -> Tensor:
    """``share * balance * L(p)`` for ``1 - p = sigmoid(wrong)``, where what has no share counts nothing."""
    if balance is not None:
        if balance_epsilon:
            share = share * balance
        else:
            polynomial = _with_balance(polynomial, balance)
    most = torch.finfo(wrong.dtype).max ** 0.5
    if not is_known_within(wrong, -most, most):
        wrong = wrong.masked_fill((share == 0) & (wrong > most), 0.0)
    # It is logsigmoid(-wrong), whose second derivative is 0 in torch where p rounds to 1. (From the threshold on,
    # softplus is its argument: the default is for float32.)
    logp = -F.softplus(wrong, threshold=40.0)
    return share * polynomial_at(polynomial, logp, torch.sigmoid(wrong))


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_index: Any,
    reduction: str,
) -> None:
    """Raises what torch would raise, by asking torch, and what only the options beyond torch's can get wrong."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")
    if ignore_index is not None and not isinstance(ignore_index, Integral):
        raise TypeError(f"ignore_index must be an integer, or None to ignore nothing; got {ignore_index!r}.")
    if (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and target.dim() == input.dim() - 1
        and not target.is_floating_point()
        and not target.is_complex()
        and target.dtype != torch.bool
    ):
        places = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
        if target.shape != places:
            raise ValueError(
                f"class ids for an input of shape {tuple(input.shape)} must have shape {tuple(places)}; "
                f"got {tuple(target.shape)}."
            )
        if input.shape[:2][-1:] == (1,):
            raise ValueError(
                f"target holds class ids (its dtype is {target.dtype}, its shape {tuple(target.shape)}), and an input "
                f"of shape {tuple(input.shape)} has one class, so that all would be 0. For labels 0 and 1, give both "
                f"one shape and the target a floating dtype: input.squeeze({min(1, input.dim() - 1)}), "
                "target.to(input.dtype)."
            )
        target = torch.zeros_like(input)
    if (
        not isinstance(input, Tensor)
        or not isinstance(target, Tensor)
        or target.shape != input.shape
        or not input.is_floating_point()
        or not target.is_floating_point()
        or target.layout != torch.strided
        or not all(factor is None or _fits(factor, input) for factor in (weight, pos_weight))
    ):
        F.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight)


def check_alpha(alpha: Any) -> None:
    """Raises unless it is None, or a number or tensor in [0, 1]; tensors that can't be read at once pass."""
    if alpha is None:
        return
    if isinstance(alpha, bool) or not isinstance(alpha, (Real, Tensor)):
        raise TypeError(f"alpha must be a number between 0 and 1, a tensor, or None; got {alpha!r}.")
    if isinstance(alpha, Tensor):
        outside = is_known_false(((alpha >= 0) & (alpha <= 1)).all())
    else:
        outside = not 0.0 <= float(alpha) <= 1.0
    if outside:
        raise ValueError(f"alpha must be between 0 and 1, or None for no balance; got {alpha!r}.")


def _fits(factor: Any, input: Tensor) -> bool:
    """Whether it is real and broadcasts to the input, and the input doesn't to it."""
    return (
        isinstance(factor, Tensor)
        and factor.dtype != torch.bool
        and not factor.is_complex()
        and factor.dim() <= input.dim()
        and all(
            size in (1, wanted) for size, wanted in zip(reversed(factor.shape), reversed(input.shape), strict=False)
        )
    )
