"""Evaluation data from files, for machines without the Hub.

    overrides("gsm8k", folder)                   what to change in a task's configuration
    with_data(["mbpp_plus", "countdown"], folder, task_manager)   tasks for simple_evaluate

The folder has the files below directly in it, or in eval/, planning/ and planning_d1/, in the
layout in which their authors publish them; each may also be compressed (.gz) or not. Rows come out
in the layout of the Hub. They are read into memory anew for every run: no cache can hold an older
file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..puzzles.puzzles import read_puzzles
from ..row_files import rows_of
from .tasks.bigcodebench import bigcodebench_row
from .tasks.evalplus import humaneval_plus_row, mbpp_plus_row
from .tasks.livecodebench import livecodebench_row
from .tasks.ruler import RULER, length_of, ruler_row

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

__all__ = [
    "LAYOUTS",
    "Layout",
    "check_files",
    "check_names",
    "config_of",
    "data_files",
    "has_rows",
    "members_of",
    "needs_files",
    "needs_livecodebench",
    "needs_ruler",
    "overrides",
    "read_dataset",
    "with_data",
]

Rows = list[dict[str, Any]]
FOLDERS = ("", "eval", "planning", "planning_d1")
# The first lines of a planning file are the few-shot examples. Dream's Sudoku files are made that
# way (108 lines, 100 of which are evaluated); the Countdown files are read alike, which leaves 992
# of their 1,000 puzzles.
SHOTS = 8
# The data set on the Hub splits MBPP by problem number; these are its test split.
MBPP_TEST = range(11, 511)


@dataclass(frozen=True)
class Layout:
    """The files of a task: those of each split, the fields of a row, and what becomes of it.

    A name with a star stands for all files of such a name, in their order.

    `row` returns None for a row that is not part of the split. `of_path` is what a file's place
    says of all of its rows.
    """

    files: Mapping[str, str]
    fields: tuple[str, ...] = ()
    row: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda row: row
    of_path: Callable[[Path], dict[str, Any]] = lambda path: {}
    puzzles: str | None = None


def _mbpp_test_row(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row["task_id"] in MBPP_TEST else None


def _infilling_row(row: dict[str, Any]) -> dict[str, Any]:
    try:
        ast.parse(row["prompt"] + row["canonical_solution"] + row["suffix"])
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"prompt, solution and suffix are no program ({error}).") from None
    return row


def _sudoku_row(row: dict[str, Any]) -> dict[str, Any]:
    for grid in row.values():
        if not re.fullmatch("[0-4]{16}", grid):
            raise ValueError("a grid has 16 digits from 0 to 4.")
    return row


_HUMANEVAL_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_PLUS_FIELDS = ("base_input", "plus_input", "atol")
_HUMANEVAL = Layout({"test": "HumanEval.jsonl"}, _HUMANEVAL_FIELDS)
_INFILLING = ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point")
_HUMANEVAL_PLUS = Layout(
    {"test": "HumanEvalPlus.jsonl"}, (*_HUMANEVAL_FIELDS, *_PLUS_FIELDS), humaneval_plus_row
)
_MBPP = Layout(
    {"test": "mbpp.jsonl"},
    ("task_id", "text", "code", "test_list", "test_setup_code"),
    _mbpp_test_row,
)
_MBPP_PLUS = Layout(
    {"test": "MbppPlus.jsonl"},
    ("task_id", "prompt", "entry_point", "canonical_solution", "assertion", *_PLUS_FIELDS),
    mbpp_plus_row,
)
_BIGCODE = ("task_id", "complete_prompt", "canonical_solution", "test", "entry_point")
_GSM8K_FIELDS = ("question", "answer")
_MATH500 = Layout({"test": "math500_test.jsonl"}, ("problem", "solution", "answer"))
_IFEVAL_FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")

LAYOUTS: dict[str, Layout] = {
    "humaneval": _HUMANEVAL,
    "humaneval_instruct": _HUMANEVAL,
    "humaneval_plus": _HUMANEVAL_PLUS,
    "humaneval_plus_instruct": _HUMANEVAL_PLUS,
    "mbpp": _MBPP,
    "mbpp_instruct": _MBPP,
    "mbpp_plus": _MBPP_PLUS,
    "mbpp_plus_instruct": _MBPP_PLUS,
    **{
        f"humaneval_{kind}": Layout({"test": f"HumanEval-{file}.jsonl"}, _INFILLING, _infilling_row)
        for kind, file in (
            ("single_line_infilling", "SingleLineInfilling"),
            ("multi_line_infilling", "MultiLineInfilling"),
            ("random_span_infilling", "RandomSpan"),
            ("random_span_infilling_light", "RandomSpanLight"),
        )
    },
    "santacoder_fim": Layout(
        {"train": "santacoder-fim-task.jsonl"},
        ("language", "prompt", "suffix", "canonical_solution"),
    ),
    "gsm8k": Layout({"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"}, _GSM8K_FIELDS),
    "gsm8k_cot": Layout({"test": "gsm8k_test.jsonl"}, _GSM8K_FIELDS),
    "math500": _MATH500,
    "minerva_math500": _MATH500,
    **{
        f"bigcodebench_{subset}{way}": Layout({"v0.1.4": f"{file}.jsonl"}, fields, bigcodebench_row)
        for subset, file in (("", "BigCodeBench"), ("hard_", "BigCodeBench-Hard"))
        for way, fields in (
            ("complete", _BIGCODE),
            ("instruct", (*_BIGCODE, "instruct_prompt", "code_prompt")),
        )
    },
    "livecodebench": Layout(
        {"test": "livecodebench/test*.jsonl"},
        (
            *("question_id", "question_content", "starter_code", "platform", "difficulty"),
            *("contest_date", "public_test_cases", "private_test_cases", "metadata"),
        ),
        livecodebench_row,
    ),
    "aime": Layout({"train": "aime/*.csv"}, ("Question", "Answer")),
    "aime24": Layout({"train": "aime24/*.parquet"}, ("Problem", "Answer")),
    "aime25": Layout({"test": "aime25/*.jsonl"}, ("problem", "answer")),
    **{
        f"gsm8k_platinum{way}": Layout({"test": "gsm8k_platinum/*.parquet"}, _GSM8K_FIELDS)
        for way in ("", "_cot", "_cot_llama", "_cot_zeroshot")
    },
    **{
        task: Layout(
            {"test": f"ruler/*/{folder}/validation.jsonl"},
            ("input", "outputs"),
            ruler_row,
            of_path=length_of,
        )
        for task, folder in RULER.items()
    },
    "ifeval": Layout({"train": "ifeval.jsonl"}, _IFEVAL_FIELDS),
    "countdown_d1": Layout({"test": "countdown_cd3_test.jsonl"}, ("input", "output")),
    "sudoku_d1": Layout({"test": "4x4_test_sudoku.csv"}, ("Puzzle", "Solution"), _sudoku_row),
    **{
        f"countdown_cd{n}{twin}": Layout({"test": f"cd{n}_test.jsonl"}, puzzles="countdown")
        for n in (3, 4, 5)
        for twin in ("", "_plain")
    },
    **{
        f"sudoku_4x4_{n}{twin}": Layout({"test": f"sudoku_4x4_{n}.jsonl"}, puzzles="sudoku")
        for n in range(4, 13)
        for twin in ("", "_plain")
    },
}


def overrides(task: str, data_dir: Path) -> dict[str, Any]:
    """Return what makes lm-eval read the data of a task from files of this folder.

    Raises ValueError for a task without a file layout, and for a missing file, naming both.
    """
    layout = LAYOUTS.get(task)
    if layout is None:
        raise ValueError(f"The task {task} has no file layout: it needs the Hub.")
    files = {split: _found(name, data_dir, task) for split, name in layout.files.items()}
    return {
        "custom_dataset": read_dataset,
        "dataset_kwargs": {"file_layout": task, "files": files},
        "dataset_path": str(data_dir),
        "dataset_name": None,
    }


def _found(name: str, data_dir: Path, task: str) -> list[str]:
    for folder in FOLDERS:
        files = {
            # Of a file that is there twice the one that is not compressed, which comes last.
            str(path).removesuffix(".gz"): str(path.resolve())
            for suffix in (".gz", "")
            for path in Path(data_dir, folder).glob(name + suffix)
            if path.is_file()
        }
        if files:
            return [files[own] for own in sorted(files)]
    raise ValueError(
        f"The task {task} needs the file {name} (or {name}.gz), which is neither in {data_dir} "
        "nor in its eval/, planning/ or planning_d1/."
    )


def check_files(task: str, data_dir: Path) -> None:
    """Raise ValueError for a missing file of a task, and for a row that is not as it should be."""
    files = overrides(task, data_dir)["dataset_kwargs"]["files"]
    _check(
        task,
        tuple(
            (split, tuple((path, Path(path).stat().st_mtime_ns) for path in paths))
            for split, paths in files.items()
        ),
    )


@lru_cache
def _check(task: str, files: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]) -> None:
    """Cached, by the time of the last change: commands look at their tasks more than once."""
    found = {split: [path for path, _ in paths] for split, paths in files}
    read_dataset(file_layout=task, files=found)


def read_dataset(
    *, file_layout: str, files: Mapping[str, Sequence[str]], **metadata: Any
) -> dict[str, Any]:
    """Return the splits of a task's files, as lm-eval's `custom_dataset`.

    lm-eval passes the metadata of the task too, which has no say here. Raises ValueError, naming
    the file and the line, for a row that is not what the layout says, and OSError if a file
    cannot be read.
    """
    from datasets import Dataset

    layout = LAYOUTS[file_layout]
    splits: dict[str, Rows] = {}
    for split, paths in files.items():
        if layout.puzzles is None:
            splits[split] = [row for path in paths for row in _rows(Path(path), layout)]
        else:
            puzzles = [puzzle for path in paths for puzzle in read_puzzles(path, layout.puzzles)]
            rows = [{"input": puzzle.input, "output": puzzle.output} for puzzle in puzzles]
            splits |= {"fewshot": rows[:SHOTS], split: rows[SHOTS:]}
    empty = sorted(split for split, rows in splits.items() if not rows)
    if empty:
        read = ", ".join(path for paths in files.values() for path in paths)
        raise ValueError(f"{read}: no rows for the split {empty[0]}.")
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _rows(path: Path, layout: Layout) -> Rows:
    given = layout.of_path(path)
    rows: Rows = []
    for number, row in rows_of(path):
        where = f"{path}:{number}"
        if not isinstance(row, dict) or any(row.get(name) is None for name in layout.fields):
            raise ValueError(f"{where}: a row needs the fields {', '.join(layout.fields)}.")
        try:
            converted = layout.row(row | given)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if converted is not None:
            rows.append(converted)
    return rows


def needs_files(**metadata: Any) -> dict[str, Any]:
    """Raise ValueError: the data of this task is not on the Hub (lm-eval's `custom_dataset`)."""
    raise ValueError(
        "The puzzles are files of their authors' repositories (github.com/DreamLM/Dream and, for "
        "the tasks in d1, github.com/dllm-reasoning/d1), not data sets on the Hub: say with "
        "--data-dir in which folder they are."
    )


def needs_livecodebench(**metadata: Any) -> dict[str, Any]:
    """Raise ValueError: the data set on the Hub is a script, which `datasets` runs no more."""
    raise ValueError(
        "livecodebench reads the files of its release (test.jsonl, test2.jsonl, ... of "
        "huggingface.co/datasets/livecodebench/code_generation_lite): put those of the release "
        "that is meant into a folder livecodebench/, and say with --data-dir where that is."
    )


def needs_ruler(**metadata: Any) -> dict[str, Any]:
    """Raise ValueError: the texts are made for a length and a tokenizer, and are no data set."""
    raise ValueError(
        "RULER's texts are made for a length and a tokenizer: make them by scripts/data/prepare.py "
        "of github.com/NVIDIA/RULER with --save_dir DIR/ruler/4096 --max_seq_length 4096 and the "
        "model's tokenizer, and say --data-dir DIR."
    )


def check_names(task_names: Sequence[str], task_manager: TaskManager) -> None:
    """Raise ValueError, with the nearest names, for a task that is not defined."""
    for name in task_names:
        if name not in task_manager.task_index:
            near = get_close_matches(name, task_manager.all_tasks, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"there is no task {name!r}: {hint}`softmask lm_eval ls tasks` lists all of them"
            )


def config_of(task: str, task_manager: TaskManager) -> dict[str, Any]:
    """Return what a task's or a group's file says, functions in it by name; a tag has none."""
    return task_manager.task_index[task].cfg or {}


def members_of(task: str, task_manager: TaskManager) -> list[str] | None:
    """Return the names of a group's or a tag's members; None for a task."""
    entry, config = task_manager.task_index[task], config_of(task, task_manager)
    if "group" not in config:
        return sorted(entry.tags) if entry.cfg is None and entry.tags else None
    members = config.get("task")
    return [one for one in members if isinstance(one, str)] if isinstance(members, list) else None


def has_rows(task: str, task_manager: TaskManager) -> bool:
    """Return whether a task makes its rows itself, or names the files that hold them."""
    return task not in LAYOUTS and _has_rows(config_of(task, task_manager))


def _has_rows(config: Mapping[str, Any]) -> bool:
    return "custom_dataset" in config or "data_files" in (config.get("dataset_kwargs") or {})


def data_files(task: str, data_dir: Path | None, task_manager: TaskManager) -> set[Path]:
    """Return the files on this machine that a task reads: those of the folder, or that it names.

    Empty where a file of the folder is missing, which `check_files` says.
    """
    if task in LAYOUTS:
        try:
            splits = (
                {} if data_dir is None else overrides(task, data_dir)["dataset_kwargs"]["files"]
            )
        except ValueError:
            return set()
        return {Path(file) for files in splits.values() for file in files}
    given = config_of(task, task_manager).get("dataset_kwargs") or {}
    root, named = Path(given.get("data_dir") or ""), given.get("data_files")
    if named is None:
        named = "**/*" if given.get("data_dir") else ()
    names = named.values() if isinstance(named, Mapping) else [named]
    flat = [one for name in names for one in ([name] if isinstance(name, str) else name)]
    return {Path(path) for name in flat for path in glob(str(root / name), recursive=True)}


def with_data(
    task_names: Sequence[str], data_dir: Path | None, task_manager: TaskManager
) -> list[str | Task | Group]:
    """Return what to pass to `lm_eval.simple_evaluate(tasks=..., task_manager=task_manager)`.

    Without a folder these are the names themselves. With one the tasks are loaded with the files
    of the folder, and groups keep their members and means; a tag becomes its members, as lm-eval
    has it. A task that makes its rows itself, or names the files that hold them, reads nothing of
    it. Raises ValueError for an unknown name,
    a task without a file layout, and a missing or wrong file.
    """
    check_names(task_names, task_manager)
    if data_dir is None:
        return list(task_names)
    named = [one for name in task_names for one in _of_tag(name, task_manager) or [name]]
    return [_loaded(name, Path(data_dir), task_manager) for name in dict.fromkeys(named)]


def _of_tag(name: str, task_manager: TaskManager) -> list[str] | None:
    """The members of a tag, which has no file of its own; None for a task and a group."""
    return None if config_of(name, task_manager) else members_of(name, task_manager)


def _loaded(name: str, data_dir: Path, task_manager: TaskManager) -> Task | Group:
    from lm_eval.api.group import Group
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = task_manager.task_index[name]
    config = load_yaml(entry.yaml_path) if entry.yaml_path else {}
    members = config.get("task")
    if name not in LAYOUTS and _has_rows(config):
        return task_manager.load([name])["tasks"][name]
    if "group" not in config:
        changed = config | overrides(name, data_dir)
        return task_manager.load([changed])["tasks"][name]
    if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
        raise ValueError(f"The group {name} has no file layout: it needs the Hub.")
    group = Group.from_config(config)
    for member in members:
        group.add(_loaded(member, data_dir, task_manager))
    return group
