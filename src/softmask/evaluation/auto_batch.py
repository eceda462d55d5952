"""`batch_size auto`: as many rows at once as the memory holds, or as still pay.

A row takes what a request of the server takes (`decoding/memory.py`), and there is as much as
container, machine or GPU leave. A batch never changes what is drawn: every row has its own random
numbers. Sums in a forward depend on the rows beside it in their last bits, so two tokens that are
equally likely to that many digits may change places; a fixed number repeats them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..config import SoftMaskConfig, is_on
from ..decoding.likelihood import LikelihoodConfig, Request
from ..decoding.memory import DRAWN, Footprint
from ..models import DreamModel
from ..reporting.measure import memory_left
from .batching import Row
from .ranks import Ranks

# Of the memory that is left, what batches may take: others allocate too, and blocks lie scattered.
SHARE = 0.8
# Positions of a forward beyond which more rows do not pay on a CPU: see `benchmarks/batch_rows.py`.
PAYING = 768


class AutoBatch:
    """How many rows of a model run at once, and why: `record()` is for `run.json`.

    Args:
        most: rows at once, whatever fits; None: no such limit.
        ranks: the processes of the launch, all of which must make one: the least memory counts.
    """

    def __init__(self, model: DreamModel, ranks: Ranks, most: int | None = None) -> None:
        left, where = memory_left(model.device)
        shared = left // ranks.on_device(model.device)
        self.memory, self.where = min(ranks.all_gather((int(SHARE * shared), where)))
        self.model, self.most = model, most
        self._rows: list[int] = []
        self._reasons: Counter[str] = Counter()

    def of_rows(self, soft_mask: SoftMaskConfig | None) -> Callable[[Row, int], int]:
        """What says how many texts are written at once, of the longest and how many there are."""
        k = soft_mask.k if soft_mask is not None and is_on(soft_mask) else 0
        is_causal = self.model.config.block_size is not None

        def fitting(longest: Row, rows: int) -> int:
            sampling, positions = longest.sampling, longest.positions
            in_blocks = sampling.cache != "none" or is_causal
            # Holes are filled on an engine, which keeps keys and values in any case.
            cached = in_blocks or longest.hole is not None
            footprint = Footprint.of(self.model, cached=cached, k=k)
            reading = footprint.reading(longest.masks, sampling, soft_mask)
            # Guidance has a second branch, whose hidden states are mixed before they are read.
            branches = 2 if sampling.guidance else 1
            fits = footprint.rows(self.memory, branches * positions, reading)
            # With a cache most steps compute a block alone.
            block = sampling.block_length or self.model.config.block_size
            return self._choose(fits, block if in_blocks and block else positions, rows)

        return fitting

    def of_texts(
        self,
        texts: Sequence[Request],
        config: LikelihoodConfig,
        soft_mask: SoftMaskConfig | None,
    ) -> int:
        """How many rows are read at once, of those that estimate how likely these texts are."""
        footprint = Footprint.of(self.model, cached=False, k=0)
        # A document may be empty: it is a row all the same.
        positions = max(1, *(len(context) + len(continuation) for context, continuation in texts))
        masks = max(1, *(len(continuation) for _, continuation in texts))
        top = 1 if config.estimator == "one_step" else 0
        reading = footprint.scoring(masks, config, soft_mask, top=top)
        fits = footprint.rows(self.memory, positions, reading, held=False)
        return self._choose(fits, positions, len(texts) * config.rows(masks))

    def of_windows(self, positions: int, *, passes: int, rows: int) -> int:
        """How many of `rows` windows are predicted at once, with all logits of so many passes."""
        footprint = Footprint.of(self.model, cached=False, k=0)
        reading = passes * DRAWN * positions * footprint.vocabulary
        # A block-causal model reads each window twice, noisy and true.
        positions *= 1 if self.model.config.block_size is None else 2
        fits = footprint.rows(self.memory, positions, reading, held=False)
        return self._choose(fits, positions, rows)

    def _choose(self, fitting: int, positions: int, rows: int) -> int:
        """The least of all limits, which is noted with its reason; one row runs in any case."""
        limits = [(rows, "no more rows"), (fitting, f"memory of {self.where}")]
        if self.most is not None:
            limits.append((self.most, "max_batch_size"))
        if self.model.device.type == "cpu":
            paying = -(-PAYING // positions)
            limits.append((paying, f"more than {PAYING} positions do not pay on a CPU"))
        chosen, reason = min(limits, key=lambda limit: limit[0])
        chosen = max(1, chosen)
        self._rows.append(chosen)
        self._reasons[reason] += 1
        return chosen

    def record(self) -> dict[str, Any]:
        """What was chosen and why, in JSON types."""
        return {
            "memory_mb": self.memory // 2**20,
            "of": self.where,
            "rows": [min(self._rows), max(self._rows)] if self._rows else None,
            "limited_by": dict(self._reasons),
        }
