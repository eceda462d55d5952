"""Dream's own calling convention, `model.diffusion_generate(...)`, on top of denoise().

Arguments, defaults, output class and hooks are those of Dream's `generation_utils.py`, with the
published soft-masking's `transparency_*` arguments. Tokens equal the published ones; what the
published code got wrong is mended (rows with unequal mask counts, the schedules that crash, a
schedule counted over the whole batch), and an argument it would ignore is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from ..config import (
    PUBLISHED_KEYS,
    SamplingConfig,
    SoftMaskConfig,
    require,
    shown,
    soft_mask_from_published,
)
from ..models import DreamModel
from .arguments import as_count
from .sampler import LogitsHook, TokensHook, denoise


@dataclass
class DreamModelOutput(ModelOutput):
    """`sequences` (B, T); `history`: the canvas (B, T) after each step, where asked for."""

    sequences: Tensor | None = None
    history: tuple[Tensor, ...] | None = None


@dataclass
class DreamGenerationConfig:
    """The arguments of `diffusion_generate` with Dream's defaults.

    A model has its own as `model.generation_config`, and what is set there holds where a call says
    nothing else. Unlike the published class it takes no setting from the model's files: under
    transformers 4 that slipped in top_k=50 (finding B2).
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    steps: int = 512
    eps: float = 1e-3
    alg: str = "origin"
    alg_temp: float | None = None
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_return_sequences: int = 1
    return_dict_in_generate: bool = False
    output_history: bool = False
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    transparency_alg: str | None = None
    transparency_scale: float | None = None
    transparency_centre: float | None = None
    transparency_steepness: float | None = None
    mixinputs_k: int | None = None
    mixture_temp: float | None = None
    transparency_scheduling: str | None = None
    mixture: str | None = None
    mixture_weight: str | None = None
    mixture_entropy_temp: float | None = None
    mixture_token_temp: float | None = None
    mixture_options: dict[str, Any] | None = None


def _own_settings(model: Any) -> DreamGenerationConfig:
    """`model.generation_config`: made at its first use, with the ids of the config."""
    own = vars(model).get("_generation_config")
    if own is None:
        names = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
        ids = {name: getattr(model.config, name) for name in names}
        own = vars(model)["_generation_config"] = DreamGenerationConfig(**ids)
    return own


def _set_own_settings(model: Any, settings: Any) -> None:
    vars(model)["_generation_config"] = settings


def _settings(generation_config: Any, given: dict[str, Any]) -> DreamGenerationConfig:
    """The call's settings: its arguments over those of `generation_config`."""
    known = [f.name for f in dataclasses.fields(DreamGenerationConfig)]
    values: Any = generation_config
    named = dict(given)
    if isinstance(values, GenerationConfig):  # which has others of its own
        values = values.to_dict()
    elif dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = dataclasses.asdict(values)
    else:
        require(
            isinstance(values, Mapping),
            f"generation_config must be a mapping or a GenerationConfig, not {shown(values)}",
        )
        named |= values
    for name in named:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ValueError(f"diffusion_generate has no argument {name!r}{hint}")
    base = {name: values[name] for name in known if values.get(name) is not None}
    return DreamGenerationConfig(**(base | given))


def _soft_mask(model: Any, settings: DreamGenerationConfig) -> SoftMaskConfig | None:
    """The call's soft-mask parameters; without an algorithm, the model's own and the call's."""
    values = {key: getattr(settings, key) for key in PUBLISHED_KEYS}
    own = model.config.transparency_config
    if settings.transparency_alg is not None or own is None:
        return soft_mask_from_published(values, "diffusion_generate")
    given = {key: value for key, value in values.items() if value is not None}
    return soft_mask_from_published(own | given, "diffusion_generate")


