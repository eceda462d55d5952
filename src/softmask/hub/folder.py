"""What a folder of a model or of an adapter holds, read without torch: settings, heads of weights.

`checkpoints` checks more of it before it is loaded; `local` lists folders by what is here alone.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config import read_json, shown
from ..files import LOCK

CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What an adapter changes of its base's network beside the weights.
NETWORK_FILE = "network_config.json"
WEIGHT_INDEX = "model.safetensors.index.json"
# In the folder of a run: checkpoints, by update; one without that file is incomplete.
CHECKPOINT, COMPLETE = r"checkpoint-(\d+)", "complete.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # ./name is a folder
# What a checkpoint consists of; original PyTorch files and remote code stay where they are.
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "*.jinja", "LICENSE*"]
# The Hub's patterns cross folders, where others' checkpoints lie.
NOT_HUB_FILES = ["*/*.json", "*/*.safetensors"]


def is_on_hub(name: str) -> bool:
    """Whether a name means a repository on the Hub, by its form, and nothing here is called so."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def is_adapter(folder: Path) -> bool:
    """Whether it holds an adapter, and no model beside it."""
    return (folder / ADAPTER_FILE).is_file() and not (folder / CONFIG_FILE).is_file()


def kept_update(folder: Path) -> int:
    """The update that a run goes on from; 0 where there is no whole checkpoint yet."""
    marks = folder.glob(f"checkpoint-*/{COMPLETE}")
    found = (re.fullmatch(CHECKPOINT, mark.parent.name) for mark in marks)
    return max((int(match[1]) for match in found if match), default=0)


def refuse_unfinished(path: Path) -> None:
    """Raises ValueError for the result of a run that has none yet, and names what it has."""
    run = path.parent
    if path.exists() or not (run / LOCK).is_file():
        return
    at = kept_update(run)
    newest = f"give {run / f'checkpoint-{at}'}, its newest checkpoint, or see" if at else "see"
    raise ValueError(
        f"there is no {path}: the run in {run} is not finished; {newest} by "
        f"`{shlex.join(['softmask', 'models', str(run)])}` how it goes on"
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in one of a folder's JSON files.

    Raises:
        ValueError: there is no such file, or it holds no mapping.
    """
    if not path.is_file():
        adapters = [place.parent for place in sorted(path.parent.glob(f"*/{ADAPTER_FILE}"))]
        if adapters:
            names = ", ".join(str(folder) for folder in adapters)
            raise ValueError(f"{path.parent} has no {path.name}, but adapters: give one of {names}")
        what = "an adapter" if path.name == ADAPTER_FILE else "a whole checkpoint"
        raise ValueError(f"{path.parent} has no {path.name}: give a folder with {what}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (no mapping): copy it again")
    return values


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The folder's weight files: every one that the index names is there and whole.

    Raises:
        ValueError: there are no weights, or a file is missing or damaged.
    """
    index, single = folder / WEIGHT_INDEX, folder / "model.safetensors"
    if index.is_file() and single.is_file():
        raise ValueError(
            f"{folder} has {single.name} and {index.name}: remove that which is not of this model"
        )
    if index.is_file():
        placed = _read_index(index)
    elif single.is_file():
        placed = {single.name: tensor_names(single)}
    else:
        placed = {}
    if not placed:
        raise ValueError(f"{folder} has no weights: add model.safetensors or its shards")
    for file, names in placed.items():
        if not (folder / file).is_file():
            raise ValueError(f"{folder} lacks the weight file {file}: copy it again")
        if names != tensor_names(folder / file):
            raise ValueError(f"{index} is not the index of {file}: copy both again")
    return tuple(folder / file for file in sorted(placed))


def _read_index(path: Path) -> dict[str, set[str]]:
    """The weight files that an index names, each with the tensors that it is said to hold."""
    values = read_mapping(path)
    mapping = values.get("weight_map")
    if not isinstance(mapping, dict) or not isinstance(values.get("metadata"), dict):
        raise ValueError(f"{path} is damaged (no weight_map, or no metadata): copy it again")
    placed: dict[str, set[str]] = {}
    for name, file in mapping.items():
        # A path could lead to any file of this machine.
        plain = isinstance(file, str) and Path(file).name == file
        if not plain or not file.endswith(".safetensors"):
            raise ValueError(f"{path} names the weight file {shown(file)}: it must lie beside it")
        placed.setdefault(file, set()).add(name)
    return placed


def tensor_names(path: Path) -> set[str]:
    """The names in a safetensors file.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    try:
        # Names alone are asked for, which need no torch.
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except SafetensorError as error:
        what = shown(str(error))
        raise ValueError(f"{path} is truncated or damaged ({what}): copy it again") from error


def adapter_tensor_names(folder: Path) -> set[str]:
    """The names of an adapter's tensors.

    Raises:
        ValueError: the folder holds no adapter, or a damaged one.
    """
    read_mapping(folder / ADAPTER_FILE)
    weights, pickled = folder / ADAPTER_WEIGHTS, folder / "adapter_model.bin"
    if weights.is_file():
        return tensor_names(weights)
    if pickled.is_file():
        raise ValueError(
            f"{folder} has its weights in {pickled.name} alone, which may run code when it is "
            'read: if you trust it, convert it there by `python -c "import torch, '
            "safetensors.torch as s; s.save_file(torch.load('adapter_model.bin', "
            "weights_only=True), 'adapter_model.safetensors')\"`"
        )
    raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: copy the adapter again")


def base_of(adapter: Path) -> tuple[str | None, str | None]:
    """The base model that an adapter names, and its revision on the Hub.

    Raises:
        ValueError: the folder holds no adapter, or one that names something else.
    """
    values = read_mapping(adapter / ADAPTER_FILE)
    name, revision = values.get("base_model_name_or_path"), values.get("revision")
    for key, value in (("base_model_name_or_path", name), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{adapter / ADAPTER_FILE}: {key} must be a name, not {value!r}")
    return name or None, (revision or None) if name and not Path(name).is_dir() else None
