"""A byte automaton over a vocabulary: which tokens may stand where on a canvas with holes.

A canvas is a row of tokens and holes of one token each. `before` it the automaton can be in some
states, `behind` it in some; a token is allowed in a hole if it leads from a state that is reached
from the left to one from which the rest can be completed. That is the intersection of the language
with the canvas, exactly, so a canvas with an allowed token can always be completed within its
length (arXiv 2508.10111 intersects with holes of any length).

Sets of states are interned: a set is a small number, and what follows it is looked up. A step asks
for the same sets as the step before it nearly everywhere, and another request of the same form for
the same ones again.
Shape suffixes: S states, B byte values, E edges (state, class of tokens, next state), C classes,
V vocabulary, T tokens of it, U spellings that differ for the automaton, W width in bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from . import controls
from .automaton import ByteAutomaton
from .fixed_text import fixed_texts

# (state, place in a token) pairs that are walked at once, and in all: a form that needs more has
# too many states in which most tokens are possible (long bounded strings). At 152,000 tokens a form
# is refused within 0.25 s; eight strings of up to 100 characters need 19 millions, which take 3 to
# 5 s, in a thread where only other new forms wait.
MOST_PAIRS = 25_000_000
# Of interned sets and what is looked up by them: 1,000 holes and 8,000 states take 18 MB.
MOST_BYTES = 200 * 2**20
MOST_ALLOWED = 4096
MOST_COMPLETED = 16  # canvases whose answers are kept: some requests, of several lengths each
EMPTY = 0


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer as bytes, once for all automata.

    `flat` holds all of them behind each other, `length_V` how many each has (0: none).
    """

    flat: np.ndarray
    length_V: np.ndarray

    @classmethod
    def of(cls, tokens: Sequence[bytes | None]) -> Vocabulary:
        """From the bytes of each token id."""
        texts = [token if token and max(token) < controls.FIRST else b"" for token in tokens]
        flat = np.frombuffer(b"".join(texts), dtype=np.uint8)
        return cls(flat, np.array([len(text) for text in texts], dtype=np.int64))

    def with_controls(self, ids: Sequence[int]) -> Vocabulary:
        """With control tokens, each of which is a byte of its own."""
        flat, length_V = self.flat, self.length_V.copy()
        for number, token in enumerate(ids):
            place = int(length_V[:token].sum())
            flat = np.insert(flat, place, controls.FIRST + number)
            length_V[token] = 1
        return Vocabulary(flat, length_V)


