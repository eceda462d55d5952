"""What a newcomer waits for: the first line, the first picture, the longest stillness, the end.

    python benchmarks/first_minute.py --out benchmarks/results/DATE_first_minute
    python benchmarks/first_minute.py --busy 2      beside two processes that compute

Runs each command in a terminal of 80 columns and 24 lines, several times in turns, and reads the
times off what is drawn. "still" is the longest time in which nothing on the screen changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from terminal import Terminal

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

# Each command, and what its first picture has on it: a step of a canvas being denoised.
COMMANDS: dict[str, tuple[list[str], str]] = {
    "demo": (["demo"], r"(?i)forwards? +\d+|\d+ forwards?"),
    "generate": (["generate", "One day, Tom", "--seed", "7"], r"(?i)forwards? +\d+|\d+ forwards?"),
    "bench": (["bench"], r"\d+/\d+"),
}


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that compute without end, beside what is timed."""
    burning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def watch(words: list[str], picture: str) -> dict[str, float]:
    """Seconds of one run of a command."""
    with Terminal(["softmask", *words]) as terminal:
        terminal.wait_for(r"\S")
        line = time.monotonic() - terminal.started
        terminal.wait_for(picture)
        first = time.monotonic() - terminal.started
        code = terminal.finish(600)
        total = time.monotonic() - terminal.started
        assert code == 0, terminal.everything()
        still = terminal.longest_still
    return {"first_line": line, "first_picture": first, "still": still, "total": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each command (3)")
    parser.add_argument("--busy", type=int, default=0, help="processes that compute beside it (0)")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="of them, these")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    names = args.commands.split(",")
    raw: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with load(args.busy):
        for _ in range(args.repeat):
            for name in names:
                raw[name].append(watch(*COMMANDS[name]))
    table = light_table(f"seconds, median (worst) of {args.repeat}; {args.busy} busy processes")
    for column in ("command", "first line", "first picture", "still", "total"):
        table.add_column(column, justify="left" if column == "command" else "right")
    summary: dict[str, dict[str, float]] = {}
    for name, runs in raw.items():
        cells = []
        for key in runs[0]:
            values = [run[key] for run in runs]
            summary.setdefault(name, {})[key] = round(statistics.median(values), 2)
            cells.append(f"{statistics.median(values):.1f} ({max(values):.1f})")
        table.add_row(f"softmask {name}", *cells)
    Console(width=100).print(table)
    if args.out is not None:
        settings = {"repeat": args.repeat, "busy": args.busy, "cpus": os.cpu_count()}
        found = {"settings": settings, "raw_seconds": raw, "summary": summary}
        write(args.out, ["python", *sys.argv], found, [table])


if __name__ == "__main__":
    main()
