"""What fails when it is done at once is done in halves: a step, or a batch that is too large.

Halves, not one by one: of 64 items, one of which fails, the others are done after six more
attempts, not 63.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..rules import is_out_of_memory

T = TypeVar("T")
R = TypeVar("R")


def in_halves(items: Sequence[T], attempt: Callable[[Sequence[T]], bool]) -> int:
    """Attempts some items at once; where that fails, each half. How often it took halves.

    Args:
        attempt: whether these items are dealt with; of a single one it must say so.
    """
    if attempt(items):
        return 0
    middle = len(items) // 2
    return 1 + in_halves(items[:middle], attempt) + in_halves(items[middle:], attempt)


class AsMemoryAllows:
    """Runs batches, and in halves those that the memory does not hold.

    After a failure no batch of as many positions is tried at once. `halved` counts batches, and
    parts of them, that ran in halves.
    """

    def __init__(self) -> None:
        self.halved = 0
        self._too_large: float = math.inf

    def run(
        self,
        items: Sequence[T],
        positions_of: Callable[[T], int],
        call: Callable[[Sequence[T]], R],
    ) -> list[R]:
        """What `call` returns for the items; where they ran in parts, for each, in their order.

        Raises:
            Exception: whatever `call` raises; too little memory only of a single item.
        """
        found: list[R] = []

        def attempt(part: Sequence[T]) -> bool:
            positions = sum(map(positions_of, part))
            if len(part) > 1 and positions >= self._too_large:
                return False
            try:
                found.append(call(part))
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            else:
                return True
            # Out here the error, and with it the tensors of its frames, is gone.
            self._too_large = positions
            log = logging.getLogger(__name__)
            log.warning("out of memory: %d rows are computed in halves from now on", len(part))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # the blocks that are free may be too small to be of use
            return False

        self.halved += in_halves(items, attempt)
        return found
