"""The blocks of a block-causal model: which columns of a sequence each of its columns sees.

Such a model writes block after block, and a column sees its own block and those before. So what a
full block computes never changes: its keys and values are exact, and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import SamplingConfig, require
from ..models import DreamConfig
from ..models.packing import Span
from ..sampling import against_blocks

# Columns of a prompt that are attended in one call, at most; their scores are computed in full.
MASKED = 512


@dataclass(frozen=True)
class Grid:
    """Blocks of `size` columns on a sequence; the first one is `missing` columns short.

    With `leads` the first column of a block is decided before the others, as it is predicted by
    the full block in front: Fast-dLLM v2's way, where logits are shifted.
    """

    size: int
    missing: int
    length: int
    leads: bool = False

    def start(self, column: int) -> int:
        """The first column of this one's block."""
        return max(0, (column + self.missing) // self.size * self.size - self.missing)

    def end(self, column: int) -> int:
        """The column behind its block: where what it sees ends."""
        behind = ((column + self.missing) // self.size + 1) * self.size - self.missing
        return min(self.length, behind)

    def spans(self, start: int, stop: int) -> list[tuple[int, Span]]:
        """The columns [start, stop), which end with a block, as spans with their first column.

        A block sees all up to its end, and needs no mask; the many of a prompt are attended
        together, under one.
        """
        found = []
        while start < stop:
            first = self.end(start)
            end = min(stop, max(first, self.start(start + MASKED)))
            span = Span(end - start, 0, end, first - start, self.size)
            if end - first <= self.size:
                end = first
                span = Span(end - start, 0, end)
            found.append((start, span))
            start = end
        return found

    def stages(self, columns: np.ndarray, size: int | None) -> list[np.ndarray]:
        """These columns, in ascending order, as they are decided.

        Args:
            size: of the parts of a block that are decided one after the other; None: all at once.
        """
        places = columns + self.missing
        # What a column's stage is called; a leading one's is in front of its block's.
        leading = self.leads & (places % self.size == 0) & (columns > 0)
        return _runs(columns, places // (size or self.size) * 2 - leading)

    def most(self, columns: np.ndarray) -> int:
        """The most of these columns that a block has."""
        runs = _runs(columns, (columns + self.missing) // self.size)
        return max((len(run) for run in runs), default=0)


def _runs(columns: np.ndarray, names: np.ndarray) -> list[np.ndarray]:
    """Consecutive columns of like name."""
    if not len(columns):
        return []
    return np.split(columns, np.flatnonzero(np.diff(names)) + 1)


def blocks_of(model: DreamConfig, first: int, length: int) -> Grid | None:
    """The blocks of a sequence whose prompt has `first` columns; None: there are none."""
    if model.block_size is None:
        return None
    missing = -first % model.block_size if model.block_origin == "prompt" else 0
    return Grid(model.block_size, missing, length, leads=model.logit_shift)


def grid_of(model: DreamConfig, masked_L: np.ndarray, sampling: SamplingConfig) -> Grid | None:
    """The blocks of a sequence; None: every column sees all others.

    Raises:
        ValueError: settings of the one kind of model are given to the other, or a hole lies before
            given text that its block does not reach.
    """
    masks, given = masked_L.nonzero()[0], (~masked_L).nonzero()[0]
    first = int(masks[0]) if len(masks) else len(masked_L)
    grid = blocks_of(model, first, len(masked_L))
    if grid is None:
        require(
            sampling.cache != "exact",
            "cache exact is for block-causal models, and this model looks at the whole text: give "
            "none, prefix or dual",
        )
        return None
    for why in against_blocks(vars(sampling), grid.size).values():
        raise ValueError(why)
    last = int(given[-1]) if len(given) else -1
    require(
        not len(masks) or last < grid.end(first),
        "a block-causal model writes from left to right and does not see what follows a hole: give "
        "it text to go on from, without a suffix",
    )
    return grid
