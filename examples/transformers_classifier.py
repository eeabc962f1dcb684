"""transformers: a sequence classifier through the Trainer's ``compute_loss_func``.

pip install 'polylosses[torch]' 'transformers[torch]'
python examples/transformers_classifier.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging

from polylosses.torch import poly_cross_entropy

EPSILON = 2.0


def poly_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None, epsilon: float = EPSILON
) -> Tensor:
    """Poly-1 loss of the class. ``num_items_in_batch`` is the number of rows in all micro-batches of a step."""
    if num_items_in_batch is None:  # evaluation
        return poly_cross_entropy(outputs.logits, labels, epsilon=epsilon)
    return poly_cross_entropy(outputs.logits, labels, reduction="sum", epsilon=epsilon) / num_items_in_batch


def make_model() -> BertForSequenceClassification:
    """A BERT with 2 layers, a vocabulary of 16 tokens, 3 classes and random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=16, max_position_embeddings=16, num_labels=3, **sizes))


def make_data(rows: int = 640) -> list[dict[str, Tensor]]:
    """Rows of random tokens, one of which is 0, 1 or 2: the class."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 16, (rows, 8), generator=generator)
    labels = torch.randint(3, (rows,), generator=generator)
    tokens[torch.arange(rows), torch.randint(8, (rows,), generator=generator)] = labels
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def train(folder: str, model: BertForSequenceClassification, compute_loss_func: Any, **arguments: Any) -> Trainer:
    """Trains ``model`` on all rows but the last 128."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 0.003, "num_train_epochs": 15}
    settings |= {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 0}
    trainer = Trainer(
        model,
        TrainingArguments(folder, **settings | arguments),
        train_dataset=make_data()[:-128],  # type: ignore[arg-type]
        compute_loss_func=compute_loss_func,
    )
    trainer.train()
    return trainer


def main() -> float:
    """Trains, prints the accuracy on held-out rows before and after, and returns the latter."""
    logging.set_verbosity_error()
    model, rows = make_model(), make_data()[-128:]
    tokens, labels = torch.stack([row["input_ids"] for row in rows]), torch.stack([row["labels"] for row in rows])

    def accuracy() -> float:
        with torch.no_grad():
            return (model.eval()(tokens).logits.argmax(-1) == labels).float().mean().item()

    before = accuracy()
    with tempfile.TemporaryDirectory() as folder:
        train(folder, model, poly_loss)
    print(f"accuracy on held-out rows: {before:.3f} before training, {accuracy():.3f} after")
    return accuracy()


if __name__ == "__main__":
    main()
