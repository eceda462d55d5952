"""Regular expressions as Python's `re` reads them.

`re` parses the pattern, and says which characters a class stands for, so that a text has the form
exactly if `re.fullmatch` finds it. Refused is what is not regular or not cheaply so: references
to groups, lookbehind, possessive and atomic groups, word boundaries, anchors inside. Lookahead is
read where what follows it is all of the text's rest.
"""

import dataclasses
import functools
import re
import re._constants as ops
import re._parser as parser
import warnings
from collections.abc import Hashable, Iterable
from typing import Any

from .forms import (
    EMPTY,
    LAST_CHARACTER,
    Form,
    Range,
    alternatives,
    chars,
    combined,
    counted,
    literal,
    optional,
    outside,
    repeat,
    sequence,
)

_REFUSED = {
    ops.GROUPREF: "a reference to a group",
    ops.GROUPREF_EXISTS: "a condition on a group",
    ops.POSSESSIVE_REPEAT: "a possessive quantifier",
    ops.ATOMIC_GROUP: "an atomic group",
}
_CATEGORIES = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}
_AHEAD = (ops.ASSERT, ops.ASSERT_NOT)
ANYTHING = repeat(chars([(0, LAST_CHARACTER)]))
_FEW = 256  # characters that are looked up one by one
# What is read by its own items.
_INNER = (ops.SUBPATTERN, ops.BRANCH, ops.MAX_REPEAT, ops.MIN_REPEAT)
_CLASS_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL


def regex_form(pattern: str) -> Form:
    """The texts that `re.fullmatch` finds with a pattern.

    Raises:
        ValueError: `re` does not take the pattern, or it uses what is not supported.
        TooLarge: It takes too many states.
    """
    return _Reader(pattern, None).form()


def part_form(pattern: str) -> Form:
    """Texts that `re` finds somewhere in a larger one, whatever stands before and behind.

    Raises:
        ValueError: `re` does not take the pattern, or it uses what is not supported, among that
            what looks at the larger text: anchors, lookahead.
        TooLarge: It takes too many states.
    """
    return _Reader(pattern, None).form(is_part=True)


def search_form(pattern: str, around: Form) -> Form:
    """The texts in which `re.search` finds a pattern, where `around` is any text.

    What is found is what ECMA's dialect and Python's have in common: `$` is the end alone, not also
    the place before a last line break; \\d, \\w and \\s are ASCII, and what is neither in the one's
    nor in the other's is in \\D, \\W and \\S. In a negative lookahead it is what either finds. What
    the two read differently is refused; ECMA's named groups are read.

    Raises:
        ValueError: `re` does not take the pattern, or it uses what is not supported.
        TooLarge: It takes too many states.
    """
    return _Reader(_common(pattern), around).form()


# Tokens of a pattern, as far as the dialects differ: an escape, a class that begins with its end,
# where a class begins or ends, the head of a named group, a comment, a count without a least.
_DIFFERING = re.compile(
    r"\\(?P<escape>[0-7]{2,3}|u\{[0-9a-fA-F]{1,6}\}|.)|(?P<empty>\[\^?\])|(?P<open>\[\^?)|(?P<close>\])"
    r"|(?P<group>\(\?<(?![=!]))|(?P<comment>\(\?\#)|(?P<count>\{,\d*\})",
    re.DOTALL,
)
_ECMAS, _PYTHONS = frozenset("pPck"), frozenset("AZaUN")  # letters of escapes


def _common(pattern: str) -> str:
    """A pattern of ECMA's dialect as Python's.

    Raises:
        ValueError: It uses what one of the dialects lacks.
    """
    written: list[str] = []
    at, in_class = 0, False
    for found in _DIFFERING.finditer(pattern):
        kind, text = found.lastgroup, found[0]
        written.append(pattern[at : found.start()])
        at = found.end()
        what = None
        if kind == "escape":
            letter = found["escape"]
            if letter.startswith("u{"):
                text = f"\\U{int(letter[2:-1], 16):08x}"
            elif letter in _ECMAS:
                what = text
            elif letter in _PYTHONS or len(letter) > 1:
                what = f"{text}, which JSON Schema's dialect reads otherwise"
        elif in_class:
            in_class = kind not in ("close", "empty")
        elif kind == "group":
            text = "(?P<"
        elif kind in ("empty", "comment", "count"):
            what = f"{text}, which JSON Schema's dialect reads otherwise"
        else:
            in_class = kind == "open"
        if what is not None:
            raise _refusal(pattern, what)
        written.append(text)
    return "".join([*written, pattern[at:]])


def _refusal(pattern: str, what: str) -> ValueError:
    return ValueError(f"the regex {_short(pattern)} uses {what}, which is not supported")


@dataclasses.dataclass(frozen=True)
class _Edge:
    """A side of the text, and what may stand there unless an anchor forbids it.

    `line_end` may stand behind a `$`.
    """

    text: Form
    line_end: Form = EMPTY


