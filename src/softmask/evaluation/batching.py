"""Rows of unequal length as the batches of a forward pass, or of a decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from ..config import SamplingConfig
from ..decoding.healing import Hole
from .config import AUTO_POSITIONS, TaskArgs

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One text to generate, for a request with these arguments.

    `hole`: what is filled in, at each of `lengths` tokens, and not answered; `ids` are those before
    it, and `sampling` is for the longest. `grows_to`: the model finds its length, up to this.
    """

    key: str
    arguments: tuple[str, dict[str, Any]]
    ids: tuple[int, ...]
    task: TaskArgs
    sampling: SamplingConfig
    seed: int
    cut_tokens: int
    hole: Hole | None = None
    lengths: tuple[int, ...] = ()
    grows_to: int | None = None

    @property
    def positions(self) -> int:
        """How many positions of a canvas it takes."""
        if self.hole is None:
            return len(self.ids) + self.task.new_tokens
        given = len(self.ids) + len(self.hole.after_ids)
        return sum(given + (self.grows_to or length) for length in self.lengths)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def make_batches(rows: Any, size: int | str, most: int | None = None) -> list[list[Row]]:
    """Rows that are decoded alike, of about equal prompt length, longest first.

    `size`: rows of a batch, or "auto" for as many as fill AUTO_POSITIONS, `most` of them at most.

    The same rows give the same batches, however many processes there are and whatever is
    answered already: sums in a forward depend on its batch.
    """
    alike = defaultdict(list)
    for row in rows:
        # Holes of all lengths are filled side by side.
        alike[() if row.hole else (row.task.new_tokens, row.sampling)].append(row)
    batches = []
    for group in alike.values():
        group.sort(key=lambda row: (-row.positions, row.key))
        while group:
            count = _rows_of(group[0], most) if isinstance(size, str) else size
            batches.append(group[:count])
            del group[:count]
    return sorted(batches, key=lambda batch: -batch[0].positions)


def _rows_of(longest: Row, most: int | None) -> int:
    fit = max(1, AUTO_POSITIONS // longest.positions)
    return fit if most is None else min(fit, most)
