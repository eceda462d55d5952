"""LiveCodeBench: its release is read without executing anything, and programs are judged."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path

import pytest
from evaluation_files import (
    LIVE_CALL_ANSWER,
    LIVE_CALL_ROW,
    LIVE_STDIN_ROW,
    lines_of,
    live_tests,
    packed,
    write_code_files,
)
from parrot import evaluate_parrot

from softmask.cli.main import main
from softmask.evaluation.tasks.livecodebench import attempts, livecodebench_row
from softmask.evaluation.tasks.livecodebench import fenced as last_program

EACH_LINE = "print(sum(map(int, line.split())))"
RIGHT = {
    "input": f"while True:\n    try:\n        line = input()\n    except EOFError:\n        break\n"
    f"    {EACH_LINE}",
    "main": f"def main():\n    for line in sys.stdin:\n        {EACH_LINE}\n\n"
    "if __name__ == '__main__':\n    main()",
    "open": f"for line in open(0).read().splitlines():\n    {EACH_LINE}\nexit()",
    "bytes": "import sys\nfor line in sys.stdin.buffer:\n"
    "    sys.stdout.buffer.write(b'%d.0 \\n' % sum(map(int, line.split())))",
    "names": f"for line in stdin.readlines():\n    {EACH_LINE}\nstdout.close()",
}
WRONG = {
    "constant": "print(3)\nprint(7)",
    "one line": f"line = input()\n{EACH_LINE}",
    "silent": "import os\nos._exit(0)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_code_files(tmp_path_factory.mktemp("live"))


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def test_all_files_of_the_release_are_read_and_references_pass_by_difficulty(folder) -> None:
    results, model = evaluate_parrot(
        ["livecodebench"],
        folder,
        lambda doc: LIVE_CALL_ANSWER if doc["fn_name"] else fenced(WRONG["constant"]),
    )
    found = results["results"]["livecodebench"]
    names = ("", "_easy", "_hard")
    assert [found[f"pass@1{name},create_test"] for name in names] == [0.5, 0, 1]
    assert "pass@1_medium,create_test" not in found
    stdin, call = (prompt for prompt, _ in model.asked)
    assert "Read the inputs from stdin" in stdin
    assert f"```python\n{LIVE_CALL_ROW['starter_code']}\n```" in call


def test_programs_that_read_and_write_in_any_way_are_judged_by_their_lines() -> None:
    doc = livecodebench_row(LIVE_STDIN_ROW)
    programs = [*RIGHT.values(), *WRONG.values()]
    (found,) = attempts([[*map(fenced, programs), RIGHT["input"]]], [doc])
    passed = [attempt.verdicts()["pass@1"]["passed"] for attempt in found]
    assert passed == [True] * len(RIGHT) + [False] * (len(WRONG) + 1)
    assert found[len(RIGHT)]["program"] == WRONG["constant"]
    assert "'3' and not '11'" in found[len(RIGHT)]["verdicts"]["pass@1"]["reason"]


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def pack(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


@pytest.mark.parametrize(
    ("private", "message"),
    [
        (pack(Evil()), "no pickle of one string .it has the instruction STACK_GLOBAL"),
        (pack(["a", "b"]), "no pickle of one string .it has the instruction EMPTY_LIST"),
        (pack(1), "no pickle of one string .it has the instruction BININT1"),
        ("%%%", "private tests cannot be unpacked"),
        (base64.b64encode(b"text").decode(), "private tests cannot be unpacked"),
        (packed([])[:-8], "cut off"),
        (pack("[") , "not JSON"),
        (pack('[{"input": "1"}]'), "a test needs the fields input, output"),
        (pack('[{"input": "1", "output": 2}]'), "input and output of a test are texts"),
    ],
)  # fmt: skip
def test_private_tests_are_read_and_never_executed(private, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        livecodebench_row(LIVE_STDIN_ROW | {"private_test_cases": private})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": None}, ":1: a row needs the fields question_id"),
        ({"difficulty": "odd"}, ":1: the difficulty is none of easy, medium, hard"),
        ({"private_test_cases": "x"}, ":1: the private tests cannot be unpacked"),
        (
            {"public_test_cases": "[]", "private_test_cases": packed([])},
            ":1: there are no tests",
        ),
        ({"metadata": "[]"}, ":1: metadata is no mapping"),
        ({"metadata": "[" * 100_000}, ":1: metadata or tests are not JSON"),
    ],
)
def test_a_wrong_row_is_one_sentence_before_anything_runs(change, message, tmp_path, capsys):
    row = {k: v for k, v in (LIVE_STDIN_ROW | change).items() if v is not None}
    (tmp_path / "livecodebench").mkdir()
    (tmp_path / "livecodebench" / "test.jsonl").write_bytes(lines_of([row]))
    words = ["--model", "/none", "--data-dir", str(tmp_path), "--confirm-run-unsafe-code"]
    assert main(["eval", "--tasks", "livecodebench", *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


def test_of_several_programs_in_an_answer_the_last_counts() -> None:
    answer = f"First:\n{fenced('print(1)')}\nNo. Rather:\n{fenced('print(2)')}\nDone."
    assert last_program(answer).strip() == "print(2)"


def test_tests_that_are_json_as_they_are_are_read_too() -> None:
    tests = live_tests("stdin", ("1", "1"))
    row = livecodebench_row(LIVE_STDIN_ROW | {"private_test_cases": json.dumps(tests)})
    assert row["fn_name"] == ""
