"""The schedule of a training: its stages, the learning rate at each update, the global batch.

The rows of a run are numbered in the order in which they are drawn. Whatever is random derives
from (seed, number of the row), so that a resumed run, or one on another number of processes, draws
the same rows and masks.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

from .config import StageConfig, TrainConfig


@dataclass(frozen=True)
class Stage:
    """The updates [start, start + steps), with every setting resolved."""

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
        """The rate of an update of the run: linear warm-up, then down to `final_learning_rate`.

        As transformers counts, and so as published, the first update of a warm-up has rate 0.
        """
        inner = step - self.start
        if inner < self.warmup_steps:
            return self.learning_rate * inner / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        left = 1 - min(1.0, (inner - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.schedule == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * left


class TrainingSchedule:
    """The stages of a run of known length."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        """`steps`: updates of the whole run, where the recipe gives no stages."""
        self.stages: list[Stage] = []
        for stage in config.stages or (StageConfig("train", steps),):
            start = self.stages[-1].start + self.stages[-1].steps if self.stages else 0
            self.stages.append(_resolve(config, stage, start))
        self.steps = self.stages[-1].start + self.stages[-1].steps

    def at(self, step: int) -> Stage:
        """The stage of an update; after the end, the last one."""
        return next(s for s in reversed(self.stages) if step >= s.start)

    def learning_rate(self, step: int) -> float:
        return self.at(step).learning_rate_at(step)


def _resolve(config: TrainConfig, stage: StageConfig, start: int) -> Stage:
    def own(name: str) -> Any:
        value = getattr(stage, name)
        return getattr(config, name) if value is None else value

    warmup = own("warmup")
    return Stage(
        name=stage.name,
        start=start,
        steps=stage.steps,
        learning_rate=own("learning_rate"),
        final_learning_rate=own("final_learning_rate"),
        # As transformers counts a share: rounded up.
        warmup_steps=math.ceil(warmup * stage.steps) if warmup < 1 else int(warmup),
        schedule=config.schedule,
        soft_probability=own("soft_probability"),
        feedback_passes=own("feedback_passes"),
        left_to_right=own("left_to_right"),
        puzzles=stage.puzzles,
        puzzle_share=stage.puzzle_share,
    )


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of one update, `per_device` of them in each forward of each device.

    `draw` is the number of a row in the run.
    """

    per_device: int
    devices: int
    accumulation: int

    @property
    def size(self) -> int:
        """Rows of an update."""
        return self.per_device * self.devices * self.accumulation

    def update_of(self, draw: int) -> int:
        """The update that a row belongs to."""
        return draw // self.size

    def forward_of(self, draw: int) -> int:
        """The forward of a row, which all devices make at once; counted over the run."""
        return draw // (self.per_device * self.devices)


def derived_seed(purpose: str, seed: int, number: int) -> int:
    """A seed of 63 bits, a function of (purpose, seed, number) alone."""
    return random.Random(f"{purpose}/{seed}/{number}").getrandbits(63)
