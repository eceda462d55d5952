"""export_gguf(): a checkpoint, its adapter merged in, becomes one GGUF file that llama.cpp loads.

Names, order of rows and types are those of llama.cpp's converter, see `families/gguf.py`. Tensors
are read, encoded and written one at a time.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from ..config import SAMPLING_FILE, read_json, require_choice
from ..families import gguf as facts
from ..files import expand_home, replaced_atomically
from ..models import DreamConfig, DreamModel
from ..models.checkpoint import Source, first_not_finite
from .checkpoints import find, shapes_of
from .export import check_exportable, merge
from .gguf_config import metadata_of, rope_factors
from .gguf_file import MAGIC, GgufHead, read_head
from .gguf_tokenizer import tokenizer_metadata
from .gguf_weights import gguf_package, in_file_order, stored_tensors

# What matrices are written in; vectors are in fp32, as llama.cpp has them.
KINDS = ("f32", "f16", "bf16", "q8_0")
# llama.cpp knows no other in these architectures.
ACTIVATIONS = ("silu", "swish")
# What it does with a model that is written under an architecture of causal ones.
CAUSAL_ELSEWHERE = (
    "llama.cpp loads it, but has no diffusion for this kind of network: its CLI would write it "
    "from left to right"
)


def export_gguf(
    target: str | Path,
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    kind: str = "bf16",
    revision: str | None = None,
    family: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes one file with weights, tokenizer and settings; it is there whole or not at all.

    Args:
        target: the file, which ends in `.gguf`.
        name: as for `hub.load`.
        adapter: as for `hub.load`; it is merged in float32.
        kind: one of `KINDS`, of matrices. Those whose rows blocks of 32 do not divide are in f16
            in place of q8_0, as llama.cpp's converter has them.
        revision: as for `hub.load`.
        family: as for `hub.load`.
        overwrite: replace an older GGUF file.

    Returns:
        The file.

    Raises:
        ValueError: something is wrong with the checkpoint, the adapter, an argument or the place
            to write to, or llama.cpp has no such network or tokenizer.
    """
    require_choice("gguf", kind, KINDS)
    gguf = gguf_package()
    target = expand_home(target).resolve()
    _check_target(target, overwrite)
    source = find(name, adapter, revision=revision, family=family)
    if source.folder.resolve() == target:
        raise ValueError(f"{target} is what is to be exported: export to another file")
    check_exportable(source)
    architecture = architecture_of(source.config)
    merged = merge(source)
    tied = bool((source if merged is None else merged).config.tie_word_embeddings)
    values = metadata_of(source, architecture)
    values |= tokenizer_metadata(source) | {"general.name": target.stem}
    sampling = source.folder / SAMPLING_FILE
    head = read_head(source.folder) if source.is_gguf else None
    if head is not None:
        values[facts.OWN_SAMPLING] = json.dumps(head.own(facts.OWN_SAMPLING))
    elif sampling.is_file():
        values[facts.OWN_SAMPLING] = json.dumps(read_json(sampling))
    share = "ALL" if kind == "f32" else "MOSTLY"
    values["general.file_type"] = int(gguf.LlamaFileType[f"{share}_{kind.upper()}"])
    values["general.quantization_version"] = gguf.GGML_QUANT_VERSION
    read = _reader(source, head, merged)
    names = _names(source.config, tied=tied)
    factors = rope_factors(source.config)
    try:
        with replaced_atomically(target) as partial, _writer(partial, architecture.name) as writer:
            for key, value in values.items():
                _add(writer, key, value)
            if factors is not None:
                _announce(writer, facts.ROPE_FACTORS, (len(factors),), "F32")
            for ours, shape in names.items():
                _announce(writer, facts.gguf_name(ours), shape, _type(shape, kind))
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if factors is not None:
                writer.write_tensor_data(np.array(factors, np.float32))
            for ours, shape in names.items():
                value = in_file_order(architecture, source.config, ours, read(ours))
                writer.write_tensor_data(_encoded(ours, value, _type(shape, kind)))
    except OSError as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{target} cannot be written: {why}") from error
    return target


