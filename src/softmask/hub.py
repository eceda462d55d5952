"""load(): a folder or a Hub id becomes a model, a tokenizer and soft-mask parameters.

Reads the original Dream repositories unchanged, through this package's own classes, without
`trust_remote_code`. Whatever is wrong with a folder is one sentence that says what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import BitsAndBytesConfig, Qwen2Tokenizer
from transformers.utils import logging as transformers_logging

from .config import (
    SAMPLING_FILE,
    SOFT_MASK_FILE,
    SoftMaskConfig,
    read_json,
    read_sampling_file,
    read_soft_mask_file,
    soft_mask_from_published,
    soft_mask_to_published,
)
from .modeling import DreamConfig, DreamModel
from .soft_mask import check_k

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What a checkpoint consists of; original PyTorch files and remote code stay where they are.
HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "*.jinja", "LICENSE*"]
# The name of the bundled model, and of its folder in this package.
BUNDLED = "default"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Checkpoint:
    """What generation needs: model, tokenizer, and the soft-mask parameters where there are any.

    `sampling` are settings of SamplingConfig that suit this model, where its folder names some.
    """

    model: DreamModel
    tokenizer: Qwen2Tokenizer
    soft_mask: SoftMaskConfig | None
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the config and tokenizer, and the end of a chat turn."""
        configured = self.model.config.eos_token_id
        ids = configured if isinstance(configured, list | tuple) else [configured]
        ids = [*ids, self.tokenizer.eos_token_id]
        vocabulary = self.tokenizer.get_vocab()
        ids += [vocabulary.get(token) for token in ("<|endoftext|>", "<|im_end|>")]
        return tuple(dict.fromkeys(i for i in ids if i is not None))


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies, with everything read and checked but the weights' content.

    `name` is what the user called it; `soft_mask` is what holds for model and adapter together.
    """

    name: str
    folder: Path
    adapter: Path | None
    config: DreamConfig
    tokenizer: Qwen2Tokenizer
    weights: tuple[Path, ...]
    soft_mask: SoftMaskConfig | None


def find(
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    revision: str | None = None,
    local_only: bool = False,
) -> Source:
    """Finds a checkpoint and checks its files; arguments as for `load`.

    Args:
        local_only: take Hub repositories from this machine's cache, without a request.

    Raises:
        ValueError: one sentence on what is wrong with the folder, the adapter or an argument.
    """
    adapter_folder = None if adapter is None else _folder(adapter, None, local_only)
    if name is None and adapter_folder is not None:
        name = read_mapping(adapter_folder / ADAPTER_FILE).get("base_model_name_or_path")
        if not name:
            raise ValueError(f"{adapter_folder} does not name its base model: give it as --model")
    if name is None or (name == BUNDLED and not Path(BUNDLED).is_dir()):
        folder = Path(str(resources.files(__package__))) / BUNDLED
    else:
        folder = _folder(name, revision, local_only)
    config = read_config(folder)
    tokenizer = _read_tokenizer(folder, config)
    weights = weight_files(folder)
    soft_mask = _read_soft_mask(folder, adapter_folder, config)
    if soft_mask is not None:
        check_k(soft_mask.k, config.vocab_size)
    return Source(
        str(name or BUNDLED), folder, adapter_folder, config, tokenizer, weights, soft_mask
    )


def load(
    name: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    load_in_4bit: bool = False,
) -> Checkpoint:
    """Loads a checkpoint for generation.

    Args:
        name: a folder or Hub id of a Dream model; "default": the bundled one; None: the adapter's
            base, else the bundled one.
        adapter: a folder or Hub id of a PEFT adapter, merged into the model; the
            `transparency_config.json` beside it wins over one in the model's folder.
        device: default: cuda, then mps, then cpu. dtype: "float32", "bfloat16", "float16" or
            "auto" (the checkpoint's own); default: float32 on a CPU, where bfloat16 is emulated,
            else the checkpoint's own. device_map: as in transformers; needs accelerate.
        revision: branch, tag or commit of the Hub repository.
        load_in_4bit: linear layers in 4 bits (nf4, bitsandbytes); the head stays as it is.

    Raises:
        ValueError: one sentence on what is wrong with the folder, the adapter or an argument.
    """
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
    return Checkpoint(model.eval(), source.tokenizer, source.soft_mask, source.name, sampling)


def _folder(name: str | Path, revision: str | None, local_only: bool) -> Path:
    """The local folder, or a snapshot of the Hub repository."""
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{path} is a local folder: a revision has no meaning there")
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: give the folder that holds config.json")
    if not HUB_ID.fullmatch(str(name)):
        raise ValueError(f"there is no folder {name}, and it is no Hub id (owner/name) either")
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                allow_patterns=HUB_FILES,
                local_files_only=local_only,
            )
        )
    except GatedRepoError as error:
        raise ValueError(
            f"{name} is gated: accept its terms on its Hub page, then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision!r}: check the branch or tag") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"the Hub has no repository {name}: check the spelling") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if local_only:
            raise ValueError(
                f"{name} is not on this machine, and a dry run asks nobody: download it first "
                f"(`hf download {name}`), or give a local folder"
            ) from error
        raise ValueError(
            f"{name} is not on this machine and the Hub cannot be reached: check the network, or "
            "give a local folder"
        ) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in one of a folder's JSON files.

    Raises:
        ValueError: there is no such file, or it holds no mapping.
    """
    if not path.is_file():
        what = "an adapter" if path.name == ADAPTER_FILE else "a whole checkpoint"
        raise ValueError(f"{path.parent} has no {path.name}: give a folder with {what}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (no mapping): copy it again")
    return values


def read_config(folder: Path) -> DreamConfig:
    """The folder's config.

    Raises:
        ValueError: there is none, it is not Dream's, or its mask token is not in its vocabulary.
    """
    values = read_mapping(folder / "config.json")
    family = values.get("model_type")
    if family != DreamConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of the family {family!r}: softmask loads Dream models"
        )
    config = DreamConfig.from_pretrained(folder)
    if config.mask_token_id is None or not 0 <= config.mask_token_id < config.vocab_size:
        raise ValueError(
            f"{folder / 'config.json'}: mask_token_id {config.mask_token_id} is not in the "
            f"vocabulary of {config.vocab_size}: correct it"
        )
    return config


