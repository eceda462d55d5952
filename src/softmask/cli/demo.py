"""softmask demo: puzzles and stories being denoised, then how often plain and soft solve puzzles.

The 9x9 Sudoku is made here, the other puzzles that are shown are from the evaluation files of Dream
7B (`demo_puzzles.json` names the origin); the table scores them and freshly generated ones, which
no training run has seen either.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..config import SamplingConfig, SoftMaskConfig
from ..decoding.generation import Generation
from ..hub.load import load
from ..models.checkpoint import Checkpoint
from ..puzzles.held_out import unevaluated
from ..puzzles.puzzles import (
    Puzzle,
    generate_puzzles,
    holed,
    is_solved,
    new_sudoku_9x9,
    prompt_of,
    read_puzzles,
)
from ..reporting.tables import light_table
from .live_view import LiveView

# Masks for an answer: the longest one and its end token.
NEW_TOKENS = {
    "sudoku_4x4": 24,
    "countdown_3": 24,
    "countdown_4": 36,
    "countdown_5": 48,
}
DEMO_KINDS = ("sudoku_9x9", "sudoku_4x4", "countdown_3", "countdown_4")
PUZZLES = 24  # of each kind, in the table
GIVENS = 32  # of the 9x9 Sudokus that the demo makes: the bundled model solves nine in ten
# The rule that commits what the model cannot confuse with a second candidate.
ALG = "topk_margin"
FRACTIONS = {"full": 1, "half": 2, "quarter": 4}
FEW_SHOT_POOL = 8  # first lines of each Sudoku file, prompts of the original evaluation
BATCH = 64
# A beginning to go on from, and a story with holes; the seeds are two of many.
STORY, STORY_TOKENS = "One day, Tom", 64
HOLED_STORY = "One day,[[6]] went to the park. He was very happy because[[8]]."
STORY_SEED, HOLES_SEED = 14, 0


class Score(NamedTuple):
    """Accuracy with its standard error, and forwards a puzzle."""

    accuracy: float
    error: float
    forwards: float


def name_of(puzzle: Puzzle) -> str:
    """sudoku_4x4, countdown_3, ..."""
    if puzzle.kind == "sudoku":
        return "sudoku_4x4" if len(puzzle.input) < 81 else "sudoku_9x9"
    return f"countdown_{puzzle.input.count(',')}"


def solve(
    checkpoint: Checkpoint,
    puzzles: Sequence[Puzzle],
    fewer: int,
    soft: SoftMaskConfig | None,
    **sampling: Any,
) -> Generation:
    """The generation that answers puzzles of one kind, not yet run.

    A 9x9 Sudoku's own blanks are filled in; behind other puzzles a solution is written.

    Args:
        fewer: 1 takes as many steps as there are masks, 2 half of them, and so on.
        sampling: further fields of SamplingConfig.
    """
    name, in_place = name_of(puzzles[0]), is_in_place(puzzles[0])
    if in_place:
        masks = max(puzzle.input.count("0") for puzzle in puzzles)
        prompts = [holed(puzzle) for puzzle in puzzles]
    else:
        masks = NEW_TOKENS[name]
        prompts = [prompt_of(puzzle) for puzzle in puzzles]
    return Generation(
        checkpoint,
        prompts,
        infill=in_place,
        max_new_tokens=masks,
        sampling=SamplingConfig(steps=math.ceil(masks / fewer), alg=ALG, **sampling),
        soft_mask=soft,
        seed=0,
        chat=False,
    )


def is_in_place(puzzle: Puzzle) -> bool:
    """Whether `solve` fills in the puzzle itself."""
    return name_of(puzzle) == "sudoku_9x9"


def answer_in(puzzle: Puzzle, written: str) -> str:
    """The answer in what `solve` writes: a puzzle that was filled in comes with its title."""
    return written.partition("\n")[2] if is_in_place(puzzle) else written


def is_right(puzzle: Puzzle, written: str) -> bool:
    """Whether what `solve` wrote solves the puzzle."""
    return is_solved(puzzle.kind, puzzle.input, answer_in(puzzle, written))


def score(
    checkpoint: Checkpoint, puzzles: Sequence[Puzzle], fraction: int, soft: SoftMaskConfig | None
) -> Score:
    """How many of the puzzles (of one kind) are solved by the rules of the puzzle."""
    solved, forwards = 0, 0
    for start in range(0, len(puzzles), BATCH):
        batch = puzzles[start : start + BATCH]
        done = solve(checkpoint, batch, fraction, soft).completions()
        solved += sum(is_right(p, c.text) for p, c in zip(batch, done, strict=True))
        forwards += sum(completion.forwards for completion in done)
    n = len(puzzles)
    accuracy = solved / n
    return Score(accuracy, math.sqrt(accuracy * (1 - accuracy) / n), forwards / n)


def scores(
    checkpoint: Checkpoint, groups: dict[str, list[Puzzle]], console: Console
) -> list[dict[str, str | int | float]]:
    """Plain and soft-masked accuracy of each group at full, half and quarter steps.

    A terminal shows how far it is; elsewhere the console stays silent.
    """
    rows = []
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


def shown_puzzles() -> list[Puzzle]:
    """The bundled handful from Dream's evaluation files."""
    text = (resources.files("softmask.puzzles") / "demo_puzzles.json").read_text(encoding="utf-8")
    return [Puzzle(p["kind"], p["input"], p["output"]) for p in json.loads(text)["puzzles"]]


