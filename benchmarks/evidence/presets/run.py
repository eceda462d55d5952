"""Do the presets of feedback help models that were not trained for them? See README.md.

    python benchmarks/evidence/presets/run.py OUT --plain MODEL MODEL MODEL [--work WORK]

What is done is not done again: the same command goes on after a kill. OUT gets result.json (every
model and puzzle) and table.txt; puzzles and scores lie in --work.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # what all experiments share
sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))  # the rule's arithmetic

from common import HERE, Estimate, Task, estimate, minus, percent, run_chains
from puzzles import write_lines
from rich.table import Table
from rule import gain, in_errors

from softmask.puzzles.held_out import unevaluated
from softmask.puzzles.puzzles import Puzzle, generate_puzzles, new_sudoku_9x9
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

BAR = 2.84
COUNT, GIVENS = 400, 30
FEWER = ("full", "1/4")
OFF = "off"
BUNDLED = HERE.parents[1] / "src" / "softmask" / "default"

Solved = dict[str, list[list[float]]]  # by number of forwards, models x puzzles


@dataclass(frozen=True)
class Arm:
    """Models of one training, the sets that they solve, and the presets that they are decoded by.

    The first preset is no feedback: what the others are compared with.
    """

    name: str
    models: tuple[Path, ...]
    sets: tuple[str, ...]
    presets: tuple[str, ...]


def arms_of(plain: Sequence[Path]) -> tuple[Arm, ...]:
    """The table of README.md."""
    presets = (OFF, "spherical", "rcd")
    sets = ("sudoku_9x9", "countdown_3", "countdown_4")
    return (
        Arm("bundled", (BUNDLED,), sets, (*presets, "published")),
        Arm("plain", tuple(plain), sets[:1], presets),
    )


def fresh(name: str) -> Iterator[Puzzle]:
    """Puzzles of a set without end."""
    rng = random.Random(f"held out/presets/{name}")
    if name == "sudoku_9x9":
        while True:
            yield new_sudoku_9x9(rng, GIVENS)
    yield from generate_puzzles(rng.getrandbits(60), {name: 1.0})


def folder_of(work: Path, arm: Arm, model: int, name: str) -> Path:
    """Where a model's scores of a set lie, a file for each preset."""
    return work / f"{arm.name}-{model}" / name


def scoring(work: Path, arm: Arm, model: int, name: str, preset: str) -> Task:
    """All puzzles of a set by one model with one preset."""
    scores = folder_of(work, arm, model, name) / f"{preset}.json"
    words = [str(HERE / "score_puzzles.py"), str(arm.models[model]), str(scores)]
    words += ["--data", str(work / "puzzles" / name), "--modes", f"preset-{preset}"]
    words += ["--fewer", ",".join(FEWER), "--dtype", "float32"]
    return Task((sys.executable, *words), scores)


def read(work: Path, arm: Arm, name: str, preset: str) -> tuple[Solved, dict[str, float]]:
    """What all models solved of a set with one preset, and their forwards a puzzle."""
    solved: Solved = {fewer: [] for fewer in FEWER}
    forwards: dict[str, float] = {}
    for model in range(len(arm.models)):
        file = folder_of(work, arm, model, name) / f"{preset}.json"
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            solved[cell["fewer"]].append([float(one) for one in cell["solved"]])
            forwards[cell["fewer"]] = cell["forwards"]
    return solved, forwards


def verdict(errors: float) -> str:
    """The rule of README.md, whichever way it falls."""
    if abs(errors) < BAR:
        return "not told apart"
    return "helps" if errors > 0 else "harms"


@dataclass(frozen=True)
class Row:
    """A way of decoding some models, beside the same weights without feedback."""

    model: str
    puzzles: str
    feedback: str
    forwards: dict[str, float]
    solved: dict[str, Estimate]
    minus_off: dict[str, Estimate]
    mean_minus_off: Estimate
    in_errors: float
    verdict: str

    def cells(self) -> list[str]:
        """Of the table."""
        shown = [self.feedback, *(percent(one) for one in self.solved.values())]
        if self.feedback == OFF:
            return shown
        shown += [percent(one, "+") for one in self.minus_off.values()]
        return [*shown, percent(self.mean_minus_off, "+"), f"{self.in_errors:+.2f}", self.verdict]


def table_of(rows: Sequence[Row]) -> Table:
    """All ways of the same models on the same set."""
    table = light_table(f"{rows[0].model}, {rows[0].puzzles}: solved, %, and points minus off")
    table.add_column("feedback")
    for column in (*FEWER, *(f"minus off, {fewer}" for fewer in FEWER), "mean", "in errors"):
        table.add_column(column, justify="right")
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells())
    return table


def rows_of(work: Path, arm: Arm, name: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """All presets of an arm on a set, and every puzzle of each."""
    found = {preset: read(work, arm, name, preset) for preset in arm.presets}
    off, _ = found[OFF]
    rows, raw = [], []
    for preset, (on, forwards) in found.items():
        both = gain(on, off)
        errors = in_errors(both)
        rows.append(
            Row(
                arm.name,
                name,
                preset,
                forwards,
                {fewer: estimate(on[fewer]) for fewer in FEWER},
                {fewer: estimate(minus(on[fewer], off[fewer])) for fewer in FEWER},
                both,
                errors,
                verdict(errors),
            )
        )
        raw.append({"model": arm.name, "puzzles": name, "feedback": preset, "solved": on})
    return rows, raw


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--plain", type=Path, nargs="+", required=True, help="models trained so")
    parser.add_argument("--work", type=Path, help="of puzzles and scores (default: OUT/work)")
    parser.add_argument("--count", type=int, default=COUNT, help="puzzles of a set")
    parser.add_argument("--workers", type=int, default=2, help="side by side, a thread each")
    args = parser.parse_args(argv)
    work = args.work or args.out / "work"
    arms = arms_of(args.plain)
    for name in arms[0].sets:
        target = work / "puzzles" / name / f"{name}.jsonl"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_lines(target, islice(unevaluated(fresh(name)), args.count))
    run_chains(
        [
            [scoring(work, arm, model, name, preset)]
            for arm in arms
            for name in arm.sets
            for model in range(len(arm.models))
            for preset in arm.presets
        ],
        args.workers,
    )
    rows, raw, tables = [], [], []
    for arm in arms:
        for name in arm.sets:
            some, every = rows_of(work, arm, name)
            rows += some
            raw += every
            tables.append(table_of(some))
    claim(args.out)
    result = {"bar": BAR, "rows": [asdict(row) for row in rows], "raw": raw}
    write(args.out, ["python", *sys.argv], result, tables)


if __name__ == "__main__":
    main()
