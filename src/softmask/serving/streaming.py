"""Server-sent events: requests read as they go on, and cancelled when their client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse

from .detokenizer import Token
from .engine import RequestHandle
from .errors import Ended
from .openai_responses import Answer, ResponseFormat, usage
from .protocol import OpenAIRequest
from .trace import Tracer

# Of Unicode, not of events: clients that read lines as Python does would cut an event there.
LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


def check_end(handle: RequestHandle, answer: Answer) -> None:
    """A text that has come to its end, or a stop string, is done, however its request ended."""
    result = handle.result(0)
    if result.finish_reason != "done" and not answer.is_ended:
        raise Ended(result.finish_reason)
    if answer.is_malformed:
        raise Ended("malformed")


class Cancellable(Protocol):
    """What goes on until it is over or cancelled."""

    def cancel(self) -> object:
        """Ends it; what is over stays as it is."""


@contextlib.asynccontextmanager
async def cancelling(request: Request, handles: Sequence[Cancellable]) -> AsyncIterator[None]:
    """Cancels the requests as soon as the client leaves, or when the block fails."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        for handle in handles:
            handle.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        for handle in handles:
            handle.cancel()  # what is over stays as it is


async def stream_answers(
    handles: Sequence[RequestHandle],
    answers: Sequence[Answer],
    response: ResponseFormat,
    asked: OpenAIRequest,
    prompt_tokens: int,
    count_tokens: Callable[[], None],
) -> AsyncIterator[str]:
    """Server-sent events: what becomes final from the left, text by text as it comes."""

    def event(chunk: dict[str, Any]) -> str:
        if asked.counts_along:
            chunk["usage"] = usage(answers, prompt_tokens)
        elif asked.sends_usage:
            chunk["usage"] = None  # as OpenAI's: the last one alone has it
        return sse(chunk, response.event_name(chunk))

    try:
        for index, answer in enumerate(answers):
            for chunk in response.opening(index, answer):
                yield event(chunk)
        async for index, tokens, is_last in merged(handles, answers):
            answer = answers[index]
            for chunk in response.chunks(index, answer, tokens):
                yield event(chunk)
            if is_last:
                check_end(handles[index], answer)
                for chunk in response.closing(index, answer, prompt_tokens):
                    yield event(chunk)
        for index in range(len(handles), len(answers)):
            for chunk in response.closing(index, answers[index], prompt_tokens):
                yield event(chunk)
        if asked.sends_usage:
            yield sse(response.usage_chunk(answers, prompt_tokens))
        if response.done:
            yield response.done
    except Ended as error:
        failure = response.failure(error)
        yield sse(failure, response.event_name(failure))
    finally:
        count_tokens()
        for handle in handles:
            handle.cancel()


async def merged(
    handles: Sequence[RequestHandle], answers: Sequence[Answer]
) -> AsyncIterator[tuple[int, list[Token], bool]]:
    """(text, its new tokens, whether they are its last) as they come.

    A text is read on when its part was taken: a slow client makes the events of its requests merge.
    """
    # An answer that is its prompt alone has no request, and is there from the start.
    streams = [_parts(*pair) for pair in zip(handles, answers, strict=False)]
    waiting = {asyncio.ensure_future(anext(one)): index for index, one in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                tokens, is_last = task.result()
                yield index, tokens, is_last
                if not is_last:
                    waiting[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        for task in waiting:
            task.cancel()


async def _parts(handle: RequestHandle, answer: Answer) -> AsyncIterator[tuple[list[Token], bool]]:
    """A text's new tokens as they become final, and whether they are its last."""
    async for event in handle:
        tokens = answer.take(event)
        if answer.is_ended:
            handle.stop()
        if tokens:
            yield tokens, False
    yield answer.finish(await handle.finished()), True


async def stream_steps(
    handle: RequestHandle, tracer: Tracer, at_end: Callable[[], None]
) -> AsyncIterator[str]:
    """Server-sent events: every step of one text."""
    try:
        yield sse(tracer.start(), "start")
        async for event in handle:
            yield sse(tracer.step(event), "step")
        result = await handle.finished()
        if result.finish_reason == "done":
            yield sse(tracer.end(result), "end")
        else:
            yield sse(Ended(result.finish_reason).body, "error")
    finally:
        at_end()
        handle.cancel()


def sse(values: Any, event: str | None = None) -> str:
    """One server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    data = json.dumps(values, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)
    return f"{name}data: {data}\n\n"


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """The HTTP response that streams these events."""
    # Proxies that collect what they pass on would make a stream an answer.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
