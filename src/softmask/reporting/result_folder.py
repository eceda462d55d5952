"""The folder of a benchmark, and what a result says of its origin.

`result.json` holds command, commit, environment, settings, raw numbers and summary; `table.txt`
is what people read. A folder holds one result.
"""

from __future__ import annotations

import io
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

from ..files import write_atomically

RESULT, TABLE = "result.json", "table.txt"
WIDTH = 100  # columns of table.txt
PACKAGE = Path(__file__).parents[1]


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
    """What git says of the package's folder; None where no repository has it, as when installed."""
    if shutil.which("git") is None:
        return None
    tracked = ["ls-files", "--error-unmatch", "__init__.py"]
    for command in (tracked, list(words)):
        done = subprocess.run(["git", "-C", PACKAGE, *command], capture_output=True, text=True)
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
    """Writes a result with its origin, and its tables: whole, or the folder holds no result.

    Raises:
        OSError: with the name of the file that cannot be written.
    """
    text = io.StringIO()
    console = Console(file=text, width=WIDTH)
    for table in tables:
        console.print(table)
    values = {"command": shlex.join(command), **provenance(), **result}
    write_atomically(folder / TABLE, text.getvalue())
    write_atomically(folder / RESULT, json.dumps(values, indent=1) + "\n")
