"""Control tokens in a form, such as `<tool_call>`: tokens that stand for no text.

In an automaton over bytes each is one of the bytes that UTF-8 never has, so that no text of a form
can hold one by chance. In a `str` it is the character by which Python's `surrogateescape` writes
that byte, which no text has either.
"""

import re
from collections.abc import Sequence

FIRST = 0xF8
MOST = 0x100 - FIRST
_SPLIT = re.compile(b"([\xf8-\xff])")


def mark(number: int) -> str:
    """The character that stands for the control token of this number."""
    return chr(0xDC00 + FIRST + number)


def is_mark(character: str) -> bool:
    """Whether a character stands for a control token."""
    return mark(0) <= character <= mark(MOST - 1)


def to_bytes(text: str) -> bytes:
    """A text with marks as bytes."""
    return text.encode(errors="surrogateescape")


def pieces(data: bytes) -> list[str | int]:
    """Texts, and numbers of the control tokens between them; half a character is left out."""
    found: list[str | int] = []
    for piece in _SPLIT.split(data):
        if piece and piece[0] >= FIRST:
            found.append(piece[0] - FIRST)
        elif text := piece.decode(errors="ignore"):
            found.append(text)
    return found


def marked(text: str, names: Sequence[str]) -> str:
    """A text with marks in place of the names of control tokens."""
    for number, name in enumerate(names):
        text = text.replace(name, mark(number))
    return text
