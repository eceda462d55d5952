"""The requests that an engine denoises now: each in its slot, and one step of all of them.

Shape suffixes as in the batch: P positions of the canvas, L columns of a sequence, M masked ones.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..decoding.batch import Batch
from ..decoding.halves import in_halves
from ..decoding.logprobs import Logprobs
from ..decoding.sequence import SequenceState
from ..decoding.soft_state import SoftState
from .limits import Limits
from .request import Event, RequestHandle, Trace
from .scheduler import CanvasAllocator

# Steps without a forward that a sequence may skip at once. Planning one takes microseconds, for
# which the others wait.
IDLE_STEPS = 64


@dataclass(eq=False)
class Slot:
    """A running request's place on the canvas."""

    handle: RequestHandle
    sequence: SequenceState
    entered: float
    published: int = 0  # forwards that the handle has heard of

    def __post_init__(self) -> None:
        self.cached = self.kept = self.sequence.kept  # columns at first; as the prefixes have them

    @property
    def span(self) -> slice:
        return slice(self.sequence.start, self.sequence.start + self.sequence.length)

    @property
    def source(self) -> tuple[int, ...] | None:
        """How the last step moved the columns of its hole, if it did."""
        growth, has_failed = self.sequence.growth, self.sequence.failure is not None
        return None if growth is None or has_failed else growth.source


