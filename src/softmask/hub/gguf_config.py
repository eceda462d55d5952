"""A GGUF file's metadata as a config, and a config as such metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import shown, soft_mask_to_published
from ..families import gguf as facts
from ..families.family import Family
from ..families.registry import FAMILY_KEY, as_family, by_name
from ..models import DreamConfig
from ..models.checkpoint import Source
from .config_file import config_from_file
from .gguf_file import GgufHead, family_of_gguf

# What factors of frequencies may differ by: they are in fp32, and computed by others.
TOLERANCE = 1e-4


def config_of(
    head: GgufHead, dtype: str, chosen: Family | None, factors: Sequence[float] | None
) -> DreamConfig:
    """The config that a file's metadata stand for.

    Args:
        dtype: that its weights are closest to.
        chosen: the family that a user says.
        factors: what the file's `rope_freqs` divide each frequency by, where it has them.

    Raises:
        ValueError: the model is of no known family, or a setting is missing or makes no sense.
    """
    family = family_of_gguf(head, chosen)
    architecture = head.architecture
    if family is None:
        raise ValueError(
            f"{head.path} holds a {architecture.name} model, as ordinary ones are too: say what it "
            f"is by --family {', '.join(facts.families_of(architecture))}"
        )
    own = head.own(facts.OWN_CONFIG)
    unknown = sorted(own.keys() - set(facts.OWN_KEYS))
    if unknown:
        raise ValueError(
            f"{head.path} says {shown(unknown[0])}, which this version of softmask does not know: "
            "update softmask"
        )
    values: dict[str, Any] = {}
    for name, key in facts.SHAPE.items():
        value = head.setting(key)
        if value is not None:
            values[name] = _rounded(value)
        elif name not in ("num_key_value_heads", "head_dim"):
            raise ValueError(
                f"{head.path} is damaged (it has no {architecture.name}.{key}): convert it anew"
            )
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    table = head.tensors.get(facts.gguf_name("model.embed_tokens.weight"))
    if table is None or len(table.shape) != 2:
        raise ValueError(f"{head.path} has no table of embeddings: give a file with a whole model")
    values |= {
        "vocab_size": table.shape[0],
        "tie_word_embeddings": facts.gguf_name("lm_head.weight") not in head.tensors,
        "rope_parameters": _rope(head, factors),
        "dtype": dtype,
    }
    for ours, key in (("bos", "bos_token"), ("eos", "eos_token"), ("pad", "pad_token")):
        values[f"{ours}_token_id"] = head.values.get(f"{facts.TOKENIZER}.{facts.NAMED_IDS[key]}")
    values["mask_token_id"] = head.values.get(f"{facts.TOKENIZER}.mask_token_id")
    values |= family.network | as_family(own, family)
    _check_shift(head, values)
    config = config_from_file(values, head.path)
    width = config.hidden_size // config.num_attention_heads
    width = getattr(config, "head_dim", None) or width
    for key in (facts.VALUE_LENGTH, facts.ROTATED_WIDTH):
        if head.setting(key) not in (None, width):
            raise ValueError(
                f"{head.path}: {key} is {shown(head.setting(key))}, and a head {width} wide: "
                "softmask has one width for both"
            )
    return config


def metadata_of(source: Source, architecture: facts.Architecture) -> dict[str, Any]:
    """The metadata of a file that holds this model, but for its tokenizer."""
    config, name = source.config, architecture.name
    values: dict[str, Any] = {"general.type": "model", facts.SHIFT: config.logit_shift}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for ours, key in facts.SHAPE.items():
        values[f"{name}.{key}"] = width if ours == "head_dim" else getattr(config, ours)
    values |= {
        f"{name}.{facts.VALUE_LENGTH}": width,
        f"{name}.{facts.ROTATED_WIDTH}": width,
        f"{name}.{facts.VOCABULARY}": config.vocab_size,
        f"{name}.{facts.CAUSAL}": False,
    }
    rope: dict[str, Any] = {**(config.rope_parameters or {})}  # Qwen2's configuration makes them
    kind = rope.get("rope_type", "default")
    for ours, key in facts.ROPE.items():
        value = rope.get(ours)
        # Llama 3's are factors of frequencies, a tensor.
        if value is not None and (ours == "rope_theta" or kind in ("linear", "yarn")):
            values[f"{name}.{key}"] = value if isinstance(value, str | int) else float(value)
    values[f"{name}.{facts.ROPE['rope_theta']}"] = float(rope["rope_theta"])
    own = {key: getattr(config, key) for key in facts.OWN_KEYS}
    soft = source.soft_mask
    own["transparency_config"] = None if soft is None else soft_mask_to_published(soft)
    values[facts.OWN_CONFIG] = json.dumps(own, sort_keys=True)
    return values


def rope_factors(config: DreamConfig) -> list[float] | None:
    """What each frequency is divided by, from Llama 3's settings; None: there are none such.

    Frequencies with waves longer than original / low are slower by `factor`, those shorter than
    original / high as they are, and between them it is a smooth mixture, as in transformers'
    `_compute_llama3_parameters`.
    """
    rope: dict[str, Any] = {**(config.rope_parameters or {})}  # Qwen2's configuration makes them
    if rope.get("rope_type") != "llama3":
        return None
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return _llama_3(rope, int(width))


def _llama_3(rope: Mapping[str, Any], width: int) -> list[float]:
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    found = []
    for pair in range(0, width, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (pair / width)
        share = (rope["original_max_position_embeddings"] / wave - low) / (high - low)
        share = min(max(share, 0.0), 1.0)
        found.append(1 / ((1 - share) / rope["factor"] + share))
    return found


def _rope(head: GgufHead, factors: Sequence[float] | None) -> dict[str, Any]:
    found = {name: head.setting(key) for name, key in facts.ROPE.items()}
    rope = {name: _rounded(value) for name, value in found.items() if value is not None}
    if rope.get("rope_type") == "none":
        rope = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    elif rope.get("rope_type") == "yarn":
        longest = head.setting(facts.SHAPE["max_position_embeddings"])
        rope.setdefault("original_max_position_embeddings", longest)
    elif "rope_type" not in rope:
        rope = {name: value for name, value in rope.items() if name == "rope_theta"}
    rope.setdefault("rope_theta", 10000.0)  # llama.cpp's default
    if factors is None:
        return rope
    said = head.own(facts.OWN_CONFIG).get("rope_parameters")
    guess = rope | facts.LLAMA_3 | {"rope_type": "llama3", "factor": max(factors)}
    guess = said if isinstance(said, dict) else guess
    try:
        wanted = _llama_3(guess, 2 * len(factors))
        same = all(
            math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(wanted, factors, strict=True)
        )
    except (KeyError, TypeError, ArithmeticError):
        same = False
    if not same:
        raise ValueError(
            f"{head.path} stretches its rotary embedding by factors that are not those of Llama 3: "
            "take the model's folder in place of the GGUF file"
        )
    return guess


def _check_shift(head: GgufHead, values: Mapping[str, Any]) -> None:
    said, ours = head.values.get(facts.SHIFT), values.get("logit_shift", True)
    if said is not None and said is not ours:
        title = by_name(values[FAMILY_KEY]).title
        raise ValueError(
            f"{head.path} says {facts.SHIFT} {shown(said)}, and {title} has {shown(ours)}: say "
            f"what it is by --family {', '.join(facts.families_of(head.architecture))}"
        )


def _rounded(value: Any) -> Any:
    """A number as it was before fp32 cut it: 1e-6 is 9.999999974752427e-07 there."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
