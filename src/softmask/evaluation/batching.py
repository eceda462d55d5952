"""Rows of unequal length as the batches of a forward pass.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def pad(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor (B, L), padded on the right; its attention mask, None if none is padded.

    Padding is 0 (False for bool rows), which nothing reads.
    """
    values_BL = pad_sequence(list(rows), batch_first=True).to(device)
    sizes_B = torch.tensor([len(row) for row in rows], device=device)
    real_BL = torch.arange(values_BL.shape[1], device=device) < sizes_B[:, None]
    same = len({len(row) for row in rows}) == 1
    return values_BL, None if same else real_BL.long()
