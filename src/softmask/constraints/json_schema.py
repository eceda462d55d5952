"""JSON Schema: OpenAI's strict schemas, those that pydantic and zod write.

What is written is JSON as `json.dumps(value, ensure_ascii=False)` writes it, with properties in
the order in which the schema declares them. Left out of what a schema allows: properties that it
does not declare (where it declares any), recursion beyond a depth (`recursion.py`), values of any
kind nested deeper than three, exponents of numbers with a bound, control characters. Strings with
a `pattern` or `format` hold no character that needs an escape. Keywords that restrict and are not
supported are refused by name; names that JSON Schema does not know say nothing, as it has it.
"""

import json
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from . import json_values
from .formats import format_form
from .forms import (
    EMPTY,
    NOTHING,
    Form,
    TooLarge,
    alternatives,
    both,
    listed,
    literal,
    optional,
    reference,
    repeat,
    sequence,
)
from .json_numbers import Bound, integer, number
from .json_values import COLON, COMMA
from .recursion import resolved
from .regex import search_form
from .schema_words import (
    REFUSED,
    Schema,
    disjoint,
    fits_type,
    merged,
    restricting,
    types_of,
)

# Schemas within one another, as people write them.
_MAX_NESTING = 40
_ROOT = "the schema"


def schema_form(source: str) -> Form:
    """The values that a JSON schema allows, as JSON.

    Raises:
        ValueError: It is no JSON schema, or restricts values by what is not supported.
        TooLarge: It takes too many states.
    """
    try:
        schema = json.loads(source, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"the schema is no JSON: {error}") from None
    return _Reader(schema).form()


def _no_number(name: str) -> Any:
    raise ValueError(f"the schema holds {name}, which is no JSON")


