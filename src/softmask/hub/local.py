"""Models and adapters that are on this machine, by what their folders hold, without torch."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir

from ..config import BUNDLED, SOFT_MASK_FILE
from ..families import gguf as facts
from ..families.registry import named, recognise
from .folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    HUB_ID,
    adapter_tensor_names,
    base_of,
    is_adapter,
    read_mapping,
    weight_files,
)
from .gguf_file import family_of_gguf, gguf_path, read_head
from .weight_sizes import weight_sizes

STORED = "quantization_config"  # in a config.json: the files are in 4 bits
NOT_WHOLE = "{} is not whole in the Hub's cache: fetch it again"


@dataclass(frozen=True)
class Entry:
    """Something that is on this machine, and what is typed to use it."""

    kind: str  # model, adapter or run
    name: str  # as it is given to --model; of a run its folder
    what: str  # in words
    bytes: int
    folder: str
    use: str  # the command; empty: there is none
    problem: str | None = None  # a sentence on why it cannot be used
    loaded: dict[str, int] | None = None  # bytes in memory by dtype or bits; of a whole model


def bundled() -> Iterator[Entry]:
    """The bundled model, where this package brings it."""
    folder = Path(str(resources.files("softmask"))) / BUNDLED
    entry = look_at(folder, BUNDLED)
    if entry is not None:
        yield entry


def cached() -> Iterator[Entry]:
    """What the Hub's cache has, those that are not whole too; models of other families are not."""
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    if not cache.is_dir():
        return
    scanned = {repo.repo_path: repo for repo in scan_cache_dir(cache).repos}
    for place in sorted(cache.resolve().glob("models--*")):
        name = place.name.removeprefix("models--").replace("--", "/")
        pull = f"softmask pull {name}"
        if place not in scanned:
            # The scan leaves out what an interrupted download or a lost blob has damaged.
            found = [look_at(folder, name, mend=pull) for folder in place.glob("snapshots/*")]
            entry = next((entry for entry in found if entry is not None), None)
            if entry is not None or not any(place.glob(f"snapshots/*/{CONFIG_FILE}")):
                what = "a download" if entry is None else entry.what
                kind = "model" if entry is None else entry.kind
                yield Entry(
                    kind, name, what, size_of(place), str(place), pull, NOT_WHOLE.format(name)
                )
            continue
        for revision in sorted(scanned[place].revisions, key=lambda found: found.commit_hash):
            ref = "main" if "main" in revision.refs else min(revision.refs, default=None)
            ref = ref or revision.commit_hash
            options = "" if ref == "main" else f" --revision {ref}"
            entry = look_at(revision.snapshot_path, name, options, mend=pull + options)
            if entry is not None:
                yield entry


def look_at(
    folder: Path, name: str, options: str = "", mend: str = "", family: str | None = None
) -> Entry | None:
    """The model or adapter in a folder, or in a GGUF file; None: neither, or of another family.

    Args:
        name: as it is given to --model.
        options: that are given beside it, with a space in front.
        mend: the command that makes it whole where it is not.
        family: what a user says that the model is.
    """
    if gguf_path(folder) is not None:
        return _look_at_gguf(folder, name, family)
    if not any((folder / file).is_file() for file in (CONFIG_FILE, ADAPTER_FILE)):
        return None
    adapter, problem = is_adapter(folder), None
    kind = what = "adapter" if adapter else "model"
    loaded, chats = None, False
    try:
        if adapter:
            chats = _chats(folder)
            base, _ = base_of(folder)
            what = f"adapter of {base or 'a base that it does not name'}"
            adapter_tensor_names(folder)
            if base is not None and not may_be_found(base):
                problem = f"{name}: its base {base} is not here: give another as --model"
        else:
            values = read_mapping(folder / CONFIG_FILE)
            found = named(name, family) or recognise(values)
            if found is None:
                return None
            what = f"{found.title} model"
            weights = weight_files(folder)
            tied, stored = (values.get(key) for key in ("tie_word_embeddings", STORED))
            loaded = weight_sizes(weights, tied=bool(tied), in_4_bits=stored is not None).ways()
            chats = _chats(folder)
            what += " for chat" if chats else ""
        soft = folder / SOFT_MASK_FILE
        if soft.is_file() and read_mapping(soft).get("transparency_alg") not in (None, "none"):
            what += ", soft-masked"
    except ValueError as error:
        if not adapter and what == "model" and not any(folder.glob("*.safetensors")):
            return None  # another program's config.json
        problem = NOT_WHOLE.format(name) if mend else str(error)
    command = "chat" if chats else "generate"
    # --model takes an adapter too, with the revision that is meant.
    use = f"softmask {command} --model {shlex.quote(name)}{options}"
    return Entry(
        kind,
        name + options,
        what,
        size_of(folder),
        str(folder),
        mend if problem is not None else use,
        problem,
        loaded,
    )


def _look_at_gguf(path: Path, name: str, family: str | None) -> Entry | None:
    what, problem, chats = "GGUF model", None, False
    try:
        head = read_head(path)
        if head.values.get(facts.ARCHITECTURE) not in facts.ARCHITECTURES:
            return None
        found = family_of_gguf(head, named(name, family))
        if found is None:  # an ordinary one, for all that the file says
            return None
        chats = facts.TEMPLATE in head.values
        what = f"{found.title} model in GGUF" + (" for chat" if chats else "")
        soft = head.own(facts.OWN_CONFIG).get("transparency_config") is not None
        what += ", soft-masked" if soft else ""
    except ValueError as error:
        problem = str(error)
    use = f"softmask {'chat' if chats else 'generate'} --model {shlex.quote(name)}"
    size = path.stat().st_size
    return Entry("model", name, what, size, str(path), "" if problem else use, problem)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, those that links lead to included."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # A run deletes old checkpoints while we look, and a link may lead to nothing.
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def may_be_found(base: str) -> bool:
    """Whether a base that an adapter names is here, or may be on the Hub."""
    is_here = Path(base).is_dir() or gguf_path(base) is not None
    return base == BUNDLED or is_here or HUB_ID.fullmatch(base) is not None


def _chats(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    in_settings = settings.is_file() and read_mapping(settings).get("chat_template") is not None
    return in_settings or (folder / "chat_template.jinja").is_file()
