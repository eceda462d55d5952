"""Rules put in for their names; rules within themselves up to a bounded depth."""

from collections.abc import Mapping

from .forms import (
    NOTHING,
    Alternatives,
    Combined,
    Form,
    Listed,
    Reference,
    Repeat,
    Sequence,
    TooLarge,
    alternatives,
    combined,
    listed,
    repeat,
    sequence,
)
from .loops import looped

# How often a rule may stand within itself: what people nest by hand. Each level multiplies the
# states by the number of places where the rule refers to itself, so that there are fewer where
# the form would exceed MAX_EXPANDED_STATES.
MAX_DEPTH = 5
MAX_EXPANDED_STATES = 8_000


def resolved(start: str, rules: Mapping[str, Form]) -> Form:
    """The form of the rule `start`, in which no name is left.

    A rule that refers to itself, by way of others or not, does so up to `MAX_DEPTH` times on a
    path; fewer times where the form would exceed `MAX_EXPANDED_STATES`, but once at least.

    Raises:
        TooLarge: It is too large at a depth of one.
    """
    rules = looped(rules)
    back = _references_back(start, rules)
    for depth in range(MAX_DEPTH, 0, -1):
        try:
            form = _Resolver(rules, back).rule(start, depth)
        except TooLarge:
            if depth == 1:
                raise
            continue
        if form.size <= MAX_EXPANDED_STATES or depth == 1:
            return form
    raise AssertionError("a depth of one returns or raises")


def _references_back(start: str, rules: Mapping[str, Form]) -> set[tuple[str, str]]:
    """Rules that refer to one within which they stand; every circle of rules has such a pair."""
    back: set[tuple[str, str]] = set()
    done: set[str] = set()
    path = {start: iter(sorted(rules[start].names))}
    while path:
        inside, names = next(reversed(path.items()))
        name = next(names, None)
        if name is None:
            done.add(inside)
            del path[inside]
        elif name in path:
            back.add((inside, name))
        elif name not in done:
            path[name] = iter(sorted(rules[name].names))
    return back


class _Resolver:
    def __init__(self, rules: Mapping[str, Form], back: set[tuple[str, str]]) -> None:
        self._rules = rules
        self._back = back
        self._known: dict[tuple[str, int], Form] = {}

    def rule(self, name: str, depth: int) -> Form:
        if (name, depth) not in self._known:
            self._known[name, depth] = self._form(self._rules[name], name, depth)
        return self._known[name, depth]

    def _form(self, form: Form, inside: str, depth: int) -> Form:
        if not form.names:
            return form

        def inner(part: Form) -> Form:
            return self._form(part, inside, depth)

        match form:
            case Reference():
                if (inside, form.name) not in self._back:
                    return self.rule(form.name, depth)
                return self.rule(form.name, depth - 1) if depth else NOTHING
            case Sequence():
                return sequence(*map(inner, form.parts))
            case Alternatives():
                return alternatives(*map(inner, form.options))
            case Repeat():
                return repeat(inner(form.part), form.least, form.most, inner(form.separator))
            case Listed():
                parts = [(inner(part), required) for part, required in form.parts]
                return listed(parts, inner(form.separator))
            case Combined():
                return combined(inner(form.left), inner(form.right), form.without)
        raise TypeError(f"{form} has names")
