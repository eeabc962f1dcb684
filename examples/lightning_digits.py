"""Lightning: the loss is an ordinary module, so that its buffers are moved and saved with the model.

pip install 'polylosses[torch]' lightning scikit-learn
python examples/lightning_digits.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polylosses.torch import PolyCrossEntropyLoss


class Digits(lightning.LightningModule):
    """A small network, and Poly-1 with class weights."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = PolyCrossEntropyLoss(torch.linspace(1.0, 2.0, 10), epsilon=2.0)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        loss: Tensor = self.criterion(self.model(x), y)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main() -> float:
    """Trains on digits, prints the accuracy on held-out rows, and returns it."""
    lightning.seed_everything(0, verbose=False)
    features, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = features.float() / 16
    train = DataLoader(TensorDataset(x[:1200], labels[:1200]), batch_size=64, shuffle=True)
    validation = DataLoader(TensorDataset(x[1200:], labels[1200:]), batch_size=597)
    trainer = lightning.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Digits()
    trainer.fit(model, train, validation)
    accuracy = float(trainer.callback_metrics["accuracy"])
    print(f"accuracy on held-out digits: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
