"""Columns of a hole that grows, moved on the flat canvas.

A sequence has room there for the longest that it may become, so that others never move; what it
holds moves within that room.
Shape suffixes: P positions of the canvas, L columns of the sequence, N some of its positions.
"""

from __future__ import annotations

from typing import Protocol

import torch

from .growing import NEW
from .logprobs import LogprobStore
from .rule_state import RuleState
from .sequence import SequenceState
from .soft_state import SoftState


class Canvas(Protocol):
    """What a batch keeps of each position."""

    device: torch.device
    mask_id: int
    canvas_P: torch.Tensor
    real_P: torch.Tensor
    masked_P: torch.Tensor
    committed_P: torch.Tensor
    candidate_P: torch.Tensor
    soft: SoftState
    memory: RuleState
    logprobs: LogprobStore | None


def grow(batch: Canvas, sequence: SequenceState) -> None:
    """Makes of what a step committed the columns that the sequence has now."""
    growth = sequence.growth
    assert growth is not None
    start, device = sequence.start, batch.device
    own_ids = batch.canvas_P[start : start + sequence.length].cpu().numpy()
    ids_L, source_L = growth.after(own_ids, sequence.masked_before_L)
    kept_L = source_L != NEW
    ids_L[~kept_L] = batch.mask_id
    length = len(ids_L)

    room = slice(start, start + growth.room.columns)
    to_N = torch.from_numpy(start + kept_L.nonzero()[0]).to(device)
    from_N = torch.from_numpy(start + source_L[kept_L]).to(device)
    for values_P, plain in ((batch.candidate_P, batch.mask_id), (batch.committed_P, False)):
        moved = values_P[from_N]
        values_P[room] = plain
        values_P[to_N] = moved
    batch.soft.move(to_N, from_N, room)
    batch.memory.move(to_N, from_N, room)
    if batch.logprobs is not None:
        batch.logprobs.move(to_N, from_N, room)
    tokens_L = torch.from_numpy(ids_L).to(device)
    own = slice(start, start + length)
    batch.canvas_P[room] = growth.delete_id
    batch.real_P[room] = False
    batch.canvas_P[own], batch.real_P[own] = tokens_L, True
    batch.masked_P[room] = (batch.canvas_P[room] == batch.mask_id) & batch.real_P[room]
    masked_P = batch.masked_P[room]
    batch.candidate_P[room] = torch.where(masked_P, batch.candidate_P[room], batch.canvas_P[room])

    sequence.resize(ids_L == batch.mask_id)
    sequence.suppress(growth.suppressed(length, sequence.rules.suppressed))
