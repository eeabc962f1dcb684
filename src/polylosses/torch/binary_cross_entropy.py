"""``poly_binary_cross_entropy_with_logits``: targets, the sigmoid link, the polynomial and the reduction, composed."""

from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, parse, unchecked, warn_of_negative_series
from polylosses.torch import kernels
from polylosses.torch.concrete import is_known_false
from polylosses.torch.likelihood import given_polynomial
from polylosses.torch.precision import result_dtype, upcast_dtype
from polylosses.torch.reduction import check_reduction, mean, reduce
from polylosses.torch.sigmoid import Side, Sides, losses_of_elements, sides_of
from polylosses.torch.targets import BinaryTargets, batch_shape, broadcasts, held_by
from polylosses.two_sided import TwoSided, given_pair

# What ``polynomial`` takes here: one for both sides, or a pair, of positives and negatives.
Loss = Polynomial | TwoSided | tuple[Polynomial, Polynomial]


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
    polynomial: Loss | None = None,
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
            number, or a tensor that broadcasts to ``input`` (whose values are checked on CPUs only, outside of
            transformations and compilers).
            Default None: neither.
        alpha_on_epsilon: whether ``alpha`` multiplies the whole loss, which is the balanced listing of the paper.
            False is the variant of most published copies, where it multiplies the logarithm alone and the powers of
            ``1 - p`` stay unbalanced.
        ignore_index: elements with this target (for class ids: all classes there) give no loss and no gradient,
            whatever their logits are, and don't count in the mean. It may be any integer, a class included; a floating
            target holds it rounded to its dtype, and one that an integer dtype can't hold ignores nothing. Default
            None: nothing is ignored.
        reduction: ``"mean"`` over all elements that are kept, ``"sum"`` or ``"none"``.
        epsilon, gamma: as for :func:`poly_cross_entropy`.
        polynomial: as for :func:`poly_cross_entropy`; or a pair, of positives and negatives; or a
            :class:`polylosses.TwoSided`, such as ``polylosses.asymmetric()``, in which negatives may have a margin.
        implementation: as for :func:`poly_cross_entropy`.

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
    loss = given_with_balance(epsilon, gamma, polynomial, alpha, alpha_on_epsilon)
    targets = BinaryTargets(target, weight, pos_weight, ignore_index)
    return binary_cross_entropy(loss, alpha, alpha_on_epsilon, input, targets, reduction, implementation)


def given_with_balance(
    epsilon: Any, gamma: Any, polynomial: Loss | None, alpha: Any, alpha_on_epsilon: bool
) -> Polynomial | TwoSided:
    """The given loss; warns below the bound for ``epsilon``, which ``alpha`` on the logarithm moves."""
    check_alpha(alpha)
    moves = not alpha_on_epsilon and isinstance(alpha, Real) and not torch.compiler.is_compiling()
    pair = given_pair(epsilon, gamma, polynomial)
    if pair is not None:
        if moves:
            _warn_with_balance(pair.positive, float(alpha))
            _warn_with_balance(pair.negative, 1.0 - float(alpha))
        return pair
    one: Any = polynomial
    if not moves:
        return given_polynomial(epsilon, gamma, one)
    parsed = parse(epsilon, gamma, one)
    _warn_with_balance(parsed, min(float(alpha), 1.0 - float(alpha)))
    return parsed


def _warn_with_balance(polynomial: Polynomial, balance: float) -> None:
    if isinstance(polynomial.log_weight, float):
        log_weight = polynomial.log_weight * balance
        warn_of_negative_series(unchecked(polynomial.coefficients, polynomial.gamma, log_weight))


def binary_cross_entropy(
    loss: Polynomial | TwoSided,
    alpha: Any,
    alpha_on_epsilon: bool,
    input: Tensor,
    targets: BinaryTargets,
    reduction: str,
    implementation: str | None,
) -> Tensor:
    """The loss, for polynomials and an ``alpha`` that have been checked."""
    target, weight, pos_weight, ignore_index = targets
    _check(input, target, weight, pos_weight, ignore_index, reduction)
    if isinstance(alpha, Tensor) and not broadcasts(alpha, input.shape):
        raise ValueError(
            f"alpha must be real and broadcast to input, of shape {tuple(input.shape)}; "
            f"got {alpha.dtype} of shape {tuple(alpha.shape)}."
        )
    sides = sides_of(loss, alpha, alpha_on_epsilon, upcast_dtype(input))
    sides = _with_polynomials(sides, *(kernels.with_numbers(side.polynomial) for side in sides[:2]))
    dtype = target.dtype if targets.are_dense(input) else input.dtype
    targets = targets._replace(ignore_index=held_by(target.dtype, ignore_index))
    unsupported = _unsupported(sides, input, targets)
    tensors = (target, weight, pos_weight, *(side.factor for side in sides[:2] if isinstance(side.factor, Tensor)))
    implementation = kernels.choose(implementation, input, tensors, targets.ignore_index, unsupported)
    if implementation == "plain":
        losses, ignored = losses_of_elements(sides, input, targets), targets.ignored(input)
        result = reduce(losses, reduction, 1 if ignored is None else ~ignored, ignored)
    else:
        result = _by_kernel(sides, input, targets, reduction, result_dtype(input, dtype), implementation)
    return result.to(result_dtype(input, dtype))


