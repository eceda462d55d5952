"""merge_adapter(): a PEFT adapter of the kind LoRA or DoRA becomes part of a model's weights.

Only what is understood is merged. A setting that this file does not know, a tensor too few or too
many is an error, as each of them would make another model without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import from_mapping, require, require_choice, shown
from ..families.family import Family
from ..families.registry import by_name
from ..models import DreamModel
from ..models.checkpoint import first_not_finite
from ..models.linear import is_plain
from ..models.quantize import LAYERS, Quantizer
from .folder import ADAPTER_FILE, ADAPTER_WEIGHTS, adapter_tensor_names, read_mapping

# Settings that change nothing of what is merged: where the adapter comes from, and its training.
INERT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "task_type", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config"),
}
# Ways of starting an adapter that leave the base as it is. Others (pissa, olora, corda, loftq)
# train on top of a changed base, which is in no file.
STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
# The tensors of a LoRA whose first dimension is the rank.
RANKED = (".lora_A.weight", ".lora_embedding_A")
SMALL_RANK = 256
# What PEFT puts before the names of a model's weights.
PREFIX = "base_model.model."
TABLES = re.compile(r"\.(embed_tokens|lm_head)\.")


@dataclass(frozen=True)
class LoraSettings:
    """The settings in adapter_config.json that decide what is merged, by PEFT's names."""

    r: int
    lora_alpha: float
    target_modules: str | tuple[str, ...]
    bias: str = "none"
    use_dora: bool = False
    use_rslora: bool = False
    lora_bias: bool = False
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def __post_init__(self) -> None:
        require_choice("bias", self.bias, ("none", "all", "lora_only"))
        for rank in (self.r, *(self.rank_pattern or {}).values()):
            require(rank >= 1, f"a rank must be at least 1, not {rank}")
        # PEFT reads names of modules as regular expressions too.
        for value in vars(self).values():
            for text in value if isinstance(value, tuple | dict) else (value,):
                fits = not isinstance(text, str) or _is_pattern(text)
                require(fits, f"{shown(text)} is no pattern")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read and checked by itself; `tensors` are on the CPU."""

    folder: Path
    settings: LoraSettings
    tensors: dict[str, Tensor]


def require_peft() -> None:
    """Raises ValueError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError("an adapter needs peft: pip install 'softmask[train]'")


def read_adapter(folder: Path) -> Adapter:
    """Reads settings and tensors.

    Raises:
        ValueError: the folder holds no adapter, a damaged one, or one of another kind than LoRA
            and DoRA.
    """
    settings = read_settings(folder)
    adapter_tensor_names(folder)
    weights = folder / ADAPTER_WEIGHTS
    tensors = load_file(weights)
    ranks = [len(t) for name, t in tensors.items() if name.endswith(RANKED) and t.dim() == 2]
    for rank in (settings.r, *(settings.rank_pattern or {}).values()):
        # A rank that no layer has is no fault, but before its shape is compared it takes memory.
        if rank > max([SMALL_RANK, *ranks]):
            raise ValueError(
                f"{folder / ADAPTER_FILE} says rank {rank}, but no tensor in {ADAPTER_WEIGHTS} has "
                "it: copy the adapter again"
            )
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        raise ValueError(f"{weights} holds integers: copy the adapter again")
    bad = first_not_finite(tensors.items())
    if bad is not None:
        raise ValueError(f"{weights}: {bad} holds NaN or infinity: the adapter is damaged")
    return Adapter(folder, settings, tensors)


def read_settings(folder: Path) -> LoraSettings:
    """What adapter_config.json says.

    Raises:
        ValueError: it is missing or damaged, or says something that is not understood here.
    """
    values = read_mapping(folder / ADAPTER_FILE)
    where = str(folder / ADAPTER_FILE)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{where}: softmask merges adapters of the peft_type 'LORA' (LoRA and DoRA), not "
            f"{shown(kind)}: merge this one by PEFT itself, or correct the file"
        )
    start = values.pop("init_lora_weights", None)
    if not any(start is known or start == known for known in STARTS):
        raise ValueError(
            f"{where}: init_lora_weights {shown(start)} may have changed the base: save the "
            "adapter by PEFT with path_initial_model_for_weight_conversion, which makes a plain "
            "one of it"
        )
    known = {field.name for field in dataclasses.fields(LoraSettings)}
    for key, value in values.items():
        # What a later PEFT adds is off where it is empty.
        if key not in known | INERT and value not in (None, False, [], {}):
            raise ValueError(
                f"{where}: softmask does not know {key} ({shown(value)}), which may change the "
                "weights: merge the adapter by PEFT itself"
            )
    return from_mapping(LoraSettings, {k: v for k, v in values.items() if k in known}, where)


