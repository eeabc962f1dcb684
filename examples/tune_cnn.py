"""Tunes the loss of a small convolutional network with batch normalization and dropout.

    pip install 'polylosses[tune]'
    polylosses tune examples/tune_cnn.py:train --param lr=1e-3:1e-1:log --param dropout=0.0,0.3 --points 6

``train`` is what a script does once, with its loss, its seed and its hyper-parameters from the trial.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from polylosses.torch import poly_cross_entropy
from polylosses.tune import Trial

EPOCHS, BATCH = 8, 64
TEST, VALIDATION = slice(1300, None), slice(1000, 1300)


def train(trial: Trial) -> dict[str, torch.Tensor]:
    """Trains once, and returns for each validation and test row whether its prediction was right."""
    torch.manual_seed(trial.seed)
    pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, y = pixels.float().view(-1, 1, 8, 8) / 16, labels
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(trial.parameters.get("dropout", 0.0)),
        nn.Linear(32 * 16, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.parameters.get("lr", 0.01))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        model.train()
        for rows in torch.randperm(1000).split(BATCH):
            optimizer.zero_grad()
            poly_cross_entropy(model(x[rows]), y[rows], polynomial=trial.polynomial).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float()
    return {"validation": right[VALIDATION], "test": right[TEST]}
