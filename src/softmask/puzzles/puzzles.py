"""Puzzles with exact answers, Sudoku (4x4 and 9x9) and Countdown: prompts, checks, streams, files.

Both are small, endless and checkable by rule, which makes them a sharp measure of a generator: an
answer is right or it is not. The text format is that of the planning evaluation files of Dream 7B,
and the generators draw from the distribution those files were drawn from, so that a model trained
here can be scored there. Those files have no 9x9 Sudoku. `sudoku.py` and `countdown.py` hold the
rules of each kind.

Needs no packages.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..row_files import rows_of
from . import countdown, sudoku, sudoku_9x9

__all__ = [
    "KINDS",
    "MIXTURE_NAMES",
    "Puzzle",
    "canonical",
    "check_mixture",
    "generate_countdown",
    "generate_puzzles",
    "generate_sudoku",
    "generate_sudoku_9x9",
    "holed",
    "is_solved",
    "new_sudoku_9x9",
    "prompt_of",
    "read_puzzles",
    "twin_of",
]

KINDS = ("sudoku", "countdown")
MIXTURE_NAMES = ("sudoku_4x4", "sudoku_9x9", "countdown_3", "countdown_4", "countdown_5")

MIXTURE_GIVENS = (4, 12)  # what the evaluation files cover
MIXTURE_GIVENS_9 = (30, 50)

_TITLES = {"sudoku": "Sudoku", "countdown": "Countdown"}


@dataclass(frozen=True)
class Puzzle:
    """A puzzle and one right answer to it, both in the text a model reads and writes."""

    kind: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        """The text a model is given; see `prompt_of`."""
        return prompt_of(self)


def prompt_of(puzzle: Puzzle) -> str:
    """Return the text a model is given, which the answer continues directly.

    Raises ValueError for a kind that is neither "sudoku" nor "countdown".
    """
    return f"{_TITLES[_checked_kind(puzzle.kind)]}\n{puzzle.input}\nSolution\n"


def holed(puzzle: Puzzle) -> str:
    """Return a Sudoku as a text with a hole `[[n]]` for every n blanks in a row, to be filled in.

    Raises ValueError for anything but a Sudoku.
    """
    if puzzle.kind != "sudoku":
        raise ValueError(f"a {puzzle.kind} has no blanks to fill in: see `prompt_of`")
    grid = re.sub("0+", lambda blanks: f"[[{len(blanks[0])}]]", puzzle.input)
    return f"{_TITLES['sudoku']}\n{grid}\n"


def canonical(kind: str, input: str) -> str:
    """Return the form under which a puzzle counts as the same puzzle.

    For Countdown the numbers are sorted (the target stays last), so that all orders of the
    same numbers agree; a Sudoku is its own canonical form. Raises ValueError for an unknown
    kind or for an input that is not a puzzle of that kind.
    """
    if _checked_kind(kind) == "sudoku":
        sudoku.cells_of(input)
        return input
    numbers, target = countdown.numbers_of(input)
    return ",".join(map(str, [*sorted(numbers), target]))


def generate_sudoku(rng: random.Random, givens: int) -> Puzzle:
    """Return a 4x4 Sudoku with `givens` given cells, drawn by `sudoku.generate_4x4`.

    Raises ValueError unless 4 <= givens <= 15.
    """
    return Puzzle("sudoku", *sudoku.generate_4x4(rng, givens))


def generate_sudoku_9x9(rng: random.Random, givens: int, base: str | None = None) -> Puzzle:
    """Return a 9x9 Sudoku with `givens` given cells, a twin of `base` (see `sudoku.generate_9x9`).

    Raises ValueError unless 28 <= givens <= 80.
    """
    return Puzzle("sudoku", *sudoku.generate_9x9(rng, givens, base))


def new_sudoku_9x9(rng: random.Random, givens: int) -> Puzzle:
    """Return a 9x9 Sudoku that is no twin of one that is trained on: it is dug out anew (0.1 s)."""
    base, _ = sudoku_9x9.dig(rng)
    return generate_sudoku_9x9(rng, givens, base)


def twin_of(rng: random.Random, puzzle: Puzzle) -> Puzzle:
    """Return a 9x9 Sudoku as a random symmetry shows it: the same puzzle in other digits, places.

    Raises ValueError for any other puzzle.
    """
    if puzzle.kind != "sudoku" or len(sudoku.cells_of(puzzle.input)) != 81:
        raise ValueError("twins are made of 9x9 Sudokus")
    return Puzzle("sudoku", *sudoku.twin_9x9(rng, puzzle.input, puzzle.output))


def generate_countdown(rng: random.Random, numbers: int) -> Puzzle:
    """Return a solvable Countdown with so many numbers, drawn by `countdown.generate`.

    Raises ValueError unless 3 <= numbers <= 5.
    """
    return Puzzle("countdown", *countdown.generate(rng, numbers))


def is_solved(kind: str, input: str, answer: str) -> bool:
    """Whether the answer solves the puzzle by its rules, however the reference is written.

    Sudoku: four lines of four digits (or nine of nine), the givens kept, and every row, column
    and box a permutation. Countdown: equations "a-b=c" with commas between them, each correct
    in whole numbers from 0 up (a division must come out even), each operand a number of the
    puzzle or an earlier result not used before, every number of the puzzle used exactly
    once, and the last result the target. White space inside or around an answer is
    tolerated, any other extra text is not.

    The checker of the Dream evaluation demands all numbers too. It accepts two things this
    one does not: a step on more than two numbers ("1+2+3=6"), and a result that is used in
    an equation before the one that makes it.

    Never raises for what a model may write; an input that is no puzzle of this kind is not
    solved by anything. Raises ValueError for an unknown kind only.
    """
    check = sudoku.is_solved if _checked_kind(kind) == "sudoku" else countdown.is_solved
    try:
        return check(input, answer)
    except ValueError:  # the input is not a puzzle
        return False


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Check that puzzles can be drawn by these weights of `MIXTURE_NAMES`.

    Raises ValueError for an unknown name or weights that are not finite, not negative and not all
    zero.
    """
    unknown = sorted(set(mixture) - set(MIXTURE_NAMES))
    if unknown:
        raise ValueError(
            f"A mixture has no part {unknown[0]!r}; its parts are {', '.join(MIXTURE_NAMES)}."
        )
    weights = list(mixture.values())
    if not all(w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ValueError(
            "The weights of a mixture must be finite and not negative, and one must be positive."
        )


def generate_puzzles(
    seed: int, mixture: Mapping[str, float], held_out: Collection[str] = ()
) -> Iterator[Puzzle]:
    """Return an endless stream of puzzles; the same arguments give the same stream.

    `mixture` gives the weight of "sudoku_4x4" (4 to 12 givens, equally likely), "sudoku_9x9" (30
    to 50), "countdown_3", "countdown_4" and "countdown_5". No puzzle whose `canonical` form is in
    `held_out` is ever yielded. Raises ValueError, at once rather than at the first puzzle,
    as `check_mixture`.
    """
    check_mixture(mixture)
    weights = [float(mixture.get(name, 0.0)) for name in MIXTURE_NAMES]
    return _stream(random.Random(seed), weights, frozenset(held_out))


def _stream(rng: random.Random, weights: list[float], held_out: frozenset[str]) -> Iterator[Puzzle]:
    while True:
        (name,) = rng.choices(MIXTURE_NAMES, weights)
        while True:
            if name == "sudoku_4x4":
                puzzle = generate_sudoku(rng, rng.randint(*MIXTURE_GIVENS))
            elif name == "sudoku_9x9":
                puzzle = generate_sudoku_9x9(rng, rng.randint(*MIXTURE_GIVENS_9))
            else:
                puzzle = generate_countdown(rng, int(name[-1]))
            # A held-out draw is drawn again in the same part: it must not shift the mixture.
            if not held_out or canonical(puzzle.kind, puzzle.input) not in held_out:
                break
        yield puzzle


def read_puzzles(path: str | Path, kind: str) -> list[Puzzle]:
    """Return the puzzles of a file with one JSON object {"input": ..., "output": ...} a line.

    The file may be packed (.gz). Raises ValueError, naming the file and the line, for a line that
    is not such an object or whose output does not solve its input, and for an unknown kind;
    OSError if the file cannot be read.
    """
    _checked_kind(kind)
    puzzles = []
    for number, row in rows_of(Path(path)):
        where = f"{path}:{number}:"
        if not (
            isinstance(row, dict)
            and row.keys() == {"input", "output"}
            and all(isinstance(text, str) for text in row.values())
        ):
            raise ValueError(f'{where} a puzzle has exactly the texts "input" and "output".')
        try:
            canonical(kind, row["input"])
        except ValueError as error:
            raise ValueError(f"{where} {error}") from None
        if not is_solved(kind, row["input"], row["output"]):
            raise ValueError(f"{where} the output does not solve the puzzle.")
        puzzles.append(Puzzle(kind, row["input"], row["output"]))
    return puzzles


def _checked_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"A puzzle is of the kind {' or '.join(KINDS)}, not {kind!r:.60}.")
    return kind
