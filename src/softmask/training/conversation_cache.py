"""The cache of prepared conversations, addressed by content.

What decides the rows (settings, seed, tokenizer, bytes of the files or commit on the Hub) is
hashed into the name of their folder, so that changed data or settings never meet old rows:

    CACHE/conversations/KEY/{train,validation}     as `Dataset.save_to_disk` writes them
    CACHE/conversations/KEY/counts.json            `Counts` of each part, and a digest of every file
    CACHE/conversations/KEY.*.tmp                  being made; after a kill, safe to delete

CACHE is `conversations.cache` of the recipe, else $SOFTMASK_CACHE, else ~/.cache/softmask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import expand_home, file_digest
from .config import ConversationConfig
from .conversation_rows import Counts
from .sources import ResolvedSource

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Part of the key: raise it when conversation_rows.py, messages.py, split.py, row_files.py or, in
# decoding, chat_template.py or control_names.py makes other rows of one input.
FORMAT = 5
# Settings that do not decide the rows, but the batches made of them or where they are kept.
NOT_OF_ROWS = ("cache", "extra_padding", "pad_multiple")
# A full disk, a quota, a limit on the size of files; pyarrow says no file name with them.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTS = ("train", "validation")
COUNTS = "counts.json"


class Conversations(NamedTuple):
    """Rows of `input_ids`, `prompt_length` and `id`, memory-mapped, and their counts by part.

    `id` is "path:row" (rows and lines count from 1; "path:split:row" on the Hub). In a stream it
    is "path:split:streamed row", the place in the stream that the seed shuffled.
    """

    train: Dataset
    validation: Dataset
    counts: dict[str, Counts]


def folder_of(
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    sources: list[ResolvedSource],
) -> Path:
    """The folder of the rows that these decide; it need not exist.

    Raises:
        ValueError: the tokenizer is no fast one.
    """
    # A revision means a commit, which the identity has: a run that has just been pinned to that of
    # its preview finds the rows of the preview.
    named = tuple(dataclasses.replace(source, revision=None) for source in config.sources)
    config = dataclasses.replace(config, sources=named)
    settings = dataclasses.asdict(config) | {"seed": seed}
    decides = {
        "format": FORMAT,
        "settings": {k: v for k, v in settings.items() if k not in NOT_OF_ROWS},
        "tokenizer": _tokenizer_content(tokenizer),
        "sources": [source.identity for source in sources],
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    root = config.cache or os.environ.get("SOFTMASK_CACHE") or "~/.cache/softmask"
    return expand_home(root) / "conversations" / key


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{type(tokenizer).__name__} is no fast tokenizer: take one with a tokenizer.json"
        )
    content = json.loads(backend.to_str())
    # Left behind by calls: how the last text was truncated and padded.
    content.pop("truncation", None)
    content.pop("padding", None)
    return {
        "backend": content,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "mask": tokenizer.mask_token_id,
        "split_special": tokenizer.split_special_tokens,
        "template": tokenizer.chat_template,
    }


def read(folder: Path) -> Conversations | None:
    """What the folder holds; None where it does not exist, or not as it was written."""
    try:
        notes = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        whole = all(file_digest(folder / name) == known for name, known in notes["files"].items())
        counts = {part: Counts(**notes[part]) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole:
        return None
    from datasets import load_from_disk

    parts: Any = {part: load_from_disk(str(folder / part)) for part in PARTS}
    return Conversations(**parts, counts=counts)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside the final one, on the same file system: a rename publishes it.

    Raises:
        ValueError: the cache cannot be written.
    """
    path = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
        yield path
    except OSError as error:
        # Inside the block only a full disk is the cache's: sources are read there too.
        if path is not None and error.errno not in FULL:
            raise
        raise ValueError(
            f"cannot write to the cache {folder.parent} ({error.strerror}): make room there, or "
            "set conversations.cache or SOFTMASK_CACHE to another folder"
        ) from error
    finally:
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)


def publish(made: Path, folder: Path, aside: Path) -> None:
    """Renames `made` to `folder`, unless another process has done so.

    A damaged folder of that name is renamed to `aside`.
    """
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.exists():
            raise
        if read(folder) is None:
            os.rename(folder, aside)
            publish(made, folder, aside)
