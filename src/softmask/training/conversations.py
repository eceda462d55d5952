"""load_conversations(): chats from files and the Hub become tokenised rows, cached by content.

    sources -> split -> seeded draw -> chat template -> tokens -> what is left out -> cache

A row trains on its last message, the answer; everything before it is the prompt. What decides
the rows (settings, seed, tokenizer, bytes of the files or commit on the Hub) is the name of
their folder in the cache, so that changed data or settings never meet old rows:

    CACHE/conversations/KEY/{train,validation}     as `Dataset.save_to_disk` writes them
    CACHE/conversations/KEY/counts.json            the report, and a digest of every file
    CACHE/conversations/KEY.*.tmp                  being made; after a kill, safe to delete

CACHE is `conversations.cache` of the recipe, else $SOFTMASK_CACHE, else ~/.cache/softmask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..config import require
from .config import ConversationConfig
from .sources import (
    BATCH,
    Located,
    Messages,
    Place,
    Rows,
    file_digest,
    find_source,
    hub_errors,
    in_batches,
    open_source,
    write_arrow,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Part of the key: raise it whenever this file makes other rows of the same input.
FORMAT = 1
# Settings that decide batches or places, not rows.
NOT_OF_ROWS = ("cache", "extra_padding", "pad_multiple")
TOOL_CALLS = ("<tool_call>", "</tool_call>")
PARTS = ("train", "validation")
REASONS = {
    "incomplete": "fewer than two messages, null or broken text, or no answer at the end",
    "template": "the template refuses the chat, or the prompt's text does not begin the whole's",
    "too long": "more than max_length tokens",
    "short answer": "an answer of fewer than min_response tokens",
    "tool calls": "<tool_call> tokens; see drop_tool_calls",
    "mask token": "the text holds the mask token itself",
    "in validation": "the same tokens as a row of the validation part",
}


@dataclass
class Counts:
    """What became of the conversations that were drawn."""

    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    response_tokens: int = 0

    @property
    def drawn(self) -> int:
        return self.kept + sum(self.left_out.values())

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def reasons(self) -> str:
        return ", ".join(f"{r} {self.left_out[r]:,}" for r in REASONS if r in self.left_out)

    def add(self, reason: str | None, prompt: int, whole: int) -> None:
        """Counts a row of so many tokens."""
        if reason is not None:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return
        self.kept += 1
        self.prompt_tokens += prompt
        self.response_tokens += whole - prompt

    def __str__(self) -> str:
        left_out = f"{self.drawn - self.kept:,} left out"
        left_out += f" ({self.reasons})" if self.left_out else ""
        return (
            f"{self.kept:,} conversations, {left_out}; tokens: {self.prompt_tokens:,} in prompts, "
            f"{self.response_tokens:,} in responses, {self.tokens:,} in all"
        )


class Conversations(NamedTuple):
    """Rows of `input_ids`, `prompt_length` and `id`, memory-mapped, and what they hold.

    `id` is "path:row" (rows and lines count from 1; "path:split:row" on the Hub). In a stream it
    is "path:split:streamed row", the place in the stream that the seed shuffled.
    """

    train: Dataset
    validation: Dataset
    counts: dict[str, Counts]


def load_conversations(
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    report: Callable[[str], None] = print,
) -> Conversations:
    """Tokenised conversations, from the cache where the same were made before.

    Args:
        tokenizer: a fast one with a chat template.
        seed: of the split and the order, where `config.seed` is null.
        report: gets a line for each part, and one for files of a folder that are not read.

    Raises:
        ValueError: one sentence on what is wrong with a source, a row, the tokenizer or the
            cache's folder, or that nothing is left for one of the parts.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError("conversations need datasets: pip install 'softmask[train]'")
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template: take the checkpoint of an instruct model, or put "
            "a chat_template.jinja into its folder"
        )
    seed = seed if config.seed is None else config.seed
    require(seed >= 0, f"seed must be at least 0, not {seed}")
    places = [find_source(source, report) for source in config.sources]
    key = _key(config, tokenizer, seed, places)
    folder = _cache_root(config) / "conversations" / key
    found = _cached(folder)
    origin = "from the cache"
    if found is None:
        origin = "newly tokenised"
        with _temporary(folder) as temporary, _bars_on_terminals():
            _build(config, tokenizer, seed, places, temporary)
            _publish(temporary / "result", folder, temporary / "damaged")
        found = _cached(folder)
        assert found is not None, folder
    for part in PARTS:
        report(f"{part}, {origin}: {found.counts[part]}")
    return found


# The cache.


def _key(
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    places: list[Place],
) -> str:
    settings = dataclasses.asdict(config) | {"seed": seed}
    decides = {
        "format": FORMAT,
        "settings": {k: v for k, v in settings.items() if k not in NOT_OF_ROWS},
        "tokenizer": _tokenizer_content(tokenizer),
        "sources": [place.identity for place in places],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer: take one with a tokenizer.json"
        )
    content = json.loads(backend.to_str())
    # Calls leave these behind: they say how the last text was cut and padded.
    content.pop("truncation", None)
    content.pop("padding", None)
    return {
        "backend": content,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "mask": tokenizer.mask_token_id,
        "split_special": tokenizer.split_special_tokens,
        "template": tokenizer.chat_template,
    }


