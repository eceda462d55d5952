"""What every faster way of decoding costs in accuracy.

Solves the same puzzles in every cell (a way of decoding), plainly and soft-masked, greedily, and
times the generation alone. Cells take turns, batch of puzzles by batch, so that a busy machine
slows them alike. A cell is on the frontier of its puzzles if no other one is both faster and
better (or as good).
`softmask bench frontier` runs it.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from ..config import SoftMaskConfig
from ..models.checkpoint import Checkpoint
from ..puzzles.held_out import unevaluated
from ..puzzles.puzzles import Puzzle, generate_countdown, generate_sudoku
from ..puzzles.solve import file_puzzles, is_right, solve
from ..reporting.measure import timed
from ..reporting.plots import non_dominated
from ..reporting.tables import light_table
from ..rules import added
from .frontier_cells import REFERENCE, Cell

# Puzzles made here, and the evaluation files that hold the same kinds.
MADE: dict[str, Callable[[random.Random], Puzzle]] = {
    "sudoku_4x4_4": lambda rng: generate_sudoku(rng, 4),
    "sudoku_4x4_8": lambda rng: generate_sudoku(rng, 8),
    "countdown_3": lambda rng: generate_countdown(rng, 3),
}
FILES = ("sudoku_4x4_4", "sudoku_4x4_8", "cd3_test")
WIDE = 76  # columns of a screen that has room for the whole table


@dataclass(frozen=True)
class Row:
    """What a cell reached on puzzles of one kind.

    Tokens are those of the answers, `forwards` a puzzle's mean; `difference` is the accuracy minus
    that of the plain schedule in full, paired by puzzle.
    """

    puzzles: str
    n: int
    cell: str
    family: str
    mode: str
    accuracy: float
    error: float
    difference: float | None
    difference_error: float | None
    forwards: float
    tokens_per_second: float
    seconds: float
    on_frontier: bool = False


@dataclass
class _Tally:
    """What one cell has done so far on one kind of puzzles."""

    solved: list[bool] = field(default_factory=list)
    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, checkpoint: Checkpoint, puzzles: Sequence[Puzzle], cell: Cell, soft: Any) -> None:
        """Solves puzzles of one kind at once; only the generation is timed."""
        run = solve(checkpoint, puzzles, cell.fewer, soft, **cell.sampling)
        self.seconds += timed(lambda: deque(run, maxlen=0), checkpoint.model.device)
        for puzzle, done in zip(puzzles, run.completions(), strict=True):
            self.solved.append(is_right(puzzle, done.text))
            self.forwards += done.forwards
            self.tokens += len(done.token_ids)


def puzzles_of(files: Path | None, count: int) -> dict[str, list[Puzzle]]:
    """`count` puzzles of each kind: from evaluation files, or made and in none of those.

    Raises:
        ValueError: the folder holds none of the files.
    """
    if files is not None:
        groups = file_puzzles(files, count)
        groups = {name: groups[name] for name in FILES if name in groups}
        if not groups:
            raise ValueError(
                f"{files} holds none of {', '.join(f'{name}.jsonl' for name in FILES)}"
            )
        return groups
    return {name: list(islice(unevaluated(_made(name)), count)) for name in MADE}


def _made(name: str) -> Iterator[Puzzle]:
    rng = random.Random(f"frontier/{name}")
    while True:
        yield MADE[name](rng)


def measure(
    load_with: Callable[[Mapping[str, Any]], Checkpoint],
    groups: Mapping[str, Sequence[Puzzle]],
    cells: Sequence[Cell],
    batch: int,
    tick: Callable[[str, int], None],
) -> list[Row]:
    """All cells on all puzzles, `batch` of one kind at a time.

    Args:
        load_with: the checkpoint, given a cell's arguments of `load`.
        tick: callback with what begins, and how many runs are done since.
    """
    checkpoints = {cell.name: load_with(cell.loading) for cell in cells}
    ways = [
        (cell, mode, soft)
        for cell in cells
        for mode, soft in modes_of(checkpoints[cell.name]).items()
    ]
    rows: list[Row] = []
    for group, puzzles in groups.items():
        tallies = {(cell.name, mode): _Tally() for cell, mode, _ in ways}
        for cell, _, soft in ways:
            tick(f"{group}, warm-up", 1)
            _Tally().add(checkpoints[cell.name], puzzles[:batch], cell, soft)
        for start in range(0, len(puzzles), batch):
            for cell, mode, soft in ways:
                tick(f"{group}, {cell.name}", 1)
                part = puzzles[start : start + batch]
                tallies[cell.name, mode].add(checkpoints[cell.name], part, cell, soft)
        rows += _mark([_row(group, cell, mode, tallies) for cell, mode, _ in ways])
    return rows


def runs(groups: Mapping[str, Sequence[Puzzle]], ways: int, batch: int) -> int:
    """How many times `measure` ticks."""
    return sum(ways * (1 + math.ceil(len(puzzles) / batch)) for puzzles in groups.values())


def modes_of(checkpoint: Checkpoint) -> dict[str, SoftMaskConfig | None]:
    """How a checkpoint decodes: plainly, with its own feedback, and with registered rules of it."""
    own = checkpoint.soft_mask
    if own is None:
        return {"plain": None}
    rules = [rule.name for rule in added("feedback")]
    changed = {name: dataclasses.replace(own, mode=name, options={}) for name in rules}
    return {"plain": None, "soft": own, **changed}


def _row(group: str, cell: Cell, mode: str, tallies: dict[tuple[str, str], _Tally]) -> Row:
    own, full = tallies[cell.name, mode], tallies.get((REFERENCE, "plain"))
    accuracy, error = _mean(own.solved)
    difference = error_of = None
    if full is not None and full is not own:
        pairs = zip(own.solved, full.solved, strict=True)
        difference, error_of = _mean([a - b for a, b in pairs])
    n = len(own.solved)
    return Row(
        puzzles=group,
        n=n,
        cell=cell.name,
        family=cell.family,
        mode=mode,
        accuracy=accuracy,
        error=error,
        difference=difference,
        difference_error=error_of,
        forwards=own.forwards / n,
        tokens_per_second=own.tokens / own.seconds,
        seconds=own.seconds,
    )


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return statistics.fmean(values), math.sqrt(statistics.pvariance(values) / len(values))


def _mark(rows: list[Row]) -> list[Row]:
    """Rows of one kind of puzzles, with those on the frontier marked."""
    kept = set(non_dominated([(row.tokens_per_second, row.accuracy) for row in rows]))
    return [dataclasses.replace(row, on_frontier=i in kept) for i, row in enumerate(rows)]


def tables_of(rows: Sequence[Row], width: int = WIDE) -> list[Table]:
    """A table for each kind of puzzles, cells in their order.

    On a screen of fewer columns than WIDE without what is measured beside the forwards.
    """
    tables, is_wide = [], width >= WIDE
    for group in dict.fromkeys(row.puzzles for row in rows):
        own = [row for row in rows if row.puzzles == group]
        table = light_table(f"{group}, {own[0].n} puzzles: solved, % (standard error); * frontier")
        table.add_column("cell", no_wrap=True)
        table.add_column("decoding", no_wrap=True)
        rate = ["tokens/s"] if is_wide else []
        for column in ("solved", "- full plain", "forwards", *rate, ""):
            table.add_column(column, justify="right", no_wrap=True)
        for row in own:
            difference = ""
            if row.difference is not None and row.difference_error is not None:
                difference = f"{100 * row.difference:+.1f} ({100 * row.difference_error:.1f})"
            table.add_row(
                row.cell,
                row.mode,
                f"{100 * row.accuracy:.1f} ({100 * row.error:.1f})",
                difference,
                f"{row.forwards:.1f}",
                *([f"{row.tokens_per_second:.0f}"] if is_wide else []),
                "*" if row.on_frontier else "",
            )
        tables.append(table)
    return tables
