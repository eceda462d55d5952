"""How long the sandbox takes to judge the reference solutions of the four code tasks.

    python benchmarks/sandbox.py DATA benchmarks/results/DATE_sandbox

DATA is a folder that `softmask eval --data-dir` takes. Judged by as many workers as there are
processors, as in an evaluation; every reference must pass every test.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from softmask.evaluation.sandbox import available
from softmask.evaluation.task_data import overrides, read_dataset
from softmask.evaluation.tasks.programs import Attempt, humaneval_attempts, mbpp_attempts
from softmask.reporting.result_folder import provenance

TASKS = {
    "humaneval": humaneval_attempts,
    "humaneval_plus": humaneval_attempts,
    "mbpp": mbpp_attempts,
    "mbpp_plus": mbpp_attempts,
}


def judged(task: str, rows: list[dict], answers: list[str]) -> dict[str, float]:
    """Seconds, and the share that passes each of the task's tests."""
    attempts: list[list[Attempt]] = TASKS[task]([[answer] for answer in answers], rows)
    started = time.perf_counter()
    verdicts = [attempt.verdicts() for (attempt,) in attempts]
    seconds = time.perf_counter() - started
    shares = {
        name: sum(v[name]["passed"] for v in verdicts) / len(verdicts) for name in verdicts[0]
    }
    return {"seconds": round(seconds, 2), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first so many problems of each task")
    args = parser.parse_args()
    raw = {}
    for task in TASKS:
        rows = list(read_dataset(**overrides(task, args.data)["dataset_kwargs"])["test"])
        rows = rows[: args.limit]
        field = "code" if task.startswith("mbpp") else "canonical_solution"
        raw[task] = {"problems": len(rows), **judged(task, rows, [row[field] for row in rows])}
        print(task, raw[task], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"command": f"python benchmarks/sandbox.py DATA {args.out}", **provenance()}
    result |= {"protections": available(), "workers": os.cpu_count(), "raw": raw}
    (args.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
