"""Whether a program answers the tests of a LiveCodeBench problem: the rules of its own runner.

The text of this file becomes part of the tests that judge a program (see livecodebench.py), so it
needs the standard library only and runs where this package cannot be imported.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

SECONDS = 6.0  # of one test


def compare_outputs(run: Callable[[str], str], tests: Sequence[tuple[str, str]]) -> None:
    """Give a program each input, and compare what it printed line by line.

    Raises AssertionError where it is wrong, TimeoutError where it takes too long, and what the
    program raises.
    """
    for given, expected in tests:
        printed = _within(run, (given,))
        assert type(printed) is str, "the program printed no text"
        lines, wanted = _lines(printed), _lines(expected)
        assert len(lines) == len(wanted), (
            f"{len(lines)} lines and not {len(wanted)} for the input {given!r:.200}"
        )
        for line, right in zip(lines, wanted, strict=True):
            assert _alike(line, right), (
                f"{line!r:.100} and not {right!r:.100} for the input {given!r:.200}"
            )


def compare_values(call: Callable, tests: Sequence[tuple[str, str]]) -> None:
    """Call a function with the arguments of each input, a JSON value a line; raises likewise."""
    for given, expected in tests:
        arguments = [json.loads(line) for line in given.split("\n")]
        value = _within(call, arguments)
        # JSON has no tuples.
        found = list(value) if type(value) is tuple else value
        right = json.loads(expected)
        assert found == right, f"{found!r:.100} and not {right!r:.100} for the input {given!r:.200}"


def _within(function: Callable, arguments: Sequence) -> Any:
    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return function(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _alike(line: str, right: str) -> bool:
    """Equal as texts, or as numbers of any notation."""
    if line == right:
        return True
    try:
        found, wanted = ([Decimal(word) for word in text.split()] for text in (line, right))
    except InvalidOperation:
        return False
    return found == wanted
