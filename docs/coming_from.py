"""Compares other published PolyLosses with this library, and writes the results to coming-from.json and coming-from.md.

    python docs/coming_from.py

Every package ("peer") is installed at the version named below, into a temporary folder and without its dependencies:
most require a torchvision or a Lightning that is incompatible with the installed torch. The losses need torch alone, so
that the published file with the loss is loaded without the package around it.
"""

import inspect
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import polylosses.torch
from polylosses.torch import poly_binary_cross_entropy_with_logits, poly_cross_entropy

NOT_OFFERED = "not offered"
HERE = Path(__file__).parent
KEPT = HERE / "coming-from.json"
PAGE = HERE / "coming-from.md"

Measured = float | str
Results = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------ the cases


@dataclass(frozen=True)
class Case:
    """The arguments of a loss. ``options`` have this library's names."""

    input: Tensor
    target: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    gradient: bool = False  # measure the largest entry of the gradient, not the loss


def waves(*shape: int) -> Tensor:
    """Deterministic logits: random numbers may change with torch's version."""
    return 2 * torch.arange(math.prod(shape), dtype=torch.float64).sin().reshape(shape)


def labels(*shape: int) -> Tensor:
    return (torch.arange(math.prod(shape)) ** 2 // 5).reshape(shape) % 3


LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.3, 1.7, -0.4], [-1.2, 0.8, 2.5], [1.1, -0.6, 0.2]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 0])
WEIGHT = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
ONE_IGNORED = torch.tensor([0, -100, 1, 0])
ONE_MASKED = LOGITS.masked_fill(torch.arange(12).reshape(4, 3) == 2, -math.inf)
CONFIDENT = torch.tensor([[6.0, 0.5, 0.0], [0.0, 5.5, -1.0], [-1.0, 0.0, 7.0], [8.0, 1.0, 0.0]])
CONFIDENT_LABELS = torch.tensor([0, 1, 2, 0])
ONE_HOT = torch.eye(3)[CONFIDENT_LABELS]
CONFIDENT_BOTH = torch.tensor([[6.0, -7.0, -8.0], [-6.5, 7.5, -6.0], [-7.0, -6.0, 8.0], [7.0, -8.0, -6.5]])
SATURATED = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]])
# From the reference values of semantics.md.
REFERENCE = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]], dtype=torch.float64)
REFERENCE_SOFT = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]], dtype=torch.float64)
MULTI_HOT = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]], dtype=torch.float64)
PLAIN = {"gamma": 0.0, "alpha": None}
FOCAL = {"gamma": 2.0, "alpha": None}
BALANCED = {"gamma": 2.0, "alpha": 0.25}

SOFTMAX_CASES = {
    "hard labels": Case(LOGITS, LABELS),
    "class weights 1, 2, 5": Case(LOGITS, LABELS, {"weight": WEIGHT}),
    "one label is -100": Case(LOGITS, ONE_IGNORED),
    "`ignore_index=2`": Case(LOGITS, LABELS, {"ignore_index": 2}),
    "label smoothing 0.1": Case(LOGITS, LABELS, {"label_smoothing": 0.1}),
    "soft labels": Case(REFERENCE, REFERENCE_SOFT),
    "soft labels, smoothing 0.1": Case(REFERENCE, REFERENCE_SOFT, {"label_smoothing": 0.1}),
    "segmentation, (2, 3, 4, 5)": Case(waves(2, 3, 4, 5), labels(2, 4, 5)),
    "segmentation, (2, 3, 3, 3)": Case(waves(2, 3, 3, 3), labels(2, 3, 3)),
    "a masked class: logit -inf": Case(ONE_MASKED, LABELS),
    "gradient, saturated logits": Case(SATURATED, torch.tensor([0, 0]), gradient=True),
    "confident logits, float64": Case(CONFIDENT.double(), CONFIDENT_LABELS),
    "confident logits, float16": Case(CONFIDENT.half(), CONFIDENT_LABELS),
    "confident logits, bfloat16": Case(CONFIDENT.bfloat16(), CONFIDENT_LABELS),
}
SIGMOID_CASES = {
    "gamma 0": Case(LOGITS, MULTI_HOT, PLAIN),
    "gamma 2": Case(LOGITS, MULTI_HOT, FOCAL),
    "gamma 2, alpha 0.25": Case(LOGITS, MULTI_HOT, BALANCED),
    "gamma 2, weights 1, 2, 5": Case(LOGITS, MULTI_HOT, {**FOCAL, "weight": WEIGHT}),
    "gamma 0, soft labels": Case(LOGITS, 0.5 * MULTI_HOT + 0.2, PLAIN),
    "gamma 2, soft labels": Case(LOGITS, 0.5 * MULTI_HOT + 0.2, FOCAL),
    "gamma 2, class ids": Case(LOGITS, LABELS, FOCAL),
    "gamma 2, class ids, (2, 3, 4, 5)": Case(waves(2, 3, 4, 5), labels(2, 4, 5), FOCAL),
    "gamma 0.5, gradient, saturated logits": Case(
        SATURATED, torch.eye(3)[[0, 0]], {"gamma": 0.5, "alpha": None}, gradient=True
    ),
    "gamma 0, confident logits, float64": Case(CONFIDENT_BOTH.double(), ONE_HOT.double(), PLAIN),
    "gamma 0, confident logits, float16": Case(CONFIDENT_BOTH.half(), ONE_HOT.half(), PLAIN),
    "gamma 0, confident logits, bfloat16": Case(CONFIDENT_BOTH.bfloat16(), ONE_HOT.bfloat16(), PLAIN),
}


