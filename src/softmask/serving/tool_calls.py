"""Calls of tools, read off an answer as its text becomes final from the left."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..constraints import controls
from ..decoding.tool_syntax import ToolSyntax
from .detokenizer import Token


@dataclass(frozen=True)
class Piece:
    """What has become final of an answer: of its text, a call that begins, or of its arguments.

    `text` of a call is the function's name. `call` is the number of the call. `tokens` are those
    that begin in `text`, or behind the piece before it.
    """

    kind: Literal["text", "call", "arguments"]
    text: str
    call: int = -1
    tokens: tuple[Token, ...] = ()


@dataclass
class Call:
    """A call of a function; `arguments` is JSON."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass(frozen=True)
class Offered:
    """What an answer may call, and how that is written.

    `is_formed`: a text in place of calls is of a form that was asked for.
    """

    syntax: ToolSyntax
    names: tuple[str, ...]
    is_formed: bool = False

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
        self._buffer, self._length = "", 0  # what was not handed out; all that came
        self._unread: deque[tuple[int, Token]] = deque()  # with their places, of no piece yet
        self._depth, self._in_string, self._escaped = 0, False, False
        self.text = ""
        self.calls: list[Call] = []

    def feed(self, tokens: Sequence[Token]) -> list[Piece]:
        """The pieces of what has come."""
        for token in tokens:
            self._unread.append((self._length, token))
            self._length += len(token.text)
        self._buffer += "".join(token.text for token in tokens)
        return list(self._read())

    def rest(self) -> list[Piece]:
        """What was held back, now that the answer is over."""
        held, tokens = self._buffer, tuple(token for _, token in self._unread)
        self._buffer = ""
        self._unread.clear()
        # A control token begins a call whose name did not come: no text holds one.
        is_text = self._state == "text" and not any(map(controls.is_mark, held))
        # What was held may have begun in a token that was handed out.
        if not is_text or not (held or tokens):
            return []
        self.text += held
        return [Piece("text", held, tokens=tokens)]

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
                yield from self._said(self._buffer[:at].rstrip())
                if begins:
                    self._buffer, self._state = behind, "name"
                return
            at = self._buffer.find(self._syntax.open, at + 1)
        # The space before a call is none of the text.
        text = self._buffer
        yield from self._said(text[: len(text) - _begun(text, self._syntax.open)].rstrip())

    def _said(self, text: str) -> Iterator[Piece]:
        """What the buffer begins with."""
        self._buffer = self._buffer[len(text) :]
        if text:
            self.text += text
            yield Piece("text", text, tokens=self._used())

    def _used(self) -> tuple[Token, ...]:
        """The tokens that begin before the buffer, and are of no piece yet."""
        used, start = [], self._length - len(self._buffer)
        while self._unread and self._unread[0][0] < start:
            used.append(self._unread.popleft()[1])
        return tuple(used)

    def _read_name(self) -> Iterator[Piece]:
        name, found, behind = self._buffer.partition(self._syntax.middle)
        if found:
            self.calls.append(Call(name))
            self._buffer, self._state = behind, "arguments"
            yield Piece("call", name, len(self.calls) - 1, self._used())

    def _read_arguments(self) -> Iterator[Piece]:
        end = self._end_of_arguments()
        written = self._buffer if end is None else self._buffer[:end]
        self._buffer = self._buffer[len(written) :]
        if written:
            self.calls[-1].arguments += written
            yield Piece("arguments", written, len(self.calls) - 1, self._used())
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
