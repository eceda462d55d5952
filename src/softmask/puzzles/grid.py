"""Which position of a canvas is which cell of a Sudoku, and which cells are wrong.

For whoever draws one: the terminal and the pictures. Pure data from text; needs the standard
library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import sudoku

BLANK = "0"
# A mask, in the text that is searched: nothing that a puzzle has.
_MASK = "\0"
# Filled in where it stands, with masks for blanks; or written behind the puzzle, from masks alone.
_IN_PLACE = re.compile(
    r"(?:\A|\n)Sudoku\n((?:[1-4\0]{4}\n){3}[1-4\0]{4}|(?:[1-9\0]{9}\n){8}[1-9\0]{9})(?![^\n])"
)
_WRITTEN = re.compile(r"(?:\A|\n)Sudoku\n((?:[0-4]{4}\n){4}|(?:[0-9]{9}\n){9})Solution\n(\0+)\Z")


@dataclass(frozen=True)
class Grid:
    """A Sudoku on a canvas: of each cell, row after row, its position and its given digit.

    `givens` has "0" where a cell is blank.
    """

    positions: tuple[int, ...]
    givens: str

    @property
    def side(self) -> int:
        """Cells of a row: 4 or 9."""
        return math.isqrt(len(self.givens))

    @property
    def box(self) -> int:
        """Cells of a box's side: 2 or 3."""
        return math.isqrt(self.side)

    def rows(self) -> Iterator[range]:
        """The numbers of each row's cells."""
        for start in range(0, len(self.givens), self.side):
            yield range(start, start + self.side)

    def wrong(self, digits: Sequence[str]) -> frozenset[int]:
        """Cells that are not as the one solution has them.

        Where a puzzle has none, or several: those that clash with another one or with the puzzle.

        Args:
            digits: of each cell, whatever was written there.
        """
        solution = sudoku.solution_of(self.givens)
        if solution is not None:
            return frozenset(i for i, digit in enumerate(solution) if digits[i] != digit)
        clashing = {i for i, given in enumerate(self.givens) if given not in (BLANK, digits[i])}
        for unit in sudoku.units(self.side):
            seen = [digits[i] for i in unit]
            clashing |= {i for i in unit if seen.count(digits[i]) > 1}
        return frozenset(clashing)


def find_grid(pieces: Sequence[str | None]) -> Grid | None:
    """The Sudoku that a canvas is about; None: it is about something else.

    Args:
        pieces: the text of each token before the first step; None: a mask.
    """
    starts, text = [], ""
    for piece in pieces:
        starts.append(len(text))
        text += _MASK if piece is None else piece
    found = _IN_PLACE.search(text)
    if found is not None and _MASK in found[1]:
        givens = found[1].replace("\n", "").replace(_MASK, BLANK)
        first = found.start(1)
    else:
        found = _WRITTEN.search(text)
        if found is None:
            return None
        givens, first = found[1].replace("\n", ""), found.start(2)
    side = math.isqrt(len(givens))
    if first + side * (side + 1) - 1 > len(text):
        return None  # fewer masks than the grid has characters
    # A token for each character: else a position would be more than a cell.
    at = {start: position for position, start in enumerate(starts)}
    places = [first + row * (side + 1) + column for row in range(side) for column in range(side)]
    if not all(place in at and (place + 1 in at or place + 1 == len(text)) for place in places):
        return None
    return Grid(tuple(at[place] for place in places), givens)
