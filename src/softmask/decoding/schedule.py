"""The step schedule of a sequence, on the host: its blocks, how many tokens each step commits.

Counts are known ahead wherever each step commits just what it plans; then no step waits for the
device. `recount` takes them off the canvas where that does not hold.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..config import SamplingConfig
from .unmask import transfer_count, transfer_share


class ScheduledStep(NamedTuple):
    """What a step does: which block, and how many tokens (with a rule of confidence, at least).

    `share` is 1 - s / t, each mask's chance under alg "origin".
    """

    block: int
    commits: int
    share: float


class StepSchedule:
    """The blocks of one text.

    Raises:
        ValueError: fewer steps than blocks.
    """

    def __init__(self, masked_L: np.ndarray, config: SamplingConfig) -> None:
        self.config = config
        columns = masked_L.nonzero()[0]
        size = config.block_length or max(len(columns), 1)
        # Blocks count masks, not columns: what lies between two holes takes no step.
        self.blocks = [columns[i : i + size] for i in range(0, len(columns), size)]
        self.length = len(masked_L)
        given = (~masked_L).nonzero()[0]
        self._tail = int(given[-1]) + 1 if len(given) else 0
        self.masks = len(columns)
        self.left = [len(block) for block in self.blocks]
        if len(self.blocks) > config.steps:
            raise ValueError(
                f"{config.steps} steps cannot fill {len(self.blocks)} blocks: give at least one "
                "step a block, or a larger block_length"
            )

    def recount(self, masked_L: np.ndarray) -> None:
        """Counts the masks that are left."""
        if self.config.block_length is None:
            self.left = [int(masked_L.sum())]
        else:
            self.left = [int(masked_L[block].sum()) for block in self.blocks]

    @property
    def total_left(self) -> int:
        return sum(self.left)

    def at(self, step: int) -> ScheduledStep:
        """What this step does; nothing where nothing is left."""
        if not self.total_left:
            return ScheduledStep(max(len(self.left) - 1, 0), 0, 0.0)
        return self._adaptive(step) if self.config.adaptive else self._scheduled(step)

    def _scheduled(self, step: int) -> ScheduledStep:
        """The published schedule, within each block."""
        each, extra = divmod(self.config.steps, len(self.left))
        # The first `extra` blocks get one step more.
        block = min(step // (each + 1), extra)
        inner = step - block * (each + 1)
        if block == extra:
            more, inner = divmod(inner, each)
            block += more
        steps, eps = each + (block < extra), self.config.eps
        count = transfer_count(self.left[block], inner, steps, eps)
        return ScheduledStep(block, count, transfer_share(inner, steps, eps))

    def _adaptive(self, step: int) -> ScheduledStep:
        """At least one token, and as many as it takes to be done after `steps` steps."""
        block = next(b for b, left in enumerate(self.left) if left)
        each, extra = divmod(self.config.steps, len(self.left))
        end = (block + 1) * each + min(block + 1, extra)
        return ScheduledStep(block, math.ceil(self.left[block] / max(end - step, 1)), 0.0)

    def due(self, step: int) -> int:
        """The step to go on with where more is decided than steps were taken for.

        Text that a constraint fixes takes no steps: those that it would have had are left out.
        """
        each, extra = divmod(self.config.steps, len(self.left))
        for block, (left, columns) in enumerate(zip(self.left, self.blocks, strict=True)):
            steps = each + (block < extra)
            end = (block + 1) * each + min(block + 1, extra)
            if left and step < end:
                return max(step, end - math.ceil(steps * left / len(columns)))
        return step

    def bounds(self, block: int) -> tuple[int, int]:
        """Columns of a block's first and last mask, as it began."""
        return int(self.blocks[block][0]), int(self.blocks[block][-1])

    def reach(self, block: int) -> int:
        """How many columns take part while this block is decoded.

        Later masks that end the text join `lookahead` masks ahead of the block. What stands before
        a given token always takes part: that token is context.
        """
        ahead = self.config.lookahead
        if ahead is None or not self.blocks:
            return self.length
        size = self.config.block_length or 0
        hidden = self.masks - (block + 1) * size - ahead
        return self.length if hidden <= 0 else max(self.length - hidden, self._tail)

    @property
    def most_open(self) -> int:
        """The most masks that take part in one forward."""
        size = self.config.block_length or 0
        hidden = (self.length - self.reach(block) for block in range(len(self.blocks)))
        return max(
            (self.masks - block * size - more for block, more in enumerate(hidden)), default=0
        )

    def left_before(self, column: int, block: int) -> int:
        """Masks left before a column that lies behind this block; later blocks are untouched."""
        later = self.blocks[block + 1 :]
        return sum(self.left[: block + 1]) + sum(int((b < column).sum()) for b in later)
