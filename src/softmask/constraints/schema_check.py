"""Whether a value that a schema names is one that the schema allows.

An `enum` or `const` may stand beside keywords that restrict it. What is written are the named
values, so that these keywords are decided value by value.
"""

from decimal import Decimal
from typing import Any

from .automaton import ByteAutomaton, minimal
from .formats import is_of_format
from .forms import TooLarge, counted
from .json_values import value_key, value_text
from .nfa import determinise
from .regex import ANYTHING, search_form
from .schema_places import (
    MAX_NESTING,
    Schema,
    bound,
    counts,
    cut,
    inside,
    is_number,
    short,
    target_of,
    whole_alone,
)
from .schema_words import (
    REFUSED,
    UNSUPPORTED,
    first_items,
    fits_type,
    is_never,
    patterns_of,
    refuse,
    restricting,
    types_of,
)

_MAX_CHECKS = 50_000  # values held against schemas: about a second
_APPLIED = {"$ref", "allOf", "anyOf", "oneOf"}


class Check:
    """Decides values by schemas that are, or are made of, parts of this one."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._checks = 0
        self._automata: dict[str, ByteAutomaton] = {}
        self._kept: dict[frozenset[tuple[str, int]], tuple[Schema, list[Any]]] = {}

    def constants(self, schema: Schema, place: str) -> list[Any]:
        """The values that the `enum` or `const` of a schema names and the rest of it allows.

        Raises:
            ValueError: as of `allows`.
            TooLarge: The values are too many to be written.
        """
        key = frozenset((name, id(value)) for name, value in schema.items())
        if key not in self._kept:
            values = schema.get("enum", [schema.get("const")])
            counted(sum(value_text(value).size for value in values))
            rest = {name: value for name, value in schema.items() if name != "enum"}
            kept = [value for value in values if self.allows(value, rest, place)]
            self._kept[key] = (schema, kept)  # the schema, so that no other value has such an id
        return self._kept[key][1]

    def allows(self, value: Any, schema: Any, place: str, level: int = 0) -> bool:
        """Whether a value is one of a schema.

        Raises:
            ValueError: The schema is none, refers to itself, or has a keyword that is not
                supported for values of this type.
            TooLarge: It takes too many checks.
        """
        self._checks += 1
        if self._checks > _MAX_CHECKS:
            raise TooLarge(f"more than {_MAX_CHECKS:,} values are held against schemas")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise ValueError(f"{place} is {short(schema)}, and has to be a schema")
        if level > MAX_NESTING:
            raise ValueError(f"{cut(place)} refers to itself, or is nested too deeply")
        schema = restricting(schema, place)
        if is_never(schema):
            return False
        refuse(schema, place, REFUSED)
        for name, names in UNSUPPORTED.items():
            if fits_type(value, [name]):
                refuse(schema, place, names)
        if schema.get("unevaluatedProperties", True) is not True and _APPLIED & schema.keys():
            raise ValueError(
                f"{inside(place, 'unevaluatedProperties')} beside {', '.join(sorted(_APPLIED))} is "
                "not supported where constants are"
            )

        def all_of(options: list[Any]) -> list[bool]:
            return [self.allows(value, option, place, level + 1) for option in options]

        if "$ref" in schema and not all(all_of([target_of(self._root, schema["$ref"], place)])):
            return False
        if not all(all_of(schema.get("allOf", []))):
            return False
        if "anyOf" in schema and not any(all_of(schema["anyOf"])):
            return False
        if "oneOf" in schema and sum(all_of(schema["oneOf"])) != 1:
            return False
        for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
            if values is not None and value_key(value) not in map(value_key, values):
                return False
        if "type" in schema and not fits_type(value, types_of(schema)):
            return False
        if isinstance(value, str):
            return self._string_allowed(value, schema, place)
        if isinstance(value, list):
            return self._array_allowed(value, schema, place, level)
        if isinstance(value, dict):
            return self._object_allowed(value, schema, place, level)
        return not is_number(value) or _number_allowed(value, schema, place)

    def _array_allowed(self, value: list[Any], schema: Schema, place: str, level: int) -> bool:
        first, rest = first_items(schema)
        of = [*first, *[True if rest is None else rest] * len(value)]
        return (
            _counted(len(value), schema, "Items")
            and not (schema.get("uniqueItems") and len({*map(value_key, value)}) < len(value))
            and all(
                self.allows(item, one, inside(place, "items"), level + 1)
                for item, one in zip(value, of, strict=False)
            )
        )

    def _object_allowed(
        self, value: dict[str, Any], schema: Schema, place: str, level: int
    ) -> bool:
        properties = schema.get("properties", {})
        more = schema.get("additionalProperties", schema.get("unevaluatedProperties", True))
        names = schema.get("propertyNames", True)
        return (
            _counted(len(value), schema, "Properties")
            and all(key in value for key in schema.get("required", []))
            and all(
                self.allows(key, names, inside(place, "propertyNames"), level + 1)
                and self.allows(item, properties.get(key, more), inside(place, key), level + 1)
                for key, item in value.items()
            )
        )

    def _string_allowed(self, value: str, schema: Schema, place: str) -> bool:
        if "format" in schema:
            try:
                if not is_of_format(value, schema["format"]):
                    return False
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        data = value.encode()
        return _counted(len(value), schema, "Length") and all(
            automaton.accepts(data)
            for automaton in [self._automaton(one, place) for one in patterns_of(schema)]
        )

    def _automaton(self, pattern: str, place: str) -> ByteAutomaton:
        """Of the strings that a pattern allows."""
        if pattern not in self._automata:
            try:
                made = minimal(determinise(search_form(pattern, ANYTHING)))
            except TooLarge:
                raise
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            if made is None:
                raise ValueError(f"{inside(place, 'pattern')} contradicts itself: no text has it")
            self._automata[pattern] = made
        return self._automata[pattern]


def _counted(number: int, schema: Schema, what: str) -> bool:
    least, most = counts(schema, what)
    return least <= number and (most is None or number <= most)


def _number_allowed(value: float, schema: Schema, place: str) -> bool:
    if whole_alone(schema, place) and value != int(value):
        return False
    exact = Decimal(repr(value))
    low = bound(schema, "minimum", "exclusiveMinimum")
    high = bound(schema, "maximum", "exclusiveMaximum")
    above = low is None or exact > low[0] or (exact == low[0] and not low[1])
    below = high is None or exact < high[0] or (exact == high[0] and not high[1])
    return above and below
