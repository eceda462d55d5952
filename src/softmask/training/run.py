"""A training run in a folder, from a recipe to the adapter or model it leaves there.

`run_folder.py` says what the folder holds. A run that was stopped, even by kill -9, goes on exactly
from its newest complete checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..config import SoftMaskConfig, require, shown
from ..files import write_atomically
from ..hub.folder import kept_update
from ..reporting.measure import emulated_bfloat16
from ..reporting.words import count
from .batches import Collator, ConversationOrder, CorpusOrder, Validation
from .build import Trainable, build, describe, learnable
from .callbacks import (
    BestCheckpoint,
    FeedbackNote,
    Interrupt,
    LogFile,
    NewLength,
    ProgressBar,
    StageEnds,
)
from .checkpoints import checkpoint_of, newest_checkpoint, settle_checkpoints
from .config import Recipe
from .conversations import load_conversations, within
from .corpus import Corpus
from .curves import draw_curves
from .inputs import pin_inputs, pinned, silent
from .result import write_result
from .run_files import LOG, forget, is_set_aside
from .run_folder import (
    generate_with,
    how_finished,
    is_finished,
    run_folder,
    with_own_length,
    write_done,
)
from .schedule import GlobalBatch, TrainingSchedule
from .soft_mask_start import FORWARDS, fitted_start
from .trainer import SoftMaskTrainer
from .training_arguments import rows_per_forward, training_arguments
from .trajectory import Visits

logger = logging.getLogger(__name__)

# The parameters that a run began with, where they were fitted to its data.
START = "soft_mask_start.json"


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    device: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Runs a recipe in `folder` to its end, or on from where it was stopped.

    Under `torchrun` or `accelerate launch` every process calls this with the same arguments.

    Args:
        device: "cpu"; None: the best there is.
        overwrite: begin anew; what the folder holds of an earlier run is deleted once the new one
            has been built, and kept where it cannot be.
        report: callback for lines of progress; of the first process alone.

    Returns:
        The folder of the result: `adapter` or `model` inside `folder`.

    Raises:
        ValueError: one sentence: this is no recipe, the folder holds another run or another process
            trains there, data or base are not to be had or have changed, the loss is not finite, or
            a checkpoint cannot be written.
        OSError: another file cannot be.
    """
    require(
        isinstance(recipe, Recipe),
        f"train takes a Recipe, as read_recipe reads one, not {shown(recipe)}",
    )
    folder = Path(folder)
    args = training_arguments(recipe, folder, device)
    result = folder / ("model" if recipe.adapter is None else "adapter")
    main = args.process_index == 0
    if not main:
        report = silent
    with contextlib.ExitStack() as held:
        with args.main_process_first(desc="folder of the run"):
            if main:
                held.enter_context(run_folder(folder, recipe, overwrite, report))
                if not is_finished(folder):
                    pin_inputs(folder, recipe)
                    settle_checkpoints(folder, recipe.train.keep_best, report)
        if is_finished(folder):
            report(how_finished(folder, result))
        else:
            recipe = pinned(folder, with_own_length(folder, recipe))
            try:
                _train(recipe, folder, args, result, report)
            except KeyboardInterrupt:
                if not is_set_aside(folder):  # else the earlier run is what is kept
                    report(_what_is_kept(folder))
                raise
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
    if main and args.bf16 and args.device.type == "cpu" and (slow := emulated_bfloat16()):
        logger.warning("%s: begin with --set train.precision=float32", slow)
    made = build(recipe, args.device)
    sizes = describe(made.dream)
    report(f"{sizes['parameters']:,} parameters, {sizes['trained']:,} of them trained")
    with args.main_process_first(desc="data"):
        data = make_data(recipe, made, args, report)
    args.max_steps = data.schedule.steps
    checkpoint = newest_checkpoint(folder, args.world_size)
    args.eval_on_start &= checkpoint is None
    if checkpoint is None and recipe.train.fit_soft_mask and recipe.soft_mask is not None:
        fit_soft_mask(recipe.soft_mask, made, data, folder, report if main else None)
    log = LogFile(folder / LOG, report)
    if main:
        step = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        log.forget_after(step)
        last = data.schedule.steps
        report(f"from update {step} of {last}" if step else count(last, "update"))
    trainer = SoftMaskTrainer(
        made.model,
        made.dream,
        args,
        recipe.train,
        data.schedule,
        data.collator,
        data.rows,
        data.validation,
        callbacks=[
            log,
            StageEnds(data.schedule),
            BestCheckpoint(folder),
            NewLength(),
            FeedbackNote(report),
        ],
    )
    stop = Interrupt()
    trainer.add_callback(stop)
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    if not args.disable_tqdm:
        trainer.add_callback(ProgressBar)
    if main:
        forget(folder)  # all has been found and built: from here there is a run in its place
    with stop.on_signal(args.world_size == 1):
        trainer.train(None if checkpoint is None else str(checkpoint))
    if stop.was_asked and trainer.state.global_step < data.schedule.steps:
        raise KeyboardInterrupt
    write_result(trainer, recipe, made, result)
    if main:
        draw_curves(folder / LOG, folder / "curves.png", recipe.name)
        write_done(folder, trainer.state, result)
    trainer.accelerator.wait_for_everyone()
    report(f"{result} is finished: `{generate_with(result)}`")


