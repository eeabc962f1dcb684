"""The losses as modules: torch's own loss modules with a polynomial."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments, parse
from polylosses.torch.binary_cross_entropy import Loss, binary_cross_entropy, check_alpha, given_with_balance
from polylosses.torch.cross_entropy import poly_cross_entropy
from polylosses.torch.linear import check_logit_options, linear_poly_cross_entropy
from polylosses.torch.reduction import check_reduction
from polylosses.torch.targets import BinaryTargets
from polylosses.two_sided import TwoSided, asymmetric, asymmetric_polynomial


class _PolynomialModule(nn.Module):
    """Base class of the modules: ``epsilon`` and ``gamma``, or ``polynomial`` instead, checked when they are set."""

    epsilon: Any
    gamma: Any
    polynomial: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("epsilon", "gamma", "polynomial"):
            if name != "polynomial" and self.polynomial is not None:
                raise AttributeError(
                    f"{name} = {value!r} would have no effect: this {type(self).__name__} has a polynomial, which is "
                    "in the place of epsilon and gamma. Set its polynomial instead."
                )
            checked = self._checked(**{"epsilon": DEFAULT_EPSILON, "gamma": 0.0, "polynomial": None, name: value})
            value = checked if name == "polynomial" and value is not None else value
            _check_parameters(name, value)
        super().__setattr__(name, value)

    def _checked(self, epsilon: Any, gamma: Any, polynomial: Any) -> Any:
        return from_arguments(epsilon, gamma, polynomial)

    def _keep(self, epsilon: Any, gamma: Any, polynomial: Any, **others: Any) -> None:
        """Sets the attributes, tensors as buffers and parameters as parameters; their numbers have been checked."""
        _check_parameters("epsilon", epsilon)
        _check_parameters("polynomial", polynomial)
        for name, value in {"epsilon": epsilon, "gamma": gamma, **others}.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                super().__setattr__(name, value)
        super().__setattr__("polynomial", polynomial)

    def _kept(self) -> Any:
        """The polynomial, of which the user was warned when it was set."""
        if self.polynomial is not None:
            return self.polynomial
        return parse(self.epsilon, self.gamma, None)


def _check_parameters(name: str, value: Any) -> None:
    """Raises ValueError for learned tensors inside of a value, where the module can't register them."""
    polynomials = (value.negative, value.positive) if isinstance(value, TwoSided) else (value,)
    for given in polynomials:
        numbers = (*given.coefficients, given.gamma, given.log_weight) if isinstance(given, Polynomial) else given
        if isinstance(numbers, Sequence) and any(
            isinstance(number, Tensor) and number.requires_grad for number in numbers
        ):
            raise ValueError(
                f"{name} holds a tensor with a gradient, which parameters() and state_dict() of the module would not "
                "give. To learn coefficients, give epsilon=torch.nn.Parameter(torch.tensor([...])), all in one; "
                "or register a parameter in a module of your own and call the function, not the module."
            )


class PolyCrossEntropyLoss(_PolynomialModule, nn.CrossEntropyLoss):
    """:func:`poly_cross_entropy` as a module, in the place of :class:`torch.nn.CrossEntropyLoss`.

    ``weight`` is a buffer, as in torch; softmax focal losses call it ``alpha``. ``epsilon`` and ``gamma`` may be
    numbers, which can be set to others at any time; tensors, which become buffers; or an :class:`torch.nn.Parameter`,
    which is learned along with the model (with one dimension, for all coefficients of Poly-N; a parameter inside of a
    sequence or of ``polynomial`` is a ValueError). ``polynomial`` can be set, too, and takes the place of both; setting
    them is an AttributeError then.

    Args:
        weight, ignore_index, reduction, label_smoothing: as for :class:`torch.nn.CrossEntropyLoss`.
        epsilon, gamma, polynomial, implementation: as for :func:`poly_cross_entropy`, formula and errors too.

    Shape:
        As for :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> import torch
        >>> loss = PolyCrossEntropyLoss(epsilon=2.0)
        >>> loss(torch.tensor([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.2779)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
        implementation: str | None = None,
    ) -> None:
        check_reduction(reduction)
        from_arguments(epsilon, gamma, polynomial)
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.implementation = implementation
        self._keep(epsilon, gamma, polynomial)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` and ``target``."""
        return poly_cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            implementation=self.implementation,
            polynomial=self._kept(),
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "implementation": None}
        return _shown(self, usual)


