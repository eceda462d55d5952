"""Sudoku as text, 4x4 and 9x9: the input, the check of an answer, and 4x4 puzzles without end.

A 4x4 puzzle is a random one of the 288 grids with random cells left standing, kept only if those
givens determine the grid. `sudoku_9x9.py` makes the 9x9 puzzles.

An input is a line for each row of the grid, with 0 for a blank. Needs the standard library only.
"""

from __future__ import annotations

import math
import random
import re
from functools import lru_cache
from itertools import permutations, product

from . import sudoku_9x9

MIN_GIVENS, MAX_GIVENS = 4, 15  # no three givens determine a 4x4 grid

MOST_GUESSES = 5_000
_INPUT = re.compile(r"[0-4]{4}(?:\n[0-4]{4}){3}|[0-9]{9}(?:\n[0-9]{9}){8}")


@lru_cache(maxsize=1)
def _grids() -> tuple[tuple[str, ...], tuple[dict[str, int], ...]]:
    """All 288 grids as 16 digits, and per cell the bit set of the grids with a given digit."""
    rows = ["".join(digits) for digits in permutations("1234")]
    upper_halves = [
        above + below
        for above, below in product(rows, rows)
        if not set(above[:2]) & set(below[:2]) and not set(above[2:]) & set(below[2:])
    ]
    grids = tuple(
        upper + lower
        for upper, lower in product(upper_halves, upper_halves)
        if all(
            len({half[c] for half in (upper, upper[4:], lower, lower[4:])}) == 4 for c in range(4)
        )
    )
    assert len(grids) == 288
    having = tuple(
        {
            digit: sum(1 << g for g, grid in enumerate(grids) if grid[cell] == digit)
            for digit in "1234"
        }
        for cell in range(16)
    )
    return grids, having


def generate_4x4(rng: random.Random, givens: int) -> tuple[str, str]:
    """A 4x4 Sudoku with `givens` given cells and exactly one solution, and the solution.

    Every pair of a grid and a set of cells that determines it is equally likely.

    Raises:
        ValueError: givens below 4, which never determine a grid, or above 15, where nothing is
            left to solve.
    """
    if not MIN_GIVENS <= givens <= MAX_GIVENS:
        raise ValueError(
            f"A 4x4 Sudoku needs {MIN_GIVENS} to {MAX_GIVENS} givens, but {givens} were asked for."
        )
    grids, having = _grids()
    while True:
        grid = rng.choice(grids)
        cells = rng.sample(range(16), givens)
        agreeing = -1
        for cell in cells:
            agreeing &= having[cell][grid[cell]]
        if agreeing.bit_count() == 1:
            break
    blanked = ["0"] * 16
    for cell in cells:
        blanked[cell] = grid[cell]
    return as_rows("".join(blanked)), as_rows(grid)


def generate_9x9(rng: random.Random, givens: int, base: str | None = None) -> tuple[str, str]:
    """A 9x9 Sudoku with `givens` given cells and exactly one solution, and the solution.

    Args:
        base: 81 digits of the Sudoku that it is a symmetric twin of; default: one of those that
            come with the package.

    Raises:
        ValueError: givens below 28 or above 80.
    """
    cells, grid = sudoku_9x9.generate(rng, givens, base)
    return as_rows(cells), as_rows(grid)


def twin_9x9(rng: random.Random, *grids: str) -> list[str]:
    """The same random symmetry of each of these 9x9 grids."""
    twins = sudoku_9x9.twin(rng, *(grid.replace("\n", "") for grid in grids))
    return [as_rows(cells) for cells in twins]


def cells_of(input: str) -> str:
    """The 16 or 81 digits of an input.

    Raises:
        ValueError: the input is no Sudoku.
    """
    if not _INPUT.fullmatch(input):
        raise ValueError(
            "A Sudoku is four lines of four digits 0 to 4, or nine of nine (0 for a blank), "
            f"not {input!r:.60}."
        )
    return input.replace("\n", "")


@lru_cache(maxsize=64)
def solution_of(cells: str) -> str | None:
    """The one solution of 16 or 81 digits with 0 for blanks; None: there is none, or several.

    None too where half a second of guessing does not tell; the hardest that are known take 160.
    """
    if len(cells) == 16:
        found = [
            grid
            for grid in _grids()[0]
            if all(c in ("0", g) for c, g in zip(cells, grid, strict=True))
        ]
    else:
        solved = sudoku_9x9.solve(cells, most_guesses=MOST_GUESSES)
        found = list(solved.grids) if solved.guesses <= MOST_GUESSES else []
    return found[0] if len(found) == 1 else None


def units(side: int) -> list[list[int]]:
    """The cells of each row, column and box of a grid of side 4 or 9."""
    box = math.isqrt(side)
    cells = range(side * side)
    places = [(i // side, i % side, i // (side * box) * box + i % side // box) for i in cells]
    return [
        [i for i in cells if places[i][way] == unit] for way in range(3) for unit in range(side)
    ]


def is_solved(input: str, answer: str) -> bool:
    """Whether the answer is a right grid that keeps the givens; see `puzzles.is_solved`.

    Raises:
        ValueError: the input is no Sudoku.
    """
    given = cells_of(input)
    side = math.isqrt(len(given))
    lines = ["".join(line.split()) for line in answer.strip().splitlines()]
    if [len(line) for line in lines] != [side] * side:
        return False
    grid = "".join(lines)
    right = grid in _grids()[0] if side == 4 else sudoku_9x9.is_grid(grid)
    return right and all(g in ("0", a) for g, a in zip(given, grid, strict=True))


def as_rows(cells: str) -> str:
    """16 or 81 digits as the lines of a grid."""
    side = math.isqrt(len(cells))
    return "\n".join(cells[start : start + side] for start in range(0, len(cells), side))
