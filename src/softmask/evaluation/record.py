"""The folder of an evaluation: run.json with settings and origin, results.json with the scores.

results.json is written last, atomically, and marks the run as finished.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..config import read_json, soft_mask_to_published
from ..files import write_atomically
from ..hub.checkpoints import fingerprint
from ..models.checkpoint import Checkpoint, Source
from ..reporting.result_folder import provenance
from .config import RESULTS, RUN, ModelArgs

PACKAGES = (
    *("softmask", "torch", "transformers", "peft", "accelerate", "lm_eval", "datasets"),
    *("tokenizers", "safetensors", "numpy", "math-verify", "sympy", "mauve-text"),
)
# Settings that do not change the scores.
NOT_OF_SCORES = ("device", "device_map", "mc_batch_size")


def settings_of(checkpoint: Checkpoint, args: ModelArgs, **what: Any) -> dict[str, Any]:
    """What decides the scores, in JSON types: model, adapter, soft mask, settings, and `what`."""
    source, soft = checkpoint.source, args.soft_mask(checkpoint.soft_mask, checkpoint.name)
    assert source is not None, "a record is of a checkpoint that was loaded from files"
    values = {name: v for name, v in dataclasses.asdict(args).items() if name not in NOT_OF_SCORES}
    settings = {
        "model": {"name": checkpoint.name, "fingerprint": fingerprint(source.folder)},
        "adapter": _adapter(source, args),
        "soft_mask": soft_mask_to_published(soft) if soft else None,
        "dtype": str(checkpoint.model.dtype),
        "model_args": values,
        **what,
    }
    return json.loads(json.dumps(settings))


def _adapter(source: Source, args: ModelArgs) -> dict[str, str] | None:
    if source.adapter is None:
        return None
    name = args.adapter or args.pretrained or source.name
    return {"name": name, "fingerprint": fingerprint(source.adapter)}


def problem(folder: Path, settings: dict[str, Any], overwrite: bool) -> str | None:
    """Why this run cannot be written there, in a sentence; None: it can, and the folder is made.

    `overwrite` deletes an earlier run, and nothing else.
    """
    if overwrite and (folder / RUN).is_file():
        shutil.rmtree(folder)
    if (folder / RUN).is_file():
        held = read_json(folder / RUN)
        other = [name for name, value in settings.items() if held.get(name) != value]
        if other:
            return (
                f"{folder} holds an evaluation with another {other[0]}: name a new folder with "
                "--out, or delete that one with --overwrite"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        return f"{folder} is not empty and holds no evaluation: name another folder with --out"
    folder.mkdir(parents=True, exist_ok=True)
    return None


def claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Makes the folder of a run; returns the results of a run that is finished already.

    Raises:
        ValueError: the folder holds something else.
    """
    sentence = problem(folder, settings, overwrite)
    if sentence is not None:
        raise ValueError(sentence)
    return results(folder)


def results(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None: it is not finished."""
    path = folder / RESULTS
    return read_json(path) if path.is_file() else None


def origin(command: Sequence[str]) -> dict[str, Any]:
    """Command, packages, commit, machine and time of a run."""
    installed = {d.metadata["Name"].replace("_", "-").lower() for d in metadata.distributions()}
    present = [name for name in PACKAGES if name.replace("_", "-") in installed]
    return {
        "command": list(command),
        "packages": {name: metadata.version(name) for name in present},
        **provenance(),
        "started": now(),
    }


def starts_before(folder: Path) -> list[dict[str, Any]]:
    """The time and commit of each earlier start of a run that was stopped."""
    if not (folder / RUN).is_file():
        return []
    held = read_json(folder / RUN)
    start = {name: held.get(name) for name in ("started", "commit", "changed_since")}
    return [*held.get("starts_before", []), start]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write(path: Path, values: Any, default: Any = None) -> None:
    """Writes JSON atomically."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=default)
    write_atomically(path, text + "\n")
