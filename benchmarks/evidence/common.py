"""What the experiments share: jobs side by side, standard errors, the look of tables and plots."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FEWER = {"full": 1, "1/2": 2, "1/4": 4, "1/8": 8}


@dataclass(frozen=True)
class Arm:
    """A way of continuing the shared checkpoint: settings of the recipe, as for --set."""

    name: str
    title: str
    settings: tuple[str, ...] = ()
    is_soft: bool = True


@dataclass(frozen=True)
class Task:
    """A command and the file that is there when it has been done."""

    command: tuple[str, ...]
    product: Path


def training(recipe: Path, folder: Path, seed: int, settings: Iterable[str], soft: bool) -> Task:
    """`softmask train` on one thread; a run that was stopped goes on where it was."""
    options = [word for setting in settings for word in ("--set", setting)]
    binary = [] if soft else ["--no-soft-mask"]
    where = ["--seed", str(seed), "--threads", "1", "--device", "cpu", "--out", str(folder)]
    command = (sys.executable, "-m", "softmask", "train", str(recipe), *where, *binary, *options)
    return Task(command, folder / "done.json")


def run_chains(chains: Sequence[Sequence[Task]], workers: int) -> None:
    """Runs chains of tasks, `workers` chains at a time; what is done is not done again.

    Raises:
        RuntimeError: a task failed. The others were still run.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

    def run(chain: Sequence[Task]) -> str | None:
        for task in chain:
            if task.product.is_file():
                continue
            done = subprocess.run(task.command, env=environment, capture_output=True, text=True)
            if done.returncode or not task.product.is_file():
                said = (done.stderr or done.stdout)[-2000:]
                return f"{' '.join(task.command)} failed ({done.returncode}): {said}"
            print(f"done: {task.product}", flush=True)
        return None

    with ThreadPoolExecutor(workers) as pool:
        ended = [future.result() for future in as_completed(pool.submit(run, c) for c in chains)]
    failed = [error for error in ended if error is not None]
    if failed:
        raise RuntimeError("\n".join(failed))


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    error: float


def estimate(values_SN: Sequence[Sequence[float]]) -> Estimate:
    """Mean of a table of seeds x items, with a standard error that knows both.

    The variance of the mean is that over seeds plus that over items, each taken from its own
    means: the noise of a single cell is counted twice, so it is never too small in expectation.
    With one seed it knows items alone.
    """
    seeds = [statistics.fmean(row) for row in values_SN]
    items = [statistics.fmean(column) for column in zip(*values_SN, strict=True)]
    variance = statistics.variance(items) / len(items)
    if len(seeds) > 1:
        variance += statistics.variance(seeds) / len(seeds)
    return Estimate(statistics.fmean(seeds), math.sqrt(variance))


def minus(a_SN: Sequence[Sequence[float]], b_SN: Sequence[Sequence[float]]) -> list[list[float]]:
    """Pairs by seed and item."""
    return [
        [x - y for x, y in zip(row_a, row_b, strict=True)]
        for row_a, row_b in zip(a_SN, b_SN, strict=True)
    ]


def percent(found: Estimate, sign: str = "") -> str:
    """44.1 (1.2)"""
    return f"{100 * found.mean:{sign}.1f} ({100 * found.error:.1f})"


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def seconds_of(folder: Path) -> float:
    """Seconds of the updates alone: evaluations and checkpoints lie between the log's lines."""
    lines = [line for line in log_of(folder) if "nats" in line]
    steps = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(lines)
    ]
    return statistics.median(steps) * lines[-1]["step"]


def draw(panels: dict[str, Callable[[Any], None]], target: Path, ylabel: str) -> None:
    """Panels side by side under one legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False).flatten()
    for (title, panel), axis in zip(panels.items(), axes, strict=True):
        panel(axis)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(target, dpi=100)
