"""Continuous batching: requests enter and leave a running batch between steps.

    with Engine(model, memory_mb=2048) as engine:
        handle = engine.submit(Request(ids, SamplingConfig(steps=32)))
        print(handle.result().ids)

A thread of its own owns the model and the batch. One iteration of it ends what was cancelled or is
late, starts waiting requests that fit, takes one step of every running one, publishes its events,
and ends what is done. Each request has its own sampling, soft-masking, rules, seed and deadline,
and its result is what it would be alone. Where there is no thread (neither `with` nor `start`),
`run_once` runs one iteration.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..config import require, require_choice
from ..decoding.prefix_cache import PrefixStats
from ..models import DreamModel
from .limits import Limits
from .request import (
    EngineClosed,
    Event,
    FinishReason,
    QueueFull,
    Request,
    RequestHandle,
    Result,
    Trace,
)
from .running_batch import RunningBatch, Slot, describe
from .scheduler import schedule
from .scoring import ScoreHandle, ScoreQueue, ScoreRequest

__all__ = [
    "Engine",
    "EngineClosed",
    "Event",
    "QueueFull",
    "Request",
    "RequestHandle",
    "Result",
    "Stats",
    "Trace",
]

Finish = Literal["all", "running", "nothing"]
FINISH = ("all", "running", "nothing")  # the one that finishes most first
RECENT = 32  # steps whose seconds are averaged


@dataclass(frozen=True)
class Stats:
    """The engine at one moment; counts are since its start.

    `ended` counts requests by reason, `apart` steps that failed and were repeated in two halves,
    `forwards` those of the batch. `step_seconds` is the mean of the last steps, `busy_seconds` the
    sum of all; `mean_lambda` is over the masked positions of soft-masked sequences.
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
    prefixes: PrefixStats


