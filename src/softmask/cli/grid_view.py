"""A Sudoku being filled in, drawn as a grid in a terminal: one run, or soft-masked beside plain.

Givens are dim, what is decided stands as it is and green where that was this step. A masked cell
shows the digit that leads there, on a shade from grey to amber by lambda, how strongly it is fed
back: amber is the largest lambda that the settings allow. Where two runs have decided differently
both cells are magenta; in the end what is wrong is red. Marks say the same without colours: `*` for
what differs, `!` for what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..decoding.sampler import DenoiseStep
from ..puzzles.grid import BLANK, Grid, find_grid
from .shades import NEW, PROMPT, shade

LINES = Style(color="bright_black")
DIFFERENT = Style(color="magenta", bold=True)
WRONG = Style(color="white", bgcolor="red", bold=True)
UNKNOWN = "\u2591"  # a mask without a candidate that can be shown
CELL, GAP = 3, 4  # characters of a cell, and between two grids


def width_of(grid: Grid) -> int:
    """Columns of a drawn grid."""
    return CELL * grid.side + grid.side // grid.box + 1


def height_of(grid: Grid) -> int:
    """Lines of a drawn grid."""
    return grid.side + grid.side // grid.box + 1


@dataclass(frozen=True)
class Board:
    """A run (a `Generation`) whose row `row` is about a Sudoku."""

    run: Any
    grid: Grid
    row: int = 0

    @property
    def strongest(self) -> float:
        """The largest lambda that this run's settings allow: the full shade."""
        soft_mask = self.run.soft_mask
        return soft_mask.scale if soft_mask is not None and soft_mask.scale > 0 else 1.0

    @classmethod
    def of(cls, run: Any, row: int = 0) -> Board | None:
        """The board of a run; None where it is about something else."""
        mask_id, start = run.mask_id, run.starts[row]
        ids = run.canvas_BL[row].tolist()[start:]
        grid = find_grid([None if id == mask_id else run.checkpoint.decode([id]) for id in ids])
        return None if grid is None else cls(run, grid, row)

    def digits(self, step: DenoiseStep) -> list[str | None]:
        """What is decided of each cell; None: it is masked."""
        ids = self._of(step.canvas_BL)
        mask_id = self.run.mask_id
        return [None if id == mask_id else self._text(id) for id in ids]

    def is_done(self, step: DenoiseStep) -> bool:
        """Whether every cell is decided."""
        return None not in self.digits(step)

    def wrong(self, step: DenoiseStep) -> frozenset[int]:
        """The wrong cells, once all are decided."""
        digits = [digit or "" for digit in self.digits(step)]
        return self.grid.wrong(digits) if self.is_done(step) else frozenset()

    def draw(self, step: DenoiseStep, differing: Sequence[int] = ()) -> Text:
        """The grid after a step, with these cells marked as different from another run's."""
        digits, wrong = self.digits(step), self.wrong(step)
        fresh, leads = self._of(step.committed_BL), self._of(step.candidate_BL)
        weights = [0.0] * len(digits)
        if step.lambda_BL is not None:
            weights = self._of(step.lambda_BL)
        cells = []
        for i, digit in enumerate(digits):
            given = self.grid.givens[i]
            mark, style = " ", Style.null()
            if digit is None and given != BLANK:  # the answer is going to repeat it
                digit, style = given, PROMPT
            elif digit is None:
                lead = self.run.mask_id if leads[i] is None else leads[i]
                digit = UNKNOWN if lead == self.run.mask_id else self._text(lead)
                style = shade(weights[i] / self.strongest)
            elif i in wrong:
                mark, style = "!", WRONG
            elif i in differing:
                mark, style = "*", DIFFERENT
            elif given != BLANK:
                style = PROMPT
            elif fresh[i]:
                style = NEW
            cells.append((f" {digit}{mark}", style))
        return draw_grid(self.grid, cells)

    def verdict(self, step: DenoiseStep) -> Text:
        """Whether it is solved, or how much is still masked."""
        if not self.is_done(step):
            return Text(f"{self.digits(step).count(None)} cells masked", "cyan")
        wrong = len(self.wrong(step))
        if not wrong:
            return Text("solved", "bold green")
        return Text(f"not solved: {wrong} cell{'' if wrong == 1 else 's'} wrong", "bold red")

    def _of(self, values_BL: Any) -> list[Any]:
        row = values_BL[self.row].tolist()
        start = self.run.starts[self.row]
        return [row[start + position] for position in self.grid.positions]

    def _text(self, id: int) -> str:
        """One character for a token, which may be none of a digit's."""
        text = self.run.checkpoint.decode([id], skip_special_tokens=True).strip()
        return text if len(text) == 1 and text.isprintable() else UNKNOWN


