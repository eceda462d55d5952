"""Does soft-masking help on puzzles? One shared plain model, continued in many ways, three seeds.

    python benchmarks/evidence/puzzles.py countdown OUT --data ../shared/data/planning
    python benchmarks/evidence/puzzles.py sudoku OUT

OUT gets result.json (every seed, every puzzle), table.txt, plots and logs; runs and models go to
--work. An interrupted experiment goes on by the same command. Countdown is scored on Dream's test
files, Sudoku on puzzles made here, of three difficulties.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from common import (
    FEWER,
    HERE,
    Arm,
    Estimate,
    Task,
    draw,
    estimate,
    log_of,
    minus,
    percent,
    run_chains,
    seconds_of,
    training,
)
from rich.table import Table

from softmask import sudoku9
from softmask.puzzles import Puzzle, generate_sudoku_9x9, read_puzzles
from softmask.result_folder import claim, write
from softmask.sweep import parse_seeds
from softmask.tables import light_table

PLAIN, LONGER, REFERENCE = "plain", "plain-longer", "soft-3"
ARMS = (
    Arm(PLAIN, "(a) plain", is_soft=False),
    Arm(LONGER, "(b) plain, as long as (c)", is_soft=False),
    Arm("soft-1", "(c) soft, k = 1", ("soft_mask.k=1",)),
    Arm(REFERENCE, "(c) soft, k = 3"),
    Arm("keep-norm", "(d) soft, norm kept", ("soft_mask.keep_norm=true",)),
    Arm("always", "(e) always two passes", ("train.soft_probability=1.0",)),
)
# Scale 0 is raised to 1e-6: the feedback begins switched off.
PUBLISHED = Arm(
    "published",
    "(f) published inits, k = 1",
    (
        "soft_mask.k=1",
        "soft_mask.scale=0.0",
        "soft_mask.offset=-0.75",
        "soft_mask.steepness=6.66",
    ),
)
EXPERIMENTS = {"countdown": (*ARMS, PUBLISHED), "sudoku": ARMS}
# Held-out Sudokus by givens; of those with 30 about 3 % need more than naked and hidden singles.
GIVENS = {"sudoku_easy": 40, "sudoku_medium": 34, "sudoku_hard": 30}
SUDOKUS = {"sudoku_easy": 334, "sudoku_medium": 333, "sudoku_hard": 333}
COUNTDOWNS = {"cd3_test": 1000, "cd4_test": 1000}
COLOURS = dict(zip([arm.name for arm in (*ARMS, PUBLISHED)], range(10), strict=False))


def held_out_sudokus(level: str) -> Iterator[Puzzle]:
    """Sudokus of this level without end, none of them a twin of one that is trained on.

    Digging makes new bases: those that come with the package are for training.
    """
    rng = random.Random(f"held out/{level}")
    while True:
        base, _ = sudoku9.dig(rng)
        yield generate_sudoku_9x9(rng, GIVENS[level], base)


def write_puzzles(experiment: str, data: Path | None, share: float, folder: Path) -> None:
    """The files that are scored: the first `share` of every one."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = SUDOKUS if experiment == "sudoku" else COUNTDOWNS
    for name, size in sizes.items():
        target, count = folder / f"{name}.jsonl", max(2, round(share * size))
        if target.is_file():
            continue
        if experiment == "sudoku":
            puzzles = list(islice(held_out_sudokus(name), count))
        else:
            puzzles = read_puzzles(data / f"{name}.jsonl", "countdown")[:count]
        lines = [json.dumps({"input": p.input, "output": p.output}) + "\n" for p in puzzles]
        target.write_text("".join(lines))


