"""A folder's tokenizer: `tokenizer.json` as it stands, or vocab.json and merges.txt as Qwen2 reads.

The files come from elsewhere. Of tokenizer_config.json only what is named below counts, each value
checked, and every token that a file gives an id must have that id in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from ..config import read_json, shown
from ..families.registry import by_name
from ..models import DreamConfig

T = TypeVar("T")
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
END_OF_TEXT = "<|endoftext|>"
SWITCHES = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
TOKENIZER_KEYS = (
    *NAMED,
    *SWITCHES,
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "extra_special_tokens",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
SIDES = ("left", "right")
SAMPLE = "Hello, 12 \u00e9t\u00e9s!"


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds files that a tokenizer can be made of."""
    whole = (folder / TOKENIZER).is_file()
    return whole or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))


def read_tokenizer(folder: Path, config: DreamConfig) -> PreTrainedTokenizerFast:
    """The folder's tokenizer.

    Raises:
        ValueError: there is none, a file is damaged, it is not byte-level BPE, or it does not fit
            the config. A mask that the config does not name is looked up by its family's token.
    """
    if not has_tokenizer(folder):
        raise ValueError(f"{folder} has no tokenizer: add vocab.json and merges.txt")
    values = _mapping(folder / TOKENIZER_CONFIG)
    if (folder / TOKENIZER).is_file():
        path = folder / TOKENIZER
        return make_tokenizer(folder, values, path, {"tokenizer_file": str(path)}, config)
    return make_tokenizer(folder, values, folder / "vocab.json", None, config)


def make_tokenizer(
    folder: Path,
    values: Mapping[str, Any],
    path: Path,
    given: Mapping[str, Any] | None,
    config: DreamConfig,
) -> PreTrainedTokenizerFast:
    """A tokenizer of what tokenizer_config.json says and of a vocabulary, checked.

    Args:
        folder: of its files, or the one file that holds all of them.
        values: of tokenizer_config.json.
        path: what a damaged vocabulary is named by.
        given: of what PreTrainedTokenizerFast makes it; None: vocab.json and merges.txt.
        config: of the model; gets the mask's id where it has none.

    Raises:
        ValueError: as `read_tokenizer`.
    """
    settings = _settings(folder, values)
    if settings["chat_template"] is not None:
        template = by_name(config.family).template
        settings["chat_template"] = template(settings["chat_template"])
    declared = _declared(folder, values, settings)
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    if given is None:
        words = _vocabulary(path, config)
        merges = _merges(folder / "merges.txt", words, declared)
        given, make = {"vocab": words, "merges": merges}, Qwen2Tokenizer
    tokenizer = explained(path, lambda: make(**given, **settings))
    vocabulary = tokenizer.get_vocab()  # once: a tenth of a second
    for name in ("eos_token", "pad_token"):  # as Qwen2Tokenizer does
        if name not in settings and END_OF_TEXT in vocabulary:
            setattr(tokenizer, name, END_OF_TEXT)
    _check_kind(path, tokenizer)
    _check_ids(folder, tokenizer, vocabulary, declared, config)
    return tokenizer


def explained(path: Path, make: Callable[[], T]) -> T:
    """What `make` gives; what the tokenizers library says of a file, in a sentence."""
    try:
        return make()
    except Exception as error:
        # The library raises the base class itself, and nothing narrower.
        if type(error) is not Exception and not isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} is damaged ({shown(str(error))}): copy it again") from error


def _mapping(path: Path) -> dict[str, Any]:
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged (no mapping): copy it again")
    return values


