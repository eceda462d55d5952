"""Random models of known shapes, made on the device itself."""

from __future__ import annotations

import torch

from softmask.bench import shapes
from softmask.models import DreamModel

FULL_LAYERS = shapes.SHAPES["dream-7b"].layers
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}
SHAPES = {
    "7b": shapes.SHAPES["dream-7b"],
    "tiny": shapes.Shape("dream", FULL_LAYERS, TINY, FULL_LAYERS),
}
POSITIONS = 4096


def random_dream(shape: str, layers: int, device: torch.device, dtype: torch.dtype) -> DreamModel:
    """A DreamModel with uniform random weights, without gradients."""
    return shapes.random_model(SHAPES[shape], layers, POSITIONS, dtype, device)
