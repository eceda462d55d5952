"""JSON values as forms, written as Python's `json.dumps(value, ensure_ascii=False)` does.

Left out, as nobody asks for it: control characters in strings but for those with a short escape,
exponents of three digits above 299, and zero with a sign among integers.
"""

import functools
import json
from collections.abc import Hashable, Iterable
from typing import Any

from .forms import (
    NOTHING,
    Alternatives,
    Chars,
    Combined,
    Form,
    Literal,
    Range,
    Repeat,
    Sequence,
    alternatives,
    chars,
    combined,
    literal,
    one_of,
    optional,
    outside,
    repeat,
    sequence,
)

# Arrays and objects within one another in a value of any kind. What closes them is to be
# remembered, so that each more doubles the states.
ANY_DEPTH = 3
OBJECT_DEPTH = 5

COMMA = literal(", ")
COLON = literal(": ")
QUOTE = literal('"')
# Characters of a string that need no escape.
PLAIN = chars([(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF)])
_ESCAPES = {ord(json.loads(f'"\\{sign}"')): sign for sign in '"\\bfnrt'}
CHARACTER = alternatives(PLAIN, sequence(literal("\\"), one_of("".join(_ESCAPES.values()))))

DIGIT = chars([(0x30, 0x39)])
DIGITS = repeat(DIGIT)
NONZERO = chars([(0x31, 0x39)])
MINUS = literal("-")

TRUE, FALSE, NULL = literal("true"), literal("false"), literal("null")


def quoted(content: Form) -> Form:
    """A string of this content, which is escaped already."""
    return sequence(QUOTE, content, QUOTE)


def escaped(form: Form) -> Form:
    """Texts as a string's content; those with a control character that has no short escape not."""
    match form:
        case Literal():
            return sequence(*(_escaped_chars([(ord(c), ord(c))]) for c in form.data.decode()))
        case Chars():
            return _escaped_chars(form.ranges)
        case Sequence():
            return sequence(*map(escaped, form.parts))
        case Alternatives():
            return alternatives(*map(escaped, form.options))
        case Repeat():
            return repeat(escaped(form.part), form.least, form.most, escaped(form.separator))
        case Combined():
            return combined(escaped(form.left), escaped(form.right), form.without)
    raise TypeError(f"no regex has a {type(form).__name__}")


def _escaped_chars(ranges: Iterable[Range]) -> Form:
    plain = [(max(low, 0x20), high) for low, high in ranges if high >= 0x20]
    apart = [(0x22, 0x22), (0x5C, 0x5C)]
    kept = chars(outside([*outside(plain), *apart]))
    signs = [s for code, s in _ESCAPES.items() if any(low <= code <= high for low, high in ranges)]
    if not signs:
        return kept
    escapes = sequence(literal("\\"), one_of("".join(signs)))
    return escapes if kept is NOTHING else alternatives(kept, escapes)


STRING = quoted(repeat(CHARACTER))
NATURAL = alternatives(literal("0"), sequence(NONZERO, DIGITS))
INTEGER = alternatives(literal("0"), sequence(optional(MINUS), NONZERO, DIGITS))
_FRACTION = sequence(literal("."), repeat(DIGIT, 1))
# As Python writes floats: one digit before the point, a sign, at least two digits.
_EXPONENT = sequence(literal("e"), one_of("+-"), optional(one_of("12")), DIGIT, DIGIT)
NUMBER = sequence(
    optional(MINUS),
    alternatives(
        sequence(NATURAL, optional(_FRACTION)), sequence(DIGIT, optional(_FRACTION), _EXPONENT)
    ),
)


def value_text(value: Any) -> Form:
    """One value, as its text.

    Raises:
        ValueError: A string in it holds half of a surrogate pair.
    """
    return literal(json.dumps(value, ensure_ascii=False))


def array(item: Form, least: int = 0, most: int | None = None) -> Form:
    """An array of items of one kind."""
    items = repeat(item, least, most, COMMA)
    return sequence(literal("["), items, literal("]"))


def free_object(key: Form, value: Form, least: int = 0, most: int | None = None) -> Form:
    """An object of any keys of one form and values of one form."""
    members = repeat(sequence(key, COLON, value), least, most, COMMA)
    return sequence(literal("{"), members, literal("}"))


@functools.lru_cache(maxsize=8)
def any_value(depth: int = ANY_DEPTH) -> Form:
    """Any value with arrays and objects nested up to `depth` deep."""
    scalars = alternatives(STRING, NUMBER, TRUE, FALSE, NULL)
    if depth == 0:
        return scalars
    inner = any_value(depth - 1)
    return alternatives(scalars, array(inner), free_object(STRING, inner))


def any_object() -> Form:
    """Any object, with arrays and objects nested up to `OBJECT_DEPTH` deep in all."""
    return free_object(STRING, any_value(OBJECT_DEPTH - 1))


def value_key(value: Any) -> Hashable:
    """Equal for values that JSON Schema takes for the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        return ("list", *map(value_key, value))
    if isinstance(value, dict):
        return ("object", frozenset((key, value_key(found)) for key, found in value.items()))
    return isinstance(value, bool), value
