"""The recipes of losses.py: kinds of targets and options, the losses that take them, and shapes.

A recipe is a table of losses.py. All of its losses get the same logits, target and options, and their times are
relative to the recipe's baseline: torch's own loss, or a published formula where torch has none. Our losses add terms
to it (Poly-1 has epsilon 1), so that their values differ; plain cross-entropy and focal loss of other packages, the
formulas and torch.compile of them compute what the baseline does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from polylosses import asymmetric
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy

Loss = Callable[..., Tensor]
Shape = tuple[int, ...]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Not yet the default on CUDA (see dispatch.py).
KERNEL: dict[str, Any] = {"implementation": "triton"} if DEVICE == "cuda" else {}


@dataclass(frozen=True)
class Peer:
    """A loss of another package.

    Args:
        title: the package's, in docs/coming_from.py.
        file: the file of the package that has the loss.
        make: gets this file's module and the options; returns the function of logits and target that is measured.
    """

    title: str
    file: str
    make: Callable[..., Loss]


@dataclass(frozen=True)
class Recipe:
    """One table.

    Args:
        baseline: the name of the loss that the others are compared with.
        losses: torch's and ours, functions of logits, target and the options.
        shapes: of the logits, in float32. The first is measured in bfloat16, too.
        target: makes the target, for the logits.
        options: makes the options of all losses, for the logits.
        peers: losses of other packages that can do the same.
    """

    baseline: str
    losses: dict[str, Loss]
    shapes: list[Shape]
    target: Callable[[Tensor, Generator], Tensor]
    options: Callable[[Tensor], dict[str, Any]] = lambda _: {}
    peers: dict[str, Peer] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------- targets and options

SMOOTHING = 0.1
IGNORED = 255  # the border between objects in Pascal VOC, and what is not labelled in Cityscapes


def class_ids(logits: Tensor, generator: Generator) -> Tensor:
    rows, classes, *positions = logits.shape
    return torch.randint(classes, (rows, *positions), generator=generator, device=logits.device)


def partly_ignored(logits: Tensor, generator: Generator) -> Tensor:
    target = class_ids(logits, generator)
    return target.masked_fill(torch.rand(target.shape, generator=generator, device=logits.device) < 0.2, IGNORED)


def mixed_up(logits: Tensor, generator: Generator) -> Tensor:
    """Two classes in each row, as of mixup."""
    target = torch.zeros_like(logits)
    for share in (0.3, 0.7):
        labels = class_ids(logits, generator).unsqueeze(1)
        target.scatter_add_(1, labels, torch.full_like(labels, share, dtype=logits.dtype))
    return target


def of_a_teacher(logits: Tensor, generator: Generator) -> Tensor:
    """Probabilities of all classes, as of distillation."""
    return torch.randn(logits.shape, generator=generator, device=logits.device).softmax(1).to(logits.dtype)


def multi_hot(logits: Tensor, generator: Generator) -> Tensor:
    return (torch.rand(logits.shape, generator=generator, device=logits.device) < 0.05).to(logits.dtype)


def class_weights(logits: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, logits.shape[1], dtype=logits.dtype, device=logits.device)


def sigmoid_weights(logits: Tensor) -> Tensor:
    """A weight for each class, of a shape that broadcasts to the logits."""
    return class_weights(logits).reshape(-1, *(1 for _ in logits.shape[2:]))


# --------------------------------------------------------------------------------------------------- published formulas


def focal_formula(logits: Tensor, target: Tensor) -> Tensor:
    """Lin et al., ICCV 2017 (arXiv 1708.02002), equation 5, with gamma 2 and alpha 0.25."""
    nll = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    missed = target * (1 - p) + (1 - target) * p
    balance = 0.25 * target + 0.75 * (1 - target)
    return (balance * missed**2 * nll).mean()


def asymmetric_formula(logits: Tensor, target: Tensor) -> Tensor:
    """Ridnik et al., ICCV 2021 (arXiv 2009.14119), equation 7; defaults and clamps are those of the authors' code."""
    p = logits.sigmoid()
    p_m = (p - 0.05).clamp(min=0)
    positive = (1 - p) * p.clamp(min=1e-8).log()
    negative = p_m**4 * (1 - p_m).clamp(min=1e-8).log()
    return -(target * positive + (1 - target) * negative).mean()


# --------------------------------------------------------------------------------------------------------------- losses

