"""The runs, models and adapters below a folder, by their files alone, without torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..config import read_json
from ..files import LOCK
from ..hub.folder import kept_update
from ..hub.gguf_file import gguf_path
from ..hub.local import Entry, look_at, size_of
from .config import RECIPE

# In the folder of a run that is finished; it names the result.
DONE = "done.json"


def below(root: Path, levels: int = 2) -> Iterator[Entry]:
    """What is in a folder, or in folders so many levels below it; nothing of hidden ones.

    A finished run is the adapter or model that it made.
    """
    entry = _run(root) if _is_run(root) else look_at(root, str(root))
    if entry is not None:
        yield entry
    elif levels > 0:
        for folder in sorted(root.iterdir()):
            is_folder = os.path.isdir(folder)
            rights = os.R_OK | os.X_OK if is_folder else os.R_OK
            # What may not be looked into, as the target of a link, is nothing.
            if folder.name.startswith(".") or not os.access(folder, rights):
                continue
            file = gguf_path(folder)
            found = None if file is None else look_at(file, str(file))
            if found is not None:
                yield found
            if is_folder:
                yield from below(folder, levels - 1)


def _is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file() and (folder / LOCK).is_file()


def _run(folder: Path) -> Entry | None:
    size = size_of(folder)
    go_on = shlex.join(["softmask", "train", str(folder / RECIPE), "--out", str(folder)])
    try:
        if (folder / DONE).is_file():
            made = folder / read_json(folder / DONE)["result"]
            entry = look_at(made, str(made))
            if entry is not None:
                return entry
            raise ValueError(f"{folder} is a finished run, but {made} is gone")
        train = read_json(folder / RECIPE)["train"]
        steps = sum(stage["steps"] for stage in train["stages"]) or train["steps"]
    except (ValueError, TypeError, KeyError) as error:
        problem = str(error) if isinstance(error, ValueError) else f"{folder} holds no whole run"
        return Entry("run", str(folder), "run", size, str(folder), "", problem)
    of = f" of {steps}" if steps else ""
    what = f"unfinished, kept up to update {kept_update(folder)}{of}"
    return Entry("run", str(folder), what, size, str(folder), go_on)
