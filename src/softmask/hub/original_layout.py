"""A checkpoint under its family's own names, as the family's own code and tools read it.

What is written is the source's own config.json where it has one, else what softmask wrote for it,
translated back. Code is the family's: what `auto_map` names is copied from the source's folder,
or named by the Hub repository that it lies in, or else no longer named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_imports

from ..families.family import Family
from ..families.registry import FAMILY_KEY, by_name, is_own_layout
from ..models.checkpoint import Source
from .checkpoints import check_link
from .folder import CONFIG_FILE, read_mapping
from .remote_code import is_own_code
from .tokenizer_files import TOKENIZER_CONFIG

# What transformers writes of experts also for a model that has none.
OF_EXPERTS = (
    *("num_experts", "score_function", "num_experts_per_tok", "moe_intermediate_size"),
    *("first_k_dense_replace", "n_shared_experts", "n_group", "topk_group"),
    "routed_scaling_factor",
)


def original_config(source: Source, hub_id: str | None, *, tied: bool) -> dict[str, Any]:
    """The config.json that the family's own code reads.

    Args:
        hub_id: of the repository that the source comes from, where it is on the Hub.
        tied: whether table and head are one, which an adapter may have ended.

    Raises:
        ValueError: the model was made block-causal, and the family's own code is not, or its blocks
            are of another size than that code's.
    """
    values, family = read_mapping(source.folder / CONFIG_FILE), by_name(source.config.family)
    if source.config.block_size is not None and not family.is_block_causal:
        raise ValueError(
            f"{source.name} was made block-causal, and {family.title}'s own code would show it "
            "whole texts: export it without --layout original"
        )
    if is_own_layout(values):
        values = _translated(values, source, family)
    size = source.config.block_size
    if size is not None and size != family.fixed.get("block_size", size):
        raise ValueError(
            f"{source.name} writes blocks of {size} tokens, and {family.title}'s own code knows "
            f"{family.fixed['block_size']} alone: export it without --layout original"
        )
    if size is not None and "block_size" not in family.fixed:
        values[family.original_key("block_size")] = size
    if tied != source.config.tie_word_embeddings:
        values[family.original_key("tie_word_embeddings")] = tied
    # transparency_config.json lies beside it, and that of an adapter would contradict this.
    values.pop("transparency_config", None)
    return with_code(values, source.folder, hub_id)


def _translated(values: Mapping[str, Any], source: Source, family: Family) -> dict[str, Any]:
    """A config.json in our names, under those of the family."""
    values = {key: value for key, value in values.items() if value is not None}
    rope = source.config.rope_parameters
    assert rope is not None  # Qwen2's configuration makes them
    none = () if source.config.num_experts else OF_EXPERTS
    for key in ("rope_parameters", FAMILY_KEY, "auto_map", *none):  # the code it names is ours
        values.pop(key, None)
    if source.config.rotates_in_part or "partial_rotary_factor" in family.usual:
        rope = dict(rope)
        values["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    values["rope_theta"] = rope["rope_theta"]  # the form of transformers 4, which 5 reads too
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return family.original_settings(values)


def with_code(values: Mapping[str, Any], folder: Path, hub_id: str | None) -> dict[str, Any]:
    """A JSON file whose `auto_map` names code that is there: beside it, or on the Hub."""
    values = dict(values)
    mapped = values.get("auto_map")
    if not isinstance(mapped, dict):
        return values
    found = {}
    for kind, names in mapped.items():  # a tokenizer's is a list: a slow class and a fast one
        several = names if isinstance(names, list) else [names]
        placed = [_placed(name, folder, hub_id) for name in several]
        if any(placed):
            found[kind] = placed if isinstance(names, list) else placed[0]
    values["auto_map"] = found
    if not found:
        del values["auto_map"]
    return values


def _placed(reference: object, folder: Path, hub_id: str | None) -> str | None:
    """Where the code of one entry of `auto_map` is found; None: nowhere."""
    if not isinstance(reference, str) or "--" in reference:
        return reference if isinstance(reference, str) else None
    path = folder / f"{reference.split('.')[0]}.py"
    if is_own_code(path):
        return None
    if path.is_file():
        return reference
    return None if hub_id is None else f"{hub_id}--{reference}"


def named_code(values: Mapping[str, Any]) -> list[str]:
    """The classes that `auto_map` names: `file.Class` beside it, `ID--file.Class` on the Hub."""
    mapped = values.get("auto_map")
    entries = mapped.values() if isinstance(mapped, dict) else ()
    # A tokenizer's is a list, of a slow class and a fast one: there may be only one of them.
    several = [names if isinstance(names, list) else [names] for names in entries]
    return [name for names in several for name in names if isinstance(name, str)]


def code_files(folder: Path) -> list[Path]:
    """The family's own code in a folder: the files that its JSON files name, and their imports.

    Raises:
        ValueError: a file imports one that is not there, or is a link out of the folder.
    """
    waiting: list[Path] = []
    for file in (CONFIG_FILE, TOKENIZER_CONFIG):
        values = read_mapping(folder / file) if (folder / file).is_file() else {}
        for name in named_code(values):
            path = folder / f"{name.split('.')[0]}.py"
            if path.is_file() and not is_own_code(path):
                waiting.append(path)
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        check_link(path)
        found.add(path)
        for name in get_relative_imports(path):
            needed = folder / f"{name}.py"
            if not needed.is_file():
                raise ValueError(f"{path} imports {needed.name}, which is not there: copy it too")
            waiting.append(needed)
    return sorted(found)