_CLOSED = _Edge(EMPTY)
_LINE_END = optional(literal("\n"))


class _Reader:
    def __init__(self, pattern: str, around: Form | None) -> None:
        self._around = around
        self._pattern = pattern
        # Within an odd number of negative lookaheads: the more is found, the fewer texts are left.
        self._is_excluded = False
        self._is_part = False
        self._states = 0
        self._sets: dict[Hashable, Form] = {}
        try:
            with warnings.catch_warnings():
                # On sets that a later Python may read otherwise: no concern of who asks.
                warnings.simplefilter("ignore")
                self._tree = parser.parse(pattern)
        except (re.error, OverflowError) as error:
            # It may quote a line end of the pattern.
            reason = " ".join(str(error).split())
            raise ValueError(f"the regex {_short(pattern)} is malformed: {reason}") from None

    def form(self, *, is_part: bool = False) -> Form:
        self._is_part = is_part
        if is_part:
            return self._sequence(self._tree, self._tree.state.flags, None, None)
        around = self._around or EMPTY
        return self._sequence(self._tree, self._tree.state.flags, _Edge(around), _Edge(around))

    @property
    def _takes_pythons(self) -> bool:
        """Whether what Python's dialect alone finds is found here."""
        return self._around is None or self._is_excluded

    def _refused(self, what: str) -> ValueError:
        return _refusal(self._pattern, what)

    def _sequence(
        self, items: Iterable[Any], flags: int, start: _Edge | None, end: _Edge | None
    ) -> Form:
        """A sequence of items; `start`, `end`: where it begins or ends the text, None elsewhere."""
        items = list(items)
        to_end = end is not None
        while start and items and _anchors(items[0], "start", flags):
            items.pop(0)
            start = _CLOSED
        while end and items and _anchors(items[-1], "end", flags):
            _, anchor = items.pop()
            end = _Edge(end.line_end, end.line_end) if anchor is ops.AT_END else _CLOSED
        before: Form = EMPTY
        behind: Form = EMPTY
        if start and not (items and _inner(items[0])):
            before = start.text
            start = _CLOSED if before is EMPTY else None
        if end and not (items and _inner(items[-1])):
            behind = end.text
            end = _CLOSED if behind is EMPTY else None
        # From the end, for what lookahead sees.
        parts = [behind]
        for at, (op, argument) in reversed(list(enumerate(items))):
            if op in _AHEAD:
                if self._is_part:
                    raise self._refused(
                        "lookahead or lookbehind, which sees beyond its part of the text"
                    )
                if not to_end or argument[0] < 0:
                    raise self._refused("lookbehind, or lookahead that more may follow")
                at_start = start and all(kind in _AHEAD for kind, _ in items[:at])
                is_not = op is ops.ASSERT_NOT
                self._is_excluded ^= is_not
                # `$` is also before a last line break, but not in ECMA's dialect.
                line_end = _LINE_END if self._takes_pythons else EMPTY
                rest = _Edge(self._around or ANYTHING, line_end)
                ahead = self._sequence(argument[1], flags, _CLOSED if at_start else None, rest)
                self._is_excluded ^= is_not
                parts = [combined(sequence(*reversed(parts)), ahead, without=is_not)]
            else:
                edges = start if at == 0 else None, end if at == len(items) - 1 else None
                parts.append(self._item(op, argument, flags, *edges))
                # Before all of a long pattern is read.
                self._states += 0 if op in _INNER else parts[-1].size
                counted(self._states)
        return sequence(before, *reversed(parts))

    def _anchor_refused(self, what: Any) -> ValueError:
        if what in (ops.AT_BOUNDARY, ops.AT_NON_BOUNDARY):
            return self._refused("a word boundary")
        if self._is_part:
            return self._refused("an anchor, which sees beyond its part of the text")
        return self._refused("an anchor that is not at the start or end of the text")

    def _item(
        self, op: Any, argument: Any, flags: int, start: _Edge | None, end: _Edge | None
    ) -> Form:
        if op in _REFUSED:
            raise self._refused(_REFUSED[op])
        if op is ops.LITERAL and not flags & re.IGNORECASE:
            return literal(chr(argument))
        if op in (ops.LITERAL, ops.NOT_LITERAL):
            items = [(ops.LITERAL, argument)]
            negated = [(ops.NEGATE, None)] if op is ops.NOT_LITERAL else []
            return self._characters(negated + items, flags)
        if op is ops.ANY:
            # ECMA's dialect has more line ends than Python's.
            ends = "\n" if self._takes_pythons else "\n\r\u2028\u2029"
            ends = "" if flags & re.DOTALL else ends
            without = [(ops.LITERAL, ord(end)) for end in ends]
            return self._characters([(ops.NEGATE, None), *without], flags)
        if op is ops.IN:
            return self._characters(argument, flags)
        if op is ops.BRANCH:
            return alternatives(
                *(self._sequence(branch, flags, start, end) for branch in argument[1])
            )
        if op is ops.SUBPATTERN:
            _, added, removed, items = argument
            return self._sequence(items, (flags | added) & ~removed, start, end)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            least, most, items = argument
            part = self._sequence(items, flags, None, None)
            return repeat(part, int(least), None if most is ops.MAXREPEAT else int(most))
        if op is ops.AT:
            raise self._anchor_refused(argument)
        raise self._refused(str(op).lower())

    def _characters(self, items: list[Any], flags: int) -> Form:
        """One character of a set, given as `re` parses it."""
        key = (tuple(items), flags, self._is_excluded)
        if key not in self._sets:
            self._sets[key] = self._set(items, flags)
        return self._sets[key]

    def _set(self, items: list[Any], flags: int) -> Form:
        negated = items[0][0] is ops.NEGATE
        named = items[negated:]
        ranges: list[Range] = []
        for op, argument in named:
            if op is ops.CATEGORY:
                ranges += self._category(_CATEGORIES[argument], negated, flags)
            else:
                ranges.append(argument if op is ops.RANGE else (argument, argument))
        if flags & re.IGNORECASE and sum(high - low + 1 for low, high in ranges) <= _FEW:
            codes = (code for low, high in ranges for code in range(low, high + 1))
            ranges = [range_ for code in codes for range_ in _folded(code, flags & re.ASCII)]
        elif flags & re.IGNORECASE:
            # Where case matters, `re` is asked; elsewhere a character is in the set or not.
            cased, cased_ranges = _cased()
            ranges = outside([*outside(ranges), *cased_ranges])
            found = re.findall(_written(named), cased, flags & _CLASS_FLAGS)
            ranges += [(ord(one), ord(one)) for one in found]
        return chars(outside(ranges) if negated else ranges)

    def _category(self, name: str, negated: bool, flags: int) -> list[Range]:
        """The characters of a class, so that every dialect agrees where the text is searched.

        A whole text's `\\d` is a digit of ASCII, its other classes are Python's.
        ECMA's \\d and \\w are ASCII, and its \\s has one character more than Python's. What both
        find is taken; within a negated set, or a negative lookahead, what either finds.
        """
        takes_away = negated != self._is_excluded
        if self._around is None:
            # Of 640 digits in all scripts whoever asks for a number means ten.
            digits = name == r"\d" and not takes_away
            return list(_ranges(name, re.ASCII if digits else flags & re.ASCII))
        ascii_only = name.islower() != takes_away
        ranges = _ranges(name, re.ASCII if ascii_only else 0)
        if name == r"\s" and not ascii_only:
            return [*ranges, (0xFEFF, 0xFEFF)]
        if name == r"\S" and not ascii_only:
            return outside([*outside(ranges), (0xFEFF, 0xFEFF)])
        return list(ranges)


