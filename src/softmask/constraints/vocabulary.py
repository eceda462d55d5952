"""The bytes that each token of a tokenizer adds to a text."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A token is decoded behind this one where a tokenizer treats the first of a text differently.
ANCHOR = "a"


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """What each token id stands for; None: a control token, or one whose bytes depend on others.

    Byte-level BPE (Qwen, Dream) says so in its vocabulary. Of any other tokenizer each token is
    decoded behind a letter, which takes a second for 100,000 tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    count = len(tokenizer)
    added = set(tokenizer.added_tokens_decoder)
    names = tokenizer.convert_ids_to_tokens(list(range(count)))
    if backend is not None and type(backend.decoder).__name__ == "ByteLevel":
        return [
            None if name is None or index in added else _from_byte_level(name)
            for index, name in enumerate(names)
        ]
    anchor = tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    before = str(tokenizer.decode(anchor))
    found: list[bytes | None] = []
    for index in range(count):
        text = str(tokenizer.decode([*anchor, index]))
        plain = index not in added and text.startswith(before) and "\ufffd" not in text
        found.append(text[len(before) :].encode() or None if plain else None)
    return found


def _from_byte_level(name: str) -> bytes | None:
    values = [_byte_of().get(character) for character in name]
    if None in values:
        return None
    return bytes(values) or None  # type: ignore[arg-type]


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(0x100 + place): byte for place, byte in enumerate(others)}
