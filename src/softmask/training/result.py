"""What a finished run leaves: the adapter or the model, with its model card."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from ..config import SAMPLING_FILE, sampling_to_file
from ..files import sync_folder, sync_tree, write_atomically
from ..hub.checkpoints import quiet
from ..hub.folder import is_on_hub
from ..models import DreamModel
from .build import Trainable
from .config import Recipe
from .trainer import EMA_WEIGHTS, SoftMaskTrainer
from .weights import load_weights, save_soft_mask, weights_of, whole_folder


def write_result(trainer: SoftMaskTrainer, recipe: Recipe, made: Trainable, target: Path) -> None:
    """Writes the adapter or the model into `target`: completely, or not at all.

    Raises:
        ValueError: it cannot be written (a full disk).
    """
    draft = target.with_name(f"{target.name}.new")
    writes = trainer.args.should_save
    if writes and draft.exists():  # left by a kill
        shutil.rmtree(draft)
    with whole_folder(draft, "the result") if writes else contextlib.nullcontext():
        _write_draft(trainer, recipe, made, draft)
        if writes:
            sync_tree(draft)
    if writes:
        shutil.rmtree(target, ignore_errors=True)
        draft.replace(target)
        sync_folder(target.parent)


def _write_draft(trainer: SoftMaskTrainer, recipe: Recipe, made: Trainable, draft: Path) -> None:
    average = trainer.average.swapped_in() if trainer.average else contextlib.nullcontext()
    with average:
        if recipe.adapter is not None:
            trainer.save_model(str(draft))
        else:
            state = trainer.accelerator.get_state_dict(trainer.model)
            if trainer.args.should_save:
                save_model(made.dream, state, made.tokenizer, draft)
    if not trainer.args.should_save:
        return
    (draft / EMA_WEIGHTS).unlink(missing_ok=True)
    if recipe.adapter is None:
        sampling = sampling_to_file(recipe.sampling, recipe.prompt_kinds) or made.sampling
        write_atomically(draft / SAMPLING_FILE, json.dumps(sampling, indent=2) + "\n")
    write_atomically(draft / "README.md", model_card(recipe, trainer))


def save_model(
    model: DreamModel, state: dict[str, Any], tokenizer: PreTrainedTokenizerFast, target: Path
) -> None:
    """A folder that `softmask.load` reads: the layout of Dream's own, weights in bfloat16."""
    plain = DreamModel(model.config)
    load_weights(plain, weights_of(state))
    with quiet():
        nn.Module.to(plain, torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    save_soft_mask(model.soft_mask, target)


CARD = """\
---
library_name: {library}
{base}tags: [masked-diffusion, {tag}{family}]
---
# {name}

Trained by `softmask train` (recipe {recipe}, seed {seed}, {steps} updates{best}). From the folder
that holds this file:

    softmask generate {option} . "What is a mask?"

{soft_mask}
"""
SOFT_MASKED = """\
`transparency_config.json` holds the soft-mask parameters in the published layout,
`soft_mask.safetensors` the same in full precision, before their transforms."""
PLAIN = """\
It was trained without soft-masking, and is decoded so: `transparency_config.json` says `none`."""


def model_card(recipe: Recipe, trainer: SoftMaskTrainer) -> str:
    """README.md of the result, with the metadata that the Hub reads."""
    base, best = recipe.model.path, ""
    if trainer.state.best_metric is not None and recipe.train.keep_best:
        best = f", the best at {trainer.state.best_global_step}"
    adapter, soft = recipe.adapter is not None, recipe.soft_mask is not None
    return CARD.format(
        library="peft" if adapter else "softmask",
        base=f"base_model: {base}\n" if base is not None and is_on_hub(base) else "",
        name=recipe.name,
        recipe=recipe.name,
        seed=recipe.seed,
        steps=trainer.state.global_step,
        best=best,
        tag="soft-masking, " if soft else "",
        family=trainer.dream.config.family,
        soft_mask=SOFT_MASKED if soft else PLAIN,
        option="--adapter" if adapter else "--model",
    )
