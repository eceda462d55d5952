"""Judge generated programs: from the answers of a model to pass@1.

lm-eval calls a metric once for every document, but a filter sees all answers of a task at once.
So a filter makes the programs (`*_attempts`, by upstream's rules) and the first document that is
scored has all of them judged together, in the sandbox and in parallel. Under `predict_only`, where
nothing is scored, nothing is executed either. The verdicts are written into the filtered
answers: the log of a sample shows the program, and for each criterion whether it passed and why
not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..sandbox import Limits, judge_all

__all__ = [
    "Attempt",
    "Attempts",
    "Row",
    "Test",
    "attempts_of",
    "block_of",
    "helpers_of",
    "humaneval_attempts",
    "humaneval_instruct_attempts",
    "mbpp_attempts",
    "mbpp_block_attempts",
    "mbpp_fewshot_samples",
    "mbpp_instruct_attempts",
    "mbpp_plus_block_attempts",
    "mbpp_plus_instruct_attempts",
    "results",
]

Row = dict[str, Any]
Attempts = list[list["Attempt"]]


@dataclass(frozen=True)
class Test:
    """A trusted text that runs through with the names of a right program.

    `setup` belongs to the test as well, but works on the program's own objects, so that it runs
    as the end of the program.
    """

    text: str
    limits: Limits = Limits()
    setup: str = ""

    def pair(self, program: str) -> tuple[str, str]:
        """What the sandbox runs for a program: the candidate, and the test."""
        return program + self.setup, self.text


class _Pairs(Sequence[tuple[str, str]]):
    """What the sandbox runs, made when it is asked for: some tests are large."""

    def __init__(self, cases: Sequence[tuple[Attempt, str, Test]]) -> None:
        self._cases = cases

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        attempt, _, test = self._cases[index]
        return test.pair(attempt["program"])


# As in EvalPlus a program has 60 s, and a single call much less (oracle.py). The wall-clock limit
# includes the reference, which takes as long.
EXTENDED = Limits(seconds=150, cpu_seconds=60)


class Attempt(dict[str, Any]):
    """One program and its verdicts, which are empty until some attempt of its batch is judged.

    A dict, so that a log can write it; only its entries survive pickling and copying.
    """

    def __init__(self, program: str, tests: dict[str, Test], batch: list[Attempt]) -> None:
        super().__init__(program=program, verdicts={})
        self.tests = tests
        self.batch = batch
        batch.append(self)

    def __reduce__(self) -> tuple[type[dict], tuple[Row]]:
        return dict, (dict(self),)

    def verdicts(self) -> dict[str, Row]:
        """Return the verdict for every test; the first call judges the whole batch."""
        if not self["verdicts"]:
            _judge(self.batch)
        return self["verdicts"]


def _judge(batch: Sequence[Attempt]) -> None:
    cases = [(a, name, test) for a in batch for name, test in a.tests.items()]
    for limits in dict.fromkeys(test.limits for _, _, test in cases):
        alike = [case for case in cases if case[2].limits == limits]
        verdicts = judge_all(_Pairs(alike), limits)
        for (attempt, name, _), verdict in zip(alike, verdicts, strict=True):
            attempt["verdicts"][name] = {"passed": verdict.passed, "reason": verdict.reason}


def results(doc: Row, filtered: list[list[Attempt]]) -> dict[str, float]:
    """Return for every criterion the part of the attempts at this document that passed."""
    verdicts = [attempt.verdicts() for attempt in filtered[0]]
    return {name: fmean(v[name]["passed"] for v in verdicts) for name in verdicts[0]}


def attempts_of(
    answers: Iterable[Sequence[str]],
    docs: Iterable[Row],
    program: Callable[[str, Row], str],
    tests: Callable[[Row], dict[str, Test]],
) -> Attempts:
    """An attempt for each answer to each document, all of one batch."""
    batch: list[Attempt] = []
    return [
        [Attempt(program(answer, doc), tests(doc), batch) for answer in answers_to_one]
        for answers_to_one, doc in zip(answers, docs, strict=True)
    ]


# ---------------------------------------------------------------------------------------
# HumanEval


def humaneval_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the prompt and its continuation."""
    return attempts_of(answers, docs, lambda text, doc: doc["prompt"] + text, _humaneval_tests)


