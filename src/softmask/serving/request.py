"""What goes into the engine and what comes out: a request, its handle, its events, its result.

    handle = engine.submit(Request(ids, SamplingConfig(steps=32)))
    for event in handle: ...            # or, in asyncio: async for event in handle
    result = handle.result()            # or: await handle.finished()

A slow reader holds nobody up: a handle keeps at most PENDING events, and later ones are merged
into the newest.
Shape suffixes, as in the batch: M masked positions, K superposed tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..config import SamplingConfig, SoftMaskConfig, require
from ..constraints.token_automaton import TokenAutomaton
from ..decoding.growing import Room
from ..decoding.logprobs import Logprobs
from ..decoding.sequence import Rules

# A merged event says what the single ones said, but for when: nothing is lost to a slow reader.
PENDING = 64

FinishReason = Literal["done", "cancelled", "deadline", "failed", "shutdown"]


class QueueFull(RuntimeError):
    """The waiting queue is full; `retry_after` is an estimate of the seconds until it is not."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting: try again in {retry_after:.1f} seconds")
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes no more requests; `is_broken` where it was an error that ended it."""

    def __init__(self, broken: str | None = None) -> None:
        super().__init__(broken or "the engine is closed: it takes no requests")
        self.is_broken = broken is not None


@dataclass(frozen=True)
class Request:
    """One canvas and how it is to be denoised.

    Args:
        ids: token ids, the model's mask id where something is to be written.
        seed: what temperature, `alg_temp` and alg "origin" draw from; unused without them.
        deadline: seconds from submission until it is ended, waiting or running; None: never.
        top_logprobs: how many leading tokens an event reports where a token was committed, beside
            that token's own log-probability; 0: token ids alone.
        trace: whether events also report the state of each masked position.
        constraint: the form of the text between the first and the last mask; or of
        holes: those that begin at these places, each by itself.
        room: its one hole grows and shrinks as DreamOn's do.
        cache_salt: requests with another one share no kept prefixes with it.

    Raises:
        ValueError: no ids, a seed or a deadline out of range, a trace without `top_logprobs`.
    """

    ids: tuple[int, ...]
    sampling: SamplingConfig
    soft_mask: SoftMaskConfig | None = None
    rules: Rules = Rules()
    seed: int = 0
    deadline: float | None = None
    top_logprobs: int = 0
    trace: bool = False
    constraint: TokenAutomaton | None = None
    holes: tuple[int, ...] | None = None
    room: Room | None = None
    cache_salt: str = ""

    def __post_init__(self) -> None:
        require(bool(self.ids), "the canvas is empty: give token ids and masks")
        require(0 <= self.seed < 2**63, f"a seed must lie between 0 and 2**63, not {self.seed}")
        require(self.top_logprobs >= 0, f"top_logprobs must be at least 0, not {self.top_logprobs}")
        require(
            self.top_logprobs > 0 or not self.trace,
            "a trace reports leading tokens: give top_logprobs too",
        )
        late = self.deadline
        require(
            late is None or (late > 0 and math.isfinite(late)),
            f"a deadline must be a positive number of seconds, not {late}",
        )

    @property
    def positions(self) -> int:
        """How many positions of a canvas it takes: a guided one has a second branch."""
        columns = len(self.ids) if self.room is None else self.room.columns
        return columns * (2 if self.sampling.guidance else 1)


class Trace(NamedTuple):
    """The state of the masked positions of a sequence.

    `logprobs` is what a step last read there. With soft-masking a position's input is [MASK], by
    its own weight, + sum of `weights_MK` times `ids_MK`; K is 0 in plain decoding, and where the
    feedback is of all tokens, whose shares `logprobs` has if the rule is streamed.
    """

    columns_M: np.ndarray
    logprobs: Logprobs
    lambda_M: np.ndarray
    ids_MK: np.ndarray
    weights_MK: np.ndarray


@dataclass(frozen=True)
class Event:
    """What one step did, or several that were not read in time.

    `columns` and `ids` are what was committed, `logprobs` what was read there; columns before
    `final` are all decided, so text before it never changes. `left` counts masks, `step` the
    steps of `steps` that are over. `source` says of a hole that grew or shrank from which column
    each of its columns now came (-1: a new mask); the hole begins where it did, what is behind it
    moved along, and all other fields speak of columns as they are now. `cached_tokens` leading ones
    were kept from before.
    """

    step: int
    steps: int
    forwards: int
    left: int
    final: int
    columns: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: Logprobs | None = None
    trace: Trace | None = None
    source: tuple[int, ...] | None = None
    first: int = 0  # the hole's first column
    cached_tokens: int = 0

    def then(self, later: Event) -> Event:
        """Both as one."""
        logprobs = None
        if self.logprobs is not None and later.logprobs is not None:
            logprobs = self.logprobs.then(later.logprobs)
        columns, source = self.columns, self.source
        if later.source is not None:
            # Where this one's columns are after the later one: what is decided is never removed.
            now = {column: self.first + place for place, column in enumerate(later.source)}
            columns = tuple(now[column] for column in columns)
            source = later.source
            if self.source is not None:
                begin = self.source
                source = tuple(
                    column if column < 0 else begin[column - self.first] for column in source
                )
        return dataclasses.replace(
            later,
            columns=columns + later.columns,
            ids=self.ids + later.ids,
            logprobs=logprobs,
            source=source,
        )


@dataclass(frozen=True)
class Result:
    """How a request ended.

    `ids` is its canvas, with `left` masks where it ended early; `error` says what failed, and
    `cause` is the exception behind it, where there was one.
    `waited` and `ran` are seconds in the waiting queue and in the batch, `cached_tokens` its
    leading ones whose keys and values an earlier request had left.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    error: str | None
    left: int
    steps: int
    forwards: int
    waited: float
    ran: float
    cached_tokens: int = 0
    cause: Exception | None = None

    def failure(self, words: str) -> ValueError:
        """What to raise where this is no text, in these words; its `__cause__` is the error itself,
        of a rule the one that the rule raised."""
        found = ValueError(words)
        found.__cause__ = None if self.cause is None else self.cause.__cause__ or self.cause
        return found

    def cost(self) -> dict[str, int | float]:
        """What it took, for clients."""
        return {
            "forwards": self.forwards,
            "steps": self.steps,
            "waited": round(self.waited, 4),
            "seconds": round(self.ran, 4),
            "cached_tokens": self.cached_tokens,
        }


