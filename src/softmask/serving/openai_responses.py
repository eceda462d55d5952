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


class Answer:
    """One text of a response, as it grows.

    Args:
        top: leading tokens to report; None: no log-probabilities.
        echo: the prompt's tokens, where they belong to the text.
        spaced: the text begins with a space that stands at the end of its prompt already.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        request: Request,
        *,
        infill: bool,
        stops: Sequence[str],
        top: int | None,
        echo: Sequence[Token] = (),
        scored: int = 0,
        spaced: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._stream = IncrementalDetokenizer(
            checkpoint, request, infill=infill, stops=stops, spaced=spaced
        )
        self._infill, self.top, self._spaced = infill, top, spaced
        # Of single holes no more is asked than that they begin with a space.
        self._form = request.constraint if request.holes is None else None
        self.scored = self.forwards = scored  # so far; at first those that scored the prompt
        self.echo = list(echo)
        self.all: list[Token] = list(echo)
        self.result: Result | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the text has come to its end token or to a stop string."""
        return self._stream.is_ended

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.echo) + self._stream.text

    @property
    def tokens(self) -> int:
        return self._stream.count

    @property
    def finish_reason(self) -> str:
        # A text of a form is whole where it fills its canvas.
        whole = self._infill or self._form is not None
        return "stop" if self.is_ended or whole else "length"

    @property
    def is_malformed(self) -> bool:
        """Whether the text is not of the form that was asked for: a stop string cut it."""
        text = " " * self._spaced + self._stream.text
        return self._form is not None and not self._form.accepts(text)

    @property
    def cost(self) -> dict[str, int | float]:
        """What the request took, once it is over."""
        cost = {} if self.result is None else self.result.cost()
        return {**cost, "forwards": self.forwards}

    def take(self, event: Event) -> list[Token]:
        """What has become final with an event."""
        tokens = self._stream.take(event)
        self.all += tokens
        self.forwards = self.scored + event.forwards
        return tokens

    def finish(self, result: Result) -> list[Token]:
        """What was held back, now that the request is over."""
        tokens = self._stream.rest()
        self.all += tokens
        self.result, self.forwards = result, self.scored + result.forwards
        return tokens

    def name(self, token: int) -> str:
        """A token's own text."""
        return self._checkpoint.decode([token])

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        """A token and its log-probability, as chats report them."""
        octets = list(self._checkpoint.bytes_of(token))
        return {"token": self.name(token), "logprob": logprob, "bytes": octets}


class ResponseFormat:
    """What the formats of chat and completions share."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.model, self.created = model, int(time.time())

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**frame, "choices": choices}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._frame(self.chunk_kind, [choice])

    def opening(self, _index: int, _answer: Answer) -> list[dict[str, Any]]:
        """Chunks before the first text."""
        return []

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
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer, answer.all),
            "finish_reason": answer.finish_reason,
            "softmask": answer.cost,
        }

    def opening(self, index: int, _answer: Answer) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk({"index": index, "delta": delta, "finish_reason": None})]

    def chunk(self, index: int, answer: Answer, tokens: list[Token]) -> dict[str, Any]:
        """New text."""
        delta = {"content": "".join(token.text for token in tokens)}
        logprobs = self._logprobs(answer, tokens)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._chunk(choice)

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        """The end of a text."""
        choice = {"index": index, "delta": {}, "finish_reason": answer.finish_reason}
        return self._chunk({**choice, "softmask": answer.cost})

    def _logprobs(self, answer: Answer, tokens: list[Token]) -> dict[str, Any] | None:
        if answer.top is None:
            return None
        content = [
            {
                **answer.entry(token.id, token.logprob),
                "top_logprobs": [answer.entry(i, value) for i, value in token.top[: answer.top]],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


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
        return [self.chunk(index, answer, answer.echo)] if answer.echo else []

    def chunk(self, index: int, answer: Answer, tokens: list[Token]) -> dict[str, Any]:
        """New text."""
        text = "".join(token.text for token in tokens)
        logprobs = self._logprobs(answer, tokens, self._lengths[index])
        self._lengths[index] += len(text)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        return self._chunk(choice)

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        """The end of a text."""
        choice = {"index": index, "text": "", "finish_reason": answer.finish_reason}
        return self._chunk({**choice, "logprobs": None, "softmask": answer.cost})

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


def usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
    """Tokens, as they are counted for a bill, and the forwards that they took.

    OpenAI's details are those of what there is not here: audio, reasoning, guesses, a prompt cache.
    """
    completion = sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
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
