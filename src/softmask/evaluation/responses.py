"""The answers of a model, saved to disk as soon as they are known.

One JSON line an answer, one file a process. An evaluation that is started again reads all files
and generates only the missing answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import append_line, drop_cut_off_line, read_json_lines


def key_of(*parts: Any) -> str:
    """A key for a request: the same parts give the same key in every process."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def request_key(arguments: Sequence[Any], repeat: int = 0) -> str:
    """The key of a request of the harness.

    `arguments`: context and settings where text is generated; where it is scored the text alone, or
    context, continuation and the document's key, as each document has random numbers of its own.
    `repeat` distinguishes the copies of one request.
    """
    return key_of(*arguments, repeat)


def document_key(task: str | None, document: int | None) -> str:
    """The key of a document of a task: the choices of a question are of one document."""
    return key_of(task, document)


def sample_keys(task: str, sample: dict[str, Any]) -> list[str]:
    """The keys of a sample's requests: of each choice, of each repeat."""
    keys = []
    for arguments, texts in zip(sample["arguments"], sample["resps"], strict=True):
        scored = len(arguments) == 2 and isinstance(arguments[1], str)
        of = [*arguments, document_key(task, sample["doc_id"])] if scored else arguments
        keys += [request_key(of, repeat) for repeat in range(len(texts))]
    return keys


class Responses:
    """Answers by key; without a folder in memory only."""

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self.path = None if folder is None else folder / f"responses.{rank}.jsonl"
        self.by_key: dict[str, dict[str, Any]] = {}
        if folder is not None and self.path is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.by_key |= read_answers(folder)
            if self.path.is_file():
                drop_cut_off_line(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self.by_key

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.by_key[key]

    def add(self, answers: Iterable[dict[str, Any]]) -> None:
        """Adds answers and saves them: they are on disk (fsync) when this returns."""
        answers = list(answers)
        self.know(answers)
        if self.path is not None and answers:
            lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
            append_line(self.path, "\n".join(lines))

    def know(self, answers: Iterable[dict[str, Any]]) -> None:
        """Adds answers that other processes save."""
        self.by_key |= {answer["key"]: answer for answer in answers}


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """The answers in a folder, by key.

    Raises:
        ValueError: a line is no answer.
    """
    paths = sorted(folder.glob("responses.*.jsonl"))
    return {answer["key"]: answer for path in paths for answer in _read(path)}


def _read(path: Path) -> list[dict[str, Any]]:
    """The complete lines; a kill may have cut off the last one."""
    answers = read_json_lines(path)
    for number, answer in enumerate(answers, start=1):
        if not _is_answer(answer):
            raise ValueError(f"{path}, line {number}, is no answer: mend or remove that line")
    return answers


def _is_answer(value: Any) -> bool:
    """Whether it is a text that was generated, or the likelihood of one."""
    if not isinstance(value, dict) or not isinstance(value.get("key"), str):
        return False
    numbers = [value.get(name) for name in ("forwards", "tokens")]
    if "text" not in value:
        numbers += [value.get("nats"), value.get("error")]
    elif not isinstance(value["text"], str):
        return False
    return all(isinstance(number, int | float) for number in numbers)