def torch_binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    if target.dim() < input.dim():
        target = F.one_hot(target, input.shape[1]).movedim(-1, 1).to(input.dtype)
    return F.binary_cross_entropy_with_logits(input, target, weight)


@dataclass(frozen=True)
class Link:
    """The cases of softmax or of sigmoid losses, this library's loss, and torch's own for the options ``plain``.

    ``example`` is the case that the code on the page computes.
    """

    cases: dict[str, Case]
    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    plain: dict[str, Any]
    example: str


# Ours use the plain implementation, since the kernels' last digits differ.
OUR_SOFTMAX = partial(poly_cross_entropy, implementation="plain")
OUR_SIGMOID = partial(poly_binary_cross_entropy_with_logits, implementation="plain")
SOFTMAX = Link(SOFTMAX_CASES, OUR_SOFTMAX, F.cross_entropy, {}, "hard labels")
SIGMOID = Link(SIGMOID_CASES, OUR_SIGMOID, torch_binary_cross_entropy, PLAIN, "gamma 2, alpha 0.25")

# ------------------------------------------------------------------------- how each peer is called, with mean reduction
# A function takes the options that its peer supports, under this library's names. Cases with other options are skipped.


def abhuse(_: Any, input: Tensor, target: Tensor, *, epsilon: float, weight: Tensor | None = None) -> Tensor:
    """Not on a package registry: reimplemented from its source."""
    p = (F.one_hot(target, input.shape[1]) * input.softmax(-1)).sum(-1)
    return (F.cross_entropy(input, target, weight, reduction="none") + epsilon * (1 - p)).mean()


