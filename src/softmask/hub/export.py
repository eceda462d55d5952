"""export(): a checkpoint, with its adapter merged in, becomes a folder that needs no softmask.

The folder holds weights, tokenizer, soft-mask parameters and this package's own modelling,
soft-mask and generation code as remote code, so that
`AutoModel.from_pretrained(FOLDER, trust_remote_code=True)` works with torch and transformers
alone, from the folder and from the Hub. Or it is in the original layout, for the code and the
tools of the model's family.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..config import (
    SAMPLING_FILE,
    SOFT_MASK_FILE,
    SOFT_MASK_MODES,
    require_choice,
    soft_mask_to_published,
)
from ..families.dream import DREAM
from ..families.links import links_of, their_shapes
from ..families.registry import FAMILY_KEY, by_name, is_own_layout
from ..files import expand_home, locked, sync_tree
from ..models import DreamModel
from ..models.checkpoint import Source, first_not_finite
from ..models.experts import in_full_precision
from .checkpoints import check_link, find, shapes_of, stored_dtypes, tokenizer_folder
from .config_file import CONFIG_KEYS
from .cut_weights import Made, Part, as_it_is, ours_of_theirs, reading, theirs_of_ours
from .folder import CONFIG_FILE, WEIGHT_INDEX, read_mapping, tensor_names
from .four_bits import is_stored_in_4_bits
from .load import choose_dtype, load
from .model_card import WRITTEN_BY, base_model, model_card
from .original_layout import code_files, original_config, with_code
from .remote_code import is_own_code, remote_code
from .tokenizer_files import TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_KEYS

# The names of files and weights: this package's, with its code, or those of the model's family.
LAYOUTS = ("softmask", "original")
AUTO_MAP = {
    "AutoConfig": "configuration_dream.DreamConfig",
    "AutoModel": "modeling_dream.DreamModel",
}
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER_FILES = (
    TOKENIZER,
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    TEMPLATE,
)
AS_THEY_ARE = ("generation_config.json", SAMPLING_FILE, "LICENSE", "LICENSE.txt")


def export(
    target: str | Path,
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    revision: str | None = None,
    family: str | None = None,
    layout: str = "softmask",
    dtype: str | torch.dtype | None = None,
    overwrite: bool = False,
    title: str | None = None,
    link: bool = False,
    local_only: bool = False,
) -> Path:
    """Writes a self-contained folder; it is there whole or not at all.

    Without an adapter the weight files are copied byte by byte, where their names are ours. An
    adapter is merged in float32, and each tensor goes back to the dtype the base has it in.

    Args:
        name: as for `hub.load`.
        adapter: as for `hub.load`.
        revision: as for `hub.load`.
        family: as for `hub.load`.
        layout: "softmask", with this package's code; or "original": the names, config.json and
            code of the model's family. What soft-masking is set to lies beside it in a file of
            its own, which softmask reads and the family's own code does not.
        dtype: convert the weights to "float32", "bfloat16" or "float16"; None or "auto": keep.
        overwrite: replace an existing checkpoint folder.
        title: what the model card calls it; default: the folder's name.
        link: link to weight files instead of copying them, for a folder that is soon deleted.
        local_only: take Hub repositories from this machine's cache, without a request.

    Returns:
        The folder.

    Raises:
        ValueError: something is wrong with the checkpoint, the adapter, an argument or the
            place to write to.
    """
    require_choice("layout", layout, LAYOUTS)
    target = expand_home(target).resolve()
    _check_target(target, overwrite)
    chosen = None if dtype in (None, "auto") else choose_dtype(dtype, torch.device("cpu"))
    assert not isinstance(chosen, str)  # which "auto" alone would be
    source = find(name, adapter, revision=revision, family=family, local_only=local_only)
    for folder in (source.folder, source.adapter):
        if folder is not None and folder.resolve().is_relative_to(target):
            raise ValueError(f"{target} holds what is to be exported: export to another folder")
    if source.is_gguf:
        raise ValueError(
            f"{source.folder} is a GGUF file, which is exported as such alone: give --gguf, or the "
            "model's folder"
        )
    check_exportable(source)
    with _replacing(target) as folder:
        merged = merge(source)
        original = layout == "original"
        _write_weights(source, original, merged, folder, chosen, link)
        _write_settings(source, merged, folder, chosen, original)
        if original:
            for path in code_files(source.folder):
                shutil.copyfile(path, folder / path.name)
        else:
            for file, text in remote_code().items():
                (folder / file).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(
            model_card(source, title or target.name, original), encoding="utf-8"
        )
    return target


def check_exportable(source: Source) -> None:
    """Raises ValueError for what no export holds: others' rules, and weights in 4 bits."""
    soft_mask = source.soft_mask
    if soft_mask is not None and soft_mask.mode not in SOFT_MASK_MODES:
        raise ValueError(
            f"{source.name} feeds back by the rule {soft_mask.mode}, which is not of this package: "
            "an export would not have it"
        )
    if is_stored_in_4_bits(source.config):
        raise ValueError(f"{source.name} is in 4 bits, which are not exported: give its whole base")


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file: give the folder to write")
    # Another folder takes its place in the end.
    is_held = Path.cwd().resolve().is_relative_to(target.resolve())
    if is_held or os.path.ismount(target):
        what = "the folder that you are in, or above it" if is_held else "a mounted volume"
        raise ValueError(f"{target} is {what}: name a new folder in it, which is made")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"{target} is not empty: give another folder, or --overwrite")
    # A model that was trained or downloaded has files of the same names, but not our card.
    card = target / "README.md"
    is_export = card.is_file() and WRITTEN_BY in card.read_text(encoding="utf-8", errors="replace")
    code = code_files(target) if is_export and (target / CONFIG_FILE).is_file() else []
    others = sorted(p.name for p in target.iterdir() if not _is_ours(p) and p not in code)
    if others or not is_export:
        what = f"{others[0]}, which no export wrote" if others else "no export"
        raise ValueError(f"{target} holds {what}, so it is not replaced: give another folder")


