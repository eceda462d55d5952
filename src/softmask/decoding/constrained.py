"""Decoding into a form: a canvas that can always be completed to a text of a given language.

Tokens that would leave no way to complete the canvas get no mass before anything is chosen or mixed
in, so that feedback cannot point at them. Of the tokens that a step commits together each is
looked at again with those before it, the surest first: one that has become impossible waits for
the next step or, in the last one, gives way to the likeliest that is possible. Text that the form
fixes is written at once, without a forward.
Shape suffixes: L columns of a sequence, N masked positions that were read, C classes of tokens, V
vocabulary, K different pairs of sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..constraints.token_automaton import TokenAutomaton
from ..logits import LogitStatistics, statistics

if TYPE_CHECKING:
    from .predictions import Predictions, Rows

# Rows of logits that are masked at once: bounds the (rows, V) bools.
CHUNK_ROWS = 32
# Tokens up to which the shortest text of a form is looked for, to name its length.
MOST_SHORTEST = 4096
BROKEN = "the text is no longer of the form that was asked for: a rule ended it before it was"


class CanvasConstraint:
    """What may stand where on one sequence, between its first and its last hole.

    `reached[i]` is the set of states before column i of the stretch, from the left alone;
    `needed[i]` the set from which the columns from i on can be completed.

    Raises:
        ValueError: no text of the form fits into the holes.
    """

    def __init__(self, automaton: TokenAutomaton, ids_L: np.ndarray, mask_id: int) -> None:
        self.automaton, self._mask_id = automaton, mask_id
        holes = (ids_L == mask_id).nonzero()[0]
        self.first, self.stop = int(holes[0]), int(holes[-1]) + 1
        self._read(ids_L)
        if not automaton.meets(self.reached[0], self.needed[0]):
            raise _misfit(automaton, len(holes))

    def _read(self, ids_L: np.ndarray) -> None:
        """The sets of a canvas."""
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

    def renew(self, ids_L: np.ndarray) -> None:
        """Reads the canvas anew where the automaton has forgotten its sets."""
        if self._epoch != self.automaton.epoch:
            self._read(ids_L)

    def follow(self, ids_L: np.ndarray) -> bool:
        """Takes in what others wrote onto the canvas; whether it can still be completed."""
        written = ids_L[self.first : self.stop] != self._mask_id
        for place in written.nonzero()[0].tolist():
            if self.kinds[place] is None:
                self._put(place, self.automaton.class_of(int(ids_L[self.first + place])))
        return self.automaton.meets(self.reached[0], self.needed[0])

    def pair(self, column: int) -> tuple[int, int]:
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
    return ValueError(f"no text of this form has just the {holes} tokens that are to be filled in")


def forbid(rows: Rows, logits_NV: Tensor) -> Tensor:
    """The logits with the floor for every token that cannot stand in its hole."""
    begin, parts = 0, []
    for sequence, count in zip(rows.sequences, rows.counts_R, strict=True):
        if sequence.constraint is not None:
            parts.append((sequence.constraint, torch.arange(begin, begin + count)))
        begin += count
    if not parts:
        return logits_NV
    column_N = rows.ragged.column_N.cpu()
    for constraint, index_M in parts:
        _forbid(constraint, logits_NV, index_M, column_N[index_M].tolist())
    return logits_NV


def _forbid(
    constraint: CanvasConstraint, logits_NV: Tensor, index_M: Tensor, columns: list[int]
) -> None:
    """Masks rows of logits in place; rows between the same sets are masked alike."""
    automaton, device = constraint.automaton, logits_NV.device
    pairs = [constraint.pair(column) for column in columns]
    alike = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    allowed_KC = torch.from_numpy(np.stack([automaton.allowed(*pair) for pair in alike]))
    class_V = torch.from_numpy(automaton.class_V)
    beyond = logits_NV.shape[1] - len(class_V)
    class_V = torch.nn.functional.pad(class_V, (0, max(beyond, 0)))[: logits_NV.shape[1]]
    forbidden_KC, class_V = ~allowed_KC.to(device), class_V.to(device)
    place_M = torch.tensor([alike[pair] for pair in pairs], device=device)
    index_M, floor = index_M.to(device), torch.finfo(logits_NV.dtype).min
    for chunk in range(0, len(index_M), CHUNK_ROWS):
        own = index_M[chunk : chunk + CHUNK_ROWS]
        forbidden_NV = forbidden_KC[place_M[chunk : chunk + CHUNK_ROWS]][:, class_V]
        logits_NV[own] = logits_NV[own].masked_fill(forbidden_NV, floor)


def settle(predictions: Predictions, chosen_N: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) bool and (N,) the commits of a step that are possible together, and their tokens."""
    assert predictions.logits_NV is not None
    logits_N = predictions.logits_NV.gather(1, tokens_N[:, None]).squeeze(1)
    sure_N = (logits_N.float() - predictions.seen.total_N).cpu()
    chosen, tokens = chosen_N.cpu().numpy().copy(), tokens_N.cpu().numpy().copy()
    column_N = predictions.ragged.column_N.cpu().numpy()
    begin = 0
    for sequence, scheduled, count in zip(
        predictions.sequences, predictions.scheduled_R, predictions.counts_R, strict=True
    ):
        rows, begin = np.arange(begin, begin + count), begin + count
        constraint = sequence.constraint
        if constraint is None:
            continue
        rows = rows[chosen[rows]]
        is_last = scheduled.commits >= sequence.schedule.left[scheduled.block]
        is_last |= sequence.config.by_chance and scheduled.share >= 1
        for row in rows[np.argsort(-sure_N.numpy()[rows], kind="stable")].tolist():
            column = int(column_N[row])
            if constraint.commit(column, int(tokens[row])):
                continue
            if is_last:
                tokens[row] = _instead(predictions, row, constraint, column, sequence.generator)
                done = constraint.commit(column, int(tokens[row]))
                assert done, "a token that is allowed can be committed"
            else:
                chosen[row] = False
    return torch.from_numpy(chosen).to(chosen_N.device), torch.from_numpy(tokens).to(
        tokens_N.device
    )


