"""A run on somebody's own chats: a recipe from a few options, and what it is going to do.

`recipe_for` makes the same `Recipe` that a YAML file is read into. `preview` says what the data was
taken for, shows a row as the model sees it, and estimates time and memory, before any weight is
loaded.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.text import Text
from torch import nn

from .. import launcher
from ..config import BUNDLED, from_mapping
from ..hub.checkpoints import family_named, find
from ..models import DreamConfig, DreamModel
from ..models.experts import experts_of
from ..reporting.words import count
from .config import Recipe
from .conversations import load_conversations, within
from .schedule import TrainingSchedule
from .sources import form_of_source, resolve_source

# Where the numbers come from: rank, learning rate and noise are the published ones for Dream
# (Hersche et al.), with ten times its learning rate for a short run; the scale is the open start
# of docs/EVIDENCE.md. A family's own settings come on top.
SETTINGS: dict[str, Any] = {
    "soft_mask": {"k": 3, "scale": 0.6, "offset": -4.0, "steepness": 1.0},
    # All rows, the short answers too.
    "conversations": {"max_samples": None, "min_response": 1},
    "noise": {"t_low": 0.2, "t_high": 0.8},
    "train": {
        "epochs": 3.0,
        "accumulation": 8,
        "learning_rate": 1e-4,
        "weighting": "published",
        "fit_soft_mask": True,
        "eval_every": 50,
        "save_every": 50,
    },
}
# A product of matrices alone is faster than what is around it: share of its speed in training, as
# measured with the bundled model and a block of Dream-7B's shape.
EFFICIENCY = 0.5
# Beside the products: of a forward and its backward, in seconds, and of the libraries, in bytes.
OVERHEAD, LIBRARIES = 0.02, 0.7e9
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def recipe_for(
    data: str,
    *,
    model: str | None = None,
    family: str | None = None,
    source: Mapping[str, str | None] | None = None,
    bfloat16: bool,
) -> Recipe:
    """The recipe of a run on a file, a folder or a data set on the Hub.

    Args:
        model: folder or Hub id of the checkpoint; None: the bundled one.
        family: what the model is, where its config.json does not say.
        source: further settings of the source, where they are not None: which columns hold the
            chats, and the file or folder for validation.
        bfloat16: whether weights and products are in bfloat16, as on a GPU.

    Raises:
        ValueError: a setting out of its range, or as `family_named`.
    """
    parts: dict[str, dict[str, Any]] = {k: dict(v) for k, v in SETTINGS.items()}
    known = family_named(model or BUNDLED, family)
    for part, settings in (known.training if known else {}).items():
        parts[part] |= settings
    parts["model"] = {"path": model or BUNDLED, "family": family}
    parts["adapter"] = {}
    own = {name: value for name, value in (source or {}).items() if value is not None}
    parts["conversations"]["sources"] = [{"path": data, **own}]
    parts["train"] |= {
        "precision": "bfloat16" if bfloat16 else "float32",
        "gradient_checkpointing": bfloat16,
    }
    name = Path(data).name.split(".")[0] or "chats"
    return from_mapping(Recipe, {"name": name, **parts}, "the options")


def shared_out(recipe: Recipe) -> Recipe:
    """The recipe of a process: all of them together make the rows of an update.

    Raises:
        ValueError: they do not divide.
    """
    rows, count = recipe.train.accumulation, launcher.processes()
    if rows % count:
        raise ValueError(
            f"an update of {rows} rows cannot be shared out among {count} processes: give "
            f"--batch-size {-(-rows // count) * count}"
        )
    train = dataclasses.replace(recipe.train, accumulation=rows // count)
    return dataclasses.replace(recipe, train=train)


class Preview(NamedTuple):
    """What is known of a run before it begins."""

    forms: list[str]  # a line for each source: what its rows are taken for
    example: Text  # the first row, what is trained marked
    estimate: str


def preview(recipe: Recipe, device: torch.device, report: Callable[[str], None]) -> Preview:
    """Reads the data of a recipe with conversations as its run will, and looks ahead.

    Args:
        report: callback for the lines that say what is kept, and what is left out and why.

    Raises:
        ValueError: the recipe has no conversations, or as `load_conversations` and `find`.
    """
    if recipe.conversations is None:
        raise ValueError(
            "a corpus makes its rows as it goes: there is nothing to look at before the run"
        )
    source = find(recipe.model.path, revision=recipe.model.revision, family=recipe.model.family)
    recipe.check_network(source.config.block_size)
    forms = []
    for one in recipe.conversations.sources:
        forms.append(f"{one.path}: taken for {form_of_source(resolve_source(one, report))}")
    conversations = within(recipe.conversations, source.config.max_position_embeddings)
    found = load_conversations(conversations, source.tokenizer, recipe.seed, report)
    row = found.train[0]
    ids, start = row["input_ids"], row["prompt_length"]
    if start == 1:  # no prompt: a row's first token is not trained, as nothing precedes it
        start = 0
    example = Text(str(source.tokenizer.decode(ids[:start])), style="dim")
    example.append(str(source.tokenizer.decode(ids[start:])), style="bold green")
    lengths = [len(ids) for ids in found.train["input_ids"][:1000]]
    with torch.device("meta"):
        dream = DreamModel(source.config)
    return Preview(forms, example, _estimate(recipe, dream, lengths, len(found.train), device))


def in_brackets(example: Text) -> str:
    """The example for a pipe: what is trained stands in double brackets."""
    *_, trained = example.spans
    text = example.plain
    return f"{text[: trained.start]}[[{text[trained.start : trained.end]}]]{text[trained.end :]}"


def _estimate(
    recipe: Recipe, dream: DreamModel, lengths: Sequence[int], rows: int, device: torch.device
) -> str:
    """Updates, minutes and gigabytes of a run, in a line."""
    train, chats = recipe.train, recipe.conversations
    assert chats is not None
    own = train.batch_size * train.accumulation  # of an update, in this process
    size = own * launcher.processes()
    updates = math.ceil(rows * train.visits * train.epochs / size)
    updates = TrainingSchedule(train, train.steps or updates).steps
    length = sum(lengths) / len(lengths) + chats.extra_padding / 2 + chats.pad_multiple / 2
    flops = updates * own * length * _flops_of_a_token(recipe, dream)
    seconds = flops / (EFFICIENCY * _speed(device, train.precision, dream.config.hidden_size))
    seconds += updates * train.accumulation * OVERHEAD
    longest = max(lengths) + chats.extra_padding
    memory = _bytes(recipe, dream, train.batch_size * longest, device) / 1e9
    passes = f"{updates * size / (rows * train.visits):,.1f}".removesuffix(".0")
    return (
        f"{count(updates, 'update')} of {count(size, 'row')}, "
        f"{passes} {'pass' if passes == '1' else 'passes'} over {count(rows, 'row')}; "
        f"about {_duration(seconds)} and {memory:.1f} GB on this {device.type} (an estimate)"
    )


def _flops_of_a_token(recipe: Recipe, dream: DreamModel) -> float:
    """Of one token of a row, forwards and backwards; half of the positions reach the head."""
    config, train = dream.config, recipe.train
    layers = sum(p.numel() for p in dream.model.layers.parameters())
    for experts in experts_of(dream.model.layers):  # of which a token goes through some alone
        unused = 1 - config.num_experts_per_tok / config.num_experts
        layers -= round(unused * sum(p.numel() for p in experts.parameters()))
    read = 2 * (_streams(recipe, config) * layers + config.vocab_size * config.hidden_size / 2)
    passes = 2.0  # a forward, and the gradient with respect to what went in
    passes += 1 if recipe.adapter is None else 0  # and with respect to the weights
    passes += 1 if train.gradient_checkpointing else 0
    passes += train.soft_probability if recipe.soft_mask is not None else 0
    return read * passes


def _bytes(recipe: Recipe, dream: DreamModel, tokens: int, device: torch.device) -> float:
    """Memory of weights, of what is trained (with gradient and AdamW's two), and activations."""
    config, whole = dream.config, dream.num_parameters()
    width = BYTES["float32" if device.type == "cpu" else "bfloat16"]
    if recipe.model.load_in_4bit:
        width = 1
    if recipe.adapter is None:
        fixed = LIBRARIES + 16.0 * whole
    else:
        fixed = LIBRARIES + width * whole + 16.0 * _adapter_parameters(recipe, dream)
    kept = config.num_hidden_layers * config.hidden_size
    if not recipe.train.gradient_checkpointing:
        kept = 8 * kept + 3 * sum(config.feed_forward_widths)
        # A copy for each expert, of what goes in, of what comes out, and of that weighted.
        routed = len(experts_of(dream.model.layers)) * config.num_experts_per_tok
        kept += 3 * routed * config.hidden_size
    numbers = BYTES[recipe.train.precision]
    tokens *= _streams(recipe, config)
    return fixed + tokens * kept * numbers


def _streams(recipe: Recipe, config: DreamConfig) -> int:
    """Positions of a forward for each token: a block-causal model reads true rows too."""
    return 1 if (recipe.model.block_size or config.block_size) is None else 2


def _adapter_parameters(recipe: Recipe, dream: DreamModel) -> int:
    assert recipe.adapter is not None
    total = 0
    for name, module in dream.model.layers.named_modules():
        named = name.rpartition(".")[2] in recipe.adapter.target_modules
        if named and isinstance(module, nn.Linear):
            total += recipe.adapter.r * (module.in_features + module.out_features)
            total += module.out_features if recipe.adapter.dora else 0
    return total


def _speed(device: torch.device, precision: str, width: int) -> float:
    """Floating-point operations a second of a product of matrices here; takes 0.2 s or so."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left = torch.ones(512, width, device=device, dtype=dtype)
    right = torch.ones(width, 4 * width, device=device, dtype=dtype)
    done, started = 0, None
    while started is None or time.perf_counter() - started < 0.2:
        (left @ right).sum().item()  # waits for the device
        if started is None:
            started = time.perf_counter()  # the first one is not counted: it sets things up
        else:
            done += 1
    elapsed = time.perf_counter() - started
    return done * 2 * left.numel() * right.shape[1] / elapsed


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
