"""9x9 Sudoku with exactly one solution: puzzles without end, and how hard each one is.

A puzzle is dug out of a random grid until no given can go. Digging takes tens of milliseconds, so
training takes symmetric twins of the 512 in `sudoku_9x9.txt` (digits renamed, rows and columns
permuted within their bands, bands permuted, transposed: 1.2e12 of each), with as many givens added
back as are wanted. What is dug anew is no twin of those: for evaluation.
Cells are texts of 81 digits, row after row, 0 for a blank. Needs the standard library only.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

SIZE, CELLS = 9, 81
ALL = (1 << SIZE) - 1
# A dug-out puzzle has 22 to 28 givens.
LEAST_GIVENS, MOST_GIVENS = 28, 80

_ROW = [cell // 9 for cell in range(CELLS)]
_COLUMN = [cell % 9 for cell in range(CELLS)]
_BOX = [cell // 27 * 3 + cell % 9 // 3 for cell in range(CELLS)]
_UNITS = [
    [cell for cell in range(CELLS) if where[cell] == unit]
    for where in (_ROW, _COLUMN, _BOX)
    for unit in range(SIZE)
]
_PEERS = [
    sorted({peer for unit in _UNITS if cell in unit for peer in unit} - {cell})
    for cell in range(CELLS)
]
_UNITS_OF = [[unit for unit in _UNITS if cell in unit] for cell in range(CELLS)]


@dataclass(frozen=True)
class Solved:
    """The first solutions found, and how often a value had to be guessed on the way."""

    grids: tuple[str, ...]
    guesses: int


def solve(
    cells: str, limit: int = 2, rng: random.Random | None = None, most_guesses: float = math.inf
) -> Solved:
    """Up to `limit` solutions, by naked and hidden singles and, where they end, guesses.

    `rng` guesses in random order. A puzzle that needs no guess can be done by singles alone. With
    more than `most_guesses` it ends with what it has: to show that there is none can take hours.
    """
    options = [ALL] * CELLS
    found: list[str] = []
    guesses = 0

    def search(options: list[int]) -> None:
        nonlocal guesses
        if guesses > most_guesses:
            return
        open_ = [cell for cell in range(CELLS) if options[cell].bit_count() > 1]
        if not open_:
            found.append("".join(str(bits.bit_length()) for bits in options))
            return
        cell = min(open_, key=lambda cell: options[cell].bit_count())
        digits = [digit for digit in range(SIZE) if options[cell] >> digit & 1]
        if rng is not None:
            rng.shuffle(digits)
        guesses += 1
        for digit in digits:
            tried = options.copy()
            if _assign(tried, cell, 1 << digit):
                search(tried)
                if len(found) >= limit:
                    return

    given = ((cell, int(digit)) for cell, digit in enumerate(cells) if digit != "0")
    if all(_assign(options, cell, 1 << digit - 1) for cell, digit in given):
        search(options)
    return Solved(tuple(found), guesses)


def _assign(options: list[int], cell: int, bit: int) -> bool:
    """Sets a cell and what follows from it by singles; False: a contradiction."""
    waiting = [(cell, bit)]
    while waiting:
        cell, bit = waiting.pop()
        if not options[cell] & bit:
            return False
        others = options[cell] ^ bit
        options[cell] = bit
        lost = []
        for peer in _PEERS[cell]:
            if options[peer] & bit:
                options[peer] ^= bit
                lost.append(peer)
                left = options[peer]
                if not left:
                    return False
                if left & (left - 1) == 0:
                    waiting.append((peer, left))
        # A digit that has one place left in a unit goes there.
        for where, gone in ((lost, bit), ((cell,), others)):
            for changed in where:
                for unit in _UNITS_OF[changed]:
                    if not _place_hidden(options, unit, gone, waiting):
                        return False
    return True


def _place_hidden(
    options: list[int], unit: list[int], gone: int, waiting: list[tuple[int, int]]
) -> bool:
    while gone:
        bit = gone & -gone
        gone ^= bit
        places = [cell for cell in unit if options[cell] & bit]
        if not places:
            return False
        if len(places) == 1 and options[places[0]] != bit:
            waiting.append((places[0], bit))
    return True


def dig(rng: random.Random) -> tuple[str, str]:
    """A random puzzle from which no given can be taken, and its solution."""
    (grid,) = solve("0" * CELLS, 1, rng).grids
    cells = list(grid)
    for cell in rng.sample(range(CELLS), CELLS):
        digit, cells[cell] = cells[cell], "0"
        if len(solve("".join(cells)).grids) > 1:
            cells[cell] = digit
    return "".join(cells), grid


def twin(rng: random.Random, *texts: str) -> list[str]:
    """The same random symmetry of each of these cells."""
    digits = [0, *rng.sample(range(1, 10), 9)]
    rows, columns = (
        [3 * band + line for band in _three(rng) for line in _three(rng)] for _ in "rc"
    )
    transposed = rng.random() < 0.5
    places = [(column, row) if transposed else (row, column) for row in rows for column in columns]
    return ["".join(str(digits[int(text[9 * r + c])]) for r, c in places) for text in texts]


def _three(rng: random.Random) -> list[int]:
    return rng.sample(range(3), 3)


@lru_cache(maxsize=1)
def bases() -> tuple[str, ...]:
    """The dug-out puzzles that come with the package."""
    text = (resources.files(__package__) / "sudoku_9x9.txt").read_text(encoding="ascii")
    return tuple(text.split())


@lru_cache(maxsize=1024)
def solution_of(cells: str) -> str:
    """The one solution."""
    (grid,) = solve(cells).grids
    return grid


def generate(rng: random.Random, givens: int, base: str | None = None) -> tuple[str, str]:
    """A puzzle with so many givens and exactly one solution, and the solution.

    Args:
        base: what it is a twin of; default: one of `bases`.

    Raises:
        ValueError: givens below 28, which not every base can do with, or above 80, or fewer than
            the base has.
    """
    if not LEAST_GIVENS <= givens <= MOST_GIVENS:
        raise ValueError(
            f"a 9x9 Sudoku is generated with {LEAST_GIVENS} to {MOST_GIVENS} givens, not {givens}"
        )
    base = base or rng.choice(bases())
    cells, grid = twin(rng, base, solution_of(base))
    blanks = [cell for cell in range(CELLS) if cells[cell] == "0"]
    least = CELLS - len(blanks)
    if givens < least:
        raise ValueError(
            f"the base has {least} givens, more than {givens}: ask for {least} or more"
        )
    shown = set(rng.sample(blanks, givens - least))
    return "".join(grid[c] if c in shown else cells[c] for c in range(CELLS)), grid


def is_grid(cells: str) -> bool:
    """Whether these are 81 digits, each of 1 to 9 once in every row, column and box."""
    whole = len(cells) == CELLS and set(cells) <= set("123456789")
    return whole and all(len({cells[cell] for cell in unit}) == SIZE for unit in _UNITS)
