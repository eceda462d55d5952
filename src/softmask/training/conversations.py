"""load_conversations(): chats from files and the Hub become tokenised rows, cached by content.

sources.py -> split.py (seeded) -> conversation_rows.py (chat template, tokens, filter)
-> conversation_cache.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import require
from ..files import file_digest
from . import conversation_cache
from .config import ConversationConfig
from .conversation_cache import COUNTS, PARTS, Conversations
from .conversation_rows import REASONS, Counts, digest_of, tokenise
from .sources import ResolvedSource, open_source, resolve_source, write_arrow
from .split import split_rows, split_streams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def within(config: ConversationConfig, context: int) -> ConversationConfig:
    """The settings for a model of this context, which could not be asked for longer rows."""
    return dataclasses.replace(config, max_length=min(config.max_length, context))


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
        report: callback for lines of progress: one for each part, and one for files of a folder
            that are not read.

    Raises:
        ValueError: one sentence on what is wrong with a source, a row, the tokenizer or the
            cache's folder, or that nothing is left for one of the parts.
    """
    if importlib.util.find_spec("datasets") is None:
        raise ValueError("conversations need datasets: pip install 'softmask[train]'")
    seed = seed if config.seed is None else config.seed
    require(seed >= 0, f"seed must be at least 0, not {seed}")
    sources = [resolve_source(source, report) for source in config.sources]
    folder = conversation_cache.folder_of(config, tokenizer, seed, sources)
    found = conversation_cache.read(folder)
    origin = "from the cache"
    if found is None:
        origin = "newly tokenised"
        # A download from the Hub shows how far it is, on a terminal and not in a log file.
        quiet = _no_bars(not sys.stderr.isatty())
        with conversation_cache.temporary_folder(folder) as temporary, quiet:
            _build(config, tokenizer, seed, sources, temporary)
            conversation_cache.publish(temporary / "result", folder, temporary / "damaged")
        found = conversation_cache.read(folder)
        assert found is not None, folder
    for part in PARTS:
        report(f"{part}, {origin}: {found.counts[part]}")
    return found


@contextlib.contextmanager
def _no_bars(hide: bool = True) -> Iterator[None]:
    """No progress bars of datasets."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = hide and not are_progress_bars_disabled()
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
    sources: list[ResolvedSource],
    temporary: Path,
) -> None:
    """Writes temporary/result.

    Validation comes first: training must not have the same rows.
    """
    splits = [open_source(one, i, config.streaming, temporary) for i, one in enumerate(sources)]
    split = split_streams if config.streaming else split_rows
    validation, train = split(splits, config, seed)
    held_out: set[bytes] = set()
    result = temporary / "result"
    notes: dict[str, Any] = {}
    for part, drawn in (("validation", validation), ("train", train)):
        counts = Counts()
        batches = tokenise(drawn, config, tokenizer, counts, held_out)
        rows = write_arrow(temporary / part, batches)
        _require_rows(part, counts, config)
        with _no_bars():
            rows.save_to_disk(str(result / part))
        notes[part] = dataclasses.asdict(counts)
        held_out = {digest_of(row["input_ids"]) for row in rows} if part == "validation" else set()
    files = sorted(f for f in result.rglob("*") if f.is_file())
    notes["files"] = {str(f.relative_to(result)): file_digest(f) for f in files}
    (result / COUNTS).write_text(json.dumps(notes, indent=1), encoding="utf-8")


def _require_rows(part: str, counts: Counts, config: ConversationConfig) -> None:
    if counts.kept:
        return
    if not counts.drawn:
        other = "validation_samples" if config.streaming else "validation_share"
        raise ValueError(
            f"no conversation is there to draw for {part}: give more of them, or some for "
            f"validation by --valid (in a recipe: validation of the source, or {other})"
        )
    most = max(counts.left_out, key=lambda reason: counts.left_out[reason])
    raise ValueError(
        f"no conversation is left for {part} of {counts.drawn:,} drawn ({counts.reasons}; {most} "
        f"means: {REASONS[most]}): change the filter's settings or the sources"
    )
