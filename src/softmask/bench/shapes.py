"""Models of published shapes with random weights: what speed depends on, without a download.

The weights are made in the dtype, or packed, layer by layer, so that no more than one layer is
whole beside what is kept. Two depths of one model say what a layer costs, and so what all of them
do: `part`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..decoding.memory import Footprint
from ..families.registry import by_name
from ..hub.weight_sizes import QUANTISED
from ..models import DreamConfig, DreamModel
from ..models.quantize import KINDS, Quantizer, check_quantize, seal
from ..reporting.measure import memory_left

SPREAD = 0.02  # of the weights, as those of a new model


@dataclass(frozen=True)
class Shape:
    """The network of a published model: `config` as its config.json says, under our names."""

    family: str
    layers: int
    config: dict[str, Any]
    default_layers: int  # how many are made where nobody says

    def settings(self, layers: int, positions: int) -> DreamConfig:
        """The configuration with so many layers and room for so many positions."""
        return DreamConfig(
            **by_name(self.family).network,
            **self.config,
            family=self.family,
            num_hidden_layers=layers,
            max_position_embeddings=positions,
            mask_token_id=self.config["vocab_size"] - 1,
            pad_token_id=None,
        )


def _shape(
    family: str, layers: int, made: int, *sizes: int, theta: float = 1e6, tied: bool = False
) -> Shape:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config: dict[str, Any] = dict(zip((*names, "vocab_size"), sizes, strict=True))
    config |= {"tie_word_embeddings": tied}
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    return Shape(family, layers, config, made)


# config.json of Dream-org/Dream-v0-Instruct-7B, GSAI-ML/LLaDA-8B-Instruct and Qwen/Qwen2.5-0.5B
# (which Tiny-A2D and Open-dCoder have); "small" is none: for growth, whose exponents need no size.
SHAPES = {
    "dream-7b": _shape("dream", 28, 2, 3584, 18944, 28, 4, 152_064),
    "llada-8b": _shape("llada", 32, 2, 4096, 12288, 32, 32, 126_464, theta=5e5),
    "qwen-0.5b": _shape("a2d-qwen2", 24, 24, 896, 4864, 14, 2, 151_936, tied=True),
    "small": _shape("dream", 2, 2, 256, 704, 4, 2, 8192),
}


def choose_shape(name: str) -> Shape:
    """The shape of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name}: give {', '.join(SHAPES)}")
    return SHAPES[name]


def outline(shape: Shape, layers: int, positions: int, dtype: torch.dtype) -> DreamModel:
    """The model without its weights."""
    with torch.device("meta"):
        model = DreamModel(shape.settings(layers, positions))
        nn.Module.to(model, dtype)
        return model.eval()


def weight_bytes(model: DreamModel, quantize: str | None = None) -> tuple[int, int]:
    """Bytes of a model's weights, in layers and beside them; those of an outline too."""
    layers = sum(
        x.numel() * (QUANTISED[quantize] if quantize and x.dim() == 2 else x.element_size())
        for x in model.model.layers.parameters()
    )
    inner = {id(x) for x in model.model.layers.parameters()}
    outer = [x for x in model.parameters() if id(x) not in inner]
    return int(layers), sum(x.numel() * x.element_size() for x in outer)


def refusal(
    model: DreamModel, positions: int, k: int, quantize: str | None, device: torch.device
) -> str | None:
    """Why there is too little memory for an outline's weights and a canvas of so many positions."""
    free, _ = memory_left(device)
    needed = sum(weight_bytes(model, quantize)) + Footprint.of(model, cached=True, k=k).most(
        positions
    )
    if needed <= free:
        return None
    return f"needs up to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


@torch.no_grad()
def random_model(
    shape: Shape,
    layers: int,
    positions: int,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None = None,
) -> DreamModel:
    """A model of this shape with uniform random weights, the same at each call.

    Args:
        positions: its context.
        quantize: "int8" or "int4" makes its layers so.

    Raises:
        ValueError: there is no such kind of quantization here, or it does not suit the shape.
    """
    if quantize is not None:
        check_quantize(quantize, device)
    model = outline(shape, layers, positions, dtype)
    generator = torch.Generator(device).manual_seed(0)
    for layer in model.model.layers:
        _fill(layer, device, generator)
        if quantize is not None:
            Quantizer(quantize, device, dtype).pack(layer)
    for rest in (model.model.embed_tokens, model.model.norm, model.lm_head):
        tied = shape.config["tie_word_embeddings"] and rest is model.lm_head
        if not tied:
            _fill(rest, device, generator)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    if quantize is not None:
        return seal(model, device)
    return model.requires_grad_(False)


def _fill(module: nn.Module, device: torch.device, generator: torch.Generator) -> None:
    module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.uniform_(-SPREAD, SPREAD, generator=generator)


def part(model: DreamModel, layers: int, block_size: int | None = None) -> DreamModel:
    """The first layers of a model as a model of its own, on the same weights.

    Args:
        block_size: makes it block-causal; None: as it is.
    """
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    config.layer_types = (config.layer_types or [])[:layers]
    if block_size is not None:
        config.block_size = block_size
    base, whole = copy.copy(model.model), copy.copy(model)
    for one in (base, whole):
        one._modules = dict(one._modules)
        one.config = config
    base.layers = nn.ModuleList(list(model.model.layers)[:layers])
    whole.model = base
    return whole


def kinds_of(words: tuple[str, ...]) -> list[tuple[str, torch.dtype | None, str | None]]:
    """Names of dtypes and of quantizations, each as (name, dtype, quantization).

    The dtype of a quantized model is its device's own: None.

    Raises:
        ValueError: a name is neither.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for word in words:
        if word not in (*dtypes, *KINDS):
            raise ValueError(f"{word!r} is no dtype: give {', '.join((*dtypes, *KINDS))}")
    return [(word, dtypes.get(word), word if word in KINDS else None) for word in words]
