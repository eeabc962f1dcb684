"""PolyLoss for PyTorch, with torch's own argument names and order."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.torch needs PyTorch: pip install 'polylosses[torch]'") from error

from polylosses.torch.functional import poly_cross_entropy, poly_from_nll, poly_softmax
from polylosses.torch.modules import Poly1CrossEntropyLoss, PolyCrossEntropyLoss

__all__ = [
    "Poly1CrossEntropyLoss",
    "PolyCrossEntropyLoss",
    "poly_cross_entropy",
    "poly_from_nll",
    "poly_softmax",
]
