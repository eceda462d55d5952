"""softmask eval report: what finished evaluations hold, gathered for one page.

Everything is read from the folders; no model is needed but for the trace of a sample.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import read_json_lines
from . import record, spread
from .compare import runs_in
from .responses import read_answers, request_key
from .spread import Spread
from .suites import main_score

SAMPLES = 10
# What an answer that no filter found anything in becomes.
INVALID = "[invalid]"
# The harness' settings that a page of results shows, where they are given.
SHOWN = (
    *("max_new_tokens", "diffusion_steps", "nfe", "alg", "temperature", "top_p", "top_k", "min_p"),
    *("block_length", "cache", "threshold", "entropy_threshold", "estimator", "batch_size", "seed"),
)


@dataclass(frozen=True)
class Run:
    """One finished evaluation: its name on the page, its record, and its summary's rows."""

    name: str
    folder: Path
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def responses(self) -> dict[str, dict[str, Any]]:
        """The answers as they came, by key: of all of its tasks, so read once."""
        return read_answers(self.folder)

    @property
    def soft(self) -> bool:
        return self.record.get("soft_mask") is not None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of decoding that were given."""
        args = self.record.get("model_args") or {}
        return {name: args[name] for name in SHOWN if args.get(name) is not None}

    @property
    def origin(self) -> dict[str, str]:
        """What ran on what, for people."""
        held = self.record
        soft = held.get("soft_mask") or {}
        of_soft = ", ".join(f"{name.partition('_')[2]} {value}" for name, value in soft.items())
        packages = held.get("packages") or {}
        environment = held.get("environment") or {}
        found = {
            "model": _named(held.get("model")),
            "adapter": _named(held.get("adapter")),
            "soft mask": of_soft or "off",
            "settings": ", ".join(f"{name} {value}" for name, value in self.settings.items()),
            "template": str((held.get("evaluation") or {}).get("template") or ""),
            "number format": (held.get("dtype") or "").removeprefix("torch."),
            "commit": (held.get("commit") or "")[:12]
            + (", changed since" if held.get("changed_since") else ""),
            "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
            "machine": ", ".join(
                str(environment[name]) for name in ("gpu", "machine") if environment.get(name)
            ),
            "day": (held.get("started") or "")[:10],
            "command": shlex.join(held.get("command") or []),
        }
        return {name: value for name, value in found.items() if value}


def _named(part: dict[str, Any] | None) -> str:
    if not part:
        return ""
    return f"{part.get('name')} ({str(part.get('fingerprint'))[:12]})"


@dataclass(frozen=True)
class Answer:
    """What a run wrote for a sample, and what became of it."""

    run: str
    arguments: tuple[str, dict[str, Any]]  # of the request: the prompt, and the task's settings
    text: str
    kind: str
    scores: dict[str, float]
    forwards: float | None


@dataclass(frozen=True)
class Sample:
    """A sample of a task: its question, what was expected, and the answers of some runs."""

    number: int
    question: str
    target: str
    answers: list[Answer]


@dataclass(frozen=True)
class Task:
    """A task on the page: its main score in every run, kinds of answers by run, samples."""

    name: str
    metric: str
    filter: str
    rows: list[tuple[Run, dict[str, Any]]]
    kinds: list[tuple[Run, Counter[str]]]
    samples: list[Sample]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All finished evaluations in the folders and below.

    Raises:
        ValueError: a folder holds none, or a damaged one.
    """
    given: dict[Path, Path] = {}
    for folder in folders:
        given.setdefault(folder.resolve(), folder)
    names = Counter(whole.name for whole in given)
    found = []
    for whole, folder in given.items():
        # By its path where another one has the same name.
        own = whole.name if names[whole.name] == 1 else str(folder)
        for place, path in runs_in(folder).items():
            name = own if place == "." else place
            if len(given) > 1 and place != ".":
                name = f"{own}/{place}"
            found.append(Run(name, path, record.read_run(path), record.summary(path)))
    return found


def read_spreads(runs: Sequence[Run]) -> list[tuple[str, Spread]]:
    """Spreads of main scores over templates: the place of their folder, and what it holds.

    Raises:
        ValueError: a folder's spreads are damaged.
    """
    places = {run.folder.resolve().parent: run.name.rpartition("/")[0] for run in runs}
    return [
        (place or path.name, one)
        for path, place in places.items()
        for one in spread.read(path)
        if one.main
    ]


def read_tasks(runs: Sequence[Run], samples: int = SAMPLES) -> list[Task]:
    """Each task that the runs have, with samples of the first plain and the first soft run.

    Args:
        samples: how many of a task are shown, spread evenly over it.
    """
    by_task: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for task in dict.fromkeys(row["task"] for row in run.rows):
            own = {(r["metric"], r["filter"]): r for r in run.rows if r["task"] == task}
            by_task.setdefault(task, []).append((run, own[main_score(task, list(own))]))
    found = []
    for name, rows in by_task.items():
        first = rows[0][1]
        # Other runs by the same score, where they have it.
        rows = [(run, _same(run, name, first) or row) for run, row in rows]
        answers = [(run, list(_answers(run, name, row))) for run, row in rows]
        kinds = [(run, Counter(a.kind for _, _, a in own)) for run, own in answers if own]
        shown = _first_of_each_way([(run, own) for run, own in answers if own])
        found.append(
            Task(
                *(name, first["metric"], first["filter"]),
                rows=rows,
                kinds=kinds,
                samples=_samples(shown, samples),
            )
        )
    return found


