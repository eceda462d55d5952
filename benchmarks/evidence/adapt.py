"""A causal Llama as a Dream model, to be trained on: the way Dream was made from Qwen2.5.

    python benchmarks/evidence/smollm2.py SMOLLM2
    python benchmarks/evidence/adapt.py SMOLLM2 OUT

The weights stay what they are. Attention looks both ways from now on, the row before a position
still predicts it (the shift), and a mask token is added, whose embedding is the mean of all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Tokenizer

from softmask.models import DreamConfig, DreamModel
from softmask.training.corpus import MASK_TOKEN

# Rows of the table: a multiple of this, for the products of a GPU.
MULTIPLE = 128
SAME = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
)


def dream_of(causal: PreTrainedModel, tokenizer: Qwen2Tokenizer) -> DreamModel:
    """A DreamModel with the weights of a Llama; Qwen2's biases, which Llama lacks, are 0."""
    source = causal.config
    tokens = len(tokenizer)
    config = DreamConfig(
        **{name: getattr(source, name) for name in SAME},
        rope_parameters=dict(source.rope_parameters),
        vocab_size=-(-tokens // MULTIPLE) * MULTIPLE,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["DreamModel"],
    )
    dream = DreamModel(config)
    weights = {**causal.state_dict()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = extended(weights[name], config.vocab_size)
    for name, parameter in dream.state_dict().items():
        if name.endswith("proj.bias"):
            weights[name] = torch.zeros_like(parameter)
    dream.load_state_dict(weights)
    return dream


def extended(table_VD: Tensor, rows: int) -> Tensor:
    """The table with mean rows behind its own."""
    mean_D = table_VD.mean(0)
    return torch.cat([table_VD, mean_D.expand(rows - len(table_VD), -1)])


def tokenizer_of(folder: Path) -> Qwen2Tokenizer:
    """The causal model's vocabulary and merges, with a mask token behind them."""
    source = AutoTokenizer.from_pretrained(folder)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    ends = {"eos_token": source.eos_token, "pad_token": source.eos_token}
    tokenizer.add_special_tokens({**ends, "mask_token": MASK_TOKEN})
    return tokenizer


def main(folder: Path, out: Path) -> None:
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = tokenizer_of(folder)
    dream_of(causal, tokenizer).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
