"""Scoring given texts on an engine: chunks of rows between its steps.

    handle = engine.score(ScoreRequest(((context, continuation),)))
    print(handle.result().estimates)

A chunk is forwards (one, twice as many with soft-masking, and with guidance) over no more positions
than the running requests take in theirs, but of one row at least: where rows are no longer than
what runs, that goes on at half its speed at worst while texts are scored. Requests take turns.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from ..config import SoftMaskConfig, is_on, require
from ..decoding.likelihood import (
    Estimate,
    LikelihoodConfig,
    Request,
    Scorer,
    TokenScore,
    check_requests,
)
from ..soft_mask import check_k
from .limits import Limits
from .request import FinishReason
from .running_batch import describe

# Of a chunk while no request runs: one that comes meanwhile waits for it.
IDLE_POSITIONS = 2048
MOST_ROWS = 64


@dataclass(frozen=True)
class ScoreRequest:
    """Continuations to score behind their contexts.

    Args:
        questions: as in `Scorer`: which of them share their random numbers.
        top: leading tokens to tell of each token of a chain.
        deadline: seconds from submission until it is given up; None: never.

    Raises:
        ValueError: nothing to score, or a deadline that is none.
    """

    requests: tuple[Request, ...]
    config: LikelihoodConfig = LikelihoodConfig()
    soft_mask: SoftMaskConfig | None = None
    questions: tuple[tuple[int, ...], ...] | None = None
    top: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.requests), "there is nothing to score: give a continuation")
        late = self.deadline
        require(
            late is None or (late > 0 and math.isfinite(late)),
            f"a deadline must be a positive number of seconds, not {late}",
        )


@dataclass(frozen=True)
class ScoreResult:
    """How scoring ended; `estimates` and, of a chain, `tokens` of each request where it is done."""

    finish_reason: FinishReason
    estimates: tuple[Estimate, ...]
    tokens: tuple[tuple[TokenScore, ...], ...]
    error: str | None
    forwards: int
    waited: float
    ran: float

    def cost(self) -> dict[str, int | float]:
        """What it took, for clients."""
        times = {"waited": round(self.waited, 4), "seconds": round(self.ran, 4)}
        return {"forwards": self.forwards, **times}


class ScoreHandle:
    """An accepted request to score, for its client."""

    def __init__(self, request: ScoreRequest, now: float) -> None:
        self.request, self.submitted = request, now
        self.started: float | None = None
        self.ending: FinishReason | None = None  # why its client ends it
        self.scorer: Scorer | None = None
        self._future: Future[ScoreResult] = Future()

    def cancel(self) -> None:
        """Ends the request before the engine's next step; one that is over stays as it is."""
        self.ending = "cancelled"

    def result(self, timeout: float | None = None) -> ScoreResult:
        """Waits for the end.

        Raises:
            TimeoutError: it has not come after `timeout` seconds; the request goes on.
        """
        return self._future.result(timeout)

    async def finished(self) -> ScoreResult:
        """`result()` for asyncio."""
        return await asyncio.shield(asyncio.wrap_future(self._future))

    def end(self, result: ScoreResult) -> None:
        """Sets the result; the engine calls it."""
        self._future.set_result(result)


class ScoreQueue:
    """The requests to score of an engine, which calls all of this under its own lock but `step`."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._jobs: deque[ScoreHandle] = deque()
        self.rows = 0  # rows of forwards since the start

    def __len__(self) -> int:
        return len(self._jobs)

    def check(self, request: ScoreRequest) -> None:
        """Raises ValueError for a request that cannot be scored, in one sentence."""
        limits, model = self._limits, self._limits.model
        check_requests(model, request.requests)
        vocabulary = model.config.vocab_size
        for context, continuation in request.requests:
            ids = (*context, *continuation)
            # On a GPU an index out of range makes the device unusable for the whole process.
            require(
                min(ids) >= 0 and max(ids) < vocabulary,
                f"a token id lies outside of the model's vocabulary of {vocabulary}",
            )
            require(model.mask_id not in ids, "a text to score has no holes: leave out the mask")
            require(
                len(ids) <= limits.positions,
                f"a text of {len(ids)} tokens is to be scored, but the engine has room for "
                f"{limits.positions}: shorten it, or give the engine more memory",
            )
        require(
            request.top <= min(limits.k, vocabulary),
            f"{request.top} leading tokens are asked for: this engine reports at most {limits.k}",
        )
        if request.soft_mask is not None:
            check_k(request.soft_mask.k, vocabulary)
        needed = self._reading(request)
        require(
            needed <= limits.reading,
            f"the logits of a text take {needed / 2**20:.1f} MB, but the engine has "
            f"{limits.reading / 2**20:.1f} for them: score less at once, or give it more memory",
        )

    def _reading(self, request: ScoreRequest) -> int:
        """Bytes of the logits of one row, the longest."""
        longest = max(len(continuation) for _, continuation in request.requests)
        return self._limits.footprint.scoring(
            longest, request.config, request.soft_mask, top=request.top
        )

    def put(self, handle: ScoreHandle) -> None:
        """Adds a request that was checked."""
        self._jobs.append(handle)

    def end_early(self, reason_of: Callable[[ScoreHandle], FinishReason | None]) -> None:
        """Ends what is cancelled, late, or not to be finished."""
        for handle in list(self._jobs):
            reason = reason_of(handle)
            if reason is not None:
                self._end(handle, reason)

    def fail_all(self, message: str) -> None:
        """Ends all of them: the engine broke down."""
        for handle in list(self._jobs):
            self._end(handle, "failed", message)

    def step(self, running: Iterable[int]) -> None:
        """A chunk of the request whose turn it is.

        Args:
            running: tokens of each request that runs meanwhile.
        """
        if not self._jobs:
            return
        handle, positions = self._jobs[0], sum(running) or IDLE_POSITIONS
        self._jobs.rotate(-1)
        request, now = handle.request, self._clock()
        if is_on(request.soft_mask):
            positions //= 2  # there are two forwards of them
        if request.config.guidance:
            positions //= 2
        if handle.started is None:
            handle.started = now
        rows = max(1, min(MOST_ROWS, self._limits.reading // self._reading(request)))
        try:
            if handle.scorer is None:
                handle.scorer = Scorer(
                    self._limits.model,
                    request.requests,
                    request.config,
                    request.soft_mask,
                    questions=request.questions,
                    top=request.top,
                )
            before = handle.scorer.forwards
            is_left = handle.scorer.step(rows, min(positions, self._limits.positions))
            self.rows += handle.scorer.forwards - before
        except Exception as error:  # must not end the engine: it is this request's own
            self._end(handle, "failed", describe(error))
            return
        if not is_left:
            self._end(handle, "done")

    def _end(self, handle: ScoreHandle, reason: FinishReason, error: str | None = None) -> None:
        self._jobs.remove(handle)
        now, scorer = self._clock(), handle.scorer
        started = now if handle.started is None else handle.started
        is_done = reason == "done" and scorer is not None
        handle.end(
            ScoreResult(
                finish_reason=reason,
                estimates=tuple(scorer.estimates()) if is_done and scorer else (),
                tokens=tuple(map(tuple, scorer.tokens())) if is_done and scorer else (),
                error=error,
                forwards=0 if scorer is None else scorer.forwards,
                waited=started - handle.submitted,
                ran=now - started,
            )
        )
