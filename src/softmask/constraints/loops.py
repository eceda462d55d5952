"""Recursion at the start or the end of a rule, which is repetition, as loops.

A rule `A = x A | y` allows the texts of `x* y`, and `A = A x | y` those of `y x*`. Rules that
refer to one another at their ends are put into one another first.
"""

from collections.abc import Mapping

from .forms import (
    EMPTY,
    NOTHING,
    Alternatives,
    Form,
    Reference,
    Repeat,
    Sequence,
    alternatives,
    optional,
    repeat,
    sequence,
)

# A rule that another is put into does not grow beyond this many states. In larger circles rules
# are not put into one another; they are bounded in depth.
_MAX_STATES = 1_000
_MAX_CIRCLE = 30


def looped(rules: Mapping[str, Form]) -> dict[str, Form]:
    """Rules of the same texts without recursion at starts and ends, as far as it goes.

    Raises:
        TooLarge: A rule takes too many states.
    """
    result = dict(rules)
    for circle in _circles(rules):
        for name in circle:
            result[name] = _own_loop(name, result[name])
            if name in result[name].names or len(circle) > _MAX_CIRCLE:
                continue
            for other in circle:
                if other == name or name not in result[other].names:
                    continue
                for at in (-1, 0):
                    inner, rest = _split(result[other], name, at)
                    whole = alternatives(_joined(inner, result[name], at), rest)
                    if inner is not NOTHING and whole.size <= _MAX_STATES:
                        result[other] = whole
    return result


def _own_loop(name: str, form: Form) -> Form:
    for at in (-1, 0):
        inner, rest = _split(form, name, at)
        form = _joined(repeat(inner), rest, at)
    return form


def _joined(inner: Form, edge: Form, at: int) -> Form:
    """`inner` with `edge` at the end that `at` means: 0 is the start, -1 the end."""
    return sequence(edge, inner) if at == 0 else sequence(inner, edge)


def _split(form: Form, name: str, at: int) -> tuple[Form, Form]:
    """What stands beside the rule where it is at the edge `at` of the form; all other texts."""
    if name not in form.names:
        return NOTHING, form
    match form:
        case Reference():
            return EMPTY, NOTHING
        case Alternatives():
            pairs = [_split(option, name, at) for option in form.options]
            inners, rests = zip(*pairs, strict=True)
            return alternatives(*inners), alternatives(*rests)
        case Sequence():
            others = sequence(*(form.parts[1:] if at == 0 else form.parts[:-1]))
            inner, rest = _split(form.parts[at], name, at)
            if at == 0:
                return sequence(inner, others), sequence(rest, others)
            return sequence(others, inner), sequence(others, rest)
        case Repeat() if (form.least, form.most) == (0, 1):
            inner, rest = _split(form.part, name, at)
            return inner, optional(rest)
    return NOTHING, form


def _circles(rules: Mapping[str, Form]) -> list[list[str]]:
    """Rules that refer to one another, or to themselves: strong components (Tarjan)."""
    circles: list[list[str]] = []
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    on_path: set[str] = set()

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        path.append(name)
        on_path.add(name)
        for other in sorted(rules[name].names):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in on_path:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            circle = path[path.index(name) :]
            del path[path.index(name) :]
            on_path.difference_update(circle)
            if len(circle) > 1 or name in rules[name].names:
                circles.append(circle)

    for name in rules:
        if name not in number:
            visit(name)
    return circles
