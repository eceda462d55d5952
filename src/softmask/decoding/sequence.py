"""One sequence of a batch, on the host: where it lies, how it is decoded, how far it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import SamplingConfig, SoftMaskConfig, is_on
from .canvas_constraint import CanvasConstraint
from .grid import Grid
from .growing import Growth, OneByOne
from .kv_cache import exact_window, window
from .schedule import ScheduledStep, StepSchedule

if TYPE_CHECKING:
    from ..constraints.token_automaton import TokenAutomaton


@dataclass(frozen=True)
class Rules:
    """What text-level generation adds to the published algorithm; all off by default.

    `suppressed` ids are never predicted nor mixed in; `end_ids` get the end penalty, and, with
    `stop`, end their sequence once everything before them is decided: what is masked behind becomes
    `fill_id`. `eos_id` is that of them which ends a text, others end turns.
    """

    suppressed: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    stop: bool = False
    fill_id: int = 0
    eos_id: int | None = None


@dataclass(frozen=True)
class Settings:
    """What sequences must share to be read, committed and mixed in one go."""

    config: SamplingConfig
    soft_mask: SoftMaskConfig | None
    rules: Rules
    seeded: bool
    automaton: TokenAutomaton | None = None

    @property
    def temperatures(self) -> tuple[float, ...]:
        """At which a step reads distributions too, beside 1."""
        return tuple({self.config.score_temperature} - {1.0})

    @property
    def late_ids(self) -> tuple[int, ...]:
        """Tokens that are committed last."""
        late, ids = self.config.late_ends, self.rules.end_ids
        if late == "published" and self.config.temperature > 0:
            return tuple(id_ for id_ in ids if id_ != self.rules.eos_id)
        return () if late == "no" else ids

    @classmethod
    def of(cls, sequence: SequenceState) -> Settings:
        # Where a sequence stands, and how many steps it has, is its own affair.
        config = dataclasses.replace(
            sequence.config,
            steps=1,
            cache="none",
            refresh_every=None,
            refresh_window=None,
            block_length=None,
            next_block_at=None,
            lookahead=None,
            step_schedule="linspace",
        )
        soft_mask = sequence.soft_mask if sequence.is_soft else None
        return cls(
            config,
            soft_mask,
            sequence.rules,
            sequence.generator is not None,
            None if sequence.constraint is None else sequence.constraint.automaton,
        )


@dataclass(eq=False)
class SequenceState:
    """A sequence that lies on a batch's flat canvas; `L` are its own columns."""

    start: int  # its first flat position
    length: int
    config: SamplingConfig
    soft_mask: SoftMaskConfig | None
    rules: Rules
    generator: torch.Generator | None
    may_write_masks: bool  # as the published loop may: they are masks again
    schedule: StepSchedule
    generated_L: np.ndarray  # bool: what was masked at first, or is of a hole that grew
    twin: int | None = None  # where its branch without a prompt lies, if it is guided
    growth: Growth | None = None  # of a hole whose length the model finds
    grid: Grid | None = None  # of a block-causal model
    kept: int = 0  # with it: how many leading columns have their final keys and values in the store
    top_logprobs: int = 0  # leading tokens that are reported
    constraint: CanvasConstraint | None = None
    step: int = 0
    forwards: int = 0
    block: int = 0  # the first that is open
    last_block: int = 0  # the last that is
    age: int = 0  # steps with a forward since the block began
    failure: str | None = None
    cause: Exception | None = None  # the error behind it, where there was one
    stop_state: dict[str, Any] = field(default_factory=dict)  # of a stopping rule

    def __post_init__(self) -> None:
        self.flat_L = np.arange(self.start, self.start + self.length)
        # As last seen; unused where steps are planned.
        self.masked_L = self.masked_before_L = self.generated_L
        self.settings = Settings.of(self)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, or to be done with."""
        left = self.schedule.total_left > 0 and self.step < self.config.steps
        return not left or self.failure is not None

    @property
    def is_soft(self) -> bool:
        return is_on(self.soft_mask)

    @property
    def is_planned(self) -> bool:
        """Whether each step commits just what it plans: then nothing need be counted after it."""
        config = self.config
        by_plan = not (config.by_chance or config.adaptive)
        by_plan = by_plan and not (config.opens_early or config.needs_agreement)
        free = self.constraint is None and self.growth is None
        return by_plan and free and not self.may_stop and not self.may_write_masks

    @property
    def may_stop(self) -> bool:
        """Whether a text can end early: at an end token where the caller says so, or by a rule."""
        return self.rules.stop or not self.config.stopping.rule.is_shipped

    @property
    def is_scored_apart(self) -> bool:
        """Whether confidence is read off a forward of its own, without feedback."""
        return self.is_soft and self.config.commit_from == "plain"

    def resize(self, masked_L: np.ndarray) -> None:
        """Goes on with other columns, of which these are masked."""
        assert self.growth is not None
        assert isinstance(self.schedule, OneByOne)
        self.length = len(masked_L)
        self.generated_L = np.zeros_like(masked_L)
        self.generated_L[slice(*self.growth.hole)] = True
        self.flat_L = np.arange(self.start, self.start + self.length)
        self.masked_L = self.masked_before_L = masked_L
        self.schedule.resize(masked_L)

    def suppress(self, ids: tuple[int, ...]) -> None:
        """Goes on with these tokens left out."""
        if ids != self.rules.suppressed:
            self.rules = dataclasses.replace(self.rules, suppressed=ids)
            self.settings = Settings.of(self)

    def enter(self, scheduled: ScheduledStep, *, shift: bool) -> tuple[int, int]:
        """Takes up a step that has a forward; returns the columns that it computes.

        Where its first block begins, the text is computed anew. So it is where more of it takes
        part: nothing else has computed what has joined.
        """
        grows = self.schedule.reach(scheduled.last) != self.reach
        if scheduled.block != self.block or grows:
            self.age = 0
        self.block, self.last_block = scheduled.block, scheduled.last
        return self._window(scheduled, shift=shift)

    def note_forward(self) -> None:
        """Counts a forward of the columns that `enter` named."""
        self.age += 1
        if self.grid is not None:
            # All before the block was clean, and either kept or computed.
            self.kept = self.grid.start(self.schedule.bounds(self.block)[0])

    def needs_forward(self, scheduled: ScheduledStep) -> bool:
        """False where a forward could change nothing.

        A plain greedy step that commits nothing would be repeated word for word by the next one;
        with soft-masking it still moves the input, and random rules draw. Neither do so in a block
        of a block-causal model that is full.
        """
        if self.grid is not None and not self.schedule.left[scheduled.block]:
            return False
        repeats = not self.is_soft and self.config.temperature == 0
        return scheduled.commits > 0 or not repeats or self.config.by_chance

    def save(self) -> dict[str, Any]:
        """All that a step changes."""
        state = None if self.generator is None else self.generator.get_state()
        names = ("step", "forwards", "block", "last_block", "age", "kept", "failure", "masked_L")
        values = {name: getattr(self, name) for name in names}
        values["stop_state"] = dict(self.stop_state)
        constraint = None if self.constraint is None else self.constraint.save()
        left = list(self.schedule.left)
        if self.growth is not None:
            values |= {"growth": dataclasses.replace(self.growth), "rules": self.rules}
        return {"values": values, "left": left, "generator": state, "constraint": constraint}

    def restore(self, saved: dict[str, Any]) -> None:
        """As it was when it was saved."""
        for name, value in saved["values"].items():
            setattr(self, name, dict(value) if name == "stop_state" else value)
        if self.growth is not None:
            self.growth = dataclasses.replace(self.growth)
            self.settings = Settings.of(self)
            self.resize(self.masked_L)
        self.schedule.left = saved["left"]
        if self.generator is not None:
            self.generator.set_state(saved["generator"])
        if self.constraint is not None:
            self.constraint.restore(saved["constraint"])

    def _window(self, scheduled: ScheduledStep, *, shift: bool) -> tuple[int, int]:
        reach = self.reach
        if self.config.cache == "none":
            return 0, reach
        first, last = self._between(scheduled.block, scheduled.last)
        if self.grid is not None:
            return exact_window(self.kept, self.grid.start(first), reach, shift=shift)
        return window(self.config, first, last, reach, self.age, shift=shift)

    @property
    def reach(self) -> int:
        """How many columns took part in the last step; those behind are masks not looked at yet."""
        return self.schedule.reach(self.last_block)

    @property
    def open(self) -> int:
        """How many of the masks that are left took part in the last step."""
        return max(self.schedule.total_left - (self.length - self.reach), 0)

    def masks_before(self, column: int, scheduled: ScheduledStep) -> int:
        """How many masks lie before a column that lies behind the current block."""
        if self.is_planned:
            return self.schedule.left_before(column, scheduled.block)
        return int(self.masked_L[:column].sum())

    def committable(self, scheduled: ScheduledStep) -> tuple[int, int]:
        """The columns among which a step may commit masks."""
        return self._columns(scheduled.block, scheduled.last)

    def counted(self, scheduled: ScheduledStep) -> tuple[int, int]:
        """The columns among which it commits as many as are scheduled."""
        return self._columns(scheduled.block, self.schedule.counted(scheduled))

    def _columns(self, block: int, last: int) -> tuple[int, int]:
        if self.schedule.is_whole:
            return 0, self.length
        first, end = self._between(block, last)
        return first, end + 1

    def _between(self, block: int, last: int) -> tuple[int, int]:
        """Columns of the first mask of a block and of the last one of another, as they began."""
        return self.schedule.bounds(block)[0], self.schedule.bounds(last)[1]
