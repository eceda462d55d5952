"""9x9 Sudoku by difficulty, as in Sudoku-Extreme (arXiv 2506.21734): how often is it guessed?

The difficulty is the count of cells at which `sudoku_9x9.solve` guesses until it has shown that no
second solution exists. It propagates naked and hidden singles, takes the open cell with fewest
candidates, the first of them in reading order, and tries its digits upwards. So 0 needs singles
alone. The published data counts the backtracks of another solver, tdoku, so that a number there is
not the same number here. A symmetric twin may differ: equal cells then stand in another order.

Of dug-out puzzles one in 50 needs more than 9 guesses. `search` climbs to harder ones, in seconds.
`generate` takes twins of the `bases` that it found, in milliseconds. Needs the standard library
only.
"""

from __future__ import annotations

import random
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from .sudoku_9x9 import CELLS, dig, solution_of, solve, twin

# What `bases` were searched for, 16 each; the file is what `search(Random(place), *band)` returns
# for its lines, numbered from 0.
BANDS = ((0, 0), (1, 9), (10, 19), (20, 39), (40, 80))
BASES_A_BAND = 16
# Beyond it twins of the bases are too rare.
MOST_LEAST = BANDS[-1][0]

# Givens put back before a climb's next puzzle is dug; puzzles that it tries until it starts anew.
_PUT_BACK, _TRIES = 4, 200


def difficulty(cells: str) -> int:
    """How many cells of 81 digits, 0 for a blank, are guessed at (see the module)."""
    return solve(cells).guesses


def search(rng: random.Random, least: int, most: int) -> str:
    """A puzzle of such a difficulty with one solution, from which no given can go (0.4 to 11 s).

    Climbs: puts some givens back, digs again, and keeps what is no further from the band.
    """
    while True:
        cells, grid = dig(rng)
        off = _off(difficulty(cells), least, most)
        for _ in range(_TRIES):
            if not off:
                return cells
            tried = _dug_again(rng, cells, grid)
            tried_off = _off(difficulty(tried), least, most)
            if tried_off <= off:
                cells, off = tried, tried_off


def _dug_again(rng: random.Random, puzzle: str, grid: str) -> str:
    cells = list(puzzle)
    for cell in rng.sample([cell for cell in range(CELLS) if cells[cell] == "0"], _PUT_BACK):
        cells[cell] = grid[cell]
    givens = [cell for cell in range(CELLS) if cells[cell] != "0"]
    for cell in rng.sample(givens, len(givens)):
        digit, cells[cell] = cells[cell], "0"
        if len(solve("".join(cells)).grids) > 1:
            cells[cell] = digit
    return "".join(cells)


def _off(guesses: int, least: int, most: int) -> int:
    return max(least - guesses, guesses - most, 0)


@lru_cache(maxsize=1)
def bases() -> tuple[tuple[str, int], ...]:
    """The puzzles that come with the package for each of `BANDS`, and their difficulties."""
    text = (resources.files(__package__) / "sudoku_guesses.txt").read_text(encoding="ascii")
    return tuple((cells, int(guesses)) for cells, guesses in map(str.split, text.splitlines()))


class Made(NamedTuple):
    """A puzzle with one solution, that, the difficulty, and which of `bases` it is a twin of."""

    cells: str
    grid: str
    guesses: int
    base: int


def generate(rng: random.Random, least: int = 0, most: int | None = None) -> Made:
    """A puzzle whose difficulty lies in a band.

    It is a random twin of a base: of those in the band, or of the nearest 16 where fewer are.

    Raises:
        ValueError: `least` is not from 0 to 40, or above `most`.
    """
    if not 0 <= least <= MOST_LEAST or (most is not None and most < least):
        raise ValueError(
            f"difficulties go from at least 0 to {MOST_LEAST} to at most as many or more, not "
            f"from {least} to {most}"
        )
    last = CELLS**2 if most is None else most
    off = [_off(guesses, least, last) for _, guesses in bases()]
    inside = [number for number, distance in enumerate(off) if not distance]
    if len(inside) < BASES_A_BAND:
        inside = sorted(range(len(off)), key=off.__getitem__)[:BASES_A_BAND]
    while True:
        number = rng.choice(inside)
        base, _ = bases()[number]
        cells, grid = twin(rng, base, solution_of(base))
        guesses = difficulty(cells)
        if not _off(guesses, least, last):
            return Made(cells, grid, guesses, number)
