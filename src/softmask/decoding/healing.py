"""A space before a hole: the hole's own text begins with it.

Tokens bring the space before them, so a text that ends in one, as a token of its own, is none that
a model has seen before a word. The space that is typed before a hole is therefore left off the
canvas, and the hole must begin with it: exactly one, and what follows it. Where the tokenizer
writes it apart, as before a digit, it is a token of the hole. With a tokenizer that always does
(one of characters or bytes) the text stays as it was typed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..constraints.constraint import Constraint
from ..constraints.token_automaton import TokenAutomaton
from ..models.checkpoint import Checkpoint
from .canvas_constraint import CanvasConstraint

# What may stand in such a hole.
SPACED = Constraint("regex", r" [^ ](?s:.)*")


def without_space(checkpoint: Checkpoint, text: str, before: str = "") -> tuple[str, bool]:
    """A text that stands before a hole without the space at its end, and whether it had one.

    Args:
        before: what stands before the text; a space that nothing stands before stays.
    """
    if text.endswith(" ") and (before + text).strip() and checkpoint.joins_spaces:
        return text[:-1], True
    return text, False


class HoleConstraint(CanvasConstraint):
    """Some holes of a sequence, each of a form by itself; what stands in others is free.

    Args:
        starts: columns at which those holes begin.
    """

    def __init__(
        self, automaton: TokenAutomaton, ids_L: np.ndarray, mask_id: int, starts: tuple[int, ...]
    ) -> None:
        self.automaton, self._mask_id = automaton, mask_id
        self.holes = []
        for start in starts:
            open_L = ids_L[start:] == mask_id
            stop = len(ids_L) if open_L.all() else start + int(open_L.argmin())
            # A hole may adjoin the next one, which begins with a space of its own.
            stop = min([stop, *(one for one in starts if one > start)])
            self.holes.append(CanvasConstraint(automaton, ids_L, mask_id, start, stop))

    def renew(self, ids_L: np.ndarray) -> None:
        """As of each hole."""
        for hole in self.holes:
            hole.renew(ids_L)

    def follow(self, ids_L: np.ndarray) -> bool:
        """As of each hole."""
        return all([hole.follow(ids_L) for hole in self.holes])

    def _at(self, column: int) -> CanvasConstraint | None:
        return next((hole for hole in self.holes if hole.first <= column < hole.stop), None)

    def pair(self, column: int) -> tuple[int, int]:
        """The sets between which a column lies; outside of the holes all states."""
        hole = self._at(column)
        return (self.automaton.any_state,) * 2 if hole is None else hole.pair(column)

    def commit(self, column: int, token: int) -> bool:
        """Puts a token into a hole if the hole can be completed then; whether it was."""
        hole = self._at(column)
        return self.automaton.class_of(token) > 0 if hole is None else hole.commit(column, token)

    def write_fixed(self) -> list[tuple[int, int]]:
        """Commits what the form leaves no choice about."""
        return [pair for hole in self.holes for pair in hole.write_fixed()]

    def save(self) -> dict[str, Any]:
        """All that a step changes."""
        return {"holes": [hole.save() for hole in self.holes]}

    def restore(self, saved: dict[str, Any]) -> None:
        """As it was when it was saved."""
        for hole, own in zip(self.holes, saved["holes"], strict=True):
            hole.restore(own)
