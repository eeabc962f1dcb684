"""PolyLoss for PyTorch, with torch's own argument names and order."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.torch needs PyTorch: pip install 'polylosses[torch]'") from error

from polylosses.torch.likelihood import poly_from_nll
from polylosses.torch.modules import (
    Poly1CrossEntropyLoss,
    Poly1FocalLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
)
from polylosses.torch.sigmoid import poly_binary_cross_entropy_with_logits, poly_sigmoid
from polylosses.torch.softmax import poly_cross_entropy, poly_softmax

__all__ = [
    "Poly1CrossEntropyLoss",
    "Poly1FocalLoss",
    "PolyBCEWithLogitsLoss",
    "PolyCrossEntropyLoss",
    "poly_binary_cross_entropy_with_logits",
    "poly_cross_entropy",
    "poly_from_nll",
    "poly_sigmoid",
    "poly_softmax",
]