def _is_ours(path: Path) -> bool:
    """Whether an export writes such a file: all code with its first line, and a model's files."""
    if path.suffix == ".py":
        return is_own_code(path)
    known = {CONFIG_FILE, "README.md", WEIGHT_INDEX, SOFT_MASK_FILE, TOKENIZER_CONFIG}
    return path.suffix == ".safetensors" or path.name in known | {*AS_THEY_ARE, *TOKENIZER_FILES}


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside the target that takes its place in the end, or leaves no trace.

    What a kill left of an earlier one is cleared away, or put back where it was.
    """
    states = ("new", "old", "lock")
    fresh, old, lock = (target.with_name(f".{target.name}.{state}") for state in states)
    try:
        # Not in the folder itself: Windows renames none in which a file is open.
        with locked(lock, "exports"):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            if old.exists() and not target.exists():  # killed between the two renames
                old.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            try:
                yield fresh
                sync_tree(fresh)
                if target.exists():
                    target.rename(old)
                fresh.rename(target)
            finally:
                if old.exists() and not target.exists():
                    old.rename(target)
                # The lock while it is held, or another process could have it in between.
                for left in (fresh, old, lock):
                    shutil.rmtree(left, ignore_errors=True)
        if os.name == "nt":  # where an open file cannot be deleted
            shutil.rmtree(lock, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{target} cannot be written: {why}") from error


def _write_weights(
    source: Source,
    original: bool,
    merged: DreamModel | None,
    folder: Path,
    dtype: torch.dtype | None,
    link: bool,
) -> None:
    """The weights under our names and cut as here, or as in the family's own files."""
    by_files, by_ours = _made_of(source, original)
    as_they_are = all(made.parts == [Part(name)] for name, made in by_files.items())
    if merged is None and dtype is None and as_they_are:
        _copy_weights(source, folder, link)
        return
    tied = source.config.tie_word_embeddings
    if merged is not None and merged.config.tie_word_embeddings != tied:
        rename = by_name(source.config.family).original_name if original else str
        table, head = rename(TABLE), rename(HEAD)
        # The head's file and dtype are the table's.
        by_files[head] = by_files[table]
        by_ours[head] = Made(by_ours[table].shape, [Part(HEAD)])
    homes = {name: path for path in source.weights for name in tensor_names(path)}
    # A weight goes to the file that the first of its parts is in.
    placed = {name: homes[made.parts[0].name] for name, made in by_files.items()}
    state = {} if merged is None else merged.state_dict()
    stored = stored_dtypes(source.weights)
    size = 0
    with reading(source.weights) as read:
        for path in source.weights:
            if merged is None:  # else `load` has looked at every weight
                _check_finite(path)
            tensors = {}
            for name in sorted(name for name, home in placed.items() if home == path):
                made = by_files[name]
                ours, kept = by_ours[name].parts[0].name, stored[made.parts[0].name]
                if dtype is not None and not in_full_precision(ours):
                    kept = dtype
                value = made.of(read) if merged is None else by_ours[name].of(state.__getitem__)
                tensors[name] = value.detach().to(kept).contiguous()
            bad = first_not_finite(tensors.items())
            if bad is not None:
                kept = tensors[bad].dtype
                raise ValueError(f"{bad} does not fit {kept}: choose float32 or bfloat16")
            if tensors:  # all may be parts of others
                save_file(tensors, folder / path.name, metadata=_metadata(path))
            size += sum(tensor.nbytes for tensor in tensors.values())
    _write_index(source, folder, placed, size)


