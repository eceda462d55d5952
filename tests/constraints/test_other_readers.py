"""Forms at random, read by other implementations: what is written is what those allow."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import lark
import pytest
from automaton_walks import walks
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.constraints.automaton import ByteAutomaton
from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint

SCALARS = [None, True, False, 0, 1, -1, 2, 1.5, 10, "", "a", "b", "ab", "1", "aa"]
TYPES = ["string", "integer", "number", "array", "object", ["string", "null"], ["integer", "array"]]
WORDS: dict[str, list[Any]] = {
    "required": [[], ["a"], ["b", "a"]],
    "minimum": [0, -1, 1.5],
    "exclusiveMinimum": [0, 1, 0.1],
    "maximum": [2, 10, 1.5],
    "exclusiveMaximum": [0, 2, 1.5],
    "pattern": ["^a", "b$", "^[ab]*$", "a|b", "^.$", r"\d"],
    "$ref": ["#/$defs/x", "#/$defs/y"],
    "multipleOf": [1, 1.0],
} | {f"{end}{of}": [0, 1, 2, 3] for end in ("min", "max") for of in ("Length", "Items")}
SCHEMAS = ["additionalProperties", "items", "propertyNames", "unevaluatedProperties"]
LISTS = ["allOf", "anyOf", "oneOf", "prefixItems"]
NAMES = [*WORDS, *SCHEMAS, *LISTS, "type", "enum", "const", "properties", "properties"]


def value(draw: random.Random, level: int = 0) -> Any:
    kind = draw.random()
    if level == 2 or kind < 0.6:
        return draw.choice(SCALARS)
    if kind < 0.85:
        return [value(draw, level + 1) for _ in range(draw.randint(0, 3))]
    return {key: value(draw, level + 1) for key in draw.sample("abc", draw.randint(0, 2))}


def schema(draw: random.Random, level: int = 0) -> Any:
    """Keywords side by side as nobody would write them; without a type only where others say it."""
    if level and draw.random() < 0.1:
        return draw.choice([True, False, {}])
    found: dict[str, Any] = {}
    for name in draw.choices(NAMES, k=draw.choice([1, 1, 2, 2, 3, 4])):
        if name in WORDS:
            found[name] = draw.choice(WORDS[name])
        elif name == "enum":
            found[name] = [value(draw) for _ in range(draw.randint(1, 3))]
        elif name == "const":
            found[name] = value(draw)
        elif name == "type" or level == 3:
            found["type"] = draw.choice(TYPES)
        elif name in SCHEMAS:
            found[name] = schema(draw, level + 1)
        elif name in LISTS:
            found[name] = [schema(draw, level + 1) for _ in range(draw.randint(1, 2))]
        else:
            keys = draw.sample("abc", draw.randint(1, 2))
            found[name] = {key: schema(draw, level + 1) for key in keys}
    if draw.random() < 0.9 or not found.keys() & {"enum", "const", "allOf", "anyOf", "oneOf"}:
        found.setdefault("type", draw.choice(TYPES))
    if level == 0:
        found["$defs"] = {key: schema(draw, 2) for key in "xy"}
    return found


def made(kind: str, source: str) -> ByteAutomaton | None:
    """None for what is refused: that is said in a sentence, and checked elsewhere."""
    try:
        return compile_constraint(Constraint(kind, source))  # type: ignore[arg-type]
    except ValueError:
        return None


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32))
def test_what_any_schema_lets_be_written_validates_elsewhere(seed: int) -> None:
    draw = random.Random(seed)
    source = schema(draw)
    automaton = made("json_schema", json.dumps(source))
    if automaton is None:
        return
    validator = jsonschema_rs.validator_for(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **source}
    )
    for text in walks(automaton, seed, count=4, steps=40):
        assert validator.is_valid(json.loads(text)), (source, text)
    for found in [*SCALARS, *(value(draw) for _ in range(20))]:
        if automaton.accepts(json.dumps(found).encode()):
            assert validator.is_valid(found), (source, found)


PIECES = [
    *('"a"', '"b"', '"ab"', '"A"i', '"+"', '","', "/[ab]/", "/a+b?/", "/[0-9]+/", "/(a|bc)/i"),
    *('"a".."c"', '"\\""', '"x\\ny"'),
]
COMMON = ["INT", "WORD", "CNAME", "NUMBER", "ESCAPED_STRING", "WS"]
TEXTS = ["a", "b", "ab", "A", "+", ",", "c", "bc", "1", "20", '"', "x\ny", " ", "x"]


def expression(draw: random.Random, names: list[str], level: int = 0) -> str:
    options = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        parts = []
        for _ in range(draw.choice([1, 1, 2, 3])):
            kind = draw.random()
            if kind < 0.35:
                part = draw.choice(PIECES)
            elif kind < 0.7 or level == 2:
                part = draw.choice(names)
            elif kind < 0.85:
                part = f"({expression(draw, names, level + 1)})"
            else:
                part = f"[{expression(draw, names, level + 1)}]"
            if part[0] != "[" and draw.random() < 0.25:
                part += draw.choice(["?", "*", "+", "~2", "~1..2", " ~ 0..2"])
            parts.append(part)
        options.append(" ".join(parts))
    return " | ".join(options)


def lark_grammar(draw: random.Random) -> str:
    rules, terminals = draw.choice([["r1"], ["r1", "r2"]]), ["T1", "T2"][: draw.randint(0, 2)]
    imports = draw.sample(COMMON, draw.randint(0, 2))
    names = [*rules, *terminals, *imports]
    lines = [f"start: {expression(draw, names)}"]
    lines += [f"{draw.choice(['', '?', '!'])}{name}: {expression(draw, names)}" for name in rules]
    for at, name in enumerate(terminals):
        lines.append(f"{name}.2: {expression(draw, [*PIECES, *terminals[:at]], 1)}")
    lines += [f"%import common.{name}" for name in imports]
    if "WS" in imports and draw.random() < 0.7:
        lines.append("%ignore WS")
    return "\n".join(lines) + "\n"


def lark_parses(parser: lark.Lark, text: str) -> bool | None:
    """None: its own parser fails, as it does on some ambiguous rules without a text."""
    try:
        parser.parse(text)
    except lark.exceptions.LarkError:
        return False
    except RuntimeError:
        return None
    return True


@pytest.mark.parametrize("seed", range(16))
def test_what_a_grammar_lets_be_written_is_parsed_by_lark(seed: int) -> None:
    draw = random.Random(seed)
    while True:
        source = lark_grammar(draw)
        automaton = made("grammar", source)
        if automaton is None:
            continue
        try:
            parser = lark.Lark(source, parser="earley", lexer="dynamic_complete")
        except lark.exceptions.LarkError:  # terminals that may be empty, options written twice
            continue
        break
    written = [text for text in walks(automaton, seed, count=3, steps=12) if len(text) < 40]
    for text in written:
        assert lark_parses(parser, text) is not False, (source, text)
    near = ["".join(draw.choices(TEXTS, k=draw.randint(0, 5))) for _ in range(8)]
    near += [text[:at] + text[at + 1 :] for text in written for at in [draw.randint(0, len(text))]]
    for text in near:
        if automaton.accepts(text.encode()):
            assert lark_parses(parser, text) is not False, (source, text)
