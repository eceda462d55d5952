"""What `softmask demo` shows and counts, once everything is loaded."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..config import BUNDLED, require
from ..decoding.generation import Generation
from ..decoding.sampler import DenoiseStep
from ..files import write_atomically
from ..models.checkpoint import Checkpoint
from ..puzzles.puzzles import Puzzle
from ..puzzles.solve import (
    STORY,
    STORY_TOKENS,
    Example,
    file_puzzles,
    fresh_puzzles,
    score,
    solve,
    the_example,
)
from ..reporting.progress import progress
from ..reporting.tables import light_table
from ..serving.trace import record_ways
from .grid_view import Board, ended, legend, side_by_side
from .live_view import LiveView
from .svg import picture

NAMES = ("soft-masked", "plain")
FRACTIONS = {"full": 1, "half": 2, "quarter": 4}
# Few forwards are where the two differ most: kinds of puzzles, and forwards for all of their masks.
FEW = (("sudoku_9x9", 8), ("countdown_3", 12))
WIDE = 78  # columns of a screen that all columns of the table fit
STORY_SEED = 14  # one of many
# Seconds for which a terminal shows a step, at least: else it is over before it can be seen.
PAUSE, STORY_PAUSE = 0.6, 0.03


class Cell(NamedTuple):
    """A row of the table: puzzles, and the forwards for each."""

    name: str
    label: str
    puzzles: Sequence[Puzzle]
    fewer: int
    steps: int | None


def few_cells(count: int, givens: int | None) -> list[Cell]:
    """What the demo counts without being told what."""
    groups = _fresh([name for name, _ in FEW], count, givens)
    return [Cell(name, f"{steps} forwards", groups[name], 1, steps) for name, steps in FEW]


def kind_cells(kinds: Sequence[str], count: int, givens: int | None) -> list[Cell]:
    """Fresh puzzles of these kinds at full, half and quarter steps."""
    return _at_fractions(_fresh(kinds, count, givens))


def _fresh(kinds: Sequence[str], count: int, givens: int | None) -> dict[str, list[Puzzle]]:
    with progress("making puzzles"):
        return fresh_puzzles(count, kinds, the_example().givens if givens is None else givens)


def file_cells(folder: Path, limit: int | None) -> list[Cell]:
    """The puzzles of Dream's evaluation files at full, half and quarter steps."""
    return _at_fractions(file_puzzles(folder, limit))


def _at_fractions(groups: dict[str, list[Puzzle]]) -> list[Cell]:
    return [
        Cell(name, label, puzzles, fewer, None)
        for name, puzzles in groups.items()
        for label, fewer in FRACTIONS.items()
    ]


