"""A relay between a client and the server that writes down what the client asks.

The answer is handed on as it comes, so that streams stay streams. Keys are not written down.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

KEPT_HEADERS = ("accept", "content-type", "openai-beta")
OF_A_CONNECTION = frozenset({"connection", "transfer-encoding", "keep-alive", "host"})
LONGEST = 300  # characters of a text in a record; prompts of agents have thousands


@contextlib.contextmanager
def recording(server: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a relay to `server`, and what was asked there so far, with its status."""
    asked: list[dict[str, Any]] = []
    host = urlsplit(server).netloc

    class Relay(BaseHTTPRequestHandler):
        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in OF_A_CONNECTION}
            onward = http.client.HTTPConnection(host, timeout=300)
            onward.request(self.command, self.path, body or None, headers)
            answer = onward.getresponse()
            record = {"method": self.command, "path": self.path, "status": answer.status}
            record["headers"] = {k: self.headers[k] for k in KEPT_HEADERS if k in self.headers}
            if body:
                record["body"] = json.loads(body)
            asked.append(record)
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in OF_A_CONNECTION:
                    self.send_header(name, value)
            self.end_headers()
            parts = []
            while part := answer.read1(65536):
                parts.append(part)
                self.wfile.write(part)
            if answer.status >= 400:
                record["error"] = b"".join(parts).decode(errors="replace")[:600]
            onward.close()

        do_GET = do_POST = do_HEAD = do_OPTIONS = relay

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: what was asked is in the record."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Relay) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{relay.server_port}", asked
        finally:
            relay.shutdown()
            thread.join()


def fixture(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of a client's requests: each form of a request once, long texts cut."""
    kept: dict[str, dict[str, Any]] = {}
    for record in asked:
        short = {**record, "body": _cut(record["body"])} if "body" in record else record
        kept.setdefault(json.dumps([record["path"], _form(short.get("body"))]), short)
    return list(kept.values())


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_cut(one) for one in value]
    return value[:LONGEST] if isinstance(value, str) else value


def _form(value: Any) -> Any:
    """Names and types of what a body holds, down to its leaves."""
    if isinstance(value, dict):
        return {key: _form(one) for key, one in sorted(value.items())}
    if isinstance(value, list):
        return [_form(one) for one in value]
    return type(value).__name__
