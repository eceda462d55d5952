"""The golden files: outputs of the original code, which goldens/README.md specifies."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from softmask.models import DreamModel

FOLDER = Path(__file__).parent / "goldens"
MASK_ID = 509


@cache
def tensors(name: str) -> dict[str, Tensor]:
    loaded = load_file(FOLDER / f"{name}.safetensors")
    return {k: v if v.is_floating_point() else v.long() for k, v in loaded.items()}


@cache
def facts(name: str):
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def model() -> DreamModel:
    return DreamModel.from_pretrained(FOLDER / "tiny_dream", dtype=torch.float32).eval()


def shifted(logits_BLV: Tensor) -> Tensor:
    """Dream's own alignment: position i is predicted by row i - 1."""
    return torch.cat([logits_BLV[:, :1], logits_BLV[:, :-1]], dim=1)
