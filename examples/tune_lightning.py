"""Tunes the loss of a Lightning module.

    pip install 'polylosses[tune]' lightning
    polylosses tune examples/tune_lightning.py:train --param lr=1e-3:1e-1:log --param width=16:256:log --points 6

Of a script of one's own, only ``train`` is new: it takes the seed, the loss and the hyper-parameters from the trial.
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polylosses import Polynomial
from polylosses.torch import PolyCrossEntropyLoss
from polylosses.tune import Trial

EPOCHS, BATCH = 8, 64
TEST, VALIDATION = slice(1300, None), slice(1000, 1300)


class Digits(lightning.LightningModule):
    def __init__(self, polynomial: Polynomial, width: int, lr: float) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))
        self.criterion = PolyCrossEntropyLoss(polynomial=polynomial)
        self.lr = lr

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self.model(x), y)
        return loss

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        logits: Tensor = self.model(batch[0])
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def train(trial: Trial) -> dict[str, Tensor]:
    """Trains once, and returns for each validation and test row whether its prediction was right."""
    lightning.seed_everything(trial.seed, verbose=False)
    pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    data = TensorDataset(pixels.float() / 16, labels)
    model = Digits(trial.polynomial, trial.parameters.get("width", 64), trial.parameters.get("lr", 0.01))
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(*data[:1000]), BATCH, shuffle=True))
    logits = torch.cat(trainer.predict(model, DataLoader(data, 600)))
    right = (logits.argmax(1) == labels).float()
    return {"validation": right[VALIDATION], "test": right[TEST]}