class Engine:
    """Denoises requests together on one model.

    Args:
        memory_mb: what requests may take up, weights not included; or
        positions: the length of its canvas, whose memory then follows.
        queue: how many requests may wait; more are refused.
        running: how many may run at once.
        cached: whether keys and values are kept.
        k: the most tokens that soft-masking may mix in, and that may be reported.
        prefix_cache_mb: of that memory (with `positions`: beside it), what keys and values of
            earlier requests may take up, for later ones that begin as they did; 0: none are kept;
            None: a quarter of `memory_mb` where the model is block-causal, its caches exact.
        clock: seconds, for tests.

    Raises:
        ValueError: a count below 1, or what `Limits` refuses.
    """

    # As of `denoise`: the thread could not change what is made within inference_mode.
    @torch.inference_mode(False)
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
        prefix_cache_mb: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require(queue >= 1, f"queue must be at least 1, not {queue}")
        self.limits = Limits(
            model,
            memory_mb=memory_mb,
            positions=positions,
            running=running,
            cached=cached,
            k=k,
            prefix_cache_mb=prefix_cache_mb,
        )
        self.queue = queue
        self._clock = clock
        self._batch = RunningBatch(self.limits)
        self._thread: threading.Thread | None = None
        self._is_driven = False  # by its thread, or by whoever calls `run_once`
        # Shared with the threads that submit, under the lock.
        self._lock = threading.Condition()
        self._waiting: list[RequestHandle] = []
        self._open: set[RequestHandle] = set()  # without a result
        self.scores = ScoreQueue(self.limits, clock)
        self._closing: Finish | None = None
        self._grace_ends: float | None = None
        self.broken: str | None = None  # what ended the thread, if it was an error
        self._counts: Counter[str] = Counter()
        self._ended: Counter[FinishReason] = Counter()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._busy_seconds = 0.0

    # Called by clients, from any thread.

    def submit(self, request: Request) -> RequestHandle:
        """Puts a request into the waiting queue.

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
                raise EngineClosed(self.broken)
            if len(self._waiting) >= self.queue:
                self._expire_waiting()
            if len(self._waiting) >= self.queue:
                self._counts["refused"] += 1
                raise QueueFull(len(self._waiting), self._retry_after())
            handle = RequestHandle(request, masks, reading, self._clock(), lambda: self._is_driven)
            self._waiting.append(handle)
            self._open.add(handle)
            self._counts["submitted"] += 1
            self._lock.notify_all()
        return handle

    def score(self, request: ScoreRequest) -> ScoreHandle:
        """Scores given texts, in chunks between the steps of the requests that run.

        Raises:
            ValueError: a text that is empty, or too long for the model's context or the engine's
                memory, or an id outside of the vocabulary.
            QueueFull, EngineClosed: as `submit`.
        """
        self.scores.check(request)
        with self._lock:
            if self._closing is not None:
                raise EngineClosed(self.broken)
            if len(self.scores) >= self.queue:
                self._counts["refused"] += 1
                raise QueueFull(len(self.scores), self._retry_after())
            handle = ScoreHandle(request, self._clock())
            self.scores.put(handle)
            self._lock.notify_all()
        return handle

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._closing is None

    def stats(self) -> Stats:
        """What the engine does now, and has done since its start."""
        with self._lock:
            batch, counts, recent = self._batch, self._counts, list(self._recent)
            return Stats(
                running=len(batch.running),
                waiting=len(self._waiting),
                positions=self.limits.positions,
                positions_taken=self.limits.positions - batch.allocator.spans.free,
                submitted=counts["submitted"],
                refused=counts["refused"],
                ended=dict(self._ended),
                steps=counts["steps"],
                forwards=batch.batch.forwards,
                apart=batch.apart,
                committed=batch.committed,
                step_seconds=sum(recent) / len(recent) if recent else 0.0,
                busy_seconds=self._busy_seconds,
                mean_lambda=batch.mean_lambda,
                prefixes=PrefixStats() if batch.prefixes is None else batch.prefixes.stats(),
            )

    def _retry_after(self) -> float:
        """Seconds until those that wait now have started: their steps, shared among the slots.

        Slots are those that there is room for, not those that run: before the thread has started
        the first of a crowd, none does.
        """
        if not self._recent or not self._waiting:
            return 1.0
        step = sum(self._recent) / len(self._recent)
        seconds, tokens = 0.0, 0
        for handle in self._waiting:
            request = handle.request
            own = step * min(request.sampling.steps, handle.masks)
            seconds += own if request.deadline is None else min(own, request.deadline)
            tokens += request.positions
        fit = self.limits.positions * len(self._waiting) // tokens
        return max(step, seconds / max(1, min(self.limits.running, fit)))

    # Start and shutdown.

    def start(self) -> Engine:
        """Starts the thread."""
        assert self._thread is None, "the engine was started before"
        self._thread = threading.Thread(target=self._work, name="softmask-engine", daemon=True)
        self._is_driven = True
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
        except BaseException as error:  # or every client would wait for ever
            logging.getLogger(__name__).exception("the engine broke down")
            self._break_down(f"the engine broke down: {describe(error)}")

    def _wait_for_work(self) -> bool:
        """False when the engine is closed and nothing is left."""
        with self._lock:
            self._lock.wait_for(lambda: self._has_work or self._closing is not None)
            return self._has_work

    @property
    def _has_work(self) -> bool:
        return bool(self._open) or len(self.scores) > 0

    def _break_down(self, message: str) -> None:
        with self._lock:
            self._closing, self.broken, self._waiting = "nothing", message, []
            handles = list(self._open)
            self.scores.fail_all(message)
        for handle in handles:
            self._end(handle, "failed", error=message)

    # One iteration of the thread.

    @torch.inference_mode(False)
    def run_once(self) -> bool:
        """One iteration; returns whether anything is left. For engines without a thread."""
        self._is_driven = True
        own = self._thread is None or self._thread is threading.current_thread()
        assert own, "the engine's thread runs the iterations"
        self._end_early()
        with self._lock:
            if self._closing in (None, "all"):
                self._waiting = schedule(self._waiting, self._batch.reserve)
        for handle, error in self._batch.start_reserved(self._clock()):
            self._end(handle, "failed", error=describe(error), cause=error)
        if self._batch.running:
            self._step()
        if self.scores:
            self.scores.step(slot.sequence.length for slot in self._batch.running)
        return self._has_work

    def _step(self) -> None:
        started = self._clock()
        self._batch.step()
        seconds = self._clock() - started
        with self._lock:
            self._counts["steps"] += 1
            self._recent.append(seconds)
            self._busy_seconds += seconds
        for slot in [slot for slot in self._batch.running if slot.sequence.is_done]:
            failure, cause = slot.sequence.failure, slot.sequence.cause
            reason: FinishReason = "done" if failure is None else "failed"
            self._end(slot.handle, reason, error=failure, cause=cause, slot=slot)

    def _end_early(self) -> None:
        """Ends what is cancelled, late, or not to be finished."""
        if self._grace_ends is not None and self._clock() >= self._grace_ends:
            self._closing = "nothing"
        for slot in list(self._batch.running):
            reason = self._early_end(slot.handle)
            if reason is not None:
                self._end(slot.handle, reason, slot=slot)
        with self._lock:
            self._expire_waiting()
            self.scores.end_early(self._early_end_of_score)

    def _early_end_of_score(self, handle: ScoreHandle) -> FinishReason | None:
        waits = handle.started is None
        return "shutdown" if self._closing == "running" and waits else self._early_end(handle)

    def _expire_waiting(self) -> None:
        """Ends waiting requests that are cancelled, late or shut down; under the lock."""
        shut = self._closing in ("running", "nothing")
        reasons = [(h, "shutdown" if shut else self._early_end(h)) for h in self._waiting]
        self._waiting = [handle for handle, reason in reasons if reason is None]
        for handle, reason in reasons:
            if reason is not None:
                self._end(handle, reason)

    def _early_end(self, handle: RequestHandle | ScoreHandle) -> FinishReason | None:
        if handle.ending is not None:
            return handle.ending
        deadline = handle.request.deadline
        if deadline is not None and self._clock() >= handle.submitted + deadline:
            return "deadline"
        return "shutdown" if self._closing == "nothing" else None

    def _end(
        self,
        handle: RequestHandle,
        reason: FinishReason,
        *,
        error: str | None = None,
        cause: Exception | None = None,
        slot: Slot | None = None,
    ) -> None:
        now = self._clock()
        entered = now if slot is None else slot.entered
        # Released and counted at once: for `stats`, what no longer runs is over.
        with self._lock:
            ids = handle.request.ids if slot is None else self._batch.release(slot)
            self._open.discard(handle)
            self._ended[reason] += 1
        handle.end(
            Result(
                ids=ids,
                finish_reason=reason,
                error=error,
                left=handle.masks if slot is None else slot.sequence.schedule.total_left,
                steps=0 if slot is None else slot.sequence.step,
                forwards=0 if slot is None else slot.sequence.forwards,
                waited=entered - handle.submitted,
                ran=now - entered,
                cached_tokens=0 if slot is None else slot.cached,
                cause=cause,
            )
        )
