"""Batched training of small classifiers, one for each repeat, epsilon and learning rate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from polylosses.torch import poly_cross_entropy

HIDDEN = 64
BATCH_ROWS = 64
MINIMUM_STEPS = 400
MINIMUM_EPOCHS = 10


@dataclass(frozen=True)
class Trained:
    """Trained models, one for each repeat and arm, ordered by repeat."""

    model: nn.Module
    parameters: dict[str, Tensor]
    """Parameters of all models, stacked along the first dimension."""
    mean_p_t: Tensor
    """Mean probability of the training label in each epoch, models x epochs."""

    def logits(self, index: int, X: Tensor) -> Tensor:
        """Logits of the model at ``index`` for ``X``, rows x features."""
        parameters = {name: value[index] for name, value in self.parameters.items()}
        output: Tensor = functional_call(self.model, parameters, (X,))
        return output.detach()


def network(features: int, classes: int, seed: int) -> nn.Sequential:
    """Network with one hidden layer and torch's default initialization, seeded with ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


def epochs_for(rows: int) -> int:
    """Number of epochs for a number of training rows."""
    return max(MINIMUM_EPOCHS, math.ceil(MINIMUM_STEPS / math.ceil(rows / BATCH_ROWS)))


def order(rows: int, epoch: int, seed: int) -> Tensor:
    """Random order of the training rows in an epoch."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch))


def train(
    X: Tensor,
    labels: Tensor,
    classes: int,
    epsilons: Sequence[float],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    after_epoch: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one model for each repeat and arm with AdamW (torch's defaults), all models in the same steps.

    Within a repeat, all arms share the rows, the initial weights and the order of rows. Learning rates decay linearly
    to 0: without decay, the noise of the last steps penalizes high rates and exaggerates the gain of a large epsilon
    (digits with 40 % label noise, epsilon = 10 against 0: 2.8 points without decay, 2.1 with it).

    Args:
        X: features, repeats x rows x features, float32.
        labels: class indices, repeats x rows.
        classes: number of classes.
        epsilons: epsilon of each arm.
        learning_rates: learning rate of each arm, in the same order.
        seeds: seed of each repeat, for its initial weights and orders of rows.
        after_epoch: callback after every epoch.
    """
    repeats, rows, features = X.shape
    arms = len(epsilons)
    epsilon = torch.tensor(epsilons).repeat(repeats)
    repeat = torch.arange(repeats).repeat_interleave(arms)[:, None]

    networks = [network(features, classes, seed) for seed in seeds]
    names = [name for name, _ in networks[0].named_parameters()]
    initial = [dict(one.named_parameters()) for one in networks]
    parameters = {
        name: torch.stack([one[name].detach() for one in initial]).repeat_interleave(arms, dim=0) for name in names
    }
    rates = torch.tensor(learning_rates).repeat(repeats)
    optimizer = AdamW(parameters)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(networks[0], parameters, (x,))
        p_t = torch.softmax(logits.detach(), 1).gather(1, y[:, None])
        return poly_cross_entropy(logits, y, epsilon=epsilon), p_t.sum()

    gradient = vmap(grad(loss, has_aux=True))
    history = []
    epochs = epochs_for(rows)
    for epoch in range(epochs):
        p_t = torch.zeros(repeats * arms)
        orders = torch.stack([order(rows, epoch, seed) for seed in seeds])
        batches = torch.split(orders, BATCH_ROWS, dim=1)
        for number, batch in enumerate(batches, start=epoch * len(batches)):
            chosen = batch[repeat[:, 0]]
            gradients, batch_p_t = gradient(parameters, X[repeat, chosen], labels[repeat, chosen], epsilon)
            optimizer.step(parameters, gradients, rates * (1 - number / (epochs * len(batches))))
            p_t += batch_p_t
        history.append(p_t / rows)
        after_epoch()
    return Trained(networks[0], parameters, torch.stack(history, dim=1))


class AdamW:
    """:class:`torch.optim.AdamW` with default settings, for stacked parameters and one learning rate per model."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.means = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.steps = 0

    def step(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor], learning_rates: Tensor) -> None:
        """Update ``parameters`` in place."""
        self.steps += 1
        for name, parameter in parameters.items():
            rate = learning_rates.reshape(-1, *[1] * (parameter.dim() - 1))
            gradient, mean, square = gradients[name], self.means[name], self.squares[name]
            parameter.mul_(1 - 0.01 * rate)
            mean.lerp_(gradient, 1 - 0.9)
            square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
            size = (square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
            parameter.sub_(rate / (1 - 0.9**self.steps) * mean / size)
