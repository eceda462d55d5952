"""Places in a schema, and the counts and bounds that stand there."""

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from .forms import TooLarge
from .json_numbers import Bound

Schema = Mapping[str, Any]

ROOT = "the schema"
TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
# Schemas within one another, as people write them.
MAX_NESTING = 40
# More is more than fits in any case.
_MOST = 10**9
_COUNTED = ("Length", "Items", "Properties")

# Numbers between bounds are written digit by digit. Wider bounds are written as these.
_WIDEST = 10**30


def read_json(source: str) -> Any:
    """A schema from its JSON.

    Raises:
        ValueError: It is no JSON.
        TooLarge: A number has more than 1,000 digits.
    """
    try:
        return json.loads(source, parse_constant=_no_number, parse_int=_integer, parse_float=_float)
    except json.JSONDecodeError as error:
        raise ValueError(f"the schema is no JSON: {error}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"the schema holds {name}, which is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > 1000:
        raise TooLarge(f"a number of {len(digits):,} digits is too long, the limit is 1,000")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the schema holds {text[:40]}, which is larger than any float")
    return value


def bound(schema: Schema, name: str, excluding: str) -> Bound | None:
    """The stricter of two bounds, that which is included and that which is not."""
    sign = 1 if name == "minimum" else -1
    found: list[Bound] = []
    for key, excluded in ((name, False), (excluding, True)):
        value: Any = schema.get(key)
        if isinstance(value, bool) and key == excluding:
            # Draft 4: the bound of the other keyword is excluded.
            if value and found:
                found = [(found[0][0], True)]
        elif key in schema:
            wide = max(value, -_WIDEST) if name == "minimum" else min(value, _WIDEST)
            found.append((Decimal(repr(wide)), excluded))
    return max(found, key=lambda bound: (bound[0] * sign, bound[1]), default=None)


def counts(schema: Schema, what: str) -> tuple[int, int | None]:
    """The least and the most that `minX` and `maxX` allow; None without an end."""
    least, most = (schema.get(f"{side}{what}") for side in ("min", "max"))
    return min(int(least or 0), _MOST), None if most is None else min(int(most), _MOST)


def whole_alone(schema: Schema, place: str) -> bool:
    """Whether numbers have to be multiples of 1.

    Raises:
        ValueError: They have to be multiples of something else.
    """
    if schema.get("multipleOf", 1) != 1:
        raise ValueError(f"{inside(place, 'multipleOf')} is not supported but for 1")
    return "multipleOf" in schema


def check_shapes(schema: Schema, place: str) -> None:
    """Refuses a keyword whose value is not of the kind that JSON Schema asks for.

    Raises:
        ValueError: One is not.
    """
    for names, fits, what in _SHAPES:
        for name in names & schema.keys():
            if not fits(schema[name]):
                raise ValueError(
                    f"{inside(place, name)} is {short(schema[name])}, and has to be {what}"
                )


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value % 1 == 0


def is_number(value: Any) -> bool:
    """Whether a value is a number of JSON, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kinds) for one in value)


def _is_type(value: Any) -> bool:
    return value in TYPES or (isinstance(value, list) and all(name in TYPES for name in value))


# Keywords, what their value has to be, and that in words.
_SHAPES: tuple[tuple[frozenset[str], Callable[[Any], bool], str], ...] = (
    (frozenset({"type"}), _is_type, f"of {', '.join(TYPES)}"),
    (frozenset({"enum"}), _is_list_of(object), "a list of values"),
    (
        frozenset({"allOf", "anyOf", "oneOf", "prefixItems"}),
        _is_list_of(dict, bool),
        "a list of schemas",
    ),
    (frozenset({"required"}), _is_list_of(str), "a list of names"),
    (frozenset({"properties"}), lambda value: isinstance(value, dict), "an object of schemas"),
    (frozenset({"$ref", "format"}), lambda value: isinstance(value, str), "a text"),
    # A list of patterns comes of `allOf`.
    (
        frozenset({"pattern"}),
        lambda value: isinstance(value, str) or _is_list_of(str)(value),
        "a regex",
    ),
    (
        frozenset(f"{side}{what}" for side in ("min", "max") for what in _COUNTED),
        _is_count,
        "a count",
    ),
    (frozenset({"minimum", "maximum", "multipleOf"}), is_number, "a number"),
    # Draft 4 has flags there.
    (
        frozenset({"exclusiveMinimum", "exclusiveMaximum"}),
        lambda value: isinstance(value, int | float),
        "a number",
    ),
)


def inside(place: str, name: str) -> str:
    """A keyword's place in the schema of another place."""
    return name if place in ("", ROOT) else f"{place}.{name}"


def target_of(root: Any, name: Any, place: str) -> Any:
    """What a `$ref` refers to.

    Raises:
        ValueError: It refers to nothing, or to elsewhere.
    """
    if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
        raise ValueError(f"{inside(place, '$ref')} is {short(name)}, and has to begin with #/")
    found = root
    for part in name.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise ValueError(f"{inside(place, '$ref')}: there is no {name}")
    return found


def place_of(name: str) -> str:
    """What a `$ref` is called as a place."""
    return ROOT if name == "#" else name.removeprefix("#/").replace("/", ".")


def cut(place: str) -> str:
    """A place for a message, which deep nesting makes long."""
    return place if len(place) <= 60 else f"{place[:57]}..."


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
