"""What is called as a training goes on: the log, the progress bar, notes, the end of a stage."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..files import append_line, read_json_lines, write_atomically
from .checkpoints import checkpoint_of
from .schedule import TrainingSchedule

# A mean lambda below this gave half or less of the gain at 0.3 (docs/EVIDENCE.md, text).
LITTLE_LAMBDA = 0.1
NOTE_AT = 20  # updates
SHOWN = ("loss", "accuracy", "lambda")  # behind the progress bar


class LogFile(TrainerCallback):
    """Writes log.jsonl, and without a progress bar prints the same lines by `report`.

    `seconds` are those of all starts of the run together, up to the last line of each.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path, self.report = path, report
        self.started, self.seconds_before = time.perf_counter(), 0.0

    def forget_after(self, step: int) -> None:
        """Drops lines that a stopped run logged after its checkpoint: those updates run again.

        The seconds go on where the last line that is left has them.

        Raises:
            ValueError: a line is damaged; with file and number.
        """
        if self.path.is_file():
            lines = [line for line in read_json_lines(self.path) if step and line["step"] <= step]
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in lines))
            self.seconds_before = lines[-1]["seconds"] if lines else 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            seconds = self.seconds_before + time.perf_counter() - self.started
            line = {"step": state.global_step, "seconds": round(seconds, 1)}
            line |= {k: _rounded(v) for k, v in logs.items() if k != "total_flos"}
            append_line(self.path, json.dumps(line))
            if args.disable_tqdm:
                self.report(json.dumps(line))


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


class StageEnds(TrainerCallback):
    """Evaluates at the end of every stage, and so at the end of the run."""

    def __init__(self, schedule: TrainingSchedule) -> None:
        self.ends = {stage.start + stage.steps for stage in schedule.stages}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_evaluate |= state.global_step in self.ends
        return control


class BestCheckpoint(TrainerCallback):
    """Finds the best checkpoint of a run that goes on by its update: the folder may have moved."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.best_global_step:
            best = checkpoint_of(self.folder, state.best_global_step)
            if best.is_dir():
                state.best_model_checkpoint = str(best)


class NewLength(TrainerCallback):
    """The learning rate of the schedule as it is now: a checkpoint brings the old one's."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:
            return
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        scheduler = getattr(scheduler, "scheduler", scheduler)  # inside accelerate's
        step = scheduler.last_epoch
        rates = [
            base * rate(step)
            for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates


class FeedbackNote(TrainerCallback):
    """Says early if the mean lambda is so small that soft-masking has hardly an effect."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report, self.was_said = report, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.was_said or "lambda" not in logs or not state.is_world_process_zero:
            return
        is_late = state.global_step >= min(NOTE_AT, state.max_steps)
        if is_late and logs["lambda"] < LITTLE_LAMBDA:
            self.was_said = True
            mixed, entropy = logs["lambda"], logs["entropy"]
            self.report(
                f"note: mean lambda is {mixed:.2g} at an entropy of {entropy:.2g} nats: the "
                "feedback is hardly let in. Begin with train.fit_soft_mask: true, or with "
                f"soft_mask.scale near 0.5, soft_mask.offset near {-entropy:.2g} and "
                "soft_mask.steepness near 1 (docs/guides/fine-tune.md)"
            )


class Interrupt(TrainerCallback):
    """Ctrl-C ends a run at the end of its update, with a checkpoint; a second one at once."""

    def __init__(self) -> None:
        self.was_asked = False

    @contextlib.contextmanager
    def on_signal(self, is_alone: bool) -> Iterator[None]:
        """Inside the block SIGINT is a wish.

        Processes beside each other would stop at different updates, and a thread has no signals:
        there a Ctrl-C ends everything, and the run goes on from its last checkpoint.
        """
        if not is_alone or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, _number: int, _frame: Any) -> None:
        if self.was_asked:
            raise KeyboardInterrupt
        self.was_asked = True
        if sys.stderr.isatty():
            # Not by print(): the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this update; Ctrl-C again stops at once\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if self.was_asked:
            control.should_save = control.should_training_stop = True
        return control


class ProgressBar(ProgressCallback):
    """transformers' progress bar with the last logged values, on one line of 80 columns."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps,
                dynamic_ncols=True,
                bar_format="{n_fmt}/{total_fmt} {bar} {desc}{remaining} left",
            )
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        bar: Any = self.training_bar
        if not state.is_world_process_zero or bar is None:
            return
        if "eval_loss" in logs:
            bar.write(f"update {state.global_step}: {_short(logs)}")
        shown = [f"{name} {logs[name]:.3g}" for name in SHOWN if name in logs]
        if shown:
            bar.set_description_str("  ".join(shown) + "  ")


def _short(logs: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in logs.items() if k.startswith("eval_"))