class Runs:
    """Where everything lies, and how it is made."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.work, self.workers = args.experiment, args.work, args.workers
        self.arms = EXPERIMENTS[args.experiment]
        self.seeds = parse_seeds(args.seeds)
        self.more = args.more  # settings of every run, for tests
        self.puzzles = self.work / "puzzles"

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.work / f"{arm.name}-seed{seed}"

    def chain(self, arm: Arm, seed: int, settings: Sequence[str] = ()) -> list[Task]:
        """A run, and its scores."""
        folder, base = self.folder(arm, seed), self.work / "base" / "model"
        recipe = HERE / f"{self.name}-more.yaml"
        own = (f"model.path={base}", *arm.settings, *settings, *self.more)
        scores, python = folder / "scores.json", sys.executable
        command = (python, str(HERE / "score_puzzles.py"), str(folder / "model"), str(scores))
        untrained = ("--untrained",) if arm.name == PLAIN else ()
        return [
            training(recipe, folder, seed, own, arm.is_soft),
            Task((*command, "--data", str(self.puzzles), *untrained), scores),
        ]

    def run(self) -> None:
        """Everything; what is there is not made again."""
        base = HERE / f"{self.name}-base.yaml"
        run_chains([[training(base, self.work / "base", 1, self.more, True)]], 1)
        chains = [self.chain(a, s) for s in self.seeds for a in self.arms if a.name != LONGER]
        run_chains(chains, self.workers)
        longer = next(arm for arm in self.arms if arm.name == LONGER)
        setting = f"train.steps={self.updates_of_longer()}"
        run_chains([self.chain(longer, seed, [setting]) for seed in self.seeds], self.workers)

    def updates_of_longer(self) -> int:
        """As many as a plain run makes while the soft reference makes its own."""
        by_name = {arm.name: arm for arm in self.arms}

        def each(name: str) -> float:
            folders = [self.folder(by_name[name], seed) for seed in self.seeds]
            return statistics.median(seconds_of(f) / log_of(f)[-1]["step"] for f in folders)

        steps = log_of(self.folder(by_name[REFERENCE], self.seeds[0]))[-1]["step"]
        return round(steps * each(REFERENCE) / each(PLAIN))


class Scores:
    """What all runs reached: arrays of seeds x puzzles."""

    def __init__(self, runs: Runs) -> None:
        self.arms, self.seeds = runs.arms, runs.seeds
        self.raw = {
            arm.name: [
                json.loads((runs.folder(arm, seed) / "scores.json").read_text())
                for seed in runs.seeds
            ]
            for arm in runs.arms
        }
        first = self.raw[PLAIN][0]["cells"]
        self.groups = list(dict.fromkeys(cell["puzzles"] for cell in first))

    def cells(self, arm: str, mode: str, group: str, fewer: str) -> list[dict[str, Any]] | None:
        """One for each seed; None: not scored in this way."""
        wanted = (group, mode, fewer)
        found = [
            cell
            for run in self.raw[arm]
            for cell in run["cells"]
            if (cell["puzzles"], cell["mode"], cell["fewer"]) == wanted
        ]
        return found or None

    def solved(self, *which: str) -> list[list[float]] | None:
        cells = self.cells(*which)
        return None if cells is None else [[float(c) for c in cell["solved"]] for cell in cells]

    def accuracy(self, arm: str, mode: str, group: str, fewer: str) -> Estimate:
        return estimate(self.solved(arm, mode, group, fewer))

    def gain(self, arm: str, mode: str, group: str, fewer: str) -> Estimate:
        """Over the plain arm, paired by seed and puzzle (ablations solve the first of them)."""
        own, plain = self.solved(arm, mode, group, fewer), self.solved(PLAIN, "own", group, fewer)
        return estimate(minus(own, [row[: len(own[0])] for row in plain]))

    def forwards(self, arm: str, mode: str, group: str, fewer: str) -> float:
        return statistics.fmean(c["forwards"] for c in self.cells(arm, mode, group, fewer))

    def ways(self) -> Iterator[tuple[Arm, str, str]]:
        """(arm, mode, title) of everything that was scored."""
        titles = {
            "own": "{}",
            "off": "    feedback off",
            "shuffled": "    feedback shuffled",
            "untrained": "    with untrained soft-masking",
        }
        for arm in self.arms:
            for mode, title in titles.items():
                if self.cells(arm.name, mode, self.groups[0], "full") is not None:
                    yield arm, mode, title.format(arm.title)

    def table(self, group: str) -> Table:
        """Solved at every number of forwards; below it the gain over plain."""
        puzzles = len(self.raw[PLAIN][0]["cells"][0]["solved"])
        for cell in self.raw[PLAIN][0]["cells"]:
            if cell["puzzles"] == group:
                puzzles = len(cell["solved"])
        table = light_table(
            f"{group}: {puzzles} puzzles, {len(self.seeds)} seeds; solved, % (standard error), "
            "and minus (a), paired"
        )
        table.add_column("continued")
        for name in FEWER:
            plain = self.forwards(PLAIN, "own", group, name)
            table.add_column(f"{name}: {plain:.1f} forwards", justify="right")
        for arm, mode, title in self.ways():
            cells = []
            for fewer in FEWER:
                text = percent(self.accuracy(arm.name, mode, group, fewer))
                if (arm.name, mode) != (PLAIN, "own"):
                    text += f"\n{percent(self.gain(arm.name, mode, group, fewer), '+')}"
                cells.append(text)
            table.add_row(title, *cells)
        return table

    def numbers(self) -> list[dict[str, Any]]:
        return [
            {
                "arm": arm.name,
                "mode": mode,
                "puzzles": group,
                "fewer": fewer,
                "forwards": self.forwards(arm.name, mode, group, fewer),
                "solved": asdict(self.accuracy(arm.name, mode, group, fewer)),
                "minus_plain": asdict(self.gain(arm.name, mode, group, fewer)),
                "by_seed": [
                    statistics.fmean(row) for row in self.solved(arm.name, mode, group, fewer)
                ],
            }
            for arm, mode, _ in self.ways()
            for group in self.groups
            for fewer in FEWER
        ]

    def panel(self, group: str, axis: Any) -> None:
        """Accuracy against counted forwards; dotted: the reference with its feedback shuffled."""
        shown = [(arm, "own", "-") for arm in self.arms]
        shown += [(arm, "shuffled", ":") for arm in self.arms if arm.name == REFERENCE]
        for arm, mode, style in shown:
            which = [(arm.name, mode, group, fewer) for fewer in FEWER]
            accuracies = [self.accuracy(*w) for w in which]
            axis.errorbar(
                [self.forwards(*w) for w in which],
                [100 * a.mean for a in accuracies],
                yerr=[100 * a.error for a in accuracies],
                fmt=f"o{style}",
                color=f"C{COLOURS[arm.name]}",
                label=arm.title + (", shuffled" if mode == "shuffled" else ""),
                markersize=4,
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("forwards a puzzle")


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
                    color=f"C{COLOURS[arm.name]}",
                    label=arm.title if number == 0 else None,
                    linewidth=1,
                )
        axis.set_xlabel("update")

    titles = {"lambda": "mean lambda", "scale": "scale", "offset": "offset"}
    titles["steepness"] = "steepness"
    panels: dict[str, Callable[[Any], None]] = {
        title: partial(panel, key) for key, title in titles.items()
    }
    draw(panels, target, "")


def cost_table(runs: Runs) -> Table:
    """Seconds an update, and where lambda and the parameters end."""
    table = light_table("training, medians over the seeds: (b) has as many seconds as (c)")
    table.add_column("continued")
    for name in ("updates", "s an update", "lambda", "scale", "offset", "steepness"):
        table.add_column(name, justify="right")
    for arm in runs.arms:
        folders = [runs.folder(arm, seed) for seed in runs.seeds]
        steps = log_of(folders[0])[-1]["step"]
        each = statistics.median(seconds_of(folder) for folder in folders) / steps
        ends = [[line for line in log_of(folder) if "nats" in line][-1] for folder in folders]
        learned = [
            f"{statistics.median(end[key] for end in ends):.3f}" if key in ends[0] else ""
            for key in ("lambda", "scale", "offset", "steepness")
        ]
        table.add_row(arm.title, str(steps), f"{each:.3f}", *learned)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of cd3_test.jsonl and cd4_test.jsonl")
    parser.add_argument("--work", type=Path, help="of runs and models (default: OUT/work)")
    parser.add_argument("--seeds", default="1-3")
    parser.add_argument("--share", type=float, default=1.0, help="of the puzzles (default 1)")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--more", action="append", default=[], metavar="KEY=VALUE", help="of all")
    args = parser.parse_args()
    if args.experiment == "countdown" and args.data is None:
        parser.error("countdown needs --data, the folder of cd3_test.jsonl and cd4_test.jsonl")
    claim(args.out)
    args.work = args.work or args.out / "work"
    runs = Runs(args)
    write_puzzles(args.experiment, args.data, args.share, runs.puzzles)
    runs.run()
    report(runs, args.out)


def report(runs: Runs, out: Path) -> None:
    """Tables, plots and numbers of an experiment that has run."""
    scores = Scores(runs)
    panels = {group: partial(scores.panel, group) for group in scores.groups}
    draw(panels, out / "accuracy.png", "solved, %")
    draw_parameters(runs, out / "parameters.png")
    for arm in runs.arms:
        for seed in runs.seeds:
            log = runs.folder(arm, seed) / "log.jsonl"
            shutil.copy(log, out / f"{arm.name}-seed{seed}.log.jsonl")
    recipes = {name: (HERE / f"{runs.name}-{name}.yaml").read_text() for name in ("base", "more")}
    result = {
        "recipes": recipes,
        "arms": [asdict(arm) for arm in runs.arms],
        "seeds": runs.seeds,
        "updates_of_longer": runs.updates_of_longer(),
        "numbers": scores.numbers(),
        "raw": scores.raw,
    }
    tables = [*(scores.table(group) for group in scores.groups), cost_table(runs)]
    write(out, ["python", *sys.argv], result, tables)


if __name__ == "__main__":
    main()