def _made_of(source: Source, original: bool) -> tuple[dict[str, Made], dict[str, Made]]:
    """What each weight to be written is made of: of those in the files, and of those here."""
    config, shapes = source.config, shapes_of(source.config)
    is_own = is_own_layout(read_mapping(source.folder / CONFIG_FILE))
    here = {link.ours: shapes[link.ours] for link in source.links}
    if not original:
        return ours_of_theirs(source.links, shapes), as_it_is(here)
    links = source.links if not is_own else links_of(by_name(config.family), here)
    by_ours = theirs_of_ours(links, shapes)
    by_files = dict(by_ours) if is_own else as_it_is(their_shapes(links, shapes))
    return by_files, by_ours


def _write_index(source: Source, folder: Path, placed: Mapping[str, Path], size: int) -> None:
    """What says which weight lies in which file, where the source has such an index."""
    index = source.folder / WEIGHT_INDEX
    if index.is_file():
        values = read_mapping(index)
        own = values.get("metadata")
        values["metadata"] = (own if isinstance(own, dict) else {}) | {"total_size": size}
        values["weight_map"] = {name: path.name for name, path in placed.items()}
        _write_json(folder / index.name, values)


def _copy_weights(source: Source, folder: Path, link: bool) -> None:
    """The weight files byte by byte, or links to them."""
    for path in source.weights:
        _check_finite(path)
        if link:
            (folder / path.name).symlink_to(path.resolve())
        else:
            shutil.copyfile(path, folder / path.name)
    index = source.folder / WEIGHT_INDEX
    if index.is_file():
        shutil.copyfile(index, folder / index.name)


def merge(source: Source) -> DreamModel | None:
    """The base with the adapter merged in, in float32; None: there is no adapter."""
    if source.adapter is None:
        return None
    # bfloat16 would round the merged sum (3e-3 against 2e-7 in the logits of a toy), and a GPU
    # that holds a 7B model in bfloat16 need not hold it in float32.
    family = source.config.family
    return load(
        source.folder, source.adapter, device="cpu", dtype=torch.float32, family=family
    ).model


