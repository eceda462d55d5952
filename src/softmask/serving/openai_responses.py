"""Responses in OpenAI's format: whole, or chunk by chunk."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..models.checkpoint import Checkpoint
from .detokenizer import IncrementalDetokenizer, Token
from .engine import Event, Request, Result
from .errors import Ended
from .tool_calls import Call, CallReader, Offered, Piece


class Answer:
    """One text of a response, as it grows.

    Args:
        top: leading tokens to report; None: no log-probabilities.
        echo: the prompt's tokens, where they belong to the text. With log-probabilities that of an
            end token is told too then: who scores given texts asks for one token behind them.
        is_first: whether no other text of the response has the same prompt before it.
        spaced: the text begins with a space that stands at the end of its prompt already.
        tools: what may be called, where there may be calls.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: Request,
        *,
        infill: bool,
        stops: Sequence[str],
        top: int | None,
        echo: Sequence[Token] | None = None,
        scored: int = 0,
        is_first: bool = True,
        spaced: bool = False,
        tools: Offered | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._reader = None if tools is None else CallReader(tools)
        self._stream = IncrementalDetokenizer(
            checkpoint,
            request,
            infill=infill,
            stops=stops,
            spaced=spaced,
            shows_end=echo is not None and top is not None,
        )
        self.top, self._spaced = top, spaced
        self._room = request.room
        # Of single holes no more is asked than that they begin with a space.
        self._form = request.constraint if request.holes is None else None
        is_formed = self._form is not None and (tools is None or tools.is_formed)
        # A text of a form is whole where it fills its canvas; one that is free may go on.
        self._fills = infill or is_formed
        self._is_first, self._cached = is_first, 0
        self.scored = self.forwards = scored  # so far; at first those that scored the prompt
        self.echo = list(echo or ())
        self.all: list[Token] = list(self.echo)
        self._fresh: list[Piece] = []
        self.result: Result | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the text has come to its end token or to a stop string."""
        return self._stream.is_ended

    @property
    def text(self) -> str:
        """All of the text outside of calls of tools."""
        own = self._stream.text if self._reader is None else self._reader.text
        return "".join(token.text for token in self.echo) + own

    @property
    def may_call(self) -> bool:
        """Whether there may be calls of tools."""
        return self._reader is not None

    @property
    def calls(self) -> list[Call]:
        """The calls of tools."""
        return [] if self._reader is None else self._reader.calls

    @property
    def tokens(self) -> int:
        return self._stream.count

    @property
    def cached_tokens(self) -> int:
        """Those of its prompt that were kept from before, where the prompt counts with this."""
        return self._cached if self._is_first else 0

    @property
    def finish_reason(self) -> str:
        if self.calls:
            return "tool_calls"
        if self._room is not None and self.result is not None and not self.is_ended:
            is_cut = self._room.is_cut(len(self.result.ids), self.result.left)
            return "length" if is_cut else "stop"
        return "stop" if self.is_ended or self._fills else "length"

    @property
    def is_malformed(self) -> bool:
        """Whether the text is not of the form that was asked for: a stop string cut it."""
        text = " " * self._spaced + self._stream.text
        # A form may end with the stop string, which is no part of the text.
        texts = {text, text + self._stream.stop}
        return self._form is not None and not any(map(self._form.accepts, texts))

    @property
    def cost(self) -> dict[str, int | float]:
        """What the request took, once it is over."""
        cost = {} if self.result is None else self.result.cost()
        return {**cost, "forwards": self.forwards}

    def take(self, event: Event) -> list[Token]:
        """What has become final with an event."""
        self.forwards, self._cached = self.scored + event.forwards, event.cached_tokens
        return self._read(self._stream.take(event))

    def finish(self, result: Result) -> list[Token]:
        """What was held back, now that the request is over."""
        self.result, self._cached = result, result.cached_tokens
        self.forwards = self.scored + result.forwards
        tokens = self._read(self._stream.rest())
        if self._reader is not None:
            self._fresh += self._reader.rest()
        return tokens

    def pieces(self) -> list[Piece]:
        """What has been added to the text and to calls of tools since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _read(self, tokens: list[Token]) -> list[Token]:
        self.all += tokens
        if self._reader is not None:
            self._fresh += self._reader.feed(tokens)
        elif tokens:
            text = "".join(token.text for token in tokens)
            self._fresh.append(Piece("text", text, tokens=tuple(tokens)))
        return tokens

    def name(self, token: int) -> str:
        """A token's own text."""
        return self._checkpoint.decode([token])

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """A token and its log-probability, as chats report them."""
        octets = list(self._checkpoint.bytes_of(token))
        return {"token": self.name(token), "logprob": logprob, "bytes": octets}


