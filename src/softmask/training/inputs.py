"""What a run reads beside its recipe: its base checkpoint, its chats, its text.

Rows derive from (seed, number of the row). On other files a run that goes on would draw other rows,
and nobody would see it: base.json and data.json in its folder hold fingerprints of what it was
begun with.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import read_json
from ..files import expand_home, file_digest, write_atomically
from ..hub.checkpoints import find, fingerprint
from ..hub.export import TOKENIZER_CONFIG, TOKENIZER_FILES
from .config import Recipe, SourceConfig
from .conversation_cache import FORMAT
from .corpus import text_file
from .sources import ResolvedSource, resolve_source

BASE, DATA = "base.json", "data.json"
COMMIT = "commit"  # the one fingerprint of a data set on the Hub

Fingerprints = dict[str, str]  # by name of a file


def pin_inputs(folder: Path, recipe: Recipe) -> None:
    """Writes base.json and data.json, or checks that everything is still as they say.

    Raises:
        ValueError: something has changed since, which it names; or is not to be had.
    """
    if recipe.model.path is not None:
        _pin_base(folder, recipe)
    if recipe.conversations is not None:
        _pin_sources(folder, recipe)
    elif recipe.corpus is not None:
        text = {name: file_digest(text_file(name)) for name in recipe.corpus.text}
        _compare(folder, _known(folder / DATA).get("text", text), text, str)
        _write(folder / DATA, {"text": text})


def pinned(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with the commits that its data sets on the Hub had when the run began."""
    if recipe.conversations is None:
        return recipe
    sources = tuple(_pinned_sources(recipe.conversations.sources, _known(folder / DATA)))
    conversations = dataclasses.replace(recipe.conversations, sources=sources)
    return dataclasses.replace(recipe, conversations=conversations)


def _pin_base(folder: Path, recipe: Recipe) -> None:
    path = recipe.model.path
    model = recipe.model
    found = find(path, revision=model.revision, family=model.family)
    recipe.check_network(found.config.block_size)
    if recipe.adapter is not None and found.adapter is not None:
        raise ValueError(
            f"model.path {path} is an adapter, which another one cannot be trained on: export it "
            "first (`softmask export`), and name the model"
        )
    source = found.folder
    names = [name for name in (TOKENIZER_CONFIG, *TOKENIZER_FILES) if (source / name).is_file()]
    files = {name: file_digest(source / name) for name in names}
    if found.adapter is not None:
        files["adapter"] = fingerprint(found.adapter)
    weights = fingerprint(source)
    known = _known(folder / BASE)
    # An older run of an adapter's model has not kept what the adapter was.
    kept = {name: value for name, value in files.items() if name == "adapter"}
    before = {**kept, **known.get("files", files), "weights": known.get("fingerprint", weights)}
    now = {**files, "weights": weights}
    _compare(folder, before, now, lambda name: f"the base checkpoint {path} ({name})")
    _write(folder / BASE, {"path": path, "fingerprint": weights, "files": files})


def _pin_sources(folder: Path, recipe: Recipe) -> None:
    assert recipe.conversations is not None
    known = _known(folder / DATA)
    if known.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"the run in {folder} began with a version of softmask that makes other rows of the "
            "same chats: go on with that version, or start anew with --overwrite"
        )
    found = [
        resolve_source(source, silent)
        for source in _pinned_sources(recipe.conversations.sources, known)
    ]
    now = [one.identity for one in found]
    for one, before in zip(found, known.get("sources", now), strict=True):
        _compare(folder, before, one.identity, functools.partial(_path_of, one))
    _write(folder / DATA, {"format": FORMAT, "sources": now})


def _pinned_sources(sources: tuple[SourceConfig, ...], known: dict[str, Any]) -> list[SourceConfig]:
    before: list[Fingerprints] = known.get("sources", [{}] * len(sources))
    return [
        # A folder of that name is no data set on the Hub, and has no revisions.
        source
        if COMMIT not in pins or expand_home(source.path).exists()
        else dataclasses.replace(source, revision=pins[COMMIT])
        for source, pins in zip(sources, before, strict=True)
    ]


def _path_of(source: ResolvedSource, name: str) -> str:
    """A source's file by its name among the fingerprints."""
    if name == COMMIT:
        return source.source.path
    split, _, file = name.partition("/")
    there = [path for path in source.files.get(split, []) if path.name == file]
    return str(there[0] if there else Path(source.source.path) / file)


def _compare(
    folder: Path, known: Fingerprints, now: Fingerprints, shown: Callable[[str], str]
) -> None:
    for name in {**known, **now}:
        if known.get(name) != now.get(name):
            raise ValueError(
                f"{shown(name)} is not what it was when the run in {folder} began: give back what "
                "was there, or start anew with --overwrite"
            )


def _known(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: give it back, or start anew with --overwrite")
    return values


def _write(path: Path, values: dict[str, Any]) -> None:
    if not path.is_file():
        write_atomically(path, json.dumps(values, indent=1) + "\n")


def silent(_line: str) -> None:
    """Where nobody is to be told."""
