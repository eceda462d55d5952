"""Random JSON schemas with values that they allow, for property tests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# A schema and a value that validates, in the order in which the schema declares properties.
Pair = tuple[Any, Any]

KEYS = ["name", "age", "a b", 'quo"te', "é", "x", "y"]
# No control characters but those with a short escape.
TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from('ab "\\\n\t/é😀\u2028'), st.characters(exclude_categories=["Cs", "Cc"])
    ),
    max_size=8,
)
FORMATS = {
    "date": "2024-02-29",
    "time": "23:59:59Z",
    "date-time": "1999-12-31T00:00:00.5+01:00",
    "duration": "P3DT4H",
    "uuid": "9f2c1c1e-8a7b-4c5d-9e0f-0123456789ab",
    "email": "a.b@example.org",
    "hostname": "www.example.org",
    "ipv4": "255.1.0.9",
    "ipv6": "::1",
    "uri": "https://example.org/a?b=c#d",
    "json-pointer": "/a/0",
}
PATTERNS = {
    "^[A-Z]{2}-\\d+$": "AB-12",
    "o+": "foo",
    "^(a|b$)": "ax",
    "^\\S+ \\w$": "é x",
    "^(?!.*--)[a-z-]+$": "a-b",
    "[^\\d]{2}": "1ab",
}


@st.composite
def scalars(draw: st.DrawFn) -> Pair:
    kind = draw(
        st.sampled_from(["integer", "number", "string", "pattern", "format", "enum", "any"])
    )
    match kind:
        case "integer":
            value = draw(st.integers(-(10**12), 10**12) | st.integers(-12, 12))
            return {"type": kind, **draw(bounds(value, st.integers(0, 150)))}, value
        case "number":
            value = draw(st.integers(-20, 20) | st.decimals(-99, 99, places=3).map(float))
            limits = draw(bounds(value, st.sampled_from([0, 0.25, 0.5, 1, 10.75])))
            return {"type": kind, **limits}, value
        case "string":
            text = draw(TEXTS)
            lengths = draw(counts(len(text), "Length"))
            return {"type": kind, **lengths}, text
        case "pattern":
            pattern, text = draw(st.sampled_from(sorted(PATTERNS.items())))
            return {"type": "string", "pattern": pattern, **draw(counts(len(text), "Length"))}, text
        case "format":
            name, text = draw(st.sampled_from(sorted(FORMATS.items())))
            return {"type": "string", "format": name}, text
        case "enum":
            values = draw(st.lists(st.one_of(TEXTS, st.integers(), st.booleans()), min_size=1))
            return {"enum": values}, values[-1]
        case _:
            value = draw(st.sampled_from([None, True, 1, "x", [1, ["y"]], {"k": {"l": []}}]))
            return draw(st.sampled_from([{}, True, {"title": "T", "x-unknown": 1}])), value


@st.composite
def bounds(draw: st.DrawFn, value: float, distances: st.SearchStrategy[float]) -> dict[str, Any]:
    """Bounds that a value obeys."""
    limits: dict[str, Any] = {}
    for name, sign in (("minimum", -1), ("maximum", 1)):
        kind = draw(st.sampled_from(["none", "included", "excluded"]))
        distance = draw(distances)
        if kind == "included":
            limits[name] = value + sign * distance
        elif kind == "excluded" and distance:
            limits[f"exclusive{name.capitalize()}"] = value + sign * distance
    return limits


@st.composite
def counts(draw: st.DrawFn, count: int, what: str) -> dict[str, int]:
    """Least and most counts, or none, that a count obeys."""
    limits = {}
    if draw(st.booleans()):
        limits[f"min{what}"] = draw(st.integers(0, count))
    if draw(st.booleans()):
        limits[f"max{what}"] = draw(st.integers(count, count + 3))
    return limits


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Pair]) -> Pair:
    schema, value = draw(inner)
    if draw(st.booleans()):
        values = [value] * draw(st.integers(0, 3))
        return {"type": "array", "items": schema, **draw(counts(len(values), "Items"))}, values
    pairs = draw(st.lists(inner, min_size=1, max_size=3))
    number = draw(st.integers(0, len(pairs)))
    first = {"type": "array", "prefixItems": [found for found, _ in pairs], "items": False}
    return first | draw(counts(number, "Items")), [value for _, value in pairs][:number]


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Pair]) -> Pair:
    if draw(st.integers(0, 4)) == 0:
        schema, value = draw(inner)
        keys = draw(st.lists(TEXTS, unique=True, max_size=3))
        free = {"type": "object", "additionalProperties": schema}
        return free | draw(
            counts(len(keys), "Properties").filter(
                lambda limits: limits.get("minProperties", 0) < 2
            )
        ), dict.fromkeys(keys, value)
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=5))
    pairs = {key: draw(inner) for key in keys}
    required = [key for key in keys if draw(st.booleans())]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: found for key, (found, _) in pairs.items()},
        "required": required,
    }
    if draw(st.booleans()) or not keys:
        schema["additionalProperties"] = False
    kept = {key for key in keys if key in required or draw(st.booleans())}
    return schema, {key: value for key, (_, value) in pairs.items() if key in kept}


@st.composite
def combined(draw: st.DrawFn, inner: st.SearchStrategy[Pair]) -> Pair:
    schema, value = draw(inner)
    match draw(st.sampled_from(["anyOf", "allOf", "$ref", "null"])):
        case "anyOf":
            other, _ = draw(inner)
            return {"anyOf": draw(st.permutations([schema, other]))}, value
        case "allOf":
            return {"allOf": [{"description": "d"}, schema], "default": 1}, value
        case "$ref":
            # Placed at the root by `pairs`.
            return {"$ref": schema}, value
        case _:
            return {"oneOf": [{"type": "null"}, {"type": "array", "items": schema}]}, [value]


def _with_definitions(pair: Pair) -> Pair:
    """Schemas that stand as the target of a `$ref` are put where it can point to."""
    definitions: dict[str, Any] = {}

    def placed(schema: Any) -> Any:
        if isinstance(schema, list):
            return [placed(found) for found in schema]
        if not isinstance(schema, dict):
            return schema
        if set(schema) == {"$ref"}:
            target = placed(schema["$ref"])
            name = f"D{len(definitions)}/~"
            definitions[name] = target
            return {"$ref": f"#/$defs/{name.replace('~', '~0').replace('/', '~1')}"}
        return {key: found if key == "enum" else placed(found) for key, found in schema.items()}

    schema = placed(pair[0])
    if definitions:
        schema = {"$defs": definitions, **schema}
    return schema, pair[1]


def pairs() -> st.SearchStrategy[Pair]:
    """Schemas, each with a value that validates."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(arrays(inner), objects(inner), objects(inner), combined(inner)),
        max_leaves=6,
    ).map(_with_definitions)


def written(value: Any) -> str:
    """JSON as constraints write it."""
    return json.dumps(value, ensure_ascii=False)
