"""A text that comes in pieces: wrapped at words in a terminal, as it is in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console


class TextFlow:
    """Prints on standard output; a line break ends the text with its block, after Ctrl-C too.

    A terminal gets a word when it is complete, as only then is it known on which line it stands.

    Args:
        before: what the text goes on from, which a terminal shows in front of it.
    """

    def __init__(self, before: str = "") -> None:
        self._console = Console(highlight=False) if sys.stdout.isatty() else None
        self._column, self._word, self._style = 0, "", "dim"
        if self._console is not None:
            self.write(before)
            self._put_word()
        self._style = ""

    def __enter__(self) -> Self:
        return self

    def write(self, piece: str) -> None:
        """Prints what of the text is new."""
        if self._console is None:
            print(piece, end="", flush=True)
            return
        for char in piece:
            # Scripts of wide characters have no spaces: a line may end anywhere.
            if char.isspace() or cell_len(char) > 1:
                self._put_word()
                self._put(char)
            else:
                self._word += char

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:  # else a half word would stand behind the terminal's ^C
            self._put_word()
        print(flush=True)

    def _put_word(self) -> None:
        self._put(self._word)
        self._word = ""

    def _put(self, word: str) -> None:
        if self._console is None or not word:
            return
        if word == "\n":
            self._console.out("")
            self._column = 0
            return
        width = cell_len(word)
        if self._column and self._column + width > self._console.width:
            self._console.out("")
            self._column = 0
            if word.isspace():  # the line break stands for it
                return
        self._console.out(word, style=self._style, end="")
        self._column += width
        while self._column > self._console.width:  # a word longer than a line
            self._column -= self._console.width
