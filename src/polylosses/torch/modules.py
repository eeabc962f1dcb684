"""The losses as modules: torch's own loss modules with a polynomial."""

from typing import Any

import torch
from torch import Tensor, nn

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments
from polylosses.torch.linear import linear_poly_cross_entropy
from polylosses.torch.sigmoid import check_alpha, poly_binary_cross_entropy_with_logits, warn_of_bound_with_alpha
from polylosses.torch.softmax import poly_cross_entropy


class _PolynomialLoss(nn.Module):
    """A module with either ``epsilon`` and ``gamma`` or a ``polynomial``, checked whenever one of them is set."""

    epsilon: Any
    gamma: Any
    polynomial: Polynomial | None = None

    def _set_polynomial(self, epsilon: Any, gamma: Any, polynomial: Polynomial | None) -> None:
        from_arguments(epsilon, gamma, polynomial)
        if polynomial is None:
            _set(self, "epsilon", epsilon)
            _set(self, "gamma", gamma)
        else:
            _set(self, "polynomial", polynomial)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("epsilon", "gamma"):
            if self.polynomial is not None:
                raise ValueError(
                    f"{name} = {value!r} would not change this loss, made from polynomial={self.polynomial!r}: "
                    "set its polynomial, or make a loss from epsilon and gamma."
                )
            from_arguments(**({"epsilon": self.epsilon, "gamma": self.gamma, "polynomial": None} | {name: value}))
        elif name == "polynomial":
            if not isinstance(value, Polynomial):
                raise TypeError(
                    f"polynomial must be a polylosses.Polynomial, such as polylosses.poly1(2.0); got {value!r}."
                )
            for other in ("epsilon", "gamma"):
                if hasattr(self, other):
                    delattr(self, other)
        super().__setattr__(name, value)

    def _chosen(self) -> Polynomial:
        """The polynomial, of whose epsilon the user has been warned."""
        if self.polynomial is not None:
            return self.polynomial
        return from_arguments(self.epsilon, self.gamma, None, warn=False)


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Keeps a tensor as a buffer, a parameter as a parameter and all else as it is."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        nn.Module.__setattr__(module, name, value)


class PolyCrossEntropyLoss(_PolynomialLoss, nn.CrossEntropyLoss):
    """:func:`poly_cross_entropy` as a module, in the place of :class:`torch.nn.CrossEntropyLoss`.

    ``weight`` is a buffer, as in torch. ``epsilon`` and ``gamma`` may be numbers, which can be set to others at any
    time; tensors, which become buffers; or an :class:`torch.nn.Parameter`, which is learned along with the model.

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
        _check_reduction(reduction)
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.implementation = implementation
        self._set_polynomial(epsilon, gamma, polynomial)

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
            polynomial=self._chosen(),
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "implementation": None}
        return _shown(self, usual)


class PolyBCEWithLogitsLoss(_PolynomialLoss, nn.BCEWithLogitsLoss):
    """:func:`poly_binary_cross_entropy_with_logits` as a module, in the place of :class:`torch.nn.BCEWithLogitsLoss`.

    ``weight`` and ``pos_weight`` are buffers, as in torch; so is an ``alpha`` that is a tensor. ``epsilon`` and
    ``gamma`` are kept as in :class:`PolyCrossEntropyLoss`.

    Args:
        weight, reduction, pos_weight: as for :class:`torch.nn.BCEWithLogitsLoss`.
        alpha, alpha_on_epsilon, ignore_index, epsilon, gamma, polynomial, implementation: as for
            :func:`poly_binary_cross_entropy_with_logits`, formula and errors too.

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
        polynomial: Polynomial | None = None,
        implementation: str | None = None,
    ) -> None:
        _check_reduction(reduction)
        check_alpha(alpha)
        super().__init__(weight=weight, reduction=reduction, pos_weight=pos_weight)
        self.ignore_index = ignore_index
        self.alpha_on_epsilon = alpha_on_epsilon
        self.implementation = implementation
        _set(self, "alpha", alpha)
        self._set_polynomial(epsilon, gamma, polynomial)
        warn_of_bound_with_alpha(self._chosen(), alpha, alpha_on_epsilon)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` and ``target``."""
        return poly_binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            alpha=self.alpha,
            alpha_on_epsilon=self.alpha_on_epsilon,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            implementation=self.implementation,
            polynomial=self._chosen(),
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"alpha": None, "alpha_on_epsilon": True, "ignore_index": None, "reduction": "mean"}
        return _shown(self, usual | {"implementation": None})


class LinearPolyCrossEntropyLoss(_PolynomialLoss):
    """A linear layer and :func:`linear_poly_cross_entropy`, with the arguments of torch's LinearCrossEntropyLoss.

    The layer is the attribute ``linear``, a :class:`torch.nn.Linear`. To tie it to an embedding, set
    ``loss.linear.weight = embedding.weight``; for a layer that lives elsewhere in the model, use the function. For
    predictions, ``loss.linear(hidden)`` gives the logits.

    Args:
        in_features, num_classes: the sizes :math:`H` and :math:`V` of :func:`linear_poly_cross_entropy`.
        bias, device, dtype: of the layer, as for :class:`torch.nn.Linear`. By default there is no bias.
        weight, ignore_index, reduction, label_smoothing: as for :class:`torch.nn.CrossEntropyLoss`.
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
        epsilon: Any = DEFAULT_EPSILON,
        gamma: Any = 0.0,
        polynomial: Polynomial | None = None,
        implementation: str | None = None,
    ) -> None:
        _check_reduction(reduction)
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.implementation = implementation
        self._set_polynomial(epsilon, gamma, polynomial)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of hidden states ``input`` and ``target``."""
        return linear_poly_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            implementation=self.implementation,
            polynomial=self._chosen(),
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        usual = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0, "implementation": None}
        return _shown(self, usual)


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


def _check_reduction(reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")


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
