"""The tensors of a GGUF file: checked by their heads, then dequantised one at a time.

Each is read by rows into the dtype that it is to have, so that the peak is the model as it becomes
and a few rows in fp32, whatever the file is in. With `quantize` a layer is rounded as soon as it is
there, and no more than one is whole.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ..families import gguf as facts
from ..models import DreamConfig, DreamModel
from ..models.checkpoint import Source, first_not_finite
from ..models.quantize import LAYERS, Quantizer, plain_layers, seal
from .gguf_file import GgufHead, TensorHead

# Elements that are in fp32 at once: 64 MB.
CHUNK = 2**24
# What each kind of tensor is closest to; all others are quantised, and were bfloat16 mostly.
DTYPES = {"F32": "float32", "F16": "float16"}


def gguf_package() -> ModuleType:
    """The package `gguf`, which knows how the blocks of quantised tensors are laid out.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError("GGUF files need the package gguf: pip install 'softmask[gguf]'")
    import gguf

    return gguf


def check_tensors(head: GgufHead) -> dict[str, list[int]]:
    """Every tensor lies within the file, and in a way that can be read; their shapes by our names.

    Raises:
        ValueError: the file is cut off, or holds a tensor that the package does not dequantise.
    """
    gguf = gguf_package()
    size = head.path.stat().st_size
    readable: set[int] = set()
    for name, tensor in head.tensors.items():
        if tensor.start + _bytes(head.path, name, tensor) > size:
            raise ValueError(f"{head.path} is cut off ({name} ends behind it): copy it again")
        if tensor.kind not in readable:
            kind = gguf.GGMLQuantizationType(tensor.kind)
            _, width = gguf.GGML_QUANT_SIZES[kind]
            try:
                gguf.dequantize(np.zeros((1, width), np.uint8), kind)
            except NotImplementedError:
                raise ValueError(
                    f"{head.path} has tensors in {kind.name}, which the package gguf does not "
                    "dequantise: take q8_0, q6_k or q4_k"
                ) from None
            readable.add(tensor.kind)
    return {
        facts.own_name(name): list(tensor.shape)
        for name, tensor in head.tensors.items()
        if name != facts.ROPE_FACTORS
    }


def dtype_of(head: GgufHead) -> str:
    """The dtype that the matrices are closest to, by the table of embeddings' own.

    Raises:
        ValueError: the package gguf is missing.
    """
    table = head.tensors.get(facts.gguf_name("model.embed_tokens.weight"))
    if table is None:
        return "bfloat16"
    kinds = {int(kind): kind.name for kind in gguf_package().GGMLQuantizationType}
    return DTYPES.get(kinds.get(table.kind, ""), "bfloat16")


def read_tensor(head: GgufHead, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a file in this dtype, its rows in the order of the file.

    Raises:
        ValueError: it is in no type that the package knows.
    """
    tensor = head.tensors[name]
    kind = gguf_package().GGMLQuantizationType(tensor.kind)
    count = _bytes(head.path, name, tensor)
    rows = math.prod(tensor.shape[:-1])
    # A private copy of what is written to, which is nothing: torch warns of what it cannot write.
    stored = np.memmap(head.path, np.uint8, "c", tensor.start, (count,)).reshape(rows, -1)
    out = torch.empty((rows, tensor.shape[-1]), dtype=dtype)
    step = max(1, CHUNK // tensor.shape[-1])
    for first in range(0, rows, step):
        part = gguf_package().dequantize(stored[first : first + step], kind)
        out[first : first + step] = torch.from_numpy(part)
    return out.reshape(tensor.shape)


def load_gguf(
    source: Source,
    head: GgufHead,
    dtype: torch.dtype | str,
    device: torch.device,
    quantize: str | None = None,
) -> DreamModel:
    """The model in a file that `find` has checked.

    Args:
        head: of the file.
        dtype: "auto": that which the file is closest to.
        quantize: "int8" or "int4": as `models.quantize.Quantizer`, layer by layer.

    Raises:
        ValueError: a tensor holds NaN or infinity, or 4 bits do not fit its width.
    """
    config = source.config
    chosen: torch.dtype = getattr(torch, dtype_of(head)) if isinstance(dtype, str) else dtype
    with torch.device("meta"):
        model = DreamModel(config)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=config)  # its buffers are computed, not stored
    quantizer = None
    if quantize is not None:
        quantizer = Quantizer(quantize, device, chosen, str(head.path))
    rounded = [] if quantizer is None else [LAYERS + n for n in plain_layers(model.model.layers)]
    names = {link.ours: link.theirs for link in source.links}
    read = stored_tensors(source, head, chosen)
    for place, module in list(model.named_modules()):
        for key, empty in list(module.named_parameters(recurse=False)):
            ours = f"{place}.{key}"
            if ours not in names:  # tied to the table
                continue
            value = read(ours)
            if first_not_finite([(ours, value)]):
                raise ValueError(
                    f"{head.path}: {names[ours]} holds NaN or infinity in {chosen}: the file is "
                    "damaged, or does not fit this dtype"
                )
            assert value.shape == empty.shape
            # A layer that is to be rounded goes to the device then.
            kept = value if place in rounded else value.to(device)
            setattr(module, key, nn.Parameter(kept))
        if quantizer is not None and place in rounded:
            quantizer.replace(model.model.layers, place.removeprefix(LAYERS), LAYERS)
    model.tie_weights()
    model.config.dtype = chosen
    if quantizer is not None:
        return seal(model, device)
    nn.Module.to(model, device)
    return model


def stored_tensors(
    source: Source, head: GgufHead, dtype: torch.dtype = torch.float32
) -> Callable[[str], Tensor]:
    """What reads a tensor of a GGUF source by our name, its rows in our order."""
    config = source.config
    names = {link.ours: link.theirs for link in source.links}

    def read(ours: str) -> Tensor:
        value = read_tensor(head, names[ours], dtype)
        return in_file_order(head.architecture, config, ours, value, back=True)

    return read


def in_file_order(
    architecture: facts.Architecture,
    config: DreamConfig,
    name: str,
    value: Tensor,
    *,
    back: bool = False,
) -> Tensor:
    """A weight with its rows in the order of a file, or `back` in ours.

    Of queries and keys alone they may differ. Here the first halves of a head's rotated pairs lie
    in front of the second ones, and llama.cpp may have the two of each pair side by side.

    Args:
        name: ours.
        value: (heads * width, ...) weights or biases of queries or keys.
    """
    if not (architecture.permuted and name.endswith(facts.ROTATED)):
        return value
    heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
    assert heads is not None  # Qwen2's configuration makes it
    half = len(value) // heads // 2
    inner = (half, 2) if back else (2, half)
    return value.reshape(heads, *inner, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _bytes(path: Path, name: str, tensor: TensorHead) -> int:
    """Of a tensor in a file.

    Raises:
        ValueError: there is no such type, or its blocks do not divide the rows.
    """
    gguf = gguf_package()
    try:
        block, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        raise ValueError(
            f"{path}: {name} is of the type {tensor.kind}, which the package gguf does not know: "
            "update it by pip install -U gguf"
        ) from None
    if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % block:
        raise ValueError(f"{path} is damaged ({name} has the shape {tensor.shape}): copy it again")
    return int(math.prod(tensor.shape) // block * width)
