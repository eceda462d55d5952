"""The evaluation tasks agree with upstream, run from files, and judge programs in the sandbox."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_files import (
    HUMANEVAL_PLUS_ROW,
    HUMANEVAL_ROW,
    MBPP_PLUS_ROW,
    MBPP_ROWS,
    lines_of,
    write_evaluation_files,
)
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from parrot import Parrot, evaluate_parrot, own_tasks
from paths import ROOT
from paths import SHARED as DATA

from softmask.evaluation.sandbox import Limits, Verdict
from softmask.evaluation.task_data import LAYOUTS, SHOTS, overrides, read_dataset, with_data
from softmask.evaluation.tasks import (
    FOLDER,
    instructions,
    mathematics,
    oracle,
    programs,
)
from softmask.evaluation.tasks.evalplus import humaneval_plus_row, mbpp_plus_row
from softmask.evaluation.tasks.planning import sudoku_d1_results
from softmask.puzzles.puzzles import Puzzle, prompt_of

UPSTREAM = Path(lm_eval.__file__).parent / "tasks"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the evaluation files are not at hand")
# Those of ours that upstream has too, and what must be the same.
SAME_AS_UPSTREAM = {
    **{f"humaneval{kind}": "humaneval" for kind in ("", "_instruct", "_plus")},
    **{f"mbpp{kind}": "mbpp" for kind in ("", "_instruct", "_plus", "_plus_instruct")},
    "minerva_math500": "minerva_math",
    "ifeval": "ifeval",
}
FIELDS = (
    *("dataset_path", "dataset_name", "test_split", "output_type", "num_fewshot", "repeats"),
    *("doc_to_text", "doc_to_target", "gen_prefix", "target_delimiter", "fewshot_delimiter"),
    *("generation_kwargs", "metadata", "unsafe_code"),
)


# ---------------------------------------------------------------------------------------
# A folder of data in every layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation_files(tmp_path_factory.mktemp("data"), puzzle_lines=10)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return own_tasks()


@pytest.fixture
def evaluate(folder: Path) -> Callable[..., tuple[dict[str, Any], Parrot]]:
    def run(
        names: list[str], answer: Callable[[dict[str, Any]], str], **options: Any
    ) -> tuple[dict[str, Any], Parrot]:
        return evaluate_parrot(names, folder, answer, **options)

    return run


def scores(results: dict[str, Any], task: str) -> dict[str, float]:
    return {
        name: value
        for name, value in results["results"][task].items()
        if "," in name and "_stderr" not in name
    }


# ---------------------------------------------------------------------------------------
# Against upstream


@pytest.mark.parametrize("name", sorted(SAME_AS_UPSTREAM))
def test_a_task_asks_what_upstream_asks(name: str, manager: TaskManager) -> None:
    theirs = load_yaml(UPSTREAM / SAME_AS_UPSTREAM[name] / f"{name}.yaml", resolve_func=False)
    path = manager.task_index[name].yaml_path
    assert path is not None
    assert path.is_relative_to(FOLDER)
    ours = load_yaml(path, resolve_func=False)

    def settings_of(config: dict[str, Any]) -> dict[str, Any]:
        kept = {field: config[field] for field in FIELDS if field in config}
        # A function of upstream is the same one by another path.
        return {
            key: value.rpartition("lm_eval/tasks/")[2].rpartition("lm_eval.tasks.")[2]
            if key.startswith("doc_to") and isinstance(value, str)
            else value
            for key, value in kept.items()
        }

    theirs_settings, our_settings = settings_of(theirs), settings_of(ours)
    for found in (theirs_settings, our_settings):
        text = found["doc_to_text"]
        found["doc_to_text"] = (
            text.replace("/", ".") if text.endswith("utils.doc_to_text") else text
        )
    assert our_settings == theirs_settings
    their_filters = [step["name"] for step in theirs.get("filter_list", [{"name": "none"}])]
    our_filters = [step["name"] for step in ours.get("filter_list", [{"name": "none"}])]
    # Where upstream's extraction is wrong, a right one stands beside it.
    extra = ["code_block"] if name in ("mbpp_instruct", "mbpp_plus_instruct") else []
    assert our_filters == their_filters + extra


def upstream_functions(module: str, *names: str) -> dict[str, Any]:
    """Functions of an upstream module that cannot be imported without the Hub."""
    tree = ast.parse((UPSTREAM / module).read_text(encoding="utf-8"))
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    space: dict[str, Any] = {"re": re}
    exec(compile(tree, module, "exec"), space)
    return space


def test_the_shots_of_mbpp_are_those_of_upstream() -> None:
    theirs = upstream_functions("mbpp/utils.py", "list_fewshot_samples")
    assert programs.mbpp_fewshot_samples() == theirs["list_fewshot_samples"]()


pieces = st.sampled_from(
    ["```", "```python", "\n", "def f():\n    return 1\n", "text ", "`", "py", " ", "<|endoftext|>"]
)


@given(st.lists(pieces, max_size=12).map("".join))
def test_programs_are_extracted_as_upstream_does(text: str) -> None:
    human = upstream_functions(
        "humaneval/utils.py", "build_predictions", "build_predictions_instruct"
    )
    mbpp = upstream_functions("mbpp/utils.py", "extract_code_blocks", "build_predictions")
    for ours, theirs, row in (
        (programs.humaneval_attempts, human["build_predictions"], HUMANEVAL_ROW),
        (programs.humaneval_instruct_attempts, human["build_predictions_instruct"], HUMANEVAL_ROW),
        (programs.mbpp_instruct_attempts, mbpp["build_predictions"], MBPP_ROWS[0]),
        (programs.mbpp_plus_instruct_attempts, mbpp["build_predictions"], MBPP_ROWS[0]),
    ):
        attempts = ours([[text]], [row])
        assert [[attempt["program"] for attempt in one] for one in attempts] == theirs(
            [[text]], [row]
        )


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("def f():\n    return 1\n```\nText", "def f():\n    return 1\n"),
        ("\ndef f():\n    return 1\n```", "\ndef f():\n    return 1\n"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("```python\nx = 1\n```\n```\nx = 2\n```", "\nx = 1\n"),
        ("\n```\nx = 1\n```", "\nx = 1\n"),
        ("Sure:\n```python\nx = 1\n```", "\nx = 1\n"),
        ("x = 1\n```\nUse:\n```python\nx\n```", "x = 1\n"),
        ("", ""),
    ],
)
def test_a_code_block_is_found_whether_closed_and_opened_or_not(answer: str, program: str) -> None:
    for make in (programs.mbpp_block_attempts, programs.mbpp_plus_block_attempts):
        ((attempt,),) = make([[answer]], [MBPP_ROWS[0]])
        assert attempt["program"] == program


def test_upstreams_extraction_spoils_an_answer_that_begins_with_a_word(
    evaluate: Callable[..., Any],
) -> None:
    results, _ = evaluate(["mbpp_instruct"], lambda doc: "def add_one(x):\n    return x + 1\n```")
    # Problem 12 needs a class as well.
    assert scores(results, "mbpp_instruct") == {
        "pass_at_1,extract_code": 0,
        "pass_at_1,code_block": pytest.approx(2 / 3),
    }


def test_every_task_file_has_a_layout_or_makes_its_rows_or_is_a_group(manager: TaskManager) -> None:
    of_ours = {
        name: entry
        for name, entry in manager.task_index.items()
        if entry.yaml_path and entry.yaml_path.is_relative_to(FOLDER)
    }
    groups = {name for name in of_ours if name in manager.all_groups}
    theirs = {name for name in LAYOUTS if name.startswith(("gsm8k", "aime"))}
    # These make their rows themselves.
    made = {name for name in of_ours if name.startswith(("parallelbench", "sudoku_9x9"))}
    assert set(of_ours) - groups - made == set(LAYOUTS) - theirs
    assert groups == {
        *("countdown", "sudoku_4x4", "dream_planning"),
        *("countdown_plain", "sudoku_4x4_plain", "planning_plain"),
        *("humaneval_infilling", "parallelbench", "sudoku_9x9", "ruler"),
    }


# ---------------------------------------------------------------------------------------
# Programs


Judged = list[tuple[list[tuple[str, str]], Limits]]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    """What was given to the sandbox, which passes programs that contain 'right'."""
    calls: Judged = []

    def judge_all(pairs: list[tuple[str, str]], limits: Limits) -> list[Verdict]:
        calls.append((pairs, limits))
        return [Verdict("right" in p, "passed" if "right" in p else "wrong", 0.0) for p, _ in pairs]

    monkeypatch.setattr(programs, "judge_all", judge_all)
    return calls


def test_all_programs_of_a_task_are_judged_in_one_batch(
    judged: Judged, evaluate: Callable[..., Any]
) -> None:
    results, _ = evaluate(["mbpp"], lambda doc: "right" if doc["task_id"] == 11 else "left")
    assert scores(results, "mbpp") == {"pass_at_1,none": pytest.approx(1 / 3)}
    ((pairs, limits),) = judged
    assert len(pairs) == 3  # problems 11, 12 and 510
    assert limits == Limits()
    assert pairs[1][0] == "left\nbox = Box()"


def test_the_log_of_a_sample_shows_the_program_and_why_it_failed(
    judged: Judged, evaluate: Callable[..., Any]
) -> None:
    results, _ = evaluate(["humaneval_plus_instruct"], lambda doc: "    return 1\n```\nright")
    (sample,) = json.loads(json.dumps(results["samples"]["humaneval_plus_instruct"], default=str))
    ((attempt,),) = sample["filtered_resps"]
    assert attempt["program"] == HUMANEVAL_ROW["prompt"] + "    return 1\n"
    verdict = {"passed": False, "reason": "wrong"}
    assert attempt["verdicts"] == {"pass@1": verdict, "pass@1_base": verdict}
    assert [limits for _, limits in judged] == [programs.EXTENDED, Limits()]


def test_predict_only_executes_nothing(judged: Judged, evaluate: Callable[..., Any]) -> None:
    results, _ = evaluate(["mbpp_instruct"], lambda doc: "right\n```", predict_only=True)
    assert not judged
    for sample in results["samples"]["mbpp_instruct"]:
        ((attempt,),) = sample["filtered_resps"]
        assert attempt == {
            "program": {"extract_code": "", "code_block": "right\n"}[sample["filter"]],
            "verdicts": {},
        }


def test_code_tasks_need_a_confirmation(
    judged: Judged, manager: TaskManager, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="unsafe"):
        lm_eval.simple_evaluate(
            Parrot(lambda doc: "right"),
            tasks=with_data(["humaneval"], folder, manager),
            task_manager=manager,
        )
    assert not judged


def test_several_answers_to_a_problem_count_by_the_part_that_passes(judged: Judged) -> None:
    (attempts,) = programs.mbpp_attempts([["right", "left"]], [MBPP_ROWS[1]])
    assert programs.results(MBPP_ROWS[1], [attempts]) == {"pass_at_1": 0.5}


def test_a_program_cannot_redefine_a_helper_that_its_test_calls() -> None:
    doc = {
        "prompt": "import math\n\ndef poly(x):\n    return math.floor(x) - 2\n\n"
        'def find_zero():\n    """Where poly is 0."""\n',
        "entry_point": "find_zero",
        "test": "def check(candidate):\n    assert poly(candidate()) == 0\n",
    }
    answers = ["    return 2\n", "    return 3\n", "    return 3\ndef poly(x):\n    return 0\n"]
    attempts = programs.humaneval_attempts([[answer] for answer in answers], [doc] * 3)
    passed = [attempt.verdicts()["pass@1"]["passed"] for (attempt,) in attempts]
    assert passed == [True, False, False]


def test_an_attempt_travels_between_processes_as_a_plain_dict(judged: Judged) -> None:
    ((attempt,),) = programs.mbpp_attempts([["right"]], [MBPP_ROWS[1]])
    attempt.verdicts()
    travelled = pickle.loads(pickle.dumps(attempt))
    assert type(travelled) is dict
    assert travelled == attempt


def test_mbpp_plus_reports_the_criterion_of_upstream_and_the_whole_test(folder: Path) -> None:
    changed = overrides("mbpp_plus", folder)
    (row,) = read_dataset(**changed["dataset_kwargs"])["test"]
    assert row["prompt"] == "Write a function to add one."
    # The assertion of the prompt comes first, as on the Hub.
    assert row["test_list"] == [
        "assert math.isclose(check(1), 2)",
        "assert check(4) == 5",
        "assert check(0) == 1",
    ]
    ((three,),) = programs.mbpp_attempts([[""]], [row])
    ((one,),) = programs.mbpp_plus_instruct_attempts([[""]], [row])
    assert three.tests["pass_at_1"].text.count("assert") == 3
    assert one.tests["pass_at_1"].text == "import math\nassert math.isclose(check(1), 2)"
    assert three.tests["pass_at_1_plus"] == one.tests["pass_at_1_plus"]


def test_imports_of_a_test_may_be_a_text_as_in_the_data_set_on_the_hub() -> None:
    row = MBPP_ROWS[1] | {"test_imports": "['import math']"}
    ((attempt,),) = programs.mbpp_attempts([[""]], [row])
    assert attempt.tests["pass_at_1"].text.startswith("import math\nassert")


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        ("def check(x):\n    return x + 1", True),
        ("def check(x):\n    return 2", False),
        ("def check(x):\n    return x + 1 if x < 10 else 0", False),
        ("def check(x):\n    return None", False),
        ("def check(x):\n    raise ValueError(x)", False),
        (
            "def check(x):\n    class Yes:\n        __eq__ = lambda *_: True\n    return Yes()",
            False,
        ),
        ("", False),
        ("def check(x", False),
    ],
)
def test_a_made_test_passes_right_programs_only(program: str, passes: bool) -> None:
    row = mbpp_plus_row(MBPP_PLUS_ROW)
    ((attempt,),) = programs.mbpp_attempts([[program]], [row])
    assert attempt.verdicts()["pass_at_1_plus"]["passed"] is passes


def test_a_made_test_of_humaneval_knows_the_reference_and_the_program_does_not() -> None:
    row = humaneval_plus_row(HUMANEVAL_PLUS_ROW)
    answers = [["    return x + x"], ["    return 4"], ["    return reference(x)"]]
    attempts = programs.humaneval_attempts(answers, [row] * 3)
    assert [programs.results(row, [a]) for a in attempts] == [
        {"pass@1": 1, "pass@1_base": 1},
        {"pass@1": 0, "pass@1_base": 1},
        {"pass@1": 0, "pass@1_base": 0},
    ]


def test_a_call_without_end_is_stopped_long_before_the_limit_of_the_program() -> None:
    with pytest.raises(TimeoutError, match=r"no result within 0\.2 s"):
        oracle._within(0.2, lambda: time.sleep(5), [])
    assert oracle._within(120, lambda x: x, [3]) == 3


@pytest.mark.parametrize(
    ("name", "arguments", "output", "expected", "right"),
    [
        ("f", (), 1, 1, True),
        ("f", (), 1, 2, False),
        ("f", (), 0.1 + 0.2, 0.3, True),
        ("f", (), [0.1 + 0.2], [0.3], True),
        ("f", (), (0.1 + 0.2,), [0.3], False),
        ("f", (), [1.0, 2.0], [1.0], False),
        ("f", (), 0.31, 0.3, False),
        ("f", (), [], [1.0], False),
        ("f", (), None, 0.3, False),
        ("f", (), float("inf"), float("inf"), True),
        ("f", (), 0.0, float("inf"), False),
        ("f", (), [1.0, 2.0], [1.0, float("-inf")], False),
        ("f", (), 1 + 1e-12j, 1 + 0j, False),
        ("find_zero", ([-2, 1],), 2.0, 7, True),
        ("find_zero", ([-2, 1],), 2.1, 2.0, False),
        ("Diff", (), [3, 1, 2], [1, 2, 3], True),
        ("Diff", (), [1, 2], [1, 2, 3], False),
        ("check_str", (), "match", "another match", True),
        ("check_str", (), None, "match", False),
        ("check_str", (), True, "match", True),
        ("are_equivalent", (1, 2), "anything", True, True),
        ("sum_div", (7,), 0, 1, True),
        ("digit_distance_nums", (23, 156), 7, 6, True),
        ("digit_distance_nums", (23, 156), 8, 6, False),
        ("surface_Area", (3, 4), 35, 33, True),
        ("surface_Area", (3, 4), 36, 33, False),
    ],
)
def test_the_special_cases_of_evalplus_hold(
    name: str, arguments: tuple, output: Any, expected: Any, right: bool
) -> None:
    tolerance = 1e-4 if name == "find_zero" else 0
    assert oracle.agrees(name, arguments, output, expected, tolerance) is right


@pytest.mark.parametrize(
    ("number", "arguments", "read"),
    [
        (2, [[1], [2]], "[[(1,), (2,)]]"),
        (63, [[[1], [2]]], "[[[(1,), (2,)]]]"),
        (75, [[[1]], [2]], "[[[(1,)], [2]]]"),
        (106, [[1], [2]], "[[[1], (2,)]]"),
        (115, [[[1], [], {}]], "[[[{1}, {}, {}]]]"),
        (124, ["1", "2j"], "[[1.0, 2j]]"),
        (250, [[1], 2], "[[(1,), 2]]"),
        (252, ["1j"], "[[1j]]"),
        (259, [[[1]], [[2]]], "[[((1,),), ((2,),)]]"),
        (278, [[1, [2]]], "[[(1, (2,))]]"),
        (580, [[[1, [2]]]], "[[((1, (2,)),)]]"),
        (722, [{"a": [1]}, 2], "[[{'a': (1,)}, 2]]"),
        (3, [[1]], "[[[1]]]"),
    ],
)
def test_inputs_get_back_what_json_took(number: int, arguments: list, read: str) -> None:
    row = MBPP_PLUS_ROW | {"task_id": f"Mbpp/{number}", "base_input": [arguments], "plus_input": []}
    assert f"eval({read!r}, space)" in mbpp_plus_row(row)["test"]


REFERENCES = {
    "humaneval": (programs.humaneval_attempts, "canonical_solution", range(0, 160, 20)),
    "humaneval_plus": (programs.humaneval_attempts, "canonical_solution", (1, 20, 32, 41, 53, 99)),
    "mbpp": (programs.mbpp_attempts, "code", (11, 72, 134, 229, 283, 367, 421, 510)),
    "mbpp_plus": (programs.mbpp_attempts, "code", (2, 56, 120, 124, 237, 252, 293, 794)),
}


def rows_of(task: str) -> list[dict[str, Any]]:
    return list(read_dataset(**overrides(task, DATA)["dataset_kwargs"])["test"])


def failures(task: str, rows: list[dict[str, Any]], body: str | None = None) -> list[Any]:
    """The tests that the references, or functions with this body instead, do not pass."""
    make, field, _ = REFERENCES[task]
    answers = [[row[field] if body is None else with_body(row, body)] for row in rows]
    return [
        (row["task_id"], name, verdict["reason"])
        for row, (attempt,) in zip(rows, make(answers, rows), strict=True)
        for name, verdict in attempt.verdicts().items()
        if not verdict["passed"]
    ]


def with_body(row: dict[str, Any], body: str) -> str:
    if "code" not in row:  # HumanEval, where the prompt is the head of the function
        return f"    {body}\n"
    names = re.findall(r"^def\s+(\w+)", row["code"], re.MULTILINE)
    return "".join(f"def {name}(*args):\n    {body}\n" for name in names)


@needs_data
@pytest.mark.parametrize("task", sorted(REFERENCES))
def test_some_reference_solutions_pass_and_wrong_ones_fail(task: str) -> None:
    chosen = set(REFERENCES[task][2])
    rows = [r for r in rows_of(task) if int(str(r["task_id"]).split("/")[-1]) in chosen]
    assert len(rows) == len(chosen)
    assert failures(task, rows) == []
    count = len(rows) * (2 if task.endswith("plus") else 1)
    assert len(failures(task, rows, "return None")) == count


@pytest.mark.slow
def test_the_sandbox_benchmark_judges_the_references_of_all_four_tasks(folder, tmp_path) -> None:
    script = ROOT / "benchmarks" / "sandbox.py"
    done = subprocess.run(
        [sys.executable, script, folder, tmp_path / "out", "--limit", "1"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "out" / "result.json").read_text())["raw"]
    assert {task: found["problems"] for task, found in raw.items()} == dict.fromkeys(REFERENCES, 1)
    shares = [v for found in raw.values() for k, v in found.items() if k.startswith("pass")]
    assert shares == [1.0] * 6


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(REFERENCES))
def test_all_reference_solutions_pass(task: str) -> None:
    rows = rows_of(task)
    assert len(rows) == {"mbpp": 500, "mbpp_plus": 378}.get(task, 164)
    assert failures(task, rows) == []


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(REFERENCES))
@pytest.mark.parametrize("body", ["pass", "raise ValueError"])
def test_no_wrong_program_passes(task: str, body: str) -> None:
    rows = rows_of(task)
    count = len(rows) * (2 if task.endswith("plus") else 1)
    assert len(failures(task, rows, body)) == count


# ---------------------------------------------------------------------------------------
# Mathematics


@pytest.mark.parametrize("shots", [0, None])
def test_gsm8k_runs_with_its_own_shots_and_with_none(
    shots: int | None, evaluate: Callable[..., Any]
) -> None:
    results, model = evaluate(
        ["gsm8k", "gsm8k_cot"], lambda doc: "The answer is 2. #### 2", num_fewshot=shots
    )
    for task in ("gsm8k", "gsm8k_cot"):
        assert scores(results, task) == {
            "exact_match,strict-match": 1,
            "exact_match,flexible-extract": 1,
        }
    (plain, _), (cot, _) = model.asked
    assert plain.endswith("Question: One and one?\nAnswer:")
    assert cot.endswith("Q: One and one?\nA:")
    assert plain.count("Question:") == (1 if shots == 0 else 6)
    assert cot.count("Q:") == (1 if shots == 0 else 9)


def test_math500_asks_for_a_box_and_compares_its_value(evaluate: Callable[..., Any]) -> None:
    results, model = evaluate(["math500"], lambda doc: r"Well, \boxed{\frac{4}{2}}")
    assert scores(results, "math500") == {"exact_match,none": 0, "math_verify,none": 1}
    assert model.asked[0][0].endswith(r"put your final answer within \boxed{}.")


def test_minerva_math500_scores_as_upstream(evaluate: Callable[..., Any]) -> None:
    from lm_eval.tasks.minerva_math.utils import process_results

    answer = r"It is $\boxed{2}$. Final Answer: The final answer is $2$. I hope it is correct."
    results, _ = evaluate(["minerva_math500"], lambda doc: answer)
    theirs = process_results({"answer": "2", "solution": r"$\boxed{2}$"}, [answer])
    assert scores(results, "minerva_math500") == {f"{k},none": v for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "equal"),
    [
        (r"\frac{1}{2}", "0.5", 0, 1),
        (r"\frac{1}{2}", r"\dfrac12", 0, 1),
        ("3,5,7", "3, 5, 7", 1, 1),
        (r"\text{Navin}", r"\text{Navin}", 1, 1),
        ("10", "10 cm", 1, 1),
        ("16", "61", 0, 0),
        ("16", "(((", 0, 0),
    ],
)
def test_equal_answers_are_found_equal(gold: str, answer: str, exact: int, equal: int) -> None:
    found = mathematics.math500_results({"answer": gold}, [rf"\boxed{{{answer}}}"])
    assert found == {"exact_match": exact, "math_verify": equal}


def test_no_answer_is_wrong() -> None:
    wrong = {"exact_match": 0, "math_verify": 0}
    for text in ("", "the answer is 2", r"\boxed{}", r"\boxed{" + "9" * 5000 + "}"):
        assert mathematics.math500_results({"answer": "2"}, [text]) == wrong


@pytest.fixture
def impatient() -> Iterator[mathematics.MathWorker]:
    worker = mathematics.MathWorker(seconds=1.0)
    yield worker
    worker.close()


@pytest.mark.long  # waits for a worker
def test_a_worker_that_is_stuck_or_dead_is_replaced(impatient: mathematics.MathWorker) -> None:
    wrong, right = ({"exact_match": n, "math_verify": n} for n in (0, 1))
    assert impatient.ask({"gold": "7", "answer": "9^{9^{9^{9}}}"}) == wrong
    assert impatient._process is None  # it was killed
    impatient.seconds = 120.0  # that no machine needs
    assert impatient.ask({"gold": "7", "answer": "7"}) == right
    assert impatient._process is not None
    impatient._process.kill()
    impatient._process.wait()
    assert impatient.ask({"gold": "7", "answer": "7"}) == wrong
    assert impatient._process is None


@needs_data
@pytest.mark.slow
def test_the_reference_answers_of_math500_are_right() -> None:
    for row in map(json.loads, (DATA / "eval/math500_test.jsonl").read_bytes().splitlines()):
        found = mathematics.math500_results(row, [row["solution"]])
        assert found == {"exact_match": 1, "math_verify": 1}, row["unique_id"]


@needs_data
def test_llada_solves_29_of_84_problems_of_math500() -> None:
    path = DATA / "eval/llada_generations/math500_instruct_256_128_0_generations.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["generations"]
    found = [
        mathematics.math500_results({"answer": row["ground_truth"]}, [row["generations"]])
        for row in rows
    ]
    assert sum(scores["math_verify"] for scores in found) == 29
    assert sum(scores["exact_match"] for scores in found) == 26


# ---------------------------------------------------------------------------------------
# IFEval


def test_ifeval_is_scored_without_a_download(evaluate: Callable[..., Any]) -> None:
    results, model = evaluate(["ifeval"], lambda doc: "Hello there. Bye.")
    assert set(scores(results, "ifeval").values()) == {1}
    results, _ = evaluate(["ifeval"], lambda doc: "Hello, there. Bye.")
    assert scores(results, "ifeval") == {
        "prompt_level_strict_acc,none": 0,
        "inst_level_strict_acc,none": 0.5,
        "prompt_level_loose_acc,none": 0,
        "inst_level_loose_acc,none": 0.5,
    }
    assert model.asked[0][0] == "Say hello without a comma."


@pytest.mark.parametrize(
    ("instruction", "has_punkt", "fails"),
    [
        ("length_constraints:number_sentences", False, True),
        ("change_case:capital_word_frequency", False, True),
        ("length_constraints:number_sentences", True, False),
        ("length_constraints:number_words", False, False),
    ],
)
def test_only_instructions_that_need_punkt_ask_for_it(
    instruction: str, has_punkt: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    monkeypatch.setattr(instructions, "_has_punkt", lambda: has_punkt)
    docs = Dataset.from_list([{"instruction_id_list": ["punctuation:no_comma", instruction]}])
    if fails:
        with pytest.raises(ValueError, match=r"python -m nltk\.downloader punkt_tab"):
            instructions.checked_docs(docs)
    else:
        assert instructions.checked_docs(docs) is docs


@needs_data
def test_every_instruction_of_ifeval_but_two_works_without_punkt() -> None:
    rows = map(json.loads, (DATA / "eval/ifeval.jsonl").read_bytes().splitlines())
    seen = set()
    for row in rows:
        kinds = set(row["instruction_id_list"])
        if kinds & instructions._NEED_PUNKT or kinds <= seen:
            continue
        seen |= kinds
        found = instructions.results(row, ["Some words. P.S. <<Title>> *one* [two] {}"])
        assert len(found["inst_level_strict_acc"]) == len(row["instruction_id_list"])
    assert len(seen) == 23


# ---------------------------------------------------------------------------------------
# Planning


def test_planning_groups_are_means_over_their_members(evaluate: Callable[..., Any]) -> None:
    results, model = evaluate(
        ["dream_planning", "planning_plain"],
        lambda doc: doc["output"] if "\n" not in doc["input"] else "1234",
    )
    assert scores(results, "countdown_cd4_plain") == {"solved,none": 1}
    assert scores(results, "sudoku_4x4_7") == {"solved,none": 0}
    groups = {name: values["solved,none"] for name, values in results["groups"].items()}
    assert groups == {
        **dict.fromkeys(("countdown", "countdown_plain"), 1),
        **dict.fromkeys(("sudoku_4x4", "sudoku_4x4_plain"), 0),
        **dict.fromkeys(("dream_planning", "planning_plain"), pytest.approx(3 / 12)),
    }
    assert len(model.asked) == 2 * 12 * 2


SUDOKU_RULES = (
    "Fill the positions where the values are 0 in a 4x4 grid with digits 1-4 so that each column, "
    "each row, and each of the four 2x2 subgrids that compose the grid contains all of the digits "
    "from 1 to 4.\n\n"
)
COUNTDOWN_RULES = (
    "Given {} numbers, use +-*/ to operate over the first {} numbers to achieve the {}"
)


@pytest.mark.parametrize(
    ("name", "file", "rules"),
    [
        ("countdown_cd3", "cd3_test.jsonl", COUNTDOWN_RULES.format(4, "three", "last")),
        ("countdown_cd4", "cd4_test.jsonl", COUNTDOWN_RULES.format(5, "four", "fifth")),
        ("countdown_cd5", "cd5_test.jsonl", COUNTDOWN_RULES.format(6, "five", "last")),
        ("sudoku_4x4_4", "sudoku_4x4_4.jsonl", SUDOKU_RULES),
        ("sudoku_4x4_12", "sudoku_4x4_12.jsonl", SUDOKU_RULES),
    ],
)
def test_shots_are_the_first_eight_lines_and_are_never_evaluated(
    name: str, file: str, rules: str, folder: Path, evaluate: Callable[..., Any]
) -> None:
    lines = (folder / "planning" / file).read_text(encoding="utf-8").splitlines()
    kind = name.split("_")[0]
    shown = [Puzzle(kind, **json.loads(line)) for line in lines]
    # Spaces beside a grid do not count.
    results, model = evaluate([name, f"{name}_plain"], lambda doc: f" {doc['output']} \n")
    (shot, settings_of_shot), _, (plain, settings_of_plain), _ = model.asked
    line = {"countdown": "Input: {}\nOutput: ", "sudoku": "Input:\n{}\nOutput:\n"}[kind]
    shots = "".join(f"{line.format(p.input)}{p.output}\n\n" for p in shown[:8])
    whole = rules if rules.endswith("\n") else f"{rules} number.\n\n"
    assert shot == whole + shots + line.format(shown[8].input)
    assert plain == prompt_of(shown[8])
    longest = {"countdown": 48, "sudoku": 24}[kind]
    assert settings_of_shot["max_gen_toks"] == settings_of_plain["max_gen_toks"] == longest
    assert settings_of_shot["until"][0] == {"countdown": "\n", "sudoku": "\n\n"}[kind]
    assert settings_of_plain["until"][0] == "\n\n"
    assert scores(results, name) == scores(results, f"{name}_plain") == {"solved,none": 1}


def test_plain_twins_stay_without_shots_whatever_is_asked(evaluate: Callable[..., Any]) -> None:
    _, model = evaluate(["countdown_cd3_plain"], lambda doc: "", num_fewshot=4)
    assert model.asked[0][0].count("Countdown") == 1


def test_puzzles_of_d1_are_read_from_boxes_and_answer_blocks(evaluate: Callable[..., Any]) -> None:
    def answer(doc: dict[str, Any]) -> str:
        if "Puzzle" in doc:  # the first one right, the second one with its last cell wrong
            grid = (
                doc["Solution"] if doc["Puzzle"].startswith("3102") else doc["Solution"][:-1] + "1"
            )
            return f"Rows first.</reasoning>\n<answer>\n{grid}\n</answer>"
        return r"So.</reasoning><answer>\boxed{30 + 93 - 100}</answer>"

    results, model = evaluate(["countdown_d1", "sudoku_d1"], answer)
    assert scores(results, "countdown_d1") == {"solved,none": 1}
    found = scores(results, "sudoku_d1")
    assert found == {"solved,none": 0.5, "cells,none": (1 + 7 / 8) / 2}
    countdown, sudoku, _ = (prompt for prompt, _ in model.asked)
    assert "Numbers: [30, 100, 93]\nTarget: 23" in countdown
    assert "Solve the following Sudoku puzzle: 3102200002100320\n" in sudoku
    assert countdown.endswith("<reasoning>")


@pytest.mark.parametrize(("answer", "score"), [("3142243142131324", 1.0), ("3142", 0.0)])
def test_a_grid_without_blanks_has_all_or_nothing_of_them(answer: str, score: float) -> None:
    full = "3142243142131324"
    found = sudoku_d1_results({"Puzzle": full, "Solution": full}, [f"<answer>{answer}</answer>"])
    assert found == {"solved": score, "cells": score}


@needs_data
def test_the_real_planning_files_leave_992_and_100_puzzles(manager: TaskManager) -> None:
    for name, count in (("countdown_cd3", 992), ("sudoku_4x4_4_plain", 100)):
        (task,) = with_data([name], DATA, manager)
        assert len(task.eval_docs) == count


# ---------------------------------------------------------------------------------------
# Files


def test_names_stay_names_without_a_folder(manager: TaskManager) -> None:
    assert with_data(["gsm8k", "countdown"], None, manager) == ["gsm8k", "countdown"]


def test_planning_without_a_folder_says_what_to_give(manager: TaskManager) -> None:
    with pytest.raises(ValueError, match=r"DreamLM/Dream.*--data-dir"):
        manager.load(["countdown_cd3"])


@pytest.mark.parametrize("data_dir", [None, Path("anywhere")])
def test_an_unknown_task_gets_the_nearest_name(data_dir: Path | None, manager: TaskManager) -> None:
    with pytest.raises(ValueError, match="no task 'mbpp_pluss': did you mean mbpp_plus"):
        with_data(["mbpp_pluss"], data_dir, manager)


def test_a_task_without_a_file_layout_needs_the_hub(manager: TaskManager, folder: Path) -> None:
    sentence = "The task {} has no file layout: it needs the Hub"
    with pytest.raises(ValueError, match=sentence.format("mmlu_pro")):
        overrides("mmlu_pro", folder)
    with pytest.raises(ValueError, match=sentence.format("gsm8k_cot_zeroshot")):
        with_data(["gsm8k_cot_zeroshot"], folder, manager)


def test_a_missing_file_is_named_with_the_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm8k needs the file gsm8k_train\.jsonl"):
        overrides("gsm8k", tmp_path)


@pytest.mark.parametrize("folder_in", ["", "eval", "planning"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_found_in_the_folder_and_in_its_two_parts(
    folder_in: str, suffix: str, tmp_path: Path
) -> None:
    content = lines_of([HUMANEVAL_ROW])
    path = tmp_path / folder_in / f"HumanEval.jsonl{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if suffix else content)
    (row,) = read_dataset(**overrides("humaneval", tmp_path)["dataset_kwargs"])["test"]
    assert row == HUMANEVAL_ROW


def test_puzzles_are_read_from_a_compressed_file_too(tmp_path: Path) -> None:
    lines = b'{"input": "15,44,79,50", "output": "44-15=29,79-29=50"}\n' * (SHOTS + 2)
    (tmp_path / "cd3_test.jsonl.gz").write_bytes(gzip.compress(lines))
    found = read_dataset(**overrides("countdown_cd3", tmp_path)["dataset_kwargs"])
    assert {split: len(rows) for split, rows in found.items()} == {"fewshot": SHOTS, "test": 2}


def test_all_files_of_a_star_are_read_compressed_or_not_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "livecodebench").mkdir()
    for name in ("test3.jsonl", "test.jsonl", "test2.jsonl.gz", "test.jsonl.gz"):
        (tmp_path / "livecodebench" / name).touch()
    files = overrides("livecodebench", tmp_path)["dataset_kwargs"]["files"]["test"]
    assert [Path(path).name for path in files] == ["test.jsonl", "test2.jsonl.gz", "test3.jsonl"]


def test_a_changed_file_is_seen(tmp_path: Path, manager: TaskManager) -> None:
    path = tmp_path / "gsm8k_test.jsonl"
    for answer in ("#### 1", "#### 2"):
        path.write_bytes(lines_of([{"question": "?", "answer": answer}]))
        (task,) = with_data(["gsm8k_cot"], tmp_path, manager)
        assert task.eval_docs[0]["answer"] == answer


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gsm8k_cot", b"{}\n", ":1: a row needs the fields question, answer"),
        ("gsm8k_cot", b"[1]\n", ":1: a row needs"),
        ("gsm8k_cot", b'{"question": "", "answer": ""}\n{', ":2 is no JSON"),
        ("gsm8k_cot", b"", "no rows for the split test"),
        ("countdown_cd3", b'{"input": "1,2,3", "output": "1+2=4"}\n', ":1: the output does"),
        ("mbpp", lines_of(MBPP_ROWS[:1]), "no rows for the split test"),
        (
            "mbpp_plus",
            lines_of([MBPP_PLUS_ROW | {"prompt": "Add one."}]),
            ":1: Mbpp/56: the prompt is not a text and one assertion",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_line(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    (file,) = LAYOUTS[name].files.values()
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_dataset(**overrides(name, tmp_path)["dataset_kwargs"])


def test_a_compressed_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"task_id": "HumanEval/0"}', mtime=0)
    for content in (whole[:-6], b"text", whole[:10] + b"\xff" * 9):
        (tmp_path / "HumanEval.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"HumanEval.jsonl.gz is damaged \("):
            read_dataset(**overrides("humaneval", tmp_path)["dataset_kwargs"])


def test_nothing_is_written_beside_the_files(evaluate: Callable[..., Any], folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    evaluate(["gsm8k_cot", "minerva_math500"], lambda doc: "")
    assert sorted(folder.rglob("*")) == before


@needs_data
def test_all_tasks_with_a_layout_load_from_the_real_files(manager: TaskManager) -> None:
    counts = {
        name: len(with_data([name], DATA, manager)[0].eval_docs)
        for name in LAYOUTS
        if name != "ifeval"
        and not name.startswith(("countdown", "sudoku", "santacoder", "livecode", "bigcode"))
        and not name.startswith(("aime", "gsm8k_platinum", "niah", "ruler"))
        and "infilling" not in name
    }
    assert counts == {
        **{f"humaneval{kind}": 164 for kind in ("", "_instruct", "_plus", "_plus_instruct")},
        **dict.fromkeys(("mbpp", "mbpp_instruct"), 500),
        **dict.fromkeys(("mbpp_plus", "mbpp_plus_instruct"), 378),
        **dict.fromkeys(("gsm8k", "gsm8k_cot"), 1319),
        **dict.fromkeys(("math500", "minerva_math500"), 500),
    }
