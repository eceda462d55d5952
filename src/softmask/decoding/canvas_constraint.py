"""Decoding into a form: a canvas that can always be completed to a text of a given language.

Tokens that would leave no way to complete the canvas get no mass before anything is chosen or mixed
in, so that feedback cannot point at them. Text that the form fixes is written at once, without a
forward.
Shape suffixes: L columns of a sequence, N masked positions that were read, C classes of tokens, V
vocabulary, K different pairs of sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..logits import floor_of
from ..models.lm_head import Forbid

if TYPE_CHECKING:
    from ..constraints.token_automaton import TokenAutomaton

Pair = tuple[int, int]  # the sets of states before and behind a hole
# Rows of logits that are masked at once: bounds the (rows, V) bools.
CHUNK_ROWS = 32
# Tokens up to which the shortest text of a form is looked for, to name its length.
MOST_SHORTEST = 4096
BROKEN = "the text is no longer of the form that was asked for: a rule ended it before it was"


class CanvasConstraint:
    """What may stand where on one sequence, between its first and its last hole.

    `reached[i]` is the set of states before column i of the stretch, from the left alone;
    `needed[i]` the set from which the columns from i on can be completed.

    Args:
        first, stop: the columns between which holes are looked for.

    Raises:
        ValueError: no text of the form fits into the holes.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        ids_L: np.ndarray,
        mask_id: int,
        first: int = 0,
        stop: int | None = None,
    ) -> None:
        self.automaton, self._mask_id = automaton, mask_id
        holes = first + (ids_L[first:stop] == mask_id).nonzero()[0]
        self.first, self.stop = int(holes[0]), int(holes[-1]) + 1
        self.renew(ids_L)
        if not automaton.meets(self.reached[0], self.needed[0]):
            raise _misfit(automaton, len(holes))

    @classmethod
    def of(
        cls,
        automaton: TokenAutomaton,
        ids_L: np.ndarray,
        mask_id: int,
        holes: tuple[int, ...] | None,
    ) -> CanvasConstraint:
        """That of the whole stretch, or of the holes that begin at these columns, each by itself.

        Raises:
            ValueError: no text of the form fits.
        """
        if holes is None:
            return cls(automaton, ids_L, mask_id)
        return HoleConstraint(automaton, ids_L, mask_id, holes)

    def renew(self, ids_L: np.ndarray) -> None:
        """Reads the sets off a canvas."""
        automaton = self.automaton
        self._epoch = automaton.epoch
        self.kinds: list[int | None] = [
            None if token == self._mask_id else automaton.class_of(token)
            for token in ids_L[self.first : self.stop].tolist()
        ]
        self.reached, needed = [automaton.start], [automaton.accepted]
        for kind in self.kinds:
            self.reached.append(automaton.after(self.reached[-1], kind))
        for kind in reversed(self.kinds):
            needed.append(automaton.before(needed[-1], kind))
        self.needed = needed[::-1]

    @property
    def is_void(self) -> bool:
        """Whether the automaton has forgotten its sets."""
        return self._epoch != self.automaton.epoch

    def follow(self, ids_L: np.ndarray) -> bool:
        """Takes in what others wrote onto the canvas; whether it can still be completed."""
        written = ids_L[self.first : self.stop] != self._mask_id
        for place in written.nonzero()[0].tolist():
            if self.kinds[place] is None:
                self._put(place, self.automaton.class_of(int(ids_L[self.first + place])))
        return self.automaton.meets(self.reached[0], self.needed[0])

    @property
    def is_cut(self) -> bool:
        """Whether what is written begins a text of the form, and only ends stand behind it."""
        if None in self.kinds:
            return False
        stop = self.kinds.index(0) if 0 in self.kinds else len(self.kinds)
        begun = self.automaton.meets(self.reached[stop], self.automaton.any_state)
        return begun and not any(self.kinds[stop:])

    def masked(self, ids_L: np.ndarray) -> np.ndarray:
        """(L,) bool: the holes of a canvas."""
        return ids_L == self._mask_id

    def pair(self, column: int) -> Pair:
        """The sets between which a column lies."""
        place = column - self.first
        return self.reached[place], self.needed[place + 1]

    def commit(self, column: int, token: int) -> bool:
        """Puts a token into a hole if the canvas can be completed then; whether it was."""
        reached, needed = self.pair(column)
        kind = self.automaton.class_of(token)
        if not self.automaton.meets(self.automaton.after(reached, kind), needed):
            return False
        self._put(column - self.first, kind)
        return True

    def _put(self, place: int, kind: int) -> None:
        automaton, self.kinds[place] = self.automaton, kind
        for i in range(place, len(self.kinds)):
            after = automaton.after(self.reached[i], self.kinds[i])
            if after == self.reached[i + 1]:
                break
            self.reached[i + 1] = after
        for i in range(place, -1, -1):
            before = automaton.before(self.needed[i + 1], self.kinds[i])
            if before == self.needed[i]:
                break
            self.needed[i] = before

    def write_fixed(self) -> list[tuple[int, int]]:
        """Commits what the form leaves no choice about; returns the columns and their tokens."""
        written: list[tuple[int, int]] = []
        while None in self.kinds:
            more = self._fixed_text() or self._single_tokens()
            if not more:
                break
            written += more
        return written

    def _fixed_text(self) -> list[tuple[int, int]]:
        """What must follow the text that is decided from the left, as far as there are holes."""
        place = self.kinds.index(None)
        written = []
        for token in self.automaton.fixed(self.reached[place]):
            column = self.first + place
            is_hole = place < len(self.kinds) and self.kinds[place] is None
            if not is_hole or not self.commit(column, token):
                break
            written.append((column, token))
            place += 1
        return written

    def _single_tokens(self) -> list[tuple[int, int]]:
        """Holes for which one token is left."""
        written = []
        for place, kind in enumerate(self.kinds):
            if kind is None:
                token = self.automaton.only(self.reached[place], self.needed[place + 1])
                if token is not None and self.commit(self.first + place, token):
                    written.append((self.first + place, token))
        return written

    def save(self) -> dict[str, Any]:
        """All that a step changes."""
        names = ("kinds", "reached", "needed")
        return {name: list(getattr(self, name)) for name in names} | {"_epoch": self._epoch}

    def restore(self, saved: dict[str, Any]) -> None:
        """As it was when it was saved."""
        for name, value in saved.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


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

    @property
    def is_void(self) -> bool:
        """As of any hole."""
        return any(hole.is_void for hole in self.holes)

    def follow(self, ids_L: np.ndarray) -> bool:
        """As of each hole; a rule may end one whose form is no more than how it begins."""
        return all([hole.follow(ids_L) or hole.is_cut for hole in self.holes])

    def _at(self, column: int) -> CanvasConstraint | None:
        return next((hole for hole in self.holes if hole.first <= column < hole.stop), None)

    def pair(self, column: int) -> Pair:
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


