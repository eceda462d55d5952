"""load(): a folder or a Hub id becomes a model, a tokenizer and soft-mask parameters.

Reads the original Dream repositories unchanged, through this package's own classes, without
`trust_remote_code`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ..config import SAMPLING_FILE, read_sampling_file, soft_mask_to_published
from ..decoding import diffusion_generate  # noqa: F401, gives the model its method
from ..models import DreamConfig, DreamModel
from ..models.checkpoint import Checkpoint
from ..models.quantize import check_quantize, quantize_layers
from .checkpoints import adapter_tensor_names, check_report, find, quiet

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadConfig:
    """What to load and where it runs, as one value that other processes can be handed.

    The fields are the arguments of `load`; `model` is its `name`, `threads` are CPU threads.
    """

    model: str | None = None
    adapter: str | None = None
    revision: str | None = None
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
    load_in_4bit: bool = False,
    quantize: str | None = None,
) -> Checkpoint:
    """Loads a checkpoint for generation.

    Args:
        name: a folder or Hub id of a Dream model, or of an adapter, whose base is then taken;
            "default": the bundled one; None: the adapter's base, else the bundled one.
        adapter: a folder or Hub id of a PEFT adapter, merged into the model; the
            `transparency_config.json` beside it wins over one in the model's folder.
        device: default: cuda, then mps, then cpu.
        dtype: "float32", "bfloat16", "float16" or "auto" (the checkpoint's own); default: float32
            on a CPU, else the checkpoint's own. On a CPU with AVX512-BF16 or AMX bfloat16 takes a
            third of the time, at an error of 0.4 % in the logits; on others it is emulated.
        device_map: as in transformers; needs accelerate.
        revision: branch, tag or commit of the Hub repository.
        load_in_4bit: linear layers in 4 bits (nf4, bitsandbytes) from the start, as for training
            an adapter on them; the head stays as it is.
        quantize: "int8" or "int4": linear layers in fewer bits (bitsandbytes), for decoding, after
            the adapter was merged; embeddings and head stay as they are. The whole model is in
            the CPU's memory first.

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
        device, dtype = "cpu", choose_dtype(dtype, target)
    source = find(name, adapter, revision=revision)
    model = _read_model(source.folder, source.config, device, dtype, device_map, load_in_4bit)
    if source.adapter is not None:
        model = _merge_adapter(model, source.adapter)
    if source.config.transparency_config is not None:
        # What the model's own folder said; an adapter or an edited file may say something else.
        published = soft_mask_to_published(source.soft_mask) if source.soft_mask else None
        model.config.transparency_config = published
    suits = source.folder / SAMPLING_FILE
    sampling = read_sampling_file(suits) if suits.is_file() else {}
    model.eval()
    if quantize is not None and target is not None:
        model = quantize_layers(model, quantize, target)
    return Checkpoint(model, source.tokenizer, source.soft_mask, source.name, sampling, source)


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
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is no dtype: give {', '.join(DTYPES)} or auto")
    return getattr(torch, dtype)


def _read_model(
    folder: Path,
    config: DreamConfig,
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
    chosen = choose_device(device)
    quantization = _in_4bit() if load_in_4bit else None
    if quantization is not None and device_map is None:
        device_map = {"": chosen}
    with quiet():
        try:
            loaded: Any = DreamModel.from_pretrained(
                folder,
                config=config,
                dtype=choose_dtype(dtype, chosen),
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
    check_report(folder, report, config)
    return model if device_map is not None else model.to(chosen)


def _in_4bit() -> BitsAndBytesConfig:
    """QLoRA's setting: normal floats, the scales quantised too, products in bfloat16."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("weights in 4 bits need bitsandbytes: pip install 'softmask[quant]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head"],
    )


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning about a question that peft asks and transformers 5.24 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _merge_adapter(model: DreamModel, folder: Path) -> DreamModel:
    """The model with the adapter merged in: unmerged DoRA takes a weight norm at every forward."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError("an adapter needs peft: pip install 'softmask[train]'")
    from peft import PeftConfig, PeftModel

    keys = adapter_tensor_names(folder)
    settings: Any = PeftConfig.from_pretrained(str(folder))
    if "modules_to_save" in vars(settings):
        # An adapter that saves a module this model lacks would lose it without a word.
        extra = [m for m in settings.modules_to_save or [] if not hasattr(model, m)]
        if extra:
            raise ValueError(f"{folder} brings the module {extra[0]!r}, which the model lacks")
    other = f"{folder} is an adapter for another base model: give its own as --model"
    try:
        with quiet_peft():
            merged = PeftModel.from_pretrained(model, folder, config=settings)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{other} ({str(error).splitlines()[0]})") from error
    if not keys or not _all_loaded(merged, keys):
        raise ValueError(other)
    return merged.merge_and_unload()


def _all_loaded(merged: Any, keys: set[str]) -> bool:
    """Whether every tensor of the adapter file has its place in the model."""
    own = {re.sub(r"\.(default|modules_to_save)(?=\.|$)", "", key) for key in merged.state_dict()}
    plain = {re.sub(r"\.weight$", "", key) for key in own}
    return all(key in own or re.sub(r"\.weight$", "", key) in plain for key in keys)
