"""Calls of tools, read off an answer as its text becomes final from the left."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ..constraints import controls
from ..decoding.tool_syntax import ToolSyntax


@dataclass(frozen=True)
class Piece:
    """What has become final of an answer: of its text, a call that begins, or of its arguments.

    `text` of a call is the function's name. `call` is the number of the call.
    """

    kind: Literal["text", "call", "arguments"]
    text: str
    call: int = -1


@dataclass
class Call:
    """A call of a function; `arguments` is JSON."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(frozen=True)
class Offered:
    """What an answer may call, and how that is written."""

    syntax: ToolSyntax
    names: tuple[str, ...]

    def begins(self, text: str) -> bool | None:
        """Whether a call goes on with this text behind `open`; None: more of it will tell."""
        starts = [name + self.syntax.middle for name in self.names]
        if any(text.startswith(start) for start in starts):
            return True
        return None if any(start.startswith(text) for start in starts) else False


class CallReader:
    """Takes in an answer that keeps to the form of calls, and hands out its pieces.

    Where no control token opens a call, its first words may be those of a text too: it is one where
    a function that is offered follows.

    Attributes:
        text: all of the text outside of calls.
        calls: all calls, so far.
    """

    def __init__(self, offered: Offered) -> None:
        self._offered, self._syntax = offered, offered.syntax
        self._state: Literal["text", "name", "arguments", "behind"] = "text"
        self._buffer = ""
        self._depth, self._in_string, self._escaped = 0, False, False
        self.text = ""
        self.calls: list[Call] = []

    def feed(self, text: str) -> list[Piece]:
        """The pieces of what has come."""
        self._buffer += text
        return list(self._read())

    def rest(self) -> list[Piece]:
        """What was held back, now that the answer is over."""
        held, self._buffer = self._buffer, ""
        # A control token begins a call whose name did not come: no text holds one.
        is_text = self._state == "text" and not any(map(controls.is_mark, held))
        return list(self._said(held)) if is_text else []

    def _read(self) -> Iterator[Piece]:
        while True:
            state, length = self._state, len(self._buffer)
            yield from getattr(self, f"_read_{state}")()
            if (state, length) == (self._state, len(self._buffer)):
                return

    def _read_text(self) -> Iterator[Piece]:
        at = self._buffer.find(self._syntax.open)
        while at >= 0:
            behind = self._buffer[at + len(self._syntax.open) :]
            begins = self._offered.begins(behind)
            if begins is not False:
                text = self._buffer[:at].rstrip()
                yield from self._said(text)
                self._buffer = self._buffer[len(text) :]
                if begins:
                    self._buffer, self._state = behind, "name"
                return
            at = self._buffer.find(self._syntax.open, at + 1)
        # The space before a call is none of the text.
        text = self._buffer
        kept = text[: len(text) - _begun(text, self._syntax.open)].rstrip()
        yield from self._said(kept)
        self._buffer = text[len(kept) :]

    def _said(self, text: str) -> Iterator[Piece]:
        if text:
            self.text += text
            yield Piece("text", text)

    def _read_name(self) -> Iterator[Piece]:
        name, found, behind = self._buffer.partition(self._syntax.middle)
        if found:
            self.calls.append(Call(name))
            self._buffer, self._state = behind, "arguments"
            yield Piece("call", name, len(self.calls) - 1)

    def _read_arguments(self) -> Iterator[Piece]:
        end = self._end_of_arguments()
        written = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(written) :]
        if written:
            self.calls[-1].arguments += written
            yield Piece("arguments", written, len(self.calls) - 1)
        if end is not None:
            self._state = "behind"

    def _end_of_arguments(self) -> int | None:
        """Behind the brace that closes the object; None: it is open."""
        for place, one in enumerate(self._buffer):
            if self._in_string:
                self._in_string = self._escaped or one != '"'
                self._escaped = one == "\\" and not self._escaped
            elif one == '"':
                self._in_string = True
            elif one in "{[":
                self._depth += 1
            elif one in "}]":
                self._depth -= 1
                if not self._depth:
                    return place + 1
        return None

    def _read_behind(self) -> Iterator[Piece]:
        between = self._syntax.between
        if between is not None and self._buffer.startswith(between):
            self._buffer, self._state = self._buffer[len(between) :], "name"
        yield from ()


def _begun(text: str, word: str) -> int:
    """How many characters at the end may be the beginning of a word."""
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)
