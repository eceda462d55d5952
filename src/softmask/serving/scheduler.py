"""Which waiting requests start: free stretches of the canvas, and a queue that keeps its order.

A request needs one stretch of free positions, and memory for the logits of its rows. The queue is
first come, first served, with one exception: while there is no room for the first request, smaller
ones behind it may start, at most MAX_BYPASSES times. After that none starts before it: the running
ones end, and an empty canvas has room for every request that was accepted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol, TypeVar

MAX_BYPASSES = 8


class FreeSpans:
    """The free stretches of a canvas; the first that is long enough is taken."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._free = [(0, positions)]  # (start, stop), ascending and never touching

    @property
    def free(self) -> int:
        """How many positions are free."""
        return sum(stop - start for start, stop in self._free)

    def take(self, length: int) -> int | None:
        """Takes a stretch and returns its start; None where none is long enough."""
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= length:
                rest = (start + length, stop)
                self._free[index : index + 1] = [rest] if rest[0] < stop else []
                return start
        return None

    def give(self, start: int, length: int) -> None:
        """Frees a stretch that was taken."""
        stop, index = start + length, bisect_left(self._free, (start, start))
        before, after = self._free[:index], self._free[index:]
        assert not before or before[-1][1] <= start, "a stretch is given back twice"
        assert not after or stop <= after[0][0], "a stretch is given back twice"
        if after and after[0][0] == stop:
            stop = after.pop(0)[1]
        if before and before[-1][1] == start:
            start = before.pop()[0]
        self._free = [*before, (start, stop), *after]


class CanvasAllocator:
    """Allocates stretches of a canvas, and shares of the `memory` bytes for logits."""

    def __init__(self, positions: int, memory: int) -> None:
        self.spans, self.memory, self.taken = FreeSpans(positions), memory, 0

    def allocate(self, length: int, reading: int) -> int | None:
        """The start of a stretch for a request whose logits take `reading` bytes; None: no room."""
        if self.taken + reading > self.memory:
            return None
        start = self.spans.take(length)
        if start is not None:
            self.taken += reading
        return start

    def free(self, start: int, length: int, reading: int) -> None:
        """Frees what was allocated."""
        self.spans.give(start, length)
        self.taken -= reading


class Waiting(Protocol):
    """A request in the waiting queue."""

    bypassed: int


W = TypeVar("W", bound=Waiting)


def schedule(waiting: list[W], allocate: Callable[[W], bool]) -> list[W]:
    """The queue without those that `reserve` finds room for, oldest first."""
    left: list[W] = []
    for index, one in enumerate(waiting):
        if left and left[0].bypassed >= MAX_BYPASSES:
            return left + waiting[index:]
        if not allocate(one):
            left.append(one)
        elif left:
            left[0].bypassed += 1
    return left
