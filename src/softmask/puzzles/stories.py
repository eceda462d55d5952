"""Training text without limit: a 260 K-parameter Llama writes children's stories on a CPU.

    python -m softmask.puzzles.stories karpathy/tinyllamas runs/text/written.txt --megabytes 2

Reads the checkpoints of karpathy/llama2.c (legacy float32 format) and its tokenizer. Stories are
separated by lines of <|endoftext|>, the form that `data.text` in a recipe names.
Shape suffixes: B rows, T positions, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from torch import Tensor

SEPARATOR = "<|endoftext|>"
BEGIN_ID, END_ID = 1, 2
# A story that stops sooner is a fragment, not a story.
SHORTEST = 200
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")


def split_documents(text: str) -> list[str]:
    """Documents of a text: what stands between <|endoftext|>; without any, all of it."""
    return [one.strip() for one in text.split(SEPARATOR) if one.strip()]


def split_stories(text: str) -> list[str]:
    """Stories of a text: separated by <|endoftext|>, or, without any, by single newlines.

    In the second form (the TinyStories samples) an empty line separates the paragraphs of one
    story, and what is shorter than 100 characters is a stray line, not a story.
    """
    if SEPARATOR in text:
        return split_documents(text)
    parts = re.split(r"(?<!\n)\n(?!\n)", text)
    return [story.strip() for story in parts if len(story.strip()) > 100]


def join_stories(stories: Sequence[str]) -> str:
    """A text that `split_documents` splits into these."""
    return f"\n{SEPARATOR}\n".join(stories)


class StoryWriter:
    """A Llama with a key/value cache, batched, for sampling only."""

    def __init__(self, header: tuple[int, ...], weights: Tensor, pieces: list[bytes]) -> None:
        self.width, hidden, self.layers, self.heads, self.kv_heads, vocabulary, self.length = header
        self.vocabulary = abs(vocabulary)  # a negative size marks a head of its own
        self.pieces = pieces
        self.head_width = self.width // self.heads
        kv_width = self.kv_heads * self.head_width
        taken = 0

        def take(*shape: int) -> Tensor:
            nonlocal taken
            size = torch.Size(shape).numel()
            taken += size
            if taken > len(weights):
                raise ValueError("the story writer's checkpoint is truncated: fetch it again")
            return weights[taken - size : taken].view(shape)

        layers, width = self.layers, self.width
        self.embedding_VD = take(self.vocabulary, width)
        self.attention_norm = take(layers, width)
        query, key, value = (take(layers, size, width) for size in (width, kv_width, kv_width))
        self.qkv = torch.cat([query, key, value], dim=1)
        self.out = take(layers, width, width)
        self.mlp_norm = take(layers, width)
        gate, self.down, up = (
            take(layers, hidden, width),
            take(layers, width, hidden),
            take(layers, hidden, width),
        )
        self.gate_up = torch.cat([gate, up], dim=1)
        self.norm_D = take(width)
        take(2, self.length, self.head_width // 2)  # rotary tables, recomputed below
        self.head_VD = self.embedding_VD if vocabulary > 0 else take(self.vocabulary, width)
        pairs = torch.arange(0, self.head_width, 2) / self.head_width
        angles = torch.outer(torch.arange(self.length).float(), 10000.0**-pairs)
        self.cos, self.sin = angles.cos(), angles.sin()

    def _rotate(self, x_BHD: Tensor, position: int) -> Tensor:
        """Rotary embedding of neighbouring pairs, llama2.c's interleaved layout."""
        even, odd = x_BHD[..., 0::2], x_BHD[..., 1::2]
        cos, sin = self.cos[position], self.sin[position]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def step(self, ids_B: Tensor, position: int, cache: Tensor) -> Tensor:
        """(B, V) logits after one more token; writes `cache` (2, layers, B, H, T, D) in place."""
        batch = len(ids_B)
        kv_width = self.kv_heads * self.head_width
        x_BD = self.embedding_VD[ids_B]
        for layer in range(self.layers):
            normed = _rms_norm(x_BD, self.attention_norm[layer])
            q, k, v = (normed @ self.qkv[layer].T).split([self.width, kv_width, kv_width], -1)
            q = self._rotate(q.view(batch, self.heads, -1), position)
            cache[0, layer, :, :, position] = self._rotate(
                k.view(batch, self.kv_heads, -1), position
            )
            cache[1, layer, :, :, position] = v.view(batch, self.kv_heads, -1)
            keys, values = cache[:, layer, :, :, : position + 1]
            # The query heads of one key head stand as a sequence of queries.
            grouped = q.view(batch, self.kv_heads, -1, self.head_width)
            attended = F.scaled_dot_product_attention(grouped, keys, values)
            x_BD = x_BD + attended.reshape(batch, self.width) @ self.out[layer].T
            normed = _rms_norm(x_BD, self.mlp_norm[layer])
            gate, up = (normed @ self.gate_up[layer].T).chunk(2, -1)
            x_BD = x_BD + (F.silu(gate) * up) @ self.down[layer].T
        return _rms_norm(x_BD, self.norm_D) @ self.head_VD.T

    @torch.inference_mode()
    def write(
        self, seed: int, *, temperature: float = 0.8, top_p: float = 0.95, batch: int = 256
    ) -> Iterator[str]:
        """Endless stories; only those that ended by themselves and are no fragments."""
        generator = torch.Generator().manual_seed(seed)
        shape = (2, self.layers, batch, self.kv_heads, self.length, self.head_width)
        while True:
            cache = torch.zeros(shape)
            ids_BT = torch.zeros(batch, self.length, dtype=torch.long)
            current_B = torch.full((batch,), BEGIN_ID)
            ends_B = torch.full((batch,), -1)
            for position in range(self.length - 1):
                probs_BV = (self.step(current_B, position, cache) / temperature).softmax(-1)
                ordered, order = probs_BV.sort(-1, descending=True)
                ordered[ordered.cumsum(-1) - ordered > top_p] = 0
                drawn = torch.multinomial(ordered, 1, generator=generator)
                current_B = order.gather(1, drawn).squeeze(1)
                ids_BT[:, position] = current_B
                ended_B = (current_B == BEGIN_ID) | (current_B == END_ID)
                ends_B[ended_B & (ends_B < 0)] = position
                if bool((ends_B >= 0).all()):
                    break
            for ids_T, end in zip(ids_BT.tolist(), ends_B.tolist(), strict=True):
                story = self.decode(ids_T[: max(end, 0)])
                if len(story) >= SHORTEST:
                    yield story

    def decode(self, ids: list[int]) -> str:
        """Text of token ids; byte pieces such as <0x0A> are bytes."""
        raw = b"".join(self.pieces[i] for i in ids)
        raw = _BYTE.sub(lambda found: bytes([int(found[1], 16)]), raw)
        return raw.decode("utf-8", errors="ignore").strip()


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def load_writer(source: str | Path) -> StoryWriter:
    """Reads `stories260K.bin` and `tok512.bin` from a folder or a Hub repository.

    Raises:
        ValueError: a file is truncated or of another format.
    """
    folder = Path(source)
    names = ("stories260K.bin", "tok512.bin")
    if folder.is_dir():
        weights_file, pieces_file = (folder / name for name in names)
    else:
        weights_file, pieces_file = (
            Path(hf_hub_download(str(source), f"stories260K/{name}")) for name in names
        )
    for path in (weights_file, pieces_file):
        if not path.is_file():
            raise ValueError(f"no story writer in {folder}: {path.name} is missing")
    raw = weights_file.read_bytes()
    header = struct.unpack("7i", raw[:28]) if len(raw) > 28 and len(raw) % 4 == 0 else (0,) * 7
    if min(header[:5]) < 1 or header[0] > 8192:
        raise ValueError(f"{weights_file} is no llama2.c checkpoint: fetch it again")
    weights = torch.frombuffer(bytearray(raw[28:]), dtype=torch.float32)
    return StoryWriter(header, weights, _read_pieces(pieces_file, abs(header[5])))


def _read_pieces(path: Path, count: int) -> list[bytes]:
    raw, at, pieces = path.read_bytes(), 4, []
    for _ in range(count):
        if at + 8 > len(raw):
            raise ValueError(f"{path} is truncated: fetch it again")
        _score, size = struct.unpack("fi", raw[at : at + 8])
        pieces.append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    return pieces


def main() -> None:
    """Writes stories to a file until it is large enough."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("writer", help="folder or Hub id with stories260K.bin and tok512.bin")
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    writer = load_writer(args.writer)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with args.out.open("w", encoding="utf-8") as out:
        for story in writer.write(args.seed):
            written += out.write(f"{story}\n{SEPARATOR}\n")
            if written >= args.megabytes * 1e6:
                break


if __name__ == "__main__":
    main()