def _anchors(item: Any, side: str, flags: int) -> bool:
    """Whether an item is an anchor that holds at this side of the text alone."""
    line, text = (
        (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING)
        if side == "start"
        else (ops.AT_END, ops.AT_END_STRING)
    )
    return item[0] is ops.AT and (item[1] is text or (item[1] is line and not flags & re.MULTILINE))


def _written(items: list[Any]) -> str:
    """A set as a pattern again."""
    written = []
    for op, argument in items:
        if op is ops.CATEGORY:
            written.append(_CATEGORIES[argument])
        else:
            low, high = argument if op is ops.RANGE else (argument, argument)
            written.append(f"\\U{low:08x}-\\U{high:08x}")
    return f"[{''.join(written)}]"


@functools.lru_cache(maxsize=16)
def _ranges(category: str, flags: int) -> tuple[Range, ...]:
    """The code points that `re` finds in a class."""
    every = "".join(map(chr, range(LAST_CHARACTER + 1)))
    found = re.finditer(category + "+", every, flags)
    return tuple((match.start(), match.end() - 1) for match in found)


@functools.lru_cache(maxsize=1)
def _cased() -> tuple[str, list[Range]]:
    """The characters that have an upper or a lower case, and their ranges."""
    found = set()
    for code in range(0x20000):
        character = chr(code)
        lower = character.lower()
        if lower != character or character.upper() != character:
            found |= {character, *lower}
    return "".join(sorted(found)), outside(outside((ord(one), ord(one)) for one in found))


@functools.lru_cache(maxsize=4096)
def _folded(code: int, flags: int) -> tuple[Range, ...]:
    """The characters that `re` takes for one, whatever their case."""
    found = re.findall(re.escape(chr(code)), _cased()[0], re.IGNORECASE | flags)
    return ((code, code), *((ord(one), ord(one)) for one in found))


def _inner(item: Any) -> bool:
    """Whether the text may begin or end inside of this item, so that an anchor may stand there."""
    return item[0] in (ops.SUBPATTERN, ops.BRANCH)


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
