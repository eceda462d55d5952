"""softmask serve: an OpenAI-compatible server, and the page that shows the denoising.

Routes, streams and errors; what a request means is in `serving.py`, what an answer looks like in
`answer_shapes.py`. docs/SERVER.md describes all of it for clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from .. import __version__
from .detokenizer import Token
from .engine import EngineClosed, QueueFull, Result, Ticket
from .metrics import Metrics
from .middleware import Gate, Passage, error_body
from .openai_responses import Answer, ChatShape, CompletionShape
from .page import examples, page_csp, page_html
from .protocol import ChatRequest, CompletionRequest, DenoiseRequest, OpenAIRequest, Shared
from .service import Service
from .trace import Tracer

DONE = "data: [DONE]\n\n"
# How a request ended that did not come to its end: status, type, sentence.
ENDINGS = {
    "deadline": (504, "timeout", "the request was not done within its deadline"),
    "shutdown": (503, "shutdown", "the server is shutting down: try again"),
    "failed": (500, "error", "the model failed on this request; the server's log says more"),
    "cancelled": (499, "cancelled", "the request was cancelled"),
}


class Ended(Exception):
    """A request that was accepted and came to no answer."""

    def __init__(self, result: Result) -> None:
        status, kind, sentence = ENDINGS[result.finish_reason]
        super().__init__(sentence)
        self.status, self.body = status, error_body(sentence, kind, code=result.finish_reason)


def create_app(service: Service) -> FastAPI:
    """The application around a service, whose engine must have been started."""
    app = FastAPI(
        title="softmask",
        version=__version__,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    metrics = Metrics(service.engine)
    app.add_middleware(Gate, config=service.config, metrics=metrics)
    _handle_errors(app)
    _add_information(app, service, metrics)
    _add_openai(app, service, metrics)
    _add_denoise(app, service, metrics)
    return app


# Errors.


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        message, field = sentence_of(error.errors()[0])
        body = error_body(message, "invalid_request_error", param=field, code="invalid_value")
        return JSONResponse(body, 400)

    @app.exception_handler(QueueFull)
    async def full(_request: Request, error: QueueFull) -> JSONResponse:
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
        body = error_body(f"the server is busy: {error}", "rate_limit_error", code="queue_full")
        return JSONResponse(body, 429, headers)

    @app.exception_handler(EngineClosed)
    async def closed(_request: Request, _error: EngineClosed) -> JSONResponse:
        status, kind, sentence = ENDINGS["shutdown"]
        return JSONResponse(error_body(sentence, kind), status, {"Retry-After": "5"})

    @app.exception_handler(Ended)
    async def ended(_request: Request, error: Ended) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(HTTPException)
    async def other(_request: Request, error: HTTPException) -> JSONResponse:
        body = error_body(str(error.detail), "invalid_request_error")
        return JSONResponse(body, error.status_code, error.headers)


def sentence_of(error: Any) -> tuple[str, str | None]:
    """A validation error in words, and the name of the field."""
    # pydantic appends the members of a union to the place; they are no names of fields.
    place = [str(part) for part in error["loc"][1:] if isinstance(part, int) or part.isidentifier()]
    if error["type"] == "extra_forbidden" and place[-1:] != [error["loc"][-1]]:
        place.append(error["loc"][-1])  # what was sent is a name in any case
    field = ".".join(place) or None
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error['ctx']['error']}", None
    if error["type"] == "extra_forbidden":
        return f"{field} is unknown or not implemented here: leave it out", field
    message = error["msg"].removeprefix("Value error, ")
    return (f"{field}: {message}" if field else message), field


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """A ValueError in here is what the client did wrong, in words."""
    try:
        yield
    except ValueError as error:
        raise HTTPException(400, " ".join(str(error).split())) from error


async def _encoded(service: Service, jobs: Callable[[Any], Any], asked: Shared) -> Any:
    """What is asked as jobs. Tokenizing a long prompt takes a while: not in the event loop."""
    return await asyncio.get_running_loop().run_in_executor(service.encoder, jobs, asked)


def _passage(service: Service, request: Request, asked: Shared) -> Passage:
    """What the gate knows of a request, with its body where that is to be logged."""
    passage: Passage = request.scope["softmask"]
    if service.config.log_prompts:
        passage.notes["body"] = asked.model_dump(mode="json", exclude_unset=True)
    return passage


# What there is.


def _add_information(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page = _page(service)
    headers = page_headers(page)
    model = {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "softmask",
        "softmask": service.description,
    }

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken, 503 from the beginning of a shutdown on."""
        is_open = service.engine.is_open
        return JSONResponse({"status": "ok" if is_open else "closing"}, 200 if is_open else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Its entry."""
        _check_name(service, name)
        return model


def _page(service: Service) -> str:
    description = {"name": service.name, **service.description}
    shown = examples() if description["bundled"] else []
    return page_html({"mode": "live", "model": description, "examples": shown})


def page_headers(page: str) -> dict[str, str]:
    """What keeps the page to itself."""
    return {
        "Content-Security-Policy": page_csp(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _check_name(service: Service, name: str | None) -> None:
    if name not in (None, service.name):
        raise HTTPException(404, f"there is no model {name!r} here: this server has {service.name}")


# What OpenAI's clients ask for.


def _add_openai(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        return await _answer(service, metrics, asked, request, ChatShape(service.name))

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """What follows a prompt or, with `suffix`, what stands between the two."""
        return await _answer(service, metrics, asked, request, CompletionShape(service.name))


async def _answer(
    service: Service,
    metrics: Metrics,
    asked: OpenAIRequest,
    request: Request,
    shape: ChatShape | CompletionShape,
) -> Response:
    _check_name(service, asked.model)
    with _refusals():
        jobs = await _encoded(service, service.jobs, asked)
        tickets = service.submit(jobs)
    answers = [
        Answer(service.checkpoint, job.request, infill=job.infill, stops=asked.stops, top=asked.top)
        for job in jobs
    ]
    prompt_tokens = sum(job.prompt_tokens for job in jobs[:: asked.n])
    passage = _passage(service, request, asked)

    def note() -> None:
        completion_tokens = sum(answer.tokens for answer in answers)
        metrics.tokens.labels("prompts").inc(prompt_tokens)
        metrics.tokens.labels("answers").inc(completion_tokens)
        passage.notes |= {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "forwards": sum(a.result.forwards for a in answers if a.result is not None),
        }

    if asked.stream:
        stream = _stream(tickets, answers, shape, asked, prompt_tokens, note)
        return _event_stream(stream)
    async with _held(request, tickets):
        async for _ in _merged(tickets, answers):
            pass
    note()
    for ticket, answer in zip(tickets, answers, strict=True):
        _check_end(ticket, answer)
    return JSONResponse(shape.whole(answers, prompt_tokens))


def _check_end(ticket: Ticket, answer: Answer) -> None:
    """A text that was cancelled behind its end, at a stop string, is as good as done."""
    result = ticket.result(0)
    if result.finish_reason != "done" and not answer.is_ended:
        raise Ended(result)


@contextlib.asynccontextmanager
async def _held(request: Request, tickets: Sequence[Ticket]) -> AsyncIterator[None]:
    """Cancels the tickets as soon as the client leaves, or when the block fails."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        for ticket in tickets:
            ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        for ticket in tickets:
            ticket.cancel()  # what is over stays as it is


async def _stream(
    tickets: Sequence[Ticket],
    answers: Sequence[Answer],
    shape: ChatShape | CompletionShape,
    asked: OpenAIRequest,
    prompt_tokens: int,
    note: Any,
) -> AsyncIterator[str]:
    """Server-sent events: what becomes final from the left, text by text as it comes."""
    try:
        for index in range(len(answers)):
            for chunk in shape.opening(index):
                yield sse(chunk)
        async for index, tokens, is_last in _merged(tickets, answers):
            answer = answers[index]
            if tokens:
                yield sse(shape.chunk(index, answer, tokens))
            if is_last:
                _check_end(tickets[index], answer)
                yield sse(shape.closing(index, answer))
        if asked.sends_usage:
            yield sse(shape.usage_chunk(answers, prompt_tokens))
        yield DONE
    except Ended as error:
        yield sse(error.body)
    finally:
        note()
        for ticket in tickets:
            ticket.cancel()


async def _merged(
    tickets: Sequence[Ticket], answers: Sequence[Answer]
) -> AsyncIterator[tuple[int, list[Token], bool]]:
    """(text, its new tokens, whether they are its last) as they come.

    A text is read on when its part was taken: a slow client makes the events of its tickets merge.
    """
    streams = [_parts(*pair) for pair in zip(tickets, answers, strict=True)]
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


async def _parts(ticket: Ticket, answer: Answer) -> AsyncIterator[tuple[list[Token], bool]]:
    """A text's new tokens as they become final, and whether they are its last."""
    async for event in ticket:
        tokens = answer.take(event)
        if answer.is_ended:
            ticket.cancel()
        if tokens:
            yield tokens, False
    yield answer.finish(await ticket.finished()), True


# Step by step.


def _add_denoise(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/denoise")
    async def denoise(asked: DenoiseRequest, request: Request) -> Response:
        """Every step of one text: docs/TRACE.md."""
        _check_name(service, asked.model)
        with _refusals():
            job = await _encoded(service, service.trace_job, asked)
            ticket = service.submit([job])[0]
        passage = _passage(service, request, asked)
        metrics.tokens.labels("prompts").inc(job.prompt_tokens)
        tracer = Tracer(
            service.checkpoint,
            job.request,
            infill=job.infill,
            id=f"run-{passage.id}",
            name=service.name,
        )
        if asked.stream:
            return _event_stream(_steps(ticket, tracer))
        async with _held(request, [ticket]):
            start, steps = tracer.start(), [tracer.step(event) async for event in ticket]
        result = await ticket.finished()
        if result.finish_reason != "done":
            raise Ended(result)
        return JSONResponse({"start": start, "steps": steps, "end": tracer.end(result)})


async def _steps(ticket: Ticket, tracer: Tracer) -> AsyncIterator[str]:
    try:
        yield sse(tracer.start(), "start")
        async for event in ticket:
            yield sse(tracer.step(event), "step")
        result = await ticket.finished()
        if result.finish_reason == "done":
            yield sse(tracer.end(result), "end")
        else:
            yield sse(Ended(result).body, "error")
    finally:
        ticket.cancel()


def sse(values: Any, event: str | None = None) -> str:
    """One server-sent event."""
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(values, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    # Proxies that collect what they pass on would make a stream an answer.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
