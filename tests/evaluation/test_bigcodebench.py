"""BigCodeBench: unit tests run beside a program; what cannot be judged here is counted apart."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest
from evaluation_files import BIGCODE_ROW, lines_of, write_code_files
from parrot import evaluate_parrot

from softmask.cli.main import main
from softmask.evaluation.evaluate import summarise
from softmask.evaluation.responses import Responses
from softmask.evaluation.sandbox import Limits, available, judge
from softmask.evaluation.tasks.bigcodebench import complete_attempts

confined = pytest.mark.skipif(
    not all(layer in available() for layer in ("namespace", "landlock", "seccomp")),
    reason="libraries run freely only where the kernel confines them",
)
LIBRARIES = Limits(seconds=120, libraries=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_code_files(tmp_path_factory.mktemp("bigcode"))


@confined
def test_references_pass_and_what_cannot_be_judged_here_is_skipped(folder) -> None:
    results, _ = evaluate_parrot(
        ["bigcodebench_complete"], folder, lambda doc: doc["canonical_solution"]
    )
    found = results["results"]["bigcodebench_complete"]
    # Of three problems one is judged: of another a package is missing, a third starts a process.
    assert found["pass@1,create_test"] == 1
    assert found["skipped,create_test"] == pytest.approx(2 / 3)
    one, missing, forbidden = results["samples"]["bigcodebench_complete"]
    assert one["pass@1"] == 1
    assert "pass@1" not in missing
    # The log says why.
    assert missing["filtered_resps"][0][0]["missing"] == ["nosuch"]
    verdict = forbidden["filtered_resps"][0][0]["reference"]["verdicts"]["pass@1"]
    assert verdict == {"passed": False, "reason": "forbidden: a system call"}
    json.dumps(results["samples"], default=str)


@confined
def test_wrong_programs_fail_with_the_test_that_they_fail() -> None:
    body = BIGCODE_ROW["canonical_solution"]
    wrong = {
        body.replace("return", "return 1 +"): "test_size: AssertionError: 4 != 3",
        body.replace("json.dump(value, file)", "file.write('[1]')"): "test_use: AssertionError",
        "    return 3\nimport os\nos._exit(0)\n": "ended before its tests",
        body
        + "import unittest\nunittest.TestCase.run = lambda self, result: None\n": "0 tests ran",
    }
    (found,) = complete_attempts([[body, *wrong]], [BIGCODE_ROW])
    right, *others = [attempt.verdicts()["pass@1"] for attempt in found]
    assert right["passed"]
    for verdict, reason in zip(others, wrong.values(), strict=True):
        assert not verdict["passed"]
        assert reason in verdict["reason"]


@confined
def test_the_score_comes_first_where_the_first_problem_is_skipped(folder) -> None:
    row = BIGCODE_ROW | {"test": "import nosuch\n" + BIGCODE_ROW["test"]}
    (folder / "first").mkdir()
    (folder / "first/BigCodeBench.jsonl").write_bytes(lines_of([row, BIGCODE_ROW]))
    results, _ = evaluate_parrot(
        ["bigcodebench_complete"], folder / "first", lambda doc: doc["canonical_solution"]
    )
    rows = summarise(results, Responses())
    assert [(row["metric"], row["value"]) for row in rows] == [("pass@1", 1), ("skipped", 0.5)]


def test_an_instruct_answer_stands_behind_the_head_of_its_function(folder) -> None:
    results, model = evaluate_parrot(
        ["bigcodebench_hard_instruct"], folder, lambda doc: "import os\nx = 1\n```\nDone."
    )
    (sample,) = results["samples"]["bigcodebench_hard_instruct"]
    program = sample["filtered_resps"][0][0]["program"]
    assert program == BIGCODE_ROW["code_prompt"] + "\n    pass\n\nimport os\nx = 1\n"
    assert results["results"]["bigcodebench_hard_instruct"]["skipped,create_test"] == 1
    (prompt, _) = model.asked[0]
    assert "solves the following problem in a markdown code block:\nWrite a value" in prompt
    assert prompt.endswith("```python\n")


@confined
def test_libraries_are_free_within_what_the_kernel_leaves(tmp_path) -> None:
    free = "import ctypes, os, shutil\nos.makedirs('a/b')\nopen('a/c', 'w').close()\n"
    free += "shutil.copy('a/c', 'a/d')\nshutil.rmtree('a')\nright = not os.listdir()\n"
    assert not judge(free, "assert right", Limits(seconds=120)).passed
    secret = tmp_path / "secret"
    secret.write_text("secret")
    tries = f"""
import os, socket, subprocess
errors = []
for attempt in (
    lambda: subprocess.run(["true"]),
    lambda: socket.socket(),
    lambda: open({str(secret)!r}).read(),
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: os.mkdir({str(tmp_path / "new")!r}),
    lambda: os.chmod({str(secret)!r}, 0o777),
    lambda: os.rename({str(secret)!r}, "mine"),
):
    try:
        attempt()
    except OSError as error:
        errors.append(str(error))
    else:
        errors.append("")
"""
    test = "assert right and len(errors) == 7 and all(errors), errors"
    verdict = judge(free + tries, test, LIBRARIES)
    assert verdict.passed, verdict.reason
    assert judge("import os\nos.fork()", "", LIBRARIES).reason == "forbidden: a system call"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@confined
def test_free_programs_reach_no_objects_that_processes_share() -> None:
    libc = ctypes.CDLL(None)
    # One of this user's queues of messages, as other programs of theirs may have.
    queue = libc.msgget(0, 0o600)
    assert queue >= 0
    try:
        # 0: IPC_RMID, with which a queue is gone.
        tries = f"import ctypes\ngone = ctypes.CDLL(None).msgctl({queue}, 0, None)\n"
        verdict = judge(tries, "assert gone == -1, gone", LIBRARIES)
        assert verdict.passed, verdict.reason
    finally:
        left = libc.msgctl(queue, 0, None)
    assert left == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code_prompt": None}, ":1: a row needs the fields task_id, complete_prompt"),
        ({"test": "x = 1"}, ":1: the test has no class TestCases with tests"),
        ({"test": "class"}, ":1: solution or test are no program"),
    ],
)
def test_a_wrong_row_is_one_sentence_before_anything_runs(change, message, tmp_path, capsys):
    row = {k: v for k, v in (BIGCODE_ROW | change).items() if v is not None}
    (tmp_path / "BigCodeBench.jsonl").write_bytes(lines_of([row]))
    words = ["--model", "/none", "--data-dir", str(tmp_path), "--confirm-run-unsafe-code"]
    assert main(["eval", "--tasks", "bigcodebench_instruct", *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