class RunningBatch:
    """A batch of sequences, and the handles of their requests."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.model = limits.model
        self.batch = Batch(
            limits.model, limits.positions, cached=limits.cached, top_logprobs=limits.k
        )
        self.prefixes = limits.make_prefix_cache(self.batch.store)
        self.allocator = CanvasAllocator(limits.positions, limits.reading)
        self.running: list[Slot] = []
        self.committed = self.apart = 0
        self.mean_lambda = 0.0
        self._reserved: list[tuple[RequestHandle, int]] = []
        self._masked_P = np.zeros(limits.positions, dtype=bool)  # as events have said so far

    def reserve(self, handle: RequestHandle) -> bool:
        """Whether there was room, which is then kept for `start_reserved`."""
        if len(self.running) + len(self._reserved) >= self.limits.running:
            return False
        start = self.allocator.allocate(handle.request.positions, handle.reading)
        if start is None:
            return False
        self._reserved.append((handle, start))
        return True

    def start_reserved(self, now: float) -> list[tuple[RequestHandle, Exception]]:
        """Adds the reserved requests to the batch; returns those that failed, with the error."""
        failed = []
        for handle, start in self._reserved:
            try:
                sequence = self._place(handle, start)
            except Exception as error:  # must not end the engine: it is this request's own
                self.allocator.free(start, handle.request.positions, handle.reading)
                failed.append((handle, without_frames(error)))
            else:
                self.running.append(Slot(handle, sequence, now))
        self._reserved = []
        return failed

    def _place(self, handle: RequestHandle, start: int) -> SequenceState:
        request, generator = handle.request, None
        if request.sampling.is_random:
            generator = torch.Generator(self.batch.device).manual_seed(request.seed)
        ids_L = torch.tensor(request.ids, device=self.batch.device)
        given_L = np.array(request.ids)
        self._masked_P[start : start + len(given_L)] = given_L == self.batch.mask_id
        sequence = self.batch.add(
            start,
            ids_L,
            request.sampling,
            soft_mask=request.soft_mask,
            rules=request.rules,
            generator=generator,
            top_logprobs=request.top_logprobs,
            constraint=request.constraint,
            holes=request.holes,
            twin=start + len(ids_L),
            room=request.room,
        )
        with self._as_memory_allows():
            if self.prefixes is not None:
                self.prefixes.load(sequence, given_L, request.cache_salt)
        return sequence

    @contextlib.contextmanager
    def _as_memory_allows(self) -> Iterator[None]:
        """Where there is no memory to keep prefixes in, requests go on without."""
        try:
            yield
        except RuntimeError as error:  # torch says so of a CPU in no kind of its own
            log = logging.getLogger(__name__)
            log.warning("no prefixes are kept from now on: %s", describe(error))
            self.prefixes = None

    def _keep_prefixes(self, canvas_P: np.ndarray) -> None:
        """Leaves blocks that have become final to later requests."""
        if self.prefixes is None:
            return
        for slot in self.running:
            sequence = slot.sequence
            if sequence.kept > slot.kept and sequence.failure is None:
                salt = slot.handle.request.cache_salt
                self.prefixes.put(sequence, canvas_P[slot.span], salt)
                slot.kept = sequence.kept

    def release(self, slot: Slot) -> tuple[int, ...]:
        """Frees a slot; returns its token ids."""
        ids = tuple(self.batch.canvas_P[slot.span].tolist())
        self.batch.drop(slot.sequence)
        self.running.remove(slot)
        request, reading = slot.handle.request, slot.handle.reading
        self.allocator.free(slot.sequence.start, request.positions, reading)
        if not self.running:
            self.mean_lambda = 0.0
            if self.batch.soft.is_used:
                # Plain sequences need not carry the columns that soft ones brought.
                self.batch.soft = SoftState(self.batch.positions, self.batch.device)
        return ids

    def step(self) -> None:
        """One step of every running request; publishes its events."""
        for slot in self.running:
            _skip_idle(slot.sequence)
        # A batch takes its sequences in the order in which they lie.
        self._advance(sorted((slot.sequence for slot in self.running), key=lambda one: one.start))
        canvas_P = self.batch.canvas_P.cpu().numpy()
        with self._as_memory_allows():
            self._keep_prefixes(canvas_P)
        self._publish(canvas_P)

    def _advance(self, sequences: Sequence[SequenceState]) -> None:
        """A step of these sequences; where it fails, of each half, down to the one that fails.

        So is a step that was too large for the memory repeated in parts.
        """

        def attempt(part: Sequence[SequenceState]) -> bool:
            saved = self.batch.save()
            error = self._try(part)
            if error is None:
                return True
            self.batch.restore(saved)
            if len(part) == 1:
                part[0].failure, part[0].cause = describe(error), error
            return len(part) == 1

        self.apart += in_halves(sequences, attempt)

    def _try(self, sequences: Sequence[SequenceState]) -> Exception | None:
        """The error of a step."""
        try:
            self.batch.step(sequences)
        except Exception as error:  # one request must not take the others with it
            return without_frames(error)
        return None

    def _publish(self, canvas_P: np.ndarray) -> None:
        """Puts what the step changed into each handle."""
        for slot in self.running:
            self._move(slot)
        masked_P = canvas_P == self.batch.mask_id
        changed = (self._masked_P & ~masked_P).nonzero()[0]
        self._masked_P &= masked_P
        starts = np.array([slot.span.start for slot in self.running])
        stops = np.array([slot.span.stop for slot in self.running])
        bounds = zip(np.searchsorted(changed, starts), np.searchsorted(changed, stops), strict=True)
        for slot, (low, high) in zip(self.running, bounds, strict=True):
            if slot.published == slot.sequence.forwards and low == high:
                continue
            slot.published = slot.sequence.forwards
            rows = changed[low:high]
            self.committed += len(rows)
            columns = tuple((rows - slot.sequence.start).tolist())
            ids = tuple(canvas_P[rows].tolist())
            slot.handle.put(self._event(slot, masked_P[slot.span], columns, ids))
        self._measure_lambda()

    def _move(self, slot: Slot) -> None:
        """Takes what events have said so far along with the columns of a hole."""
        growth, source, start = slot.sequence.growth, slot.source, slot.sequence.start
        if growth is None or source is None:
            return
        first = start + growth.hole[0]
        said = [column < 0 or bool(self._masked_P[start + column]) for column in source]
        # What stands behind the hole was given.
        self._masked_P[first : start + growth.room.columns] = False
        self._masked_P[first : first + len(said)] = said

    def _event(
        self, slot: Slot, masked_L: np.ndarray, columns: tuple[int, ...], ids: tuple[int, ...]
    ) -> Event:
        sequence, request = slot.sequence, slot.handle.request
        logprobs = None
        if request.top_logprobs:
            logprobs = self._logprobs(slot, np.array(columns, dtype=np.int64))
        return Event(
            step=sequence.step,
            steps=sequence.config.steps,
            forwards=sequence.forwards,
            left=sequence.schedule.total_left,
            final=int(masked_L.argmax()) if masked_L.any() else sequence.length,
            columns=columns,
            ids=ids,
            logprobs=logprobs,
            trace=self._trace(slot, masked_L) if request.trace else None,
            source=slot.source,
            first=0 if sequence.growth is None else sequence.growth.hole[0],
            cached_tokens=slot.cached,
        )

    def _logprobs(self, slot: Slot, columns: np.ndarray) -> Logprobs:
        assert self.batch.logprobs is not None
        rows = torch.from_numpy(columns + slot.sequence.start).to(self.batch.device)
        return self.batch.logprobs.at(rows).leading(slot.handle.request.top_logprobs)

    def _trace(self, slot: Slot, masked_L: np.ndarray) -> Trace:
        batch, sequence, columns_M = (
            self.batch,
            slot.sequence,
            masked_L[: slot.sequence.reach].nonzero()[0],
        )
        rows_M = torch.from_numpy(columns_M + sequence.start).to(batch.device)
        soft, k = sequence.soft_mask, 0
        if soft is not None and sequence.is_soft and not soft.feedback.rule.dense:
            k = max(soft.k, soft.feedback.rule.top)
        values = (
            batch.soft.lambda_P[rows_M],
            batch.soft.ids_PK[rows_M, 1 : 1 + k],
            batch.soft.weights_PK[rows_M, 1 : 1 + k],
        )
        mixture = (value.cpu().numpy() for value in values)
        return Trace(columns_M, self._logprobs(slot, columns_M), *mixture)

    def _measure_lambda(self) -> None:
        left = sum(slot.sequence.open for slot in self.running if slot.sequence.is_soft)
        self.mean_lambda = 0.0
        if left:
            batch = self.batch
            self.mean_lambda = (batch.soft.lambda_P * batch.masked_P).sum().item() / left


def _skip_idle(sequence: SequenceState) -> None:
    """Skips steps that need no forward: alone they take no time, so they must take none here."""
    for _ in range(IDLE_STEPS):
        if sequence.is_done or sequence.needs_forward(sequence.schedule.at(sequence.step)):
            return
        sequence.step += 1


def without_frames(error: Exception) -> Exception:
    """An error that can be kept: its frames hold no tensors any more."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    return error.with_traceback(None)


def describe(error: BaseException) -> str:
    """An error as one line; a ValueError is a sentence already."""
    first = (str(error).splitlines() or [""])[0]
    if first and type(error) is ValueError:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