def check_fits(automaton: TokenAutomaton, ids: Sequence[int], mask_id: int) -> None:
    """Raises ValueError where no text of the form fits into the holes of a canvas."""
    holes = [place for place, token in enumerate(ids) if token == mask_id]
    stretch = ids[holes[0] : holes[-1] + 1]
    kinds = [None if token == mask_id else automaton.class_of(token) for token in stretch]
    if not automaton.completes(kinds):
        raise _misfit(automaton, len(holes))


def _misfit(automaton: TokenAutomaton, holes: int) -> ValueError:
    least = automaton.shortest(MOST_SHORTEST)
    if least is None:
        return ValueError(f"no text of this form has fewer than {MOST_SHORTEST} tokens")
    if least > holes:
        return ValueError(
            f"the shortest text of this form has {least} tokens, but there is room for {holes}: "
            "ask for more"
        )
    tokens = "token that is" if holes == 1 else "tokens that are"
    return ValueError(f"no text of this form has just the {holes} {tokens} to be filled in")


def forbidden(automaton: TokenAutomaton, pairs: Sequence[Pair], device: torch.device) -> Forbid:
    """What cannot stand in holes that lie between these sets, as `read_head` takes it.

    Rows between the same sets are alike: their tokens are looked up once.
    """
    place = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    allowed_KC = np.stack([automaton.allowed(*pair) for pair in place])
    forbidden_KC = torch.from_numpy(~allowed_KC).to(device)
    class_V = torch.from_numpy(automaton.class_V).to(device)
    place_N = torch.tensor([place[pair] for pair in pairs], device=device)
    buffers: dict[tuple[int, ...], Tensor] = {}

    def select(values: Tensor, dim: int, index: Tensor) -> Tensor:
        # Into memory that is there: fresh pages would take ten times as long as the copy.
        shape = (len(index), values.shape[1]) if dim == 0 else (len(values), len(index))
        if (dim, *shape) not in buffers:
            buffers[dim, *shape] = values.new_empty(shape)
        return torch.index_select(values, dim, index, out=buffers[dim, *shape])

    def forbid(logits_NC: Tensor, row: int, column: int) -> None:
        size = logits_NC.shape[1]
        class_C = class_V[column : column + size]
        beyond = size - len(class_C)  # rows of the table that no token has
        if beyond:
            class_C = torch.nn.functional.pad(class_C, (0, beyond))
        floor_KC = forbidden_KC.to(logits_NC.dtype) * floor_of(logits_NC.dtype)
        alike_KC = select(floor_KC, 1, class_C)
        for begin in range(0, len(logits_NC), CHUNK_ROWS):
            part_NC = logits_NC[begin : begin + CHUNK_ROWS]
            part_NC += select(alike_KC, 0, place_N[row + begin : row + begin + len(part_NC)])

    return forbid
