"""Checkpoints of a run: marked when all of one is on the disk, checked before a run goes on.

The mark, written last, holds a digest of every file. A run goes on from the newest checkpoint that
is as it was written; what came after that one is made again, to the same bits.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ..config import read_json
from ..files import file_digest, sync_tree, write_atomically
from ..hub.folder import CHECKPOINT, COMPLETE


def checkpoint_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after an update lies in the folder of a run."""
    return folder / f"checkpoint-{step}"


def mark_complete(checkpoint: Path, step: int, processes: int) -> None:
    """Has all of a checkpoint on the disk, and then marks it.

    Raises:
        OSError: it cannot be written; there is no mark then.
    """
    sync_tree(checkpoint)
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    files = {path.relative_to(checkpoint).as_posix(): file_digest(path) for path in paths}
    mark = {"step": step, "processes": processes, "files": files}
    write_atomically(checkpoint / COMPLETE, json.dumps(mark, indent=1) + "\n")


def settle_checkpoints(folder: Path, keep_best: bool, report: Callable[[str], None]) -> None:
    """Leaves a run the checkpoints that it can go on from, of which it takes the newest.

    Deletes incomplete ones, left by a kill. If one is damaged, it goes, and with it those that came
    after the whole one before it: `report` gets a sentence about each.

    Raises:
        ValueError: there are checkpoints, and none of them is as it was written.
    """
    marked = []
    for checkpoint in _by_age(folder):
        if (checkpoint / COMPLETE).is_file():
            marked.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    lost: list[tuple[Path, str]] = []
    for checkpoint in marked:
        damage = _damage(checkpoint, keep_best)
        if damage is None:
            break
        lost.append((checkpoint, damage))
    else:
        if lost:
            raise ValueError(
                f"{folder} has no whole checkpoint: {lost[0][1]}; give the file back, or start "
                "anew with --overwrite"
            )
    for checkpoint, damage in lost:
        report(f"{checkpoint} is left out and deleted: {damage}")
        # The mark first: a kill in between must not leave half of a checkpoint that has one.
        (checkpoint / COMPLETE).unlink()
        shutil.rmtree(checkpoint)


def newest_checkpoint(folder: Path, processes: int) -> Path | None:
    """The newest checkpoint; `settle_checkpoints` was there before.

    Raises:
        ValueError: it was made with another number of processes, whose rows would differ.
    """
    newest = next(iter(_by_age(folder)), None)
    if newest is None:
        return None
    made_with = read_json(newest / COMPLETE)["processes"]
    if made_with != processes:
        raise ValueError(
            f"{newest} was made by {made_with} processes, this run has {processes}: go on with as "
            "many, or start anew with --overwrite"
        )
    return newest


def _by_age(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run, the newest first."""
    numbers = {
        path: int(found[1])
        for path in folder.iterdir()
        if (found := re.fullmatch(CHECKPOINT, path.name)) and path.is_dir()
    }
    yield from sorted(numbers, key=lambda path: numbers[path], reverse=True)


def _damage(checkpoint: Path, keep_best: bool) -> str | None:
    """Which file keeps a run from going on from a checkpoint, and why; None: it is whole.

    With `keep_best` the run needs the best checkpoint so far too.
    """
    changed = _changed(checkpoint)
    if changed is None and keep_best:
        best = read_json(checkpoint / TRAINER_STATE_NAME)["best_global_step"]
        if best is not None:
            changed = _changed(checkpoint_of(checkpoint.parent, best))
    return changed


def _changed(checkpoint: Path) -> str | None:
    mark = checkpoint / COMPLETE
    if not mark.is_file():
        return f"{mark} is missing"
    try:
        known: Any = read_json(mark)
    except ValueError:
        known = None
    if not isinstance(known, dict) or "processes" not in known:
        return f"{mark} is damaged"
    # Earlier versions wrote no digests.
    for name, digest in known.get("files", {}).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if file_digest(path) != digest:
            return f"{path} is damaged"
    return None
