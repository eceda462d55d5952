"""The files of a run, by name: deleted, or set aside until another run has been built.

All else in the folder is somebody's own. Every step below leaves a folder from which `put_back`
gets the run whole again, whenever the process was killed: only the rename of `forget` is final.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..config import read_json
from .config import RECIPE
from .inputs import BASE, DATA
from .listing import DONE

LOG = "log.jsonl"
# What a run writes before it has a result, and its result, by name.
BEGUN = (
    *(BASE, DATA, LOG, "soft_mask_start.json", "bad_batch.json"),
    *("checkpoint-*", "*.json.partial"),
)
RESULT = (
    *("adapter", "adapter.new", "model", "model.new", "curves.png", "curves.png.partial", DONE),
    "runs/*/events.out.tfevents.*",
)
# Names that files of somebody's may have as well: a run's have one of these keys.
KEYS = {BASE: ("fingerprint",), DATA: ("sources", "text")}
# An earlier run inside the folder of the new one: whole, on its way, and about to be deleted.
ASIDE, MOVING, DELETED = "earlier-run", "earlier-run.partial", "earlier-run.deleted"


def clear(folder: Path, names: tuple[str, ...]) -> None:
    """Deletes what of a run has these names, and its recipe."""
    for path in _of_run(folder, names):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def set_aside(folder: Path) -> None:
    """Moves the run in a folder to where a new one meets nothing of it."""
    _move(folder, folder / MOVING)
    if (folder / MOVING).is_dir():
        (folder / MOVING).replace(folder / ASIDE)


def put_back(folder: Path) -> bool:
    """Gives a folder the run back that was set aside, in place of what the new one has begun.

    Returns:
        Whether there was one.
    """
    if (folder / DELETED).is_dir():
        shutil.rmtree(folder / DELETED)
    if (folder / ASIDE).is_dir():
        clear(folder, BEGUN)
        (folder / ASIDE).replace(folder / MOVING)
    if not (folder / MOVING).is_dir():
        return False
    _move(folder / MOVING, folder)
    shutil.rmtree(folder / MOVING)
    return True


def is_set_aside(folder: Path) -> bool:
    """Whether an earlier run is there that `put_back` would give back."""
    return (folder / ASIDE).is_dir()


def forget(folder: Path) -> None:
    """Deletes the run that was set aside, if there is one."""
    if is_set_aside(folder):
        (folder / ASIDE).replace(folder / DELETED)
        shutil.rmtree(folder / DELETED)


def _of_run(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """What has these names; recipe.json, which says that it is ours, comes last."""
    found = {path for name in (*names, RECIPE) for path in folder.glob(name)}
    own = (p for p in found if p.name not in KEYS or _has_any(p, KEYS[p.name]))
    return sorted(own, key=lambda path: (path.name == RECIPE, path))


def _move(source: Path, target: Path) -> None:
    for path in _of_run(source, BEGUN + RESULT):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def _has_any(path: Path, keys: tuple[str, ...]) -> bool:
    try:
        values = read_json(path)
    except ValueError:
        return False
    return isinstance(values, dict) and any(key in values for key in keys)