class PolyBCEWithLogitsLoss(_PolynomialModule, nn.BCEWithLogitsLoss):
    """:func:`poly_binary_cross_entropy_with_logits` as a module, in the place of :class:`torch.nn.BCEWithLogitsLoss`.

    ``weight`` and ``pos_weight`` are buffers, as in torch; so is an ``alpha`` that is a tensor. ``epsilon`` and
    ``gamma`` are kept as in :class:`PolyCrossEntropyLoss`.

    Args:
        weight, reduction, pos_weight: as for :class:`torch.nn.BCEWithLogitsLoss`.
        alpha, alpha_on_epsilon, ignore_index, epsilon, gamma, polynomial, implementation: as for
            :func:`poly_binary_cross_entropy_with_logits`, formula and errors too. A pair of polynomials becomes a
            :class:`polylosses.TwoSided`.

    Shape:
        As for :func:`poly_binary_cross_entropy_with_logits`: targets may be class ids.

    Example:
        >>> import torch
        >>> loss = PolyBCEWithLogitsLoss(epsilon=2.0)
        >>> loss(torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(1.9658)
    """

    alpha: Any

    def __init__(
        self,
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
    ) -> None:
        check_reduction(reduction)
        given = given_with_balance(epsilon, gamma, polynomial, alpha, alpha_on_epsilon)
        super().__init__(weight=weight, reduction=reduction, pos_weight=pos_weight)
        self.ignore_index = ignore_index
        self.alpha_on_epsilon = alpha_on_epsilon
        self.implementation = implementation
        self._keep(epsilon, gamma, None if polynomial is None else given, alpha=alpha)

    def _checked(self, epsilon: Any, gamma: Any, polynomial: Any) -> Any:
        return given_with_balance(epsilon, gamma, polynomial, None, True)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` and ``target``."""
        check_alpha(self.alpha)
        balance = (self.alpha, self.alpha_on_epsilon)
        targets = BinaryTargets(target, self.weight, self.pos_weight, self.ignore_index)
        return binary_cross_entropy(self._kept(), *balance, input, targets, self.reduction, self.implementation)

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"alpha": None, "alpha_on_epsilon": True, "ignore_index": None, "reduction": "mean"}
        return _shown(self, usual | {"implementation": None})


class LinearPolyCrossEntropyLoss(_PolynomialModule):
    """A linear layer and :func:`linear_poly_cross_entropy`, with the arguments of torch's LinearCrossEntropyLoss.

    The layer is the attribute ``linear``, a :class:`torch.nn.Linear`. To tie it to an embedding, set
    ``loss.linear.weight = embedding.weight``; for a layer that lives elsewhere in the model, use the function. For
    predictions, ``loss.linear(hidden)`` gives the logits.

    Args:
        in_features, num_classes: the sizes :math:`H` and :math:`V` of :func:`linear_poly_cross_entropy`.
        bias, device, dtype: of the layer, as for :class:`torch.nn.Linear`. By default there is no bias.
        weight, ignore_index, reduction, label_smoothing: as for :class:`torch.nn.CrossEntropyLoss`.
        softcap, z_loss_weight: as for :func:`linear_poly_cross_entropy`. The logits of ``loss.linear`` have no softcap.
        epsilon, gamma, polynomial, implementation: as for :class:`PolyCrossEntropyLoss`.

    Shape:
        As for :func:`linear_poly_cross_entropy`.

    Example:
        >>> import torch
        >>> head = LinearPolyCrossEntropyLoss(16, 50_000, epsilon=2.0)
        >>> hidden, tokens = torch.randn(2, 8, 16), torch.randint(50_000, (2, 8))
        >>> head(hidden, tokens).shape
        torch.Size([])
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        z_loss_weight: float = 0.0,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
        implementation: str | None = None,
    ) -> None:
        check_reduction(reduction)
        check_logit_options(softcap, z_loss_weight)
        from_arguments(epsilon, gamma, polynomial)
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.z_loss_weight = z_loss_weight
        self.implementation = implementation
        self._keep(epsilon, gamma, polynomial)

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss of hidden states ``input`` and ``target``, with a factor ``sample_weight`` for each row."""
        return linear_poly_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            sample_weight=sample_weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            softcap=self.softcap,
            z_loss_weight=self.z_loss_weight,
            implementation=self.implementation,
            polynomial=self._kept(),
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "implementation": None}
        return _shown(self, usual | {"softcap": None, "z_loss_weight": 0.0})


class Poly1CrossEntropyLoss(PolyCrossEntropyLoss):
    """Poly-1, ``-log p + epsilon (1 - p)``: :class:`PolyCrossEntropyLoss` with ``epsilon`` first.

    Args:
        epsilon: the coefficient of ``1 - p``. Default 1.
        weight, ignore_index, reduction, label_smoothing: as for :class:`PolyCrossEntropyLoss`.

    Example:
        >>> import torch
        >>> Poly1CrossEntropyLoss(2.0)(torch.tensor([[4.0, 2.0, 1.0]]), torch.tensor([0]))
        tensor(0.4823)
    """

    def __init__(
        self,
        epsilon: Any = DEFAULT_EPSILON,
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, epsilon=epsilon
        )


class Poly1FocalLoss(PolyBCEWithLogitsLoss):
    """Poly-1 focal loss of sigmoids, ``(1 - p)^gamma (-log p + epsilon (1 - p))``, balanced by ``alpha``.

    It is :class:`PolyBCEWithLogitsLoss` with the names and defaults under which it is known (focal loss: Lin et al.,
    ICCV 2017; Poly-1 focal: Leng et al., ICLR 2022, section 5.2). For the softmax kind, see
    :class:`PolyCrossEntropyLoss` and its ``gamma``.

    Args:
        epsilon: the coefficient of ``(1 - p)^(gamma + 1)``. Default 1.
        gamma: the focal exponent. Default 2.
        alpha: the balance: a factor ``alpha`` for positives, ``1 - alpha`` for negatives. Default 0.25; None: neither.
        alpha_on_epsilon: as for :func:`poly_binary_cross_entropy_with_logits`: False for the numbers of the copies that
            balance the focal term alone.
        weight, pos_weight, ignore_index, reduction: as for :class:`PolyBCEWithLogitsLoss`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
        >>> Poly1FocalLoss()(logits, torch.tensor([0, 0]))  # or the same as one-hot rows of floats
        tensor(0.7075)
    """

    def __init__(
        self,
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 2.0,
        alpha: Any = 0.25,
        *,
        alpha_on_epsilon: bool = True,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            weight,
            pos_weight=pos_weight,
            alpha=alpha,
            alpha_on_epsilon=alpha_on_epsilon,
            ignore_index=ignore_index,
            reduction=reduction,
            epsilon=epsilon,
            gamma=gamma,
        )


class _Asymmetric(PolyBCEWithLogitsLoss):
    """Base class of losses that are made of numbers. Setting one of these afterwards is an error."""

    def __init__(self, loss: TwoSided, weight: Any, pos_weight: Any, ignore_index: Any, reduction: str) -> None:
        numbers = (loss.positive.gamma, loss.negative.gamma, *loss.positive.coefficients, *loss.negative.coefficients)
        for number in numbers:
            if isinstance(number, Tensor):
                raise TypeError(
                    f"{type(self).__name__} is made of numbers; got {number!r}. For tensors, give "
                    "poly_binary_cross_entropy_with_logits a polylosses.TwoSided."
                )
        super().__init__(weight, pos_weight=pos_weight, ignore_index=ignore_index, reduction=reduction, polynomial=loss)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("gamma_neg", "gamma_pos", "clip", "margin"):
            raise AttributeError(f"{name} = {value!r} would have no effect. Set polynomial, or make a new loss.")
        super().__setattr__(name, value)


class AsymmetricLoss(_Asymmetric):
    """Asymmetric loss (ASL) for multi-label targets: :func:`polylosses.asymmetric` with the names of its authors' code.

    For a target ``y`` and the sigmoid ``p``, with ``p_m = max(p - clip, 0)``, an element's loss is
    ``-y (1 - p)^gamma_pos log p - (1 - y) p_m^gamma_neg log(1 - p_m)``: Ridnik et al., ICCV 2021 (arXiv 2009.14119),
    equation 7. The authors' code sums over all elements, which is ``reduction="sum"`` here.

    Args:
        gamma_neg, gamma_pos: the focal exponents. Default 4 and 1.
        clip: the margin of negatives. Default 0.05.
        weight, pos_weight, ignore_index, reduction: as for :class:`PolyBCEWithLogitsLoss`.

    Example:
        >>> import torch
        >>> AsymmetricLoss()(torch.tensor([[2.0, -1.0], [-4.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        tensor(0.3903)
    """

    def __init__(
        self,
        gamma_neg: Any = 4.0,
        gamma_pos: Any = 1.0,
        clip: float = 0.05,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(asymmetric(gamma_neg, gamma_pos, clip), weight, pos_weight, ignore_index, reduction)


class AsymmetricPolynomialLoss(_Asymmetric):
    """Asymmetric polynomial loss (APL): :func:`polylosses.asymmetric_polynomial` as a module.

    Huang et al., ICASSP 2023 (arXiv 2304.05361). The authors' code sums over all elements, which is
    ``reduction="sum"`` here.

    Args:
        gamma_neg, gamma_pos: the focal exponents. Default 4 and 0.
        clip: the margin of negatives. Default 0.05.
        weight, pos_weight, ignore_index, reduction: as for :class:`PolyBCEWithLogitsLoss`.

    Example:
        >>> import torch
        >>> AsymmetricPolynomialLoss()(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.0130)
    """

    def __init__(
        self,
        gamma_neg: Any = 4.0,
        gamma_pos: Any = 0.0,
        clip: float = 0.05,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(asymmetric_polynomial(gamma_neg, gamma_pos, clip), weight, pos_weight, ignore_index, reduction)


def _shown(module: Any, defaults: dict[str, Any]) -> str:
    if module.polynomial is not None:
        shown = [f"polynomial={module.polynomial}"]
    else:
        shown = [f"epsilon={module.epsilon}", f"gamma={module.gamma}"]
    for name, usual in defaults.items():
        value = getattr(module, name)
        if isinstance(value, Tensor) or value != usual:
            shown.append(f"{name}={value!r}")
    return ", ".join(shown)
