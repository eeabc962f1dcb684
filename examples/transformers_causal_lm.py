"""transformers: a causal language model through the Trainer's ``compute_loss_func``.

    pip install 'polylosses[torch]' 'transformers[torch]'
    python examples/transformers_causal_lm.py

The Trainer counts the targets in all micro-batches of a step, and passes the count as ``num_items_in_batch``. A sum
divided by this count gives the same step for every number of accumulation steps.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

from polylosses.torch import poly_cross_entropy

EPSILON = 1.0


def poly_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None, epsilon: float = EPSILON
) -> Tensor:
    """Poly-1 loss of the next token."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if num_items_in_batch is None:  # evaluation
        return poly_cross_entropy(logits, targets, epsilon=epsilon)
    return poly_cross_entropy(logits, targets, reduction="sum", epsilon=epsilon) / num_items_in_batch


def make_model() -> LlamaForCausalLM:
    """A Llama with 2 layers, a vocabulary of 16 tokens and random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=32, **sizes))


def make_data(rows: int = 256) -> list[dict[str, Tensor]]:
    """Sequences that count up by 1 or 2 from any token. The first two tokens are not targets."""
    starts, steps = torch.arange(rows) % 16, 1 + torch.arange(rows) // 16 % 2
    tokens = (starts[:, None] + steps[:, None] * torch.arange(12)) % 16
    labels = tokens.clone()
    labels[:, :2] = -100
    labels[::3, 8:] = -100  # some targets end earlier
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def train(folder: str, model: LlamaForCausalLM, compute_loss_func: Any, **arguments: Any) -> Trainer:
    """Trains ``model``."""
    settings: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 0.01, "num_train_epochs": 5}
    settings |= {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 0}
    trainer = Trainer(
        model,
        TrainingArguments(folder, **settings | arguments),
        train_dataset=make_data(),  # type: ignore[arg-type]
        compute_loss_func=compute_loss_func,
    )
    trainer.train()
    return trainer


def main() -> float:
    """Trains, prints the accuracy of token predictions before and after, and returns the latter."""
    logging.set_verbosity_error()
    model, rows = make_model(), make_data()
    tokens = torch.stack([row["input_ids"] for row in rows])

    def accuracy() -> float:
        with torch.no_grad():
            predicted = model.eval()(tokens).logits[:, 1:-1].argmax(-1)
        return (predicted == tokens[:, 2:]).float().mean().item()

    before = accuracy()
    with tempfile.TemporaryDirectory() as folder:
        train(folder, model, poly_loss, gradient_accumulation_steps=2)
    print(f"tokens predicted: {before:.3f} before training, {accuracy():.3f} after")
    return accuracy()


if __name__ == "__main__":
    main()
