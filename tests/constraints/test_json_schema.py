"""JSON schemas as automata: whatever they allow validates, and valid values are allowed."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from typing import Any

import jsonschema_rs
import pytest
from automaton_walks import walks
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schemas import pairs, written

from softmask.constraints.automaton import ByteAutomaton
from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint


def schema_automaton(schema: Any) -> ByteAutomaton:
    return compile_constraint(Constraint("json_schema", json.dumps(schema)))


def allows(schema: Any, value: Any) -> bool:
    return schema_automaton(schema).accepts(written(value).encode())


def check_walks(schema: Any, seed: int, count: int = 3) -> None:
    """Random texts of the automaton validate, formats included, and are in canonical spacing."""
    validator = jsonschema_rs.validator_for(
        schema if isinstance(schema, bool) else {"$schema": DRAFT, **schema}, validate_formats=True
    )
    for text in walks(schema_automaton(schema), seed, count):
        value = json.loads(text)
        assert validator.is_valid(value), text


DRAFT = "https://json-schema.org/draft/2020-12/schema"


@settings(max_examples=60)
@given(pair=pairs(), seed=st.integers(0, 2**32))
def test_what_is_written_validates_and_valid_values_may_be_written(pair: Any, seed: int) -> None:
    schema, value = pair
    check_walks(schema, seed)
    assert allows(schema, value)


def test_every_choice_of_optional_properties_has_its_commas() -> None:
    keys = list("abcde")
    for required in (set(), {"a"}, {"c"}, {"e"}, {"b", "d"}):
        schema = {
            "type": "object",
            "properties": {key: {"type": "null"} for key in keys},
            "required": sorted(required),
        }
        automaton = schema_automaton(schema)
        for present in itertools.product([True, False], repeat=len(keys)):
            value = {key: None for key, there in zip(keys, present, strict=True) if there}
            assert automaton.accepts(written(value).encode()) == (required <= value.keys())
        for text in ('{, "a": null}', '{"a": null, }', '{"a": null"c": null}', '{"c": null,}'):
            assert not automaton.accepts(text.encode())


def test_an_object_of_many_optional_properties_has_few_states() -> None:
    """Not one state for each choice of them: 60 keys, each with less than 30 states."""
    properties = {f"property_{number}": {"type": "string"} for number in range(60)}
    automaton = schema_automaton({"type": "object", "properties": properties})
    assert len(automaton.accepting_S) < 60 * 30


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"type": "integer", "minimum": -5, "maximum": 120}, [-5, 0, 120], [-6, 121, 1200, 7.5]),
        ({"type": "integer", "exclusiveMinimum": 9, "maximum": 10}, [10], [9, 11, 100]),
        ({"type": "integer", "minimum": 0.5, "maximum": 2.5}, [1, 2], [0, 3]),
        ({"type": "integer", "maximum": -100}, [-100, -1000], [-99, 0, 5, -1]),
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 1.0], [-0.5, 1.01, 2]),
        ({"type": "number", "exclusiveMaximum": 0.25}, [0.2, -7, 0.249], [0.25, 0.3, 1]),
        ({"type": "number", "exclusiveMinimum": 0}, [0.001, 3], [0, 0.0, -0.0, -1]),
        ({"type": "string", "minLength": 2, "maxLength": 2}, ["é😀", '"\\'], ["a", "abc"]),
        ({"type": "string", "pattern": "b"}, ["b", "abc", 'b"', "b\n"], ["a"]),
        ({"type": "string", "pattern": r"^C:\\"}, ["C:\\", 'C:\\"'], ["C:"]),
        ({"type": "string", "pattern": r'^[^"]*$'}, ["a\\b\t"], ['a"b']),
        ({"type": "string", "pattern": "^[^<>]{1,700}$"}, ['"' * 700, "x"], ["<", ""]),
        ({"type": "string", "pattern": r"^(?!.*\\).{2}$"}, ['a"'], ["a\\", "abc", "a\n"]),
        ({"type": ["integer", "null"]}, [1, None], ["1", True, 1.5]),
        ({"enum": [1, "a", None, {"k": [1.5]}]}, [1, {"k": [1.5]}], [2, "b"]),
        ({"enum": [1, "a"], "type": "string"}, ["a"], [1]),
        ({"enum": ["a", "bb"], "minLength": 2}, ["bb"], ["a"]),
        ({"const": "x\n"}, ["x\n"], ["x"]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 2}, [[], [None]], [[None] * 3]),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "minItems": 3}, [[1, 2, {}]], [[1, 2]]),
        ({"type": "array", "items": False}, [[]], [[1]]),
        ({"type": "object", "additionalProperties": False}, [{}], [{"a": 1}]),
        ({"properties": {"a": False, "b": {}}}, [{"b": 1}, {}], [{"a": 1}]),
        ({"propertyNames": {"enum": ["x"]}, "minProperties": 1}, [{"x": 1}], [{}, {"y": 1}]),
        # A record with enumerated keys.
        (
            {
                "type": "object",
                "propertyNames": {"type": "string", "enum": ["a", "b"]},
                "additionalProperties": {"type": "integer"},
                "required": ["a", "b"],
            },
            [{"a": 1, "b": 2}],
            [{"a": 1}, {"a": 1, "b": "x"}, {"a": 1, "b": 2, "c": 3}],
        ),
        (
            {"properties": {"a": {}, "bb": {}}, "propertyNames": {"maxLength": 1}},
            [{"a": 1}, {}],
            [{"bb": 1}, {"a": 1, "bb": 1}],
        ),
        # What restricts nothing, and what is false by another name.
        (
            {"patternProperties": {}, "dependentRequired": {}, "not": False, "if": {}},
            [{"a": 1}, [], "x"],
            [],
        ),
        (
            {"properties": {"a": {"not": {}}, "b": {}}, "additionalProperties": {"not": True}},
            [{"b": 1}, {}],
            [{"a": 1}, {"c": 1}],
        ),
        ({"enum": [1, "a"], "anyOf": [{"not": {}}, {"type": "string"}]}, ["a"], [1]),
        # Groups with names, as ECMA's dialect writes them, and in a set no group.
        ({"type": "string", "pattern": r"^(?<y>\d{2})-(?<m>\d)$"}, ["19-7"], ["19-", "y"]),
        ({"type": "string", "pattern": r"^[\u{1F600}-\u{1f602}]$"}, ["😀", "😁"], ["u", "😃"]),
        ({"type": "string", "pattern": r"^[(?<a>]{3}$"}, ["(?<", "a>a"], ["abc"]),
        ({"type": "string", "pattern": r"^\(?<a>$"}, ["(<a>", "<a>"], ["a"]),
        (
            {"allOf": [{"minimum": 2, "type": "number"}, {"maximum": 4, "type": "integer"}]},
            [2, 4],
            [1, 5, 2.5],
        ),
        (
            {
                "$defs": {"a": {"properties": {"x": {"type": "string"}}, "required": ["x"]}},
                "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"x": {"maxLength": 1}}}],
                "type": "object",
            },
            [{"x": "a"}],
            [{"x": "ab"}, {}],
        ),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [1.5]),
        ({"oneOf": [{"const": number} for number in range(900)]}, [0, 899], [900, "0"]),
        ({"type": "string", "anyOf": [{"maxLength": 1}, {"const": "abc"}]}, ["a", "abc"], ["ab"]),
        # A keyword says nothing of values of other types.
        ({"enum": ["auto", 8, 16], "minimum": 9}, ["auto", 16], [8]),
        ({"enum": ["a", "b"], "maximum": 5}, ["a", "b"], ["c"]),
        # A constant is written as it is, in whatever way its schema would write others.
        ({"type": "number", "enum": [1e-05, 0.1, -1], "minimum": 0}, [1e-05, 0.1], [-1]),
        ({"type": "integer", "const": 1.0, "minimum": 0}, [1.0], [2.0]),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "const": {"b": 1, "a": 2}},
            [{"b": 1, "a": 2}],
            [{}],
        ),
        (
            {"properties": {"k": {"const": "x"}}, "enum": [{"k": "x", "m": 1}, {"k": 1}]},
            [{"k": "x", "m": 1}],
            [{"k": 1}],
        ),
        (
            {"enum": ['say "hi"', "x1", ""], "pattern": "^[^0-9]", "type": "string"},
            ['say "hi"'],
            ["x1x", ""],
        ),
        ({"enum": ["\u0001abc", "ab"], "minLength": 3}, ["\u0001abc"], ["ab"]),
        ({"enum": ["2024-02-29", "2023-02-29"], "format": "date"}, ["2024-02-29"], ["x"]),
        (
            {"enum": [[1, "a"], [1], ["a"]], "prefixItems": [{"type": "integer"}], "minItems": 2},
            [[1, "a"]],
            [[1], ["a"]],
        ),
        ({"enum": [1, 2, 3], "allOf": [{"anyOf": [{"minimum": 3}, {"maximum": 1}]}]}, [1, 3], [2]),
        # Items of one schema obey the items of the other, first ones too.
        (
            {
                "allOf": [
                    {"type": "array", "prefixItems": [{"type": ["string", "integer"]}]},
                    {"items": {"type": "integer"}},
                ]
            },
            [[1], [], [1, 2]],
            [["a", 1], ["a"], [1, "a"]],
        ),
        (
            {
                "type": "array",
                "allOf": [
                    {"prefixItems": [{"minimum": 1}]},
                    {"prefixItems": [{"type": "integer"}, {"type": "null"}]},
                ],
            },
            [[1], [2, None]],
            [[0], [1, 1]],
        ),
        # An array that has to be longer than it may be is none.
        (
            {
                "anyOf": [
                    {"type": "array", "prefixItems": [{}, {}], "minItems": 2, "maxItems": 1},
                    {"type": "null"},
                ]
            },
            [None],
            [[1], [1, 2]],
        ),
        # What is merged into a schema does not see its properties; the schema sees those merged.
        (
            {
                "$ref": "#/$defs/a",
                "properties": {"b": {"type": "integer"}},
                "$defs": {
                    "a": {
                        "type": "object",
                        "properties": {"a": {"type": "integer"}},
                        "unevaluatedProperties": False,
                    }
                },
            },
            [{"a": 1}, {}],
            [{"a": 1, "b": 2}, {"b": 2}],
        ),
        (
            {
                "allOf": [{"properties": {"a": {"type": "integer"}}}],
                "type": "object",
                "properties": {"b": {"type": "integer"}},
                "unevaluatedProperties": False,
            },
            [{"b": 2, "a": 1}, {"a": 1}],
            [{"c": 1}],
        ),
        # References back stay references where nothing is added to them.
        (
            {
                "type": "object",
                "properties": {"next": {"allOf": [{"$ref": "#"}], "default": None}},
                "additionalProperties": False,
            },
            [{"next": {"next": {}}}],
            [{"next": 1}],
        ),
        (
            {"type": "object", "properties": {"a": {"items": {"$ref": "#", "type": "object"}}}},
            [{"a": [{"a": []}]}],
            [{"a": [1]}],
        ),
        (
            {
                "type": "object",
                "properties": {
                    "n": {"type": ["object", "null"], "anyOf": [{"$ref": "#"}, {"type": "null"}]}
                },
            },
            [{"n": {"n": None}}],
            [{"n": 1}],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_keywords_allow_and_refuse(schema: Any, allowed: list[Any], refused: list[Any]) -> None:
    check_walks(schema, 1)
    assert [value for value in allowed if not allows(schema, value)] == []
    assert [value for value in refused if allows(schema, value)] == []


CONSTANTS = {
    "uri": (["http://localhost:8080", "urn:a:b", "mailto:x@y"], ["no scheme", "a b:c", "x"]),
    "uri-reference": (["/a?b", "", "#c"], ["a b"]),
    "email": (["root@localhost", "o'brien@example.com"], ["nobody", "@"]),
    "hostname": (["localhost", "a-b.c"], ["a b", "-a.b", "a..b"]),
    "uuid": (["F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6"], ["F81D4FAE", "{}"]),
    "duration": (["P1Y", "P2W", "PT1H", "P1DT2S"], ["P", "1Y", "PT", "P1DT"]),
    "date": (["0001-01-01", "2024-02-29"], ["2023-02-29", "2024-1-1", "20240229"]),
    "time": (["23:59:60Z", "10:00:00.123456789+02:00"], ["24:00:00Z", "10:00"]),
    "date-time": (["0001-01-01T00:00:00Z", "2024-02-29t00:00:00z"], ["2024-02-30T00:00:00Z"]),
    "ipv4": (["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
    "ipv6": (["fe80::1", "::ffff:1.2.3.4"], ["1::2::3", "g::"]),
    "json-pointer": (["", "/a~0b/c d"], ["a", "/a~2"]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_may_have_a_form_that_is_not_written_freely_but_must_have_one(name) -> None:
    right, wrong = CONSTANTS[name]
    validator = jsonschema_rs.validator_for(
        {"$schema": DRAFT, "format": name}, validate_formats=True
    )
    for text in right:
        assert validator.is_valid(text), text
        assert allows({"const": text, "format": name, "type": "string"}, text)
    for text in wrong:
        assert not validator.is_valid(text), text
        found = schema_automaton({"enum": [text, right[0]], "format": name})
        assert not found.accepts(written(text).encode())
        assert found.accepts(written(right[0]).encode())


def test_formats_that_restrict_nothing_leave_nothing_behind() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(20):
        schema_automaton({"type": "string", "format": f"{number}" + "x" * 100_000, "maxLength": 2})
    compile_constraint.cache_clear()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 500_000


@pytest.mark.parametrize("name", ["oneOf", "allOf"])
def test_what_a_constant_is_not_held_against_is_refused(name) -> None:
    inner = {name: [{"properties": {"a": True}}], "unevaluatedProperties": False}
    with pytest.raises(ValueError, match=r"unevaluatedProperties beside .* is not supported"):
        schema_automaton({"const": {"x": {"a": 1}}, "properties": {"x": inner}})


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^(?!\s*$).+", "\u00a0"),
        (r"^(?!\s).+$", "\ufeffx"),
        (r"^(?!\w).+$", "\u00e9x"),
        (r"^(?!\d+$).+$", "\u0663"),
        (r"^(?!\D).+$", "\u0663"),
        (r"^(?!(?!\d)).+$", "\u0663"),
        (r"^(?!a$)[\s\S]*$", "a\n"),
        (r"^b(?!(?:b|a$))[\s\S]*$", "ba\n"),
    ],
)
def test_what_one_dialect_finds_behind_a_negative_lookahead_is_not_written(pattern, text) -> None:
    schema = {"type": "string", "pattern": pattern}
    assert not allows(schema, text)
    assert any(allows(schema, other) for other in ("7", "a", "-", "b"))


def test_draft_4_excludes_a_bound_by_a_flag() -> None:
    schema = {"minimum": 1, "exclusiveMinimum": True}
    assert allows(schema, 1.5)
    assert not allows(schema, 1)
    assert not allows(schema, 1.0)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"age": {"not": {"const": 1}}}}, r"properties\.age\.not is not supported"),
        ({"if": {}, "then": {}}, "^if is not supported"),
        ({"items": {"contains": {}}}, r"items\.contains is not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems is not supported"),
        ({"patternProperties": {"a": {}}}, "patternProperties is not supported"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired is not supported"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf is not supported but for 1"),
        ({"type": "string", "format": "regex"}, "format 'regex' is not supported"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf: options 0 and 1 may over"),
        ({"$ref": "other.json"}, r"\$ref is 'other.json', and has to begin with #/"),
        ({"$ref": "#/$defs/missing"}, r"\$ref: there is no #/\$defs/missing"),
        ({"type": "text"}, "type is 'text', and has to be of string"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "contradicts itself"),
        ({"properties": {"a": False}, "required": ["a"]}, "contradicts itself"),
        ({"enum": []}, "contradicts itself"),
        ({"type": "string", "minLength": -1}, "minLength is -1, and has to be a count"),
        ({"type": "string", "pattern": "(a"}, "the regex '\\(a' is malformed"),
        ({"type": "string", "pattern": r"^\p{L}+$"}, r"uses \\p, which is not supported"),
        ({"type": "string", "pattern": r"(?<a>x)\k<a>"}, r"uses \\k, which is not supported"),
        # In ECMA's dialect another text, or nothing.
        ({"type": "string", "pattern": "^a{,3}$"}, r"uses \{,3\}, which JSON Schema's dialect"),
        ({"type": "string", "pattern": r"\Aa\Z"}, r"uses \\A, which JSON Schema's dialect"),
        ({"type": "string", "pattern": r"^\101$"}, r"uses \\101, which JSON Schema's dialect"),
        ({"type": "string", "pattern": r"^\N{DIGIT ONE}$"}, r"uses \\N, which JSON Schema's"),
        ({"type": "string", "pattern": "^a(?#b)$"}, r"uses \(\?#, which JSON Schema's dialect"),
        ({"type": "string", "pattern": "^[]a]$"}, r"uses \[\], which JSON Schema's dialect"),
        ({"enum": 3}, "enum is 3, and has to be a list of values"),
        (
            {"anyOf": [{"required": [1]}, True]},
            r"anyOf\.0\.required is \[1\], and has to be a list",
        ),
        ({"const": 1e999}, "holds Infinity"),
        ({"properties": {"a": 3}}, r"properties\.a is 3, and has to be a schema"),
        ({"properties": {"a": {}}, "minProperties": 2}, "a number of properties is not supported"),
        ({"allOf": [{"format": "date"}, {"format": "time"}]}, "two different 'format'"),
        (False, "contradicts itself"),
        (3, "the schema is 3, and has to be a schema"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_cannot_be_promised_is_refused_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        schema_automaton(schema)
    assert "\n" not in str(error.value)


def test_a_source_that_is_no_json_is_refused() -> None:
    for source in ("{", '{"const": NaN}', '{"const": "\\ud800"}'):
        with pytest.raises(ValueError, match=r"the schema is no JSON|holds"):
            compile_constraint(Constraint("json_schema", source))


def test_a_json_object_is_any_object() -> None:
    automaton = compile_constraint(Constraint("json_object"))
    for text in walks(automaton, 1, 20, 200):
        assert isinstance(json.loads(text), dict)
    assert automaton.accepts(written({"a": [{"b": [1e-7, {"é": '"'}]}], "c": {}}).encode())
    for text in ("[]", "1", '{"a":1}', '{"a": 1}\n'):
        assert not automaton.accepts(text.encode())


@settings(max_examples=20)
@given(st.lists(st.text(max_size=5), min_size=1))
def test_a_choice_is_one_of_the_texts(texts: list[str]) -> None:
    automaton = compile_constraint(Constraint("choice", json.dumps(texts)))
    assert all(automaton.accepts(text.encode()) for text in texts)
    assert set(walks(automaton, 1, 5)) <= set(texts)


@pytest.mark.parametrize("source", ["", "[]", '"yes"', "[1]", '{"a": "b"}'])
def test_choices_are_a_list_of_texts(source: str) -> None:
    with pytest.raises(ValueError, match="choices"):
        compile_constraint(Constraint("choice", source))


@pytest.mark.parametrize(("kind", "source"), [("choice", ["a", "b"]), ("json_schema", {})])
def test_a_source_that_is_no_text_is_refused(kind: Any, source: Any) -> None:
    with pytest.raises(ValueError, match=r"is a text, not of type .*: json.dumps makes one"):
        Constraint(kind, source)


def test_a_constraint_is_of_a_known_kind() -> None:
    with pytest.raises(ValueError, match="'xml' is no kind of constraint"):
        Constraint("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'json_object' takes no source"):
        Constraint("json_object", "{}")
