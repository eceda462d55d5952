"""A hole whose length the model finds: DreamOn's way of filling one in.

It commits one token a step. A committed `<|expand|>` becomes two masks, and an end of text takes
its column away. On the flat canvas a sequence has room for the longest it may become, so that
others never move; what it holds moves within that room.
Shape suffixes: P positions of the canvas, L columns of the sequence, N some of its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import SamplingConfig
from ..models import DreamConfig
from ..settings import require
from .schedule import ScheduledStep, StepSchedule

NEW = -1  # a column that comes from none: a new mask


class OneByOne(StepSchedule):
    """One token a step, as long as masks are left."""

    def at(self, step: int) -> ScheduledStep:
        """What this step does."""
        left = self.total_left
        return ScheduledStep(0, int(left > 0), 1 / max(left, 1), 0)

    def resize(self, masked_L: np.ndarray) -> None:
        """Goes on with other columns."""
        self.blocks, self.left = [masked_L.nonzero()[0]], [int(masked_L.sum())]
        self.length = len(masked_L)
        # Feedback is scheduled by the share that is left, which is never more than all.
        self.masks = max(self.masks, self.left[0])


@dataclass(frozen=True)
class Room:
    """How a hole may grow.

    Args:
        columns: the most that its whole sequence may have.
        pad_to_right: once an end of text is committed, the masks behind it go with it.
        delete_ends: an end of text takes its column away, else it stays.
        expand_budget: how often it may grow; None: as often as it may have tokens.
    """

    columns: int
    pad_to_right: bool = True
    delete_ends: bool = True
    expand_budget: int | None = None

    def __post_init__(self) -> None:
        budget = self.expand_budget
        require(budget is None or budget >= 0, f"expand_budget must be >= 0, not {budget}")

    @classmethod
    def for_hole(cls, ids: Sequence[int], mask_id: int, most: int, context: int) -> Room:
        """That in which a text's hole may have so many tokens, if they fit the model's context."""
        return cls(min(len(ids) - ids.count(mask_id) + most, context))

    def rounds(self, ids: Sequence[int], mask_id: int) -> int:
        """How many steps are enough, whatever the model writes: each grows it or fills a mask."""
        masks = ids.count(mask_id)
        return masks + 2 * self.budget(len(ids), masks)

    def budget(self, length: int, masks: int) -> int:
        """How often a hole of so many masks may grow, in a text of this length."""
        most = self.columns - length + masks
        return most if self.expand_budget is None else self.expand_budget

    def is_cut(self, length: int, left: int) -> bool:
        """Whether a hole ended because it had to: with masks left, or as long as it may be."""
        return left > 0 or length == self.columns


@dataclass
class Growth:
    """The hole of a sequence, and how far it may still grow.

    Args:
        hole: its columns [first, stop).
        budget: how many more expands there may be.
        source: from which column each of the hole's came in the last step (NEW: a new mask); None:
            they stayed as they were.
    """

    room: Room
    hole: tuple[int, int]
    budget: int
    expand_id: int
    delete_id: int
    source: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        masked_L: np.ndarray,
        room: Room,
        config: SamplingConfig,
        model: DreamConfig,
        *,
        formed: bool = False,
    ) -> Growth:
        """That of the hole of a text.

        Args:
            formed: the hole's text is to have a form.

        Raises:
            ValueError: the model, the text or the settings are not for a hole that grows.
        """
        _check(model, config)
        require(not formed, "a form needs a hole that keeps its length: leave it out")
        columns = masked_L.nonzero()[0]
        require(
            len(columns) > 0 and int(columns[-1] - columns[0]) + 1 == len(columns),
            "this model finds the length of one hole: mark one stretch of the text alone",
        )
        require(
            room.columns >= len(masked_L),
            f"the hole begins with {len(columns)} masks, more than it may grow to: allow more new "
            "tokens",
        )
        assert model.expand_token_id is not None
        return cls(
            room,
            (int(columns[0]), int(columns[-1]) + 1),
            room.budget(len(masked_L), len(columns)),
            model.expand_token_id,
            _delete_id(model),
        )

    def suppressed(self, length: int, suppressed: tuple[int, ...]) -> tuple[int, ...]:
        """What may not be written now that the sequence has this length: in a hole that keeps its
        length neither <|expand|> nor an end, here both mean something else."""
        may_grow = length < self.room.columns and self.budget > 0
        others = {*suppressed} - {self.expand_id, self.delete_id}
        return tuple(sorted(others if may_grow else others | {self.expand_id}))

    def after(self, ids_L: np.ndarray, was_masked_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The columns that a step's commits leave: their tokens, and from which column each comes
        (NEW: a new mask).

        Args:
            was_masked_L: what was masked before the step.
        """
        ids_L, all_L = ids_L.copy(), np.arange(len(ids_L))
        deleted_L = was_masked_L & (ids_L == self.delete_id)
        if self.room.pad_to_right and deleted_L.any():
            first = int(deleted_L.argmax())
            ids_L[first:][was_masked_L[first:]] = self.delete_id
            deleted_L = was_masked_L & (ids_L == self.delete_id)
        expanded_L = was_masked_L & (ids_L == self.expand_id)
        self.budget -= int(expanded_L.sum())
        counts_L = np.where(expanded_L, 2, np.where(deleted_L & self.room.delete_ends, 0, 1))
        source_L = np.repeat(np.where(expanded_L, NEW, all_L), counts_L)
        first, stop = self.hole
        self.hole = first, stop + len(source_L) - len(ids_L)
        stays = len(source_L) == len(ids_L) and bool((source_L == all_L).all())
        self.source = None if stays else tuple(source_L[slice(*self.hole)].tolist())
        return np.repeat(ids_L, counts_L), source_L


def _delete_id(model: DreamConfig) -> int:
    """The end of a text, which in a hole means that no token stands there."""
    ids = model.eos_token_id
    found = ids[0] if isinstance(ids, list) and ids else ids
    require(isinstance(found, int), "config.json has no eos_token_id, by which DreamOn deletes")
    assert isinstance(found, int)
    return found


def _check(model: DreamConfig, config: SamplingConfig) -> None:
    """Raises ValueError for a model or settings that cannot fill a hole that grows."""
    require(
        model.expand_token_id is not None,
        "this model has no <|expand|>: holes of DreamOn's models alone can grow",
    )
    # What has no effect on one token a step, or none where columns move.
    for name in ("cache", "block_length", "guidance", "step_schedule", "eps"):
        require(
            getattr(config, name) == getattr(SamplingConfig(), name),
            f"a hole that grows is computed as a whole, token by token: leave out {name}",
        )
    require(
        not (config.adaptive or config.by_chance or config.needs_agreement),
        "a hole that grows commits one token a step: leave out thresholds, factor, "
        "entropy_bound, agreement and alg origin",
    )
