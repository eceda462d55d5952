"""softmask demo: puzzles and stories being denoised, then how often plain and soft solve puzzles.

Shows the bundled model solving Sudoku and Countdown puzzles, going on with a story and filling
the holes of another, and prints its accuracy on puzzles, plain against soft-masked, at full, half
and quarter steps. The puzzles that are scored are in no training run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..decoding.generation import Generation
from ..hub.load import load
from ..models.checkpoint import Checkpoint
from ..puzzles.puzzles import (
    Puzzle,
)
from ..puzzles.solve import (
    ALG,
    STORY,
    STORY_TOKENS,
    DEMO_KINDS,
    GIVENS,
    answer_in,
    file_puzzles,
    fresh_puzzles,
    is_right,
    name_of,
    score,
    shown_puzzles,
    solve,
)
from ..reporting.tables import light_table
from .live_view import LiveView
from .options import new_parser

PUZZLES = 24  # of each kind, in the table
FRACTIONS = {"full": 1, "half": 2, "quarter": 4}
HOLED_STORY = "One day,[[6]] went to the park. He was very happy because[[8]]."
STORY_SEED, HOLES_SEED = 14, 0


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("demo", __doc__)
    parser.add_argument("--model", help="another folder or Hub id than the bundled model")
    parser.add_argument("--puzzles", type=int, help="fresh puzzles of each kind for the table (24)")
    parser.add_argument("--kinds", help="sudoku_9x9,countdown_3,...: these alone (default: all)")
    parser.add_argument("--givens", type=int, help="of the 9x9 Sudokus, 28 (hard) to 80 (32)")
    parser.add_argument("--files", type=Path, help="score Dream's evaluation files in this folder")
    parser.add_argument("--limit", type=int, help="with --files: at most this many of each file")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    idle: tuple[str, ...] = ("limit",)
    where = "only with --files"
    if args.files is not None:
        idle, where = ("givens", "kinds", "puzzles"), "not with --files"
    for name in idle:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} has a meaning {where}: leave it out")
    count = PUZZLES if args.puzzles is None else args.puzzles
    if count < 1 or (args.limit is not None and args.limit < 1):
        raise ValueError("--puzzles and --limit must be at least 1")
    console = Console()
    checkpoint = load(args.model)
    if args.files is not None:
        groups = file_puzzles(args.files, args.limit)
    else:
        kinds = DEMO_KINDS if args.kinds is None else tuple(args.kinds.split(","))
        givens = GIVENS if args.givens is None else args.givens
        fresh = fresh_puzzles(1, kinds, givens)
        listed = [puzzle for puzzle in shown_puzzles() if name_of(puzzle) in kinds]
        for puzzle in [*fresh.get("sudoku_9x9", ()), *listed]:
            _show(checkpoint, puzzle, console)
        if args.kinds is None:
            _show_stories(checkpoint, console)
        console.print(
            f"Now {count} fresh puzzles of each kind beside these, plain and soft-masked."
        )
        groups = fresh_puzzles(count, kinds, givens)
        for puzzle in listed:
            groups[name_of(puzzle)].append(puzzle)
    rows = scores(checkpoint, groups, console)
    console.print(table_of(rows))
    if args.json:
        print(json.dumps({"model": checkpoint.name, "alg": ALG, "rows": rows}), file=sys.stdout)
    return 0


def scores(
    checkpoint: Checkpoint, groups: dict[str, list[Puzzle]], console: Console
) -> list[dict[str, Any]]:
    """Plain and soft-masked accuracy of each group at full, half and quarter steps.

    A terminal shows how far it is; elsewhere the console stays silent.
    """
    rows: list[dict[str, Any]] = []
    cells = [(name, label) for name in groups for label in FRACTIONS]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(len(groups[name]) for name, _ in cells))
        for name, label in cells:
            puzzles, fraction = groups[name], FRACTIONS[label]
            progress.update(task, description=f"{name}, {label} steps")
            plain = score(checkpoint, puzzles, fraction, None)
            soft = score(checkpoint, puzzles, fraction, checkpoint.soft_mask)
            rows.append(
                {
                    "puzzles": name,
                    "n": len(puzzles),
                    "steps": label,
                    "plain": plain.accuracy,
                    "plain_error": plain.error,
                    "plain_forwards": plain.forwards,
                    "soft": soft.accuracy,
                    "soft_error": soft.error,
                    "soft_forwards": soft.forwards,
                }
            )
            progress.advance(task, len(puzzles))
    return rows


def table_of(rows: Sequence[dict]) -> Table:
    """The rows of `scores` for people: per cent with standard errors."""
    table = light_table("solved, % (standard error)")
    for column in ("puzzles", "n", "steps", "plain", "forwards", "soft-masked", "forwards"):
        left = column in ("puzzles", "steps")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        cells = [row["puzzles"], str(row["n"]), row["steps"]]
        for mode in ("plain", "soft"):
            cells.append(f"{100 * row[mode]:.1f} ({100 * row[mode + '_error']:.1f})")
            cells.append(f"{row[mode + '_forwards']:.1f}")
        table.add_row(*cells, end_section=row["steps"] == "quarter")
    return table


def _watch(run: Generation, console: Console) -> str:
    """The text of a run of one row, shown live in a terminal."""
    if console.is_terminal:
        with LiveView(run, console) as view:
            for step in run:
                view.show(step)
                time.sleep(0.05)  # else it is over before it can be seen
    return run.completions()[0].text


def _show_stories(checkpoint: Checkpoint, console: Console) -> None:
    """Goes on with a story, and fills the holes of another."""
    story = Generation(checkpoint, STORY, max_new_tokens=STORY_TOKENS, seed=STORY_SEED, chat=False)
    holed = Generation(checkpoint, HOLED_STORY, infill=True, seed=HOLES_SEED)
    for start, run in (STORY, story), ("", holed):
        text = start + _watch(run, console)
        console.print(Padding(Text(f"{text}\n"), (0, 2)))


def _show(checkpoint: Checkpoint, puzzle: Puzzle, console: Console) -> bool:
    """Solves one puzzle soft-masked, live in a terminal; returns whether it is solved."""
    run = solve(checkpoint, [puzzle], 1, checkpoint.soft_mask)
    written = _watch(run, console)
    answer, solved = answer_in(puzzle, written), is_right(puzzle, written)
    verdict = "[green]solved[/]" if solved else "[red]not solved[/]"
    lines = zip(puzzle.input.split("\n"), answer.strip().split("\n"), strict=False)
    if puzzle.kind == "sudoku":
        for given, filled in lines:
            console.print(f"  {given}  ->  {filled}", highlight=False)
    else:
        console.print(f"  {puzzle.input}  ->  {answer.strip()}", highlight=False, markup=False)
    console.print(f"  {name_of(puzzle)}: {verdict}\n", highlight=False)
    return solved