def merge_adapter(
    model: DreamModel, adapter: Adapter, quantizer: Quantizer | None = None
) -> DreamModel:
    """The model with the adapter merged in: unmerged DoRA takes a weight norm at every forward.

    Where the adapter changes one of a tied table and head, the two are untied, as they are while
    such an adapter is trained.

    Args:
        model: is changed in place.
        quantizer: takes each linear layer of the blocks as soon as it is merged, in the
            quantizer's dtype, so that no second one is whole in it.

    Raises:
        ValueError: the adapter's tensors are not those that its settings name in this model, or
            what the quantizer refuses.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.warning import PeftWarning

    folder = adapter.folder
    adapter = _under_our_names(adapter, by_name(model.config.family))
    if quantizer is not None:
        _prepare(model, adapter, quantizer)
    if model.config.tie_word_embeddings and any(map(TABLES.search, adapter.tensors)):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    try:
        with quiet_peft(), warnings.catch_warnings():
            # An adapter that cannot be merged, and a rank or alpha that is for no module.
            warnings.simplefilter("error", PeftWarning)
            warnings.simplefilter("error", RuntimeWarning)
            warnings.filterwarnings("ignore", "You have passed exclude_modules", UserWarning)
            wrapped: Any = PeftModel(model, LoraConfig(**_for_peft(adapter.settings)))
    except (ValueError, TypeError, PeftWarning, RuntimeWarning) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder}: PEFT cannot put this adapter into this model ({reason}): give its own base "
            "as --model, or correct adapter_config.json"
        ) from error
    # With the whole table, which PEFT adds where it was resized or has an adapter.
    state = wrapped.state_dict()
    least, most = (
        get_peft_model_state_dict(wrapped, state, save_embedding_layers=tables)
        for tables in (False, True)
    )
    _check_tensors(folder, adapter.tensors, least, most)
    set_peft_model_state_dict(wrapped, adapter.tensors)
    del state, least, most  # they hold the weights
    if quantizer is not None:
        _merge_layers(model, quantizer)
    merged: DreamModel = wrapped.merge_and_unload()
    return merged


def _prepare(model: DreamModel, adapter: Adapter, quantizer: Quantizer) -> None:
    """Has in the dtype of the merge what is merged as a whole: all but the blocks' linear layers.

    Those too where the adapter brings whole modules or biases, which PEFT keeps in the base's
    dtype.
    """
    settings = adapter.settings
    whole = settings.modules_to_save or settings.bias != "none"
    layers = set() if whole else {m.weight for m in model.model.layers.modules() if is_plain(m)}
    for parameter in model.parameters():
        if parameter not in layers:
            parameter.data = parameter.data.to(quantizer.dtype)


def _merge_layers(model: DreamModel, quantizer: Quantizer) -> None:
    """Merges the linear layers of the blocks, one by one, each quantised before the next."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    blocks: Any = model.model.layers
    names = [name for name, module in blocks.named_modules() if isinstance(module, BaseTunerLayer)]
    for name in names:
        layer: Any = blocks.get_submodule(name)
        base = layer.get_base_layer()
        if is_plain(base):
            base.to(quantizer.dtype)
            layer.merge()
            quantised = quantizer.layer(f"{LAYERS}{name}", base)
            blocks.set_submodule(name, quantised)


def _under_our_names(adapter: Adapter, family: Family) -> Adapter:
    """An adapter that was trained on the family's own code, whose modules have other names there.

    Raises:
        ValueError: it has settings by name of a module, which are not translated.
    """
    tensors = {_own_name(name, family): tensor for name, tensor in adapter.tensors.items()}
    if tensors.keys() == adapter.tensors.keys():
        return adapter
    settings = adapter.settings
    for key in ("modules_to_save", "rank_pattern", "alpha_pattern"):
        if getattr(settings, key):
            raise ValueError(
                f"{adapter.folder / ADAPTER_FILE}: softmask does not translate {key} from the "
                f"names of {family.title}'s own code: merge the adapter by PEFT itself"
            )
    # Names of modules there mean several here: `ff_out` is in the layers, and the head.
    adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    settings = dataclasses.replace(
        settings,
        target_modules=tuple(sorted(adapted)),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
    )
    return dataclasses.replace(adapter, settings=settings, tensors=tensors)


def _own_name(name: str, family: Family) -> str:
    own = family.own_name(name.removeprefix(PREFIX))
    return PREFIX + own if name.startswith(PREFIX) else own


def _for_peft(settings: LoraSettings) -> dict[str, Any]:
    """Arguments of LoraConfig. Without the task, whose wrapper asks for methods of its models."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()}
    return {k: v for k, v in values.items() if v is not None}


def _check_tensors(
    folder: Path,
    found: Mapping[str, Tensor],
    least: Mapping[str, Tensor],
    most: Mapping[str, Tensor],
) -> None:
    """Whether an adapter's tensors are those that belong to it: at least these, at most those."""
    problems = {
        "it lacks": sorted(least.keys() - found.keys()),
        "it has the unknown": sorted(found.keys() - most.keys()),
        "of another shape is": sorted(
            name for name in found.keys() & most.keys() if found[name].shape != most[name].shape
        ),
    }
    for what, names in problems.items():
        if names:
            raise ValueError(
                f"{folder} is damaged, or for another base model: {what} {names[0]} ({len(names)} "
                "in all): give its own base as --model, or copy it again"
            )


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning about a question that peft asks and transformers 5.24 deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
