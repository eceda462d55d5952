"""LiveCodeBench's code generation (arXiv 2403.07974): rows of its release, and how they are judged.

A problem is answered by a program that reads its standard input, or by a function, of a class
`Solution` mostly. Private tests are a text in base64 of a zlib stream of a pickle of one string.
The pickle is read without being executed: it may hold a string and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sandbox import Limits
from .programs import Attempts, Row, Test, attempts_of, results

__all__ = ["attempts", "difficulty_results", "livecodebench_row"]

_ORACLE = Path(__file__).with_name("live_oracle.py")
DIFFICULTIES = ("easy", "medium", "hard")
# What its runner puts before every program.
_NAMES_OF = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins"),
)
_MODULES = tuple(name for name in _NAMES_OF if name != "builtins")
PRELUDE = "".join(f"from {name} import *\n" for name in (*_NAMES_OF, "typing"))
PRELUDE += f"import {', '.join(_MODULES)}\nsys.setrecursionlimit(50000)\n"
# All tests of a problem: up to some sixty, each of which may take 6 s. Memory is its runner's.
LIMITS = Limits(seconds=420, cpu_seconds=400, memory_mb=4096)
# Far more than the largest private tests, which are some tens of megabytes.
MOST_BYTES = 2**30

# Runs the program for an input as a script, in a module of its own each time.
_RUNNER = """\
import builtins, io, sys

class _Kept(io.BytesIO):
    def close(self):
        pass

def _read(text):
    return io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")

def _run(given):
    kept = _Kept()
    written = io.TextIOWrapper(kept, encoding="utf-8", newline="\\n")
    before = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = _read(given), written
    space = {{"__name__": "__main__", "__builtins__": builtins}}
    def _open(file, *args, **kwargs):
        return _read(given) if file in (0, "/dev/stdin") else open(file, *args, **kwargs)
    try:
        exec({prelude!r}, space)
        space.update(open=_open, exit=sys.exit, quit=sys.exit)
        exec(_code, space)
    except SystemExit:
        pass
    finally:
        for stream in (sys.stdout, written):
            stream.flush()
        sys.stdin, sys.stdout = before
    return kept.getvalue().decode("utf-8", "replace")

_code = compile({program!r}, "<program>", "exec", dont_inherit=True)
"""
_CALLED = """
_owner = Solution() if "class Solution" in {program!r} else sys.modules["candidate"]
_call = getattr(_owner, {name!r})
"""


def livecodebench_row(row: Row) -> Row:
    """Return the row with what its tests call as `fn_name`; "" for a program that reads its input.

    Raises ValueError for tests that cannot be read, and where there are none.
    """
    try:
        metadata = json.loads(row["metadata"])
        tests = tests_of(row)
    except (TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"metadata or tests are not JSON ({error}).") from None
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no mapping.")
    if not tests:
        raise ValueError("there are no tests.")
    if row["difficulty"] not in DIFFICULTIES:
        raise ValueError(f"the difficulty is none of {', '.join(DIFFICULTIES)}.")
    kept = (
        *("question_id", "question_content", "starter_code", "platform", "difficulty"),
        *("contest_date", "public_test_cases", "private_test_cases"),
    )
    return {name: row[name] for name in kept} | {"fn_name": metadata.get("func_name") or ""}


def tests_of(row: Row) -> list[tuple[str, str]]:
    """Input and output of the public tests, then of the private ones.

    Raises ValueError for tests that cannot be read.
    """
    tests = json.loads(row["public_test_cases"])
    private = row["private_test_cases"]
    try:
        tests = tests + json.loads(private)
    except json.JSONDecodeError:  # the lite release packs them
        tests = tests + json.loads(_unpacked(private))
    fields = {"input", "output"}
    for test in tests:
        if not isinstance(test, dict) or not fields <= test.keys():
            raise ValueError("a test needs the fields input, output.")
        if not all(isinstance(test[name], str) for name in fields):
            raise ValueError("input and output of a test are texts.")
    return [(test["input"], test["output"]) for test in tests]


def _unpacked(packed: str) -> str:
    try:
        stream = zlib.decompressobj()
        pickled = stream.decompress(base64.b64decode(packed, validate=True), MOST_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ValueError(f"the private tests cannot be unpacked ({error}).") from None
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError("the private tests are cut off, or larger than a gigabyte.")
    return string_of_pickle(pickled)


def string_of_pickle(pickled: bytes) -> str:
    """The string that a pickle holds, read off its instructions: nothing is executed.

    Raises ValueError for a pickle of anything else.
    """
    found: list[Any] = []
    try:
        for code, argument, _ in pickletools.genops(pickled):
            if "UNICODE" in code.name:
                found.append(argument)
            elif code.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "STOP"):
                raise ValueError(f"it has the instruction {code.name}")
    except (ValueError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"the private tests are no pickle of one string ({error}).") from None
    if len(found) != 1:
        raise ValueError(f"the private tests are a pickle of {len(found)} strings, not of one.")
    return str(found[0])


@dataclass(frozen=True)
class LiveTest(Test):
    """The tests of a problem, read when they are needed: those of all would fill the memory."""

    text: str = ""
    limits: Limits = LIMITS
    row: Row = field(default_factory=dict)

    def pair(self, program: str) -> tuple[str, str]:
        """What the candidate runs, and the test."""
        oracle, name = _ORACLE.read_text(encoding="utf-8"), self.row["fn_name"]
        if name:
            code = f"{PRELUDE}\n{program}\n{_CALLED.format(program=program, name=name)}"
            return code, f"{oracle}\ncompare_values(_call, {tests_of(self.row)!r})\n"
        runner = _RUNNER.format(prelude=PRELUDE, program=program)
        return runner, f"{oracle}\ncompare_outputs(_run, {tests_of(self.row)!r})\n"


def attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are what stands between the last two lines with a fence, as in its own runner."""
    return attempts_of(
        answers, docs, lambda text, doc: fenced(text), lambda doc: {"pass@1": LiveTest(row=doc)}
    )


def fenced(text: str) -> str:
    """The lines between the last two that have a fence; "" without two."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def difficulty_results(doc: Row, filtered: list[list[Any]]) -> dict[str, float]:
    """The part of the attempts that passed, for all problems and for those of a difficulty."""
    passed = results(doc, filtered)["pass@1"]
    return {"pass@1": passed, f"pass@1_{doc['difficulty']}": passed}
