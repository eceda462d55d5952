"""JSON schemas as automata: whatever they allow validates, and valid values are allowed."""

from __future__ import annotations

import itertools
import json
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


@settings(max_examples=150)
@given(pair=pairs(), seed=st.integers(0, 2**32))
def test_what_is_written_validates_and_valid_values_may_be_written(pair: Any, seed: int) -> None:
    schema, value = pair
    check_walks(schema, seed)
    assert allows(schema, value)
