"""A minimal deterministic automaton over bytes, as a table."""

import dataclasses
from collections import defaultdict

import numpy as np
import numpy.typing as npt

from .nfa import Deterministic

Table = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """Which bytes may follow: minimal, and every state can reach acceptance.

    Attributes:
        next_SB: The state behind each of the 256 bytes, -1 where none is allowed; int32. The
            start is state 0.
        accepting_S: Whether a text may end in the state; bool.
    """

    next_SB: Table
    accepting_S: npt.NDArray[np.bool_]

    def accepts(self, data: bytes) -> bool:
        """Whether the constraint allows this text, which is given as its bytes in UTF-8."""
        state = 0
        for byte in data:
            state = int(self.next_SB[state, byte])
            if state < 0:
                return False
        return bool(self.accepting_S[state])

    def behind_space(self) -> "ByteAutomaton":
        """The same texts, each with a space before it."""
        start_1B = np.full((1, self.next_SB.shape[1]), -1, np.int32)
        start_1B[0, ord(" ")] = 1
        later_SB = np.where(self.next_SB >= 0, self.next_SB + 1, np.int32(-1))
        accepting_S = np.append(False, self.accepting_S)
        return ByteAutomaton(np.concatenate([start_1B, later_SB]), accepting_S)


def minimal(automaton: Deterministic) -> ByteAutomaton | None:
    """The minimal automaton of the same texts; None where there is no text."""
    before = _states_before(automaton)
    distance = _distances(automaton.accepting, before)
    if distance[0] is None:
        return None
    table_SC, class_of_byte = _by_class(automaton, distance)
    block_S = _equivalent(table_SC, automaton.accepting, distance, before)
    order: dict[int, int] = {int(block_S[0]): 0}
    chosen = [0]
    for state in chosen:
        for to in dict.fromkeys(table_SC[state].tolist()):
            block = int(block_S[to])
            if distance[to] is not None and block not in order:
                order[block] = len(chosen)
                chosen.append(to)
    number_S = np.full(len(block_S), -1, np.int32)
    number_S[:] = [order.get(block, -1) for block in block_S.tolist()]
    next_SB = number_S[table_SC[chosen]][:, class_of_byte]
    accepting_S = np.array([automaton.accepting[state] for state in chosen], bool)
    next_SB.flags.writeable = accepting_S.flags.writeable = False
    return ByteAutomaton(next_SB, accepting_S)


def _states_before(automaton: Deterministic) -> list[list[int]]:
    before: list[list[int]] = [[] for _ in range(len(automaton.edges) + 1)]
    for state, edges in enumerate(automaton.edges):
        for to in {to for _, _, to in edges}:
            before[to].append(state)
    return before


def _distances(accepting: list[bool], before: list[list[int]]) -> list[int | None]:
    """How many bytes are at least missing to an end; None where there is none.

    The last entry is that of the state that stands for no state.
    """
    distance: list[int | None] = [0 if accepts else None for accepts in accepting] + [None]
    level = [state for state, accepts in enumerate(accepting) if accepts]
    steps = 0
    while level:
        steps += 1
        level = [state for to in level for state in before[to]]
        level = [state for state in dict.fromkeys(level) if distance[state] is None]
        for state in level:
            distance[state] = steps
    return distance


def _by_class(
    automaton: Deterministic, distance: list[int | None]
) -> tuple[Table, npt.NDArray[np.int64]]:
    """The table over classes of bytes that no state tells apart, and the class of each byte.

    States without an end become the last one, which stands for none.
    """
    cuts = {0}
    for edges in automaton.edges:
        for low, high, _ in edges:
            cuts.add(low)
            cuts.add(high + 1)
    cuts.discard(256)
    class_of_byte = np.cumsum([byte in cuts for byte in range(256)]) - 1
    dead = len(automaton.edges)
    table_SC = np.full((dead + 1, int(class_of_byte[-1]) + 1), dead, np.int32)
    class_of = class_of_byte.tolist()
    for state, edges in enumerate(automaton.edges):
        for low, high, to in edges:
            if distance[to] is not None:
                table_SC[state, class_of[low] : class_of[high] + 1] = to
    return table_SC, class_of_byte


def _equivalent(
    table_SC: Table,
    accepting: list[bool],
    distance: list[int | None],
    before: list[list[int]],
) -> Table:
    """The block of each state: states of a block have the same texts behind them.

    Blocks are split by where their states lead until nothing changes (Hopcroft's rule: the
    largest part keeps its number, so that only states before the others are looked at again).
    """
    blocks: dict[int | None, int] = {}
    block_S = np.array([blocks.setdefault(steps, len(blocks)) for steps in distance], np.int32)
    members: dict[int, set[int]] = defaultdict(set)
    for state, block in enumerate(block_S.tolist()):
        members[block].add(state)
    dirty: set[int] = set(range(len(block_S)))
    while dirty:
        touched: dict[int, list[int]] = defaultdict(list)
        for state in dirty:
            touched[int(block_S[state])].append(state)
        looked_at: list[int] = []
        for block, states in touched.items():
            if len(states) < len(members[block]):
                # All others lead where they led before, so that one speaks for them.
                states.append(next(state for state in members[block] if state not in dirty))
            looked_at += states
        signatures = dict(
            zip(looked_at, (row.tobytes() for row in block_S[table_SC[looked_at]]), strict=True)
        )
        dirty = set()
        for block, states in touched.items():
            parts: dict[bytes, list[int]] = defaultdict(list)
            for state in states:
                parts[signatures[state]].append(state)
            if len(parts) == 1:
                continue
            others = members[block].difference(states)
            size_of = {
                signature: len(part) + (len(others) if states[-1] in part else 0)
                for signature, part in parts.items()
            }
            largest = max(size_of, key=lambda signature: size_of[signature])
            for signature, part in parts.items():
                if signature == largest:
                    continue
                moved = set(part) | (others if states[-1] in part else set())
                members[block] -= moved
                number = len(members)
                members[number] = moved
                block_S[list(moved)] = number
                for state in moved:
                    dirty.update(before[state])
    return block_S
