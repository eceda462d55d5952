"""A GGUF file's tokenizer: byte-level BPE as llama.cpp's converter writes it, and back.

Where softmask wrote the file, it holds tokenizer.json as a whole. Of others the pieces of a text
are known by a name alone (`tokenizer.ggml.pre`), see `families/gguf.py`. transformers makes such
tokenizers too, but cuts Llama 3's texts by GPT-2's pattern, which gives other ids.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast

from ..config import shown
from ..families import gguf as facts
from ..families.registry import by_name
from ..models import DreamConfig
from ..models.checkpoint import Source
from .gguf_file import GgufHead
from .tokenizer_files import explained, make_tokenizer


def read_gguf_tokenizer(head: GgufHead, config: DreamConfig) -> PreTrainedTokenizerFast:
    """The tokenizer in a file.

    Raises:
        ValueError: there is none, it is of another kind, it cuts texts in a way that is not known
            here, it is damaged, or it does not fit the config.
    """
    tokens, kinds = _list(head, "tokens", str), _list(head, "token_type", int)
    if len(tokens) != len(kinds) or len(tokens) > config.vocab_size:
        raise ValueError(
            f"{head.path} is damaged ({len(tokens)} tokens, {len(kinds)} kinds of them, and a "
            f"table of {config.vocab_size}): copy it again"
        )
    text = head.values.get(facts.TOKENIZER_JSON)
    if isinstance(text, str):
        made = explained(head.path, lambda: Tokenizer.from_str(text))
    else:
        make = _maker(head, tokens, kinds)
        made = explained(head.path, make)
    values: dict[str, Any] = {
        "added_tokens_decoder": {
            str(token.pop("id")): token for token in json.loads(made.to_str())["added_tokens"]
        },
        "chat_template": head.values.get(facts.TEMPLATE),
    }
    for name, key in facts.NAMED_IDS.items():
        id_ = head.values.get(f"{facts.TOKENIZER}.{key}")
        if id_ is None:
            continue
        if type(id_) is not int or not 0 <= id_ < len(tokens):
            raise ValueError(f"{head.path}: {key} is {shown(id_)}: correct it, or convert it anew")
        # Others would become control tokens by being named: the mask, say, of a damaged id.
        if kinds[id_] in (facts.CONTROL, facts.USER_DEFINED):
            values[name] = tokens[id_]
    return make_tokenizer(head.path, values, head.path, {"tokenizer_object": made}, config)


def _list(head: GgufHead, key: str, kind: type) -> list[Any]:
    found = head.values.get(f"{facts.TOKENIZER}.{key}")
    if not isinstance(found, list) or not all(type(item) is kind for item in found):
        raise ValueError(
            f"{head.path} has no {facts.TOKENIZER}.{key}: give a file with a tokenizer"
        )
    return found


def _maker(head: GgufHead, tokens: list[str], kinds: list[int]) -> Callable[[], Tokenizer]:
    """What makes the tokenizer of what llama.cpp's converter writes, its kind known."""
    model, name = (head.values.get(f"{facts.TOKENIZER}.{key}") for key in ("model", "pre"))
    if model != facts.TOKENIZER_MODEL:
        raise ValueError(
            f"{head.path} has a tokenizer of the kind {shown(model)}, and softmask reads "
            f"byte-level BPE ({facts.TOKENIZER_MODEL}): take the model's folder"
        )
    cut = facts.cut_named(name) if isinstance(name, str) else None
    if cut is None:
        raise ValueError(
            f"{head.path} has a tokenizer that cuts texts as {shown(name)}, and softmask knows "
            f"{', '.join(facts.CUTS)}: take the model's folder"
        )
    return functools.partial(_made, tokens, kinds, _list(head, "merges", str), cut)


def _made(tokens: list[str], kinds: list[int], lines: list[str], cut: facts.Cut) -> Tokenizer:
    merges: Any = [tuple(line.split(" ")) for line in lines]
    # Added ones too, which by their texts keep their ids; no merge makes them.
    vocabulary = {token: id_ for id_, token in enumerate(tokens) if kinds[id_] != facts.UNUSED}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut.whole))
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.pattern is None)
    if cut.pattern is None:
        tokenizer.pre_tokenizer = as_bytes
    else:
        split = pre_tokenizers.Split(Regex(cut.pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == facts.CONTROL)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (facts.CONTROL, facts.USER_DEFINED)
        ]
    )
    return tokenizer


def tokenizer_metadata(source: Source) -> dict[str, Any]:
    """The metadata of a file for a checkpoint's tokenizer.

    Raises:
        ValueError: llama.cpp knows no name for how it cuts texts.
    """
    tokenizer, config = source.tokenizer, source.config
    backend: Any = tokenizer.backend_tokenizer
    text = backend.to_str()
    described = json.loads(text)
    name = facts.cut_of(_pattern(described["pre_tokenizer"]))
    if name is None:
        raise ValueError(
            f"{source.name}: llama.cpp has no name for how its tokenizer cuts texts, of those that "
            f"softmask knows ({', '.join(facts.CUTS)}): it cannot be written as GGUF"
        )
    names = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for id_ in range(config.vocab_size):
        tokens.append(names.get(id_, f"[PAD{id_}]"))
        kind = facts.NORMAL if id_ in names else facts.UNUSED
        if id_ in added:
            kind = facts.CONTROL if added[id_].special else facts.USER_DEFINED
        kinds.append(kind)
    merges = described["model"]["merges"]
    values: dict[str, Any] = {
        f"{facts.TOKENIZER}.model": facts.TOKENIZER_MODEL,
        f"{facts.TOKENIZER}.pre": name,
        f"{facts.TOKENIZER}.tokens": tokens,
        f"{facts.TOKENIZER}.token_type": kinds,
        f"{facts.TOKENIZER}.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        f"{facts.TOKENIZER}.add_bos_token": by_name(config.family).bos,
        facts.TOKENIZER_JSON: text,
    }
    for key, field in facts.NAMED_IDS.items():
        named: int | None = getattr(tokenizer, f"{key}_id")
        named = config.mask_token_id if key == "mask_token" else named
        if named is not None:
            values[f"{facts.TOKENIZER}.{field}"] = named
    if tokenizer.chat_template is not None:
        values[facts.TEMPLATE] = tokenizer.chat_template
    return values


def _pattern(described: dict[str, Any] | None) -> str | None:
    """By what a tokenizer.json cuts texts; None: by GPT-2's own pattern; "": by none of one."""
    steps = (described or {}).get("pretokenizers") or [described or {}]
    splits = [step for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if len(levels) != 1 or len(splits) + 1 != len(steps) or levels[0].get("add_prefix_space"):
        return ""
    if not splits:
        return None if levels[0].get("use_regex") else ""
    whole = len(splits) == 1 and splits[0].get("behavior") == "Isolated"
    plain = whole and not splits[0].get("invert") and not levels[0].get("use_regex")
    return str(splits[0]["pattern"].get("Regex", "")) if plain else ""