def holocron(
    module: Any,
    input: Tensor,
    target: Tensor,
    *,
    epsilon: float,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Any:
    return module.poly_loss(input, target, eps=epsilon, weight=weight, ignore_index=ignore_index)


def optax(module: Any, input: Tensor, target: Tensor, *, epsilon: float, label_smoothing: float = 0.0) -> Any:
    jax = import_module("jax")  # installed with optax
    jax.config.update("jax_enable_x64", True)

    def mean(logits: Any) -> Any:
        if target.is_floating_point():
            y = jax.numpy.asarray(target.numpy())
        else:
            y = jax.nn.one_hot(target.numpy(), logits.shape[1], axis=1, dtype=logits.dtype)
        if label_smoothing:
            y = module.losses.smooth_labels(y, label_smoothing)
        return module.losses.poly_loss_cross_entropy(logits, y, epsilon=epsilon, axis=1).mean()

    # Through float64, since NumPy has no bfloat16.
    logits = jax.numpy.asarray(input.detach().double().numpy()).astype(str(input.dtype).removeprefix("torch."))
    value = torch.tensor(float(mean(logits)), dtype=input.dtype)
    if input.requires_grad:
        gradient = torch.tensor(jax.device_get(jax.grad(mean)(logits)))
        value = value + (gradient * (input - input.detach())).sum()
    return value


def polyloss(module: Any, input: Tensor, target: Tensor, *, epsilon: float) -> Any:
    return module.PolyLoss(epsilon=epsilon)(input, target)


def spells(module: Any, input: Tensor, target: Tensor, *, epsilon: float, weight: Tensor | None = None) -> Any:
    return module.Poly1CrossEntropyLoss(epsilon=epsilon, reduction="mean", weight=weight)(input, target)


def spells_focal(
    module: Any,
    input: Tensor,
    target: Tensor,
    *,
    epsilon: float,
    gamma: float,
    alpha: float | None,
    weight: Tensor | None = None,
) -> Any:
    loss = module.Poly1FocalLoss(
        num_classes=input.shape[1],
        epsilon=epsilon,
        alpha=-1 if alpha is None else alpha,
        gamma=gamma,
        reduction="mean",
        weight=weight,
        label_is_onehot=target.dim() == input.dim(),
    )
    return loss(input, target)


def timm(module: Any, input: Tensor, target: Tensor, *, epsilon: float, label_smoothing: float = 0.0) -> Any:
    return module.PolyCrossEntropy(epsilon=epsilon, smoothing=label_smoothing)(input, target)


def timm_binary(
    module: Any, input: Tensor, target: Tensor, *, epsilon: float, gamma: float, alpha: float | None
) -> Any:
    return module.PolyBinaryCrossEntropy(epsilon=epsilon, gamma=gamma, alpha=alpha)(input, target)


def torchvision(
    module: Any, input: Tensor, target: Tensor, *, epsilon: float, gamma: float, alpha: float | None
) -> Any:
    """It has no epsilon, and is measured at epsilon = 0."""
    return module.sigmoid_focal_loss(input, target, alpha=-1 if alpha is None else alpha, gamma=gamma, reduction="mean")


# ---------------------------------------------------------------------------------------------------- the peers' losses


@dataclass(frozen=True)
class Loss:
    """A loss of a peer.

    ``before`` is the code that ``after`` replaces. ``reasons`` has, for every case with different results, the reason
    and a formula that reproduces the peer's number ("" if there is no number).
    """

    name: str
    link: Link
    call: Callable[..., Any]
    before: str
    after: str
    reasons: dict[str, tuple[str, str]]
    epsilon: float = 2.0


@dataclass(frozen=True)
class Peer:
    """A published package, its pip requirements, and the file in it that is loaded."""

    title: str
    about: str
    requirements: tuple[str, ...]
    file: str
    losses: tuple[Loss, ...]


CLASS_IDS_ONLY = ("it takes class ids only", "")
NO_CLASS_IDS = ("it takes no class ids", "")
ONE_HOT_IGNORED = ("the ignored label is one-hot encoded like any other", "")
GATHER_IGNORED = ("the ignored label is looked up like any other", "")
ZERO_LOG_ZERO = ("0 times the logarithm of 0, for a class that is not the label", "")
INFINITE_SLOPE = ("the derivative of `(1 - p)^gamma` is infinite at `p = 1`, and is multiplied by 0", "")
FEW_DIGITS = (
    "`1 - p` is computed in the dtype of the logits, where few digits of it are left",
    "(nll + epsilon * (1 - p)).mean()",
)
FEW_DIGITS_OF_EXP = (FEW_DIGITS[0], "(nll + epsilon * (1 - torch.exp(-nll))).mean()")
CLASS_AXES = ("the one-hot labels have their classes last, the probabilities second", "")
WIDTH_FOR_CLASSES = (
    "silently wrong: the softmax runs over the last axis, and only its first class is looked at",
    "(nll + epsilon * (1 - logits.softmax(-1)[:, 0].gather(-1, target))).mean()",
)
LOW_PRECISION = "`1 - p` and the cross-entropy are computed in the dtype of the logits"
SOFT_FOCAL = "the target is put into `q` before the power, so that the loss is not linear in the target"

PEERS = (
    Peer(
        "abhuse/PolyLoss-PyTorch",
        "[On GitHub](https://github.com/abhuse/polyloss-pytorch) only: there is nothing to install from a registry, so "
        "these numbers come from its published formula, which the script writes down in other words. Its defaults are "
        "`epsilon=1` and no reduction. Its `Poly1FocalLoss` lives on in "
        "[pytorch-lightning-spells](#pytorch-lightning-spells).",
        (),
        "",
        (
            Loss(
                "polyloss.Poly1CrossEntropyLoss",
                SOFTMAX,
                abhuse,
                "from polyloss import Poly1CrossEntropyLoss\n"
                'loss = Poly1CrossEntropyLoss(num_classes=3, epsilon=2.0, reduction="mean")(logits, target)',
                "from polylosses.torch import Poly1CrossEntropyLoss\n"
                "loss = Poly1CrossEntropyLoss(epsilon=2.0)(logits, target)",
                {
                    "class weights 1, 2, 5": (
                        "the weights multiply the cross-entropy only, and the mean divides by the number of rows",
                        "(w * nll + epsilon * (1 - p)).mean()",
                    ),
                    "one label is -100": ONE_HOT_IGNORED,
                    "soft labels": CLASS_IDS_ONLY,
                    "segmentation, (2, 3, 4, 5)": CLASS_AXES,
                    "segmentation, (2, 3, 3, 3)": (
                        "silently wrong: the same axes, but they fit",
                        "(nll + epsilon * (1 - (F.one_hot(target) * logits.softmax(-1)).sum(-1))).mean()",
                    ),
                    "confident logits, float16": FEW_DIGITS,
                    "confident logits, bfloat16": FEW_DIGITS,
                },
            ),
        ),
    ),
    Peer(
        "Holocron",
        "[frgfm/Holocron](https://github.com/frgfm/Holocron). `holocron.nn.PolyLoss` calls this function; its default "
        "is `eps=2`. What its documentation calls predicted probabilities are logits. With "
        '`reduction="none"`, segmentation losses come back flat.',
        ("pylocron==0.3.0",),
        "holocron/nn/functional.py",
        (
            Loss(
                "holocron.nn.functional.poly_loss",
                SOFTMAX,
                holocron,
                "from holocron.nn.functional import poly_loss\nloss = poly_loss(logits, target, eps=2.0)",
                "from polylosses.torch import poly_cross_entropy\n"
                "loss = poly_cross_entropy(logits, target, epsilon=2.0)",
                {
                    "class weights 1, 2, 5": (
                        "the mean divides by the number of rows, not by the sum of the weights",
                        'poly_cross_entropy(logits, target, weight, reduction="sum", epsilon=epsilon) / len(target)',
                    ),
                    "one label is -100": ("only an `ignore_index` that is a class is honoured; the default is not", ""),
                    "soft labels": (
                        "silently wrong: `p ** y` is taken for the probability, in every class",
                        "poly_cross_entropy(logits, target, epsilon=0.0)"
                        " + epsilon * (1 - logits.softmax(1) ** target).sum(1).mean()",
                    ),
                    "confident logits, float16": FEW_DIGITS_OF_EXP,
                    "confident logits, bfloat16": FEW_DIGITS_OF_EXP,
                },
            ),
        ),
    ),
    Peer(
        "optax",
        "[google-deepmind/optax](https://github.com/google-deepmind/optax). It returns a loss per example, and its "
        "default is `epsilon=2`. Labels are dense: class ids were one-hot encoded by `jax.nn.one_hot` and smoothed by "
        "`optax.losses.smooth_labels`. Ours runs in torch beside it. In JAX, `polylosses.jax.poly_loss_cross_entropy` "
        "takes optax's arguments as they are; `poly_cross_entropy_with_integer_labels` needs no one-hot labels.",
        (
            "optax==0.2.8",
            "jax==0.10.2",
            "jaxlib==0.10.2",
            "absl-py==2.5.1",
            "ml_dtypes==0.6.0",
            "opt_einsum==3.4.0",
        ),
        "optax/__init__.py",
        (
            Loss(
                "optax.losses.poly_loss_cross_entropy",
                SOFTMAX,
                optax,
                "import jax\n"
                "from optax.losses import poly_loss_cross_entropy\n"
                "loss = poly_loss_cross_entropy(logits, jax.nn.one_hot(target, 3), epsilon=2.0).mean()",
                "from polylosses.torch import poly_cross_entropy\n"
                "loss = poly_cross_entropy(logits, target, epsilon=2.0)",
                {
                    "one label is -100": (
                        "`jax.nn.one_hot` makes zeros of it, which cost nothing but count in the mean",
                        'poly_cross_entropy(logits, target, reduction="sum", epsilon=epsilon) / len(target)',
                    ),
                    "a masked class: logit -inf": ZERO_LOG_ZERO,
                    "confident logits, float16": FEW_DIGITS,
                    "confident logits, bfloat16": (
                        "the same, and JAX rounds every step of the softmax to bfloat16",
                        "",
                    ),
                },
            ),
        ),
    ),
    Peer(
        "polyloss",
        "[jahongir7174/PolyLoss](https://github.com/jahongir7174/PolyLoss). Its one option is `epsilon`, by default 2.",
        ("polyloss==0.0.2",),
        "polyloss/polyloss.py",
        (
            Loss(
                "polyloss.PolyLoss",
                SOFTMAX,
                polyloss,
                "from polyloss import PolyLoss\nloss = PolyLoss(epsilon=2.0)(logits, target)",
                "from polylosses.torch import PolyCrossEntropyLoss\n"
                "loss = PolyCrossEntropyLoss(epsilon=2.0)(logits, target)",
                {
                    "one label is -100": ONE_HOT_IGNORED,
                    "soft labels": CLASS_IDS_ONLY,
                    "segmentation, (2, 3, 4, 5)": CLASS_AXES,
                    "segmentation, (2, 3, 3, 3)": (
                        "silently wrong: the same axes, but they fit",
                        "(nll.mean() + epsilon * (1 - (F.one_hot(target) * logits.softmax(1)).sum(1))).mean()",
                    ),
                    "confident logits, float16": (FEW_DIGITS[0], "(nll.mean() + epsilon * (1 - p)).mean()"),
                    "confident logits, bfloat16": (FEW_DIGITS[0], "(nll.mean() + epsilon * (1 - p)).mean()"),
                },
            ),
        ),
    ),
    Peer(
        "pytorch-lightning-spells",
        "[veritable-tech/pytorch-lightning-spells](https://github.com/veritable-tech/pytorch-lightning-spells). Its "
        "losses are adapted from abhuse/PolyLoss-PyTorch; their defaults are `epsilon=1` and no reduction.",
        ("pytorch-lightning-spells==0.3.0",),
        "pytorch_lightning_spells/losses.py",
        (
            Loss(
                "pytorch_lightning_spells.losses.Poly1CrossEntropyLoss",
                SOFTMAX,
                spells,
                "from pytorch_lightning_spells.losses import Poly1CrossEntropyLoss\n"
                'loss = Poly1CrossEntropyLoss(epsilon=2.0, reduction="mean")(logits, target)',
                "from polylosses.torch import Poly1CrossEntropyLoss\n"
                "loss = Poly1CrossEntropyLoss(epsilon=2.0)(logits, target)",
                {
                    "class weights 1, 2, 5": (
                        "the weights multiply the cross-entropy and the probability itself, which may pass 1, and the "
                        "mean divides by the number of rows",
                        "(w * nll + epsilon * (1 - p * w / weight.mean())).mean()",
                    ),
                    "one label is -100": GATHER_IGNORED,
                    "soft labels": CLASS_IDS_ONLY,
                    "segmentation, (2, 3, 4, 5)": WIDTH_FOR_CLASSES,
                    "segmentation, (2, 3, 3, 3)": WIDTH_FOR_CLASSES,
                    "confident logits, float16": FEW_DIGITS,
                    "confident logits, bfloat16": FEW_DIGITS,
                },
            ),
            Loss(
                "pytorch_lightning_spells.losses.Poly1FocalLoss",
                SIGMOID,
                spells_focal,
                "from pytorch_lightning_spells.losses import Poly1FocalLoss\n"
                'loss = Poly1FocalLoss(3, epsilon=2.0, reduction="mean", label_is_onehot=True)(logits, target)',
                "from polylosses.torch import Poly1FocalLoss\nloss = Poly1FocalLoss(epsilon=2.0)(logits, target)",
                {
                    "gamma 2, alpha 0.25": (
                        "`alpha` multiplies the focal term only; ours can do that too",
                        "Poly1FocalLoss(epsilon=epsilon, alpha_on_epsilon=False)(logits, target)",
                    ),
                    "gamma 2, weights 1, 2, 5": (
                        "the weights multiply the focal term only",
                        "(q**gamma * (weight * bce + epsilon * q)).mean()",
                    ),
                    "gamma 2, soft labels": (SOFT_FOCAL, "(q**gamma * (bce + epsilon * q)).mean()"),
                    "gamma 0.5, gradient, saturated logits": INFINITE_SLOPE,
                    "gamma 0, confident logits, float16": (LOW_PRECISION, "(bce + epsilon * q).mean()"),
                    "gamma 0, confident logits, bfloat16": (LOW_PRECISION, "(bce + epsilon * q).mean()"),
                },
            ),
        ),
    ),
    Peer(
        "timm",
        "[huggingface/pytorch-image-models](https://github.com/huggingface/pytorch-image-models). Its default is "
        "`epsilon=2`. It computes in float32 whatever it is given, float64 too, and returns that.",
        ("timm==1.0.31",),
        "timm/loss/poly_loss.py",
        (
            Loss(
                "timm.loss.PolyCrossEntropy",
                SOFTMAX,
                timm,
                "from timm.loss import PolyCrossEntropy\nloss = PolyCrossEntropy(epsilon=2.0)(logits, target)",
                "from polylosses.torch import PolyCrossEntropyLoss\n"
                "loss = PolyCrossEntropyLoss(epsilon=2.0)(logits, target)",
                {
                    "one label is -100": ONE_HOT_IGNORED,
                    "soft labels, smoothing 0.1": (
                        "only class ids are smoothed",
                        "poly_cross_entropy(logits, target, epsilon=epsilon)",
                    ),
                    "segmentation, (2, 3, 4, 5)": ("the last axis is taken for the classes", ""),
                    "segmentation, (2, 3, 3, 3)": (
                        "silently wrong: the last axis is taken for the classes",
                        "poly_cross_entropy(logits.movedim(-1, 1), target, epsilon=epsilon)",
                    ),
                    "a masked class: logit -inf": ZERO_LOG_ZERO,
                },
            ),
            Loss(
                "timm.loss.PolyBinaryCrossEntropy",
                SIGMOID,
                timm_binary,
                "from timm.loss import PolyBinaryCrossEntropy\n"
                "loss = PolyBinaryCrossEntropy(epsilon=2.0, gamma=2.0, alpha=0.25)(logits, target)",
                "from polylosses.torch import PolyBCEWithLogitsLoss\n"
                "loss = PolyBCEWithLogitsLoss(epsilon=2.0, gamma=2.0, alpha=0.25)(logits, target)",
                {
                    "gamma 2, soft labels": (SOFT_FOCAL, "(q**gamma * (bce + epsilon * q)).mean()"),
                    "gamma 2, class ids": NO_CLASS_IDS,
                    "gamma 2, class ids, (2, 3, 4, 5)": NO_CLASS_IDS,
                    "gamma 0.5, gradient, saturated logits": INFINITE_SLOPE,
                },
            ),
        ),
    ),
    Peer(
        "torchvision",
        "[pytorch/vision](https://github.com/pytorch/vision). Focal loss has no epsilon, so both are measured at "
        "epsilon 0. Its default is no reduction.",
        ("torchvision==0.29.2",),
        "torchvision/ops/focal_loss.py",
        (
            Loss(
                "torchvision.ops.sigmoid_focal_loss",
                SIGMOID,
                torchvision,
                "from torchvision.ops import sigmoid_focal_loss\n"
                'loss = sigmoid_focal_loss(logits, target, reduction="mean")',
                "from polylosses.torch import Poly1FocalLoss\nloss = Poly1FocalLoss(epsilon=0.0)(logits, target)",
                {
                    "gamma 2, soft labels": (SOFT_FOCAL, "(q**gamma * bce).mean()"),
                    "gamma 2, class ids": NO_CLASS_IDS,
                    "gamma 2, class ids, (2, 3, 4, 5)": NO_CLASS_IDS,
                    "gamma 0.5, gradient, saturated logits": INFINITE_SLOPE,
                    "gamma 0, confident logits, float16": (
                        "torch's own loss, computed in the dtype of the logits",
                        "F.binary_cross_entropy_with_logits(logits, target)",
                    ),
                    "gamma 0, confident logits, bfloat16": (
                        "torch's own loss, computed in the dtype of the logits",
                        "F.binary_cross_entropy_with_logits(logits, target)",
                    ),
                },
                epsilon=0.0,
            ),
        ),
    ),
)


# ------------------------------------------------------------------------------------------------------------ measuring


def install(peer: Peer, folder: str) -> Any:
    """Installs the peer into ``folder``, and returns its module."""
    if not peer.requirements:
        return None
    print("installing", *peer.requirements, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
    subprocess.run([*pip, *peer.requirements], check=True)
    return load(peer, folder)


def load(peer: Peer, folder: str) -> Any:
    """Loads the peer's module from ``folder``, without the package around it."""
    # A stub for the usage counter that torchvision's file imports from its package.
    sys.modules["torchvision.utils"] = SimpleNamespace(_log_api_usage_once=lambda function: None)  # type: ignore[assignment]
    name = peer.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    spec = spec_from_file_location(name, Path(folder, peer.file))
    assert spec
    assert spec.loader
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(loss: Callable[..., Any], case: Case, **options: Any) -> Measured:
    """The loss or the largest entry of its gradient, or the first line of the error."""
    logits = case.input.clone().requires_grad_(case.gradient)
    try:
        value = loss(logits, case.target, **options)
        if case.gradient:
            value = torch.autograd.grad(value, logits)[0].abs().max()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    number = float(value)
    return number if math.isfinite(number) else str(number)


def measure_theirs(loss: Loss, module: Any, case: Case) -> tuple[Measured, Measured]:
    """The peer's results with the options of the case, and with the plain ones."""
    if not set(case.options) <= set(inspect.signature(loss.call).parameters):
        return NOT_OFFERED, NOT_OFFERED
    call = partial(loss.call, module)
    plain = {**case.options, **loss.link.plain, "epsilon": 0.0}
    return measure(call, case, **case.options, epsilon=loss.epsilon), measure(call, case, **plain)


def measure_ours(loss: Loss, case: Case) -> tuple[Measured, Measured]:
    """Our result with the options of the case, and torch's own with the options that it has."""
    torchs = {name: value for name, value in case.options.items() if name not in loss.link.plain}
    return measure(loss.link.ours, case, **case.options, epsilon=loss.epsilon), measure(
        loss.link.torchs, case, **torchs
    )


def run() -> Results:
    """Installs the peers, and measures their losses and ours."""
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        sys.path.append(folder)  # for optax, which is imported as a package
        for peer in PEERS:
            module = install(peer, folder)
            for loss in peer.losses:
                print("measuring", loss.name, flush=True)
                measured[loss.name] = {}
                for name, case in loss.link.cases.items():
                    theirs, plain = measure_theirs(loss, module, case)
                    ours, torchs = measure_ours(loss, case)
                    measured[loss.name][name] = {
                        "theirs": theirs,
                        "ours": ours,
                        "theirs, plain": plain,
                        "torch": torchs,
                    }
    return {"torch": torch.__version__.split("+")[0], "losses": measured}


def same(one: Measured, other: Measured, case: Case) -> bool:
    """Compares to four digits, or to the dtype's finfo.eps if that is larger."""
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=max(1e-4, torch.finfo(case.input.dtype).eps))


def explained(loss: Loss, name: str) -> float:
    """The value of the formula in ``reasons``."""
    case = loss.link.cases[name]
    logits, target = case.input, case.target
    names = {
        "torch": torch,
        "F": F,
        "logits": logits,
        "target": target,
        "epsilon": loss.epsilon,
        **vars(polylosses.torch),
        **case.options,
    }
    if loss.link is SIGMOID:
        p = logits.sigmoid()
        names["q"] = 1 - (target * p + (1 - target) * (1 - p))
        names["bce"] = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    elif not target.is_floating_point():
        names["nll"] = F.cross_entropy(logits, target, reduction="none")
        label = target.clamp(min=0)
        names["p"] = logits.softmax(1).gather(1, label.unsqueeze(1)).squeeze(1)
        names["w"] = WEIGHT[label]
    return float(eval(loss.reasons[name][1], names))


# ------------------------------------------------------------------------------------------------------------- the page


def page(results: Results) -> str:
    parts = [
        "# Coming from another PolyLoss",
        "What to write instead, and what changes in the numbers. `python docs/coming_from.py` installs every peer at "
        f"the version named here, runs it beside this library (torch {results['torch']} on a CPU) and writes this "
        "page. Tests recompute our numbers and all formulas. For XGBoost and LightGBM, there is "
        "[another page](coming-from-boosting.md#coming-from-another-focal-loss-for-boosting).",
        "## At a glance",
        glance(results, "softmax", SOFTMAX),
        glance(results, "sigmoid", SIGMOID),
        "*Same* is to four digits, or to the spacing of the dtype; *-* is an option that does not exist.",
        "## Reading the tables",
        "All numbers are means. Where a row does not say otherwise, epsilon is 2, `logits` are",
        f"```python\n{LOGITS.tolist()}\n```",
        f"in float64, and the labels are `{LABELS.tolist()}`, or for sigmoids `{MULTI_HOT.int().tolist()}`. The soft "
        "labels of the softmax losses are the [reference values](semantics.md#reference-values). *Gradient* rows show "
        "its largest entry.",
        "*Plain* is at epsilon 0, and for sigmoids also at gamma 0 and without alpha. That should be torch's own "
        "number, which is beside it. Ours is, with one exception: in float16 and bfloat16 torch's own losses lose "
        "digits as well, where ours is computed in float32.",
        "In the formulas, `nll` is the cross-entropy of every position, `p` the softmax probability of its label, and "
        "`w` that label's weight. For sigmoids, `bce` is the binary cross-entropy of every element, and `q` is 1 minus "
        "the probability of its target, `target * sigmoid + (1 - target) * (1 - sigmoid)`.",
    ]
    for peer in PEERS:
        parts += [f"## {peer.title}", about(peer)]
        for loss in peer.losses:
            parts += [f"### {loss.name}", replacement(loss), table(loss, results), *why(loss, results)]
    return "\n\n".join(parts) + "\n"


def about(peer: Peer) -> str:
    if not peer.requirements:
        return peer.about
    return f"{peer.about} Installed: `{' '.join(peer.requirements)}`."


def replacement(loss: Loss) -> str:
    lines = [f"-{line}" for line in loss.before.splitlines()] + [f"+{line}" for line in loss.after.splitlines()]
    return "\n".join(["```diff", *lines, "```"])


def glance(results: Results, title: str, link: Link) -> str:
    losses = [(peer, loss) for peer in PEERS for loss in peer.losses if loss.link is link]
    lines = [[title, *(f"[{peer.title}](#{anchor(peer)})" for peer, _ in losses)]]
    lines.append(["---"] * (1 + len(losses)))
    for name, case in link.cases.items():
        lines.append([name, *(verdict(results["losses"][loss.name][name], case) for _, loss in losses)])
    return markdown(lines)


def anchor(peer: Peer) -> str:
    """GitHub's anchor for the peer's heading."""
    return peer.title.lower().replace("/", "")


def verdict(row: dict[str, Measured], case: Case) -> str:
    theirs = row["theirs"]
    if theirs == NOT_OFFERED:
        return "-"
    if same(theirs, row["ours"], case):
        return "same"
    if theirs == "nan":
        return "**nan**"
    return "**raises**" if isinstance(theirs, str) else "**differs**"


def table(loss: Loss, results: Results) -> str:
    lines = [["case", "theirs", "ours", "theirs, plain", "torch"], ["---"] * 5]
    for name, case in loss.link.cases.items():
        row = results["losses"][loss.name][name]
        theirs = shown(row["theirs"])
        if verdict(row, case) == "**differs**":
            theirs = f"**{theirs}**"
        lines.append([name, theirs, shown(row["ours"]), shown(row["theirs, plain"], brief=True), shown(row["torch"])])
    return markdown(lines)


def shown(value: Measured, brief: bool = False) -> str:
    if not isinstance(value, str):
        return f"{value:.6g}"
    if value in ("nan", NOT_OFFERED):
        return value
    return "raises" if brief else f"`{value}`"


def why(loss: Loss, results: Results) -> list[str]:
    """The lines of a list of the cases with different results, grouped by reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for name, case in loss.link.cases.items():
        if verdict(results["losses"][loss.name][name], case) not in ("same", "-"):
            cases.setdefault(loss.reasons[name], []).append(name)
    lines = []
    for (reason, formula), names in cases.items():
        lines.append(f"* {'; '.join(names)}: {reason}." + (f" Theirs is `{formula}`." if formula else ""))
    return ["\n".join(lines)] if lines else []


def markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    found = run()
    KEPT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(found), encoding="utf-8")
    print("wrote", KEPT.name, "and", PAGE.name)
