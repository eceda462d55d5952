"""Rows of unequal length as the batches of a forward pass, or of a decoding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from ..config import SamplingConfig
from .config import AUTO_POSITIONS, TaskArgs

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One text to generate, for a request with these arguments."""

    key: str
    arguments: tuple[str, dict[str, Any]]
    ids: tuple[int, ...]
    task: TaskArgs
    sampling: SamplingConfig
    seed: int
    cut_tokens: int


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
        alike[row.task.new_tokens, row.sampling].append(row)
    batches = []
    for group in alike.values():
        group.sort(key=lambda row: (-len(row.ids), row.key))
        while group:
            count = _rows_of(group[0], most) if isinstance(size, str) else size
            batches.append(group[:count])
            del group[:count]
    return sorted(batches, key=lambda batch: -len(batch[0].ids))


def _rows_of(longest: Row, most: int | None) -> int:
    fit = max(1, AUTO_POSITIONS // (len(longest.ids) + longest.task.new_tokens))
    return fit if most is None else min(fit, most)