def _check_finite(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        bad = first_not_finite((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    if bad is not None:
        raise ValueError(f"{path}: {bad} holds NaN or infinity: the weights are damaged")


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def _write_settings(
    source: Source,
    merged: DreamModel | None,
    folder: Path,
    dtype: torch.dtype | None,
    original: bool,
) -> None:
    """The JSON files and the tokenizer's, with what points at code that is not there removed."""
    tokenizer = tokenizer_folder(source.folder, source.adapter)
    for place, files in ((source.folder, AS_THEY_ARE), (tokenizer, TOKENIZER_FILES)):
        for file in files:
            if (place / file).is_file():
                check_link(place / file)
                if file.endswith(".json"):
                    read_mapping(place / file)
                shutil.copyfile(place / file, folder / file)
    hub_id = base_model(source)
    if original:
        # An adapter on one of them unties table and head.
        tied = (source if merged is None else merged).config.tie_word_embeddings
        config = original_config(source, hub_id, tied=bool(tied))
    else:
        config = _config(source, merged)
    _write_json(folder / CONFIG_FILE, _with_dtype(config, dtype, original))
    settings = tokenizer / TOKENIZER_CONFIG
    given = read_mapping(settings) if settings.is_file() else {}
    values = {key: value for key, value in given.items() if key in TOKENIZER_KEYS}
    # Qwen2Tokenizer reads the vocabulary in tokenizer.json, and not how that file cuts a text.
    kind = "PreTrainedTokenizerFast" if (tokenizer / TOKENIZER).is_file() else "Qwen2Tokenizer"
    values["tokenizer_class"] = kind
    if original:
        own = with_code(given, tokenizer, hub_id)
        # A class whose code is nowhere is replaced as in our own layout.
        known = "tokenizer_class" in own and ("auto_map" in own or "auto_map" not in given)
        values = own if known else own | {"tokenizer_class": kind}
    _write_json(folder / TOKENIZER_CONFIG, values)
    if source.soft_mask is not None:
        _write_json(folder / SOFT_MASK_FILE, soft_mask_to_published(source.soft_mask))


def _config(source: Source, merged: DreamModel | None) -> dict[str, Any]:
    """The source's own config.json, every key that counts, with what the remote code needs."""
    path = source.folder / CONFIG_FILE
    values, family = read_mapping(path), by_name(source.config.family)
    if family is not DREAM:
        values = values if is_own_layout(values) else family.settings(values, str(path))
        values |= {FAMILY_KEY: family.name, "model_type": source.config.model_type}
        for key in ("mask_token_id", "pad_token_id"):  # where none is said, Dream's would be taken
            values[key] = getattr(source.config, key)
    # Others may steer transformers: `attn_implementation` fetches code, `return_dict` breaks ours.
    values = {key: value for key, value in values.items() if key in CONFIG_KEYS}
    values |= {"architectures": ["DreamModel"], "auto_map": AUTO_MAP}
    # Also flat: transformers 4 reads nothing else, and would take 10000 without a word.
    assert source.config.rope_parameters is not None  # Qwen2's configuration makes them
    values["rope_theta"] = source.config.rope_parameters["rope_theta"]
    if merged is not None and source.config.tie_word_embeddings:
        # An adapter on one of them unties table and head.
        values["tie_word_embeddings"] = bool(merged.config.tie_word_embeddings)
    if source.config.block_size is not None:  # an adapter may have made it block-causal
        values |= {FAMILY_KEY: family.name, "block_size": source.config.block_size}
    values.pop("transparency_config", None)
    if source.soft_mask is not None:
        values["transparency_config"] = soft_mask_to_published(source.soft_mask)
    return values


def _with_dtype(
    values: dict[str, Any], dtype: torch.dtype | None, original: bool
) -> dict[str, Any]:
    """A config.json that says what its weights are in."""
    if dtype is not None:
        # Older transformers, which the family's own code may want, know the second name alone.
        key = "torch_dtype" if original and "dtype" not in values else "dtype"
        values = {k: v for k, v in values.items() if k != "torch_dtype"} | {key: dtype}
    for key in ("dtype", "torch_dtype"):
        if values.get(key) is not None:
            values[key] = str(values[key]).removeprefix("torch.")
    return values


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