def _cache_root(config: ConversationConfig) -> Path:
    root = config.cache or os.environ.get("SOFTMASK_CACHE") or "~/.cache/softmask"
    return Path(root).expanduser()


def _cached(folder: Path) -> Conversations | None:
    """What the folder holds; None where it is not there, or not as it was written."""
    try:
        notes = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        whole = all(file_digest(folder / name) == known for name, known in notes["files"].items())
        counts = {part: Counts(**notes[part]) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole:
        return None
    from datasets import load_from_disk

    return Conversations(*(load_from_disk(str(folder / part)) for part in PARTS), counts)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is made, so that a rename is all that publishes it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
    except OSError as error:
        raise ValueError(
            f"cannot write to the cache {folder.parent} ({error.strerror}): set "
            "conversations.cache or SOFTMASK_CACHE to another folder"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _publish(made: Path, folder: Path, aside: Path) -> None:
    """Renames `made` to `folder`, unless another process was first; damaged ones go `aside`."""
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.exists():
            raise
        if _cached(folder) is None:
            os.rename(folder, aside)
            _publish(made, folder, aside)


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """No progress bars of datasets in a log file."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _build(
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    places: list[Place],
    temporary: Path,
) -> None:
    """Writes temporary/result. Validation first: what it holds must not come in training."""
    sources = [open_source(place, i, config.streaming, temporary) for i, place in enumerate(places)]
    draw = _draw_streams if config.streaming else _draw_rows
    validation, train = draw(sources, config, seed)
    held_out: set[bytes] = set()
    result = temporary / "result"
    notes: dict[str, Any] = {}
    for part, drawn in (("validation", validation), ("train", train)):
        counts = Counts()
        batches = _tokenised(drawn, config, tokenizer, counts, held_out)
        rows = write_arrow(temporary / part, batches)
        _require_rows(part, counts, config)
        rows.save_to_disk(str(result / part))
        notes[part] = dataclasses.asdict(counts)
        held_out = {_content(row["input_ids"]) for row in rows} if part == "validation" else set()
    files = sorted(f for f in result.rglob("*") if f.is_file())
    notes["files"] = {str(f.relative_to(result)): file_digest(f) for f in files}
    (result / "counts.json").write_text(json.dumps(notes, indent=1), encoding="utf-8")


def _require_rows(part: str, counts: Counts, config: ConversationConfig) -> None:
    if counts.kept:
        return
    if not counts.drawn:
        other = "validation_samples" if config.streaming else "validation_share"
        raise ValueError(
            f"no conversation is there to draw for {part}: give more of them, or change {other}"
        )
    most = max(counts.left_out, key=lambda reason: counts.left_out[reason])
    raise ValueError(
        f"no conversation is left for {part} of {counts.drawn:,} drawn ({counts.reasons}; {most} "
        f"means: {REASONS[most]}): change the filter's settings or the sources"
    )


# What is drawn.


def _draw_rows(
    sources: list[tuple[Rows, Rows | None]], config: ConversationConfig, seed: int
) -> tuple[Iterator[Located], Iterator[Located]]:
    """Validation and train, in seeded order. A source is split alike whatever follows it."""
    trains, validations = [], []
    for i, (train, validation) in enumerate(sources):
        numbers = np.arange(len(train.data))
        if validation is not None:
            validations.append((validation, np.arange(len(validation.data))))
        else:
            numbers = np.random.default_rng([seed, 0, i]).permutation(numbers)
            held_out = max(1, round(config.validation_share * len(numbers)))
            validations.append((train, numbers[:held_out]))
            numbers = numbers[held_out:]
        trains.append((train, numbers))
    return (
        _at_random(validations, config.validation_samples, [seed, 1]),
        _at_random(trains, config.max_samples, [seed, 2]),
    )


def _at_random(
    choices: list[tuple[Rows, np.ndarray]], limit: int | None, seed: list[int]
) -> Iterator[Located]:
    """At most `limit` of the rows with these numbers, of all sources together, shuffled."""
    owners = np.repeat(np.arange(len(choices)), [len(numbers) for _, numbers in choices])
    rows = np.concatenate([numbers for _, numbers in choices])
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        found: dict[int, Located] = {}
        for i, (split, _) in enumerate(choices):
            mine = places[owners[places] == i]
            numbers = rows[mine].tolist()
            if numbers:
                columns = split.data[numbers]
                for j, (place, number) in enumerate(zip(mine.tolist(), numbers, strict=True)):
                    row = {name: column[j] for name, column in columns.items()}
                    found[place] = split.located(number + 1, row)
        yield from (found[place] for place in places.tolist())


def _draw_streams(
    sources: list[tuple[Rows, Rows | None]], config: ConversationConfig, seed: int
) -> tuple[Iterator[Located], Iterator[Located]]:
    """Validation and train; the first must be drained first, as both may read one stream.

    Sources take turns, as no stream says how long it is.
    """
    share = -(-config.validation_samples // len(sources))
    trains, validations = [], []
    for train, validation in sources:
        stream = _stream(train, config.shuffle_buffer, seed)
        trains.append(stream)
        if validation is None:
            validations.append(itertools.islice(stream, share))
        else:
            validations.append(_stream(validation, config.shuffle_buffer, seed))
    return (
        itertools.islice(_take_turns(validations), config.validation_samples),
        itertools.islice(_take_turns(trains), config.max_samples),
    )


def _stream(rows: Rows, buffer: int, seed: int) -> Iterator[Located]:
    def read() -> Iterator[dict[str, Any]]:
        with hub_errors(rows.source):
            yield from rows.data.shuffle(seed=seed, buffer_size=buffer)

    for number, row in enumerate(read(), 1):
        yield rows.located(f"streamed {number}", row)


def _take_turns(streams: list[Iterator[Located]]) -> Iterator[Located]:
    while streams:
        going = []
        for stream in streams:
            for value in itertools.islice(stream, 1):
                going.append(stream)
                yield value
        streams = going


# From messages to rows.


def _tokenised(
    drawn: Iterator[Located],
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counts,
    held_out: set[bytes],
) -> Iterator[dict[str, list[Any]]]:
    """Columns of the rows that are kept, in batches; `counts` follows.

    Text first, then tokens, as `apply_chat_template` does, but all of a batch at once in the
    tokenizer's threads. Its own `tokenize=True` answers a mapping since transformers 5.
    """
    from datasets.utils import tqdm

    vocabulary = tokenizer.get_vocab()
    tools = {vocabulary[t] for t in TOOL_CALLS if config.drop_tool_calls and t in vocabulary}
    with tqdm(desc="Tokenising", unit=" conversations", disable=None) as bar:
        for batch in in_batches(drawn):
            columns: dict[str, list[Any]] = {"input_ids": [], "prompt_length": [], "id": []}
            rendered = [_rendered(messages, tokenizer) for _, messages in batch]
            reasons, *texts = zip(*rendered, strict=True)
            # verbose: no advice about model_max_length, where our max_length decides.
            options = {"add_special_tokens": False, "return_attention_mask": False}
            ids = tokenizer([*texts[0], *texts[1]], verbose=False, **options)["input_ids"]
            prompts, wholes = ids[: len(batch)], ids[len(batch) :]
            for (where, _), reason, texts_of, prompt, whole in zip(
                batch, reasons, zip(*texts, strict=True), prompts, wholes, strict=True
            ):
                length = _prompt_length(texts_of, prompt, whole, tokenizer)
                reason = reason or _reason(length, whole, config, tools, tokenizer.mask_token_id)
                if reason is None and _content(whole) in held_out:
                    reason = "in validation"
                if reason is None:
                    for name, value in zip(columns, (whole, length, where), strict=True):
                        columns[name].append(value)
                counts.add(reason, length or 0, len(whole))
            yield columns
            bar.update(len(batch))


def _content(ids: list[int]) -> bytes:
    return hashlib.sha256(array("i", ids).tobytes()).digest()


def _rendered(
    messages: Messages | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[str | None, str, str]:
    """The reason why the chat is left out already, the prompt's text and the whole's."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if messages is None:
        return "incomplete", "", ""
    render = functools.partial(tokenizer.apply_chat_template, tokenize=False)
    try:
        return None, render(messages[:-1], add_generation_prompt=True), render(messages)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is broken ({error}): correct it") from error
    except TemplateError:  # raise_exception() in the template, such as for two users in a row
        return "template", "", ""


def _prompt_length(
    texts: tuple[str, str],
    prompt: list[int],
    whole: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> int | None:
    """Tokens of the whole row that touch the prompt's text; None: it does not begin with that.

    An answer that begins with a line break makes one token, "\\n\\n", across the border. It is the
    prompt's, as in the published count.
    """
    prompt_text, whole_text = texts
    if not whole_text.startswith(prompt_text):
        return None
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    offsets = tokenizer(whole_text, verbose=False, **options)["offset_mapping"]
    return sum(start < len(prompt_text) for start, _ in offsets)


def _reason(
    prompt_length: int | None,
    whole: list[int],
    config: ConversationConfig,
    tools: set[int],
    mask_id: int | None,
) -> str | None:
    """Why a row is left out; None: it is kept."""
    if prompt_length is None:
        return "template"
    if len(whole) > config.max_length:
        return "too long"
    if len(whole) - prompt_length < config.min_response:
        return "short answer"
    if not tools.isdisjoint(whole):
        return "tool calls"
    # It would be a position to predict in the prompt, and a target that is never sampled.
    return "mask token" if mask_id in whole else None
