"""softmask serve: an OpenAI-compatible server, and the page that shows the denoising.

The routes. What a request means is in `service.py`, what an answer looks like in
`openai_responses.py`, how it is streamed in `streaming.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..decoding.likelihood import TokenScore
from .edit_body import EditBody, edit_answer, edit_jobs, edited
from .engine import Result
from .errors import Ended, Refusal, handle_errors, refusals
from .metrics import Metrics
from .middleware import RequestContext, RequestMiddleware
from .openai_responses import Answer, ChatResponse, CompletionResponse, ResponseFormat
from .page import live_data, page_csp, page_html
from .protocol import ChatRequest, CompletionRequest, DenoiseRequest, Shared
from .reference import page as reference_page
from .responses_api import ResponsesRequest
from .responses_output import ResponsesResponse
from .scores import (
    ScoreBody,
    echo_request,
    echo_tokens,
    prompt_of,
    score_answer,
    score_request,
)
from .scoring import ScoreHandle, ScoreResult
from .service import Job, Service
from .streaming import cancelling, check_end, event_stream, merged, stream_answers, stream_steps
from .trace import Tracer


def create_app(service: Service) -> FastAPI:
    """The application around a service, whose engine must have been started."""
    app = FastAPI(
        title="softmask",
        version=__version__,
        # Their pages load scripts from elsewhere: /docs is one of ours.
        docs_url=None,
        redoc_url=None,
    )
    metrics = Metrics(service.engine, service.encoder)
    app.add_middleware(RequestMiddleware, config=service.config, metrics=metrics)
    if service.config.origins:
        # Outermost: browsers ask without a key whether they may.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.origins,
            allow_methods=["GET", "HEAD", "POST", "OPTIONS"],
            allow_headers=["*"],
            allow_private_network=True,  # a page of the net may ask a server on this machine
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    handle_errors(app)
    _add_information(app, service, metrics)
    _add_openai(app, service, metrics)
    _add_denoise(app, service, metrics)
    _add_scores(app, service, metrics)
    _add_edits(app, service, metrics)
    return app


async def _encoded(
    service: Service, jobs: Callable[[Any], Any], asked: Shared | ScoreBody, request: Request
) -> Any:
    """What is asked as jobs, within its deadline, while the client stays and the server serves."""
    seconds = service.seconds_left(asked.arrived, asked.softmask.deadline)
    task = service.encoder.start(partial(jobs, asked))
    async with cancelling(request, [task]):
        await asyncio.wait([task], timeout=seconds)
    if not task.done():
        raise Ended("deadline")
    if task.cancelled():
        service.encoder.check_open()
        raise Ended("cancelled")
    return task.result()


def _context(request: Request) -> RequestContext:
    """The middleware's context of a request."""
    context: RequestContext = request.scope["softmask"]
    return context


# The page, health, metrics, the model.