CROSS_ENTROPY = "F.cross_entropy"
BINARY_CROSS_ENTROPY = "F.binary_cross_entropy_with_logits"
FORMULA = "published formula"

SOFTMAX: dict[str, Loss] = {
    CROSS_ENTROPY: F.cross_entropy,
    "torch.compile(F.cross_entropy)": torch.compile(F.cross_entropy),
    "Poly-1": partial(poly_cross_entropy, epsilon=1.0, **KERNEL),
    "Poly-3 focal": partial(poly_cross_entropy, epsilon=(1.0, 0.5, 0.25), gamma=2.0, **KERNEL),
}
SIGMOID: dict[str, Loss] = {
    BINARY_CROSS_ENTROPY: F.binary_cross_entropy_with_logits,
    "torch.compile(F.binary_cross_entropy_...)": torch.compile(F.binary_cross_entropy_with_logits),
    "Poly-1": partial(poly_binary_cross_entropy_with_logits, epsilon=1.0, **KERNEL),
    "Poly-1, torch.compile(plain)": torch.compile(
        partial(poly_binary_cross_entropy_with_logits, epsilon=1.0, implementation="plain")
    ),
}

BALANCED: dict[str, Any] = {"epsilon": 0.0, "gamma": 2.0, "alpha": 0.25}
FOCAL: dict[str, Loss] = {
    FORMULA: focal_formula,
    "torch.compile(formula)": torch.compile(focal_formula),
    "focal": partial(poly_binary_cross_entropy_with_logits, **BALANCED, **KERNEL),
    "focal, torch.compile(plain)": torch.compile(
        partial(poly_binary_cross_entropy_with_logits, **BALANCED, implementation="plain")
    ),
    "Poly-1 focal": partial(poly_binary_cross_entropy_with_logits, **(BALANCED | {"epsilon": 1.0}), **KERNEL),
}
ASL: dict[str, Loss] = {
    FORMULA: asymmetric_formula,
    "torch.compile(formula)": torch.compile(asymmetric_formula),
    "asymmetric": partial(poly_binary_cross_entropy_with_logits, polynomial=asymmetric(), **KERNEL),
    "asymmetric, torch.compile(plain)": torch.compile(
        partial(poly_binary_cross_entropy_with_logits, polynomial=asymmetric(), implementation="plain")
    ),
}

# Every backward pass adds to its gradient.
EPSILON = torch.nn.Parameter(torch.tensor(1.0, device=DEVICE))


def learned(baseline: str, torchs: Loss, ours: Loss) -> dict[str, Loss]:
    return {
        baseline: torchs,
        "Poly-1": partial(ours, epsilon=1.0, **KERNEL),
        "Poly-1, learned": partial(ours, epsilon=EPSILON, **KERNEL),
        "Poly-1, learned, plain": partial(ours, epsilon=EPSILON, implementation="plain"),
    }


LEARNED_SOFTMAX = learned(CROSS_ENTROPY, F.cross_entropy, poly_cross_entropy)
LEARNED_SIGMOID = learned(
    BINARY_CROSS_ENTROPY, F.binary_cross_entropy_with_logits, poly_binary_cross_entropy_with_logits
)

# ------------------------------------------------------------------------------------------------------- other packages


def classes_last(loss: Loss) -> Loss:
    """The loss, which must not get more than two axes: it would take the last one for the classes, without an error."""

    def checked(logits: Tensor, target: Tensor) -> Tensor:
        if logits.dim() > 2:
            raise ValueError("it takes the last axis for the classes")
        return loss(logits, target)

    return checked


TIMM_SMOOTHING = Peer(
    "timm",
    "timm/loss/cross_entropy.py",
    lambda module, label_smoothing: classes_last(module.LabelSmoothingCrossEntropy(label_smoothing)),
)
TIMM_POLY_SMOOTHING = Peer(
    "timm",
    "timm/loss/poly_loss.py",
    lambda module, label_smoothing: classes_last(module.PolyCrossEntropy(epsilon=1.0, smoothing=label_smoothing)),
)
TIMM_SOFT = Peer("timm", "timm/loss/cross_entropy.py", lambda module: classes_last(module.SoftTargetCrossEntropy()))
TIMM_POLY_SOFT = Peer(
    "timm", "timm/loss/poly_loss.py", lambda module: classes_last(module.PolyCrossEntropy(epsilon=1.0))
)
TIMM_FOCAL = Peer(
    "timm",
    "timm/loss/poly_loss.py",
    lambda module: module.PolyBinaryCrossEntropy(epsilon=0.0, gamma=2.0, alpha=0.25),
)
TIMM_ASL = Peer(
    "timm", "timm/loss/asymmetric_loss.py", lambda module: module.AsymmetricLossMultiLabel(reduction="mean")
)
HOLOCRON = Peer(
    "Holocron",
    "holocron/nn/functional.py",
    lambda module, **options: partial(module.poly_loss, eps=1.0, **options),
)
SPELLS = Peer(
    "pytorch-lightning-spells",
    "pytorch_lightning_spells/losses.py",
    lambda module, **options: module.Poly1CrossEntropyLoss(epsilon=1.0, reduction="mean", **options),
)
TORCHVISION = Peer(
    "torchvision",
    "torchvision/ops/focal_loss.py",
    lambda module: partial(module.sigmoid_focal_loss, alpha=0.25, gamma=2.0, reduction="mean"),
)

