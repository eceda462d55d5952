"""JSON Schema: OpenAI's strict schemas, those that pydantic and zod write.

What is written is JSON as `json.dumps(value, ensure_ascii=False)` writes it, with properties in
the order in which the schema declares them. Left out of what a schema allows: properties that it
does not declare (where it declares any), recursion beyond a depth (`recursion.py`), values of any
kind nested deeper than three, exponents of numbers with a bound, control characters. Strings with
a `format` hold no character that needs an escape. Strings and arrays of a bounded
length are shorter than allowed where the automaton would else be too large (`_LIMITS`). Keywords
that restrict and are not supported are refused by name; names that JSON Schema does not know say
nothing, as it has it.
"""

import dataclasses
import math
from typing import Any

from . import json_values
from .formats import format_form
from .forms import (
    EMPTY,
    NOTHING,
    Form,
    TooLarge,
    alternatives,
    both,
    counted,
    listed,
    literal,
    optional,
    reference,
    repeat,
    sequence,
)
from .json_numbers import integer, number
from .json_values import COLON, COMMA
from .recursion import resolved
from .regex import ANYTHING, search_form
from .schema_check import Check
from .schema_places import (
    MAX_NESTING,
    ROOT,
    Schema,
    bound,
    check_shapes,
    counts,
    cut,
    inside,
    place_of,
    read_json,
    short,
    target_of,
    whole_alone,
)
from .schema_words import (
    REFUSED,
    UNSUPPORTED,
    beyond,
    check_exclusive,
    first_items,
    is_never,
    merged,
    patterns_of,
    refuse,
    restricting,
    types_of,
)

# Schemas merged by `allOf`, and options of `oneOf` with what stands beside them.
_MAX_MERGES = 5_000
_MAX_PROPERTIES = 1_000


@dataclasses.dataclass(frozen=True)
class _Limits:
    """What is written of what a schema allows.

    Attributes:
        characters: Of a string with a `maxLength`, unless `minLength` asks for more.
        items: Of an array with a `maxItems`, unless `minItems` asks for more.
        depth: Of arrays and objects in a value of any kind.
    """

    characters: float
    items: float
    depth: int


# The first whose form is small enough: an automaton has about two states for three of its form.
_LIMITS = (
    _Limits(math.inf, math.inf, json_values.ANY_DEPTH),
    _Limits(512, 64, json_values.ANY_DEPTH),
    _Limits(384, 48, json_values.ANY_DEPTH),
    _Limits(256, 32, 2),
    _Limits(192, 24, 2),
    _Limits(128, 16, 2),
    _Limits(96, 12, 1),
    _Limits(64, 8, 1),
)
_GOOD_SIZE = 10_000


def schema_form(source: str) -> Form:
    """The values that a JSON schema allows, as JSON.

    Raises:
        ValueError: It is no JSON schema, or restricts values by what is not supported.
        TooLarge: It takes too many states.
    """
    schema = read_json(source)
    exclusive: dict[int, Any] = {}
    check = Check(schema)
    for limits in _LIMITS[:-1]:
        try:
            form = _Reader(schema, limits, exclusive, check).form()
        except TooLarge:
            continue
        if form.size <= _GOOD_SIZE:
            return form
    return _Reader(schema, _LIMITS[-1], exclusive, check).form()


class _PlacedTooLarge(TooLarge):
    """One whose message says already what is too large."""


