"""What official code gave for tiny models (goldens/), and ours on the same canvas."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paths import ROOT
from safetensors.torch import load_file
from torch import Tensor

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.sampler import Rules, denoise
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint

GOLDENS = ROOT / "tests" / "families" / "goldens"
# Folders of models in their original layout, and the family that a user has to name, if any.
FOLDERS = {
    "llada": None,
    "a2d_qwen3_mdlm": None,
    "a2d_qwen2_mdlm": None,
    "a2d_llama_mdlm": None,
    "opendcoder": "opendcoder",
    "dreamon": None,
    "a2d_qwen3_bd3lm": "bd3lm-qwen3",
    "sdar": None,
    "fastdllm2": None,
    "llada2": None,
    "lladamoe": None,
}


def folder_of(name: str) -> Path:
    return GOLDENS / name / "model"


@functools.cache
def official(name: str) -> Checkpoint:
    """The model of a folder, in fp32. Read only."""
    return load(folder_of(name), family=FOLDERS.get(name), device="cpu", dtype="float32")


def read(name: str, file: str) -> Any:
    return json.loads((GOLDENS / name / file).read_text(encoding="utf-8"))


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(GOLDENS / name / "forward.safetensors")


class Decoded(NamedTuple):
    """What stands behind the prompts, and the step in which each token was committed."""

    tokens: list[list[int]]
    steps: list[list[int | None]]
    forwards: int


def decode(
    name: str,
    prompts: list[list[int]],
    masks: int,
    sampling: dict[str, Any],
    *,
    rules: Rules | None = None,
    seed: int | None = None,
    padding: list[list[int]] | None = None,
    soft_mask: SoftMaskConfig | None = None,
) -> Decoded:
    """Denoises prompts of one length with so many masks behind them."""
    model = official(name).model
    ids = torch.tensor(prompts)
    canvas = torch.cat([ids, torch.full((len(ids), masks), model.mask_id)], dim=1)
    mask = None
    if padding is not None:
        mask = torch.cat([torch.tensor(padding), torch.ones(len(ids), masks).long()], dim=1)
    if seed is not None:
        torch.manual_seed(seed)
    config = SamplingConfig(**sampling)
    steps: list[list[int | None]] = [[None] * canvas.shape[1] for _ in prompts]
    for step in denoise(
        model, canvas, config, attention_mask_BL=mask, rules=rules, soft_mask=soft_mask
    ):
        for row, column in step.committed_BL.nonzero().tolist():
            steps[row][column] = step.index
    first = ids.shape[1] if masks else 0
    tokens = step.canvas_BL[:, first:].tolist()
    return Decoded(tokens, [row[first:] for row in steps], step.forwards)
