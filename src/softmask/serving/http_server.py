"""The process that serves: from a socket that listens to an exit code."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from types import FrameType

import uvicorn

from .config import DRAIN_SECONDS
from .connections import PORTION, limited, room_for_connections
from .listener import address_of
from .server import create_app
from .service import Service

# Connections that wait in the system to be accepted: a crowd must not find the door shut.
QUEUED = 1024
# Seconds that answers have to reach their clients once they were told to end at once.
HURRY_SECONDS = 1.0


class HttpServer(uvicorn.Server):
    """Serves until a signal comes, or the engine breaks down.

    The first SIGTERM or Ctrl-C lets running requests come to their end, within the grace. A second
    Ctrl-C tells them that the server ends, which takes a step of the engine. A third ends the
    process where it stands.

    Raises:
        ValueError: this process may have too few files open.
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        most = room_for_connections(service.config.connections)
        settings = uvicorn.Config(
            create_app(service),
            # Connections are counted by this loop and this protocol.
            loop="asyncio",
            http=limited(most, service.config.arrival),
            ws="none",
            backlog=PORTION,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
        )
        super().__init__(settings)
        self.service, self.listener = service, listener
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve_to_the_end(self) -> int:
        """Serves; returns the exit code: 1 where the engine broke down."""
        engine = self.service.engine.start()
        try:
            self.run(sockets=[self.listener])
        finally:
            _let_interrupts_kill()
            engine.close(finish="nothing")
        return 0 if engine.broken is None else 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept, and says where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.listener.listen(QUEUED)
        address = address_of(self.listener)
        print(f"softmask: serving {self.service.name} at {address}", flush=True)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: a broken engine will not answer again, another process may."""
        return await super().on_tick(counter) or self.service.engine.broken is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets answers reach their clients, but not for ever."""
        self.service.encoder.close()
        seconds = self.service.config.grace + DRAIN_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._drop_connections)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        again = self.should_exit and sig == signal.SIGINT
        engine, grace = self.service.engine, self.service.config.grace
        settings = {"finish": "nothing"} if again else {"finish": "running", "grace": grace}
        threading.Thread(target=engine.close, kwargs=settings, daemon=True).start()
        if not again:
            super().handle_exit(sig, frame)
        elif self._loop is not None:
            _let_interrupts_kill()
            loop = self._loop
            loop.call_soon_threadsafe(loop.call_later, HURRY_SECONDS, self._drop_connections)

    def _drop_connections(self) -> None:
        """Their requests end as those of clients that left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _let_interrupts_kill() -> None:
    """From here on there is nothing to save, and a traceback would say nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
