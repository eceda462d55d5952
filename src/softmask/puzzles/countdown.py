"""Countdown as text: make a target from numbers by + - * /, every number used once.

An input is "number,...,number,target"; an answer is equations "a-b=c" with commas between them.

A puzzle draws a target between 10 and 100 and numbers between 1 and 99, uniformly among the draws
that can be solved with every number used once. Its reference answer is the first solution of a
depth-first search over pairs from left to right (the result goes to the end of the list) that
tries +, *, - and / in this order; - and / put the larger operand first and / must be exact. All
3,000 reference outputs of Dream's evaluation files are this solution.

Needs the standard library only.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import lru_cache
from itertools import combinations

MIN_TARGET, MAX_TARGET = 10, 100
MAX_NUMBER = 99

# Twelve digits hold any product of five two-digit numbers; the bound keeps the arithmetic
# on a hostile answer small.
_NUMBER = r"(0|[1-9][0-9]{0,11})"
_INPUT = re.compile(rf"{_NUMBER}(?:,{_NUMBER}){{1,8}}")
_EQUATION = re.compile(rf"\s*{_NUMBER}\s*([-+*/])\s*{_NUMBER}\s*=\s*{_NUMBER}\s*")


def generate(rng: random.Random, numbers: int) -> tuple[str, str]:
    """A solvable Countdown with so many numbers, and its reference answer.

    Raises:
        ValueError: `numbers` is not 3, 4 or 5.
    """
    if not 3 <= numbers <= 5:
        raise ValueError(f"A Countdown has 3, 4 or 5 numbers, but {numbers} were asked for.")
    target = rng.randint(MIN_TARGET, MAX_TARGET)
    while True:
        drawn = tuple(rng.randint(1, MAX_NUMBER) for _ in range(numbers))
        # Five numbers make most targets, so there the search itself is the cheaper test.
        if numbers < 5 and not _reaches(drawn, target):
            continue
        solution = first_solution(drawn, target)
        if solution is not None:
            break
    return ",".join(map(str, (*drawn, target))), ",".join(solution)


def numbers_of(input: str) -> tuple[list[int], int]:
    """The numbers of an input, and the target.

    Raises:
        ValueError: the input is no Countdown.
    """
    if not _INPUT.fullmatch(input):
        raise ValueError(
            "A Countdown is whole numbers with commas between them, the target last, "
            f"not {input!r:.60}."
        )
    *numbers, target = map(int, input.split(","))
    return numbers, target


def is_solved(input: str, answer: str) -> bool:
    """Whether the equations use every number once and make the target; see `puzzles.is_solved`.

    Raises:
        ValueError: the input is no Countdown.
    """
    numbers, target = numbers_of(input)
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


def first_solution(numbers: tuple[int, ...], target: int) -> list[str] | None:
    """The first solution of the depth-first search described above; None: there is none."""
    if len(numbers) == 1:
        return [] if numbers[0] == target else None
    for i, j in combinations(range(len(numbers)), 2):
        rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
        for value, equation in _steps(numbers[i], numbers[j]):
            left = (*rest, value)
            if len(left) > 1 and not _reaches(left, target):
                continue
            tail = first_solution(left, target)
            if tail is not None:
                return [equation, *tail]
    return None
