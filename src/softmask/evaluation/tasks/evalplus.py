"""Rows of the EvalPlus releases (HumanEvalPlus.jsonl.gz, MbppPlus.jsonl.gz) in the Hub's layout.

The releases hold inputs and a reference solution; the data sets on the Hub hold a test made of
both. So a test is made here: it runs the reference and the candidate on every input and compares
by oracle.py.

Tests are heavy: Mbpp/599 adds up 100,000,005 numbers for one of its inputs, and takes 35 s for
all, half of them for the reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .oracle import AS_SETS

__all__ = ["humaneval_plus_row", "mbpp_plus_row"]

_ORACLE = Path(__file__).with_name("oracle.py")

# What JSON could not keep. EvalPlus lists it per problem (evalplus/data/mbpp.py, Apache-2.0):
# the numbers after "Mbpp/" of those whose arguments contain tuples, by where the tuples are.
_EVERY_ARGUMENT = {
    *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424),
    *(429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
}
_ITEMS_OF_EVERY_ARGUMENT = {
    *(63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
}
_ITEMS_OF_THE_FIRST = {75, 413, 444, 753}
_THE_FIRST = {250, 307, 405, 446, 617, 720, 763, 808}
_THE_SECOND = {106, 750}
_ARGUMENTS_AND_THEIR_ITEMS = {259, 278, 401, 445}
_ALL_LISTS = {580, 615, 791}

# Mbpp/255 asks for all ways to draw some of a few colours. Five of its inputs draw 76 or 77, up
# to 128 million strings, more than a sandboxed program may answer; the others draw 13 at most.
_MOST_DRAWS = 20


def humaneval_plus_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as evalplus/humanevalplus has it, with the original test as `base_test`."""
    reference = row["prompt"] + row["canonical_solution"]
    return {
        **{key: row[key] for key in ("task_id", "prompt", "canonical_solution", "entry_point")},
        "test": _test("check", reference, row, lambda arguments: arguments),
        "base_test": row["test"],
    }


def mbpp_plus_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as evalplus/mbppplus has it.

    Raises ValueError for a prompt that is not a text and an assertion in triple quotes.
    """
    number = int(row["task_id"].removeprefix("Mbpp/"))
    prompt = re.fullmatch(r'"""\n(.*)\n(assert .*)\n"""\n?', row["prompt"], re.DOTALL)
    if prompt is None:
        raise ValueError(f"{row['task_id']}: the prompt is not a text and one assertion.")
    lines = row["assertion"].strip().split("\n")
    assertions = _assertions(prompt[2], lines, row["entry_point"])
    reference = row["prompt"] + row["canonical_solution"]
    # Mbpp/56 asks for a function named check.
    test = _test("extended_check", reference, row, lambda inputs: _with_tuples(number, inputs))
    return {
        "task_id": number,
        "code": row["canonical_solution"],
        "prompt": prompt[1],
        # Three problems (120, 293, 742) use math without an import of it.
        "test_imports": ["import math"] if "math." in "".join(assertions) else [],
        "test_list": assertions,
        "test": f"{test}\nextended_check({row['entry_point']})\n",
    }


def _assertions(shown: str, lines: list[str], entry_point: str) -> list[str]:
    """The assertions in the order of the Hub, where the one shown in the prompt comes first.

    EvalPlus put an assertion before it in four problems and reworded it in five (Mbpp/2 and 140
    lost the sets, 120, 293 and 742 got math.isclose, all of which a model should not see).
    """
    assertions = [line for line in lines if line.startswith("assert ")]
    squeezed = [re.sub(r"\s", "", line) for line in assertions]
    target = re.sub(r"\s", "", shown)
    at = squeezed.index(target) if target in squeezed else 0
    ordered = [shown, *assertions[at + 1 :], *assertions[:at]]
    if entry_point in AS_SETS and shown.startswith("assert set("):
        ordered = [_as_sets(line) for line in ordered]
    return ordered


def _as_sets(assertion: str) -> str:
    if assertion.startswith("assert set("):
        return assertion
    call, value = assertion.removeprefix("assert ").split(" == ")
    return f"assert set({call}) == {value if value.startswith('set(') else f'set({value})'}"


def _test(name: str, reference: str, row: dict[str, Any], read: Callable[[list], Any]) -> str:
    given = [*row["base_input"], *(row["plus_input"] or ())]
    if row["task_id"] == "Mbpp/255":
        given = [arguments for arguments in given if arguments[1] <= _MOST_DRAWS]
    inputs = [read(arguments) for arguments in given]
    # As strings inside the test, so that no name of the oracle or the reference clashes with the
    # candidate's.
    # JSON's Infinity and NaN come back as inf and nan, which are names in Python.
    return f"""\
def {name}(candidate):
    space = {{"__name__": "oracle", "inf": float("inf"), "nan": float("nan")}}
    exec({_ORACLE.read_text(encoding="utf-8")!r}, space)
    inputs = eval({repr(inputs)!r}, space)
    space["compare"](candidate, {reference!r}, {row["entry_point"]!r}, inputs, {row["atol"]!r})
"""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _items(value: list) -> list:
    return [_tuple(item) for item in value]


def _deep(value: Any) -> Any:
    return tuple(_deep(item) for item in value) if isinstance(value, list) else value


def _with_tuples(number: int, arguments: list) -> Any:
    """The arguments of problem `number` with what they were before they became JSON."""
    first, *rest = arguments
    if number in _EVERY_ARGUMENT:
        return [_tuple(argument) for argument in arguments]
    if number in _ITEMS_OF_EVERY_ARGUMENT:
        return [_items(argument) for argument in arguments]
    if number in _ITEMS_OF_THE_FIRST:
        return [_items(first), *rest]
    if number in _THE_FIRST:
        return [_tuple(first), *rest]
    if number in _THE_SECOND:
        return [first, *map(_tuple, rest)]
    if number in _ARGUMENTS_AND_THEIR_ITEMS:
        return [tuple(_items(argument)) for argument in arguments]
    if number in _ALL_LISTS:
        return [_deep(argument) for argument in arguments]
    if number == 115:  # a list of sets, in which {} stands for the empty one as in the data set
        return [[set(item) if isinstance(item, list) and item else {} for item in first]]
    if number == 124:
        return [float(first), complex(*rest)]
    if number == 252:
        return [complex(first)]
    if number == 722:
        return [{key: tuple(value) for key, value in first.items()}, *rest]
    return arguments