def _what_is_kept(folder: Path) -> str:
    """What a run that was stopped goes on from, in a sentence."""
    at = kept_update(folder)
    if not at:
        return "stopped before the first checkpoint: nothing is kept, and the run begins anew"
    return f"stopped; kept up to update {at}: {checkpoint_of(folder, at)}"


def fit_soft_mask(
    config: SoftMaskConfig,
    made: Trainable,
    data: Data,
    folder: Path,
    report: Callable[[str], None] | None,
) -> None:
    """Gives the model the soft-mask parameters that the first rows ask for, and writes them down.

    Args:
        report: callback for a line; None: another process says and writes it.
    """
    size = data.collator.global_batch.per_device
    batches = (
        data.collator([data.rows[draw] for draw in range(number * size, (number + 1) * size)])
        for number in range(min(FORWARDS, len(data.rows)))
    )
    start = fitted_start(made.model, made.dream, batches, config, data.collator.pad_token_id)
    made.dream.soft_mask = learnable(start.soft_mask, made.dream)
    if report is not None:
        write_atomically(folder / START, json.dumps(start.as_json(), indent=1) + "\n")
        report(str(start))


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
    visits = None if train.trajectory is None else Visits(train.trajectory, global_batch.size)
    context = made.dream.config.max_position_embeddings
    if recipe.conversations is not None:
        conversations = within(recipe.conversations, context)
        found = load_conversations(conversations, tokenizer, recipe.seed, report)
        updates = math.ceil(len(found.train) * train.visits * train.epochs / global_batch.size)
        schedule = TrainingSchedule(train, train.steps or updates)
        length = schedule.steps * global_batch.size
        rows: Any
        rows = ConversationOrder(found.train, recipe.seed, length, visits)
        held_out = found.validation
    else:
        assert recipe.corpus is not None  # a recipe has the one or the other
        if recipe.corpus.story_length > context:
            raise ValueError(
                f"corpus.story_length is {recipe.corpus.story_length}, but the model's context is "
                f"{context}: ask for shorter rows"
            )
        held_out = Corpus(recipe.corpus, made.documents, tokenizer)
        schedule = TrainingSchedule(train, train.steps or 0)
        rows = CorpusOrder(held_out, schedule, global_batch, recipe.seed, visits)
    # Behind an answer there is padding, which the model learns to write: an end, where nothing else
    # is named.
    pads = (tokenizer.pad_token_id, made.dream.config.pad_token_id, tokenizer.eos_token_id)
    pad_token_id = next((one for one in pads if one is not None), None)
    if pad_token_id is None:
        raise ValueError(
            f"the tokenizer of {recipe.model.path} has neither a pad nor an end token, with which "
            "rows are filled up: name one in its tokenizer_config.json"
        )
    collator = Collator(
        train=train,
        noise=recipe.noise,
        conversations=recipe.conversations,
        schedule=schedule,
        global_batch=global_batch,
        seed=recipe.seed,
        mask_token_id=made.dream.mask_id,
        pad_token_id=pad_token_id,
        two_passes=recipe.soft_mask is not None,
        visits=visits,
    )
    return Data(schedule, collator, rows, Validation(collator, held_out, train.eval_batches))
