"""What a constraint allows, as a tree: texts, classes of characters, sequences, alternatives.

Regexes, schemas and grammars become these forms, and `nfa.py` makes automata of them. A form is
made by the functions here, which drop what allows nothing and count, before anything is built,
how many states of a non-deterministic automaton it takes.
"""

import dataclasses
from collections.abc import Iterable

from .controls import to_bytes
from .utf8 import inner_nodes

# A form of this many states is determinised in a few tenths of a second. A schema of 30
# properties takes less than 2,000.
MAX_FORM_STATES = 20_000

Range = tuple[int, int]
LAST_CHARACTER = 0x10FFFF


class TooLarge(ValueError):
    """A form or its automaton takes more states than allowed."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Form:
    """A set of texts."""

    # States of a non-deterministic automaton, at most.
    size: int
    # Rules that it refers to.
    names: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Literal(Form):
    """One text, as its bytes in UTF-8."""

    data: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Chars(Form):
    """One character of ranges of code points, both ends included; sorted, without surrogates."""

    ranges: tuple[Range, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence(Form):
    """The parts, one behind another."""

    parts: tuple[Form, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Alternatives(Form):
    """Any of the options; without any, no text at all."""

    options: tuple[Form, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat(Form):
    """`part` from `least` to `most` times (None: without end), `separator` between two."""

    part: Form
    least: int
    most: int | None
    separator: Form


@dataclasses.dataclass(frozen=True, eq=False)
class Listed(Form):
    """The parts in their order, those that are not required or left out; `separator` between two.

    As one form it takes one copy of each part. Spelled with `Sequence` and `Alternatives`, it
    would take one for each choice of the parts before it.
    """

    parts: tuple[tuple[Form, bool], ...]
    separator: Form


@dataclasses.dataclass(frozen=True, eq=False)
class Combined(Form):
    """Texts that `left` allows, and `right` too; or, if `without`, that `right` does not."""

    left: Form
    right: Form
    without: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Reference(Form):
    """What the rule of this name allows; `recursion.py` puts it in."""

    name: str


NOTHING = Alternatives((), size=0)
EMPTY = Literal(b"", size=0)


def literal(text: str) -> Form:
    """Exactly this text.

    Raises:
        ValueError: It holds half of a surrogate pair, which UTF-8 cannot write.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{text[:40]!r} holds half of a surrogate pair, which no text holds"
        ) from None
    return Literal(data, size=counted(len(data))) if data else EMPTY


def marked_text(text: str) -> Form:
    """Exactly this text, in which marks stand for control tokens (`controls.py`)."""
    data = to_bytes(text)
    return Literal(data, size=counted(len(data))) if data else EMPTY


def chars(ranges: Iterable[Range]) -> Form:
    """One character of these ranges of code points, in any order, overlapping or not."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        for start, end in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
            if start > end:
                continue
            if merged and start <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((start, end))
    if not merged:
        return NOTHING
    return Chars(tuple(merged), size=counted(1 + inner_nodes(tuple(merged))))


def outside(ranges: Iterable[Range]) -> list[Range]:
    """The code points that are in none of these ranges, sorted."""
    found: list[Range] = []
    begin = 0
    for low, high in sorted(ranges):
        if low > begin:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    if begin <= LAST_CHARACTER:
        found.append((begin, LAST_CHARACTER))
    return found


def one_of(characters: str) -> Form:
    """One of these characters."""
    return chars((ord(character), ord(character)) for character in characters)


def sequence(*parts: Form) -> Form:
    """The parts, one behind another."""
    flat: list[Form] = []
    for part in parts:
        if part is NOTHING:
            return NOTHING
        flat += part.parts if isinstance(part, Sequence) else (part,)
    flat = [part for part in flat if part is not EMPTY]
    if len(flat) < 2:
        return flat[0] if flat else EMPTY
    return Sequence(tuple(flat), size=_total(flat), names=_names(flat))


def alternatives(*options: Form) -> Form:
    """Any of the options."""
    flat: list[Form] = []
    for option in options:
        flat += option.options if isinstance(option, Alternatives) else (option,)
    if len(flat) < 2:
        return flat[0] if flat else NOTHING
    return Alternatives(tuple(flat), size=_total(flat, 1), names=_names(flat))


def optional(part: Form) -> Form:
    """The part or nothing."""
    return repeat(part, 0, 1)


def repeat(part: Form, least: int = 0, most: int | None = None, separator: Form = EMPTY) -> Form:
    """The part from `least` to `most` times (None: without end), `separator` between two."""
    if most is not None and most < least:
        return NOTHING
    if part is NOTHING or most == 0:
        return NOTHING if least else EMPTY
    if part is EMPTY and separator is EMPTY:
        return EMPTY
    if least == most == 1:
        return part
    copies = max(least, 1) if most is None else most
    # A separator behind the last copy leads back to it.
    size = copies * (part.size + separator.size) + 2
    if size > MAX_FORM_STATES:
        raise TooLarge(
            f"a repeat of {copies:,} times {part.size:,} states is too large, the limit is "
            f"{MAX_FORM_STATES:,} states"
        )
    return Repeat(part, least, most, separator, size=size, names=_names([part, separator]))


def listed(parts: Iterable[tuple[Form, bool]], separator: Form) -> Form:
    """The parts in their order, those that are not required or left out."""
    kept: list[tuple[Form, bool]] = []
    for part, required in parts:
        if part is not NOTHING:
            kept.append((part, required))
        elif required:
            return NOTHING
    forms = [part for part, _ in kept]
    size = _total(forms, len(kept) * (separator.size + 2) + 2)
    return Listed(tuple(kept), separator, size=size, names=_names([*forms, separator]))


def both(left: Form, right: Form) -> Form:
    """Texts that both allow; its states are counted when it is built."""
    return combined(left, right, without=False)


def combined(left: Form, right: Form, without: bool) -> Form:
    """Texts that `left` allows, and `right` too; or, if `without`, that `right` does not."""
    if left is NOTHING or right is NOTHING:
        return left if without else NOTHING
    return Combined(left, right, without, size=1, names=left.names | right.names)


def reference(name: str) -> Form:
    """What the rule of this name allows."""
    return Reference(name, size=1, names=frozenset((name,)))


def _names(forms: Iterable[Form]) -> frozenset[str]:
    return frozenset().union(*(form.names for form in forms))


def _total(forms: Iterable[Form], more: int = 0) -> int:
    return counted(sum(form.size for form in forms) + more)


def counted(size: int) -> int:
    """A number of states.

    Raises:
        TooLarge: It is more than a form may take.
    """
    if size > MAX_FORM_STATES:
        raise TooLarge(f"it takes more than {MAX_FORM_STATES:,} states")
    return size