class ResponseFormat:
    """What the formats of all answers share."""

    prefix: str
    kind: str
    chunk_kind: str
    done = "data: [DONE]\n\n"  # ends a stream

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.model, self.created = model, int(time.time())

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**frame, "choices": choices}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._frame(self.chunk_kind, [choice])

    def event_name(self, _chunk: dict[str, Any]) -> str | None:
        """What the line `event` of a chunk says, where it has one."""
        return None

    def opening(self, _index: int, _answer: Answer) -> list[dict[str, Any]]:
        """Chunks before the first text."""
        return []

    def chunks(self, index: int, answer: Answer, tokens: list[Token]) -> list[dict[str, Any]]:
        """What has become final of a text."""
        raise NotImplementedError

    def closing(self, index: int, answer: Answer, prompt_tokens: int) -> list[dict[str, Any]]:
        """The end of a text."""
        raise NotImplementedError

    def failure(self, error: Ended) -> dict[str, Any]:
        """That a text came to no end."""
        return error.body

    def whole(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """An answer that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._frame(self.kind, choices), "usage": usage(answers, prompt_tokens)}

    def usage_chunk(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The chunk behind the last text, where it was asked for."""
        return {**self._frame(self.chunk_kind, []), "usage": usage(answers, prompt_tokens)}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError


class ChatResponse(ResponseFormat):
    """chat.completion and chat.completion.chunk."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(answer),
            "logprobs": _chat_logprobs(answer, answer.all),
            "finish_reason": answer.finish_reason,
            "softmask": answer.cost,
        }

    def _message(self, answer: Answer) -> dict[str, Any]:
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
        content = None if calls and not answer.text else answer.text
        message = {"role": "assistant", "content": content, "refusal": None}
        return {**message, "tool_calls": calls} if calls else message

    def opening(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        # Whether there is a text shows later where calls may take its place.
        delta = {"role": "assistant", "content": None if answer.may_call else ""}
        return [self._chunk({"index": index, "delta": delta, "finish_reason": None})]

    def chunks(self, index: int, answer: Answer, tokens: list[Token]) -> list[dict[str, Any]]:
        """New text, and what is new of calls."""
        deltas = [_delta(answer, piece) for piece in answer.pieces()]
        if answer.top is not None and tokens and not deltas:
            deltas = [{"content": ""}]  # the text is held back, its log-probabilities are not
        chunks = []
        for delta in deltas:
            logprobs, tokens = _chat_logprobs(answer, tokens), []
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            chunks.append(self._chunk(choice))
        return chunks

    def closing(self, index: int, answer: Answer, _prompt_tokens: int) -> list[dict[str, Any]]:
        """The end of a text."""
        # Where nothing came of what might have been a call, the message is an empty text.
        is_empty = answer.may_call and not answer.calls and not answer.text
        delta = {"content": ""} if is_empty else {}
        choice = {"index": index, "delta": delta, "finish_reason": answer.finish_reason}
        return [self._chunk({**choice, "softmask": answer.cost})]


class CompletionResponse(ResponseFormat):
    """text_completion, whole and in chunks."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._lengths: Counter[int] = Counter()  # characters that were sent of each text

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": answer.text,
            "logprobs": self._logprobs(answer, answer.all, 0),
            "finish_reason": answer.finish_reason,
            "softmask": answer.cost,
        }

    def opening(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        return self.chunks(index, answer, answer.echo)

    def chunks(self, index: int, answer: Answer, tokens: list[Token]) -> list[dict[str, Any]]:
        """New text."""
        if not tokens:
            return []
        text = "".join(token.text for token in tokens)
        logprobs = self._logprobs(answer, tokens, self._lengths[index])
        self._lengths[index] += len(text)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        return [self._chunk(choice)]

    def closing(self, index: int, answer: Answer, _prompt_tokens: int) -> list[dict[str, Any]]:
        """The end of a text."""
        choice = {"index": index, "text": "", "finish_reason": answer.finish_reason}
        return [self._chunk({**choice, "logprobs": None, "softmask": answer.cost})]

    def _logprobs(self, answer: Answer, tokens: list[Token], offset: int) -> dict[str, Any] | None:
        if answer.top is None:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [answer.name(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            # Null of what was not looked at: the first token of a text that is echoed.
            "top_logprobs": [_by_text(answer, token) or None for token in tokens],
            "text_offset": offsets,
        }


def content_logprobs(answer: Answer, tokens: Sequence[Token]) -> list[dict[str, Any]] | None:
    """Log-probabilities of tokens, as chats report them; None: they are not asked for."""
    if answer.top is None:
        return None
    return [
        {
            **answer.entry(token.id, token.logprob),
            "top_logprobs": [answer.entry(i, value) for i, value in token.top[: answer.top]],
        }
        for token in tokens
    ]


def _chat_logprobs(answer: Answer, tokens: Sequence[Token]) -> dict[str, Any] | None:
    content = content_logprobs(answer, tokens)
    return None if content is None else {"content": content, "refusal": None}


def _delta(answer: Answer, piece: Piece) -> dict[str, Any]:
    """A piece of a message, as chunks have it."""
    if piece.kind == "text":
        return {"content": piece.text}
    call: dict[str, Any] = {"index": piece.call, "function": {"arguments": piece.text}}
    if piece.kind == "call":
        call |= {"id": answer.calls[piece.call].id, "type": "function"}
        call["function"] = {"name": piece.text, "arguments": ""}
    return {"tool_calls": [call]}


def usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
    """Tokens, as they are counted for a bill, and the forwards that they took.

    OpenAI's details are those of what there is not here, audio, reasoning and guesses, but for the
    tokens of prompts that were kept from earlier requests.
    """
    cached = sum(answer.cached_tokens for answer in answers)
    completion = sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "forwards": sum(answer.forwards for answer in answers),
        },
    }


def _by_text(answer: Answer, token: Token) -> dict[str, float]:
    """The leading tokens and the chosen one; of those with the same text the likelier."""
    entries = list(token.top[: answer.top])
    if token.logprob is not None:
        entries.append((token.id, token.logprob))
    named: dict[str, float] = {}
    for i, logprob in entries:
        named[answer.name(i)] = max(logprob, named.get(answer.name(i), logprob))
    return named
