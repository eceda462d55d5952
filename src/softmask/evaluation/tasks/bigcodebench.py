"""BigCodeBench (arXiv 2406.15877): functions that use many libraries, judged by their unit tests.

A test patches and inspects objects of the program (figures, frames, files), so it runs beside it,
in the candidate's process. The judge asks it how many tests ran and what failed, and knows how
many there are. A wrong program does not pass; one that set out to deceive its own tests could.

Not every problem can be judged everywhere: a package is not installed, or the sandbox forbids
what a problem needs (processes, the network). So every reference solution is judged too, and where
it fails, or a package is missing, a problem counts as skipped and not as wrong.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from ..sandbox import Limits
from .programs import Attempt, Attempts, Row, Test, block_of

__all__ = ["bigcodebench_row", "complete_attempts", "instruct_attempts", "judged_results"]

# As its own evaluation has it, but for the memory, of which that allows 30 GB.
LIMITS = Limits(seconds=240, cpu_seconds=240, memory_mb=4096, files=1000, libraries=True)
_RUNNER = """

def _tested():
    import unittest
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestCases).run(result)
    return result.testsRun, [
        f"{test.id().rpartition('.')[2]}: {trace.strip().splitlines()[-1]}"
        for test, trace in result.failures + result.errors
    ]
"""
_TEST = """
ran, problems = _tested()
assert not problems, problems[0]
assert ran == {count}, f"{{ran}} tests ran and not {count}"
"""


def bigcodebench_row(row: Row) -> Row:
    """Return the row as it is. Raises ValueError for a test that is none."""
    try:
        ast.parse(_reference(row))
        count = _count(row["test"])
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"solution or test are no program ({error}).") from None
    if not count:
        raise ValueError("the test has no class TestCases with tests.")
    return row


def _reference(doc: Row) -> str:
    return str(doc["complete_prompt"] + doc["canonical_solution"])


def _count(test: str) -> int:
    """How many tests there are."""
    cases = [n for n in ast.parse(test).body if getattr(n, "name", "") == "TestCases"]
    names = {getattr(part, "name", "") for case in cases for part in getattr(case, "body", [])}
    return sum(name.startswith("test") for name in names)


def complete_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the prompt and its continuation."""
    return _attempts(answers, docs, lambda text, doc: doc["complete_prompt"] + text)


def instruct_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the code blocks, behind the imports and the head of the function."""
    return _attempts(
        answers, docs, lambda text, doc: f"{doc['code_prompt']}\n    pass\n\n{block_of(text)}"
    )


def _attempts(
    answers: Sequence[Sequence[str]], docs: Sequence[Row], program: Callable[[str, Row], str]
) -> Attempts:
    batch: list[Attempt] = []
    found = []
    for texts, doc in zip(answers, docs, strict=True):
        missing = _missing(doc)
        tests = {"pass@1": Test(_TEST.format(count=_count(doc["test"])), LIMITS, _setup(doc))}
        judged = batch if not missing else []
        reference = Attempt(_reference(doc), tests, judged)
        attempts = [Attempt(program(text, doc), tests, judged) for text in texts]
        for attempt in attempts:
            attempt.update(missing=missing, reference=reference)
        found.append(attempts)
    return found


def _setup(doc: Row) -> str:
    return f"\n{doc['test']}\n{_RUNNER}"


def _missing(doc: Row) -> list[str]:
    """The packages that reference and test import, and that are not installed here."""
    names = set()
    for node in ast.walk(ast.parse(f"{_reference(doc)}\n{doc['test']}")):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return sorted(name for name in names if not _is_installed(name))


@functools.cache
def _is_installed(name: str) -> bool:
    # find_spec raises for the script that runs, which every program has one of.
    known = name == "__main__" or name in sys.stdlib_module_names
    return known or importlib.util.find_spec(name) is not None


def judged_results(doc: Row, filtered: list[list[Any]]) -> dict[str, float]:
    """The part of the attempts that passed, or that the problem cannot be judged here."""
    attempts = filtered[0]
    first = attempts[0]
    if first["missing"] or not first["reference"].verdicts()["pass@1"]["passed"]:
        return {"skipped": 1.0}
    passed = fmean(attempt.verdicts()["pass@1"]["passed"] for attempt in attempts)
    return {"pass@1": passed, "skipped": 0.0}
