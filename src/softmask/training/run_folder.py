"""The folder of a run: whose it is, its newest complete checkpoint, and whether it is finished.

recipe.json         every setting, as it was resolved
base.json           which base checkpoint it was (fine-tuning)
log.jsonl           a line each `log_every` updates and for each evaluation
checkpoint-100/ ... adapter or weights, soft-mask parameters, optimizer, random state
adapter/ or model/  the result: `softmask generate --adapter runs/mix-seed1231/adapter`
curves.png          the log, drawn
done.json           written last
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from transformers import TrainerState

from ..config import read_json
from ..hub.checkpoints import find, fingerprint
from .config import Recipe

# Written last into a checkpoint: one without it is incomplete.
COMPLETE = "complete.json"


def prepare_folder(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Writes recipe.json and base.json, or checks that the folder holds the same run.

    Raises:
        ValueError: the folder holds another run, or its base checkpoint has changed.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    written = folder / "recipe.json"
    if overwrite and written.is_file():
        shutil.rmtree(folder)
    if not written.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run: name another folder with --out")
    if written.is_file() and read_json(written) != wanted:
        raise ValueError(
            f"{folder} holds a run of another recipe: name a new folder with --out, or delete "
            "that run with --overwrite"
        )
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base.json"
    if recipe.model.path is not None:
        source = find(recipe.model.path, revision=recipe.model.revision).folder
        now = {"path": recipe.model.path, "fingerprint": fingerprint(source)}
        if base.is_file() and read_json(base) != now:
            raise ValueError(
                f"{folder} was trained on another base: the files of {recipe.model.path} have "
                "changed since; give the old ones back, or start anew with --overwrite"
            )
        base.write_text(json.dumps(now) + "\n")
    written.write_text(json.dumps(wanted, indent=2) + "\n")


def newest_checkpoint(folder: Path, processes: int) -> Path | None:
    """The newest complete checkpoint; incomplete ones, left by a kill, are deleted.

    Raises:
        ValueError: it was made with another number of processes, whose rows would differ.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    if not complete:
        return None
    newest = max(complete, key=lambda path: int(path.name.rpartition("-")[2]))
    made_with = read_json(newest / COMPLETE)["processes"]
    if made_with != processes:
        raise ValueError(
            f"{newest} was made by {made_with} processes, this run has {processes}: go on with as "
            "many, or start anew with --overwrite"
        )
    return newest


def write_done(folder: Path, state: TrainerState, result: Path) -> None:
    """Writes done.json, which marks the run as finished."""
    done = {"steps": state.global_step, "result": result.name}
    if state.best_metric is not None:
        done |= {"best_eval_loss": state.best_metric, "best_step": state.best_global_step}
    (folder / "done.json").write_text(json.dumps(done) + "\n")
