"""A training run in a folder, from a recipe to the adapter or model it leaves there.

`run_folder.py` says what the folder holds. A run that was stopped, even by kill -9, goes on exactly
from its newest complete checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .batches import Collator, ConversationOrder, CorpusOrder, Validation
from .build import Trainable, build, describe
from .callbacks import BestCheckpoint, LogFile, ProgressBar, StageEnds
from .checkpoints import newest_checkpoint, settle_checkpoints
from .config import Recipe
from .conversations import load_conversations
from .corpus import Corpus
from .curves import draw_curves
from .inputs import pin_inputs, pinned
from .result import write_result
from .run_folder import is_finished, run_folder, write_done
from .schedule import GlobalBatch, TrainingSchedule
from .trainer import SoftMaskTrainer
from .training_arguments import rows_per_forward, training_arguments

# A mean lambda below this gave half or less of the gain at 0.3 (docs/EVIDENCE.md, text).
LITTLE_LAMBDA = 0.1


def train(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Runs a recipe in `folder` to its end, or on from where it was stopped.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.

    Args:
        device: "cpu"; None: the best there is.
        overwrite: begin anew, and delete what the folder holds of an earlier run.
        report: callback for lines of progress; of the first process alone.

    Returns:
        The folder of the result: `adapter` or `model` inside `folder`.

    Raises:
        ValueError: one sentence: the folder holds another run or another process trains there, data
            or base are not to be had or have changed, the loss is not finite, or a checkpoint
            cannot be written.
        OSError: another file cannot be.
    """
    args = training_arguments(recipe, folder, device)
    result = folder / ("model" if recipe.adapter is None else "adapter")
    main = args.process_index == 0
    if not main:
        report = _ignore
    with contextlib.ExitStack() as held:
        with args.main_process_first(desc="folder of the run"):
            if main:
                held.enter_context(run_folder(folder, recipe, overwrite))
                if not is_finished(folder):
                    pin_inputs(folder, recipe)
                    settle_checkpoints(folder, recipe.train.keep_best, report)
        if is_finished(folder):
            report(f"{result} is finished already")
        else:
            _train(pinned(folder, recipe), folder, args, result, report)
    return result


def _train(
    recipe: Recipe,
    folder: Path,
    args: TrainingArguments,
    result: Path,
    report: Callable[[str], None],
) -> None:
    """Trains to the end in a folder that this run has, and writes the result."""
    main = args.process_index == 0
    made = build(recipe, args.device)
    sizes = describe(made.dream)
    report(f"{sizes['parameters']:,} parameters, {sizes['trained']:,} of them trained")
    with args.main_process_first(desc="data"):
        data = make_data(recipe, made, args, report)
    args.max_steps = data.schedule.steps
    checkpoint = newest_checkpoint(folder, args.world_size)
    args.eval_on_start &= checkpoint is None
    log = LogFile(folder / "log.jsonl", report)
    if main:
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        log.forget_after(step)
        last = data.schedule.steps
        report(f"from update {step} of {last}" if step else f"{last} updates")
    trainer = SoftMaskTrainer(
        made.model,
        made.dream,
        args,
        recipe.train,
        data.schedule,
        data.collator,
        data.rows,
        data.validation,
        callbacks=[log, StageEnds(data.schedule), BestCheckpoint(folder)],
    )
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(ProgressBar)
    trainer.train(None if checkpoint is None else str(checkpoint))
    write_result(trainer, recipe, made, result)
    if main:
        draw_curves(folder / "log.jsonl", folder / "curves.png", recipe.name)
        write_done(folder, trainer.state, result)
    trainer.accelerator.wait_for_everyone()
    note = note_on_feedback(trainer.state.log_history)
    if note is not None:
        report(note)
    report(f"{result} is finished: softmask generate --{result.name} {result}")


def _ignore(_line: str) -> None:
    pass


class Data(NamedTuple):
    """What the trainer reads, and when it ends."""

    schedule: TrainingSchedule
    collator: Collator
    rows: Any
    validation: Validation


def make_data(
    recipe: Recipe, made: Trainable, args: TrainingArguments, report: Callable[[str], None]
) -> Data:
    """Rows in the order of the run, their collator, the batches of the evaluation, the schedule."""
    train, tokenizer = recipe.train, made.tokenizer
    global_batch = GlobalBatch(rows_per_forward(recipe), args.world_size, train.accumulation)
    if recipe.conversations is not None:
        found = load_conversations(recipe.conversations, tokenizer, recipe.seed, report)
        updates = math.ceil(len(found.train) * train.epochs / global_batch.size)
        schedule = TrainingSchedule(train, train.steps or updates)
        length = schedule.steps * global_batch.size
        rows: Any
        rows, held_out = ConversationOrder(found.train, recipe.seed, length), found.validation
    else:
        assert recipe.corpus is not None  # a recipe has the one or the other
        held_out = Corpus(recipe.corpus, made.stories, tokenizer)
        schedule = TrainingSchedule(train, train.steps or 0)
        rows = CorpusOrder(held_out, schedule, global_batch, recipe.seed)
    collator = Collator(
        train=train,
        noise=recipe.noise,
        conversations=recipe.conversations,
        schedule=schedule,
        global_batch=global_batch,
        seed=recipe.seed,
        mask_token_id=made.dream.mask_id,
        pad_token_id=tokenizer.pad_token_id,
        two_passes=recipe.soft_mask is not None,
    )
    return Data(schedule, collator, rows, Validation(collator, held_out, train.eval_batches))


def note_on_feedback(history: Sequence[Mapping[str, float]]) -> str | None:
    """A note if the mean lambda is so small at the end that soft-masking has hardly an effect."""
    soft = [line for line in history if "lambda" in line]
    if not soft or soft[-1]["lambda"] >= LITTLE_LAMBDA:
        return None
    mixed, entropy = soft[-1]["lambda"], soft[-1]["entropy"]
    return (
        f"note: mean lambda is {mixed:.2g} at an entropy of {entropy:.2g} nats: the feedback is "
        f"hardly let in. Begin with soft_mask.scale near 0.5, soft_mask.offset near {-entropy:.2g} "
        "and soft_mask.steepness near 1 (docs/guides/fine-tune.md)"
    )
