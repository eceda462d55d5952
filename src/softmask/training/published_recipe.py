"""The published training's JSON pair, base config and dataset config, as one of our recipes.

    softmask train --published base_configs/config_1.json datasets_softmasking/config_mix.json

Key names and the defaults of absent keys are those of the published `configs/args.py` (RunArgs,
DatasetArgs, TransparencyArgs, LoraArgs) and of transformers' TrainingArguments. Keys without an
effect here are named in a note; keys that ask for a training that does not exist here are errors.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..config import PUBLISHED_MODES, from_mapping, read_json, require, require_choice
from .config import Recipe

# Published key -> (our setting, the published default).
SETTINGS: dict[str, tuple[str, Any]] = {
    "max_length": ("conversations.max_length", 2048),
    "max_train_size": ("conversations.max_samples", 300_000),
    "min_prob": ("noise.t_low", 0.2),
    "max_prob": ("noise.t_high", 0.8),
    "mixinputs_k": ("soft_mask.k", 3),
    "init_scale": ("soft_mask.scale", 0.0),
    "init_centre": ("soft_mask.offset", -0.75),
    "init_steep": ("soft_mask.steepness", 10 / 1.5),
    "r": ("adapter.r", 16),
    "lora_alpha": ("adapter.alpha", 16),
    "lora_dropout": ("adapter.dropout", 0.0),
    "bias": ("adapter.bias", "none"),
    "use_dora": ("adapter.dora", True),
    "target_modules": ("adapter.target_modules", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "layers_to_transform": ("adapter.layers", None),
    "softmasking_prob": ("train.soft_probability", 0.8),
    "learning_rate": ("train.learning_rate", 5e-5),
    "num_train_epochs": ("train.epochs", 3.0),
    "per_device_train_batch_size": ("train.batch_size", 8),
    "gradient_accumulation_steps": ("train.accumulation", 1),
    "lr_scheduler_type": ("train.schedule", "linear"),
    "max_grad_norm": ("train.clip", 1.0),
    # The published create_optimizer sets 0 whatever the arguments say.
    "adam_beta2": ("train.beta2", 0.999),
    "gradient_checkpointing": ("train.gradient_checkpointing", True),
    "logging_steps": ("train.log_every", 500),
    "eval_steps": ("train.eval_every", None),
    "eval_on_start": ("train.eval_at_start", False),
    "save_steps": ("train.save_every", 500),
    "save_total_limit": ("train.save_limit", None),
    "load_best_model_at_end": ("train.keep_best", False),
    "seed": ("seed", 42),
}
# Keys that choose what only has one way here, with the values that mean that way.
FIXED: dict[str, tuple[Any, ...]] = {
    "loss_calc": ("model_weighted", ["model_weighted"], ("model_weighted",)),
    "no_adapter": (False,),
    "layers_pattern": (None, "layers"),
    "modules_to_save": (None, [], ["transparency"]),
    "eval_strategy": ("steps",),
    "evaluation_strategy": ("steps",),
    "save_strategy": ("steps",),
    "logging_strategy": ("steps",),
    "metric_for_best_model": (None, "loss", "eval_loss"),
    "greater_is_better": (None, False),
    "fp16": (False,),
    "optim": ("adamw_torch", "adamw_torch_fused", "adamw_hf"),
    "remove_unused_columns": (True, False),
}
# Keys without an effect here, and why.
UNUSED = {
    "output_dir": "the folder is given by --out",
    "logging_dir": "the log lies in the folder of the run",
    "run_name": "a run is named by its folder",
    "overwrite_output_dir": "--overwrite does that",
    "checkpoint_timestamp": "a stopped run goes on by itself",
    "per_device_eval_batch_size": "an evaluation takes the training's batch size",
    "weight_decay": "the published optimizer has none, whatever this says",
    "label_names": "the loss is not the Trainer's own",
    "save_safetensors": "nothing else is written",
    "do_train": "it trains",
    "do_eval": "it evaluates",
    "include_inputs_for_metrics": "the evaluation is the loss",
    "ddp_find_unused_parameters": "every parameter is used in every forward",
}
MIX = [
    {"path": "allenai/tulu-3-sft-mixture"},
    {"path": "HuggingFaceTB/smoltalk", "subset": "all"},
]
PLACEHOLDER = "<YOUR_HF_USERNAME>/"


@dataclass(frozen=True)
class OwnKeys:
    """The keys that need more than a new name, with the published defaults."""

    job_name: str = "default_job"
    model_path: str = PLACEHOLDER + "Dream-v0-Instruct-7B-SM"
    softmasking: bool = True
    transparency_alg: str = "mixinputs_with_topk"
    data_path: str = "mix"
    data_subset: str | None = None
    data_seed: int | None = None
    is_messages: bool = True
    prompt_column: str | None = None
    response_column: str | None = None
    max_steps: int = -1  # as many as the epochs take
    warmup_ratio: float | None = 0.0
    warmup_steps: float | None = 0
    bf16: bool = False
    report_to: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require_choice("transparency_alg", self.transparency_alg, tuple(PUBLISHED_MODES))
        given = self.prompt_column is not None and self.response_column is not None
        require(
            self.is_messages or given,
            "is_messages is false: give prompt_column and response_column",
        )


OWN = tuple(field.name for field in fields(OwnKeys))


class PublishedRecipe(NamedTuple):
    """The recipe, and a sentence for each key that has no effect."""

    recipe: Recipe
    notes: list[str]


def read_published_pair(base: Path, dataset: Path) -> PublishedRecipe:
    """Reads a base config and a dataset config.

    Raises:
        ValueError: a file is missing or broken, a key is unknown (the nearest is named), or has a
            value that means another training than the published one.
    """
    given: dict[str, Any] = {}
    for path in (base, dataset):
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping of settings")
        given |= values
    where = f"{base.name} and {dataset.name}"
    arguments = _arguments(given, where)
    own = from_mapping(OwnKeys, {key: given[key] for key in OWN if key in given}, where)
    settings: dict[str, Any] = {"adapter": {}, "soft_mask": {}, "conversations": {}}
    for key, (place, default) in SETTINGS.items():
        _put(settings, place, given.get(key, default))
    train = settings["train"]
    if train["eval_every"] is None:  # as in TrainingArguments
        train["eval_every"] = train["log_every"]
    train |= _train(own) | {"arguments": arguments}
    settings["noise"] |= {"per_row": False, "floor": 1e-3}
    settings["name"] = own.job_name
    settings["model"] = {"path": _model_path(own.model_path), "dtype": "bfloat16"}
    settings["conversations"] |= {"sources": _sources(own), "seed": own.data_seed}
    mode = PUBLISHED_MODES[own.transparency_alg]
    settings["soft_mask"]["mode"] = mode
    if not own.softmasking or mode is None:
        settings["soft_mask"] = None
    notes = [f"{key} has no effect: {UNUSED[key]}" for key in given if key in UNUSED]
    return PublishedRecipe(from_mapping(Recipe, settings, where), notes)


def _put(settings: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
    settings[last] = value


def _arguments(given: dict[str, Any], where: str) -> dict[str, Any]:
    """transformers' own arguments among the keys, which are passed on; checks the fixed keys."""
    from transformers import TrainingArguments

    transformers_own = set(TrainingArguments.__dataclass_fields__)
    known = {*SETTINGS, *FIXED, *UNUSED, *OWN}
    rest: dict[str, Any] = {}
    for key, value in given.items():
        if key in FIXED and value not in FIXED[key]:
            allowed = " or ".join(repr(v) for v in FIXED[key])
            raise ValueError(f"{where}: {key} must be {allowed} here, not {value!r}")
        if key in known:
            continue
        if key not in transformers_own:
            near = difflib.get_close_matches(key, sorted(known | transformers_own), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown setting {key!r}{hint}")
        rest[key] = value
    return rest


def _train(own: OwnKeys) -> dict[str, Any]:
    """Settings of `train` that need more than a new name."""
    reports = own.report_to or ()
    reports = (reports,) if isinstance(reports, str) else reports
    return {
        "warmup": own.warmup_steps or own.warmup_ratio or 0.0,
        "steps": own.max_steps if own.max_steps > 0 else None,
        "precision": "bfloat16" if own.bf16 else "float32",
        "weight_decay": 0.0,
        "soft_learning_rate": 1e-2,
        "weighting": "published",
        "accumulate": "sum",
        "report_to": [name for name in reports if name != "none"],
    }


def _model_path(path: str) -> str:
    """The path of the model; a placeholder for a patched copy means the original repository."""
    if path.startswith(PLACEHOLDER):
        return "Dream-org/" + path.removeprefix(PLACEHOLDER).removesuffix("-SM")
    return path


def _sources(own: OwnKeys) -> list[dict[str, Any]]:
    if own.data_path == "mix":
        return MIX
    names = () if own.is_messages else ("prompt_column", "response_column")
    columns = {name: getattr(own, name) for name in names}
    return [{"path": own.data_path, "subset": own.data_subset, **columns}]
