"""Classifier-free guidance: a second branch of a sequence that sees nothing of what was given.

Both branches are windows of one forward. The second one, a twin, lies on positions of its own, so
that it has keys and values of its own too. It reads the first one's tokens and feedback, with masks
in place of the prompt. Shape suffixes: P positions of the canvas, T computed positions, N masked
rows that are read, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.packing import Layout
from .predictions import Rows
from .sequence import SequenceState


class Twins:
    """What the positions of a canvas read, if it is not what stands there."""

    def __init__(self, positions: int, device: torch.device) -> None:
        self._own_P = torch.arange(positions, device=device)
        self._read_P = self._own_P.clone()
        self._hidden_P = torch.zeros_like(self._own_P, dtype=torch.bool)

    def add(self, own: slice, twin: int, given_L: Tensor) -> slice:
        """Lays a twin of the positions `own` from `twin` on, without what was given."""
        apart = slice(twin, twin + own.stop - own.start)
        self._read_P[apart], self._hidden_P[apart] = self._own_P[own], given_L
        return apart

    def drop(self, sequence: SequenceState) -> None:
        """Its positions are free."""
        if sequence.twin is not None:
            apart = slice(sequence.twin, sequence.twin + sequence.length)
            self._read_P[apart], self._hidden_P[apart] = self._own_P[apart], False

    def read(self, flat_T: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) the positions whose tokens and feedback stand at these, and (T,) which are hidden.

        What is hidden is a mask.
        """
        return self._read_P[flat_T], self._hidden_P[flat_T]


def away(seen: Tensor, blind: Tensor, weight: float) -> Tensor:
    """u + (w + 1)(c - u), as in LLaDA's `generate.py`, of what both branches say."""
    return blind + (weight + 1) * (seen - blind)


def guided(
    rows: Rows, hidden_ND: Tensor, hidden_TD: Tensor, layout: Layout, *, shift: bool
) -> Tensor:
    """(N, D) hidden states whose logits are those that the weight leads away from the blind ones.

    The head is linear, so it need not run for both branches.

    Args:
        hidden_ND: of these rows; of all computed positions `hidden_TD`.
    """
    weight = rows.settings.config.guidance
    if not weight:
        return hidden_ND
    apart = [s.twin - s.start for s in rows.sequences if s.twin is not None]
    apart_R = torch.tensor(apart, device=rows.rows_N.device)
    twin_N = rows.rows_N + apart_R[rows.ragged.sequence_N]
    without_ND = hidden_TD[layout.sources(twin_N, shift=shift)]
    return away(hidden_ND, without_ND, weight)
