"""Edits over HTTP: a stretch of a text, by its characters, written anew."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from .edits import Edit, Span, draft_of, edit_of, span_requests
from .protocol import Shared
from .request import RequestHandle, Result
from .service import Service
from .strict import Text
from .structured import Structured


class EditBody(Shared, Structured):
    """POST /v1/edits: the characters from `start` to `end` of a text, written anew."""

    kind = "edit"

    text: Text
    start: int = Field(ge=0)
    end: int = Field(ge=0)
    min_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _in_the_text(self) -> EditBody:
        _ = self.span
        return self

    @property
    def span(self) -> Span:
        """What is written anew."""
        return Span(self.text, self.start, self.end, self.min_tokens, self.max_tokens)


def edit_jobs(service: Service, asked: EditBody) -> list[Any]:
    """The requests of the lengths that are tried.

    Raises:
        ValueError: one sentence on what cannot be done.
    """
    checkpoint, extension = service.checkpoint, asked.softmask
    kind = checkpoint.kind_of(asked.text)
    return span_requests(
        checkpoint,
        asked.span,
        asked.constraint,
        service.encode_text,
        lambda masks: service.sampling_of(asked, kind, masks),
        most_tried=service.engine.queue,  # more at once could never be accepted
        soft_mask=service.soft_mask_of(extension.soft_mask),
        seed=service.seed_of(asked),
        deadline=service.seconds_left(asked.arrived, extension.deadline),
        cache_salt=asked.cache_salt or "",
    )


def edited(
    service: Service, asked: EditBody, handles: Sequence[RequestHandle], results: Sequence[Result]
) -> Edit:
    """The likeliest draft, once all are done."""
    drafts = [
        draft_of(service.checkpoint, asked.span, handle.request, handle.pending(), result)
        for handle, result in zip(handles, results, strict=True)
    ]
    forwards = sum(result.forwards for result in results)
    return edit_of(drafts, handles[0].request.seed, forwards)


def edit_answer(name: str, edit: Edit, prompt_tokens: int) -> dict[str, Any]:
    """The answer: the drafts, the kept one first."""
    choices = [
        {
            "index": index,
            "text": draft.text,
            "replacement": draft.replacement,
            "tokens": draft.tokens,
            "score": draft.score if math.isfinite(draft.score) else None,
        }
        for index, draft in enumerate(edit.drafts)
    ]
    written = sum(draft.tokens for draft in edit.drafts)
    return {
        "id": f"edit-{secrets.token_hex(12)}",
        "object": "edit",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        },
        "softmask": {"forwards": edit.forwards, "seed": edit.seed},
    }
