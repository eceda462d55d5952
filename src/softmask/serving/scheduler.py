"""Who may enter a batch: free stretches of its canvas, and a line that keeps its order.

A request needs one stretch of free positions, and memory for the logits of its rows. The line is
first come, first served, but for this: while there is no room for the first one, smaller ones
behind it may go ahead, at most OVERTAKINGS times. From then on it is waited for: nobody enters
before it, the running ones end, and an empty canvas has room for every request that was accepted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol, TypeVar

OVERTAKINGS = 8


class Spans:
    """The free stretches of a canvas; the first that is long enough is taken."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._free = [(0, positions)]  # (start, stop), ascending and never touching

    @property
    def free(self) -> int:
        """How many positions nobody has."""
        return sum(stop - start for start, stop in self._free)

    def take(self, length: int) -> int | None:
        """The start of a stretch that is the caller's now; None where none is long enough."""
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


class Room:
    """A canvas' free stretches, and `memory` bytes for what is read."""

    def __init__(self, positions: int, memory: int) -> None:
        self.spans, self.memory, self.taken = Spans(positions), memory, 0

    def enter(self, length: int, reading: int) -> int | None:
        """The start of a stretch for a text whose rows take `reading` bytes; None: no room."""
        if self.taken + reading > self.memory:
            return None
        start = self.spans.take(length)
        if start is not None:
            self.taken += reading
        return start

    def leave(self, start: int, length: int, reading: int) -> None:
        """What was entered is free again."""
        self.spans.give(start, length)
        self.taken -= reading


class Waiting(Protocol):
    """Somebody in the line."""

    overtaken: int


W = TypeVar("W", bound=Waiting)


def admit(line: list[W], enter: Callable[[W], bool]) -> list[W]:
    """The line without those that `enter` finds room for, oldest first."""
    left: list[W] = []
    for index, one in enumerate(line):
        if left and left[0].overtaken >= OVERTAKINGS:
            return left + line[index:]
        if not enter(one):
            left.append(one)
        elif left:
            left[0].overtaken += 1
    return left