class RequestHandle:
    """An accepted request, for its client: events (for one reader), result, cancellation."""

    def __init__(
        self,
        request: Request,
        masks: int,
        reading: int,
        now: float,
        is_driven: Callable[[], bool],
    ) -> None:
        self.request, self.masks, self.reading = request, masks, reading
        self.submitted, self.bypassed = now, 0
        self._is_driven = is_driven
        self.ending: FinishReason | None = None  # why its client ends it
        self._events: deque[Event] = deque()
        self._result: Result | None = None
        self._changed = threading.Condition()
        self._wakers: set[Callable[[], None]] = set()

    def cancel(self) -> None:
        """Ends the request before the engine's next step; one that is over stays as it is."""
        self.ending = self.ending or "cancelled"

    def stop(self) -> None:
        """Ends it likewise, but as done: its client has all of the text that it wants."""
        self.ending = self.ending or "done"

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self._result is not None

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end.

        Raises:
            TimeoutError: it has not come after `timeout` seconds; the request goes on.
            RuntimeError: without a `timeout`, of an engine that does nothing yet.
        """
        if timeout is None:
            self._check_driven()
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_over, timeout):
                raise TimeoutError(f"no result after {timeout} seconds; the request goes on")
        assert self._result is not None
        return self._result

    async def finished(self) -> Result:
        """`result()` for asyncio."""
        with self._waking() as ready:
            while self._result is None:
                await ready.wait()
                ready.clear()
        return self._result

    def _check_driven(self) -> None:
        """Raises RuntimeError where waiting would never end."""
        if not self.is_over and not self._is_driven():
            raise RuntimeError(
                "the engine was not started, so nothing would ever come: use it in a `with` block, "
                "or call its start(), or run_once() until that is False"
            )

    def pending(self) -> list[Event]:
        """The events that have not been read yet, without waiting."""
        with self._changed:
            events, self._events = list(self._events), deque()
        return events

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                if not self._events:
                    self._check_driven()
                self._changed.wait_for(lambda: self._events or self.is_over)
                if not self._events:
                    return
                event = self._events.popleft()
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        with self._waking() as ready:
            while True:
                ready.clear()
                with self._changed:
                    event = self._events.popleft() if self._events else None
                    over = self.is_over
                if event is not None:
                    yield event
                elif over:
                    return
                else:
                    await ready.wait()

    @contextlib.contextmanager
    def _waking(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set, from any thread, when something is new."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is no reader
                loop.call_soon_threadsafe(ready.set)

        with self._changed:
            self._wakers.add(wake)
        try:
            yield ready
        finally:
            with self._changed:
                self._wakers.discard(wake)

    # Called by the engine.

    def put(self, event: Event) -> None:
        """Adds an event for the reader."""
        with self._changed:
            if len(self._events) == PENDING:
                event = self._events.pop().then(event)
            self._events.append(event)
            self._notify()

    def end(self, result: Result) -> None:
        """Sets the result; events that were not read can still be."""
        with self._changed:
            self._result = result
            self._notify()

    def _notify(self) -> None:
        self._changed.notify_all()
        for wake in self._wakers:
            wake()
