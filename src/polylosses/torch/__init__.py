"""PolyLoss for PyTorch, with torch's own argument names and order."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("polylosses.torch needs PyTorch: pip install 'polylosses[torch]'") from error

from polylosses.torch.binary_cross_entropy import poly_binary_cross_entropy_with_logits
from polylosses.torch.cross_entropy import poly_cross_entropy
from polylosses.torch.kernels import implementation
from polylosses.torch.likelihood import poly_from_nll
from polylosses.torch.linear import linear_poly_cross_entropy
from polylosses.torch.modules import (
    AsymmetricLoss,
    AsymmetricPolynomialLoss,
    LinearPolyCrossEntropyLoss,
    Poly1CrossEntropyLoss,
    Poly1FocalLoss,
    PolyBCEWithLogitsLoss,
    PolyCrossEntropyLoss,
)
from polylosses.torch.posterior import poly_sigmoid, poly_softmax

__all__ = [
    "AsymmetricLoss",
    "AsymmetricPolynomialLoss",
    "LinearPolyCrossEntropyLoss",
    "Poly1CrossEntropyLoss",
    "Poly1FocalLoss",
    "PolyBCEWithLogitsLoss",
    "PolyCrossEntropyLoss",
    "implementation",
    "linear_poly_cross_entropy",
    "poly_binary_cross_entropy_with_logits",
    "poly_cross_entropy",
    "poly_from_nll",
    "poly_sigmoid",
    "poly_softmax",
]
