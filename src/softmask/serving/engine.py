"""Requests in, steps out: a batch that texts enter and leave between steps.

    with Engine(model, memory_mb=2048) as engine:
        ticket = engine.submit(Request(ids, SamplingConfig(steps=32)))
        print(ticket.result().ids)

A thread of its own owns the model and the batch. A turn of it: end what was cancelled or is late;
let in who has been waiting; one step of every text, whose tickets hear of it; end what is done.
Each request has its own sampling, soft-masking, rules, seed and deadline, and comes out as it
would alone. Where there is no thread (neither `with` nor `start`), `run_once` takes one turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..config import require, require_choice
from ..models import DreamModel
from .limits import Limits
from .request import EngineClosed, Event, FinishReason, QueueFull, Request, Result, Ticket, Trace
from .running_batch import Seat, Seats, describe
from .scheduler import admit

__all__ = [
    "Engine",
    "EngineClosed",
    "Event",
    "QueueFull",
    "Request",
    "Result",
    "Stats",
    "Ticket",
    "Trace",
]

Finish = Literal["all", "running", "nothing"]
FINISH = ("all", "running", "nothing")  # the gentlest first
RECENT = 32  # steps whose seconds are averaged


@dataclass(frozen=True)
class Stats:
    """The engine at one moment; counts are since its start.

    `ended` counts requests by reason, `apart` steps that failed and were repeated in two halves,
    `forwards` those of the batch. `step_seconds` is the mean of the last steps, `busy_seconds` the
    sum of all; `mean_lambda` is over the masked positions of soft-masked texts.
    """

    running: int
    waiting: int
    positions: int
    positions_taken: int
    submitted: int
    refused: int
    ended: dict[FinishReason, int]
    steps: int
    forwards: int
    apart: int
    committed: int
    step_seconds: float
    busy_seconds: float
    mean_lambda: float


class Engine:
    """Denoises requests together on one model.

    Args:
        memory_mb, positions, running, cached, k: see `Limits`.
        queue: how many requests may wait; more are refused.
        clock: seconds, for tests.

    Raises:
        ValueError: a count below 1, or what `Limits` refuses.
    """

    def __init__(
        self,
        model: DreamModel,
        *,
        memory_mb: float | None = None,
        positions: int | None = None,
        queue: int = 64,
        running: int = 64,
        cached: bool = True,
        k: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require(queue >= 1, f"queue must be at least 1, not {queue}")
        self.limits = Limits(
            model, memory_mb=memory_mb, positions=positions, running=running, cached=cached, k=k
        )
        self.queue = queue
        self._clock = clock
        self._seats = Seats(self.limits)
        self._thread: threading.Thread | None = None
        # Shared with those who submit, under the lock.
        self._lock = threading.Condition()
        self._line: list[Ticket] = []
        self._open: set[Ticket] = set()  # without a result
        self._closing: Finish | None = None
        self._grace_ends: float | None = None
        self._broken: str | None = None
        self._counts: Counter[str] = Counter()
        self._ended: Counter[FinishReason] = Counter()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._busy_seconds = 0.0

    # For those who submit, from any thread.

    def submit(self, request: Request) -> Ticket:
        """Puts a request into the line.

        Raises:
            ValueError: no mask, an id outside of the vocabulary, more tokens than the model's
                context or the engine's memory takes, a k that is too large, fewer steps than
                blocks or thousands of them, a cache where the engine has none.
            QueueFull: too many are waiting.
            EngineClosed: the engine was closed, or broke down.
        """
        masks, reading = self.limits.check(request)
        with self._lock:
            if self._closing is not None:
                raise EngineClosed(self._broken or "the engine is closed: it takes no requests")
            if len(self._line) >= self.queue:
                self._sweep_line()
            if len(self._line) >= self.queue:
                self._counts["refused"] += 1
                raise QueueFull(len(self._line), self._retry_after())
            ticket = Ticket(request, masks, reading, self._clock())
            self._line.append(ticket)
            self._open.add(ticket)
            self._counts["submitted"] += 1
            self._lock.notify_all()
        return ticket

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._closing is None

    def stats(self) -> Stats:
        """What it does, and has done."""
        with self._lock:
            seats, counts, recent = self._seats, self._counts, list(self._recent)
            return Stats(
                running=len(seats.taken),
                waiting=len(self._line),
                positions=self.limits.positions,
                positions_taken=self.limits.positions - seats.room.spans.free,
                submitted=counts["submitted"],
                refused=counts["refused"],
                ended=dict(self._ended),
                steps=counts["steps"],
                forwards=seats.batch.forwards,
                apart=seats.apart,
                committed=seats.committed,
                step_seconds=sum(recent) / len(recent) if recent else 0.0,
                busy_seconds=self._busy_seconds,
                mean_lambda=seats.mean_lambda,
            )

    def _retry_after(self) -> float:
        """Seconds until those who wait now have entered: their steps, shared among the seats."""
        if not self._recent:
            return 1.0
        steps = sum(min(t.request.sampling.steps, t.masks) for t in self._line)
        step_seconds = sum(self._recent) / len(self._recent)
        return step_seconds * max(1.0, steps / max(1, len(self._seats.taken)))

    # Life and death.

    def start(self) -> Engine:
        """Starts the thread."""
        assert self._thread is None, "the engine was started before"
        self._thread = threading.Thread(target=self._work, name="softmask-engine", daemon=True)
        self._thread.start()
        return self

    def close(self, *, finish: Finish = "running", grace: float | None = None) -> None:
        """Takes no more requests, and returns when all have ended.

        Args:
            finish: what is denoised to its end: "all", those "running", or "nothing". The others
                end as "shutdown", with what they have. A second call can only make it less.
            grace: seconds after which nothing is finished any more; None: as long as it takes.

        Raises:
            ValueError: no such choice.
        """
        require_choice("finish", finish, FINISH)
        with self._lock:
            self._closing = max(finish, self._closing or finish, key=FINISH.index)
            if grace is not None:
                ends = self._clock() + grace
                self._grace_ends = min(ends, self._grace_ends or ends)
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join()
        else:
            while self.run_once():
                pass

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, error_type: type | None, *_: Any) -> None:
        self.close(finish="running" if error_type is None else "nothing")

    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self.run_once()
        except Exception as error:  # or everybody would wait for ever
            logging.getLogger(__name__).exception("the engine broke down")
            self._break_down(f"the engine broke down: {describe(error)}")

    def _wait_for_work(self) -> bool:
        """False when the engine is closed and nothing is left."""
        with self._lock:
            self._lock.wait_for(lambda: self._open or self._closing is not None)
            return bool(self._open)

    def _break_down(self, message: str) -> None:
        with self._lock:
            self._closing, self._broken, self._line = "nothing", message, []
            tickets = list(self._open)
        for ticket in tickets:
            self._end(ticket, "failed", error=message)

    # A turn of the thread.

    def run_once(self) -> bool:
        """One turn; returns whether anything is left. For engines without a thread."""
        own = self._thread is None or self._thread is threading.current_thread()
        assert own, "the engine's thread takes the turns"
        self._end_early()
        with self._lock:
            if self._closing in (None, "all"):
                self._line = admit(self._line, self._seats.reserve)
        for ticket, error in self._seats.sit(self._clock()):
            self._end(ticket, "failed", error=error)
        if self._seats.taken:
            self._step()
        return bool(self._open)

    def _step(self) -> None:
        started = self._clock()
        self._seats.step()
        seconds = self._clock() - started
        with self._lock:
            self._counts["steps"] += 1
            self._recent.append(seconds)
            self._busy_seconds += seconds
        for seat in [seat for seat in self._seats.taken if seat.text.is_done]:
            failure = seat.text.failure
            self._end_seat(seat, "done" if failure is None else "failed", error=failure)

    def _end_early(self) -> None:
        """Ends what is cancelled, late, or not to be finished."""
        if self._grace_ends is not None and self._clock() >= self._grace_ends:
            self._closing = "nothing"
        for seat in list(self._seats.taken):
            reason = self._early(seat.ticket)
            if reason is not None:
                self._end_seat(seat, reason)
        with self._lock:
            self._sweep_line()

    def _sweep_line(self) -> None:
        """The same of the line; under the lock."""
        shut = self._closing in ("running", "nothing")
        reasons = [(t, "shutdown" if shut else self._early(t)) for t in self._line]
        self._line = [ticket for ticket, reason in reasons if reason is None]
        for ticket, reason in reasons:
            if reason is not None:
                self._end(ticket, reason)

    def _early(self, ticket: Ticket) -> FinishReason | None:
        if ticket.is_cancelled:
            return "cancelled"
        deadline = ticket.request.deadline
        if deadline is not None and self._clock() >= ticket.submitted + deadline:
            return "deadline"
        return "shutdown" if self._closing == "nothing" else None

    def _end_seat(self, seat: Seat, reason: FinishReason, *, error: str | None = None) -> None:
        self._end(seat.ticket, reason, error=error, seat=seat, ids=self._seats.leave(seat))

    def _end(
        self,
        ticket: Ticket,
        reason: FinishReason,
        *,
        error: str | None = None,
        seat: Seat | None = None,
        ids: tuple[int, ...] | None = None,
    ) -> None:
        now = self._clock()
        entered = now if seat is None else seat.entered
        with self._lock:
            self._open.discard(ticket)
            self._ended[reason] += 1
        ticket.end(
            Result(
                ids=ticket.request.ids if ids is None else ids,
                finish_reason=reason,
                error=error,
                left=ticket.masks if seat is None else seat.text.plan.total_left,
                steps=0 if seat is None else seat.text.step,
                forwards=0 if seat is None else seat.text.forwards,
                waited=entered - ticket.submitted,
                ran=now - entered,
            )
        )