def _by_kernel(
    sides: Sides, input: Tensor, targets: BinaryTargets, reduction: str, dtype: torch.dtype, implementation: str
) -> Tensor:
    """The loss; losses that are not reduced are rounded once, to the ``dtype`` of the result."""
    if not targets.are_dense(input):
        targets = targets._replace(target=targets.target.long())
    divides, elements = reduction == "mean", input.numel()
    ignored = targets.ignored(input) if divides else None
    known = isinstance(elements, int) and not torch.compiler.is_compiling()  # not symbolic
    if divides and ignored is None and known and elements and all(isinstance(side.factor, float) for side in sides[:2]):
        # As factors of both sides: torch's division takes a tenth of a small call.
        divides = False
        of_no, of_yes = (Side(side.factor / elements, side.polynomial) for side in sides[:2])
        sides = Sides(of_no, of_yes, sides.margin)
    losses_dtype = None
    if reduction == "none":
        losses_dtype = input.dtype if dtype == input.dtype else torch.float32
    loss = kernels.sigmoid_loss(input, targets, sides, losses_dtype, implementation)
    return mean(loss, elements if ignored is None else (~ignored).sum(), ignored) if divides else loss


def _with_polynomials(sides: Sides, negative: Polynomial, positive: Polynomial) -> Sides:
    return Sides(Side(sides.negative.factor, negative), Side(sides.positive.factor, positive), sides.margin)


def _unsupported(sides: Sides, input: Tensor, targets: BinaryTargets) -> str | None:
    """Why no kernel supports these targets or polynomials, or None."""
    target = targets.target
    for name, factor in (
        ("weight", targets.weight),
        ("pos_weight", targets.pos_weight),
        *(("alpha", side.factor) for side in sides[:2]),
    ):
        if isinstance(factor, Tensor) and factor.requires_grad:
            return f"kernels have no derivatives by {name}"
    given = [(side.polynomial.log_weight, *side.polynomial.coefficients) for side in sides[:2]]
    if not all(kernels.evaluates(side.polynomial) for side in sides[:2]):
        return (
            f"kernels take at most {kernels.MOST_COEFFICIENTS} coefficients, of these {kernels.MOST_TENSORS} scalar "
            "tensors on the CPU, and a gamma that is a number, at least 0"
        )
    shared = all(a is b for a, b in zip(*given, strict=False) if isinstance(a, Tensor) or isinstance(b, Tensor))
    if any(isinstance(number, Tensor) for numbers in given for number in numbers) and not (
        shared and len(given[0]) == len(given[1])
    ):
        return "kernels take tensors in a polynomial if these are the same for positives and negatives"
    if target.requires_grad:
        return "kernels have no derivatives by the target"
    if targets.are_dense(input):
        if target.dtype == torch.float64 and targets.ignore_index is not None:
            return "kernels compare targets with ignore_index in float32, and these are torch.float64"
    elif input.dim() < 2:
        return f"kernels take class ids for logits of two dimensions or more; these have shape {tuple(input.shape)}"
    return None


def _check(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    ignore_index: Any,
    reduction: str,
) -> None:
    """Raises torch's own errors, by calling torch, and ours for the options that torch does not have."""
    check_reduction(reduction)
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
        shape = batch_shape(input)
        if target.shape != shape:
            raise ValueError(
                f"class ids for an input of shape {tuple(input.shape)} must have shape {tuple(shape)}; "
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
        or not all(
            factor is None or (isinstance(factor, Tensor) and broadcasts(factor, input.shape))
            for factor in (weight, pos_weight)
        )
    ):
        F.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight)


def check_alpha(alpha: Any) -> None:
    """Raises unless ``alpha`` is None or in [0, 1]; tensors that would need a synchronization pass."""
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