def _same(run: Run, task: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    names = ("metric", "filter")
    own = (row for row in run.rows if row["task"] == task)
    return next((row for row in own if all(row[n] == wanted[n] for n in names)), None)


def _first_of_each_way(answers: list[tuple[Run, list[Any]]]) -> list[tuple[Run, list[Any]]]:
    """The first plain run and the first soft one."""
    plain = [pair for pair in answers if not pair[0].soft]
    soft = [pair for pair in answers if pair[0].soft]
    return [*plain[:1], *soft[:1]]


def _answers(
    run: Run, task: str, score: dict[str, Any]
) -> Iterable[tuple[str, dict[str, Any], Answer]]:
    """Key, sample and answer of each document, where texts were written.

    `score`: the summary's row by which answers are right or not.

    Raises:
        ValueError: a line is no sample.
    """
    path = run.folder / f"samples_{task}.jsonl"
    if not path.is_file():
        return
    for number, sample in enumerate(read_json_lines(path), start=1):
        try:
            if sample["filter"] != score["filter"] or not _wrote_text(sample):
                continue
            yield _answer(run, sample, score)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no sample: repeat the evaluation with --overwrite"
            ) from error


def _answer(
    run: Run, sample: dict[str, Any], row: dict[str, Any]
) -> tuple[str, dict[str, Any], Answer]:
    scores = {
        name: sample[name]
        for name in sample["metrics"]
        if isinstance(sample.get(name), int | float)
    }
    held = run.responses.get(request_key(sample["arguments"][0]), {})
    answer = Answer(
        run.name,
        tuple(sample["arguments"][0]),
        _text(sample["resps"][0]),
        _kind(sample, _judged(row["metric"], scores), held, share=record.is_share(row)),
        scores,
        sum(sample["forwards"]) if sample.get("forwards") else None,
    )
    return f"{sample['doc_hash']}/{sample['doc_id']}", sample, answer


def _judged(metric: str, scores: dict[str, Any]) -> float | None:
    """A sample's score of a metric; None: it was left out of it."""
    score = None if scores.get("skipped") else scores.get(metric)
    return score if record.is_measured(metric, score) else None


def _wrote_text(sample: dict[str, Any]) -> bool:
    """Whether texts were written, and not given ones scored."""
    return isinstance(_first(sample["resps"]), str)


def _first(value: Any) -> Any:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _text(value: Any) -> str:
    return str(_first(value))


def _question(sample: dict[str, Any]) -> str:
    """The prompt; of a hole what stands on both sides."""
    prompt, settings = sample["arguments"][0]
    return f"{prompt}[...]{settings['suffix']}" if settings.get("suffix") is not None else prompt


def _kind(sample: dict[str, Any], score: float | None, held: dict[str, Any], *, share: bool) -> str:
    """Right, or what kind of failure: by the sandbox, the filter, the length, else just wrong.

    By the main score alone: a program may pass the easier tests and fail those that count. Of a
    score that is no share, such as BLEU's 0 to 100, none of them is known to be right.
    """
    if score is None:
        return "not judged"
    if share and score >= 1:
        return "right"
    found = _first(sample["filtered_resps"])
    if isinstance(found, dict) and "verdicts" in found:
        reasons = [v.get("reason") for v in found["verdicts"].values() if not v.get("passed")]
        return f"program: {_kind_of_reason(str(_first(reasons) or 'failed'))}"
    if held.get("finish_reason") == "length":
        return "cut off at its length"
    if found in (INVALID, ""):
        return "no answer found"
    if not share:
        return "scored"
    if score > 0:
        return "partly right"
    return "wrong"


def _kind_of_reason(reason: str) -> str:
    """A verdict's reason without what differs from program to program."""
    return reason.partition(":")[0].partition("(")[0].strip()[:60] or "failed"


def _samples(shown: Sequence[tuple[Run, list[Any]]], count: int) -> list[Sample]:
    """Documents that all of these runs have, spread evenly, with the answers of each."""
    if not shown:
        return []
    by_run = [{key: (sample, answer) for key, sample, answer in own} for _, own in shown]
    keys = [key for key, _, _ in shown[0][1] if all(key in own for own in by_run)]
    number = min(count, len(keys))
    found = []
    for key in (keys[place * len(keys) // number] for place in range(number)):
        sample = by_run[0][key][0]
        found.append(
            Sample(
                sample["doc_id"],
                question=_question(sample),
                target=str(sample.get("target", "")),
                answers=[own[key][1] for own in by_run],
            )
        )
    return found