class TokenAutomaton:
    """What a `ByteAutomaton` says of tokens.

    Args:
        encode: token ids of texts, by which fixed text is written.
        end_ids: tokens that end a text where it is complete, and fill the canvas behind it. Empty:
            the text fills its canvas.
        suppressed: tokens that are never written.
        control_ids: tokens for which the automaton has bytes of their own, in their order.

    Raises:
        ValueError: the automaton is too large for this vocabulary.
    """

    def __init__(
        self,
        automaton: ByteAutomaton,
        vocabulary: Vocabulary,
        *,
        encode: Callable[[Sequence[str]], list[list[int]]],
        end_ids: Iterable[int] = (),
        suppressed: Iterable[int] = (),
        control_ids: Sequence[int] = (),
    ) -> None:
        self.automaton, self.end_ids = automaton, tuple(end_ids)
        self.control_ids = tuple(control_ids)
        self.marks = {token: controls.mark(i) for i, token in enumerate(self.control_ids)}
        vocabulary = vocabulary.with_controls(self.control_ids)
        states = len(automaton.next_SB)
        self.states = states + bool(self.end_ids)
        self.end = states if self.end_ids else None
        spelling_V, state_E, spelling_E, next_E = _walk(automaton.next_SB, vocabulary)
        class_U = _classes(int(spelling_V.max(initial=0)) + 1, state_E, spelling_E, next_E)
        class_V = np.where(spelling_V >= 0, class_U[spelling_V], 0)
        class_V[[i for i in suppressed if i < len(class_V)]] = 0
        self.classes = int(class_U.max(initial=0)) + 1
        if self.end is not None:
            class_V[list(self.end_ids)] = self.classes
            self.classes += 1
        self.class_V, self.members_C = class_V, np.bincount(class_V, minlength=self.classes)
        # One spelling stands for all of its class, where the class has tokens that may be written.
        first_C = np.full(self.classes, -1)
        first_C[class_U[::-1]] = np.arange(len(class_U))[::-1]
        first_C[self.members_C == 0] = -1
        keep_E = first_C[class_U[spelling_E]] == spelling_E
        state_E, next_E = state_E[keep_E], next_E[keep_E]
        class_E = class_U[spelling_E[keep_E]]
        if self.end is not None:
            done = np.append(automaton.accepting_S.nonzero()[0], self.end)
            state_E = np.append(state_E, done)
            class_E = np.append(class_E, np.full(len(done), self.classes - 1))
            next_E = np.append(next_E, np.full(len(done), self.end))
        order = np.argsort(class_E, kind="stable")
        self._state_E, self._class_E, self._next_E = state_E[order], class_E[order], next_E[order]
        self._begin_C = np.searchsorted(self._class_E, np.arange(self.classes + 1))
        self._completed: dict[tuple[int | None, ...], bool] = {}
        self._fixed = self._that_lead_on(fixed_texts(automaton, encode, self.control_ids))
        # A hole takes fixed text as the tokenizer writes it; given tokens may cut it elsewhere.
        first_S = np.full(self.states, -1)
        for state, tokens in self._fixed.items():
            first_S[state] = self.class_V[tokens[0]]
        first_E = first_S[self._state_E]
        open_E = (first_E < 0) | (first_E == self._class_E)
        self._open = self._state_E[open_E], self._class_E[open_E], self._next_E[open_E]
        pairs = np.unique(self._open[0].astype(np.int64) * self.states + self._open[2])
        self._from_R, self._to_R = np.divmod(pairs, self.states)
        self.epoch = 0
        self._forget()

    def _forget(self) -> None:
        self._sets: list[np.ndarray] = []
        self._index: dict[bytes, int] = {}
        self._forward: dict[tuple[int, int], int] = {}
        self._backward: dict[tuple[int, int], int] = {}
        self._allowed: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._only: dict[tuple[int, int], int | None] = {}
        self._intern(np.zeros(self.states, dtype=bool))
        start_S = np.zeros(self.states, dtype=bool)
        start_S[0] = True
        accepted_S = np.zeros(self.states, dtype=bool)
        accepted_S[: len(self.automaton.accepting_S)] = self.automaton.accepting_S
        if self.end is not None:
            accepted_S[self.end] = True
        self.start, self.accepted = self._intern(start_S), self._intern(accepted_S)
        # Between all states any token that can stand somewhere is allowed.
        self.any_state = self._intern(np.ones(self.states, dtype=bool))

    def trim(self) -> None:
        """Forgets what was interned once it is much; the numbers of another epoch are void."""
        if self._interned > MOST_BYTES:
            self._forget()
            self.epoch += 1

    @property
    def _interned(self) -> int:
        """Bytes of what was interned, nearly: an entry of a dict takes some 150."""
        entries = len(self._forward) + len(self._backward) + len(self._only) + len(self._sets)
        sets = len(self._sets) * (self.states + self.states // 8)
        return sets + len(self._allowed) * self.classes + 150 * entries

    @property
    def nbytes(self) -> int:
        """The memory that it takes, nearly: more with each canvas that it is asked about."""
        edges = 3 * (self._state_E.nbytes + self._open[0].nbytes) + 2 * self._from_R.nbytes
        return self.automaton.next_SB.nbytes + self.class_V.nbytes + edges + self._interned

    def _intern(self, set_S: np.ndarray) -> int:
        key = np.packbits(set_S).tobytes()
        if key not in self._index:
            self._index[key] = len(self._sets)
            self._sets.append(set_S)
        return self._index[key]

    def class_of(self, token: int) -> int:
        """A token's class; 0 for what is never allowed."""
        return int(self.class_V[token]) if token < len(self.class_V) else 0

    def classes_of(self, tokens: np.ndarray) -> np.ndarray:
        """The class of each of some tokens."""
        return np.append(self.class_V, 0)[np.minimum(tokens, len(self.class_V))]

    def after(self, reached: int, kind: int | None) -> int:
        """The set behind a token of this class, or a hole (None), that stands behind a set."""
        edges = (self._state_E, self._next_E), (self._from_R, self._to_R)
        return self._move(self._forward, reached, kind, *edges)

    def before(self, needed: int, kind: int | None) -> int:
        """The set before a token of this class, or a hole, from which a set can be reached."""
        edges = (self._next_E, self._state_E), (self._to_R, self._from_R)
        return self._move(self._backward, needed, kind, *edges)

    def _move(
        self,
        known: dict[tuple[int, int], int],
        set_id: int,
        kind: int | None,
        edges: tuple[np.ndarray, np.ndarray],
        pairs: tuple[np.ndarray, np.ndarray],
    ) -> int:
        if set_id == EMPTY or kind == 0:
            return EMPTY
        key = (set_id, -1 if kind is None else kind)
        if key not in known:
            here, there = pairs
            if kind is not None:
                own = slice(self._begin_C[kind], self._begin_C[kind + 1])
                here, there = edges[0][own], edges[1][own]
            moved_S = np.zeros(self.states, dtype=bool)
            moved_S[there[self._sets[set_id][here]]] = True
            known[key] = self._intern(moved_S)
        return known[key]

    def allowed(self, reached: int, needed: int) -> np.ndarray:
        """(C,) bool: the classes that may stand in a hole between these two sets."""
        key = (reached, needed)
        if key in self._allowed:
            self._allowed.move_to_end(key)
            return self._allowed[key]
        state_E, class_E, next_E = self._open
        passes_E = self._sets[reached][state_E] & self._sets[needed][next_E]
        allowed_C = np.zeros(self.classes, dtype=bool)
        allowed_C[class_E[passes_E]] = True
        self._allowed[key] = allowed_C
        if len(self._allowed) > MOST_ALLOWED:
            self._allowed.popitem(last=False)
        return allowed_C

    def meets(self, reached: int, needed: int) -> bool:
        """Whether two sets share a state."""
        return bool((self._sets[reached] & self._sets[needed]).any())

    def only(self, reached: int, needed: int) -> int | None:
        """The one token that can stand in a hole between two sets; None: there are several.

        Which of the tokens that end a text does not matter: the first.
        """
        key = (reached, needed)
        if key not in self._only:
            self._only[key] = self._only_token(self.allowed(reached, needed))
        return self._only[key]

    def _only_token(self, allowed_C: np.ndarray) -> int | None:
        classes = allowed_C.nonzero()[0]
        if len(classes) != 1:
            return None
        if self.end is not None and classes[0] == self.classes - 1:
            return self.end_ids[0]
        if self.members_C[classes[0]] != 1:
            return None
        return int((self.class_V == classes[0]).argmax())

    def fixed(self, reached: int) -> tuple[int, ...]:
        """The first tokens of the text that must follow, where a single state is reached."""
        states = self._sets[reached].nonzero()[0]
        return self._fixed.get(int(states[0]), ()) if len(states) == 1 else ()

    def _that_lead_on(self, texts: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        """Those whose tokens can follow their state: a tokenizer may change what it is given."""
        order = (key_E := self._class_E * self.states + self._state_E).argsort()
        key_E, next_E = np.append(key_E[order], -1), np.append(self._next_E[order], 0)
        length_F = np.array([len(ids) for ids in texts.values()], dtype=np.int64)
        tokens_FT = np.zeros((len(texts), int(length_F.max(initial=0))), dtype=np.int64)
        for row, ids in enumerate(texts.values()):
            tokens_FT[row, : len(ids)] = ids
        kind_FT = self.classes_of(tokens_FT)
        at_F, leads_F = np.array(list(texts), dtype=np.int64), length_F > 0
        for column, kind_F in enumerate(kind_FT.T):
            key_F, inside_F = kind_F * self.states + at_F, column < length_F
            place_F = np.searchsorted(key_E[:-1], key_F)
            leads_F &= ~inside_F | ((kind_F > 0) & (key_E[place_F] == key_F))
            at_F = np.where(leads_F & inside_F, next_E[place_F], at_F)
        return {
            state: ids for (state, ids), leads in zip(texts.items(), leads_F, strict=True) if leads
        }

    def accepts(self, text: str) -> bool:
        """Whether a whole text, with marks for control tokens, is of the form."""
        return self.automaton.accepts(controls.to_bytes(text))

    def completes(self, kinds: Sequence[int | None]) -> bool:
        """Whether a canvas of tokens (their classes) and holes (None) can be completed.

        Nothing is interned: any thread may ask. The last answers are kept, as a request asks of
        each of its texts, of which many have equal canvases, and again when it is submitted.
        """
        key = tuple(kinds)
        found = self._completed.get(key)
        if found is None:
            found = self._completes(key)
            if len(self._completed) >= MOST_COMPLETED:
                self._completed.clear()
            self._completed[key] = found
        return found

    def _completes(self, kinds: Sequence[int | None]) -> bool:
        set_S = self._sets[self.accepted]
        for kind in reversed(kinds):
            here, there = self._to_R, self._from_R
            if kind is not None:
                own = slice(self._begin_C[kind], self._begin_C[kind + 1])
                here, there = self._next_E[own], self._state_E[own]
            moved_S = np.zeros_like(set_S)
            moved_S[there[set_S[here]]] = True
            set_S = moved_S
        return bool(set_S[0])

    def shortest(self, most: int) -> int | None:
        """The fewest tokens that are a text of the form; None: more than `most`."""
        set_S = np.zeros(self.states, dtype=bool)
        set_S[0] = True
        for count in range(most + 1):
            if (set_S[: len(self.automaton.accepting_S)] & self.automaton.accepting_S).any():
                return count
            moved_S = set_S.copy()
            moved_S[self._to_R[set_S[self._from_R]]] = True
            set_S = moved_S
        return None


def _walk(
    next_SB: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where each token leads from each state that it can follow.

    Bytes between which the automaton does not distinguish are one, and so are the tokens made of
    them. Those lie in a tree by how they begin, which is walked from all states at once.

    Returns:
        (V,) the spelling of each token, -1 where it can stand nowhere; and the state, spelling and
        next state of each edge.

    Raises:
        ValueError: too much is possible in too many states.
    """
    columns, kind_B = np.unique(next_SB, axis=1, return_inverse=True)
    is_dead_K = (columns < 0).all(axis=0)
    # 0 ends a spelling. There are bytes that no text has, so 255 kinds suffice.
    number_B = np.where(is_dead_K, 0, np.cumsum(~is_dead_K)).astype(np.uint8)[kind_B.ravel()]
    usable_V = vocabulary.length_V > 0
    flat = number_B[vocabulary.flat]
    starts = vocabulary.length_V.cumsum() - vocabulary.length_V
    if len(flat):
        usable_V[usable_V] = ~np.logical_or.reduceat(flat == 0, starts[usable_V])
    length_T = vocabulary.length_V[usable_V]
    width = max(1, int(length_T.max(initial=0)))
    keys_TW = np.zeros((len(length_T), width), dtype=np.uint8)
    inside_TW = np.arange(width) < length_T[:, None]
    keys_TW[inside_TW] = flat[np.repeat(usable_V, vocabulary.length_V)]
    spellings, place = np.unique(keys_TW.view(f"S{width}").ravel(), return_inverse=True)
    spelling_V = np.full(len(usable_V), -1)
    spelling_V[usable_V] = place
    keys_UW = np.frombuffer(spellings.tobytes(), dtype=np.uint8).reshape(len(spellings), width)
    live_SK = columns[:, ~is_dead_K]

    node_U = np.zeros(len(spellings), dtype=np.int64)  # of each spelling's first bytes
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    at_N = start_N = np.arange(len(next_SB))
    node_N = np.zeros(len(next_SB), dtype=np.int64)
    walked = 0
    for depth in range(width):
        byte_U = keys_UW[:, depth]
        # Children of the nodes of this depth: spellings are sorted, so each is one stretch.
        key_U = node_U * 256 + byte_U
        inside_U = byte_U > 0
        children, first_child = np.unique(key_U[inside_U], return_index=True)
        if not len(children) or not len(node_N):
            break
        parent, byte = np.divmod(children, 256)
        begin = np.searchsorted(parent, node_N, "left")
        count = np.searchsorted(parent, node_N, "right") - begin
        walked += int(count.sum())
        if walked > MOST_PAIRS:
            raise ValueError(
                "the form has too many states in which most tokens are possible: bound its texts "
                "and repetitions to smaller lengths, or leave them without a bound"
            )
        pair = np.repeat(np.arange(len(node_N)), count)
        child = begin[pair] + np.arange(len(pair)) - np.repeat(count.cumsum() - count, count)
        at_P = live_SK[at_N[pair], byte[child] - 1]
        alive = at_P >= 0
        node_N, start_N, at_N = child[alive], start_N[pair[alive]], at_P[alive]
        # A spelling that ends here is the first of its child's stretch.
        first_U = inside_U.nonzero()[0][first_child]
        ends = np.ones(len(children), dtype=bool)
        if depth + 1 < width:
            ends = keys_UW[first_U, depth + 1] == 0
        ended = ends[node_N]
        found.append((start_N[ended], first_U[node_N[ended]], at_N[ended]))
        node_U = np.where(inside_U, np.searchsorted(children, key_U), -1)
    state_E, spelling_E, next_E = (
        np.concatenate([part[i] for part in found] or [np.arange(0)]) for i in range(3)
    )
    return spelling_V, state_E, spelling_E, next_E


def _classes(
    spellings: int, state_E: np.ndarray, spelling_E: np.ndarray, next_E: np.ndarray
) -> np.ndarray:
    """(U,) the class of each spelling, from 1 on: those of one class lead to the same from
    everywhere. Classes are told apart by a hash of 64 bits. 0: leads nowhere."""
    mixed_E = state_E.astype(np.uint64) << np.uint64(32) | next_E.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        mixed_E = (mixed_E + np.uint64(0x9E3779B97F4A7C15)) ^ (mixed_E >> np.uint64(shift))
        mixed_E = mixed_E * np.uint64(factor)
    mixed_E ^= mixed_E >> np.uint64(31)
    order = np.argsort(spelling_E, kind="stable")
    used, begin = np.unique(spelling_E[order], return_index=True)
    class_U = np.zeros(spellings, dtype=np.int64)
    if len(used):
        sums = np.add.reduceat(mixed_E[order], begin)
        class_U[used] = np.unique(sums, return_inverse=True)[1].ravel() + 1
    return class_U
