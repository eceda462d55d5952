"""The folder of a run: whose it is, that one process has it, and whether it is finished.

recipe.json         every setting, as it was resolved
base.json           which base checkpoint it was (fine-tuning)
data.json           which chats or which text, by fingerprint
log.jsonl           a line each `log_every` updates and for each evaluation
checkpoint-100/ ... adapter or weights, soft-mask parameters, optimizer, random state
adapter/ or model/  the result: `softmask generate --adapter runs/mix-seed1231/adapter`
curves.png          the log, drawn
done.json           written last
.lock               held while a process trains here
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainerState

from ..config import read_json
from ..files import LOCK, locked, write_atomically
from .config import RECIPE, Recipe
from .listing import DONE


@contextlib.contextmanager
def run_folder(folder: Path, recipe: Recipe, overwrite: bool) -> Iterator[None]:
    """Has the folder for this process alone, and for this recipe, which it writes there.

    Raises:
        ValueError: another process trains there, the folder holds another run, or no run at all.
    """
    if not (folder / LOCK).is_file():
        _refuse_others(folder)
    with locked(folder, "trains"):
        _refuse_others(folder)
        if overwrite:
            _clear(folder)
        wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
        written = folder / RECIPE
        if not written.is_file():
            write_atomically(written, json.dumps(wanted, indent=2) + "\n")
        elif read_json(written) != wanted:
            raise ValueError(
                f"{folder} holds a run of another recipe: name a new folder with --out, or delete "
                "that run with --overwrite"
            )
        yield


def _refuse_others(folder: Path) -> None:
    if (folder / RECIPE).is_file() or not folder.is_dir():
        return
    if any(path.name not in (LOCK, f"{RECIPE}.partial") for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: name another folder with --out")


def _clear(folder: Path) -> None:
    """Empties the folder but for its lock; recipe.json, which says that it is ours, goes last."""
    keep = (LOCK, RECIPE)
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / RECIPE).unlink(missing_ok=True)


def is_finished(folder: Path) -> bool:
    """Whether the run has come to its end, with everything written."""
    return (folder / DONE).is_file()


def write_done(folder: Path, state: TrainerState, result: Path) -> None:
    """Writes done.json, which marks the run as finished."""
    done = {"steps": state.global_step, "result": result.name}
    if state.best_metric is not None:
        done |= {"best_eval_loss": state.best_metric, "best_step": state.best_global_step}
    write_atomically(folder / DONE, json.dumps(done) + "\n")
