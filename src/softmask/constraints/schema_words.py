"""What the keywords of a JSON schema are, and schemas merged by `allOf`."""

import itertools
from collections.abc import Iterable
from typing import Any

from .forms import TooLarge
from .json_values import value_key
from .schema_places import Schema, check_shapes, inside, is_number

# Which values a keyword restricts. Not among them: those for any value.
KEYWORDS_OF = {
    "object": frozenset({"properties", "required", "additionalProperties", "propertyNames"})
    | {"minProperties", "maxProperties", "patternProperties", "unevaluatedProperties"}
    | {"dependentRequired", "dependentSchemas", "dependencies"},
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems"})
    | {"uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"},
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
    | {"multipleOf"},
}
# Keywords for any value that are read.
APPLICATORS = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})
# Those that restrict and are refused, whatever the type.
REFUSED = frozenset({"not", "if", "$dynamicRef", "$recursiveRef"})
# Those that are refused where values of a type may be.
UNSUPPORTED = {
    "object": ("patternProperties", "dependentRequired", "dependentSchemas", "dependencies"),
    "array": ("contains", "unevaluatedItems"),
}
RESTRICTING = APPLICATORS | REFUSED | frozenset().union(*KEYWORDS_OF.values())

# Each is compared with each.
_MOST_OPTIONS = 50

_ITEMS = ("items", "prefixItems", "additionalItems")
_HIGHER = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_LOWER = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


def restricting(schema: Schema, place: str) -> dict[str, Any]:
    """A schema without what restricts nothing: titles, defaults, names that JSON Schema lacks.

    Raises:
        ValueError: A keyword's value is not of its kind.
    """
    check_shapes(schema, place)
    return {
        name: value
        for name, value in schema.items()
        if name in RESTRICTING and not _says_nothing(name, value, schema)
    }


def _says_nothing(name: str, value: Any, schema: Schema) -> bool:
    """Of keywords that are refused else."""
    if name == "not":
        return value is False
    if name == "if":
        return "then" not in schema and "else" not in schema
    return name in UNSUPPORTED["object"] and value == {}


def is_never(schema: Schema) -> bool:
    """Whether a schema is a way to write `false`."""
    return "not" in schema and (schema["not"] is True or schema["not"] == {})


def refuse(schema: Schema, place: str, names: Iterable[str]) -> None:
    """Raises ValueError where a schema has one of these keywords."""
    for name in names:
        if name in schema:
            raise ValueError(f"{inside(place, name)} is not supported")


def patterns_of(schema: Schema) -> list[str]:
    """The patterns of strings, of which `allOf` makes several."""
    patterns = schema.get("pattern", [])
    return [patterns] if isinstance(patterns, str) else patterns


def types_of(schema: Schema) -> list[str]:
    """The types that `type` allows, or those that the other keywords are about."""
    if "type" in schema:
        named = schema["type"]
        return [named] if isinstance(named, str) else named
    return [name for name, keywords in KEYWORDS_OF.items() if keywords & schema.keys()]


def beyond(schema: Any, rest: Schema, place: str) -> dict[str, Any]:
    """Of keywords beside a schema those that may ask for more than the schema itself does.

    Raises:
        ValueError: A keyword's value is not of its kind.
    """
    if not isinstance(schema, dict):
        return dict(rest)
    own = restricting(schema, place)
    more = {
        name: value
        for name, value in rest.items()
        # What these mean depends on others beside them.
        if name in ("additionalProperties", *_ITEMS)
        or name not in own
        or value_key(own[name]) != value_key(value)
    }
    if "type" in more and "type" in own and set(types_of(own)) <= set(types_of(more)):
        del more["type"]
    return more


def merged(one: Schema, other: Schema, place: str) -> dict[str, Any]:
    """A schema of the values that both allow.

    Raises:
        ValueError: Both have a keyword that cannot be merged.
    """
    result = restricting(one, place)
    for name, value in restricting(other, place).items():
        if name in result and value_key(result[name]) != value_key(value):
            result[name] = _merged_keyword(name, result[name], value, place)
        else:
            result[name] = value
    if "properties" in one or "properties" in other:
        result["properties"] = _merged_properties(one, other)
    if any(first_items(side)[0] for side in (one, other)):
        result = {k: v for k, v in result.items() if k not in _ITEMS} | _merged_items(one, other)
    return result


def first_items(schema: Schema) -> tuple[list[Any], Any]:
    """The schemas of an array's first items, and that of all others; None where nothing says."""
    first, rest = schema.get("prefixItems", []), schema.get("items")
    if isinstance(rest, list):
        # Drafts before 2020.
        first, rest = rest, schema.get("additionalItems")
    return first, rest


def _merged_items(one: Schema, other: Schema) -> dict[str, Any]:
    """Each item obeys what both sides say of its place."""
    sides = [first_items(one), first_items(other)]
    result: dict[str, Any] = {
        "prefixItems": [
            _all_of([first[at] if at < len(first) else rest for first, rest in sides])
            for at in range(max(len(first) for first, _ in sides))
        ]
    }
    rests = [rest for _, rest in sides if rest is not None]
    return result | ({"items": _all_of(rests)} if rests else {})


