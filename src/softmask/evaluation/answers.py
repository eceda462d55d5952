"""Find the answer in generated text and check it by rule. Text in, verdict out; no model, no data.

Diffusion models leave marks of their own: tags that never close, braces that never close,
words cut in the middle, and special tokens after the end. An answer here is only what the text
itself marks as one (a box, an <answer> block, a grid at the end): nothing is repaired, and what
cannot be read is no answer. No function here raises for what a model may write, and none of
them evaluates it as code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from ..puzzles.puzzles import is_solved

__all__ = [
    "answer_block",
    "countdown_answer",
    "last_boxed",
    "math_answer",
    "solves_countdown",
    "solves_sudoku",
    "sudoku_answer",
    "visible",
]

_SPECIAL = re.compile(r"<\|[a-z_]+\|>|</s>")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# A box without braces: TeX allows it, and then it reaches to the end of the formula on its line.
_UNBRACED = re.compile(
    r"\\(?:boxed|fbox)[ \t]+"
    r"((?![{}\s])(?:[^$\\\n]|\\(?![)\]]|boxed|fbox)){1,200}?)[ \t]*(?:\$|\\[)\]])"
)
_TAG = re.compile(r"</?(?:answer|reasoning)\b")
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_SIXTEEN = re.compile(r"(?<![0-9])[0-4]{16}(?![0-9])")
_BETWEEN_CELLS = str.maketrans("", "", " \t|,")
# Enough for any answer to five numbers; the bounds keep hostile arithmetic small.
_MAX_TOKENS = 64
_TOKENS = re.compile(r"\s*(?:([0-9]{1,12})|([-+*/()]))")
_OPERATORS = (
    *((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), (r"\left", ""), (r"\right", "")),
    *(("\u00d7", "*"), ("\u00f7", "/"), ("\u2212", "-"), ("\\(", ""), ("\\)", ""), ("$", "")),
)


def visible(text: str) -> str:
    """Return the text up to its first special token, as a reader of the answer sees it."""
    return _SPECIAL.split(text, maxsplit=1)[0]


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} whose braces balance contains, None without one.

    So does \boxed 5 where a formula ends behind it: $\boxed 5$.
    """
    found: tuple[int, str] | None = None
    opened: list[int | None] = []  # where the content of a box starts, None for other braces
    for mark in _BRACES.finditer(text):
        if mark[0].startswith("\\") and not mark[0].endswith("{"):
            continue  # \{, \frac: an escaped character opens and closes nothing
        if mark[0] == "\\{":
            continue
        if mark[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (found is None or start > found[0]):
                found = (start, text[start : mark.start()].strip())
        else:
            opened.append(mark.end() if mark[0] != "{" else None)
    for box in _UNBRACED.finditer(text):
        balanced = box[1].count("{") == box[1].count("}")
        if balanced and (found is None or box.start(1) > found[0]):
            found = (box.start(1), box[1])
    return found[1] if found else None


def answer_block(text: str) -> str | None:
    """Return what the last <answer>...</answer> contains, None without one."""
    blocks = _ANSWER.findall(text)
    return blocks[-1].strip() if blocks else None


def math_answer(text: str) -> str | None:
    """Return the final answer of a solution: its last box, or without one its last answer block.

    None where neither can be read or what counts is empty.
    """
    text = visible(text)
    boxed = last_boxed(text)
    answer = answer_block(text) if boxed is None else boxed
    if answer is None:
        return None
    # A brace of other text may close a box behind a tag: "\boxed{120\n</answer}".
    answer = _TAG.split(answer, maxsplit=1)[0].strip()
    return answer or None


# ---------------------------------------------------------------------------------------
# Countdown


def countdown_answer(text: str) -> str | None:
    """Return the expression or the equations a Countdown answer gives, in plain operators."""
    answer = math_answer(text)
    if answer is None:
        return None
    for written, plain in _OPERATORS:
        answer = answer.replace(written, plain)
    return answer.strip()


def solves_countdown(numbers: Sequence[int], target: int, answer: str | None) -> bool:
    """Whether an expression, or a chain of equations, makes the target of a Countdown.

    Every number must be used exactly once; a result of an earlier equation counts as a number
    from then on. The arithmetic is exact: 7/2 is not 3. What stands behind an equals sign must
    be the value of what stands before it.
    """
    available = Counter(map(Fraction, numbers))
    result: Fraction | None = None
    for equation in re.split(r"[,;\n]", answer or ""):
        left, *right = equation.split("=")
        try:
            result, used = _evaluated(left)
            if any(_evaluated(side)[0] != result for side in right):
                return False
        except (ValueError, ZeroDivisionError):
            return False
        if Counter(used) - available:
            return False
        available = available - Counter(used) + Counter([result])
    return result == target and available.total() == 1


def _evaluated(expression: str) -> tuple[Fraction, list[Fraction]]:
    """The value of an expression and the numbers in it; ValueError if it is none."""
    tokens: list[str] = []
    position = 0
    expression = expression.rstrip()
    while position < len(expression):
        match = _TOKENS.match(expression, position)
        if match is None or len(tokens) == _MAX_TOKENS:
            raise ValueError("not an expression")
        tokens.append(match[1] or match[2])
        position = match.end()
    numbers = [Fraction(token) for token in tokens if token.isdigit()]
    tokens.reverse()  # read from the end with pop()
    value = _sum(tokens)
    if tokens:
        raise ValueError("not an expression")
    return value, numbers


def _sum(tokens: list[str]) -> Fraction:
    value = _product(tokens)
    while tokens and tokens[-1] in "+-":
        value = value + _product(tokens) if tokens.pop() == "+" else value - _product(tokens)
    return value


def _product(tokens: list[str]) -> Fraction:
    value = _atom(tokens)
    while tokens and tokens[-1] in "*/":
        value = value * _atom(tokens) if tokens.pop() == "*" else value / _atom(tokens)
    return value


def _atom(tokens: list[str]) -> Fraction:
    if not tokens:
        raise ValueError("not an expression")
    token = tokens.pop()
    if token.isdigit():
        return Fraction(token)
    if token == "-":
        return -_atom(tokens)
    if token != "(":
        raise ValueError("not an expression")
    value = _sum(tokens)
    if not tokens or tokens.pop() != ")":
        raise ValueError("not an expression")
    return value


# ---------------------------------------------------------------------------------------
# Sudoku


def sudoku_answer(text: str) -> str | None:
    """Return the 16 digits of a 4x4 grid, None without one.

    They are read from the answer block or the box if there is one, and from the whole text
    otherwise; the last grid counts. A grid is 16 digits in a row, or four lines of four with
    spaces, commas or bars between them and perhaps lines drawn in between.
    """
    text = visible(text)
    marked = answer_block(text) or last_boxed(text)
    grid, rows = None, []
    for line in (text if marked is None else marked).splitlines():
        cells = line.translate(_BETWEEN_CELLS)
        if re.fullmatch(r"[0-4]{4}", cells):
            rows.append(cells)
        elif cells.strip("-+") or not cells:  # anything but a drawn line
            rows = []
        grid = next(reversed(_SIXTEEN.findall(line)), grid)
        if len(rows) == 4:
            grid, rows = "".join(rows), []
    return grid


def solves_sudoku(givens: str, answer: str | None) -> bool:
    """Whether 16 digits fill a 4x4 Sudoku, itself 16 digits with 0 for a blank, by the rules."""
    return answer is not None and is_solved("sudoku", _rows(givens), _rows(answer))


def _rows(digits: str) -> str:
    return "\n".join(digits[start : start + 4] for start in range(0, len(digits), 4))
