"""Open connections: how many there may be, and how long a client may keep one waiting.

A client that opens connections and says nothing pays nothing for them, and each is a file
descriptor here. So a request has to arrive whole in time, and an answer has to be taken in time.
Where as many are open as there may be, the one that has waited longest makes room for the next.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..config import require
from .middleware import LOGGER, error_body

# Descriptors for files that are opened while the server runs.
SPARE_DESCRIPTORS = 32
# Connections are accepted in portions of so many. What is accepted and not yet counted, or counted
# and not yet closed, is at most four of them.
PORTION = 16
# A warning at most every so many seconds: whoever opens connections must not fill the log.
WARN_SECONDS = 60.0


def room_for_connections(wanted: int) -> int:
    """How many connections may be open.

    Args:
        wanted: the most that are of use; this process's limit on open files may allow fewer.
            Windows has no such limit.

    Raises:
        ValueError: the limit allows none.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    taken = len(os.listdir("/dev/fd")) + SPARE_DESCRIPTORS + 4 * PORTION
    require(
        limit > taken,
        f"only {limit} files may be open at once, which leaves none for connections: raise the "
        f"limit (ulimit -n {2 * taken})",
    )
    return min(wanted, limit - taken)


class Timer:
    """Calls `then` some seconds after its start, unless it is stopped before."""

    def __init__(self, seconds: float, then: Callable[[], None]) -> None:
        self._seconds, self._then = seconds, then
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> bool:
        """Whether it was not running already."""
        if self._handle is not None:
            return False
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._then)
        return True

    def stop(self) -> None:
        """Does nothing where it is not running."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(H11Protocol):
    """An HTTP connection whose client has to get on with it.

    `most` may be open, and `arrival` is in seconds; `limited` sets both.
    """

    most: int
    arrival: float
    warned = -WARN_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._since = self.loop.time()
        self._reading = Timer(self.arrival, self._too_slow)
        self._writing = Timer(self.arrival, self.drop)

    @property
    def _is_answering(self) -> bool:
        """Whether a request has arrived whole and its answer is not complete."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    @property
    def _is_between(self) -> bool:
        """Whether nothing has arrived of the next request."""
        return self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is closed."""
        self._reading.stop()
        self._writing.stop()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        if self._is_between:
            self._reading.stop()  # the request has its whole time
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """An answer is written, if not yet taken."""
        self._reading.stop()
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client takes the answer more slowly than it is written."""
        super().pause_writing()
        self._writing.start()

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._writing.stop()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server ends: what has not arrived will not be answered."""
        if self._is_answering or self.transport.get_write_buffer_size():
            super().shutdown()
        else:
            self.drop()

    def drop(self) -> None:
        """Closes the connection at once."""
        self.connections.discard(self)
        self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """A request to become a WebSocket is answered as any other: nothing to warn of."""

    def send_400_response(self, msg: str) -> None:
        """To what is no request of HTTP."""
        self._refuse("400 Bad Request", error_body(f"{msg.rstrip('.')}", "invalid_request_error"))

    def _watch(self) -> None:
        """Has the time run while the client is the one to do something."""
        if self._is_answering:
            self._reading.stop()
        elif self._reading.start():
            self._since = self.loop.time()

    def _too_slow(self) -> None:
        is_unanswered = self.cycle is None or not self.cycle.response_started
        if not self._is_between and (self.conn.their_state is h11.IDLE or is_unanswered):
            sentence = f"the request did not arrive whole within {self.arrival:g} seconds"
            self._refuse("408 Request Timeout", error_body(sentence, "timeout"))
        else:
            self.drop()

    def _make_room(self) -> None:
        """Closes the connection that has waited longest for its client; where none waits, this."""
        now = self.loop.time()
        if now - Connection.warned >= WARN_SECONDS:
            Connection.warned = now
            LOGGER.warning(
                "as many connections are open as there may be: those that wait are closed",
                extra={"fields": {"connections": self.most}},
            )
        waiting = [
            one
            for one in self.connections
            if isinstance(one, Connection) and one is not self and not one._is_answering
        ]
        if waiting:
            min(waiting, key=lambda one: one._since).drop()
        else:
            sentence = "the server is busy: all of its connections are being answered"
            self._refuse("503 Service Unavailable", error_body(sentence, "rate_limit_error"))

    def _refuse(self, status: str, body: dict[str, Any]) -> None:
        """An answer outside of any request, and the end of the connection."""
        content = json.dumps(body).encode()
        again = "" if status.startswith("400") else "retry-after: 5\r\n"
        head = (
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{again}"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.connections.discard(self)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def limited(most: int, arrival: float) -> type[Connection]:
    """The class of a server's connections.

    Args:
        most: that may be open.
        arrival: seconds in which a request has to arrive, and an answer to be taken.
    """
    return type("Connection", (Connection,), {"most": most, "arrival": arrival})