# -------------------------------------------------------------------------------------------------------------- recipes

LARGE: list[Shape] = [(1024, 1000), (1024, 21843), (512, 50257), (8, 150, 128, 128), (65536, 21)]
SMALL: list[Shape] = [(32, 10), (128, 10), (128, 100)]
IMAGES: list[Shape] = [(8, 21, 128, 128), (8, 150, 128, 128)]
MULTI_LABEL: list[Shape] = [(4096, 80), (8, 20, 128, 128), (32, 10), (128, 100)]
OF_LEARNED: list[Shape] = [(1024, 1000), (8, 150, 128, 128), (65536, 21), (128, 100)]


def smoothing(_: Tensor) -> dict[str, Any]:
    return {"label_smoothing": SMOOTHING}


def pos_weights(logits: Tensor) -> dict[str, Any]:
    return {"pos_weight": sigmoid_weights(logits)}


RECIPES: dict[str, Recipe] = {
    "smoothing": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        LARGE + SMALL,
        class_ids,
        smoothing,
        {"timm": TIMM_SMOOTHING, "timm, Poly-1": TIMM_POLY_SMOOTHING},
    ),
    "mixup": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        LARGE + SMALL,
        mixed_up,
        peers={"timm": TIMM_SOFT, "timm, Poly-1": TIMM_POLY_SOFT},
    ),
    "mixup + smoothing": Recipe(CROSS_ENTROPY, SOFTMAX, LARGE, mixed_up, smoothing),
    "distillation": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        LARGE,
        of_a_teacher,
        peers={"timm": TIMM_SOFT, "timm, Poly-1": TIMM_POLY_SOFT},
    ),
    "weights": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        LARGE,
        class_ids,
        lambda logits: {"weight": class_weights(logits)},
        {"Holocron": HOLOCRON, "spells": SPELLS},
    ),
    # None of the other packages ignores a target that is no class.
    "segmentation": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        IMAGES,
        partly_ignored,
        lambda logits: {"weight": class_weights(logits), "ignore_index": IGNORED, "label_smoothing": SMOOTHING},
    ),
    "segmentation, no smoothing": Recipe(
        CROSS_ENTROPY,
        SOFTMAX,
        IMAGES,
        partly_ignored,
        lambda logits: {"weight": class_weights(logits), "ignore_index": IGNORED},
    ),
    "multi-label": Recipe(BINARY_CROSS_ENTROPY, SIGMOID, MULTI_LABEL, multi_hot, pos_weights),
    "multi-label, weight": Recipe(
        BINARY_CROSS_ENTROPY, SIGMOID, MULTI_LABEL, multi_hot, lambda logits: {"weight": sigmoid_weights(logits)}
    ),
    "sigmoid focal": Recipe(
        FORMULA, FOCAL, MULTI_LABEL, multi_hot, peers={"torchvision": TORCHVISION, "timm": TIMM_FOCAL}
    ),
    "ASL": Recipe(FORMULA, ASL, MULTI_LABEL, multi_hot, peers={"timm": TIMM_ASL}),
    "learned epsilon": Recipe(CROSS_ENTROPY, LEARNED_SOFTMAX, OF_LEARNED, class_ids),
    "learned epsilon, smoothing": Recipe(CROSS_ENTROPY, LEARNED_SOFTMAX, OF_LEARNED, class_ids, smoothing),
    "learned epsilon, multi-label": Recipe(BINARY_CROSS_ENTROPY, LEARNED_SIGMOID, MULTI_LABEL, multi_hot, pos_weights),
}
