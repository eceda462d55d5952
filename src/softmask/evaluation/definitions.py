"""The definitions of tasks: those that names stand for, what they read and what they run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from . import record
from .config import EvalConfig
from .sandbox import available, warn_of_missing
from .task_data import check_files, check_names, config_of, data_files, has_rows, members_of
from .tasks import FOLDER, include_paths
from .tasks.infilling import Infilling

# Suffixes of files that describe tasks.
DESCRIBES = (".yaml", ".yml", ".py", ".jinja")


def check_tasks(config: EvalConfig) -> TaskManager:
    """The definitions of the tasks; is called before a model is loaded.

    Raises:
        ValueError: an unknown task, one that runs what the model writes, without permission, a
            chat template where a hole is to be filled, examples for a task that has none, or a file
            that is missing or wrong.
    """
    manager = task_manager(config.tasks, config.include_path)
    check_names(config.tasks, manager)
    for task in _members(config.tasks, manager):
        if _runs_programs(task, manager) and not config.confirm_run_unsafe_code:
            where = "in" if _is_ours(task, manager) else "without"
            raise ValueError(
                f"{task} runs programs that the model writes ({where} a sandbox): say that it may "
                "with --confirm-run-unsafe-code"
            )
        if config.apply_chat_template and _fills_holes(task, manager):
            raise ValueError(
                f"{task} fills in a hole of a text, which is no conversation: leave out "
                "--apply-chat-template, and --templates that make one of it"
            )
        if config.num_fewshot and config_of(task, manager).get("num_fewshot") == 0:
            raise ValueError(
                f"{task} is put without examples, whatever is asked for: leave out --num-fewshot"
            )
        if config.data_dir is not None and not has_rows(task, manager):
            check_files(task, Path(config.data_dir))
        if "/" in task:
            raise ValueError(f"a task {task!r} can have no file of its samples: name it without /")
    return manager


def check_generates(config: EvalConfig) -> None:
    """Raises ValueError for a task that scores given texts: its forwards are no choice."""
    manager = task_manager(config.tasks, config.include_path)
    for task in _members(config.tasks, manager):
        kind = config_of(task, manager).get("output_type")
        if kind not in (None, "generate_until"):
            raise ValueError(f"{task} scores given texts ({kind}): name tasks that generate")


def _members(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """The tasks that names stand for: those of a group or of a tag, or itself."""
    found = []
    for task in tasks:
        if task not in manager.task_index:
            continue  # a group's own task, defined within it, has no name here
        members = members_of(task, manager)
        found += [task] if members is None else _members(members, manager)
    return found


def _fills_holes(task: str, manager: TaskManager) -> bool:
    own = str(config_of(task, manager).get("class"))
    return own.endswith(f"{Infilling.__module__}.{Infilling.__name__}")


def confinement(config: EvalConfig) -> dict[str, str]:
    """For each task that runs what the model writes, the protections that its programs have here.

    Warns of those that this machine lacks.
    """
    manager = task_manager(config.tasks, config.include_path)
    running = [task for task in _members(config.tasks, manager) if _runs_programs(task, manager)]
    ours = [task for task in running if _is_ours(task, manager)]
    if ours:
        warn_of_missing()
    return {task: available() if task in ours else "no sandbox" for task in running}


def _runs_programs(task: str, manager: TaskManager) -> bool:
    return bool(config_of(task, manager).get("unsafe_code"))


def _is_ours(task: str, manager: TaskManager) -> bool:
    """Whether a task is of this package, whose programs run in the sandbox."""
    path = manager.task_index[task].yaml_path
    return path is not None and FOLDER in Path(path).parents


def task_manager(tasks: Sequence[str], include_path: str | None = None) -> TaskManager:
    """The harness' tasks, ours and those of a folder; the latter replace others of their name.

    Raises:
        ValueError: no such folder.
    """
    paths = include_paths()
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ValueError(f"there is no folder {include_path} with tasks")
        paths.append(include_path)
    manager = _read_definitions(tuple(paths), False)
    return manager if _all_known(tasks, manager) else _read_definitions(tuple(paths), True)


def _all_known(tasks: Sequence[str], manager: TaskManager) -> bool:
    return all(
        task in manager.task_index and _all_known(members_of(task, manager) or (), manager)
        for task in tasks
    )


@lru_cache
def _read_definitions(paths: tuple[str, ...], upstream: bool) -> TaskManager:
    """Cached: reading the harness' 14,000 definitions takes six seconds."""
    # The harness warns of every task of ours, and of every setting that differs from a task's.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=list(paths), include_defaults=upstream)


def files_of(config: EvalConfig) -> dict[str, Any]:
    """Digests of the files that say what the tasks are, and, by task, of those with their data."""
    found: dict[str, Any] = {}
    if config.include_path is not None:
        root = Path(config.include_path)
        found["task_files"] = record.digest(_task_files(root), root)
    if config.data_dir is not None or config.include_path is not None:
        manager = task_manager(config.tasks, config.include_path)
        data_dir = None if config.data_dir is None else Path(config.data_dir)
        by_task = {}
        for task in _members(config.tasks, manager):
            if files := data_files(task, data_dir, manager):
                by_task[task] = record.digest(files)
        if by_task or data_dir is not None:
            found["data_files"] = by_task
    return found


def _task_files(folder: Path) -> Iterator[Path]:
    """What describes tasks below a folder; what Python or a run writes there is none of it."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(place, n) for n in names if Path(n).suffix in DESCRIBES)
