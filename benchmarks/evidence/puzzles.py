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
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from common import (
    ARMS,
    COLOURS,
    FEWER,
    HERE,
    PLAIN,
    REFERENCE,
    Arm,
    Estimate,
    Runs,
    add_run_options,
    cost_table,
    draw,
    estimate,
    minus,
    percent,
)
from rich.table import Table

from softmask.files import write_atomically
from softmask.puzzles.puzzles import Puzzle, new_sudoku_9x9, read_puzzles
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

# Held-out Sudokus by givens; of those with 30 about 3 % need more than naked and hidden singles.
GIVENS = {"sudoku_easy": 40, "sudoku_medium": 34, "sudoku_hard": 30}
SUDOKUS = {"sudoku_easy": 334, "sudoku_medium": 333, "sudoku_hard": 333}
COUNTDOWNS = {"cd3_test": 1000, "cd4_test": 1000}


def held_out_sudokus(name: str, givens: int) -> Iterator[Puzzle]:
    """Sudokus of this name without end, none of them a twin of one that is trained on."""
    rng = random.Random(f"held out/{name}")
    while True:
        yield new_sudoku_9x9(rng, givens)


def write_lines(target: Path, puzzles: Iterable[Puzzle]) -> None:
    """A file that is scored; whole, or not there."""
    lines = [json.dumps({"input": p.input, "output": p.output}) + "\n" for p in puzzles]
    write_atomically(target, "".join(lines))


def write_puzzles(experiment: str, data: Path | None, share: float, folder: Path) -> None:
    """The files that are scored: the first `share` of every one."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = SUDOKUS if experiment == "sudoku" else COUNTDOWNS
    for name, size in sizes.items():
        target, count = folder / f"{name}.jsonl", max(8, round(share * size))
        if target.is_file():
            continue
        if experiment == "sudoku":
            puzzles = list(islice(held_out_sudokus(name, GIVENS[name]), count))
        else:
            puzzles = read_puzzles(data / f"{name}.jsonl", "countdown")[:count]
        write_lines(target, puzzles)


class Scores:
    """What all runs reached: arrays of seeds x puzzles."""

    def __init__(self, runs: Runs, names: Sequence[str] = ("scores",)) -> None:
        """`names` of the files in each run's folder."""
        self.arms, self.seeds = runs.arms, runs.seeds
        self.raw = runs.raw(names)
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
            "half": "    at half the learned scale",
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
        puzzles = len(self.solved(PLAIN, "own", group, "full")[0])
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
                color=COLOURS[arm.name],
                label=arm.title + (", shuffled" if mode == "shuffled" else ""),
                markersize=4,
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel("forwards a puzzle")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=("countdown", "sudoku"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder of cd3_test.jsonl and cd4_test.jsonl")
    add_run_options(parser, ARMS)
    parser.add_argument("--share", type=float, default=1.0, help="of the puzzles (default 1)")
    args = parser.parse_args()
    if args.experiment == "countdown" and args.data is None:
        parser.error("countdown needs --data, the folder of cd3_test.jsonl and cd4_test.jsonl")
    for name in COUNTDOWNS if args.experiment == "countdown" else ():
        if not (args.data / f"{name}.jsonl").is_file():
            parser.error(f"{args.data} holds no {name}.jsonl: give --data Dream's planning files")
    claim(args.out)
    files = (args.work or args.out / "work") / "puzzles"
    write_puzzles(args.experiment, args.data, args.share, files)

    def score(arm: Arm, model: Path, out: Path) -> list[str]:
        command = [str(HERE / "score_puzzles.py"), str(model), str(out), "--data", str(files)]
        return [*command, "--untrained"] if arm.name == PLAIN else command

    runs = Runs(args.experiment, args)
    runs.run(score)
    report(runs, args.out)


def report(runs: Runs, out: Path) -> None:
    """Tables, plots and numbers of an experiment that has run."""
    scores = Scores(runs)
    panels = {group: partial(scores.panel, group) for group in scores.groups}
    draw(panels, out / "accuracy.png", "solved, %")
    result = {**runs.describe(out), "numbers": scores.numbers(), "raw": scores.raw}
    tables = [*(scores.table(group) for group in scores.groups), cost_table(runs)]
    write(out, ["python", *sys.argv], result, tables)


if __name__ == "__main__":
    main()
