"""A training run in a folder, from a recipe to the adapter or model it leaves there.

    runs/mix-seed1231/
        recipe.json         every setting, as it was resolved
        base.json           which base checkpoint it was (fine-tuning)
        log.jsonl           a line each `log_every` updates and for each evaluation
        checkpoint-100/ ... adapter or weights, soft-mask parameters, optimizer, generators
        adapter/ or model/  the result: `softmask generate --adapter runs/mix-seed1231/adapter`
        curves.png          the log, drawn
        done.json           written last

A run that was stopped, even by kill -9, goes on exactly where its newest whole checkpoint stands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Qwen2Tokenizer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..config import SAMPLING_FILE, read_json, sampling_to_file
from ..hub.checkpoints import find, fingerprint, quiet
from ..models import DreamModel
from .batches import Collator, ConversationOrder, CorpusOrder, Validation
from .build import Trainable, build, describe
from .config import Recipe
from .conversations import load_conversations
from .corpus import Corpus
from .curves import draw_curves
from .plan import Clock, Plan
from .trainer import (
    COMPLETE,
    EMA_WEIGHTS,
    SoftMaskTrainer,
    load_weights,
    save_soft_mask,
    weights_of,
)

Report = Callable[[str], None]
# Below it soft-masking gave half or less of what it gives at 0.3 (docs/EVIDENCE.md, text).
LITTLE_LAMBDA = 0.1
ARGUMENTS = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    report: Report = print,
) -> Path:
    """Runs a recipe in `folder` to its end, or on from where it was stopped.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.

    Args:
        device: "cpu", or null for the best there is. overwrite: begins anew, and deletes what the
            folder holds of an earlier run.

    Returns:
        The folder of the result: `adapter` or `model` inside `folder`.

    Raises:
        ValueError: one sentence: the folder holds another run, data or base are not to be had, the
            loss is not finite, or a checkpoint cannot be written.
    """
    args = arguments(recipe, folder, device)
    result = folder / ("model" if recipe.adapter is None else "adapter")
    main = args.process_index == 0
    report = report if main else _silent
    with args.main_process_first(desc="folder of the run"):
        if main:
            prepare_folder(folder, recipe, overwrite)
    if (folder / "done.json").is_file():
        report(f"{result} is finished already")
        return result
    made = build(recipe, args.device)
    sizes = describe(made.dream)
    report(f"{sizes['parameters']:,} parameters, {sizes['trained']:,} of them trained")
    with args.main_process_first(desc="data"):
        data = make_data(recipe, made, args, report)
    args.max_steps = data.plan.steps
    checkpoint = newest_checkpoint(folder, args.world_size)
    args.eval_on_start &= checkpoint is None
    log = Log(folder / "log.jsonl", report)
    if main:
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        log.forget_after(step)
        report(f"from update {step} of {data.plan.steps}" if step else f"{data.plan.steps} updates")
    trainer = SoftMaskTrainer(
        made.model,
        made.dream,
        args,
        recipe.train,
        data.plan,
        data.collator,
        data.rows,
        data.validation,
        callbacks=[log, StageEnds(data.plan)],
    )
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(Progress)
    trainer.train(None if checkpoint is None else str(checkpoint))
    finish(trainer, recipe, made, result)
    if main:
        draw_curves(folder / "log.jsonl", folder / "curves.png", recipe.name)
        write_done(folder, trainer.state, result)
    trainer.accelerator.wait_for_everyone()
    note = note_on_feedback(trainer.state.log_history)
    if note is not None:
        report(note)
    report(f"{result} is finished: softmask generate --{result.name} {result}")
    return result


def _silent(_line: str) -> None:
    pass


# Settings


def arguments(recipe: Recipe, folder: Path, device: str | None) -> TrainingArguments:
    """transformers' arguments; the number of updates is filled in when the data is known.

    Raises:
        ValueError: `train.arguments` names something unknown, or a setting that has a place of its
            own in the recipe; a device that is not to be had.
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
        # A loss that is not a number stops the run; it must not be averaged away.
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
        # Every trained parameter takes part in every loss, see objective.py.
        "ddp_find_unused_parameters": False,
        "use_cpu": chosen_cpu(device),
        # A bar where somebody is watching; else the log's own lines.
        "disable_tqdm": not sys.stderr.isatty(),
    }
    for name in train.report_to:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"train.report_to: {name} is not installed: pip install {name}")
    for name in train.arguments:
        if name not in ARGUMENTS:
            raise ValueError(f"train.arguments: transformers has no training argument {name!r}")
        if name in ours:
            raise ValueError(f"train.arguments: {name} is set by a setting of the recipe: use that")
    args = TrainingArguments(**ours | train.arguments)
    if args.device.type == "cuda" and args.n_gpu > 1:
        # Several visible GPUs in one process mean nn.DataParallel, which is no option here.
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


