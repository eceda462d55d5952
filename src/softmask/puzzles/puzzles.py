"""Two puzzles with exact answers: Sudoku (4x4 and 9x9) and Countdown.

Both are small, endless and checkable by rule, which makes them a sharp measure of a
generator: an answer is right or it is not. The text format is that of the planning
evaluation files of Dream 7B, and the generators draw from the distribution those files
were drawn from, so that a model trained here can be scored there:

* a Sudoku is a random one of the 288 grids with random cells left standing, kept only if
  those givens determine the grid;
* a 9x9 Sudoku, which those files do not have, is as `sudoku9.py` says;
* a Countdown draws a target between 10 and 100 and numbers between 1 and 99, uniformly
  among the draws that can be solved with every number used once. Its reference output is
  the first solution of a depth-first search over pairs from left to right (the result goes
  to the end of the list) that tries +, *, - and / in this order; - and / put the larger
  operand first and / must be exact. All 3,000 reference outputs are this solution.

This module needs the standard library only.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations, product
from pathlib import Path

from . import sudoku_9x9 as sudoku9

__all__ = [
    "KINDS",
    "MIXTURE_NAMES",
    "Puzzle",
    "canonical",
    "generate_countdown",
    "generate_puzzles",
    "generate_sudoku",
    "generate_sudoku_9x9",
    "holed",
    "is_solved",
    "new_sudoku_9x9",
    "prompt_of",
    "read_puzzles",
]

KINDS = ("sudoku", "countdown")
MIXTURE_NAMES = ("sudoku_4x4", "sudoku_9x9", "countdown_3", "countdown_4", "countdown_5")

MIN_GIVENS, MAX_GIVENS = 4, 15  # no three givens determine a 4x4 grid
MIXTURE_GIVENS = (4, 12)  # what the evaluation files cover
MIXTURE_GIVENS_9 = (30, 50)
MIN_TARGET, MAX_TARGET = 10, 100
MAX_NUMBER = 99

_TITLES = {"sudoku": "Sudoku", "countdown": "Countdown"}
_SUDOKU_INPUT = re.compile(r"[0-4]{4}(?:\n[0-4]{4}){3}|[0-9]{9}(?:\n[0-9]{9}){8}")
# Twelve digits hold any product of five two-digit numbers; the bound keeps the arithmetic
# on a hostile answer small.
_NUMBER = r"(0|[1-9][0-9]{0,11})"
_COUNTDOWN_INPUT = re.compile(rf"{_NUMBER}(?:,{_NUMBER}){{1,8}}")
_EQUATION = re.compile(rf"\s*{_NUMBER}\s*([-+*/])\s*{_NUMBER}\s*=\s*{_NUMBER}\s*")


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
        _sudoku_cells(input)
        return input
    numbers, target = _countdown_numbers(input)
    return ",".join(map(str, [*sorted(numbers), target]))


# ---------------------------------------------------------------------------------------
# Sudoku


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


def generate_sudoku(rng: random.Random, givens: int) -> Puzzle:
    """Return a 4x4 Sudoku with `givens` given cells and exactly one solution.

    Every pair of a grid and a set of cells that determines it is equally likely. Raises
    ValueError unless 4 <= givens <= 15: fewer never determine a grid, and 16 leave nothing
    to solve.
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
    return Puzzle("sudoku", _as_rows("".join(blanked)), _as_rows(grid))


def generate_sudoku_9x9(rng: random.Random, givens: int, base: str | None = None) -> Puzzle:
    """Return a 9x9 Sudoku with `givens` given cells and exactly one solution.

    `base`: 81 digits of a Sudoku that it is a twin of; default: one of those for training. Raises
    ValueError unless 28 <= givens <= 80.
    """
    return Puzzle("sudoku", *map(_as_rows, sudoku9.generate(rng, givens, base)))


def new_sudoku_9x9(rng: random.Random, givens: int) -> Puzzle:
    """Return a 9x9 Sudoku that is no twin of one that is trained on: it is dug out anew (0.1 s)."""
    base, _ = sudoku9.dig(rng)
    return generate_sudoku_9x9(rng, givens, base)


