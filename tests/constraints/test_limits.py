"""Hostile constraints are refused soon, with what is too large.

No test asserts seconds: what bounds them is counted, and the tests would hang without the counts.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint, Kind
from softmask.constraints.nfa import MAX_STATES


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def counted(fields: int, length: int) -> dict[str, Any]:
    field = {"type": "string", "maxLength": length}
    return {"type": "object", "properties": {f"p{number}": field for number in range(fields)}}


# Each rule stands twice in the one before it.
DOUBLING = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} r{n + 1}\n" for n in range(40))
BRANCHES: dict[str, Any] = {
    "$defs": {
        "a9": {"type": "integer"},
        **{f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 8} for n in range(9)},
    },
    "properties": {"x": {"$ref": "#/$defs/a0"}},
    "const": {"x": "no integer"},
}
WIDE: dict[str, Any] = {
    "type": "object",
    "properties": {f"p{n}": {"type": "string", "maxLength": 1} for n in range(200)},
}
LOOP: dict[str, Any] = {"$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}]}}, "$ref": "#/$defs/A"}
OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
MERGED: dict[str, Any] = {
    f"A{n}": {"allOf": [{"$ref": f"#/$defs/A{n + 1}"}] * 2} for n in range(14)
}
MERGED["A14"] = {"type": "null"}
WIDE = {"anyOf": [{"type": "array", "prefixItems": [{"$ref": "#"}] * 12}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "(a|b)*a(a|b){20}", "automaton takes more than 8,000 states"),
        ("regex", ".{0,100000}", "a repeat of 100,000 times"),
        ("regex", "(a{1000}){1000}", "a repeat of 1,000 times 1,002 states"),
        ("regex", "(?:a?){5000}", "too ambiguous"),
        ("regex", "(.*)(.*)" * 2000 + "x", "takes more than 20,000 states"),
        ("regex", "(" * 3000 + "a" + ")" * 3000, "nested too deeply"),
        ("regex", "a" * 300_000, "has 300,000 characters, the limit is 200,000"),
        ("choice", json.dumps([str(number) for number in range(15_000)]), "20,000 states"),
        ("json_schema", json.dumps({"enum": ["x" * 1_000_000]}), "characters, the limit is"),
        ("json_schema", json.dumps({"enum": ["x" * 15_000]}), "more than 8,000 states"),
        ("json_schema", json.dumps(nested(200)), "is nested deeper than 40 schemas"),
        ("json_schema", "[" * 100_000, "nested too deeply"),
        ("json_schema", json.dumps(counted(500, 5000)), "takes more than 20,000 states"),
        ("json_schema", json.dumps({"type": "string", "minLength": 5000}), "5,000 times"),
        ("json_schema", json.dumps({"type": "array", "minItems": 10**9}), "1,000,000,000 times"),
        ("json_schema", json.dumps(LOOP), "contradicts itself"),
        ("json_schema", json.dumps({"$ref": "#"}), "contradicts itself"),
        (
            "json_schema",
            json.dumps({"required": [str(n) for n in range(9999)]}),
            "9,999 properties",
        ),
        ("json_schema", json.dumps({"oneOf": [OPEN] * 51}), "oneOf has 51 options"),
        ("json_schema", json.dumps({"$defs": MERGED, "$ref": "#/$defs/A0"}), "schemas are merged"),
        ("json_schema", '{"minimum": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ("regex", "".join(f"[{chr(300 + n)}-\uffff\\w]" for n in range(200)), "20,000 states"),
        # Each would take minutes to read as a whole before it is counted.
        ("json_schema", json.dumps({**WIDE, "anyOf": [{}] * 4000}), "20,000 states"),
        ("json_schema", json.dumps(BRANCHES), "are held against schemas"),
        (
            "json_schema",
            json.dumps({"enum": ["2024-02-29"] * 3000, "format": "date"}),
            "20,000 states",
        ),
        ("regex", "(?i)" + "a" * 190_000, "20,000 states"),
        ("regex", "(?i)" + "".join(f"[^a{chr(300 + n)}]" for n in range(30_000)), "20,000 states"),
        ("choice", '["a", ' + "1" * 5000 + "]", "this is no JSON: Exceeds the limit"),
        # Each would take minutes of a careless pattern of the tokens.
        ("grammar", "\n" * 190_000, "has no rule 'start'"),
        ("grammar", "root ::= {" + " " * 150_000, "where GBNF has no such thing"),
        ("grammar", "%ignore" + " " * 150_000 + "x x", "has to name a terminal"),
        ("grammar", DOUBLING + 'r40 ::= "a"', "takes more than 20,000 states"),
        ("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000, "nested too deeply"),
        ("grammar", "root ::= " + " ".join(["[^a-z]?"] * 900), "too ambiguous"),
        ("grammar", 'root ::= "a"{1,999999999}', "rule 'root': a repeat of 999,999,999 times"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_too_large_is_refused(kind: Kind, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        compile_constraint(Constraint(kind, source))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(("fields", "length"), [(30, 10), (8, 5000), (1, 10**6)])
def test_long_strings_are_written_shorter_where_they_would_be_too_large(
    fields: int, length: int
) -> None:
    automaton = compile_constraint(Constraint("json_schema", json.dumps(counted(fields, length))))
    assert len(automaton.accepting_S) <= MAX_STATES
    assert automaton.accepts(json.dumps({"p0": "x" * min(length, 90)}).encode())
    assert not automaton.accepts(json.dumps({"p0": "x" * (length + 1)}).encode())


def test_a_recursive_schema_nests_as_deep_as_fits() -> None:
    """Two branches fit five levels, twelve do not."""
    child = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    keys = ["left", "right"]
    tree = {"type": "object", "properties": dict.fromkeys(keys, child), "required": keys}
    automaton = compile_constraint(Constraint("json_schema", json.dumps(tree)))
    value: Any = None
    for level in range(1, 8):
        value = {"left": value, "right": None}
        assert automaton.accepts(json.dumps(value).encode()) == (level <= 6)
    wide = compile_constraint(Constraint("json_schema", json.dumps(WIDE)))
    assert wide.accepts(b"[[null, null], null]")
