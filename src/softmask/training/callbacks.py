"""What is called as a training goes on: the log, the progress bar, evaluation at a stage's end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from ..files import append_line, read_json_lines, write_atomically
from .checkpoints import checkpoint_of
from .schedule import TrainingSchedule


class LogFile(TrainerCallback):
    """Writes log.jsonl, and without a progress bar prints the same lines by `report`."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.path, self.report = path, report
        self.started = time.perf_counter()

    def forget_after(self, step: int) -> None:
        """Drops lines that a stopped run logged after its checkpoint: those updates run again.

        Raises:
            ValueError: a line is damaged; with file and number.
        """
        if self.path.is_file():
            lines = [line for line in read_json_lines(self.path) if step and line["step"] <= step]
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            seconds = round(time.perf_counter() - self.started, 1)
            line = {"step": state.global_step, "seconds": seconds}
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


class ProgressBar(ProgressCallback):
    """transformers' progress bar with the last logged values behind it, not a line for each."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None:
            shown = {k: logs[k] for k in ("loss", "accuracy", "lambda", "scale") if k in logs}
            if "eval_loss" in logs:
                bar.write(f"update {state.global_step}: {_short(logs)}")
            bar.set_postfix(shown)


def _short(logs: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in logs.items() if k.startswith("eval_"))
