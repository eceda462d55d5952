"""All code and infilling tasks: judged by their references, and run by a tiny random model.

    python benchmarks/code_tasks.py OUT --data DATA [--limit 3] [--lines 1033]

DATA is a folder that `softmask eval --data-dir` takes. HumanEval-Infilling's single and multiple
lines are cut out of its HumanEval.jsonl.gz, as the benchmark's paper (arXiv 2207.14255) says: each
line that is not blank, each stretch from one such line to another. That gives as many holes as the
release has, 1033 and 5815. What DATA lacks is made up, a few rows in the release's format.

Judged: the seconds of an evaluation whose answers are given, on the clock and of processors (its
own and its programs', which another load hardly changes), and which share of the answers is right.
The references have to be right, all of them; what is never a program must not be.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # made-up rows, answers to the letter

from evaluation_files import lines_of, write_code_files
from parrot import evaluate_parrot
from tiny import write_dream_folder

from softmask.evaluation.record import read_run, summary
from softmask.evaluation.sandbox import available
from softmask.evaluation.suites import main_score
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

NEVER = "\n)(\n"
RELEASED = {"SingleLineInfilling": 1033, "MultiLineInfilling": 5815}
# The field of a row that holds what was cut out.
HOLE = "canonical_solution"
INFILLING = (
    "humaneval_single_line_infilling",
    "humaneval_multi_line_infilling",
    "humaneval_random_span_infilling",
    "humaneval_random_span_infilling_light",
    "santacoder_fim",
)
PROGRAMS = (
    *("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"),
    *("bigcodebench_complete", "bigcodebench_hard_complete"),
)
# Those whose prompts are for the chat template.
CHATS = (
    "livecodebench",
    *("humaneval_instruct", "humaneval_plus_instruct", "mbpp_instruct", "mbpp_plus_instruct"),
    *("bigcodebench_instruct", "bigcodebench_hard_instruct"),
)
JUDGED = ("humaneval_single_line_infilling", "humaneval_multi_line_infilling")


def holes(rows: list[dict[str, Any]], *, several: bool) -> Iterator[dict[str, Any]]:
    """The rows of HumanEval with a line, or some, cut out of their solutions."""
    for row in rows:
        lines = row[HOLE].split("\n")
        written = [index for index, line in enumerate(lines) if line.strip()]
        for at, first in enumerate(written):
            for last in written[at:] if several else [first]:
                before, after = lines[:first], lines[last + 1 :]
                yield {
                    "task_id": f"{row['task_id']}/L{first}_L{last}",
                    "entry_point": row["entry_point"],
                    "prompt": row["prompt"] + "".join(f"{line}\n" for line in before),
                    "suffix": "".join(f"\n{line}" for line in after),
                    HOLE: "\n".join(lines[first : last + 1]),
                    "test": row["test"],
                }


def prepare(data: Path, folder: Path, lines: int | None) -> dict[str, Any]:
    """Fills a folder with the data of all tasks; says how much of it is made up."""
    write_code_files(folder)
    for name in ("HumanEval.jsonl.gz", "HumanEvalPlus.jsonl.gz", "mbpp.jsonl", "MbppPlus.jsonl.gz"):
        shutil.copy(data / "eval" / name, folder / name)
    rows = [
        json.loads(line)
        for line in gzip.decompress((folder / "HumanEval.jsonl.gz").read_bytes()).splitlines()
    ]
    counts: dict[str, Any] = {}
    for name, several in (("SingleLineInfilling", False), ("MultiLineInfilling", True)):
        made = list(holes(rows, several=several))
        counts[name] = {"holes": len(made), "released": RELEASED[name]}
        assert len(made) == RELEASED[name]
        # Evenly out of all, so that all problems are met.
        made = made if lines is None else made[:: max(1, len(made) // lines)][:lines]
        (folder / f"HumanEval-{name}.jsonl.gz").write_bytes(gzip.compress(lines_of(made)))
    return counts


def judge(task: str, folder: Path, answer: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """The share of answers that is right, and the seconds that an evaluation of them takes."""
    started, spent = time.perf_counter(), _processor_seconds()
    results, model = evaluate_parrot([task], folder, answer)
    seconds, spent = time.perf_counter() - started, _processor_seconds() - spent
    (score,) = (
        value for name, value in results["results"][task].items() if name.startswith("pass@1,")
    )
    return {
        "programs": len(model.asked),
        "right": score,
        "seconds": round(seconds, 2),
        "processor_seconds": round(spent, 2),
    }


def _processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def random_model(
    tasks: list[str], model: Path, folder: Path, out: Path, limit: int, *more: str
) -> dict[str, dict[str, Any]]:
    """`softmask eval` of a tiny random model, as a user types it: the main score of each task."""
    command = ["softmask", "eval", "--tasks", ",".join(tasks), "--model", str(model)]
    command += ["--data-dir", str(folder), "--limit", str(limit), "--device", "cpu"]
    command += ["--max-new-tokens", "16", "--confirm-run-unsafe-code", "--out", str(out), *more]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{', '.join(tasks)}: {done.stderr[-2000:]}")
    found = {}
    for task in tasks:
        rows = {(r["metric"], r["filter"]): r for r in summary(out) if r["task"] == task}
        row = rows[main_score(task, list(rows))]
        kept = {name: row[name] for name in ("metric", "value", "n", "forwards")}
        found[task] = {**kept, "programs": read_run(out)["programs"].get(task)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=3, help="problems of the random model")
    parser.add_argument("--lines", type=int, help="only so many holes of each kind are judged")
    args = parser.parse_args()
    claim(args.out)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name) / "data", Path(name) / "model"
        folder.mkdir()
        counts = prepare(args.data, folder, args.lines)
        judged = {}
        for task in JUDGED:
            for kind, answer in {
                "reference": lambda row: row[HOLE],
                "left empty": lambda _: "",
                "no program": lambda _: NEVER,
            }.items():
                judged[task, kind] = judge(task, folder, answer)
                print(task, kind, judged[task, kind], flush=True)
        write_dream_folder(model, chat=True, max_position_embeddings=4096)
        sizes = (model, folder, Path(name) / "raw", args.limit)
        ran = random_model([*INFILLING, *PROGRAMS], *sizes)
        sizes = (model, folder, Path(name) / "chat", args.limit)
        ran |= random_model([*CHATS], *sizes, "--apply-chat-template")
    table = light_table("answers that are given: judged by all processors")
    columns = (
        "task",
        "answers",
        "programs",
        "right, %",
        "seconds",
        "ms a program",
        "of processors",
    )
    for column in columns:
        left = column in ("task", "answers")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for (task, kind), one in judged.items():
        times = [1000 * one[n] / one["programs"] for n in ("seconds", "processor_seconds")]
        cells = (f"{100 * one['right']:.1f}", f"{one['seconds']:.1f}", *(f"{t:.0f}" for t in times))
        table.add_row(task, kind, str(one["programs"]), *cells)
    other = light_table(f"a tiny random model, {args.limit} problems at most: the whole command")
    for column in ("task", "metric", "problems", "score, %"):
        other.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for task, one in ran.items():
        other.add_row(task, one["metric"], str(one["n"]), f"{100 * one['value']:.1f}")
    result = {
        "protections": available(),
        "holes": counts,
        "judged": [{"task": t, "answers": k, **one} for (t, k), one in judged.items()],
        "random_model": ran,
    }
    write(args.out, ["python", *sys.argv], result, [table, other])


if __name__ == "__main__":
    main()
