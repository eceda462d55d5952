"""The story writer: a llama2.c checkpoint read, cached decoding, splitting of text."""

from __future__ import annotations

import struct
from itertools import islice
from pathlib import Path

import pytest
import torch
from paths import SHARED

from softmask.puzzles.stories import load_writer, split_stories

REAL = SHARED / "models" / "stories260K"
HEADER = (16, 24, 2, 4, 2, 32, 48)  # width, hidden, layers, heads, kv heads, vocabulary, length


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    width, hidden, layers, heads, kv_heads, vocabulary, length = HEADER
    kv_width = width // heads * kv_heads
    size = vocabulary * width + layers * width * (2 + 2 * width + 2 * kv_width + 3 * hidden)
    size += width + length * (width // heads)
    weights = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 0.3
    raw = struct.pack("7i", *HEADER) + weights.numpy().tobytes()
    (tmp_path / "stories260K.bin").write_bytes(raw)
    pieces = b"".join(struct.pack("fi", 0.0, 8) + f"word{i:03d} ".encode() for i in range(32))
    (tmp_path / "tok512.bin").write_bytes(struct.pack("i", 8) + pieces)
    return tmp_path


def test_the_cache_gives_the_logits_of_a_pass_that_starts_over(folder: Path) -> None:
    writer = load_writer(folder)
    ids = torch.randint(0, 32, (3, 6), generator=torch.Generator().manual_seed(1))
    shape = (2, 2, 3, 2, 48, 4)
    cache = torch.zeros(shape)
    kept = [writer.step(ids[:, t], t, cache) for t in range(6)]
    for end in range(6):
        fresh = torch.zeros((2, 2, 1, 2, 48, 4))
        for t in range(end + 1):
            logits = writer.step(ids[1:2, t], t, fresh)
        torch.testing.assert_close(logits, kept[end][1:2])


def test_the_same_seed_writes_the_same_stories(folder: Path) -> None:
    writer = load_writer(folder)
    first = list(islice(writer.write(3, batch=8), 4))
    assert first == list(islice(writer.write(3, batch=8), 4))
    assert first != list(islice(writer.write(4, batch=8), 4))


def test_a_truncated_checkpoint_is_one_clear_sentence(folder: Path) -> None:
    path = folder / "stories260K.bin"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(ValueError, match="truncated"):
        load_writer(folder)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no llama2"):
        load_writer(folder)


def test_stories_split_at_separators_or_else_at_single_newlines() -> None:
    story = "Once upon a time there was a cat. " * 4
    assert split_stories(f"{story}\n<|endoftext|>\nShort.\n<|endoftext|>\n") == [
        story.strip(),
        "Short.",
    ]
    text = f"{story.strip()}\n\nA second paragraph.\n{story}\nstray\n"
    assert split_stories(text) == [f"{story.strip()}\n\nA second paragraph.", story.strip()]


@pytest.mark.skipif(not REAL.is_dir(), reason="the stories260K checkpoint is not beside us")
def test_the_real_writer_writes_english() -> None:
    story = next(load_writer(REAL).write(0, batch=8))
    common = {"the", "a", "and", "to", "was", "he", "she"}
    assert len(common & set(story.lower().split())) >= 4
