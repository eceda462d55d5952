"""The text that must follow a state of a form, as the tokenizer writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import controls
from .automaton import ByteAutomaton

# Bytes of fixed text that are encoded at once.
MOST_FIXED = 64


def fixed_texts(
    automaton: ByteAutomaton,
    encode: Callable[[Sequence[str]], list[list[int]]],
    control_ids: Sequence[int],
) -> dict[int, tuple[int, ...]]:
    """The tokens of the text that must follow each state where some must.

    A word at their end is left to the model where a longer token could stand there: after `in` may
    come `teger`, which tokenizers write as one. They cut at punctuation.
    """
    next_SB, accepting_S = automaton.next_SB, automaton.accepting_S
    single_S = ((next_SB >= 0).sum(axis=1) == 1) & ~accepting_S
    single, accepts = single_S.tolist(), accepting_S.tolist()
    byte, to = (next_SB >= 0).argmax(axis=1).tolist(), next_SB.max(axis=1).tolist()
    ends: dict[int, int] = {}
    pieces: dict[int, list[str | int]] = {}
    for first in single_S.nonzero()[0].tolist():
        state, text = first, bytearray()
        while single[state] and len(text) < MOST_FIXED:
            text.append(byte[state])
            state = to[state]
        # A character of which the first bytes alone are fixed is no text.
        ends[first], pieces[first] = state, controls.pieces(bytes(text))
    # All in one call: a form of thousands of fixed bytes has as many texts.
    texts = list(dict.fromkeys(p for own in pieces.values() for p in own if isinstance(p, str)))
    ids_of: dict[str | int, list[int]] = {i: [own] for i, own in enumerate(control_ids)}
    ids_of.update(zip(texts, encode(texts), strict=True))
    found: dict[int, tuple[int, ...]] = {}
    for first, state in ends.items():
        ids = [token for piece in pieces[first] for token in ids_of[piece]]
        is_over = accepts[state] and to[state] < 0
        if ids and not is_over and (single[state] or not _is_cut_behind(pieces[first][-1])):
            ids = ids[:-1]
        if ids:
            found[first] = tuple(ids)
    return found


def _is_cut_behind(piece: str | int) -> bool:
    """Whether tokenizers end a token behind it whatever follows, by and large."""
    return isinstance(piece, int) or not (piece[-1].isalnum() or piece[-1].isspace())