def _as_rows(cells: str) -> str:
    side = math.isqrt(len(cells))
    return "\n".join(cells[start : start + side] for start in range(0, len(cells), side))


def _sudoku_cells(input: str) -> str:
    if not _SUDOKU_INPUT.fullmatch(input):
        raise ValueError(
            "A Sudoku is four lines of four digits 0 to 4, or nine of nine (0 for a blank), "
            f"not {_shown(input)}."
        )
    return input.replace("\n", "")


def _sudoku_is_solved(input: str, answer: str) -> bool:
    given = _sudoku_cells(input)
    side = math.isqrt(len(given))
    lines = ["".join(line.split()) for line in answer.strip().splitlines()]
    if [len(line) for line in lines] != [side] * side:
        return False
    grid = "".join(lines)
    right = grid in _grids()[0] if side == 4 else sudoku9.is_grid(grid)
    return right and all(g in ("0", a) for g, a in zip(given, grid, strict=True))


# ---------------------------------------------------------------------------------------
# Countdown


def _steps(a: int, b: int) -> list[tuple[int, str]]:
    """The results of combining two numbers, in the order in which the search tries them."""
    high, low = (a, b) if a > b else (b, a)
    steps = [
        (a + b, f"{a}+{b}={a + b}"),
        (a * b, f"{a}*{b}={a * b}"),
        (high - low, f"{high}-{low}={high - low}"),
    ]
    if low and high % low == 0:
        steps.append((high // low, f"{high}/{low}={high // low}"))
    return steps


@lru_cache(maxsize=1 << 15)
def _values(a: int, b: int) -> tuple[int, ...]:
    high, low = (a, b) if a > b else (b, a)
    if low and high % low == 0:
        return (a + b, a * b, high - low, high // low)
    return (a + b, a * b, high - low)


@lru_cache(maxsize=1 << 15)
def _partners(x: int, target: int) -> frozenset[int]:
    """All v for which some step on (v, x) results in the target, which must be positive."""
    assert target > 0
    partners = {target + x, abs(target - x)}  # v - x; v + x or x - v
    if x:
        partners.add(target * x)  # v / x
        if target % x == 0:
            partners.add(target // x)  # v * x
        if x % target == 0:
            partners.add(x // target)  # x / v
    return frozenset(partners)


def _reaches(numbers: tuple[int, ...], target: int) -> bool:
    """Whether two, three or four numbers can make the target, without finding out how.

    The last step joins either one number to the rest or two pairs, so it is enough to look
    for a partner of one side among the values of the other.
    """
    if len(numbers) == 2:
        return target in _values(*numbers)
    if len(numbers) == 3:
        a, b, c = numbers
        return not (
            _partners(c, target).isdisjoint(_values(a, b))
            and _partners(b, target).isdisjoint(_values(a, c))
            and _partners(a, target).isdisjoint(_values(b, c))
        )
    a, b, c, d = numbers
    ab, ac, ad = _values(a, b), _values(a, c), _values(a, d)
    bc, bd, cd = _values(b, c), _values(b, d), _values(c, d)
    for pair, other in ((ab, cd), (ac, bd), (ad, bc)):
        for value in pair:
            if not _partners(value, target).isdisjoint(other):
                return True
    for last, (x, yz), (y, xz), (z, xy) in (
        (a, (b, cd), (c, bd), (d, bc)),
        (b, (a, cd), (c, ad), (d, ac)),
        (c, (a, bd), (b, ad), (d, ab)),
        (d, (a, bc), (b, ac), (c, ab)),
    ):
        partners = _partners(last, target)
        for single, pair in ((x, yz), (y, xz), (z, xy)):
            for value in pair:
                if not partners.isdisjoint(_values(value, single)):
                    return True
    return False


def _first_solution(numbers: tuple[int, ...], target: int) -> list[str] | None:
    """The first solution of the depth-first search the module describes, None if unsolvable."""
    if len(numbers) == 1:
        return [] if numbers[0] == target else None
    for i, j in combinations(range(len(numbers)), 2):
        rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
        for value, equation in _steps(numbers[i], numbers[j]):
            left = (*rest, value)
            if len(left) > 1 and not _reaches(left, target):
                continue
            tail = _first_solution(left, target)
            if tail is not None:
                return [equation, *tail]
    return None


def generate_countdown(rng: random.Random, numbers: int) -> Puzzle:
    """Return a solvable Countdown with so many numbers and its reference solution.

    The target is uniform in 10..100, the numbers uniform in 1..99 among those that can make
    it with every number used exactly once. Raises ValueError unless 3 <= numbers <= 5.
    """
    if not 3 <= numbers <= 5:
        raise ValueError(f"A Countdown has 3, 4 or 5 numbers, but {numbers} were asked for.")
    target = rng.randint(MIN_TARGET, MAX_TARGET)
    while True:
        drawn = tuple(rng.randint(1, MAX_NUMBER) for _ in range(numbers))
        # Five numbers make most targets, so there the search itself is the cheaper test.
        if numbers < 5 and not _reaches(drawn, target):
            continue
        solution = _first_solution(drawn, target)
        if solution is not None:
            break
    return Puzzle("countdown", ",".join(map(str, (*drawn, target))), ",".join(solution))


def _countdown_numbers(input: str) -> tuple[list[int], int]:
    if not _COUNTDOWN_INPUT.fullmatch(input):
        raise ValueError(
            "A Countdown is whole numbers with commas between them, the target last, "
            f"not {_shown(input)}."
        )
    *numbers, target = map(int, input.split(","))
    return numbers, target


def _countdown_is_solved(input: str, answer: str) -> bool:
    numbers, target = _countdown_numbers(input)
    equations = answer.split(",", maxsplit=len(numbers))
    if len(equations) != len(numbers) - 1:
        return False  # n numbers are used up by exactly n - 1 steps
    available = Counter(numbers)
    result = None
    for equation in equations:
        match = _EQUATION.fullmatch(equation)
        if match is None:
            return False
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        for operand in (left, right):
            if not available[operand]:
                return False
            available[operand] -= 1
        operator = match[2]
        if operator == "+":
            correct = left + right == result
        elif operator == "-":
            correct = left - right == result
        elif operator == "*":
            correct = left * right == result
        else:
            correct = right != 0 and right * result == left
        if not correct:
            return False
        available[result] += 1
    return result == target


# ---------------------------------------------------------------------------------------
# Both


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
    check = _sudoku_is_solved if _checked_kind(kind) == "sudoku" else _countdown_is_solved
    try:
        return check(input, answer)
    except ValueError:  # the input is not a puzzle
        return False


def generate_puzzles(
    seed: int, mixture: Mapping[str, float], held_out: Collection[str] = ()
) -> Iterator[Puzzle]:
    """Return an endless stream of puzzles; the same arguments give the same stream.

    `mixture` gives the weight of "sudoku_4x4" (4 to 12 givens, equally likely), "sudoku_9x9" (30
    to 50), "countdown_3", "countdown_4" and "countdown_5". No puzzle whose `canonical` form is in
    `held_out` is ever yielded. Raises ValueError, at once rather than at the first puzzle,
    for an unknown name or weights that are not finite, not negative and not all zero.
    """
    unknown = sorted(set(mixture) - set(MIXTURE_NAMES))
    if unknown:
        raise ValueError(
            f"A mixture has no part {unknown[0]!r}; its parts are {', '.join(MIXTURE_NAMES)}."
        )
    weights = [float(mixture.get(name, 0.0)) for name in MIXTURE_NAMES]
    if not all(w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ValueError(
            "The weights of a mixture must be finite and not negative, and one must be positive."
        )
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

    Raises ValueError, naming the file and the line, for a line that is not such an object
    or whose output does not solve its input, and for an unknown kind; OSError if the file
    cannot be read.
    """
    _checked_kind(kind)
    puzzles = []
    lines = Path(path).read_bytes().removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}:"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} this is not a JSON object.") from None
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
        raise ValueError(f"A puzzle is of the kind {' or '.join(KINDS)}, not {_shown(kind)}.")
    return kind


def _shown(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