def _instead(
    predictions: Predictions,
    row: int,
    constraint: CanvasConstraint,
    column: int,
    generator: torch.Generator | None,
) -> int:
    """Another token for a row, of those that have stayed possible."""
    assert predictions.logits_NV is not None
    logits_1V = predictions.logits_NV[row : row + 1].float().clone()
    _forbid(constraint, logits_1V, torch.tensor([0]), [column])
    temperature = predictions.settings.config.temperature
    if temperature > 0:
        chances_1V = (logits_1V / temperature).softmax(-1)
        return int(torch.multinomial(chances_1V, 1, generator=generator))
    return int(logits_1V.argmax(-1))


def look_again(predictions: Predictions, pairs: list[tuple[int, int] | None]) -> Predictions:
    """The predictions of rows whose sets a step's commits have changed, with what is allowed now.

    Args:
        pairs: the sets of each row when it was read.
    """
    assert predictions.logits_NV is not None
    now = pairs_of(predictions)
    changed = [row for row, pair in enumerate(pairs) if pair != now[row]]
    if not changed:
        return predictions
    logits_NV = forbid(predictions, predictions.logits_NV)
    index = torch.tensor(changed, device=logits_NV.device)
    renewed = statistics(logits_NV[index], predictions.seen.ids_NK.shape[1])
    seen = LogitStatistics(*(old.clone() for old in predictions.seen))
    for old, new in zip(seen, renewed, strict=True):
        old[index] = new
    return dataclasses.replace(predictions, seen=seen, logits_NV=logits_NV)


def pairs_of(rows: Rows) -> list[tuple[int, int] | None]:
    """The sets between which each row lies; None: it has no constraint."""
    columns = iter(rows.ragged.column_N.tolist())
    pairs: list[tuple[int, int] | None] = []
    for sequence, count in zip(rows.sequences, rows.counts_R, strict=True):
        for _ in range(count):
            column = next(columns)
            constraint = sequence.constraint
            pairs.append(None if constraint is None else constraint.pair(column))
    return pairs
