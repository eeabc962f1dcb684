"""TRL: the loss from the log-probabilities of the tokens, as TRL's trainers compute theirs.

    pip install 'polylosses[torch]' trl
    python examples/trl_token_log_probabilities.py

TRL's fused head never has all logits in memory, and returns 0 for ignored positions. ``poly_from_nll`` of 0 is 0.
"""

import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from polylosses.torch import poly_from_nll

EPSILON = 1.0
WORDS = {"<pad>": 0, "<eos>": 1, **{str(number): 2 + number for number in range(14)}}


class PolyTrainer(SFTTrainer):
    """SFTTrainer with the Poly-1 loss."""

    epsilon = EPSILON

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The summed Poly-1 loss of valid tokens, divided by their number in all micro-batches of a step."""
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        losses = poly_from_nll(-outputs.log_probs, epsilon=self.epsilon)
        count = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / count
        return (loss, outputs) if return_outputs else loss


def make_model() -> LlamaForCausalLM:
    """A Llama with 2 layers and random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes, **ends))


def make_data(rows: int = 224) -> Dataset:
    """Prompts of two numbers, which the completion continues with the same difference."""
    starts, steps = torch.arange(rows) % 14, 1 + torch.arange(rows) // 14 % 2
    numbers = (starts[:, None] + steps[:, None] * torch.arange(8)) % 14 + 2
    mask = (torch.arange(8) >= 2).long().tolist()
    return Dataset.from_dict({"input_ids": numbers.tolist(), "completion_mask": [mask] * rows})


def train(folder: str, model: LlamaForCausalLM, trainer: type[SFTTrainer], **arguments: Any) -> SFTTrainer:
    """Trains ``model``."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(WORDS)), pad_token="<pad>", eos_token="<eos>"
    )
    settings: dict[str, Any] = {"per_device_train_batch_size": 16, "learning_rate": 0.01, "num_train_epochs": 5}
    settings |= {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    settings |= {"max_length": None, "completion_only_loss": True, "seed": 0}
    made = trainer(
        model, SFTConfig(folder, **settings | arguments), train_dataset=make_data(), processing_class=tokenizer
    )
    made.train()
    return made


def main() -> float:
    """Trains, prints the accuracy of token predictions before and after, and returns the latter."""
    logging.set_verbosity_error()
    model, tokens = make_model(), torch.tensor(make_data()["input_ids"])

    def accuracy() -> float:
        with torch.no_grad():
            predicted = model.eval()(tokens).logits[:, 1:-1].argmax(-1)
        return (predicted == tokens[:, 2:]).float().mean().item()

    before = accuracy()
    with tempfile.TemporaryDirectory() as folder:
        train(folder, model, PolyTrainer)
    print(f"tokens predicted: {before:.3f} before training, {accuracy():.3f} after")
    return accuracy()


if __name__ == "__main__":
    main()
