"""A plain torch loop with gradient accumulation: the micro-batches add up to exactly one large batch.

    pip install 'polylosses[torch]' scikit-learn
    python examples/plain_loop.py

The mean of the micro-batches' means is not the mean of the batch if targets are ignored or the last micro-batch is
smaller. So the losses of every micro-batch are summed, and divided by the number of valid targets in the whole batch.
"""

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from polylosses.torch import PolyCrossEntropyLoss


def backward(
    model: nn.Module, criterion: PolyCrossEntropyLoss, micro_batches: Sequence[tuple[Tensor, Tensor]]
) -> float:
    """Accumulates the gradients of a batch, and returns its mean loss. ``criterion`` has reduction "sum"."""
    kept = sum(int((y != criterion.ignore_index).sum()) for _, y in micro_batches)
    total = 0.0
    for x, y in micro_batches:
        loss = criterion(model(x), y) / kept
        loss.backward()
        total += loss.item()
    return total


def main() -> float:
    """Trains on digits, prints the accuracy on held-out rows before and after, and returns the latter."""
    torch.manual_seed(0)
    features, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, y = features.float() / 16, labels.clone()
    y[:1200:10] = -100  # unlabelled rows
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    criterion = PolyCrossEntropyLoss(epsilon=1.0, reduction="sum")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def accuracy() -> float:
        return (model(x[1200:]).argmax(1) == y[1200:]).float().mean().item()

    before = accuracy()
    for _ in range(10):
        for rows in torch.randperm(1200).split(128):
            optimizer.zero_grad()
            backward(model, criterion, [(x[part], y[part]) for part in rows.split(48)])
            optimizer.step()
    print(f"accuracy on held-out digits: {before:.3f} before training, {accuracy():.3f} after")
    return accuracy()


if __name__ == "__main__":
    main()
