"""The losses, shapes and memory layouts that all kernels are tested with, on the CPU and on a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from mpmath import mp, mpf
from torch import Tensor

import polylosses
from polylosses import Polynomial

SURE = [
    polylosses.cross_entropy(),
    polylosses.poly1(1.0),
    polylosses.poly1(-1.0),
    polylosses.focal(0.5),
    polylosses.focal(2.0),
    polylosses.poly1_focal(-1.0, 0.5),
    polylosses.poly_n(-1.0, 0.5, -0.25),
    polylosses.mean_absolute_error(),
    polylosses.taylor_cross_entropy(4),
]


@cache
def of_margin(loss: Polynomial, margin: float, others: int) -> tuple[Any, Any]:
    """The loss, and its gradient by the label's logit, where ``others`` other logits are ``margin`` below it."""
    with mp.workdps(80):
        rest = others * mp.exp(-mpf(margin))
        p, q = 1 / (1 + rest), rest / (1 + rest)
        return loss.value(mp.log(p), q), loss.slope(mp.log(p), q) * q


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "classes last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1) if z.dim() > 1 else z,
    "a slice": lambda z: torch.nn.functional.pad(z, (1, 2) * z.dim())[tuple(slice(1, -2) for _ in z.shape)],
    "classes last, a slice": lambda z: (
        torch.nn.functional.pad(z.movedim(1, -1), (1, 2) * z.dim())[tuple(slice(1, -2) for _ in z.shape)].movedim(-1, 1)
        if z.dim() > 1
        else z
    ),
    "transposed": lambda z: z.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda z: z.repeat_interleave(2, -1)[..., ::2],
    "negated when read": lambda z: torch.complex(z, -z).conj().imag,
    "expanded": lambda z: z[:1].expand(z.shape) if z.dim() > 1 else z,
}
SHAPES = [
    (7,),
    (1,),
    (5, 3),
    (1, 1),
    (300, 21),
    (3, 127),
    (130, 128),
    (5, 129),
    (3, 3000),
    (3, 5, 7),
    (2, 15, 9, 11),
    (2, 40, 3, 2, 30),
    (4, 1, 3, 3),
    (2, 7, 1, 1),
    (0, 3),
    (2, 3, 0),
]