@torch.no_grad()
def diffusion_generate(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any | None = None,
    *,
    attention_mask: Tensor | None = None,
    generation_tokens_hook_func: TokensHook | None = None,
    generation_logits_hook_func: LogitsHook | None = None,
    **kwargs: Any,
) -> Tensor | DreamModelOutput:
    """Fills `max_new_tokens` masks behind the prompts, and any masks inside them.

    Args:
        inputs: (B, L) prompts, left-padded where their lengths differ.
        generation_config: a DreamGenerationConfig, or transformers' class; arguments win over it.
            Default: `model.generation_config`.
        attention_mask: (B, L), 1 at tokens, 0 at padding.
        generation_tokens_hook_func: (step | None, tokens (B, T), logits | None) -> tokens.
        generation_logits_hook_func: (step, tokens (B, T), logits (B, T, V)) -> logits.
        **kwargs: the fields of DreamGenerationConfig. Where no `transparency_alg` is given, a
            model whose config brings soft-mask parameters soft-masks with them; "none" does not.

    Returns:
        The canvas (B * num_return_sequences, T), or a DreamModelOutput.

    Raises:
        ValueError: an unknown argument, a value out of range, a prompt that fills max_length, or
            what `denoise` refuses.
    """
    if inputs is None:
        inputs = kwargs.pop("input_ids", None)
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.numel() == 0:
        raise ValueError("diffusion_generate needs prompts, a tensor of shape (batch, length)")
    own = model.generation_config if generation_config is None else generation_config
    settings = _settings(own, kwargs)
    mask_id = settings.mask_token_id
    if mask_id is not None and mask_id != model.config.mask_token_id:
        raise ValueError(
            f"mask_token_id is {mask_id}, but the model's mask token is "
            f"{model.config.mask_token_id}: leave it out"
        )
    if settings.max_new_tokens is None:
        length = as_count("max_length", settings.max_length)
    else:
        length = inputs.shape[1] + as_count("max_new_tokens", settings.max_new_tokens, 0)
    new = length - inputs.shape[1]
    if new < 0 or (new == 0 and not bool((inputs == model.config.mask_token_id).any())):
        raise ValueError(
            f"the prompt has {inputs.shape[1]} tokens and max_length is {length}: nothing is left "
            "to generate; give max_new_tokens"
        )
    names = [f.name for f in dataclasses.fields(SamplingConfig) if hasattr(settings, f.name)]
    cache = "none" if model.config.block_size is None else "exact"
    sampling = SamplingConfig(**{name: getattr(settings, name) for name in names}, cache=cache)
    copies = as_count("num_return_sequences", settings.num_return_sequences)
    canvas_BL = torch.nn.functional.pad(inputs, (0, new), value=model.config.mask_token_id)
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor):
            raise ValueError("attention_mask must be a tensor of the prompts' shape")
        if attention_mask.shape != inputs.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, the prompts "
                f"{tuple(inputs.shape)}"
            )
        if not attention_mask.any(1).all():
            raise ValueError("attention_mask leaves out all of a prompt: it is 1 at tokens")
        attention_mask = torch.nn.functional.pad(attention_mask, (0, new), value=1)
        attention_mask = attention_mask.repeat_interleave(copies, dim=0)
    history = []
    steps = denoise(
        model,
        canvas_BL.repeat_interleave(copies, dim=0),
        sampling,
        attention_mask_BL=attention_mask,
        soft_mask=_soft_mask(model, settings),
        logits_hook=generation_logits_hook_func,
        tokens_hook=generation_tokens_hook_func,
    )
    for step in steps:
        if settings.output_history:
            history.append(step.canvas_BL)
    if not settings.return_dict_in_generate:
        return step.canvas_BL
    return DreamModelOutput(
        sequences=step.canvas_BL, history=tuple(history) if settings.output_history else None
    )


# Here and not in the class: the model lies below the loop that decodes it. `hub.load` imports this
# module, and so does the code of an exported folder.
DreamModel.diffusion_generate = diffusion_generate
DreamModel.generation_config = property(_own_settings, _set_own_settings)  # type: ignore[assignment]