def fresh_puzzles(
    count: int, kinds: Sequence[str] = DEMO_KINDS, givens: int = GIVENS
) -> dict[str, list[Puzzle]]:
    """`count` generated puzzles of each kind, none of them from an evaluation file.

    Args:
        givens: of 9x9 Sudokus, 28 to 80.

    Raises:
        ValueError: an unknown kind, or givens out of range.
    """
    unknown = [name for name in kinds if name not in DEMO_KINDS]
    if unknown:
        raise ValueError(f"no puzzles {', '.join(unknown)}: there are {', '.join(DEMO_KINDS)}")
    return {name: list(islice(unevaluated(_made(name, givens)), count)) for name in kinds}


def _made(name: str, givens: int) -> Iterator[Puzzle]:
    rng = random.Random(f"demo/{name}")
    if name == "sudoku_9x9":
        while True:
            yield new_sudoku_9x9(rng, givens)
    yield from generate_puzzles(rng.getrandbits(60), {name: 1.0})


def file_puzzles(folder: Path, limit: int | None) -> dict[str, list[Puzzle]]:
    """Dream's evaluation files in a folder, without the few-shot pool of the Sudoku ones.

    Raises:
        ValueError: there is none.
    """
    groups = {}
    for path in sorted(folder.glob("*.jsonl")):
        if path.name.startswith("sudoku_4x4_"):
            groups[path.stem] = read_puzzles(path, "sudoku")[FEW_SHOT_POOL:][:limit]
        elif path.name.startswith("cd"):
            groups[path.stem] = read_puzzles(path, "countdown")[:limit]
    if not groups:
        raise ValueError(f"{folder} holds no sudoku_4x4_N.jsonl and no cdN_test.jsonl")
    return groups


def _watch(run: Generation, console: Console) -> str:
    """The text of a run of one row, shown live in a terminal."""
    if console.is_terminal:
        with LiveView(run, console) as view:
            for step in run:
                view.show(step)
                time.sleep(0.05)  # or nobody sees it
    return run.completions()[0].text


def _tell(checkpoint: Checkpoint, console: Console) -> None:
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


def run(args: Namespace) -> int:
    """Runs the command with parsed arguments."""
    idle, where = ("limit",), "only with --files"
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
            _tell(checkpoint, console)
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
