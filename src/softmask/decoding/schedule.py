"""The step schedule of a sequence, on the host: its blocks, how many tokens each step commits.

Counts are known ahead wherever each step commits just what it plans; then no step waits for the
device. `recount` takes them off the canvas where that does not hold.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..config import SamplingConfig
from .grid import Grid
from .unmask import transfer_count, transfer_share


class ScheduledStep(NamedTuple):
    """What a step does: which block, and how many tokens (with a rule of confidence, at least).

    `share` is 1 - s / t, each mask's chance under alg "origin". `last` is the last block that is
    open: beyond `block`, the first one, only where blocks open early.
    """

    block: int
    commits: int
    share: float
    last: int


class StepSchedule:
    """The blocks of one text.

    Args:
        grid: of a block-causal model, whose blocks these are.

    Raises:
        ValueError: fewer steps than blocks.
    """

    def __init__(
        self, masked_L: np.ndarray, config: SamplingConfig, grid: Grid | None = None
    ) -> None:
        self.config, self.grid = config, grid
        columns = masked_L.nonzero()[0]
        size = config.block_length or max(len(columns), 1)
        # Blocks count masks, not columns: what lies between two holes takes no step.
        self.blocks = [columns[i : i + size] for i in range(0, len(columns), size)]
        if grid is not None:
            self.blocks = grid.stages(columns, config.block_length)
        self.blocks = self.blocks or [columns]  # of a text without masks, an empty one
        self.is_whole = config.block_length is None and grid is None
        self.length = len(masked_L)
        given = (~masked_L).nonzero()[0]
        self._tail = int(given[-1]) + 1 if len(given) else 0
        self.masks = len(columns)
        self._columns, sizes = columns, [len(block) for block in self.blocks]
        self._begins = np.cumsum([0, *sizes])  # of each block, among the columns that were masks
        self.left = sizes
        if len(self.blocks) > config.steps:
            raise ValueError(
                f"{config.steps} steps cannot fill {len(self.blocks)} blocks: give at least one "
                "step a block, or a larger block_length"
            )
        # The steps after which each has to be full.
        self.ends = _ends(sizes, config.steps, grid is not None)

    @property
    def left(self) -> list[int]:
        """The masks that are left of each block; a copy is set, and `take` changes one."""
        return self._left

    @left.setter
    def left(self, left: Sequence[int]) -> None:
        # Summed and looked through once a step: a long text has thousands of blocks.
        self._left, self.total_left = list(left), sum(left)
        self._first = next((block for block, count in enumerate(left) if count), 0)

    def take(self, block: int, count: int) -> None:
        """So many masks of a block are decided."""
        self._left[block] -= count
        self.total_left -= count
        while self.total_left and not self._left[self._first]:
            self._first += 1

    def recount(self, masked_L: np.ndarray) -> None:
        """Counts the masks that are left."""
        if self.is_whole:
            self.left = [int(masked_L.sum())]
        elif self.masks:
            counts = np.add.reduceat(masked_L[self._columns], self._begins[:-1], dtype=np.int64)
            self.left = counts.tolist()

    def at(self, step: int) -> ScheduledStep:
        """What this step does; nothing where nothing is left."""
        if not self.total_left:
            last = len(self.left) - 1
            return ScheduledStep(last, 0, 0.0, last)
        if self.config.adaptive:
            return self._adaptive(step)
        return self._open(step) if self.config.opens_early else self._scheduled(step)

    def _scheduled(self, step: int) -> ScheduledStep:
        """The published schedule, within each block."""
        block = bisect.bisect_right(self.ends, step)
        begin = self.ends[block - 1] if block else 0
        steps = self.ends[block] - begin
        count, share = self._count(self.left[block], len(self.blocks[block]), step - begin, steps)
        return ScheduledStep(block, count, share, block)

    def _count(self, left: int, masks: int, step: int, steps: int) -> tuple[int, float]:
        """How many of the masks that are left a step commits, and each mask's chance.

        Args:
            masks: how many there were at first.
        """
        if self.config.step_schedule == "linspace":
            eps = self.config.eps
            return transfer_count(left, step, steps, eps), transfer_share(step, steps, eps)
        if self.config.step_schedule == "rounded":  # dllm's `get_num_transfer_tokens`, linear
            count = round(left * _linear_share(step, steps))
            return count, count / max(left, 1)
        # LLaDA's `get_num_transfer_tokens`, but where something was decided out of turn.
        each, extra = divmod(masks, steps)
        count = left if step == steps - 1 else min(left, each + (step < extra))
        return count, count / max(left, 1)

    def _open(self, step: int) -> ScheduledStep:
        """The published schedule of the whole text, its commits among the blocks that are open."""
        count, share = self._count(self.total_left, self.masks, step, self.config.steps)
        block = self._first
        return ScheduledStep(block, count, share, self._last_open(block, count))

    def _adaptive(self, step: int) -> ScheduledStep:
        """At least one token of the first block, and as many as it takes to be done in time."""
        block = self._first
        count = math.ceil(self.left[block] / max(self.ends[block] - step, 1))
        return ScheduledStep(block, count, 0.0, self._last_open(block))

    def _last_open(self, block: int, wanted: int = 0) -> int:
        """The last block that is open, if this is the first: so many masks are, where there are."""
        share, last = self.config.next_block_at, block
        if share is None:
            return block
        masks = self.left[block]
        while last + 1 < len(self.left):
            decided = 1 - self.left[last] / len(self.blocks[last])
            if decided < share and masks >= wanted:
                break
            last += 1
            masks += self.left[last]
        return last

    def counted(self, scheduled: ScheduledStep) -> int:
        """The last block among whose masks a step's `commits` are counted."""
        # A rule adds what it trusts in later blocks; the first one must be full in time.
        return scheduled.block if self.config.adaptive else scheduled.last

    def is_last(self, scheduled: ScheduledStep) -> bool:
        """Whether a step has to commit whatever is left where its commits are counted."""
        left = sum(self.left[scheduled.block : self.counted(scheduled) + 1])
        return scheduled.commits >= left

    def due(self, step: int) -> int:
        """The step to go on with where more is decided than steps were taken for.

        Text that a constraint fixes takes no steps: those that it would have had are left out.
        """
        if self.config.opens_early and not self.config.adaptive:
            stages = [(self.total_left, self.masks, 0, self.config.steps)]
        else:
            begins = [0, *self.ends[:-1]]
            sizes = [len(block) for block in self.blocks]
            stages = list(zip(self.left, sizes, begins, self.ends, strict=True))
        for left, size, begin, end in stages:
            if left and step < end:
                return max(step, end - math.ceil((end - begin) * left / size))
        return step

    def bounds(self, block: int) -> tuple[int, int]:
        """Columns of a block's first and last mask, as it began; all of a text without masks."""
        if not self.masks:
            return 0, self.length - 1
        return int(self.blocks[block][0]), int(self.blocks[block][-1])

    def reach(self, block: int) -> int:
        """How many columns take part while this block is decoded.

        Later masks that end the text join `lookahead` masks ahead of the block. What stands before
        a given token always takes part: that token is context. In a block-causal model nothing
        behind the block does.
        """
        if self.grid is not None and self.masks:
            return self.grid.end(int(self.blocks[block][0]))
        ahead = self.config.lookahead
        if ahead is None or not self.masks:
            return self.length
        size = self.config.block_length or 0
        hidden = self.masks - (block + 1) * size - ahead
        return self.length if hidden <= 0 else max(self.length - hidden, self._tail)

    @property
    def most_open(self) -> int:
        """The most masks that take part in one forward."""
        if self.config.opens_early:
            return self.masks
        if self.grid is not None:
            return self.grid.most(np.concatenate(self.blocks))
        size = self.config.block_length or 0
        hidden = (self.length - self.reach(block) for block in range(len(self.blocks)))
        return max(
            (self.masks - block * size - more for block, more in enumerate(hidden)), default=0
        )

    def left_before(self, column: int, block: int) -> int:
        """Masks left before a column that lies behind this block; later blocks are untouched."""
        before = int(np.searchsorted(self._columns, column)) - int(self._begins[block + 1])
        return sum(self.left[: block + 1]) + max(before, 0)


def _linear_share(step: int, steps: int) -> float:
    """1 - s / t as dllm's linear scheduler has it: in float32, which decides between halves."""
    kept_s, kept_t = (1 - np.float32((steps - step - one) / steps) for one in (1, 0))
    return 1 - float((1 - kept_s) / (1 - kept_t))


def _ends(sizes: list[int], steps: int, by_size: bool) -> list[int]:
    """The steps shared out over blocks of these sizes: after which of them each ends.

    Evenly, as published. Those of a grid are unequal, where a prompt ends within one: `by_size`,
    each with at least one.
    """
    count = len(sizes)
    if not by_size:
        each, extra = divmod(steps, max(count, 1))
        # The first `extra` blocks get one step more.
        return [(block + 1) * each + min(block + 1, extra) for block in range(count)]
    ends, total = list[int](), max(sum(sizes), 1)
    for block, behind in enumerate(itertools.accumulate(sizes)):
        least, most = ends[-1] if ends else 0, steps - (count - 1 - block)
        ends.append(min(max(math.ceil(steps * behind / total), least + 1), most))
    return ends