def _settings(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the tokenizer's class that tokenizer_config.json gives, checked."""
    path = folder / TOKENIZER_CONFIG
    settings: dict[str, Any] = {}
    legacy = (
        {} if "added_tokens_decoder" in values else _mapping(folder / "special_tokens_map.json")
    )
    for name in NAMED:
        if name in legacy or name in values:
            value = legacy.get(name, values.get(name))
            token = None if value is None else _token(value, f"{path}: {name}", special=True)
            settings[name] = token
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens")
    extra = legacy.get("additional_special_tokens") or extra or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise ValueError(f"{path}: extra_special_tokens must be a list, not {shown(extra)}")
    settings["extra_special_tokens"] = [
        _token(value, f"{path}: extra_special_tokens", special=True) for value in extra
    ]
    for name in SWITCHES:
        value = values.get(name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{path}: {name} must be true or false, not {shown(value)}")
        if value is not None:
            settings[name] = value
    if settings.pop("split_special_tokens", False):
        raise ValueError(f"{path}: split_special_tokens is true: control tokens would be text")
    for name in ("padding_side", "truncation_side"):
        value = values.get(name)
        if value is not None and value not in SIDES:
            raise ValueError(f"{path}: {name} must be left or right, not {shown(value)}")
        if value is not None:
            settings[name] = value
    longest: Any = values.get("model_max_length")
    number = isinstance(longest, int | float) and not isinstance(longest, bool)
    if number and longest > 0:
        settings["model_max_length"] = longest
    elif longest is not None:
        raise ValueError(f"{path}: model_max_length must be above 0, not {shown(longest)}")
    settings["chat_template"] = _template(folder, values.get("chat_template"))
    return settings


def _template(folder: Path, value: Any) -> str | None:
    """The chat template, of several the one called "default"."""
    if (folder / TEMPLATE).is_file():
        return _text(folder / TEMPLATE)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict):
        value = value.get("default", value)
    if value is not None and not isinstance(value, str):
        raise ValueError(
            f"{folder / TOKENIZER_CONFIG}: chat_template must be a text, or hold one named "
            f"'default', not {shown(value)}"
        )
    return value


def _token(value: Any, where: str, **defaults: Any) -> AddedToken:
    """A token as a file describes it: its text alone, or with how it is matched."""
    fields = dict(value) if isinstance(value, dict) else {"content": value}
    fields.pop("__type", None)
    content = fields.pop("content", None)
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    sound = all(key in flags and isinstance(flag, bool) for key, flag in fields.items())
    if not isinstance(content, str) or not content or not sound:
        raise ValueError(f"{where} must be a token, not {shown(value)}")
    return AddedToken(content, **{"normalized": False, **defaults, **fields})


def _declared(folder: Path, values: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, int]:
    """The ids that the files give to added tokens; `settings` get the tokens."""
    path = folder / TOKENIZER_CONFIG
    described = values.get("added_tokens_decoder")
    declared: dict[str, int] = {}
    tokens: dict[int, AddedToken] = {}
    if described is not None:
        for number, value in _items(described, f"{path}: added_tokens_decoder"):
            id_ = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else -1
            if id_ < 0:
                raise ValueError(f"{path}: added_tokens_decoder: {shown(number)} is no token id")
            tokens[id_] = _token(value, f"{path}: added_tokens_decoder")
            declared[str(tokens[id_].content)] = id_
    else:
        path = folder / "added_tokens.json"
        named = [settings.get(name) for name in NAMED] + settings["extra_special_tokens"]
        special = {token.content for token in named if token is not None}
        for content, id_ in _items(_mapping(path), str(path)):
            if type(id_) is not int or id_ < 0:
                raise ValueError(f"{path}: the id of {shown(content)} is {shown(id_)}: correct it")
            kind = content in special
            tokens[id_] = _token(content, str(path), special=kind, normalized=not kind)
            declared[content] = id_
    settings["added_tokens_decoder"] = dict(sorted(tokens.items()))
    # The tokens as their files describe them, where one is also named.
    for name in NAMED:
        token = settings.get(name)
        if token is not None and token.content in declared:
            settings[name] = tokens[declared[token.content]]
    return declared


def _items(values: Any, where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, not {shown(values)}")
    yield from values.items()


def _vocabulary(path: Path, config: DreamConfig) -> dict[str, int]:
    values = _mapping(path)
    seen = set(values.values()) if all(type(v) is int for v in values.values()) else set()
    inside = seen and min(seen) >= 0 and max(seen) < config.vocab_size
    if len(seen) != len(values) or not inside:
        raise ValueError(
            f"{path} is damaged: every token needs an id of its own below {config.vocab_size}"
        )
    return values


def _merges(
    path: Path, vocabulary: Mapping[str, int], declared: Mapping[str, int]
) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.startswith("#version") or not line.strip("\r"):
            continue
        first, _, second = line.rstrip("\r").partition(" ")
        known = all(part in vocabulary for part in (first, second, first + second))
        if not known or (first, second) in merges:
            raise ValueError(
                f"{path}, line {number}, joins no two tokens of vocab.json: copy both again"
            )
        merges[first, second] = None
    made = {first + second for first, second in merges}
    # A file that was cut off at a line would read every text another way.
    for token in vocabulary:
        if len(token) > 1 and token not in made and token not in declared:
            raise ValueError(f"{path} has no line that makes {shown(token)}: copy it again")
    return list(merges)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (no UTF-8): copy it again") from error


def _check_kind(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Texts are cut at token boundaries and put together again: bytes alone survive that."""
    backend: Any = tokenizer.backend_tokenizer
    bpe = isinstance(backend.model, models.BPE) and isinstance(backend.decoder, decoders.ByteLevel)
    if not bpe or backend.model.dropout:
        raise ValueError(f"{path} is no byte-level BPE, which softmask reads: take the model's own")
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    # But for spaces, which a file may ask for before every word (`add_prefix_space`).
    if "".join(str(tokenizer.decode(ids)).split()) != "".join(SAMPLE.split()):
        raise ValueError(f"{path} loses parts of a text when it reads it: copy it again")


def _check_ids(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: Mapping[str, int],
    declared: Mapping[str, int],
    config: DreamConfig,
) -> None:
    size = max(len(tokenizer), *(id_ + 1 for id_ in vocabulary.values()))
    if size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {size} tokens but the model {config.vocab_size}"
            ": take the tokenizer of the same checkpoint"
        )
    for content, id_ in declared.items():
        if vocabulary.get(content) != id_:
            raise ValueError(
                f"{folder}: {shown(content)} is token {id_} by one file, and "
                f"{vocabulary.get(content)} by the others: take the files of one checkpoint"
            )
    if config.mask_token_id is None:
        named = str(by_name(config.family).mask_token)
        if named not in vocabulary:
            raise ValueError(
                f"{folder}: neither the config nor the tokenizer has the mask token {named}: take "
                "the files of one checkpoint"
            )
        config.mask_token_id = vocabulary[named]
    mask = tokenizer.convert_ids_to_tokens(config.mask_token_id)
    if mask is None or mask not in tokenizer.get_added_vocab():
        raise ValueError(
            f"{folder}: the tokenizer has no mask token at id {config.mask_token_id}: take the "
            "tokenizer of the same checkpoint"
        )
    if vocabulary.get("<|expand|>") != config.expand_token_id:
        raise ValueError(
            f"{folder}: tokenizer and config do not agree on the id of <|expand|>, by which "
            "DreamOn grows its canvas: take the files of one checkpoint"
        )
