"""Random models of known shapes, made on the device itself."""

from __future__ import annotations

import torch

from softmask.models import DreamConfig, DreamModel

SHAPES = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
    },
}
FULL_LAYERS = 28


def random_dream(shape: str, layers: int, device: torch.device, dtype: torch.dtype) -> DreamModel:
    """A DreamModel with uniform random weights, without gradients."""
    config = DreamConfig(
        **SHAPES[shape],
        num_hidden_layers=layers,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        mask_token_id=SHAPES[shape]["vocab_size"] - 1,
        pad_token_id=None,
    )
    torch.set_default_dtype(dtype)
    # On the meta device first: the usual initialisation of 7B weights takes minutes on a CPU.
    with torch.device("meta"):
        dream = DreamModel(config)
    torch.set_default_dtype(torch.float32)
    dream.to_empty(device=device)
    with torch.no_grad():
        for parameter in dream.parameters():
            parameter.uniform_(-0.02, 0.02)
    dream.model.rotary_emb = type(dream.model.rotary_emb)(config).to(device)
    return dream.requires_grad_(False)