class _Reader:
    def __init__(self, root: Any, limits: _Limits, exclusive: dict[int, Any], check: Check) -> None:
        self._root = root
        self._limits = limits
        # Lists of `oneOf` that were found to be exclusive, by their id.
        self._exclusive = exclusive
        self._check = check
        self._merges = 0
        self._rules: dict[str, Form] = {}
        self._waiting = ["#"]

    def form(self) -> Form:
        for name in self._waiting:
            self._rules[name] = self._value(self._target(name, ROOT), place_of(name), 0)
        return resolved("#", self._rules)

    def _value(self, schema: Any, place: str, level: int) -> Form:
        if schema is True:
            return json_values.any_value(self._limits.depth)
        if schema is False:
            return NOTHING
        if not isinstance(schema, dict):
            raise ValueError(f"{place} is {short(schema)}, and has to be a schema")
        if level > MAX_NESTING:
            raise _PlacedTooLarge(f"{cut(place)} is nested deeper than {MAX_NESTING} schemas")
        schema = restricting(schema, place)
        if is_never(schema):
            return NOTHING
        refuse(schema, place, REFUSED)
        try:
            return self._restricted(schema, place, level)
        except _PlacedTooLarge:
            raise
        except TooLarge as error:
            raise _PlacedTooLarge(
                str(error) if place == ROOT else f"{cut(place)}: {error}"
            ) from None

    def _restricted(self, schema: Schema, place: str, level: int) -> Form:
        if not schema:
            return json_values.any_value(self._limits.depth)
        if schema.keys() == {"$ref"}:
            return self._reference(schema["$ref"], place)
        if "$ref" in schema:
            rest = {name: value for name, value in schema.items() if name != "$ref"}
            target = self._target(schema["$ref"], place)
            if not beyond(target, rest, place):
                return self._reference(schema["$ref"], place)
            whole = self._merged(self._sealed(target, place), rest, place)
            return self._value(whole, place, level + 1)
        if "allOf" in schema:
            whole = {name: value for name, value in schema.items() if name != "allOf"}
            if not whole and len(schema["allOf"]) == 1:
                # As a reference it stays one, which may lead back here.
                return self._value(schema["allOf"][0], place, level + 1)
            for option in schema["allOf"]:
                whole = self._merged(whole, self._sealed(option, place), place)
            return self._value(whole, place, level + 1)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._any_of(schema, name, place, level)
        if "enum" in schema or "const" in schema:
            return self._constants(schema, place)
        return alternatives(*(self._typed(schema, name, place, level) for name in types_of(schema)))

    # References

    def _reference(self, name: Any, place: str) -> Form:
        self._target(name, place)
        if name not in self._rules and name not in self._waiting:
            self._waiting.append(name)
        return reference(name)

    def _target(self, name: Any, place: str) -> Any:
        """What a `$ref` refers to."""
        return target_of(self._root, name, place)

    def _merged(self, one: Any, other: Any, place: str, level: int = 0) -> Any:
        """A schema of what both allow, references and `allOf` within them put in."""
        self._merges += 1
        if self._merges > _MAX_MERGES:
            raise TooLarge(f"more than {_MAX_MERGES:,} schemas are merged")
        if level > MAX_NESTING:
            raise ValueError(f"{cut(place)}: an allOf that refers to itself is not supported")
        for schema, rest in ((one, other), (other, one)):
            if isinstance(schema, bool):
                return rest if schema else False
            if not isinstance(schema, dict):
                raise ValueError(f"{place} is {short(schema)}, and has to be a schema")
            for name in ("$ref", "allOf"):
                if name in schema:
                    whole = {key: value for key, value in schema.items() if key != name}
                    if name == "$ref":
                        parts = [self._target(schema[name], place)]
                    else:
                        check_shapes(schema, place)
                        parts = schema[name]
                    for part in parts:
                        sealed = self._sealed(part, place, level + 1)
                        whole = self._merged(whole, sealed, place, level + 1)
                    return self._merged(whole, rest, place, level + 1)
        return merged(one, other, place)

    def _sealed(self, schema: Any, place: str, level: int = 0) -> Any:
        """A schema that is merged into another, whose properties its own keywords do not see."""
        if not isinstance(schema, dict) or schema.get("unevaluatedProperties", True) is True:
            return schema
        whole = self._merged(schema, {}, place, level + 1)
        if not isinstance(whole, dict):
            return whole
        if "anyOf" in whole or "oneOf" in whole:
            raise ValueError(
                f"{inside(place, 'unevaluatedProperties')} beside alternatives, within a schema "
                "that is merged with another, is not supported"
            )
        rest = {k: v for k, v in whole.items() if k != "unevaluatedProperties"}
        return {"additionalProperties": whole["unevaluatedProperties"]} | rest

    # Alternatives

    def _any_of(self, schema: Schema, name: str, place: str, level: int) -> Form:
        options = schema[name]
        rest = {key: value for key, value in schema.items() if key != name}
        if name == "oneOf" and id(options) not in self._exclusive:
            whole = [self._merged(option, {}, place) for option in options]
            check_exclusive(whole, inside(place, name))
            self._exclusive[id(options)] = options
        forms: list[Form] = []
        states = 0
        for at, option in enumerate(options):
            whole, here = option, f"{inside(place, name)}.{at}"
            # A lone reference whose target asks for all that stands beside it stays one.
            lone = isinstance(option, dict) and restricting(option, here).keys() == {"$ref"}
            if beyond(self._target(option["$ref"], here) if lone else None, rest, here):
                whole = self._merged(rest, self._sealed(option, place), place)
            forms.append(self._value(whole, here, level + 1))
            states = counted(states + forms[-1].size)  # before all of many are built
        return alternatives(*forms)

    def _constants(self, schema: Schema, place: str) -> Form:
        return alternatives(*map(json_values.value_text, self._check.constants(schema, place)))

    # Types

    def _typed(self, schema: Schema, name: str, place: str, level: int) -> Form:
        match name:
            case "null":
                return json_values.NULL
            case "boolean":
                return alternatives(json_values.TRUE, json_values.FALSE)
            case "integer" | "number":
                return self._number(schema, name, place)
            case "string":
                return self._string(schema, place)
            case "array":
                return self._array(schema, place, level)
            case _:
                return self._object(schema, place, level)

    def _number(self, schema: Schema, name: str, place: str) -> Form:
        low = bound(schema, "minimum", "exclusiveMinimum")
        high = bound(schema, "maximum", "exclusiveMaximum")
        is_whole = whole_alone(schema, place)
        try:
            if name == "integer" or is_whole:
                return integer(low, high)
            return number(low, high)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    def _string(self, schema: Schema, place: str) -> Form:
        least, most = self._counts(schema, "Length", self._limits.characters)
        contents: list[Form] = []
        try:
            if "format" in schema:
                found = format_form(schema["format"])
                contents += [] if found is None else [found]
            for pattern in patterns_of(schema):
                contents.append(json_values.escaped(search_form(pattern, ANYTHING)))
        except TooLarge:
            raise
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if not contents:
            return json_values.quoted(repeat(json_values.CHARACTER, least, most))
        if least or most is not None or "pattern" in schema:
            contents.append(repeat(json_values.CHARACTER, least, most))
        whole = contents[0]
        for content in contents[1:]:
            whole = both(whole, content)
        return json_values.quoted(whole)

    def _counts(self, schema: Schema, what: str, limit: float) -> tuple[int, int | None]:
        """The least and the most characters or items that are written."""
        least, most = counts(schema, what)
        return least, most if most is None or most <= limit else max(least, int(limit))

    def _array(self, schema: Schema, place: str, level: int) -> Form:
        least, most = self._counts(schema, "Items", self._limits.items)
        refuse(schema, place, UNSUPPORTED["array"])
        if schema.get("uniqueItems") and (most is None or most > 1):
            raise ValueError(f"{inside(place, 'uniqueItems')} is not supported")
        if most is not None and most < least:
            return NOTHING
        first, rest = first_items(schema)
        items = self._value(True if rest is None else rest, inside(place, "items"), level + 1)
        if not first:
            return json_values.array(items, least, most)
        # What follows the first ones is left out where nothing asks for it.
        rest_asked = rest is not None or least > len(first)
        above = 0 if not rest_asked else None if most is None else max(0, most - len(first))
        whole = repeat(sequence(COMMA, items), max(0, least - len(first)), above)
        for at in reversed(range(len(first))):
            item_place = f"{inside(place, 'prefixItems')}.{at}"
            item = self._value(first[at], item_place, level + 1)
            whole = sequence(COMMA if at else EMPTY, item, whole)
            if most is not None and at >= most:
                whole = EMPTY
            elif at >= least:
                whole = optional(whole) if whole is not NOTHING else EMPTY
        return sequence(literal("["), whole, literal("]"))

    def _object(self, schema: Schema, place: str, level: int) -> Form:
        refuse(schema, place, UNSUPPORTED["object"])
        properties, required = schema.get("properties", {}), schema.get("required", [])
        required = dict.fromkeys(required)
        unevaluated = schema.get("unevaluatedProperties", True)
        more = schema.get("additionalProperties", unevaluated)
        members = []
        states = 0
        for key, value in properties.items():
            form = self._value(value, inside(place, f"properties.{key}"), level + 1)
            states = counted(states + form.size)  # before all of many are built
            members.append((key, form))
        others = self._value(more, inside(place, "additionalProperties"), level + 1)
        members += [(key, others) for key in required if key not in properties]
        if len(members) > _MAX_PROPERTIES:
            raise TooLarge(
                f"{len(members):,} properties are too many, the limit is {_MAX_PROPERTIES:,}"
            )
        names = schema.get("propertyNames", True)
        least, most = counts(schema, "Properties")
        if not members:
            # A key may come twice, so that two members may be one property.
            if least > 1:
                raise ValueError(f"{inside(place, 'minProperties')} is supported up to 1")
            key = self._key(names, inside(place, "propertyNames"), level)
            return json_values.free_object(key, others, least, most)
        if least > len(required) or (most is not None and most < len(members)):
            raise ValueError(f"{place}: a number of properties is not supported beside their names")
        names_place = inside(place, "propertyNames")
        forms = [
            (
                sequence(json_values.value_text(key), COLON, value)
                if value is not NOTHING and self._check.allows(key, names, names_place)
                else NOTHING,
                key in required,
            )
            for key, value in members
        ]
        return sequence(literal("{"), listed(forms, COMMA), literal("}"))

    def _key(self, names: Any, place: str, level: int) -> Form:
        """What the keys of an object may be, which are strings whatever the schema says."""
        if names is True:
            return json_values.STRING
        return self._value(self._merged({"type": "string"}, names, place), place, level + 1)
