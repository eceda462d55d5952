"""What the experiments share: jobs side by side, standard errors, the look of tables and plots."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import colormaps
from matplotlib.colors import to_hex
from rich.table import Table

from softmask.reporting.plots import new_figure
from softmask.reporting.tables import light_table
from softmask.training.sweep import parse_seeds

T = TypeVar("T")
Score = Callable[["Arm", Path, Path], list[str]]  # from (arm, model, out) to a command's words
HERE = Path(__file__).parent
FEWER = {"full": 1, "1/2": 2, "1/4": 4, "1/8": 8}


@dataclass(frozen=True)
class Arm:
    """A way of continuing the shared checkpoint: settings of the recipe, as for --set.

    `needs` are the arms that it is compared with, or takes its number of updates from.
    """

    name: str
    title: str
    settings: tuple[str, ...] = ()
    is_soft: bool = True
    needs: tuple[str, ...] = ("plain",)


PLAIN, LONGER, REFERENCE = "plain", "plain-longer", "soft-3"
ARMS = (
    Arm(PLAIN, "(a) plain", is_soft=False, needs=()),
    Arm(LONGER, "(b) plain, as long as (c)", is_soft=False, needs=(PLAIN, REFERENCE)),
    Arm("soft-1", "(c) soft, k = 1", ("soft_mask.k=1",)),
    Arm(REFERENCE, "(c) soft, k = 3"),
    Arm("keep-norm", "(d) soft, norm kept", ("soft_mask.mixture=norm_kept",)),
    Arm("always", "(e) always two passes", ("train.soft_probability=1.0",)),
    Arm(
        # Scale 0 is raised to 1e-6: the feedback begins switched off.
        "published",
        "(f) published inits, k = 1",
        (
            "soft_mask.k=1",
            "soft_mask.scale=0.0",
            "soft_mask.offset=-0.75",
            "soft_mask.steepness=6.66",
        ),
    ),
    Arm("deep", "(g) feedback of 1 to 3 passes", ("train.feedback_passes=3",)),
    Arm(
        # Text leaves more than a nat open at most places: from offset -1 lambda stays below 0.1.
        "wide",
        "(h) soft, k = 3, at any entropy",
        ("soft_mask.scale=0.6", "soft_mask.offset=-6.0", "soft_mask.steepness=0.7"),
    ),
)


def colours(known: Sequence[Arm]) -> dict[str, str]:
    """The colour of each arm, whichever of them are drawn: no two alike among 30."""

    def one(number: int) -> str:
        if number < 10:
            return f"C{number}"
        at = (number - 10) * 2
        return to_hex(colormaps["tab20b"].colors[at % 20 + at // 20])

    return {arm.name: one(number) for number, arm in enumerate(known)}


COLOURS = colours(ARMS)


@dataclass(frozen=True)
class Task:
    """A command and the file that is there when it has been done."""

    command: tuple[str, ...]
    product: Path


def training(
    recipe: Path, folder: Path, seed: int, settings: Iterable[str], soft: bool, device: str
) -> Task:
    """`softmask train` on one thread; a run that was stopped goes on where it was.

    Settings are often those of all runs: a model that continues another one has the shape of that.
    """
    settings = list(settings)
    if any(setting.startswith("model.path=") for setting in settings):
        settings = [setting for setting in settings if not setting.startswith("model.shape.")]
    options = [word for setting in settings for word in ("--set", setting)]
    plain = [] if soft else ["--no-soft-mask"]
    where = ["--seed", str(seed), "--threads", "1", "--device", device, "--out", str(folder)]
    command = (sys.executable, "-m", "softmask", "train", str(recipe), *where, *plain, *options)
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
            # Beside the run's folder: it can be watched, and outlives a kill.
            folder = task.product.parent
            folder.parent.mkdir(parents=True, exist_ok=True)
            said = folder.with_name(f"{folder.name}.{task.product.stem}.out")
            with said.open("w") as out:
                done = subprocess.run(task.command, env=environment, stdout=out, stderr=out)
            if done.returncode or not task.product.is_file():
                end = said.read_text()[-2000:]
                return f"{' '.join(task.command)} failed ({done.returncode}): {end}"
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
    """Seconds of an update, the median between two lines of the log: most hold nothing else."""
    lines = [line for line in log_of(folder) if "nats" in line]
    steps = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(lines)
    ]
    return statistics.median(steps)


def draw(panels: dict[str, Callable[[Any], None]], target: Path, ylabel: str) -> None:
    """Panels side by side under one legend."""
    figure = new_figure(4.6 * len(panels), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False).flatten()
    for (title, panel), axis in zip(panels.items(), axes, strict=True):
        panel(axis)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(4, len(panels) + 1)  # what fits its width
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
    figure.savefig(target, dpi=100)


def evenly(items: Sequence[T], count: int) -> Sequence[T]:
    """At most `count` of them, from beginning to end."""
    return items[:: max(1, len(items) // max(1, count))][:count]


def folder_of(work: Path, arm: str, seed: int) -> Path:
    """Where a run lies."""
    return work / f"{arm}-seed{seed}"


def add_arm_options(
    parser: argparse.ArgumentParser, arms: Sequence[Arm], known: Sequence[Arm] = ARMS
) -> None:
    """Which runs: `arms` are those of the known that are meant when nothing is said."""
    chosen, some = partial(chosen_arms, known=known), f"{known[0].name},{known[1].name},..."
    parser.add_argument("--arms", type=chosen, default=arms, help=some)
    parser.add_argument("--seeds", default="1-3")
    parser.add_argument("--device", default="cpu", help="of training and scoring")


def add_run_options(
    parser: argparse.ArgumentParser, arms: Sequence[Arm], known: Sequence[Arm] = ARMS
) -> None:
    """What every experiment takes that makes runs."""
    add_arm_options(parser, arms, known)
    parser.add_argument("--recipes", metavar="NAME", help="NAME-base.yaml and NAME-more.yaml here")
    parser.add_argument("--base", type=Path, help="model that the shared one begins as")
    parser.add_argument("--batch", type=int, help="decoded side by side (default: by experiment)")
    parser.add_argument("--work", type=Path, help="of runs and models (default: OUT/work)")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--more", action="append", default=[], metavar="KEY=VALUE", help="of all")


def chosen_arms(names: str, known: Sequence[Arm] = ARMS) -> tuple[Arm, ...]:
    """The arms of these names, in their own order.

    Raises:
        argparse.ArgumentTypeError: a name is unknown, or what others are compared with is missing.
    """
    wanted = set(names.split(","))
    unknown = sorted(wanted - {arm.name for arm in known})
    if unknown:
        there = ", ".join(arm.name for arm in known)
        raise argparse.ArgumentTypeError(f"no arm {', '.join(unknown)}: there are {there}")
    chosen = tuple(arm for arm in known if arm.name in wanted)
    for arm in chosen:
        for needed in sorted(set(arm.needs) - wanted):
            raise argparse.ArgumentTypeError(f"{arm.name} is compared with {needed}: name it too")
    return chosen


class Runs:
    """The runs of an experiment: where they lie, and how they are made."""

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        more: Sequence[str] = (),
        known: Sequence[Arm] = ARMS,
    ) -> None:
        """What `add_run_options` read.

        `name`: of the recipes, where none is given; `more`: settings of every run; `known`: all
        arms of the experiment.
        """
        self.name, self.arms, self.seeds = args.recipes or name, args.arms, parse_seeds(args.seeds)
        self.work, self.workers = args.work or args.out / "work", args.workers
        self.device, self.begins_as = args.device, args.base
        self.more, self.batch = [*more, *args.more], args.batch
        self.colours = colours(known)

    def folder(self, arm: Arm, seed: int) -> Path:
        return folder_of(self.work, arm.name, seed)

    def trained(
        self, arm: Arm, seed: int, settings: Sequence[str] = (), folder: Path | None = None
    ) -> Task:
        """A run, in its own folder or in another one."""
        recipe = HERE / f"{self.name}-more.yaml"
        own = (f"model.path={self.work / 'base' / 'model'}", *self.more, *arm.settings, *settings)
        where = folder or self.folder(arm, seed)
        return training(recipe, where, seed, own, arm.is_soft, self.device)

    def scored(self, arm: Arm, seed: int, name: str, score: Score) -> Task:
        """The scores of a run that `score` makes: NAME.json in its folder."""
        folder = self.folder(arm, seed)
        scores = folder / f"{name}.json"
        command = [sys.executable, *score(arm, folder / "model", scores)]
        command += ["--device", self.device]
        command += [] if self.batch is None else ["--batch", str(self.batch)]
        return Task(tuple(command), scores)

    def make_base(self) -> None:
        """The plain model that every arm continues."""
        recipe = HERE / f"{self.name}-base.yaml"
        begins = []
        if self.begins_as is not None:  # in place of the recipe's model made from nothing
            begins = ["model.shape={}", f"model.path={self.begins_as}"]
        settings = [*self.more, *begins]
        shared = training(recipe, self.work / "base", 1, settings, True, self.device)
        run_chains([[shared]], 1)

    def run(self, score: Score) -> None:
        """Everything, up to each run's scores; what is there is not made again."""

        def chain(arm: Arm, seed: int, settings: Sequence[str] = ()) -> list[Task]:
            return [self.trained(arm, seed, settings), self.scored(arm, seed, "scores", score)]

        self.make_base()
        first = [arm for arm in self.arms if arm.name != LONGER]
        run_chains([chain(arm, seed) for seed in self.seeds for arm in first], self.workers)
        for arm in self.arms:
            if arm.name == LONGER:
                setting = f"train.steps={self.updates_of_longer()}"
                chains = [chain(arm, seed, [setting]) for seed in self.seeds]
                run_chains(chains, self.workers)

    def updates_of_longer(self) -> int:
        """As many as a plain run makes while the soft reference makes its own."""
        reference = self.of(REFERENCE)
        steps = log_of(self.folder(reference, self.seeds[0]))[-1]["step"]
        return round(steps * self.seconds(reference) / self.seconds(self.of(PLAIN)))

    def of(self, name: str) -> Arm:
        (found,) = (arm for arm in self.arms if arm.name == name)
        return found

    def seconds(self, arm: Arm) -> float:
        """Of an update; the median over the seeds."""
        return statistics.median(seconds_of(self.folder(arm, seed)) for seed in self.seeds)

    def raw(self, names: Sequence[str] = ("scores",)) -> dict[str, list[dict[str, Any]]]:
        """The scores of every arm, in the order of the seeds; of several files, all their cells."""

        def of(folder: Path) -> dict[str, Any]:
            files = [folder / f"{name}.json" for name in names]
            parts = [json.loads(file.read_text()) for file in files if file.is_file()]
            return {**parts[0], "cells": [cell for part in parts for cell in part["cells"]]}

        return {arm.name: [of(self.folder(arm, s)) for s in self.seeds] for arm in self.arms}

    def describe(self, out: Path) -> dict[str, Any]:
        """What a result says of its runs; their logs and their plot go to `out`."""
        for arm in self.arms:
            for seed in self.seeds:
                log = self.folder(arm, seed) / "log.jsonl"
                shutil.copy(log, out / f"{arm.name}-seed{seed}.log.jsonl")
        draw_parameters(self, out / "parameters.png")
        recipes = {n: (HERE / f"{self.name}-{n}.yaml").read_text() for n in ("base", "more")}
        longer = any(arm.name == LONGER for arm in self.arms)
        return {
            "recipes": recipes,
            "arms": [asdict(arm) for arm in self.arms],
            "seeds": list(self.seeds),
            "updates_of_longer": self.updates_of_longer() if longer else None,
        }


