"""The folder of a benchmark, and what a result says of its origin.

`result.json` holds command, commit, environment, settings, raw numbers and summary; `table.txt`
is what people read. A folder holds one result.
"""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType

RESULT, TABLE = "result.json", "table.txt"
WIDTH = 100  # columns of table.txt


def provenance() -> dict[str, Any]:
    """The commit of this code, and what it ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": _git("status", "--porcelain", "--untracked-files=no", "--", "."),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "gpu": gpu,
            "threads": torch.get_num_threads(),
        },
    }


def _git(*words: str) -> str | None:
    """What git says of this file's repository; None where it is in none, as when installed."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    tracked = ["ls-files", "--error-unmatch", here.name]
    for command in (tracked, list(words)):
        done = subprocess.run(["git", "-C", here.parent, *command], capture_output=True, text=True)
        if done.returncode:
            return None
    return done.stdout.strip()


def claim(folder: Path) -> None:
    """Makes the folder.

    Raises:
        ValueError: it holds a result already.
    """
    if (folder / RESULT).exists():
        raise ValueError(f"{folder} holds a result already: name another folder with --out")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --out")
    folder.mkdir(parents=True, exist_ok=True)


def write(
    folder: Path,
    command: Sequence[str],
    result: dict[str, Any],
    tables: Sequence[RenderableType],
) -> None:
    """Writes a result with its origin, and its tables."""
    with (folder / TABLE).open("w", encoding="utf-8") as file:
        console = Console(file=file, width=WIDTH)
        for table in tables:
            console.print(table)
    values = {"command": shlex.join(command), **provenance(), **result}
    (folder / RESULT).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
