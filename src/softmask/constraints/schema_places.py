"""Places in a schema, and the counts and bounds that stand there."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .json_numbers import Bound

Schema = Mapping[str, Any]

ROOT = "the schema"

# Numbers between bounds are written digit by digit. Wider bounds are written as these.
_WIDEST = 10**30


def bound(schema: Schema, name: str, excluding: str, place: str) -> Bound | None:
    """The stricter of two bounds, that which is included and that which is not.

    Raises:
        ValueError: One is no number.
    """
    sign = 1 if name == "minimum" else -1
    found: list[Bound] = []
    for key, excluded in ((name, False), (excluding, True)):
        value = schema.get(key)
        if isinstance(value, bool) and key == excluding:
            # Draft 4: the bound of the other keyword is excluded.
            if value and found:
                found = [(found[0][0], True)]
        elif key in schema:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{inside(place, key)} is {short(value)}, and has to be a number")
            wide = max(value, -_WIDEST) if name == "minimum" else min(value, _WIDEST)
            found.append((Decimal(repr(wide)), excluded))
    return max(found, key=lambda bound: (bound[0] * sign, bound[1]), default=None)


def count(schema: Schema, name: str, place: str) -> int | None:
    """The count that a keyword gives, None where it is not there.

    Raises:
        ValueError: It is no count.
    """
    if name not in schema:
        return None
    value = schema[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
        raise ValueError(f"{inside(place, name)} is {short(value)}, and has to be a count")
    return int(value)


def inside(place: str, name: str) -> str:
    """A keyword's place in the schema of another place."""
    return name if place in ("", ROOT) else f"{place}.{name}"


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
