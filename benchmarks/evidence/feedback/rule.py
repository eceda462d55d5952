"""The rule of success of README.md, computed: paired differences in standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import Estimate, estimate, minus

Table = Sequence[Sequence[float]]  # seeds x puzzles, solved or not
LEAST = -1.0  # standard errors, at every number of forwards
ON_OFF, OVER_CONTROL = 2.0, 2.0
NOT_WORSE = 1.64  # of a loss that is smaller than the margin: one side, 5 %


def over_forwards(tables: Mapping[str, Table]) -> list[list[float]]:
    """The mean over the numbers of forwards, by seed and puzzle."""
    rows = zip(*tables.values(), strict=True)
    return [[sum(cells) / len(cells) for cells in zip(*row, strict=True)] for row in rows]


def gain(a: Mapping[str, Table], b: Mapping[str, Table]) -> Estimate:
    """a minus b in the mean over the numbers of forwards, paired by seed and puzzle."""
    return estimate(minus(over_forwards(a), over_forwards(b)))


def in_errors(found: Estimate) -> float:
    """How many standard errors above 0."""
    if found.error > 0:
        return found.mean / found.error
    return 0.0 if found.mean == 0 else math.copysign(math.inf, found.mean)


@dataclass(frozen=True)
class Condition:
    """One line of the rule: a paired difference, and the standard errors it has to reach."""

    what: str
    found: Estimate
    bar: float

    @property
    def holds(self) -> bool:
        return in_errors(self.found) >= self.bar


def conditions(
    own: Mapping[str, Table],
    off: Mapping[str, Table],
    plain: Mapping[str, Table],
    control: Mapping[str, Table] | None,
    bar: float,
) -> list[Condition]:
    """All that has to hold for an arm to succeed.

    Args:
        own, off: the arm with its feedback on and off, by number of forwards.
        plain: the reference, decoded plainly.
        control: the arm without carry; None: its rows are those of the reference.
    """
    found = [
        Condition("minus plain, mean of all forwards", gain(own, plain), bar),
        *(
            Condition(f"minus plain, {name}", estimate(minus(own[name], plain[name])), LEAST)
            for name in own
        ),
        Condition("on minus off", gain(own, off), ON_OFF),
    ]
    if control is not None:
        over = gain(own, control)
        found.append(Condition("minus buffer without carry", over, OVER_CONTROL))
    return found


def not_worse(
    own: Mapping[str, Table], plain: Mapping[str, Table], margin: float
) -> list[Condition]:
    """The rule where arms need not win: the loss is surely smaller than `margin`."""
    found = gain(own, plain)
    said = f"minus plain, mean of all forwards, plus {100 * margin:g} points"
    return [Condition(said, Estimate(found.mean + margin, found.error), NOT_WORSE)]