def draw_parameters(runs: Runs, target: Path) -> None:
    """Mean lambda and the learned parameters over the updates, a line for every seed."""
    soft = [arm for arm in runs.arms if arm.is_soft]

    def panel(key: str, axis: Any) -> None:
        for arm in soft:
            for number, seed in enumerate(runs.seeds):
                lines = [line for line in log_of(runs.folder(arm, seed)) if key in line]
                axis.plot(
                    [line["step"] for line in lines],
                    [line[key] for line in lines],
                    color=runs.colours[arm.name],
                    label=arm.title if number == 0 else None,
                    linewidth=1,
                )
        axis.set_xlabel("update")

    keys = ("lambda", "scale", "offset", "steepness")
    draw({key: partial(panel, key) for key in keys}, target, "")


def cost_table(runs: Runs, said: str = "(b) has as many seconds as (c)") -> Table:
    """Seconds an update, and where lambda and the parameters end."""
    table = light_table(f"training, medians over the seeds: {said}")
    table.add_column("continued")
    for name in ("updates", "s an update", "lambda", "scale", "offset", "steepness"):
        table.add_column(name, justify="right")
    for arm in runs.arms:
        folders = [runs.folder(arm, seed) for seed in runs.seeds]
        steps = log_of(folders[0])[-1]["step"]
        each = runs.seconds(arm)
        ends = [[line for line in log_of(folder) if "nats" in line][-1] for folder in folders]
        learned = [
            f"{statistics.median(end[key] for end in ends):.3f}" if key in ends[0] else ""
            for key in ("lambda", "scale", "offset", "steepness")
        ]
        table.add_row(arm.title, str(steps), f"{each:.3f}", *learned)
    return table
