"""load(): a folder, a GGUF file or a Hub id becomes a model, a tokenizer and soft-mask parameters.

Reads the original repositories of all known families unchanged, through this package's own classes,
without `trust_remote_code`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from ..config import (
    SAMPLING_FILE,
    PromptKind,
    read_sampling_file,
    sampling_from,
    soft_mask_to_published,
)
from ..decoding import diffusion_generate  # noqa: F401, gives the model its method
from ..decoding.memory import Footprint
from ..families import gguf as facts
from ..families.registry import by_name
from ..models import DreamModel
from ..models.checkpoint import Checkpoint, Source, first_not_finite, not_finite
from ..models.quantize import Quantizer, check_quantize
from ..sampling import against_blocks, merged
from .adapters import merge_adapter, read_adapter, require_peft
from .checkpoints import check_report, find, quiet, shapes_of, stored_dtype
from .cut_weights import later, ours_of_theirs, reading
from .four_bits import QLORA, finish, is_stored_in_4_bits, read_four_bits, settings_for
from .gguf_file import GgufHead, read_head
from .gguf_weights import dtype_of, load_gguf
from .memory_check import Plan
from .weight_sizes import DTYPES as BYTES
from .weight_sizes import sizes_of, weight_sizes

DTYPES = ("float32", "bfloat16", "float16")
# Positions of a short generation with its prompt, and tokens that are mixed in at each.
SHORT, SHORT_K = 512, 3


@dataclass(frozen=True)
class LoadConfig:
    """What to load and where it runs, as one value that other processes can be handed.

    The fields are the arguments of `load`; `model` is its `name`, `threads` are CPU threads.
    """

    model: str | None = None
    adapter: str | None = None
    revision: str | None = None
    family: str | None = None
    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    quantize: str | None = None
    threads: int | None = None

    def load(self) -> Checkpoint:
        """The checkpoint, on as many threads as are said here.

        Raises:
            ValueError: fewer than one thread, and what `load` refuses.
        """
        settings = dict(vars(self))
        name, threads = settings.pop("model"), settings.pop("threads")
        if threads is not None:
            set_threads(threads)
        return load(name, **settings)


MOST_THREADS = 1024  # more than any machine's cores are worth


def set_threads(count: int) -> None:
    """Sets the CPU threads of this process.

    Raises:
        ValueError: a count below 1, or so many that the system might not start them.
    """
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"--threads must lie between 1 and {MOST_THREADS}, not be {count}")
    torch.set_num_threads(count)


def load(
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    family: str | None = None,
    load_in_4bit: bool = False,
    quantize: str | None = None,
) -> Checkpoint:
    """Loads a checkpoint for generation.

    Args:
        name: a folder, GGUF file or Hub id of a model, or of an adapter, whose base is then taken;
            "default": the bundled one; None: the adapter's base, else the bundled one.
        adapter: a folder or Hub id of a PEFT adapter, merged into the model; the
            `transparency_config.json` beside it wins over one in the model's folder.
        device: default: cuda, then mps, then cpu.
        dtype: "float32", "bfloat16", "float16" or "auto" (the checkpoint's own); default: float32
            on a CPU, else the checkpoint's own. On a CPU with AVX512-BF16 or AMX bfloat16 takes a
            third of the time, at an error of 0.4 % in the logits; on others it is emulated.
        device_map: as in transformers; needs accelerate.
        revision: branch, tag or commit of the Hub repository.
        family: what the model is, where its config.json does not say, see `families`.
        load_in_4bit: linear layers in 4 bits (nf4, bitsandbytes) from the start, as for training
            an adapter on them; the head stays as it is. A checkpoint whose files are in 4 bits is
            loaded so in any case; with an adapter, which 4 bits would round away, its weights
            become whole again.
        quantize: "int8" or "int4": linear layers in fewer bits (bitsandbytes), for decoding, after
            the adapter was merged; embeddings and head stay as they are. Layer by layer, from
            the files: beside the result the CPU holds one layer, or the whole model where its
            files are of several dtypes or the adapter brings whole modules or biases.

    Raises:
        ValueError: one sentence on what is wrong with the folder, the adapter or an argument.
    """
    target = None
    if quantize is not None:
        target = choose_device(device)
        check_quantize(quantize, target)
        if load_in_4bit or device_map is not None:
            other = "load_in_4bit" if load_in_4bit else "device_map"
            raise ValueError(f"give either quantize or {other}, not both")
    source = find(name, adapter, revision=revision, family=family)
    if load_in_4bit and source.adapter is not None:
        raise ValueError(
            "an adapter is merged before the weights are rounded: give quantize int4 in place of "
            "load_in_4bit"
        )
    stored = is_stored_in_4_bits(source.config)
    if source.config.num_experts and (stored or load_in_4bit or quantize is not None):
        raise ValueError(
            f"{source.name} has experts, and bitsandbytes rounds single layers alone: load it in "
            "bfloat16, without quantize, load_in_4bit or files in 4 bits"
        )
    if stored and quantize is not None:
        raise ValueError(f"{source.name} is in 4 bits already: leave out quantize")
    adapting = None
    if source.adapter is not None:
        require_peft()
        adapting = read_adapter(source.adapter)
    # Read once: Dream's vocabulary takes 0.4 s.
    head = read_head(source.folder) if source.is_gguf else None
    if head is not None:
        _check_gguf(source, device_map, load_in_4bit)
    if device_map is None:
        target = target or choose_device(device)
    loaded_as = _dtype_of(source, head, dtype, target or torch.device("cpu"))
    if target is not None:  # a device map spreads a model over what there is
        _plan(source, head, loaded_as, target, "int4" if load_in_4bit else quantize).check()
    rounded = quantize is not None and head is not None and adapting is None
    quantizer = None
    if rounded:
        device = target
    elif quantize is not None and target is not None:
        quantizer = Quantizer(quantize, target, loaded_as, source.name)
        stored_in = None if head is not None else stored_dtype(source.weights)
        device, dtype = "cpu", stored_in or loaded_as
    if head is not None:
        kind = quantize if rounded else None
        chosen = choose_device(device)
        model = load_gguf(source, head, choose_dtype(dtype, chosen), chosen, kind)
    else:
        model = _read_model(source, device, dtype, device_map, load_in_4bit)
    if adapting is not None:
        if stored:
            with quiet():
                model.dequantize()
        model = merge_adapter(model, adapting, quantizer)
    if quantizer is not None:
        model = quantizer.model(model)
    bad = first_not_finite(model.named_parameters())
    if bad is not None:
        raise ValueError(f"{source.name}: {not_finite(bad, model.dtype)}")
    if source.config.transparency_config is not None:
        # What the model's own folder said; an adapter or an edited file may say something else.
        published = soft_mask_to_published(source.soft_mask) if source.soft_mask else None
        model.config.transparency_config = published
    sampling, kinds = _suiting(source, head)
    model.eval()
    return Checkpoint(
        model, source.tokenizer, source.soft_mask, source.name, sampling, source, kinds
    )


def _suiting(
    source: Source, head: GgufHead | None
) -> tuple[dict[str, Any], tuple[PromptKind, ...]]:
    """The settings of sampling that come with a model, and the kinds of prompts with others.

    A block-causal model keeps what it computes of full blocks, which is exact; what its blocks rule
    out is left out, as training may have changed them since.
    """
    sampling, kinds = own_sampling(source, head)
    size = source.config.block_size

    def fitting(settings: Mapping[str, Any]) -> dict[str, Any]:
        if size is None:
            return dict(settings)
        ruled_out = dict.fromkeys(against_blocks(settings, size))
        left = merged(settings, ruled_out)  # what adds to them goes too
        return {"cache": "exact"} | {k: v for k, v in left.items() if k not in ruled_out}

    kinds = tuple(replace(kind, sampling=fitting(kind.sampling)) for kind in kinds)
    return fitting(merged(by_name(source.config.family).sampling, sampling)), kinds


def own_sampling(
    source: Source, head: GgufHead | None
) -> tuple[dict[str, Any], tuple[PromptKind, ...]]:
    """What the model's own files say of sampling: its sampling_config.json, or its GGUF file.

    Args:
        head: of its GGUF file; None: it is a folder.

    Raises:
        ValueError: as `read_sampling_file`.
    """
    path = source.folder / SAMPLING_FILE
    if head is not None:
        own = head.own(facts.OWN_SAMPLING)
        return sampling_from(own, f"{source.folder}: {facts.OWN_SAMPLING}")
    return read_sampling_file(path) if path.is_file() else ({}, ())


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device meant; None: the best there is.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    cpu = torch.device("cpu")
    if device is None:
        return accelerator or cpu
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device: give cpu, cuda, cuda:1 or mps") from error
    if chosen.type == "cpu":
        return chosen
    if accelerator is None or chosen.type != accelerator.type:
        raise ValueError(f"this machine has no device {device}: use {accelerator or cpu}")
    if (chosen.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"this machine has no device {device}: the last one is "
            f"{chosen.type}:{torch.accelerator.device_count() - 1}"
        )
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> str | torch.dtype:
    """The dtype meant, or "auto" (the checkpoint's own); None: by device, see `load`.

    Raises:
        ValueError: no such dtype.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype == "auto":
        return dtype
    if dtype in DTYPES:
        return getattr(torch, dtype)
    # float64, which no option is for, is what a reference is computed in.
    if not isinstance(dtype, torch.dtype) or str(dtype).removeprefix("torch.") not in BYTES:
        raise ValueError(f"{dtype!r} is no dtype: give {', '.join(DTYPES)} or auto")
    return dtype


def _check_gguf(
    source: Source, device_map: str | dict[str, Any] | None, load_in_4bit: bool
) -> None:
    if device_map is not None or load_in_4bit:
        what = "device_map" if device_map is not None else "load_in_4bit"
        raise ValueError(f"{source.folder}: {what} is for folders of a model, not for GGUF files")


def _plan(
    source: Source,
    head: GgufHead | None,
    dtype: torch.dtype,
    device: torch.device,
    quantize: str | None,
) -> Plan:
    """What loading takes, and a generation of a few hundred positions after it."""
    config = source.config
    if head is not None:
        sizes = sizes_of((facts.own_name(name), one.shape) for name, one in head.tensors.items())
    else:
        in_4_bits = is_stored_in_4_bits(config)
        sizes = weight_sizes(source.weights, tied=config.tie_word_embeddings, in_4_bits=in_4_bits)
    with torch.device("meta"):
        shapes = DreamModel(config)
        nn.Module.to(shapes, dtype)
    footprint = Footprint.of(shapes, cached=True, k=SHORT_K, device=device)
    return Plan(source.name, sizes, device, dtype, quantize, footprint.total(SHORT))


def _dtype_of(
    source: Source, head: GgufHead | None, dtype: str | torch.dtype | None, device: torch.device
) -> torch.dtype:
    """The dtype of what is not quantised; "auto" as transformers reads it: the config's own.

    Raises:
        ValueError: no such dtype, or none that the device has.
    """
    chosen = choose_dtype(dtype, device)
    if chosen == "auto" and head is not None:
        chosen = dtype_of(head)
    elif chosen == "auto":
        chosen = source.config.dtype or stored_dtype(source.weights) or torch.float32
    found = chosen if isinstance(chosen, torch.dtype) else getattr(torch, chosen)
    if found == torch.float64 and source.config.num_experts:
        raise ValueError(
            f"{source.name} has experts, which torch cannot compute in float64: give dtype float32"
        )
    if found == torch.float64 and device.type == "mps":
        raise ValueError(f"{source.name}: mps has no float64: give dtype float32, or device cpu")
    return found


def _check_device_map(device_map: str | dict[str, Any]) -> None:
    """Raises ValueError for a mapping that is empty, or names a device that is not here."""
    if isinstance(device_map, str):
        return
    if not device_map:
        raise ValueError("device_map is empty: give auto, or a device for each part of the model")
    for device in device_map.values():
        if device != "disk":
            choose_device(f"cuda:{device}" if isinstance(device, int) else device)


def _read_model(
    source: Source,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    device_map: str | dict[str, Any] | None,
    load_in_4bit: bool = False,
) -> DreamModel:
    if device_map is not None:
        if device is not None:
            raise ValueError("give either device or device_map, not both")
        if importlib.util.find_spec("accelerate") is None:
            raise ValueError("device_map needs accelerate: pip install 'softmask[train]'")
        _check_device_map(device_map)
    chosen = choose_device(device)
    folder, config, quantization = source.folder, source.config, None
    chosen_dtype = choose_dtype(dtype, chosen)
    stored = is_stored_in_4_bits(config)
    if stored:
        config = copy.deepcopy(config)
        bits = read_four_bits(config.quantization_config, str(folder / "config.json"))
        config.quantization_config = settings_for(bits)
    elif load_in_4bit:
        quantization = BitsAndBytesConfig(**settings_for(QLORA))
    in_4_bits = stored or load_in_4bit
    if in_4_bits and device_map is None:
        device_map = {"": chosen}
    with contextlib.ExitStack() as held:
        held.enter_context(quiet())
        weights: dict[str, Any] = {"pretrained_model_name_or_path": folder}
        if all(link.is_whole for link in source.links):
            renamed = {f"^{at.theirs}$": at.ours for at in source.links if at.theirs != at.ours}
            weights["key_mapping"] = renamed or None
        else:  # transformers renames while it reads, but does not know how these are cut
            made = ours_of_theirs(source.links, shapes_of(config))
            read = held.enter_context(reading(source.weights))
            weights = {"pretrained_model_name_or_path": None, "state_dict": later(made, read)}
            chosen_dtype = _dtype_of(source, None, dtype, chosen)
        try:
            loaded: Any = DreamModel.from_pretrained(
                **weights,
                config=config,
                dtype=chosen_dtype,
                device_map=device_map,
                quantization_config=quantization,
                use_safetensors=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            # transformers' own report of shapes that do not fit runs over many lines.
            raise ValueError(
                f"{folder}: the weights do not fit its config.json "
                f"({str(error).splitlines()[0]}): the two are of different models"
            ) from error
    model, report = loaded
    # transformers would give the weights their original names back where it saves them.
    model._weight_conversions = None
    # peft looks there for a config.json; without a folder it is "None", a name on the Hub.
    model.name_or_path = model.config.name_or_path = str(folder)
    check_report(folder, report, config)
    if in_4_bits:
        finish(model, folder)
    return model if device_map is not None else model.to(chosen)
