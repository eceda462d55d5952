"""Which settings rule at which update: a recipe's stages, and its learning rate.

A run has one clock, the number of rows drawn so far. Whatever is random derives from (seed,
position on that clock), so that a resumed run, or one on another number of processes, draws the
same rows and masks.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from .config import StageConfig, TrainConfig


@dataclass(frozen=True)
class Stage:
    """A stretch of updates [start, start + steps) with every setting decided."""

    name: str
    start: int
    steps: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    schedule: str
    soft_probability: float
    feedback_passes: int
    left_to_right: float
    puzzles: dict[str, float] | None
    puzzle_share: float | None

    def learning_rate_at(self, step: int) -> float:
        """Of an update of the run: linear warm-up, then the schedule to `final_learning_rate`."""
        inner = step - self.start
        if inner < self.warmup_steps:
            return self.learning_rate * (inner + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        left = 1 - min(1.0, (inner - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.schedule == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left


class Plan:
    """The stages of a run of known length."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        """`steps`: updates of the whole run, where the recipe gives no stages."""
        stretches = config.stages or (StageConfig("train", steps),)
        self.stages: list[Stage] = []
        for stretch in stretches:
            start = self.stages[-1].start + self.stages[-1].steps if self.stages else 0
            self.stages.append(_resolve(config, stretch, start))
        self.steps = self.stages[-1].start + self.stages[-1].steps

    def at(self, step: int) -> Stage:
        """The stage of an update; behind the end, the last one."""
        return next(s for s in reversed(self.stages) if step >= s.start)

    def learning_rate(self, step: int) -> float:
        return self.at(step).learning_rate_at(step)


def _resolve(config: TrainConfig, stretch: StageConfig, start: int) -> Stage:
    def own(name: str):
        value = getattr(stretch, name)
        return getattr(config, name) if value is None else value

    warmup = own("warmup")
    return Stage(
        name=stretch.name,
        start=start,
        steps=stretch.steps,
        learning_rate=own("learning_rate"),
        final_learning_rate=own("final_learning_rate"),
        # As transformers counts a share: rounded up.
        warmup_steps=math.ceil(warmup * stretch.steps) if warmup < 1 else int(warmup),
        schedule=config.schedule,
        soft_probability=own("soft_probability"),
        feedback_passes=own("feedback_passes"),
        left_to_right=own("left_to_right"),
        puzzles=stretch.puzzles,
        puzzle_share=stretch.puzzle_share,
    )


@dataclass(frozen=True)
class Clock:
    """Where on the run's clock a row stands: `batch` rows a device and forward."""

    batch: int
    devices: int
    accumulation: int

    @property
    def rows_per_update(self) -> int:
        return self.batch * self.devices * self.accumulation

    def step(self, draw: int) -> int:
        """The update that the row of this number belongs to."""
        return draw // self.rows_per_update

    def forward(self, draw: int) -> int:
        """The forward that all devices make at the same time, counted over the run."""
        return draw // (self.batch * self.devices)


def derived_seed(purpose: str, seed: int, number: int) -> int:
    """63 bits that belong to (purpose, seed, number) alone."""
    return random.Random(f"{purpose}/{seed}/{number}").getrandbits(63)
