"""Evaluation data in the layout of its authors' files: a row or two each, made up, and puzzles."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from softmask.config import SoftMaskConfig
from softmask.evaluation.tasks.ruler import RULER
from softmask.puzzles.puzzles import Puzzle, generate_countdown, generate_sudoku

# What the tiny model of evaluations brings.
SOFT = SoftMaskConfig(k=2, scale=0.8, offset=-4.0, steepness=1.0)
HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
HUMANEVAL_PLUS_ROW = HUMANEVAL_ROW | {
    "base_input": [[2]],
    "plus_input": [[-1], [0.1], [10**30]],
    "atol": 0,
}
# As openai/human-eval-infilling writes them: bytes beside a hole that a tokenizer may stumble over.
INFILLING_ROWS = [
    {
        "task_id": "SingleLineInfilling/HumanEval/0/L0",
        "entry_point": "double",
        "prompt": 'def triple(x):\n    return 3 * x\n\ndef double(x):\n\t"""é🙂 [[3]]."""\n\t',
        "suffix": "\n\treturn y  # <|im_end|>\r\n",
        "canonical_solution": "y = 2 * x",
        "test": "def check(candidate):\n    assert candidate(triple(2)) == 12\n",
    },
    {
        "task_id": "RandomSpanInfilling/HumanEval/1/1",
        "entry_point": "double",
        "prompt": "def double(x):\n    retu",
        "suffix": "* x\n",
        "canonical_solution": "rn 2 ",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    },
]
SANTACODER_ROWS = [
    {
        "name": f"{language}_0",
        "language": language,
        "prompt": "a = 1\n",
        "suffix": "\nc = 3\n",
        "canonical_solution": "b = 2",
        "tests": "",
    }
    for language in ("py", "js", "java")
]


def packed(tests: list[dict[str, str]]) -> str:
    """Private tests as LiveCodeBench's lite release packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def live_tests(kind: str, *pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": given, "output": out, "testtype": kind} for given, out in pairs]