def scores(checkpoint: Checkpoint, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Plain and soft-masked accuracy of each row of the table."""
    rows: list[dict[str, Any]] = []
    total = 2 * sum(len(cell.puzzles) for cell in cells)
    with progress("solving", total=total, unit="puzzles") as step:
        for cell in cells:
            row: dict[str, Any] = {
                "puzzles": cell.name,
                "n": len(cell.puzzles),
                "steps": cell.label,
            }
            for mode, soft in (("plain", None), ("soft", checkpoint.soft_mask)):
                step.update(f"{cell.name}, {cell.label}, {mode}")
                found = score(
                    checkpoint, cell.puzzles, cell.fewer, soft, cell.steps, done=step.advance
                )
                row |= {
                    mode: found.accuracy,
                    f"{mode}_error": found.error,
                    f"{mode}_forwards": found.forwards,
                }
            rows.append(row)
    return rows


def table_of(rows: Sequence[dict[str, Any]], width: int = WIDE) -> Table:
    """The rows of `scores` for people: per cent with standard errors.

    On a screen of fewer columns than WIDE without the forwards that were counted.
    """
    table = light_table("puzzles solved, % (standard error)")
    counted = ("forwards",) if width >= WIDE else ()
    for column in ("puzzles", "n", "steps", "plain", *counted, "soft-masked", *counted):
        left = column in ("puzzles", "steps")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row, after in itertools.zip_longest(rows, rows[1:]):
        cells = [row["puzzles"], str(row["n"]), row["steps"]]
        for mode in ("plain", "soft"):
            cells.append(f"{100 * row[mode]:.1f} ({100 * row[mode + '_error']:.1f})")
            cells += [f"{row[mode + '_forwards']:.1f}" for _ in counted]
        is_last = after is not None and after["puzzles"] != row["puzzles"]
        table.add_row(*cells, end_section=is_last)
    return table


def show(checkpoint: Checkpoint, console: Console, *, measured: bool) -> None:
    """The Sudoku soft-masked beside plain, and a story.

    Args:
        measured: whether the feedback is the one with which the figures were found that are told of
            the bundled model.
    """
    measured = measured and checkpoint.name == BUNDLED
    example = the_example()
    blanks = example.puzzle.input.count("0")
    console.print(
        f"\nA Sudoku with {blanks} blanks in {example.forwards} forwards, twice from the same "
        "weights.\nA cell that stays masked is fed back as what it leans to, or as a bare mask.\n",
        highlight=False,
    )
    _show_sudoku(checkpoint, example, console)
    console.print()
    if measured:
        console.print(f"{rates_of(example)}\n", highlight=False)
    _show_story(checkpoint, example, console, measured)


def rates_of(example: Example) -> str:
    """How often it comes out as it is shown."""
    twins, fresh = example.twins, example.fresh
    return (
        f"One puzzle proves nothing. Of {twins['n']} symmetric twins of this one soft-masking "
        f"solves {twins['soft']}, plain decoding {twins['plain']}, and {twins['differ']} answers "
        f"differ; of {fresh['n']} other puzzles as hard {_share(fresh, 'soft')}, "
        f"{_share(fresh, 'plain')}, and {_share(fresh, 'differ')} differ."
    )


def _share(counts: dict[str, int], name: str) -> str:
    return f"{100 * counts[name] / counts['n']:.0f} %"


def _show_sudoku(checkpoint: Checkpoint, example: Example, console: Console) -> None:
    runs = _example_runs(checkpoint, example)
    boards = [board for board in map(Board.of, runs) if board is not None]
    require(
        len(boards) == len(runs),
        f"{checkpoint.name} has no token for each digit of a Sudoku: leave out --model",
    )
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for steps in _in_step(runs):
                frame = side_by_side(boards, steps, NAMES, console.width)
                live.update(Group(frame, legend(boards[0], compared=True)), refresh=True)
                time.sleep(PAUSE)
            live.update(Group(frame, ended(compared=True)))
        return
    *_, last = _in_step(runs)
    console.print(side_by_side(boards, last, NAMES, console.width), ended(compared=True))


def _in_step(runs: Sequence[Generation]) -> Iterator[Sequence[DenoiseStep]]:
    """The steps of both runs together; one that is done stays as it is."""
    last: dict[int, DenoiseStep] = {}
    for steps in itertools.zip_longest(*runs):
        last |= {i: step for i, step in enumerate(steps) if step is not None}
        yield [last[i] for i in range(len(runs))]


def _example_runs(checkpoint: Checkpoint, example: Example) -> list[Generation]:
    """Soft-masked and plain, not yet run."""
    return [
        solve(checkpoint, [example.puzzle], 1, soft, steps=example.forwards)
        for soft in (checkpoint.soft_mask, None)
    ]


def write_picture(checkpoint: Checkpoint, path: Path) -> None:
    """The Sudoku soft-masked beside plain, as one animated picture."""
    run, _ = _example_runs(checkpoint, the_example())
    write_atomically(path, picture(record_ways(run, (checkpoint.soft_mask, None))))


def _show_story(checkpoint: Checkpoint, example: Example, console: Console, measured: bool) -> None:
    """Goes on with a story, and says why soft-masking changes little there."""
    run = Generation(checkpoint, STORY, max_new_tokens=STORY_TOKENS, seed=STORY_SEED, chat=False)
    if console.is_terminal:
        with LiveView(run, console) as view:
            for step in run:
                view.show(step)
                time.sleep(STORY_PAUSE)
    text = STORY + run.completions()[0].text
    console.print(Padding(Text(text), (0, 2)))
    if not measured or checkpoint.soft_mask is None:
        return
    grid, story = example.fed_back["sudoku"], example.fed_back["story"]
    offset = -checkpoint.soft_mask.offset
    console.print(
        f"\nA story of 6.4 M parameters: right for a sentence, forgetful over several. "
        f"Soft-masking is all but off here: mean lambda is {story['mean_lambda']:.2f}, on Sudokus "
        f"{grid['mean_lambda']:.2f}. It opens where the entropy is below the learned offset of "
        f"{offset:.1f} nats, and at a masked word it is {story['mean_entropy']:.1f}, at a cell "
        f"{grid['mean_entropy']:.1f}.\n",
        highlight=False,
    )


def what_next() -> str:
    """A few commands to go on with."""
    return (
        'Next:  softmask generate "Once upon a time"    a story of your own\n'
        "       softmask serve                          every step, in your browser\n"
        "       softmask --help                         everything else"
    )
