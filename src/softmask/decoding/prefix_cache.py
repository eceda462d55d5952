"""Keys and values of full blocks, kept for later texts that begin with them: prefix reuse.

In a block-causal model what a full block computes depends on its tokens and on those before it, and
on nothing else: not on the settings of decoding, nor on feedback, which lives in masked positions
alone. So texts that begin alike share it. The blocks form a tree: each is known by the one in front
of it and its own tokens. The memory is a pool of equal rows, one a block, made once; where it is
full, the block that was not used for longest makes room. A text uses its blocks from its end to its
beginning, so a block goes before those in front of it: what is kept can always be reached.
Shape suffixes: L columns of a text, N chosen columns, S key/value heads, D width of a head.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .grid import Grid
from .kv_cache import KeyValueStore
from .sequence import SequenceState

# What stands in front, a block's number or the salt of the text, and the tokens' bytes.
Key = tuple[int | str, bytes]


@dataclass(frozen=True)
class PrefixStats:
    """What a cache holds, and has done so far.

    `queries` counts texts that were looked up, `hits` those of which a beginning was there,
    `tokens` what these did not compute anew, `evictions` blocks that made room for others.
    """

    bytes: int = 0
    queries: int = 0
    hits: int = 0
    tokens: int = 0
    evictions: int = 0


@dataclass(frozen=True)
class _Block:
    number: int  # never given twice
    row: int  # of the pool


class PrefixCache:
    """The blocks of texts that were computed in a batch.

    Args:
        store: the batch's keys and values.
        memory: bytes of keys and values that it may keep.
        size: columns of a block.
        bytes_per_column: of a column's keys and values.
    """

    def __init__(self, store: KeyValueStore, memory: int, size: int, bytes_per_column: int) -> None:
        self.size, self._store, self._block_bytes = size, store, size * bytes_per_column
        self.capacity = memory // self._block_bytes
        self._blocks: OrderedDict[Key, _Block] = OrderedDict()  # the one to go comes first
        self._pool: dict[int, tuple[Tensor, Tensor]] = {}
        self._numbers = self._queries = self._hits = self._tokens = self._evictions = 0

    def stats(self) -> PrefixStats:
        """What it holds now, and has done."""
        held = len(self._blocks) * self._block_bytes
        return PrefixStats(held, self._queries, self._hits, self._tokens, self._evictions)

    def load(self, sequence: SequenceState, ids_L: np.ndarray, salt: str) -> None:
        """Lets a sequence that has not begun begin behind what is kept of its prompt.

        Args:
            salt: what texts must share, beside their tokens, to share blocks.
        """
        grid, start = sequence.grid, sequence.start
        if grid is None or not _takes_part(sequence):
            return
        self._queries += 1
        first_mask, _ = sequence.schedule.bounds(0)
        found, end = self._find(ids_L, grid, grid.start(first_mask), salt)
        if not found:
            return
        self._use(found)
        rows = [self._blocks[key].row for key in found]
        place_N = self._places(rows, _edges(grid, 0, end))
        for layer, pool in self._pool.items():
            for kept, pooled in zip(self._store.layers[layer], pool, strict=True):
                kept[start : start + end] = pooled.flatten(0, 1)[place_N.to(pooled.device)]
        self._hits += 1
        self._tokens += end
        sequence.kept = end

    def put(self, sequence: SequenceState, ids_L: np.ndarray, salt: str) -> None:
        """Keeps the blocks of a sequence whose keys and values are final.

        Of a text that is too long for the memory the beginning is kept.
        """
        grid, start = sequence.grid, sequence.start
        if grid is None or not _takes_part(sequence):
            return
        found, end = self._find(ids_L, grid, sequence.kept, salt)
        edges = _edges(grid, end, sequence.kept)[: self.capacity - len(found) + 1]
        self._use(found)
        if len(edges) < 2 or not self._is_finite(start + end, start + edges[-1]):
            return
        parent: int | str = self._blocks[found[-1]].number if found else salt
        rows = list[int]()
        for first, behind in itertools.pairwise(edges):
            rows.append(self._room())
            self._numbers += 1
            key = parent, _bytes(ids_L, first, behind)
            self._blocks[key] = _Block(self._numbers, rows[-1])
            found.append(key)
            parent = self._numbers
        self._use(found)
        place_N = self._places(rows, edges)
        for layer, kept in self._store.layers.items():
            for pooled, whole in zip(self._pool_of(layer, kept), kept, strict=True):
                flat, own = pooled.flatten(0, 1), whole[start + edges[0] : start + edges[-1]]
                flat[place_N.to(flat.device)] = own

    def _find(self, ids_L: np.ndarray, grid: Grid, stop: int, salt: str) -> tuple[list[Key], int]:
        """The leading blocks that are kept, and the column behind them."""
        found, column = list[Key](), 0
        parent: int | str = salt
        while column < stop:
            end = grid.end(column)
            key = parent, _bytes(ids_L, column, end)
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(key)
            parent, column = block.number, end
        return found, column

    def _use(self, chain: list[Key]) -> None:
        """Notes that the blocks of a text are used; the first ones go last."""
        for key in reversed(chain):
            self._blocks.move_to_end(key)

    def _room(self) -> int:
        """A free row of the pool. The text that asks uses its own blocks, which stay."""
        if len(self._blocks) < self.capacity:
            return len(self._blocks)  # a block that makes room leaves its row to the next one
        self._evictions += 1
        return self._blocks.popitem(last=False)[1].row

    def _places(self, rows: list[int], edges: list[int]) -> Tensor:
        """(N,) where the columns of blocks with these edges lie in the pool, as one row of it."""
        lengths = np.diff(edges)
        places = [row * self.size + np.arange(n) for row, n in zip(rows, lengths, strict=True)]
        return torch.from_numpy(np.concatenate(places))

    def _is_finite(self, start: int, stop: int) -> bool:
        """Whether forwards went well. What is NaN in one layer is so in all behind it."""
        last = self._store.layers[max(self._store.layers)]
        return all(bool(x[start:stop].isfinite().all()) for x in last)

    def _pool_of(self, layer: int, kept: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of all blocks, where the layer itself lies."""
        if layer not in self._pool:
            keys, values = (x.new_empty(self.capacity, self.size, *x.shape[1:]) for x in kept)
            self._pool[layer] = keys, values
        return self._pool[layer]


def _takes_part(sequence: SequenceState) -> bool:
    """Whether its keys and values are kept, and no second branch has others."""
    return sequence.config.cache == "exact" and sequence.twin is None


def _edges(grid: Grid, start: int, stop: int) -> list[int]:
    """The columns between which the blocks of [start, stop) lie, both included."""
    edges = [start]
    while edges[-1] < stop:
        edges.append(grid.end(edges[-1]))
    return edges


def _bytes(ids_L: np.ndarray, start: int, stop: int) -> bytes:
    return ids_L[start:stop].astype(np.int64).tobytes()
