"""A hole whose length the model finds: DreamOn's way of filling one in.

It commits one token a step. A committed `<|expand|>` becomes two masks, and an end of text takes
its column away. On the flat canvas a sequence has room for the longest it may become, so that
others never move; what it holds moves within that room.
Shape suffixes: P positions of the canvas, L columns of the sequence, N some of its positions.
"""

from __future__ import annotations

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


@dataclass
class Growth:
    """The hole of a sequence, and how far it may still grow.

    Args:
        first: its first column; behind it stand
        after: given columns.
        room: the most columns that the sequence may have.
        budget: how many more expands there may be.
    """

    first: int
    after: int
    room: int
    budget: int
    expand_id: int
    delete_id: int
    pad_to_right: bool
    delete: bool

    @classmethod
    def of(
        cls, masked_L: np.ndarray, room: Room, config: SamplingConfig, model: DreamConfig
    ) -> Growth:
        """That of the hole of a text.

        Raises:
            ValueError: the model, the text or the settings are not for a hole that grows.
        """
        check_growing(model, config)
        columns = masked_L.nonzero()[0]
        require(
            len(columns) > 0 and int(columns[-1] - columns[0]) + 1 == len(columns),
            "this model grows one hole of a text: mark one stretch alone",
        )
        require(
            room.columns >= len(masked_L),
            f"the hole begins with {len(columns)} masks, more than it may grow to: allow more new "
            "tokens",
        )
        most = room.columns - len(masked_L) + len(columns)
        assert model.expand_token_id is not None
        return cls(
            first=int(columns[0]),
            after=len(masked_L) - 1 - int(columns[-1]),
            room=room.columns,
            budget=most if room.expand_budget is None else room.expand_budget,
            expand_id=model.expand_token_id,
            delete_id=delete_id_of(model),
            pad_to_right=room.pad_to_right,
            delete=room.delete_ends,
        )

    def suppressed(self, length: int, suppressed: tuple[int, ...]) -> tuple[int, ...]:
        """What may not be written now that the sequence has this length."""
        may_grow = length < self.room and self.budget > 0
        others = {*suppressed} - {self.expand_id}
        return tuple(sorted(others if may_grow else others | {self.expand_id}))

    def sources(self, ids_L: np.ndarray, was_masked_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A step's commits as columns: the tokens now, and from which column each comes (NEW: a
        new mask).

        Args:
            was_masked_L: what was masked before the step.
        """
        ids_L = ids_L.copy()
        deleted_L = was_masked_L & (ids_L == self.delete_id)
        if self.pad_to_right and deleted_L.any():
            first = int(deleted_L.argmax())
            ids_L[first:][was_masked_L[first:]] = self.delete_id
            deleted_L = was_masked_L & (ids_L == self.delete_id)
        expanded_L = was_masked_L & (ids_L == self.expand_id)
        self.budget -= int(expanded_L.sum())
        counts_L = np.where(expanded_L, 2, np.where(deleted_L & self.delete, 0, 1))
        source_L = np.repeat(np.where(expanded_L, NEW, np.arange(len(ids_L))), counts_L)
        return np.repeat(ids_L, counts_L), source_L


def delete_id_of(model: DreamConfig) -> int:
    """The end of a text, which in a hole means that no token stands there."""
    ids = model.eos_token_id
    found = ids[0] if isinstance(ids, list) and ids else ids
    require(isinstance(found, int), "config.json has no eos_token_id, by which DreamOn deletes")
    assert isinstance(found, int)
    return found


def check_growing(model: DreamConfig, config: SamplingConfig) -> None:
    """Raises ValueError for a model or settings that cannot fill a hole that grows."""
    require(
        model.expand_token_id is not None,
        "this model has no <|expand|>: holes of DreamOn's models alone can grow",
    )
    off = {
        "cache": "none",
        "block_length": None,
        "guidance": 0,
    }
    for name, value in off.items():
        require(
            getattr(config, name) == value,
            f"a hole that grows is computed as a whole, token by token: leave out {name}",
        )
    require(
        not (config.adaptive or config.by_chance or config.needs_agreement),
        "a hole that grows commits one token a step: leave out thresholds, factor, "
        "entropy_bound, agreement and alg origin",
    )