def draw_grid(grid: Grid, cells: Sequence[tuple[str, Style]]) -> Text:
    """Cells of `CELL` characters between the lines of the boxes."""
    boxes = grid.side // grid.box
    rule = "\u2500" * (CELL * grid.box)
    text = Text(no_wrap=True)
    for number, row in enumerate(grid.rows()):
        if number % grid.box == 0:
            left, middle, right = "\u250c\u252c\u2510" if number == 0 else "\u251c\u253c\u2524"
            text.append(left + middle.join([rule] * boxes) + right + "\n", LINES)
        for column, i in enumerate(row):
            if column % grid.box == 0:
                text.append("\u2502", LINES)
            text.append(*cells[i])
        text.append("\u2502\n", LINES)
    text.append("\u2514" + "\u2534".join([rule] * boxes) + "\u2518", LINES)
    return text


def differing(boards: Sequence[Board], steps: Sequence[DenoiseStep]) -> frozenset[int]:
    """The cells that two runs of one Sudoku have decided differently."""
    first, second = (board.digits(step) for board, step in zip(boards, steps, strict=True))
    pairs = enumerate(zip(first, second, strict=True))
    return frozenset(i for i, (a, b) in pairs if None not in (a, b) and a != b)


def side_by_side(
    boards: Sequence[Board], steps: Sequence[DenoiseStep], names: Sequence[str], width: int = 80
) -> RenderableType:
    """Two runs of one Sudoku, each after its own step, with their names above.

    Where so many columns do not hold them side by side they stand one below the other.
    """
    parted = differing(boards, steps)
    table = Table.grid(padding=(0, GAP, 0, 0))
    columns = []
    for board, step, name in zip(boards, steps, names, strict=True):
        table.add_column(width=width_of(board.grid))
        counted = Text(f"{step.forwards_B[board.row]}/{step.steps} forwards", "cyan")
        if step.lambda_BL is not None and step.left_B[board.row]:
            mean = step.lambda_BL[board.row].sum().item() / step.left_B[board.row]
            counted.append(f", mean lambda {mean:.2f}")
        parts: list[RenderableType] = [
            Text(name, "bold"),
            counted,
            board.draw(step, sorted(parted)),
            board.verdict(step),
        ]
        columns.append(Group(*parts))
    if sum(width_of(board.grid) + GAP for board in boards) - GAP > width:
        return Group(*columns)
    table.add_row(*columns)
    return table


def ended(*, compared: bool = False) -> Text:
    """What marks mean once nothing is masked."""
    text = Text()
    if compared:
        text.append(" 7*", DIFFERENT).append(" the two differ  ")
    return text.append(" 7!", WRONG).append(" wrong")


def legend(board: Board, *, compared: bool = False) -> Text:
    """What the looks of a cell mean, in two lines."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for weight in (0.0, 0.5, 1.0):
        text.append(" 7 ", shade(weight))
    text.append(" a masked cell leans to 7, which is fed back: ")
    if board.run.soft_mask is None:
        text.append("not at all\n")
    else:
        text.append(f"lambda 0 to {board.strongest:.2f}\n")
    text.append(" 7 ", NEW).append(" just decided  ")
    return text.append_text(ended(compared=compared)).append(" in the end")