def architecture_of(config: DreamConfig) -> facts.Architecture:
    """What llama.cpp calls such a network.

    Raises:
        ValueError: it has none.
    """
    rope = config.rope_parameters
    assert rope is not None  # Qwen2's configuration makes them
    found = facts.architecture_for(
        biases=config.attention_bias,
        norms=config.qk_norm,
        rope_factors=rope.get("rope_type") == "llama3",
        whole=config.block_size is None,
    )
    dense = not (config.num_experts or config.rotates_in_part)
    if found is None or config.hidden_act not in ACTIVATIONS or not dense:
        raise ValueError(
            "softmask knows no architecture of llama.cpp for this network "
            f"(biases {config.attention_bias}, normalised queries {config.qk_norm}, rotary "
            f"embedding {rope.get('rope_type', 'default')}, {config.hidden_act}, "
            f"{config.num_experts} experts): export a folder"
        )
    return found


def _check_target(target: Path, overwrite: bool) -> None:
    if target.suffix != facts.SUFFIX:
        raise ValueError(f"{target} does not end in {facts.SUFFIX}: name a file that does")
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent}: make it, or name another file")
    if not target.exists():
        return
    if not target.is_file():
        raise ValueError(f"{target} is no file: give another name")
    if not overwrite:
        raise ValueError(f"{target} is there already: give another file, or --overwrite")
    with target.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{target} is no GGUF file, so it is not replaced: give another name")


def _names(config: DreamConfig, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """The weights of such a model by our names, with their shapes; a tied head is the table."""
    shapes = shapes_of(config)
    return {n: tuple(shape) for n, shape in shapes.items() if not (tied and n == "lm_head.weight")}


def _reader(
    source: Source, head: GgufHead | None, merged: DreamModel | None
) -> Callable[[str], Tensor]:
    """What gives a weight by our name, from the merged model or straight from the files.

    Args:
        head: of a GGUF file.
    """
    if merged is not None:
        return merged.state_dict().__getitem__
    if head is not None:
        return stored_tensors(source, head)
    stored: dict[str, Path] = {}
    for path in source.weights:
        with safe_open(path, framework="pt") as file:
            stored.update(dict.fromkeys(file.keys(), path))
    places = {link.ours: (stored[link.theirs], link.theirs) for link in source.links}

    def read(ours: str) -> Tensor:
        path, theirs = places[ours]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(theirs)

    return read


@contextlib.contextmanager
def _writer(path: Path, architecture: str) -> Iterator[Any]:
    writer = gguf_package().GGUFWriter(path, architecture)
    try:
        yield writer
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    """Adds a pair of the type that llama.cpp reads it as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _type(shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    block, _ = gguf_package().GGML_QUANT_SIZES[gguf_package().GGMLQuantizationType[kind.upper()]]
    return kind.upper() if shape[-1] % block == 0 else "F16"


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    gguf = gguf_package()
    number = gguf.GGMLQuantizationType[kind]
    block, width = gguf.GGML_QUANT_SIZES[number]
    size = math.prod(shape) // block * width
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size, number)


def _encoded(name: str, value: Tensor, kind: str) -> np.ndarray:
    """A weight as its bytes are in the file.

    Raises:
        ValueError: it holds NaN or infinity, or does not fit float16.
    """
    gguf = gguf_package()
    whole = value.detach().float()
    encoded = gguf.quantize(whole.contiguous().numpy(), gguf.GGMLQuantizationType[kind])
    if first_not_finite([(name, whole)]) or (kind == "F16" and not np.isfinite(encoded).all()):
        raise ValueError(f"{name} holds NaN or infinity in {kind}: the weights are damaged")
    return encoded