def humaneval_instruct_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the prompt and its continuation up to the end of the code block."""
    return attempts_of(
        answers, docs, lambda text, doc: doc["prompt"] + text.split("```")[0], _humaneval_tests
    )


def _humaneval_tests(doc: Row) -> dict[str, Test]:
    call = f"\ncheck({doc['entry_point']})"
    helpers = helpers_of(doc["prompt"], doc["entry_point"])
    if "base_test" not in doc:  # humaneval, or the data set on the Hub, where results are stored
        return {"pass@1": Test(helpers + doc["test"] + call)}
    return {
        "pass@1": Test(doc["test"] + call, EXTENDED),
        "pass@1_base": Test(helpers + doc["base_test"] + call),
    }


def helpers_of(code: str, entry_point: str) -> str:
    """The functions of a prompt beside the one to complete, which its test may call.

    Three tests do (HumanEval/32, 38, 50); a program could define them anew.
    """
    body = ast.parse(code).body
    defined = [node for node in body if isinstance(node, ast.FunctionDef)]
    if {node.name for node in defined} <= {entry_point}:
        return ""
    kept = [n for n in body if not (n in defined and n.name == entry_point)]
    return ast.unparse(ast.Module(kept, [])) + "\n\n"


# ---------------------------------------------------------------------------------------
# MBPP


def mbpp_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the answers as they are."""
    return attempts_of(answers, docs, lambda text, doc: text, _three_assertions)


def mbpp_instruct_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are what upstream extracts."""
    return attempts_of(answers, docs, lambda text, doc: _upstream_block(text), _three_assertions)


def mbpp_plus_instruct_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """As mbpp_instruct, but upstream judges by the first assertion alone."""
    return attempts_of(answers, docs, lambda text, doc: _upstream_block(text), _one_assertion)


def mbpp_block_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the code blocks; the criterion is upstream's."""
    return attempts_of(answers, docs, lambda text, doc: block_of(text), _three_assertions)


def mbpp_plus_block_attempts(answers: Sequence[Sequence[str]], docs: Sequence[Row]) -> Attempts:
    """Programs are the code blocks; the criterion is upstream's, one assertion."""
    return attempts_of(answers, docs, lambda text, doc: block_of(text), _one_assertion)


def _upstream_block(text: str) -> str:
    # lm_eval/tasks/mbpp/utils.py to the letter, for numbers that compare. It takes the first word
    # of an answer for the name of a language: "def f():" becomes " f():", and only answers that
    # begin with a new line can pass (its issue 3447). An unclosed block is an empty program.
    pattern = re.compile(r"```(?:\w+)?\n?(.*?)\n?```", re.DOTALL)
    blocks = pattern.findall("```" + text) or pattern.findall(text.replace("```python", "```"))
    return blocks[0] if blocks else ""


def block_of(text: str) -> str:
    """The code of an answer that continues an opened block, or opens one of its own."""
    fence = re.search(r"```(\w*)", text)
    # A fence with a language opens a block, and so does one before any text.
    if fence and (fence[1] or not text[: fence.start()].strip()):
        text = text[fence.end() :]
    return text.split("```")[0]


def _three_assertions(doc: Row) -> dict[str, Test]:
    return _mbpp_tests(doc, 3)


def _one_assertion(doc: Row) -> dict[str, Test]:
    return _mbpp_tests(doc, 1)


def _mbpp_tests(doc: Row, count: int) -> dict[str, Test]:
    imports = doc.get("test_imports") or []
    if isinstance(imports, str):  # a list as text in some copies of the data set
        imports = ast.literal_eval(imports)
    # Upstream leaves out both the imports and the set-up, so that a right program fails: ten
    # problems of MBPP+ call math.isclose, and Mbpp/367 builds its trees in the set-up.
    before = "".join(f"{line}\n" for line in imports)
    setup = "\n" + doc["test_setup_code"] if doc.get("test_setup_code") else ""
    assertions = before + "\n".join(doc["test_list"][:count])
    tests = {"pass_at_1": Test(assertions, setup=setup)}
    if "test" in doc:
        tests["pass_at_1_plus"] = Test(before + doc["test"], EXTENDED)
    return tests


def mbpp_fewshot_samples() -> list[Row]:
    """Return upstream's three shots, MBPP's problems 2, 3 and 4."""
    return [
        {
            "task_id": 2,
            "text": "Write a function to find the similar elements from the given two tuple lists.",
            "code": "def similar_elements(test_tup1, test_tup2):\r\n"
            "  res = tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) ",
            "test_list": [
                "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
                "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
                "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
            ],
            "is_fewshot": True,
        },
        {
            "task_id": 3,
            "text": "Write a python function to identify non-prime numbers.",
            "code": "import math\r\ndef is_not_prime(n):\r\n    result = False\r\n"
            "    for i in range(2,int(math.sqrt(n)) + 1):\r\n        if n % i == 0:\r\n"
            "            result = True\r\n    return result",
            "test_list": [
                "assert is_not_prime(2) == False",
                "assert is_not_prime(10) == True",
                "assert is_not_prime(35) == True",
            ],
            "is_fewshot": True,
        },
        {
            "task_id": 4,
            "text": "Write a function to find the largest integers from a given list of numbers "
            "using heap queue algorithm.",
            "code": "import heapq as hq\r\ndef heap_queue_largest(nums,n):\r\n"
            "  largest_nums = hq.nlargest(n, nums)\r\n  return largest_nums",
            "test_list": [
                "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] ",
                "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] ",
                "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)"
                "==[85, 75, 65, 58, 35]",
            ],
            "is_fewshot": True,
        },
    ]
