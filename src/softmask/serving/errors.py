"""Errors of the server, each as an answer in OpenAI's format with its HTTP status."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ..settings import shown
from .engine import EngineClosed, QueueFull
from .middleware import error_body
from .strict import NAMED

# How a request ended that did not come to its end: status, type, sentence.
ENDINGS = {
    "deadline": (504, "timeout", "the request was not done within its deadline"),
    "shutdown": (503, "shutdown", "the server is shutting down: try again"),
    "broken": (503, "error", "the engine broke down; the server's log says more: try again"),
    "failed": (500, "error", "the model failed on this request; the server's log says more"),
    "malformed": (
        422,
        "invalid_output",
        "the answer was cut before it had the form that was asked for: leave out stop",
    ),
    "cancelled": (499, "cancelled", "the request was cancelled"),
}


class BeyondContext(ValueError):
    """A prompt, or what is to be written behind it, does not fit into the model's context."""


class Refusal(HTTPException):
    """What a client did wrong, by the code and the field by which OpenAI's errors name it."""

    def __init__(
        self, status: int, sentence: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(status, sentence)
        self.code, self.param = code, param


class Ended(Exception):
    """A request that was accepted and came to no answer."""

    def __init__(self, reason: str) -> None:
        status, kind, sentence = ENDINGS[reason]
        super().__init__(sentence)
        self.status, self.body = status, error_body(sentence, kind, code=reason)


def handle_errors(app: FastAPI) -> None:
    """Adds the handlers of every error that a route may raise."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        message, field = sentence_of(first)
        if first["loc"] == ("body",) and isinstance(first["input"], bytes):
            message = _not_json(request.headers.get("content-type"))
        body = error_body(message, "invalid_request_error", param=field, code="invalid_value")
        return JSONResponse(body, 400)

    @app.exception_handler(QueueFull)
    async def full(_request: Request, error: QueueFull) -> JSONResponse:
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
        body = error_body(f"the server is busy: {error}", "rate_limit_error", code="queue_full")
        return JSONResponse(body, 429, headers)

    @app.exception_handler(EngineClosed)
    async def closed(_request: Request, error: EngineClosed) -> JSONResponse:
        status, kind, sentence = ENDINGS["broken" if error.is_broken else "shutdown"]
        return JSONResponse(error_body(sentence, kind), status, {"Retry-After": "5"})

    @app.exception_handler(Ended)
    async def ended(_request: Request, error: Ended) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405 and request.method == "OPTIONS":
            return Response(status_code=204, headers=_allowed(error.headers))
        sentence = str(error.detail)
        if error.__cause__ is not None and sentence.endswith("parsing the body"):
            # Nested too deeply, endless numbers, no UTF-8: FastAPI keeps it to itself.
            sentence = f"the body is not valid JSON: {error.__cause__}"
        named = {"code": error.code, "param": error.param} if isinstance(error, Refusal) else {}
        body = error_body(sentence, "invalid_request_error", **named)
        return JSONResponse(body, error.status_code, _allowed(error.headers))


def _allowed(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of an error; what a route allows, with what every route does."""
    headers = dict(headers or {})
    if allowed := headers.get("Allow", headers.get("allow")):
        # Of a route with several it is a set's order, which differs from process to process.
        methods = set(allowed.split(", ")) | ({"HEAD"} if "GET" in allowed else set())
        headers["Allow"] = ", ".join([*sorted(methods), "OPTIONS"])
    return headers


def _not_json(content_type: str | None) -> str:
    """FastAPI hands on the body of another type as it is."""
    said = "has no Content-Type" if not content_type else f"says Content-Type {shown(content_type)}"
    return f"the request {said}: send JSON with -H 'Content-Type: application/json'"


def sentence_of(error: Any) -> tuple[str, str | None]:
    """A validation error in words, and the name of the field."""
    # pydantic appends the members of a union to the place; they are no names of fields.
    place = [str(part) for part in error["loc"][1:] if isinstance(part, int) or part.isidentifier()]
    if error["type"] == NAMED:
        place.append(error["ctx"]["name"])
    field = ".".join(place) or None
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error['ctx']['error']}", None
    message = error["msg"].removeprefix("Value error, ")
    return (f"{field}: {message}" if field else message), field


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A ValueError in here is what the client did wrong, in words."""
    try:
        yield
    except ValueError as error:
        code = "context_length_exceeded" if isinstance(error, BeyondContext) else None
        raise Refusal(400, " ".join(str(error).split()), code=code) from error
