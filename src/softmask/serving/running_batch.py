"""The texts that an engine denoises now: who sits where, and one step of all of them.

Shape suffixes as in the batch: P positions of the canvas, L columns of one text, M masked ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..decoding.batch import Batch
from ..decoding.logprobs import Sight
from ..decoding.sequence import Text
from ..decoding.soft_state import SoftState
from .limits import Limits
from .request import Event, Ticket, Trace
from .scheduler import Room

# Steps without a forward that a text may skip at once: planning one takes microseconds, and the
# others wait for it.
IDLE_STEPS = 64


@dataclass(eq=False)
class Seat:
    """A ticket's place on the canvas."""

    ticket: Ticket
    text: Text
    entered: float
    told: int = 0  # forwards that the ticket knows of

    @property
    def span(self) -> slice:
        return slice(self.text.start, self.text.start + self.text.length)


class Seats:
    """A batch, and the tickets whose texts it denoises."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.model = limits.model
        self.batch = Batch(limits.model, limits.positions, cached=limits.cached, watch=limits.k)
        self.room = Room(limits.positions, limits.reading)
        self.taken: list[Seat] = []
        self.committed = self.apart = 0
        self.mean_lambda = 0.0
        self._reserved: list[tuple[Ticket, int]] = []
        self._masked_P = np.zeros(limits.positions, dtype=bool)  # as the tickets know it

    def reserve(self, ticket: Ticket) -> bool:
        """Whether there was room; if so, `sit` makes use of it."""
        if len(self.taken) + len(self._reserved) >= self.limits.running:
            return False
        start = self.room.enter(len(ticket.request.ids), ticket.reading)
        if start is None:
            return False
        self._reserved.append((ticket, start))
        return True

    def sit(self, now: float) -> list[tuple[Ticket, str]]:
        """Lays the texts of those with a reservation onto the canvas; returns who could not."""
        failed = []
        for ticket, start in self._reserved:
            try:
                text = self._lay(ticket, start)
            except Exception as error:  # whatever it is, it is this request's own
                self.room.leave(start, len(ticket.request.ids), ticket.reading)
                failed.append((ticket, describe(error)))
            else:
                self.taken.append(Seat(ticket, text, now))
        self._reserved = []
        return failed

    def _lay(self, ticket: Ticket, start: int) -> Text:
        request, generator = ticket.request, None
        if request.sampling.is_random:
            generator = torch.Generator(self.batch.device).manual_seed(request.seed)
        ids_L = torch.tensor(request.ids, device=self.batch.device)
        masked_L = np.array(request.ids) == self.batch.mask_id
        self._masked_P[start : start + len(masked_L)] = masked_L
        return self.batch.add(
            start,
            ids_L,
            request.sampling,
            soft_mask=request.soft_mask,
            rules=request.rules,
            generator=generator,
            watch=request.watch,
        )

    def leave(self, seat: Seat) -> tuple[int, ...]:
        """Frees a seat; returns its canvas."""
        ids = tuple(self.batch.canvas_P[seat.span].tolist())
        self.batch.drop(seat.text)
        self.taken.remove(seat)
        self.room.leave(seat.text.start, seat.text.length, seat.ticket.reading)
        if not self.taken and self.batch.soft.is_used:
            # Plain texts need not carry the columns that soft ones brought.
            self.batch.soft = SoftState(self.batch.positions, self.batch.device)
        return ids

    def step(self) -> None:
        """One step of everybody, and its events."""
        for seat in self.taken:
            _skip_idle(seat.text)
        # A batch takes its texts in the order in which they lie.
        self._advance(sorted((seat.text for seat in self.taken), key=lambda text: text.start))
        self._tell()

    def _advance(self, texts: Sequence[Text]) -> None:
        """A step of these texts; where it fails, of each half, down to the text that is to blame.

        Halves, not one by one: of 64 texts the others are through after six more steps, not 63, and
        a step that was too large for the memory is repeated in parts.
        """
        saved = self.batch.save()
        failure = self._try(texts)
        if failure is None:
            return
        self.batch.restore(saved)
        if len(texts) == 1:
            texts[0].failure = failure
            return
        self.apart += 1
        middle = len(texts) // 2
        self._advance(texts[:middle])
        self._advance(texts[middle:])

    def _try(self, texts: Sequence[Text]) -> str | None:
        """What went wrong in a step; outside of `except`, whose error would keep its tensors."""
        try:
            self.batch.step(texts)
        except Exception as error:  # one request must not take the others with it
            return describe(error)
        return None

    def _tell(self) -> None:
        """What the step changed, to each ticket."""
        canvas_P = self.batch.canvas_P.cpu().numpy()
        masked_P = canvas_P == self.batch.mask_id
        changed = (self._masked_P & ~masked_P).nonzero()[0]
        self._masked_P &= masked_P
        starts = np.array([seat.span.start for seat in self.taken])
        stops = np.array([seat.span.stop for seat in self.taken])
        bounds = zip(np.searchsorted(changed, starts), np.searchsorted(changed, stops), strict=True)
        for seat, (low, high) in zip(self.taken, bounds, strict=True):
            if seat.told == seat.text.forwards and low == high:
                continue
            seat.told = seat.text.forwards
            rows = changed[low:high]
            self.committed += len(rows)
            columns, ids = tuple((rows - seat.text.start).tolist()), tuple(canvas_P[rows].tolist())
            seat.ticket.put(self._event(seat, masked_P[seat.span], columns, ids))
        self._measure_lambda()

    def _event(
        self, seat: Seat, masked_L: np.ndarray, columns: tuple[int, ...], ids: tuple[int, ...]
    ) -> Event:
        text, request = seat.text, seat.ticket.request
        return Event(
            step=text.step,
            steps=text.config.steps,
            forwards=text.forwards,
            left=text.plan.total_left,
            final=int(masked_L.argmax()) if masked_L.any() else text.length,
            columns=columns,
            ids=ids,
            seen=self._sight(seat, np.array(columns, dtype=np.int64)) if request.watch else None,
            trace=self._trace(seat, masked_L) if request.trace else None,
        )

    def _sight(self, seat: Seat, columns: np.ndarray) -> Sight:
        rows = torch.from_numpy(columns + seat.text.start).to(self.batch.device)
        return self.batch.sights.at(rows).leading(seat.ticket.request.watch)

    def _trace(self, seat: Seat, masked_L: np.ndarray) -> Trace:
        batch, text, columns_M = self.batch, seat.text, masked_L.nonzero()[0]
        rows_M = torch.from_numpy(columns_M + text.start).to(batch.device)
        k = text.soft_mask.k if text.is_soft and text.soft_mask.mode == "topk" else 0
        values = (
            batch.soft.lambda_P[rows_M],
            batch.soft.ids_PK[rows_M, 1 : 1 + k],
            batch.soft.weights_PK[rows_M, 1 : 1 + k],
        )
        mixture = (value.cpu().numpy() for value in values)
        return Trace(columns_M, self._sight(seat, columns_M), *mixture)

    def _measure_lambda(self) -> None:
        left = sum(seat.text.plan.total_left for seat in self.taken if seat.text.is_soft)
        if left:
            batch = self.batch
            self.mean_lambda = (batch.soft.lambda_P * batch.masked_P).sum().item() / left


def _skip_idle(text: Text) -> None:
    """Over the steps that need no forward: alone they take no time, so let them take none here."""
    for _ in range(IDLE_STEPS):
        if text.is_done or text.needs_forward(text.plan.at(text.step)):
            return
        text.step += 1


def describe(error: Exception) -> str:
    """An error as one line."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
