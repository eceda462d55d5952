"""Sentences for people: wrapped at words in a terminal, one line each in a pipe.

Imports nothing that takes time: errors of `softmask --help` are told here too.
"""

from __future__ import annotations

import re
import shutil
from typing import TextIO

# A command in backticks is one word: broken over two lines it could not be copied.
WORD = re.compile(r"[^\s`]*`[^`]*`\S*|\S+")


def count(number: int, what: str) -> str:
    """1 update, 2,000 updates."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many characters.

    A longer command stands on a line of its own: the terminal breaks it, and copies it as one.
    """
    lines = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in WORD.findall(paragraph):
            if not lines[-1]:
                lines[-1] = word
            elif len(lines[-1]) + 1 + len(word) <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return "\n".join(lines)


def tell(text: str, stream: TextIO) -> None:
    """Prints sentences: wrapped where the stream is a terminal, else as they are."""
    if stream.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    print(text, file=stream, flush=True)
