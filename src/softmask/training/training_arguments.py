"""transformers' TrainingArguments of a recipe, and the device a run is trained on."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from .config import Recipe

ARGUMENTS = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
# transformers' names of what a setting of ours decides, which would have no effect.
OURS = {
    "adam_beta2": "train.beta2",
    "auto_find_batch_size": "train.batch_size",
    "data_seed": "conversations.seed",
    "fp16": "train.precision",
    "lr_scheduler_type": "train.schedule",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "per_device_eval_batch_size": "train.batch_size",
    "save_strategy": "train.save_every",
    "save_total_limit": "train.save_limit",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
    "weight_decay": "train.weight_decay",
}
# Without any effect here, or in the way of a run that goes on exactly.
NOT_HERE = (
    "accelerator_config", "adam_beta1", "adam_epsilon", "batch_eval_metrics", "bf16_full_eval",
    "do_eval", "do_predict", "do_train", "eval_delay", "fp16_full_eval", "ignore_data_skip",
    "include_for_metrics", "label_names", "label_smoothing_factor", "length_column_name",
    "logging_strategy", "lr_scheduler_kwargs", "optim_args", "optim_target_modules",
    "prediction_loss_only", "restore_callback_states_from_checkpoint", "resume_from_checkpoint",
    "save_only_model", "torch_compile", "torch_compile_backend", "torch_compile_mode",
)  # fmt: skip


def training_arguments(recipe: Recipe, folder: Path, device: str | None) -> TrainingArguments:
    """transformers' arguments; the number of updates is filled in when the data is known.

    Raises:
        ValueError: `train.arguments` has an unknown name, or one that a setting of the recipe
            decides; a device that this machine does not have.
    """
    train = recipe.train
    ours = {
        "output_dir": str(folder),
        "run_name": folder.name,
        "seed": recipe.seed,
        "max_steps": 1,
        "per_device_train_batch_size": rows_per_forward(recipe),
        "gradient_accumulation_steps": train.accumulation,
        "learning_rate": train.learning_rate,
        "max_grad_norm": train.clip,
        "bf16": train.precision == "bfloat16",
        **_recompute(train.gradient_checkpointing),
        "logging_steps": train.log_every,
        "logging_first_step": True,
        # A loss that is NaN stops the run: the filter would hide it.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": train.eval_every,
        "eval_on_start": train.eval_at_start,
        "save_steps": train.save_every,
        "load_best_model_at_end": train.keep_best,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "report_to": list(train.report_to) or "none",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        # Every trained parameter is part of every loss, see objective.py.
        "ddp_find_unused_parameters": False,
        "use_cpu": chosen_cpu(device),
        # A progress bar on a terminal; otherwise the lines of the log.
        "disable_tqdm": not sys.stderr.isatty(),
    }
    for name in train.report_to:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"train.report_to: {name} is not installed: pip install {name}")
    for name in train.arguments:
        if name in OURS:
            raise ValueError(f"train.arguments: {name} has no effect here: use {OURS[name]}")
        if name in NOT_HERE:
            raise ValueError(
                f"train.arguments: {name} has no effect here, or would keep the run from going on "
                "exactly: leave it out"
            )
        if name not in ARGUMENTS:
            raise ValueError(f"train.arguments: transformers has no training argument {name!r}")
        if name in ours:
            raise ValueError(f"train.arguments: {name} is set by a setting of the recipe: use that")
    more = dict(train.arguments)
    workers = more.get("dataloader_num_workers")
    if isinstance(workers, int):
        # More of them than processors only wait for each other; the rows are the same.
        more["dataloader_num_workers"] = min(workers, os.cpu_count() or 1)
    # accelerate's launcher sets it by its own configuration, and transformers then keeps that.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if ours["bf16"] else "no"
    try:
        args = TrainingArguments(**ours | more)
    except (TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"train.arguments are refused by transformers ({reason})") from error
    if args.device.type == "cuda" and args.n_gpu > 1:
        # Several visible GPUs in one process would mean nn.DataParallel, which is not supported.
        args._n_gpu = 1
    return args


def _recompute(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing; transformers 5.24 has given the argument another name."""
    if not wanted:
        return {}
    name = "activation" if "activation_checkpointing" in ARGUMENTS else "gradient"
    return {
        f"{name}_checkpointing": True,
        f"{name}_checkpointing_kwargs": {"use_reentrant": False},
    }


def chosen_cpu(device: str | None) -> bool:
    """Whether the CPU was asked for; the accelerator is accelerate's choice.

    Raises:
        ValueError: another device than cpu, or the accelerator that this machine has.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    here = "mps" if torch.backends.mps.is_available() else here
    if device not in (None, "cpu", here):
        raise ValueError(
            f"training on this machine runs on {' or '.join(sorted({here, 'cpu'}))}, not on "
            f"{device!r}: choose a GPU by CUDA_VISIBLE_DEVICES, several by torchrun"
        )
    return device == "cpu" or here == "cpu"


def rows_per_forward(recipe: Recipe) -> int:
    """Rows that a data loader takes at a time; a corpus hands out whole batches."""
    return 1 if recipe.conversations is None else recipe.train.batch_size
