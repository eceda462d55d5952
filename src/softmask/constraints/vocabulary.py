"""The bytes that each token of a tokenizer adds to a text."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """What each token id stands for; None: a control token, or an id that has no token.

    Args:
        tokenizer: a byte-level one, as all that are loaded are.
    """
    added = tokenizer.added_tokens_decoder
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    byte_of = bytes_by_character()
    return [
        None if name is None or index in added else bytes(map(byte_of.__getitem__, name))
        for index, name in enumerate(names)
    ]


@functools.cache
def bytes_by_character() -> dict[str, int]:
    """The byte of each character by which byte-level tokenizers write it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