LIVE_STDIN_ROW = {
    "question_title": "Sums",
    "question_content": "Print the sum of each line.",
    "platform": "atcoder",
    "question_id": "abc001_a",
    "contest_id": "abc001",
    "contest_date": "2024-10-05T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(live_tests("stdin", ("1 2\n3 4\n", "3\n7\n"))),
    "private_test_cases": packed(live_tests("stdin", ("5 6\n0 0\n", "11\n0\n"))),
    "metadata": "{}",
}
LIVE_CALL_ROW = LIVE_STDIN_ROW | {
    "question_id": "3001",
    "platform": "leetcode",
    "difficulty": "hard",
    "starter_code": "class Solution:\n    def pairs(self, a: List[int], n: int) -> List[int]:\n",
    "public_test_cases": json.dumps(live_tests("functional", ("[1, 2]\n3", "[3, 6]"))),
    "private_test_cases": json.dumps(live_tests("functional", ("[]\n1", "[]"))),
    "metadata": json.dumps({"func_name": "pairs"}),
}
LIVE_CALL_ANSWER = """Like this:
```python
class Solution:
    def pairs(self, a: List[int], n: int) -> List[int]:
        return tuple(map(lambda x: x * n, a))
```
"""
BIGCODE_ROW = {
    "task_id": "BigCodeBench/0",
    "complete_prompt": "import json\nimport os\n\ndef task_func(path, value):\n"
    '    """Writes a value as JSON into a file in a new folder, and returns its size."""\n',
    "instruct_prompt": "Write a value as JSON into a file.\n",
    "code_prompt": "import json\nimport os\ndef task_func(path, value):",
    "canonical_solution": "    os.makedirs(os.path.dirname(path), exist_ok=True)\n"
    "    with open(path, 'w') as file:\n        json.dump(value, file)\n"
    "    return os.path.getsize(path)\n",
    "test": """
import tempfile
import unittest
from unittest.mock import patch

class TestCases(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
    def tearDown(self):
        self.folder.cleanup()
    def test_size(self):
        self.assertEqual(task_func(self.folder.name + "/a/b.json", [1]), 3)
    @patch("json.dump")
    def test_use(self, dump):
        task_func(self.folder.name + "/a/b.json", None)
        dump.assert_called_once()
""",
    "entry_point": "task_func",
    "libs": "['json', 'os']",
}
BIGCODE_ROWS = [
    BIGCODE_ROW,
    # What no machine has, and what the sandbox forbids.
    BIGCODE_ROW | {"task_id": "BigCodeBench/1", "test": "import nosuch\n" + BIGCODE_ROW["test"]},
    BIGCODE_ROW
    | {
        "task_id": "BigCodeBench/2",
        "canonical_solution": "    os.system('true')\n" + BIGCODE_ROW["canonical_solution"],
    },
]
MBPP_ROWS = [
    {
        "task_id": number,
        "text": "Write a function to add one.",
        "code": "class Box:\n    pass\n\ndef add_one(x):\n    return x + 1",
        "test_setup_code": "box = Box()" if number == 12 else "",
        "test_list": [f"assert add_one({n}) == {n + 1}" for n in range(3)],
        "challenge_test_list": [],
    }
    for number in (2, 11, 12, 510, 511)
]
MBPP_PLUS_ROW = {
    "task_id": "Mbpp/56",
    "prompt": '"""\nWrite a function to add one.\nassert math.isclose(check(1), 2)\n"""\n',
    "entry_point": "check",
    "canonical_solution": "\ndef check(x):\n    return x + 1\n",
    "base_input": [[0], [1]],
    "plus_input": [[5], [10**20]],
    "atol": 0,
    "assertion": "\nimport math\n\nassert check(0) == 1\n"
    "assert math.isclose(check(1), 2)\nassert check(4) == 5\n",
}


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def puzzles(count: int, make: Callable[[random.Random], Puzzle]) -> list[dict[str, Any]]:
    rng = random.Random(count)
    made = [make(rng) for _ in range(count)]
    return [{"input": puzzle.input, "output": puzzle.output} for puzzle in made]


def write_evaluation_files(root: Path, puzzle_lines: int) -> Path:
    """Writes eval/ and planning/ into a folder and returns it."""
    (root / "eval").mkdir()
    (root / "planning").mkdir()
    question = {"question": "One and one?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
    problem = {"problem": "1+1?", "solution": r"It is $\boxed{2}$.", "answer": "2"}
    ifeval = {
        "key": 1,
        "prompt": "Say hello without a comma.",
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "Bye."}],
    }
    for name, rows in {
        "HumanEval.jsonl.gz": [HUMANEVAL_ROW],
        "HumanEvalPlus.jsonl.gz": [HUMANEVAL_PLUS_ROW],
        "MbppPlus.jsonl.gz": [MBPP_PLUS_ROW],
        "mbpp.jsonl": MBPP_ROWS,
        "gsm8k_train.jsonl": [question] * 6,
        "gsm8k_test.jsonl": [question],
        "math500_test.jsonl": [problem],
        "ifeval.jsonl": [ifeval],
    }.items():
        content = lines_of(rows)
        packed = gzip.compress(content) if name.endswith(".gz") else content
        (root / "eval" / name).write_bytes(packed)
    for n in (3, 4, 5):
        rows = puzzles(puzzle_lines, lambda rng, n=n: generate_countdown(rng, n))
        (root / "planning" / f"cd{n}_test.jsonl").write_bytes(lines_of(rows))
    for n in range(4, 13):
        rows = puzzles(puzzle_lines, lambda rng, n=n: generate_sudoku(rng, n))
        (root / "planning" / f"sudoku_4x4_{n}.jsonl").write_bytes(lines_of(rows))
    (root / "planning_d1").mkdir()
    grids = "3102200002100320,3142243142131324\n0140432014020000,2143432114323214"
    (root / "planning_d1" / "4x4_test_sudoku.csv").write_text(f"Puzzle,Solution\n{grids}\n")
    rows = [{"input": "30,100,93", "output": "23"}]
    (root / "planning_d1" / "countdown_cd3_test.jsonl").write_bytes(lines_of(rows))
    return root