# The folder


def prepare_folder(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Writes recipe.json and base.json, or finds that the folder holds this very run.

    Raises:
        ValueError: the folder holds another run, or its base checkpoint has changed.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    written = folder / "recipe.json"
    if overwrite and written.is_file():
        shutil.rmtree(folder)
    if not written.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: name another folder with --out")
    if written.is_file() and read_json(written) != wanted:
        raise ValueError(
            f"{folder} holds a run of another recipe: name a new folder with --out, or delete "
            "that run with --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.json"
    if recipe.model.path is not None:
        source = find(recipe.model.path, revision=recipe.model.revision).folder
        now = {"path": recipe.model.path, "fingerprint": fingerprint(source)}
        if base.is_file() and read_json(base) != now:
            raise ValueError(
                f"{folder} was trained on another base: the files of {recipe.model.path} have "
                "changed since; give the old ones back, or start anew with --overwrite"
            )
        base.write_text(json.dumps(now) + "\n")
    written.write_text(json.dumps(wanted, indent=2) + "\n")


def newest_checkpoint(folder: Path, processes: int) -> Path | None:
    """The newest whole checkpoint; those that a kill cut off are deleted.

    Raises:
        ValueError: it was made with another number of processes, whose rows would differ.
    """
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    if not whole:
        return None
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    made_with = read_json(newest / COMPLETE)["processes"]
    if made_with != processes:
        raise ValueError(
            f"{newest} was made by {made_with} processes, this run has {processes}: go on with as "
            "many, or start anew with --overwrite"
        )
    return newest


def write_done(folder: Path, state: TrainerState, result: Path) -> None:
    """done.json: the run needs nothing more."""
    done = {"steps": state.global_step, "result": result.name}
    if state.best_metric is not None:
        done |= {"best_eval_loss": state.best_metric, "best_step": state.best_global_step}
    (folder / "done.json").write_text(json.dumps(done) + "\n")


# Data


class Data(NamedTuple):
    """What the trainer reads."""

    plan: Plan
    collator: Collator
    rows: Any
    validation: Validation


def make_data(recipe: Recipe, made: Trainable, args: TrainingArguments, report: Report) -> Data:
    """Rows in the order of the run, their collator, the batches of the evaluation."""
    train, tokenizer = recipe.train, made.tokenizer
    clock = Clock(rows_per_forward(recipe), args.world_size, train.accumulation)
    if recipe.conversations is not None:
        found = load_conversations(recipe.conversations, tokenizer, recipe.seed, report)
        updates = math.ceil(len(found.train) * train.epochs / clock.rows_per_update)
        plan = Plan(train, train.steps or updates)
        length = plan.steps * clock.rows_per_update
        rows, held_out = ConversationOrder(found.train, recipe.seed, length), found.validation
    else:
        held_out = Corpus(recipe.corpus, made.stories, tokenizer)
        plan = Plan(train, train.steps or 0)
        rows = CorpusOrder(held_out, plan, clock, recipe.seed)
    config = made.dream.config
    collator = Collator(
        train=train,
        noise=recipe.noise,
        conversations=recipe.conversations,
        plan=plan,
        clock=clock,
        seed=recipe.seed,
        mask_token_id=config.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        two_passes=recipe.soft_mask is not None,
    )
    return Data(plan, collator, rows, Validation(collator, held_out, train.eval_batches))


# What is watched


class Log(TrainerCallback):
    """log.jsonl, and the same lines for whoever reads along without a terminal."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path, self.report = path, report
        self.started = time.perf_counter()

    def forget_after(self, step: int) -> None:
        """Drops what a stopped run logged behind its checkpoint: those updates are run again."""
        if self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.path.write_text("".join(kept if step else []))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            seconds = round(time.perf_counter() - self.started, 1)
            line = {"step": state.global_step, "seconds": seconds}
            line |= {k: _rounded(v) for k, v in logs.items() if k != "total_flos"}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            if args.disable_tqdm:
                self.report(json.dumps(line))


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


class StageEnds(TrainerCallback):
    """Evaluates at the end of every stage, the run's own included."""

    def __init__(self, plan: Plan) -> None:
        self.ends = {stage.start + stage.steps for stage in plan.stages}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_evaluate |= state.global_step in self.ends
        return control


class Progress(ProgressCallback):
    """transformers' bar, with the last values behind it instead of a line for each."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {k: logs[k] for k in ("loss", "accuracy", "lambda", "scale") if k in logs}
            if "eval_loss" in logs:
                self.training_bar.write(f"update {state.global_step}: {_short(logs)}")
            self.training_bar.set_postfix(shown)


def _short(logs: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in logs.items() if k.startswith("eval_"))


def note_on_feedback(history: Sequence[Mapping[str, float]]) -> str | None:
    """Says so if a run ends with a lambda that leaves soft-masking next to nothing to do."""
    soft = [line for line in history if "lambda" in line]
    if not soft or soft[-1]["lambda"] >= LITTLE_LAMBDA:
        return None
    mixed, entropy = soft[-1]["lambda"], soft[-1]["entropy"]
    return (
        f"note: mean lambda is {mixed:.2g} at an entropy of {entropy:.2g} nats: the feedback is "
        f"hardly let in. Begin with soft_mask.scale near 0.5, soft_mask.offset near {-entropy:.2g} "
        "and soft_mask.steepness near 1 (docs/TRAINING.md)"
    )


# The result


def finish(trainer: SoftMaskTrainer, recipe: Recipe, made: Trainable, target: Path) -> None:
    """Writes the adapter or the model, whole or not at all."""
    draft = target.with_name(f"{target.name}.new")
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
    sampling = sampling_to_file(recipe.sampling)
    if recipe.adapter is None:
        (draft / SAMPLING_FILE).write_text(json.dumps(sampling, indent=2) + "\n")
    (draft / "README.md").write_text(model_card(recipe, trainer))
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)


def save_model(
    model: DreamModel, state: dict[str, Any], tokenizer: Qwen2Tokenizer, target: Path
) -> None:
    """A folder that `softmask.load` reads: the layout of Dream's own, weights in bfloat16."""
    plain = DreamModel(model.config)
    load_weights(plain, weights_of(state))
    with quiet():
        plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    save_soft_mask(model.soft_mask, target)


CARD = """\
---
library_name: {library}
{base}tags: [masked-diffusion, soft-masking, dream]
---
# {name}

Trained by `softmask train {recipe}` (seed {seed}, {steps} updates{best}).

    softmask generate {option} "..."

`transparency_config.json` holds the soft-mask parameters in the published layout,
`soft_mask.safetensors` the same in full precision, before their transforms.
"""


def model_card(recipe: Recipe, trainer: SoftMaskTrainer) -> str:
    """The README of the result."""
    base, best = recipe.model.path, ""
    if trainer.state.best_metric is not None and recipe.train.keep_best:
        best = f", the best at {trainer.state.best_global_step}"
    adapter = recipe.adapter is not None
    return CARD.format(
        library="peft" if adapter else "softmask",
        base="" if base is None else f"base_model: {base}\n",
        name=recipe.name,
        recipe=recipe.name,
        seed=recipe.seed,
        steps=trainer.state.global_step,
        best=best,
        option=f"--model {base} --adapter DIR" if adapter else "--model DIR",
    )
