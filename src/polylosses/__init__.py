"""PolyLoss for people who train classifiers: one definition, right under every option.

The core needs no framework: :class:`Polynomial` and the named losses. The losses for tensors are in
``polylosses.torch``; ``polylosses.tune`` finds out which epsilon to use, if any.
"""

from polylosses import catalogue, two_sided
from polylosses.catalogue import *  # noqa: F403
from polylosses.polynomial import Polynomial
from polylosses.two_sided import *  # noqa: F403

__version__ = "0.1.0"
__all__ = ["Polynomial"]
__all__ += catalogue.__all__
__all__ += two_sided.__all__
