"""What a step computes and reads: windows of sequences side by side, and their masked rows.

Shape suffixes: P positions of the flat canvas, T computed positions, N masked rows that are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.packing import Layout, Span
from .kv_cache import KeyValueStore
from .predictions import Rows
from .schedule import ScheduledStep
from .sequence import SequenceState, Settings
from .unmask import Ragged

Window = tuple[int, int]  # the columns [start, stop) of a sequence


class Layouts:
    """The layout of a packed forward, made anew where it is another one than before."""

    def __init__(self, store: KeyValueStore | None) -> None:
        self._store, self._last = store, dict[bool, tuple[object, Layout]]()

    def of(
        self,
        busy: Sequence[SequenceState],
        windows: Sequence[Window],
        place_P: Tensor,
        previous_P: Tensor,
        *,
        apart: bool = False,
    ) -> Layout:
        """That of these windows.

        Args:
            place_P, previous_P: of each position its column in its sequence, and the position
                before it there.
            apart: of the forward that says confidence alone, which comes beside the other one.
        """
        pairs = zip(busy, windows, strict=True)
        # Where a text's blocks lie too: by its prompt they differ among texts of one length.
        key = tuple((s.start, s.twin, s.reach, s.grid, *window) for s, window in pairs)
        if apart not in self._last or self._last[apart][0] != key:
            pieces = [
                (span._replace(start=start), s.flat_L[a : a + span.queries] + (start - s.start))
                for s, window in zip(busy, windows, strict=True)
                for start in ((s.start,) if s.twin is None else (s.start, s.twin))
                for a, span in _spans(s, window)
            ]
            # Windows of like shape side by side: attention takes them in one call.
            pieces.sort(key=lambda piece: piece[0].form)
            spans, columns = zip(*pieces, strict=True)
            flat_T = torch.from_numpy(np.concatenate(columns)).to(place_P.device)
            layout = Layout(flat_T, place_P[flat_T], previous_P, spans, self._store)
            self._last[apart] = key, layout
        return self._last[apart][1]


def _spans(sequence: SequenceState, window: Window) -> list[tuple[int, Span]]:
    """The first columns of the parts of a window that are attended apart, and their spans."""
    if sequence.grid is not None:
        return sequence.grid.spans(*window)
    start, stop = window
    return [(start, Span(stop - start, 0, sequence.reach))]


def rows_by_settings(
    busy: Sequence[SequenceState],
    scheduled_R: Sequence[ScheduledStep],
    windows: Sequence[Window],
    masked_P: Tensor,
) -> list[Rows]:
    """The masked positions to read."""
    groups: dict[Settings, list[tuple[SequenceState, ScheduledStep, Window]]] = {}
    for entry in zip(busy, scheduled_R, windows, strict=True):
        groups.setdefault(entry[0].settings, []).append(entry)
    return [_rows_of(group, masked_P) for group in groups.values()]


def _rows_of(group: list[tuple[SequenceState, ScheduledStep, Window]], masked_P: Tensor) -> Rows:
    """Soft-masking reads every mask in the window, plain decoding what it may commit."""
    ranges, counts_R = [], []
    for sequence, scheduled, (start, stop) in group:
        if not sequence.is_soft:
            start, stop = sequence.committable(scheduled)
        ranges.append(sequence.flat_L[start:stop])
        before = 0
        if start and not sequence.is_planned:
            before = sequence.masks_before(start, scheduled)
        counts_R.append(sequence.masks_before(stop, scheduled) - before)
    flat = torch.from_numpy(np.concatenate(ranges)).to(masked_P.device)
    # The count is known: a search for it would wait for the device.
    place_N = torch.nonzero_static(masked_P[flat], size=sum(counts_R)).squeeze(1)
    sequences, scheduled_R, _ = zip(*group, strict=True)
    starts = [sequence.start for sequence in sequences]
    lengths = [sequence.reach for sequence in sequences]
    rows_N = flat[place_N]
    return Rows(sequences, scheduled_R, counts_R, rows_N, Ragged(counts_R, starts, lengths, rows_N))
