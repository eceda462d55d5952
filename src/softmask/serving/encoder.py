"""Requests on their way into the engine: encoded, and their forms compiled, beside an event loop.

Tokenizing a long prompt takes a while, a form that is not known yet seconds at worst. Each has a
thread of its own, so that only requests with new forms wait for those.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..decoding.forms import FormWanted, only_look_up
from .engine import Engine, EngineClosed, QueueFull

RECENT = 8  # forms whose seconds are averaged


@dataclass
class _Form:
    """A form that is compiled or waits for that, and how many requests want it."""

    compiled: asyncio.Future[None]
    wanted_by: int = 0


class Encoder:
    """Encodes requests for an engine, one after the other; for one event loop.

    Requests that want the same new form wait together, and one that is given up waits no longer:
    a form that nobody wants any more is not compiled, unless that has begun.

    Attributes:
        refused: requests that found as many forms waiting as requests may wait in the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Tokenizers keep a setting between two calls, and 60 MB for each thread that had a long
        # prompt.
        self._encoder = ThreadPoolExecutor(1, "softmask-encoder", only_look_up)
        self._compiler = ThreadPoolExecutor(1, "softmask-forms")
        self._forms: dict[Hashable, _Form] = {}
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self.refused = 0

    @property
    def forms(self) -> int:
        """How many forms requests wait for: one that is compiled, and those behind it."""
        return len(self._forms)

    def start(self, encode: Callable[[], Any]) -> asyncio.Task[Any]:
        """Calls this in a thread, as soon as the forms that it looks up are known.

        The task raises what `encode` does, and QueueFull where too many forms wait. Whoever
        cancels it waits no longer.

        Raises:
            EngineClosed: see `check_open`.
        """
        self.check_open()
        task = asyncio.create_task(self._encoded(encode))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def check_open(self) -> None:
        """Raises EngineClosed where this or the engine was closed, or the engine broke down."""
        if self._is_closed or not self._engine.is_open:
            raise EngineClosed(self._engine.broken)

    def close(self) -> None:
        """Cancels all tasks and takes no more. A form that is being compiled ends in its thread.

        From any thread.
        """
        self._is_closed = True
        for task in list(self._tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def _encoded(self, encode: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._encoder, encode)
            except FormWanted as wanted:
                await self._compiled(wanted)

    async def _compiled(self, wanted: FormWanted) -> None:
        form = self._forms.get(wanted.form)
        if form is None:
            form = self._forms[wanted.form] = self._in_line(wanted.compile)
        form.wanted_by += 1
        try:
            await asyncio.shield(form.compiled)
        finally:
            form.wanted_by -= 1
            if not form.wanted_by:
                del self._forms[wanted.form]
                form.compiled.cancel()

    def _in_line(self, compile: Callable[[], object]) -> _Form:
        waiting = max(0, len(self._forms) - 1)
        if waiting >= self._engine.queue:
            self.refused += 1
            seconds = sum(self._seconds) / len(self._seconds) if self._seconds else 1.0
            raise QueueFull(waiting, seconds * waiting)
        loop = asyncio.get_running_loop()
        return _Form(loop.run_in_executor(self._compiler, self._compile, compile))

    def _compile(self, compile: Callable[[], object]) -> None:
        self.check_open()
        started = time.monotonic()
        try:
            compile()
        finally:
            self._seconds.append(time.monotonic() - started)
