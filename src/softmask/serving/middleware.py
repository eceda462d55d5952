"""Middleware around every HTTP request: its id, API key, size limit, log line and metrics.

Plain ASGI, so that streams pass through as they are and a client's leaving is noticed.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .config import ServeConfig
from .metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOGGER = logging.getLogger("softmask.server")
GUARDED = "/v1/"


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class RequestMiddleware:
    """Checks a request's key and size, and logs and counts its answer."""

    def __init__(self, app: Any, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = RequestContext(scope, receive, send, self.config.max_body)
        try:
            if self._is_authorised(scope):
                await self.app(scope, context.receive, context.send)
            else:
                refusal = error_body(
                    "this server wants an API key, as Authorization: Bearer KEY",
                    "authentication_error",
                    code="invalid_api_key",
                )
                answer = JSONResponse(refusal, 401, {"WWW-Authenticate": "Bearer"})
                await answer(scope, context.receive, context.send)
        except Exception:
            LOGGER.exception("unexpected error", extra={"fields": {"id": context.id}})
            if context.status is None:
                failure = error_body(f"internal error; the log knows it as {context.id}", "error")
                await JSONResponse(failure, 500)(scope, context.receive, context.send)
        finally:
            self._log_and_count(scope, context)

    def _is_authorised(self, scope: Scope) -> bool:
        if not self.config.api_keys or not scope["path"].startswith(GUARDED):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        # All keys are compared, each in constant time, so that the time taken gives nothing away.
        same = [hmac.compare_digest(given, b"Bearer " + k.encode()) for k in self.config.api_keys]
        return any(same)

    def _log_and_count(self, scope: Scope, context: RequestContext) -> None:
        # The route, not the path: clients can make up any number of paths.
        route = getattr(scope.get("route"), "path", "other")
        seconds, status = time.monotonic() - context.started, context.status or 499
        self.metrics.answers.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields = {
            "id": context.id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **context.log_fields,
        }
        LOGGER.info("request", extra={"fields": fields})


class RequestContext:
    """One HTTP request: its id, log fields, bytes that came in, and the status of the answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self.id = secrets.token_hex(8)
        self.started = time.monotonic()
        self.status: int | None = None
        self.log_fields: dict[str, Any] = {}
        scope["softmask"] = self
        self._receive, self._send, self._max_body = receive, send, max_body
        self._size = 0

    async def receive(self) -> Message:
        """A message of the client.

        Raises:
            HTTPException: the body is too large.
        """
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._max_body:
            raise HTTPException(413, f"the request is larger than {self._max_body} bytes")
        return message

    async def send(self, message: Message) -> None:
        """A message to the client."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its extra `fields`."""
        values = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def log_as_json() -> None:
    """Everything that is logged goes to standard error, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(logging.INFO)