class _Reader:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, Form] = {}
        self._waiting = ["#"]

    def form(self) -> Form:
        for name in self._waiting:
            self._rules[name] = self._value(self._target(name, _ROOT), _place_of(name), 0)
        return resolved("#", self._rules)

    def _value(self, schema: Any, place: str, level: int) -> Form:
        if schema is True:
            return json_values.any_value()
        if schema is False:
            return NOTHING
        if not isinstance(schema, dict):
            raise ValueError(f"{place} is {_short(schema)}, and has to be a schema")
        if level > _MAX_NESTING:
            raise TooLarge(f"{place} is nested deeper than {_MAX_NESTING} schemas")
        schema = restricting(schema)
        for name in REFUSED & schema.keys():
            raise ValueError(f"{_inside(place, name)} is not supported")
        try:
            return self._restricted(schema, place, level)
        except TooLarge as error:
            if str(error).startswith((_ROOT, "$", "properties", "items")):
                raise
            raise TooLarge(f"{place}: {error}") from None

    def _restricted(self, schema: Schema, place: str, level: int) -> Form:
        if not schema:
            return json_values.any_value()
        if schema.keys() == {"$ref"}:
            return self._reference(schema["$ref"], place)
        if "$ref" in schema:
            rest = {name: value for name, value in schema.items() if name != "$ref"}
            target = self._target(schema["$ref"], place)
            return self._value(self._merged(target, rest, place), place, level + 1)
        if "allOf" in schema:
            whole = {name: value for name, value in schema.items() if name != "allOf"}
            for option in self._options(schema, "allOf", place):
                whole = self._merged(whole, option, place)
            return self._value(whole, place, level + 1)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._any_of(schema, name, place, level)
        if "enum" in schema or "const" in schema:
            return self._constants(schema, place, level)
        return alternatives(
            *(self._typed(schema, name, place, level) for name in types_of(schema, place))
        )

    # References

    def _reference(self, name: Any, place: str) -> Form:
        self._target(name, place)
        if name not in self._rules and name not in self._waiting:
            self._waiting.append(name)
        return reference(name)

    def _target(self, name: Any, place: str) -> Any:
        """What a `$ref` refers to."""
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise ValueError(
                f"{_inside(place, '$ref')} is {_short(name)}, and has to begin with #/"
            )
        found = self._root
        for part in name.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise ValueError(f"{_inside(place, '$ref')}: there is no {name}")
        return found

    def _merged(self, one: Any, other: Any, place: str, level: int = 0) -> Any:
        """A schema of what both allow, references and `allOf` within them put in."""
        if level > _MAX_NESTING:
            raise ValueError(f"{place}: an allOf that refers to itself is not supported")
        for schema, rest in ((one, other), (other, one)):
            if isinstance(schema, bool):
                return rest if schema else False
            if not isinstance(schema, dict):
                raise ValueError(f"{place} is {_short(schema)}, and has to be a schema")
            for name in ("$ref", "allOf"):
                if name in schema:
                    whole = {key: value for key, value in schema.items() if key != name}
                    parts = [self._target(schema[name], place)]
                    if name == "allOf":
                        parts = self._options(schema, name, place)
                    for part in parts:
                        whole = self._merged(whole, part, place, level + 1)
                    return self._merged(whole, rest, place, level + 1)
        return merged(one, other, place)

    # Alternatives

    def _options(self, schema: Schema, name: str, place: str) -> list[Any]:
        options = schema[name]
        if not isinstance(options, list) or not options:
            raise ValueError(f"{_inside(place, name)} has to be a list of schemas")
        return options

    def _any_of(self, schema: Schema, name: str, place: str, level: int) -> Form:
        options = self._options(schema, name, place)
        rest = {key: value for key, value in schema.items() if key != name}
        if name == "oneOf":
            seen = [self._merged(option, {}, place) for option in options]
            for number, one in enumerate(seen):
                for at, other in enumerate(seen[:number]):
                    if not disjoint(one, other):
                        raise ValueError(
                            f"{_inside(place, name)}: options {at} and {number} may overlap, "
                            "which is not supported (anyOf is)"
                        )
        forms = []
        for number, option in enumerate(options):
            whole = self._merged(rest, option, place) if rest else option
            forms.append(self._value(whole, f"{_inside(place, name)}.{number}", level + 1))
        return alternatives(*forms)

    def _constants(self, schema: Schema, place: str, level: int) -> Form:
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list) or not values:
            raise ValueError(f"{_inside(place, 'enum')} has to be a list of values")
        if "const" in schema:
            values = [found for found in values if json_values.same_value(found, schema["const"])]
        rest = {key: value for key, value in schema.items() if key not in ("enum", "const")}
        if "type" in rest:
            types = types_of(rest, place)
            values = [value for value in values if fits_type(value, types)]
        form = alternatives(*map(json_values.value_text, values))
        if rest.keys() <= {"type"}:
            return form
        return both(form, self._value(rest, place, level + 1))

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
        low = _bound(schema, "minimum", "exclusiveMinimum", place)
        high = _bound(schema, "maximum", "exclusiveMaximum", place)
        if schema.get("multipleOf", 1) != 1:
            raise ValueError(f"{_inside(place, 'multipleOf')} is not supported but for 1")
        try:
            if name == "integer" or "multipleOf" in schema:
                return integer(low, high)
            return number(low, high)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    def _string(self, schema: Schema, place: str) -> Form:
        least, most = _count(schema, "minLength", place), _count(schema, "maxLength", place)
        contents: list[Form] = []
        try:
            if "format" in schema:
                found = format_form(str(schema["format"]))
                contents += [] if found is None else [found]
            patterns = schema.get("pattern", [])
            for pattern in [patterns] if isinstance(patterns, str) else patterns:
                contents.append(search_form(pattern, _PLAIN_TEXT))
        except TooLarge:
            raise
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if not contents:
            return json_values.quoted(repeat(json_values.CHARACTER, least or 0, most))
        if least or most is not None or "pattern" in schema:
            contents.append(repeat(json_values.PLAIN, least or 0, most))
        whole = contents[0]
        for content in contents[1:]:
            whole = both(whole, content)
        return json_values.quoted(whole)

    def _array(self, schema: Schema, place: str, level: int) -> Form:
        least, most = _count(schema, "minItems", place) or 0, _count(schema, "maxItems", place)
        self._refuse(schema, place, "contains", "unevaluatedItems")
        if schema.get("uniqueItems") and (most is None or most > 1):
            raise ValueError(f"{_inside(place, 'uniqueItems')} is not supported")
        first = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        if isinstance(rest, list):
            # Drafts before 2020.
            first, rest = rest, schema.get("additionalItems", True)
        if not isinstance(first, list):
            raise ValueError(f"{_inside(place, 'prefixItems')} has to be a list of schemas")
        items = self._value(rest, _inside(place, "items"), level + 1)
        if not first:
            return json_values.array(items, least, most)
        # What follows the first ones is left out where nothing asks for it.
        rest_asked = "items" in schema or "additionalItems" in schema or least > len(first)
        above = 0 if not rest_asked else None if most is None else max(0, most - len(first))
        whole = repeat(sequence(COMMA, items), max(0, least - len(first)), above)
        for number in reversed(range(len(first))):
            item_place = f"{_inside(place, 'prefixItems')}.{number}"
            item = self._value(first[number], item_place, level + 1)
            whole = sequence(COMMA if number else EMPTY, item, whole)
            if most is not None and number >= most:
                whole = EMPTY
            elif number >= least:
                whole = optional(whole) if whole is not NOTHING else EMPTY
        return sequence(literal("["), whole, literal("]"))

    def _object(self, schema: Schema, place: str, level: int) -> Form:
        self._refuse(schema, place, "patternProperties", "dependentRequired", "dependentSchemas")
        self._refuse(schema, place, "dependencies")
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise ValueError(f"{place}: properties has to be an object, and required a list")
        unevaluated = schema.get("unevaluatedProperties", True)
        more = schema.get("additionalProperties", unevaluated)
        inner = place if place != _ROOT else ""
        members = [
            (key, self._value(value, _inside(inner, f"properties.{key}"), level + 1))
            for key, value in properties.items()
        ]
        others = self._value(more, _inside(place, "additionalProperties"), level + 1)
        members += [(key, others) for key in required if key not in properties]
        names = schema.get("propertyNames", True)
        least, most = (_count(schema, name, place) for name in ("minProperties", "maxProperties"))
        if not members:
            # A key may come twice, so that two members may be one property.
            if least is not None and least > 1:
                raise ValueError(f"{_inside(place, 'minProperties')} is supported up to 1")
            key = self._key(names, _inside(place, "propertyNames"), level)
            return json_values.free_object(key, others, least or 0, most)
        if (least or 0) > len(required) or (most is not None and most < len(members)):
            raise ValueError(f"{place}: a number of properties is not supported beside their names")
        if names is not True:
            raise ValueError(f"{_inside(place, 'propertyNames')} is not supported with properties")
        forms = [
            (
                sequence(json_values.value_text(key), COLON, value)
                if value is not NOTHING
                else value,
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

    def _refuse(self, schema: Schema, place: str, *names: str) -> None:
        for name in names:
            if name in schema:
                raise ValueError(f"{_inside(place, name)} is not supported")


_PLAIN_TEXT = repeat(json_values.PLAIN)


def _bound(schema: Schema, name: str, excluding: str, place: str) -> Bound | None:
    """The stricter of two bounds, that which is included and that which is not."""
    sign = 1 if name == "minimum" else -1
    found: list[Bound] = []
    for key, excluded in ((name, False), (excluding, True)):
        value = schema.get(key)
        if isinstance(value, bool) and key == excluding:
            # Draft 4: the bound of the other keyword is excluded.
            if value and found:
                found = [(found[0][0], True)]
        elif key in schema:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(
                    f"{_inside(place, key)} is {_short(value)}, and has to be a number"
                )
            found.append((Decimal(repr(value)), excluded))
    return max(found, key=lambda bound: (bound[0] * sign, bound[1]), default=None)


def _count(schema: Schema, name: str, place: str) -> int | None:
    if name not in schema:
        return None
    value = schema[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:
        raise ValueError(f"{_inside(place, name)} is {_short(value)}, and has to be a count")
    return int(value)


def _inside(place: str, name: str) -> str:
    return name if place in ("", _ROOT) else f"{place}.{name}"


def _place_of(name: str) -> str:
    return _ROOT if name == "#" else name.removeprefix("#/").replace("/", ".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