def _add_information(app: FastAPI, service: Service, metrics: Metrics) -> None:
    page = _page(service)
    model = {
        "id": service.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "softmask",
        # As vLLM has them.
        "root": service.name,
        "parent": None,
        "max_model_len": service.context,
        "permission": [],
        "softmask": service.description,
    }

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers(page))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        address = str(request.base_url).rstrip("/")
        chat, keyed = service.description["chat"], service.description["keyed"]
        html = reference_page(service.name, address, chat=chat, keyed=keyed)
        return HTMLResponse(html, headers=page_headers(html))

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while requests are taken, 503 in a shutdown and where the engine broke down."""
        if service.engine.is_open:
            return JSONResponse({"status": "ok"})
        broken = service.engine.broken is not None
        return JSONResponse({"status": "broken" if broken else "closing"}, 503)

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
    return page_html(live_data({"name": service.name, **service.description}))


def page_headers(page: str) -> dict[str, str]:
    """What keeps the page to itself."""
    return {
        "Content-Security-Policy": page_csp(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def _check_name(service: Service, name: str | None) -> None:
    if name not in (None, service.name):
        there = f"there is no model {name!r} here: this server has {service.name}"
        raise Refusal(404, there, code="model_not_found", param="model")


# OpenAI's chat and completions.


def _add_openai(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        return await _answer(service, metrics, asked, request, ChatResponse(service.name))

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """What follows a prompt or, with `suffix`, what stands between the two."""
        return await _answer(service, metrics, asked, request, CompletionResponse(service.name))

    @app.post("/v1/responses")
    async def respond(asked: ResponsesRequest, request: Request) -> Response:
        """The next items of a conversation. Nothing is stored."""
        response = ResponsesResponse(service.name, asked)
        with refusals():
            chat = asked.as_chat()
        return await _answer(service, metrics, chat, request, response)


async def _answer(
    service: Service,
    metrics: Metrics,
    asked: ChatRequest | CompletionRequest,
    request: Request,
    response: ResponseFormat,
) -> Response:
    _check_name(service, asked.model)
    with refusals():
        jobs = await _encoded(service, service.jobs, asked, request)
        handles = service.submit(job.request for job in jobs) if asked.new_tokens != 0 else []
    try:
        echoes = await _echoes(service, asked, jobs, request)
    except BaseException:
        for handle in handles:
            handle.cancel()
        raise
    answers = [
        Answer(
            service.checkpoint,
            job.request,
            infill=job.infill,
            stops=asked.stop,
            top=asked.top,
            is_first=index % asked.n == 0,
            spaced=job.spaced,
            tools=job.tools,
            **echo,
        )
        for index, (job, echo) in enumerate(zip(jobs, echoes, strict=True))
    ]
    prompt_tokens = sum(job.prompt_tokens for job in jobs[:: asked.n])
    context = _context(request)
    context.log_fields |= asked.log_fields

    def count_tokens() -> None:
        completion_tokens = sum(answer.tokens for answer in answers)
        metrics.tokens.labels("prompts").inc(prompt_tokens)
        metrics.tokens.labels("answers").inc(completion_tokens)
        results = [answer.result for answer in answers if answer.result is not None]
        context.log_fields |= {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "forwards": sum(answer.forwards for answer in answers),
            **_errors_of(results),
        }

    if asked.stream:
        stream = stream_answers(handles, answers, response, asked, prompt_tokens, count_tokens)
        return event_stream(stream)
    async with cancelling(request, handles):
        async for _ in merged(handles, answers):
            pass
    count_tokens()
    for handle, answer in zip(handles, answers, strict=False):
        check_end(handle, answer)
    # Log-probabilities of a long text take tenths of a second.
    return await asyncio.to_thread(lambda: JSONResponse(response.whole(answers, prompt_tokens)))


async def _echoes(
    service: Service,
    asked: ChatRequest | CompletionRequest,
    jobs: Sequence[Job],
    request: Request,
) -> list[dict[str, Any]]:
    """What each answer has of its prompt: tokens to show, and forwards that scored them."""
    if not isinstance(asked, CompletionRequest) or not asked.echo:
        return [{}] * len(jobs)
    with refusals():
        wanted = echo_request(service, asked, jobs)
        handle = None if wanted is None else service.engine.score(wanted)
    scores: Iterator[Sequence[TokenScore]] = iter(())
    forwards = 0
    if handle is not None:
        result = await _scored(request, handle)
        scores, forwards = iter(result.tokens), result.forwards
    echoes: list[dict[str, Any]] = []
    for job in jobs[:: asked.n]:
        ids = prompt_of(service, job)
        own = next(scores) if handle is not None and len(ids) > 1 else ()
        tokens = echo_tokens(service.checkpoint, ids, own)
        echoes += [
            {"echo": tokens, "scored": 0 if echoes or i else forwards} for i in range(asked.n)
        ]
    # What the scores took is the first answer's: they were made together.
    echoes[0]["scored"] = forwards
    return echoes


async def _scored(request: Request, handle: ScoreHandle) -> ScoreResult:
    """The scores, which end as soon as the client leaves."""
    async with cancelling(request, [handle]):
        result = await handle.finished()
    if result.finish_reason != "done":
        raise Ended(result.finish_reason)
    return result


def _errors_of(results: Sequence[Result]) -> dict[str, str]:
    """What failed, for the log: clients are told nothing of the inside."""
    errors = [result.error for result in results if result.error is not None]
    return {"error": errors[0]} if errors else {}


# Step by step.


def _add_denoise(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/denoise")
    async def denoise(asked: DenoiseRequest, request: Request) -> Response:
        """Every step of one text: docs/reference/trace.md."""
        _check_name(service, asked.model)
        with refusals():
            job = await _encoded(service, service.trace_job, asked, request)
            handle = service.submit([job.request])[0]
        context = _context(request)
        metrics.tokens.labels("prompts").inc(job.prompt_tokens)
        tracer = Tracer(
            service.checkpoint,
            job.request,
            infill=job.infill,
            start=job.start,
            id=f"run-{context.id}",
            name=service.name,
        )

        def note_end() -> None:
            if handle.is_over:
                result = handle.result(0)
                metrics.tokens.labels("answers").inc(len(tracer.answer(result)[1]))
                context.log_fields |= _errors_of([result])

        if asked.stream:
            return event_stream(stream_steps(handle, tracer, note_end))
        async with cancelling(request, [handle]):
            start, steps = tracer.start(), [tracer.step(event) async for event in handle]
        result = await handle.finished()
        note_end()
        if result.finish_reason != "done":
            raise Ended(result.finish_reason)
        return JSONResponse({"start": start, "steps": steps, "end": tracer.end(result)})


# Given texts.


def _add_scores(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/score")
    async def score(asked: ScoreBody, request: Request) -> Response:
        """Log-probabilities of given continuations, each with its error."""
        _check_name(service, asked.model)
        with refusals():
            wanted = await _encoded(service, partial(score_request, service), asked, request)
            handle = service.engine.score(wanted)
        context = _context(request)
        result = await _scored(request, handle)
        answer = score_answer(service.name, wanted, result)
        tokens = answer["usage"]["prompt_tokens"]
        metrics.tokens.labels("prompts").inc(tokens)
        context.log_fields |= {"prompt_tokens": tokens, "forwards": result.forwards}
        return JSONResponse(answer)


def _add_edits(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.post("/v1/edits")
    async def edit(asked: EditBody, request: Request) -> Response:
        """A stretch of a text written anew, as long as suits it best."""
        _check_name(service, asked.model)
        with refusals():
            requests = await _encoded(service, partial(edit_jobs, service), asked, request)
            handles = service.submit(requests)
        context = _context(request)
        async with cancelling(request, handles):
            results = [await handle.finished() for handle in handles]
        context.log_fields |= _errors_of(results)
        for result in results:
            if result.finish_reason != "done":
                raise Ended(result.finish_reason)
        done = edited(service, asked, handles, results)
        prompt_tokens = len(requests[0].ids) - min(draft.tokens for draft in done.drafts)
        metrics.tokens.labels("prompts").inc(prompt_tokens)
        metrics.tokens.labels("answers").inc(sum(draft.tokens for draft in done.drafts))
        context.log_fields |= {"prompt_tokens": prompt_tokens, "forwards": done.forwards}
        return JSONResponse(edit_answer(service.name, done, prompt_tokens))
