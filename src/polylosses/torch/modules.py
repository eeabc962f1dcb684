"""The losses as modules: torch's own loss modules with a polynomial."""

from typing import Any

from torch import Tensor, nn

from polylosses.polynomial import DEFAULT_EPSILON, Polynomial, from_arguments
from polylosses.torch.softmax import poly_cross_entropy


class PolyCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`poly_cross_entropy` as a module, in the place of :class:`torch.nn.CrossEntropyLoss`.

    ``weight`` is a buffer, as in torch. ``epsilon`` may be set at any time: a number; a tensor, which becomes a
    buffer; or an :class:`torch.nn.Parameter`, which is learned along with the model and is in ``state_dict()``.

    Args:
        weight, ignore_index, reduction, label_smoothing: as for :class:`torch.nn.CrossEntropyLoss`.
        epsilon, gamma, polynomial: as for :func:`poly_cross_entropy`, formula and errors too.

    Shape:
        As for :class:`torch.nn.CrossEntropyLoss`.

    Example:
        >>> import torch
        >>> loss = PolyCrossEntropyLoss(epsilon=2.0)
        >>> loss(torch.tensor([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.2779)
    """

    epsilon: Any
    gamma: Any

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
    ) -> None:
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum'; got {reduction!r}.")
        from_arguments(epsilon, gamma, polynomial)
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        for name, value in (("epsilon", epsilon), ("gamma", gamma)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.polynomial = polynomial

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits ``input`` and ``target``."""
        chosen = (
            {"epsilon": self.epsilon, "gamma": self.gamma}
            if self.polynomial is None
            else {"polynomial": self.polynomial}
        )
        return poly_cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            **chosen,
        )

    def extra_repr(self) -> str:
        """The polynomial, and the options that are not at their defaults."""
        if self.polynomial is not None:
            shown = [f"polynomial={self.polynomial}"]
        else:
            shown = [f"epsilon={self.epsilon}", f"gamma={self.gamma}"]
        defaults = {"ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
        shown += [f"{name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join(shown)


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
