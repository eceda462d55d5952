"""Incremental detokenization: text as it becomes final from the left, in whole characters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..decoding.logprobs import Logprobs
from ..decoding.prompts import DecodeStream
from ..models.checkpoint import Checkpoint
from .request import Event, Request


@dataclass(frozen=True)
class Token:
    """A token of an answer: what it adds to the text, and what the model said of it.

    `text` is empty where the character that it is part of comes with a later token. `logprob` is
    as of the step that committed it, `top` are (id, log-probability) of the leading ones then.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class IncrementalDetokenizer:
    """Takes in events and hands out tokens, up to the end of the answer or a stop string.

    Args:
        infill: the text is what lies between the first and the last mask, and has no end token.
        stops: texts before which the answer ends.
        spaced: the first character is a space that stands in the prompt already, and is left out.
        shows_end: an end token is handed out too, as one without text, which does not count.

    Attributes:
        text: what was handed out.
        count: its tokens.
        stop: the stop string that ended it, if any.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: Request,
        *,
        infill: bool,
        stops: Sequence[str] = (),
        spaced: bool = False,
        shows_end: bool = False,
    ) -> None:
        mask_id = checkpoint.model.mask_id
        masked = [i for i, token in enumerate(request.ids) if token == mask_id]
        form = request.constraint
        self._decoder = DecodeStream(checkpoint, None if form is None else form.marks)
        self._stops = tuple(stops)
        self._end_ids = frozenset() if infill else frozenset(checkpoint.end_ids)
        self._ids = list(request.ids)
        # Nothing is written where a prompt is to be echoed alone.
        self._next, self._last = (masked[0], masked[-1]) if masked else (len(request.ids),) * 2
        self._logprobs: dict[int, tuple[float | None, tuple[tuple[int, float], ...]]] = {}
        self._drops = " " if spaced else ""
        self._pending: list[Token] = []  # of a character that is not whole
        self._held: list[Token] = []  # may be the beginning of a stop string
        self._shows_end = shows_end
        self.text = ""
        self.count = 0
        self.stop = ""
        self.is_ended = False

    def take(self, event: Event) -> list[Token]:
        """What has become final."""
        if event.source is not None:
            self._move(event.first, event.source)
        for index, (column, token) in enumerate(zip(event.columns, event.ids, strict=True)):
            self._ids[column] = token
            if event.logprobs is not None:
                self._logprobs[column] = _logprob_at(event.logprobs, index)
        return self._advance(min(event.final, self._last + 1))

    def _move(self, first: int, source: tuple[int, ...]) -> None:
        """Takes what is known along with the columns of a hole, of which none before `_next` moves.

        Ids of new masks, and of what is behind the hole, are not looked at before they are final.
        """
        self._ids[first:] = [self._ids[column] for column in source]
        now = {column: first + place for place, column in enumerate(source)}
        self._logprobs = {now[column]: value for column, value in self._logprobs.items()}
        self._last = first + len(source) - 1

    def rest(self) -> list[Token]:
        """What was held back, once the request is done."""
        return self._hand_out(self._cut_off()) + self._release()

    def _advance(self, final: int) -> list[Token]:
        whole: list[Token] = []
        while self._next < final and not self.is_ended:
            column, token = self._next, self._ids[self._next]
            self._next += 1
            if token in self._end_ids:
                tokens = self._hand_out(whole + self._cut_off()) + self._release()
                if self._shows_end and not self.is_ended:
                    tokens.append(Token(token, "", *self._logprobs.pop(column, (None, ()))))
                self.is_ended = True
                return tokens
            logprob, top = self._logprobs.pop(column, (None, ()))
            text = self._decoder.add(token)
            if text and self._drops:
                text, self._drops = text.removeprefix(self._drops), ""
            self._pending.append(Token(token, text, logprob, top))
            if not self._decoder.is_open:
                whole += self._pending
                self._pending = []
        return self._hand_out(whole)

    def _cut_off(self) -> list[Token]:
        """The tokens of a character that does not come whole any more, if any."""
        tokens, self._pending = self._pending, []
        if tokens:
            text = tokens[-1].text + self._decoder.rest()
            tokens[-1] = dataclasses.replace(tokens[-1], text=text)
        return tokens

    def _hand_out(self, tokens: list[Token]) -> list[Token]:
        """All but what may begin a stop string; behind a stop string nothing any more."""
        if self.is_ended:
            return []
        self._held += tokens
        text = "".join(token.text for token in self._held)
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            # That which is whole first, however many tokens became final together.
            _end, start, self.stop = min(found)
            kept = _before(self._held, start)
            self._held, self.is_ended = [], True
            return self._emit(kept)
        keep = len(text) - _open_stop(text, self._stops)
        kept, length = [], 0
        while self._held and length + len(self._held[0].text) <= keep:
            length += len(self._held[0].text)
            kept.append(self._held.pop(0))
        return self._emit(kept)

    def _release(self) -> list[Token]:
        held, self._held = self._held, []
        return self._emit(held)

    def _emit(self, tokens: list[Token]) -> list[Token]:
        self.text += "".join(token.text for token in tokens)
        self.count += len(tokens)
        return tokens


def _logprob_at(seen: Logprobs, index: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    logprob = float(seen.logprob_N[index])
    ids, logprobs = seen.ids_NK[index].tolist(), seen.logprobs_NK[index].tolist()
    top = tuple((i, value) for i, value in zip(ids, logprobs, strict=True) if i >= 0)
    return (None if np.isnan(logprob) else logprob), top


def _before(tokens: list[Token], length: int) -> list[Token]:
    """The tokens of the first `length` characters; the last may be cut."""
    kept: list[Token] = []
    for token in tokens:
        if length <= 0:
            break
        kept.append(dataclasses.replace(token, text=token.text[:length]))
        length -= len(token.text)
    return kept


def _open_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop string."""
    lengths = (
        length
        for stop in stops
        for length in range(min(len(stop) - 1, len(text)), 0, -1)
        if text.endswith(stop[:length])
    )
    return max(lengths, default=0)