def _read_tokenizer(folder: Path, config: DreamConfig) -> Qwen2Tokenizer:
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not all((folder / n).is_file() for n in ("vocab.json", "merges.txt")):
        raise ValueError(f"{folder} has no tokenizer: add vocab.json and merges.txt")
    # Saved settings may name classes of the original remote code; ours is transformers' own.
    with quiet():
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    mask = tokenizer.convert_ids_to_tokens(config.mask_token_id)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens but the model {config.vocab_size}"
            ": take the tokenizer of the same checkpoint"
        )
    if mask is None or mask not in tokenizer.get_added_vocab():
        raise ValueError(
            f"{folder}: the tokenizer has no mask token at id {config.mask_token_id}: take the "
            "tokenizer of the same checkpoint"
        )
    return tokenizer


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The folder's weight files: every one that the index names is there and whole.

    Raises:
        ValueError: there are no weights, or a file is missing or damaged.
    """
    index, single = folder / WEIGHT_INDEX, folder / "model.safetensors"
    if index.is_file():
        files = sorted(set(read_mapping(index).get("weight_map", {}).values()))
    else:
        files = [single.name]
    if not files or (not index.is_file() and not single.is_file()):
        raise ValueError(f"{folder} has no weights: add model.safetensors or its shards")
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{folder} lacks the weight file {file}: copy it again")
        tensor_names(folder / file)
    return tuple(folder / file for file in files)


def tensor_names(path: Path) -> set[str]:
    """The names in a safetensors file.

    Raises:
        ValueError: the file is truncated or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy it again") from error


def check_weights(source: Source) -> None:
    """Checks names and shapes of the weights against the config, reading the files' heads alone.

    Raises:
        ValueError: they are not those of a model with this config.
    """
    with torch.device("meta"):
        model = DreamModel(source.config)
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    stored: dict[str, list[int]] = {}
    for path in source.weights:
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_slice(name).get_shape() for name in tensor_names(path)}
    report = {
        "missing_keys": own.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - own.keys(),
        "mismatched_keys": [n for n in own.keys() & stored.keys() if own[n] != stored[n]],
    }
    _check_report(source.folder, report, source.config)


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device meant; None: the best there is.

    Raises:
        ValueError: no such device, or none on this machine.
    """
    if device is None:
        accelerator = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else accelerator
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{device!r} is no device: give cpu, cuda, cuda:1 or mps") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device: use --device cpu")
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars nor advice from transformers: what matters is raised here, in a sentence."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


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
            model, report = DreamModel.from_pretrained(
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
    _check_report(folder, report, config)
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


def _check_report(folder: Path, report: dict[str, Any], config: DreamConfig) -> None:
    missing = set(report["missing_keys"])
    if config.tie_word_embeddings:
        missing.discard("lm_head.weight")
    problems = {
        "lack": sorted(missing),
        "have unknown": sorted(report["unexpected_keys"]),
        "have the wrong shape for": sorted(str(key) for key in report["mismatched_keys"]),
    }
    for what, keys in problems.items():
        if keys:
            raise ValueError(
                f"{folder}: the weights {what} {keys[0]} ({len(keys)} in all): they are not those "
                "of its config.json"
            )


def _read_soft_mask(
    folder: Path, adapter: Path | None, config: DreamConfig
) -> SoftMaskConfig | None:
    """The adapter's parameters, else the folder's, else those in its config."""
    for place in (adapter, folder):
        if place is not None and (place / SOFT_MASK_FILE).is_file():
            return read_soft_mask_file(place / SOFT_MASK_FILE)
    if config.transparency_config is None:
        return None
    return soft_mask_from_published(config.transparency_config, str(folder / "config.json"))


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
    settings = PeftConfig.from_pretrained(folder)
    if dataclasses.is_dataclass(settings) and "modules_to_save" in vars(settings):
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


def adapter_tensor_names(folder: Path) -> set[str]:
    """The names of an adapter's tensors.

    Raises:
        ValueError: the folder holds no adapter, or a damaged one.
    """
    read_mapping(folder / ADAPTER_FILE)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}: copy the adapter again")
    return tensor_names(weights)


def _all_loaded(merged: Any, keys: set[str]) -> bool:
    """Whether every tensor of the adapter file has its place in the model."""
    own = {re.sub(r"\.(default|modules_to_save)(?=\.|$)", "", key) for key in merged.state_dict()}
    plain = {re.sub(r"\.weight$", "", key) for key in own}
    return all(key in own or re.sub(r"\.weight$", "", key) in plain for key in keys)
