"""Middleware around every HTTP request: its id, host and origin, API key, size, log and metrics.

Plain ASGI, so that streams pass through as they are and a client's leaving is noticed.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
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
LONGEST_SENTENCE = 500  # characters


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's format; what it quotes of a request is cut short and made text."""
    return {
        "error": {"message": _text(message), "type": kind, "param": param and _text(param)}
        | {"code": code}
    }


def _text(quoted: str) -> str:
    if len(quoted) > LONGEST_SENTENCE:
        quoted = f"{quoted[:LONGEST_SENTENCE]}..."
    # JSON can name half a character (a lone surrogate), which cannot be sent.
    return quoted.encode("utf-8", "backslashreplace").decode("utf-8")


class RequestMiddleware:
    """Checks a request's key and size, and logs and counts its answer."""

    def __init__(self, app: Any, config: ServeConfig, metrics: Metrics) -> None:
        self.app, self.config, self.metrics = app, config, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            # The answer to GET; the server itself leaves out the body.
            scope = {**scope, "method": "GET"}
        kept = self.config.log_prompts
        context = RequestContext(scope, receive, send, self.config.max_body, kept)
        try:
            refusal = self._refusal(scope)
            await (refusal or self.app)(scope, context.receive, context.send)
        except Exception:
            LOGGER.exception("unexpected error", extra={"fields": {"id": context.id}})
            if context.status is None:
                failure = error_body(f"internal error; the log knows it as {context.id}", "error")
                await JSONResponse(failure, 500)(scope, context.receive, context.send)
        finally:
            self._log_and_count(scope, method, context)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that must not come through."""
        headers = dict(scope["headers"])
        sentence = self._stranger(headers) if self.config.hosts else None
        if sentence is not None:
            return JSONResponse(error_body(sentence, "permission_error"), 403)
        if scope["method"] == "OPTIONS" or self._is_authorised(scope["path"], headers):
            return None
        body = error_body(
            "this server wants an API key, as Authorization: Bearer KEY",
            "authentication_error",
            code="invalid_api_key",
        )
        return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})

    def _stranger(self, headers: dict[bytes, bytes]) -> str | None:
        """What keeps a page in a browser on this machine from using a server that wants no key.

        A page says its origin. One that has its own name point to this machine (DNS rebinding)
        says that name as the host.
        """
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        if not _is_own(name_of(host), self.config.hosts):
            return (
                f"this server does not go by the name {host!r}: call it by its address, or start "
                "it with --allow-host"
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        own = origin.partition("://")[2] == host
        if origin and not own and not {origin, "*"} & set(self.config.origins):
            return f"pages of {origin!r} may not use this server: start it with --allow-origin"
        return None

    def _is_authorised(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self.config.api_keys or not path.startswith(GUARDED):
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # All keys are compared, each in constant time, so that the time taken gives nothing away.
        same = [hmac.compare_digest(given, key.encode()) for key in self.config.api_keys]
        return scheme.lower() == b"bearer" and any(same)

    def _log_and_count(self, scope: Scope, method: str, context: RequestContext) -> None:
        # The route, not the path: clients can make up any number of paths.
        route = getattr(scope.get("route"), "path", "other")
        seconds, status = time.monotonic() - context.started, context.status or 499
        self.metrics.answers.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        fields = {
            "id": context.id,
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **context.log_fields,
        }
        if context.sent:
            fields["body"] = _as_sent(bytes(context.sent))
        LOGGER.info("request", extra={"fields": fields})


class RequestContext:
    """One HTTP request: its id, log fields, bytes that came in, and the status of the answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, max_body: int, is_kept: bool = False
    ) -> None:
        """`is_kept`: `sent` has the body in the end, as the client sent it."""
        self.id = secrets.token_hex(8)
        self.started = time.monotonic()
        self.status: int | None = None
        self.log_fields: dict[str, Any] = {}
        scope["softmask"] = self
        self._receive, self._send, self._max_body = receive, send, max_body
        self.sent, self._is_kept = bytearray(), is_kept
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
        if self._is_kept:
            self.sent += message.get("body", b"")
        return message

    async def send(self, message: Message) -> None:
        """A message to the client."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


def _as_sent(body: bytes) -> Any:
    """JSON as it is, anything else as text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply for Python
        return body.decode("utf-8", "backslashreplace")


def name_of(host: str) -> str:
    """A Host header without its port, an address without brackets."""
    name = re.sub(r":\d*$", "", host)
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def _is_own(name: str, names: Sequence[str]) -> bool:
    """Whether it is one of the names, or points nowhere else: localhost, below it, an address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in (*names, "localhost") or name.endswith(".localhost")
    return True


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
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOGGER.setLevel(logging.INFO)
