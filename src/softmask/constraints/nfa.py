"""Forms as automata over bytes: built with empty moves, then determinised.

Both steps count what they do, so that a form that would take long is refused early.
"""

import dataclasses
from itertools import pairwise

from .forms import (
    MAX_FORM_STATES,
    Alternatives,
    Chars,
    Combined,
    Form,
    Listed,
    Literal,
    Repeat,
    Sequence,
    TooLarge,
)
from .utf8 import Tree, byte_tree

# An automaton's table takes 1 KB a state.
MAX_STATES = 8_000
# States and edges looked at while determinising: half a second of work.
MAX_WORK = 1_000_000

# Bytes from low to high, both included, lead to a state.
Edge = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Deterministic:
    """A deterministic automaton; state 0 is the start.

    Edges of a state are sorted and disjoint. Not minimal, and a state may lead nowhere.
    """

    edges: list[list[Edge]]
    accepting: list[bool]


def determinise(form: Form) -> Deterministic:
    """The deterministic automaton of a form.

    Raises:
        TooLarge: It takes too many states, or too long.
    """
    return _Builder().deterministic(form)


class _Builder:
    """One budget for a form and all that is combined in it."""

    def __init__(self) -> None:
        self._work = 0
        self._combined: dict[Combined, Deterministic] = {}

    def deterministic(self, form: Form) -> Deterministic:
        nfa = _Nfa(self)
        start = nfa.new()
        return nfa.deterministic(start, nfa.add(form, start))

    def combined(self, form: Combined) -> Deterministic:
        if form not in self._combined:
            left, right = self.deterministic(form.left), self.deterministic(form.right)
            if form.without:
                right = _complement(right)
            self._combined[form] = self._product(left, right)
        return self._combined[form]

    def count(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise TooLarge("it is too ambiguous: its automaton takes too long to make")

    def _product(self, left: Deterministic, right: Deterministic) -> Deterministic:
        numbers = {(0, 0): 0}
        pairs = [(0, 0)]
        result = Deterministic([], [])
        for one, other in pairs:
            result.accepting.append(left.accepting[one] and right.accepting[other])
            edges: list[Edge] = []
            ours, theirs = left.edges[one], right.edges[other]
            self.count(1 + len(ours) + len(theirs))
            i = j = 0
            while i < len(ours) and j < len(theirs):
                low, high = max(ours[i][0], theirs[j][0]), min(ours[i][1], theirs[j][1])
                if low <= high:
                    pair = ours[i][2], theirs[j][2]
                    if pair not in numbers:
                        numbers[pair] = len(pairs)
                        pairs.append(pair)
                        _check_states(len(pairs))
                    edges.append((low, high, numbers[pair]))
                if ours[i][1] < theirs[j][1]:
                    i += 1
                else:
                    j += 1
            result.edges.append(edges)
        return result


class _Nfa:
    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        self._edges: list[list[Edge]] = []
        self._empty: list[list[int]] = []
        self._closures: dict[int, frozenset[int]] = {}

    def new(self) -> int:
        if len(self._edges) > 2 * MAX_FORM_STATES:
            raise TooLarge(f"it takes more than {2 * MAX_FORM_STATES:,} states")
        self._edges.append([])
        self._empty.append([])
        return len(self._edges) - 1

    def add(self, form: Form, start: int) -> int:
        """Puts the form behind the state `start`; returns the state behind the form.

        No edge leads into `start`, so that several forms may begin there.
        """
        match form:
            case Literal():
                for byte in form.data:
                    start = self._step(start, byte, byte)
                return start
            case Chars():
                end = self.new()
                self._add_tree(byte_tree(form.ranges), start, end, {})
                return end
            case Sequence():
                for part in form.parts:
                    start = self.add(part, start)
                return start
            case Alternatives():
                end = self.new()
                for option in form.options:
                    self._empty[self.add(option, start)].append(end)
                return end
            case Repeat():
                return self._add_repeat(form, start)
            case Listed():
                return self._add_listed(form, start)
            case Combined():
                return self._add_automaton(self._builder.combined(form), start)
        raise TypeError(f"{form} is to be resolved first")

    def _step(self, start: int, low: int, high: int) -> int:
        end = self.new()
        self._edges[start].append((low, high, end))
        return end

    def _add_tree(self, tree: Tree, start: int, end: int, states: dict[Tree, int]) -> None:
        for low, high, below in tree:
            if not below:
                self._edges[start].append((low, high, end))
            elif below in states:
                self._edges[start].append((low, high, states[below]))
            else:
                states[below] = self._step(start, low, high)
                self._add_tree(below, states[below], end, states)

    def _add_repeat(self, form: Repeat, start: int) -> int:
        end = self.new()
        copies = max(form.least, 1) if form.most is None else form.most
        for number in range(copies):
            if number >= form.least:
                self._empty[start].append(end)
            if number:
                start = self.add(form.separator, start)
            again = self.new()
            self._empty[start].append(again)
            start = self.add(form.part, again)
        if form.most is None:
            self._empty[self.add(form.separator, start)].append(again)
        self._empty[start].append(end)
        return end

    def _add_listed(self, form: Listed, start: int) -> int:
        # Where the parts from number i on may begin; behind a separator, one of them has to.
        end, choice = self.new(), self.new()
        self._empty[start].append(choice)
        last_required = max((at for at, part in enumerate(form.parts) if part[1]), default=-1)
        if last_required < 0:
            self._empty[start].append(end)
        for at, (part, required) in enumerate(form.parts):
            begin, following = self.new(), self.new()
            self._empty[choice].append(begin)
            if not required:
                self._empty[choice].append(following)
            behind = self.add(part, begin)
            if at >= last_required:
                self._empty[behind].append(end)
            if at + 1 < len(form.parts):
                self._empty[self.add(form.separator, behind)].append(following)
            choice = following
        return end

    def _add_automaton(self, automaton: Deterministic, start: int) -> int:
        states = [self.new() for _ in automaton.edges]
        end = self.new()
        self._empty[start].append(states[0])
        for state, edges, accepting in zip(
            states, automaton.edges, automaton.accepting, strict=True
        ):
            self._edges[state] += [(low, high, states[to]) for low, high, to in edges]
            if accepting:
                self._empty[state].append(end)
        return end

    def deterministic(self, start: int, end: int) -> Deterministic:
        numbers = {self._closure(start, end): 0}
        sets = [self._closure(start, end)]
        result = Deterministic([], [])
        for states in sets:
            result.accepting.append(end in states)
            found = [edge for state in states for edge in self._edges[state]]
            self._builder.count(1 + len(states) + len(found))
            edges: list[Edge] = []
            for low, high, targets in _disjoint(found):
                reached = self._closure(targets[0], end)
                if len(targets) > 1:
                    reached = reached.union(*(self._closure(to, end) for to in targets[1:]))
                    self._builder.count(len(reached))
                number = numbers.get(reached)
                if number is None:
                    number = numbers[reached] = len(sets)
                    sets.append(reached)
                    _check_states(len(sets))
                if edges and edges[-1][1] + 1 == low and edges[-1][2] == number:
                    edges[-1] = (edges[-1][0], high, number)
                else:
                    edges.append((low, high, number))
            result.edges.append(edges)
        return result

    def _closure(self, state: int, end: int) -> frozenset[int]:
        """The states that matter of those reached without a byte."""
        if state not in self._closures:
            seen = {state}
            waiting = [state]
            while waiting:
                for to in self._empty[waiting.pop()]:
                    if to not in seen:
                        seen.add(to)
                        waiting.append(to)
            self._builder.count(len(seen))
            self._closures[state] = frozenset(
                found for found in seen if self._edges[found] or found == end
            )
        return self._closures[state]


def _complement(automaton: Deterministic) -> Deterministic:
    """An automaton of all other byte strings."""
    other = len(automaton.edges)
    complete: list[list[Edge]] = []
    for edges in [*automaton.edges, []]:
        filled: list[Edge] = []
        begin = 0
        for edge in [*edges, (256, 256, other)]:
            if begin < edge[0]:
                filled.append((begin, edge[0] - 1, other))
            filled.append(edge)
            begin = edge[1] + 1
        complete.append(filled[:-1])
    return Deterministic(complete, [not accepts for accepts in automaton.accepting] + [True])


def _disjoint(edges: list[Edge]) -> list[tuple[int, int, list[int]]]:
    """Edges that may overlap, cut into disjoint ranges with the states that each leads to."""
    edges.sort()
    if all(one[1] < other[0] for one, other in pairwise(edges)):
        return [(low, high, [to]) for low, high, to in edges]
    cuts = sorted({low for low, _, _ in edges} | {high + 1 for _, high, _ in edges})
    cut = []
    open_edges: list[Edge] = []
    waiting = iter(edges)
    coming = next(waiting, None)
    for low, after in pairwise(cuts):
        open_edges = [edge for edge in open_edges if edge[1] >= low]
        while coming is not None and coming[0] <= low:
            open_edges.append(coming)
            coming = next(waiting, None)
        if open_edges:
            cut.append((low, after - 1, sorted({edge[2] for edge in open_edges})))
    return cut


def _check_states(count: int) -> None:
    if count > MAX_STATES:
        raise TooLarge(f"its automaton takes more than {MAX_STATES:,} states")
