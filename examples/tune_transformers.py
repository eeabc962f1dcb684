"""Tunes the loss of an image classifier from transformers, through the Trainer's ``compute_loss_func``.

    pip install 'polylosses[tune]' 'transformers[torch]'
    polylosses tune examples/tune_transformers.py:train --param lr=1e-3:1e-2:log --param dropout=0.0,0.1 --points 6

The model is a small vision transformer with random weights; ``from_pretrained`` serves as well.
"""

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from polylosses.torch import poly_cross_entropy
from polylosses.tune import Trial

EPOCHS, BATCH = 8, 64
TEST, VALIDATION = slice(1300, None), slice(1000, 1300)


def train(trial: Trial) -> dict[str, Tensor]:
    """Trains once, and returns for each validation and test row whether its prediction was right."""
    set_seed(trial.seed)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1
    data: Any = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, initializer_range=0.1)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4})
    config.hidden_dropout_prob = trial.parameters.get("dropout", 0.0)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Sums over micro-batches, since ``num_items_in_batch`` is the number of rows in all of a step."""
        if num_items_in_batch is None:  # evaluation
            return poly_cross_entropy(outputs.logits, labels, polynomial=trial.polynomial)
        total = poly_cross_entropy(outputs.logits, labels, reduction="sum", polynomial=trial.polynomial)
        return total / num_items_in_batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=600,
            learning_rate=trial.parameters.get("lr", 0.005),
            seed=trial.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            ViTForImageClassification(config), arguments, train_dataset=data[:1000], compute_loss_func=loss
        )
        trainer.train()
        logits = torch.tensor(trainer.predict(data).predictions)
    right = (logits.argmax(1) == torch.tensor(labels)).float()
    return {"validation": right[VALIDATION], "test": right[TEST]}