def _all_of(schemas: list[Any]) -> Any:
    """What all of these allow; None and true say nothing."""
    kept = [schema for schema in schemas if schema is not None and schema is not True]
    return kept[0] if len(kept) == 1 else {"allOf": kept} if kept else True


def _merged_keyword(name: str, one: Any, other: Any, place: str) -> Any:
    if name == "type":
        return _common_types(one, other)
    if name == "enum":
        known = set(map(value_key, other))
        return [value for value in one if value_key(value) in known]
    if name == "required":
        return list({value_key(key): key for key in [*one, *other]}.values())
    if name in _HIGHER | _LOWER and is_number(one) and is_number(other):
        return max(one, other) if name in _HIGHER else min(one, other)
    if name in _ITEMS:
        # Where one side has first items, all are merged together.
        return {"allOf": [one, other]} if name == "items" else one
    if name in ("additionalProperties", "propertyNames"):
        return {"allOf": [one, other]}
    if name == "pattern":
        return [*(one if isinstance(one, list) else [one]), other]
    if name == "properties":
        return one
    raise ValueError(f"{place}: two different {name!r} cannot be merged")


def _common_types(one: Any, other: Any) -> list[str]:
    ours, theirs = ([found] if isinstance(found, str) else list(found) for found in (one, other))
    if "number" in theirs:
        theirs.append("integer")
    if "number" in ours:
        ours.append("integer")
    common = [name for name in ours if name in theirs]
    if "number" in common:
        common.remove("integer")
    return common


def _merged_properties(one: Schema, other: Schema) -> dict[str, Any]:
    """Properties of both in the order of the first; each obeys what the other says of its key."""
    sides = []
    for schema in (one, other):
        properties = schema.get("properties", {})
        sides.append((properties, schema.get("additionalProperties", True)))
    result: dict[str, Any] = {}
    for key in [*sides[0][0], *sides[1][0]]:
        result[key] = _all_of([properties.get(key, rest) for properties, rest in sides])
    return result


def disjoint(one: Any, other: Any, place: str) -> bool:
    """Whether no value validates against both, as far as types and constants show it.

    Raises:
        ValueError: A keyword's value is not of its kind.
    """
    if one is False or other is False:
        return True
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    for schema in (one, other):
        check_shapes(schema, place)
    values, others = constants(one), constants(other)
    if values is not None and others is not None:
        return set(map(value_key, values)).isdisjoint(map(value_key, others))
    types, more = one.get("type"), other.get("type")
    if types is not None and more is not None and not _common_types(types, more):
        return True
    for known, schema in ((values, other), (others, one)):
        if known is not None and "type" in schema:
            named = schema["type"]
            types = [named] if isinstance(named, str) else named
            if not any(_is_of(value, name) for value in known for name in types):
                return True
    # Objects that both require a key, with values that differ.
    if one.get("type") == other.get("type") == "object":
        keys = set(one.get("required", [])) & set(other.get("required", []))
        ours, theirs = one.get("properties", {}), other.get("properties", {})
        if any(disjoint(ours.get(key, True), theirs.get(key, True), place) for key in keys):
            return True
        return _closed_without(one, other) or _closed_without(other, one)
    return False


def check_exclusive(options: list[Any], place: str) -> None:
    """Refuses a `oneOf` of which two options may allow the same value.

    Raises:
        ValueError: Two may.
    """
    values = [constants(option) if isinstance(option, dict) else None for option in options]
    if all(found is not None for found in values):
        # Thousands of constants are counted and not compared in pairs.
        keys = [set(map(value_key, found or ())) for found in values]
        if len(set().union(*keys)) == sum(map(len, keys)):
            return
    if len(options) > _MOST_OPTIONS:
        raise TooLarge(f"{place} has {len(options)} options, the limit is {_MOST_OPTIONS}")
    for (first, one), (second, other) in itertools.combinations(enumerate(options), 2):
        if not disjoint(one, other, place):
            raise ValueError(
                f"{place}: options {first} and {second} may overlap, "
                "which is not supported (anyOf is)"
            )


def _closed_without(one: Schema, other: Schema) -> bool:
    """Whether one requires a key that the other does not allow."""
    return other.get("additionalProperties") is False and any(
        key not in other.get("properties", {}) for key in one.get("required", [])
    )


def constants(schema: Schema) -> list[Any] | None:
    """The values that `const` or `enum` names, None where there is neither."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _is_of(value: Any, name: str) -> bool:
    match name:
        case "string":
            return isinstance(value, str)
        case "integer" | "number":
            return is_number(value) and (name == "number" or value == int(value))
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def fits_type(value: Any, types: list[str]) -> bool:
    """Whether a value is of one of these types."""
    return any(_is_of(value, name) for name in types)