def write_code_files(root: Path) -> Path:
    """Writes the files of infilling tasks, LiveCodeBench and BigCodeBench; returns the folder."""
    line, span = INFILLING_ROWS
    files = {"SingleLineInfilling": line, "MultiLineInfilling": line}
    files |= {"RandomSpan": span, "RandomSpanLight": span}
    for name, row in files.items():
        (root / f"HumanEval-{name}.jsonl.gz").write_bytes(gzip.compress(lines_of([row])))
    for name, rows in {
        "BigCodeBench": BIGCODE_ROWS,
        "BigCodeBench-Hard": BIGCODE_ROWS[1:2],
    }.items():
        (root / f"{name}.jsonl").write_bytes(lines_of(rows))
    (root / "livecodebench").mkdir()
    for name, row in {"test": LIVE_STDIN_ROW, "test2": LIVE_CALL_ROW}.items():
        (root / "livecodebench" / f"{name}.jsonl").write_bytes(lines_of([row]))
    (root / "santacoder-fim-task.jsonl").write_bytes(lines_of(SANTACODER_ROWS))
    return root


# As gneubig/aime-1983-2024 has them: quoted, and over lines.
AIME_CSV = (
    b"ID,Year,Problem Number,Question,Answer,Part\n"
    b'1983-1,1983,1,"Let $x$, $y$ and $z$ exceed $1$.\n\nFind $\\log_zw$.",60,\n'
    b'2009-I-1,2009,1,"Call a number ""geometric"".",840,I\n'
)
AIME24_ROWS = [
    {"ID": "2024-II-4", "Problem": "Find $m+n$.", "Solution": "It is 33.", "Answer": 33},
    {"ID": "2024-I-7", "Problem": "Find the value.", "Solution": "540.", "Answer": 540},
]
AIME25_ROWS = [
    {"problem": "Find the sum of all bases.", "answer": "70", "id": "0"},
    {"problem": "Find the angle.", "answer": "336^\\circ", "id": "5"},
]
# More than the five that upstream draws as examples.
PLATINUM_ROWS = [
    {
        "question": f"One and {n} thousand?",
        "answer": f"1+{n}000=<<1+{n}000={n}001>>{n}001\n#### {n},001",
        "cleaning_status": "consensus",
    }
    for n in range(1, 8)
]
RULER_ROW = {
    "index": 0,
    "input": "A special magic number is hidden within the following text.\n"
    "One of the special magic numbers for long-word is: 5437923.\n"
    "What is the special magic number for long-word mentioned in the provided text?",
    "outputs": ["5437923", "1234567"],
    "length": 4074,
    "length_w_model_temp": 4074,
    "answer_prefix": " The special magic number for long-word mentioned in the provided text is",
    "token_position_answer": 569,
}


def write_reasoning_files(root: Path) -> Path:
    """Writes the files of AIME, GSM8K-Platinum and RULER; returns the folder."""
    import pyarrow
    from pyarrow import parquet

    for name, rows in {
        "aime24/aime_2024_problems.parquet": AIME24_ROWS,
        "gsm8k_platinum/test-00000-of-00001.parquet": PLATINUM_ROWS,
    }.items():
        (root / name).parent.mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(rows), root / name)
    files = {
        "aime/AIME_Dataset_1983_2024.csv": AIME_CSV,
        "aime25/test.jsonl": lines_of(AIME25_ROWS),
        **{f"ruler/4096/{task}/validation.jsonl": lines_of([RULER_ROW]) for task in RULER.values()},
        "ruler/8192/vt/validation.jsonl": lines_of([RULER_ROW]),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(content)
    return root
