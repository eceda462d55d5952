"""Schemas as clients send them: pydantic's own, OpenAI's strict ones, zod's."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from typing import Annotated, Any, Literal

import jsonschema_rs
import pytest
from automaton_walks import walks
from pydantic import BaseModel, Field

from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str = Field(max_length=40, description="Street and number")
    postcode: Annotated[str, Field(pattern=r"^\d{5}$")]
    country: Literal["CH", "DE"] = "CH"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    weight: float = Field(gt=0, lt=99.5)


class Person(BaseModel):
    name: str = Field(min_length=1)
    born: datetime.date
    seen: datetime.datetime | None = None
    wakes: datetime.time
    sleeps: datetime.timedelta
    id: uuid.UUID
    colours: list[Colour] = Field(min_length=1, max_length=3)
    address: Address | None
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, str]
    scores: dict[str, float]
    extra: dict[str, Any] = {}
    by_colour: dict[Colour, int] = {}


class Node(BaseModel):
    value: int
    children: list[Node] = []


@pytest.mark.parametrize("model", [Person, Node, Address], ids=lambda model: model.__name__)
def test_what_a_pydantic_model_asks_for_is_read_by_it(model: type[BaseModel]) -> None:
    schema = json.dumps(model.model_json_schema())
    automaton = compile_constraint(Constraint("json_schema", schema))
    for text in walks(automaton, seed=1, count=20, steps=300):
        model.model_validate_json(text)


EMAIL = (
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
    r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
)
SAFE = {"minimum": -9007199254740991, "maximum": 9007199254740991}
# What zod 4 writes for a form with most of its types.
ZOD = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "email": {"type": "string", "format": "email", "pattern": EMAIL},
        "age": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        "count": {"type": "integer", **SAFE},
        "site": {"type": "string", "format": "uri"},
        "phone": {"type": "string", "format": "e164", "pattern": r"^\+[1-9]\d{6,14}$"},
        "token": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{21}$", "format": "nanoid"},
        "role": {"default": "user", "type": "string", "enum": ["user", "admin"]},
        "tags": {"maxItems": 5, "type": "array", "items": {"type": "string"}},
        "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]},
        "byName": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "boolean"},
        },
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "result": {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"status": {"type": "string", "const": status}},
                    "required": ["status"],
                    "additionalProperties": False,
                }
                for status in ("ok", "failed")
            ]
        },
        "both": {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            ]
        },
        "float": {"type": "number", "maximum": 1.7976931348623157e308},
    },
    "required": ["email", "age", "role", "result", "both"],
    "additionalProperties": False,
}
# Of OpenAI's guide to structured outputs: steps of an answer, a page of components within
# components, lists that are linked.
STEPS = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "explanation": {"type": "string"},
                    "output": {"type": "string"},
                },
                "required": ["explanation", "output"],
                "additionalProperties": False,
            },
        },
        "final_answer": {"type": ["string", "null"]},
    },
    "required": ["steps", "final_answer"],
    "additionalProperties": False,
}
COMPONENTS = {
    "type": "object",
    "description": "A component of a page",
    "properties": {
        "type": {"type": "string", "enum": ["div", "button", "form"]},
        "label": {"type": "string"},
        "children": {"type": "array", "items": {"$ref": "#"}},
        "attributes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
                "required": ["name", "value"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["type", "label", "children", "attributes"],
    "additionalProperties": False,
}
LINKED = {
    "type": "object",
    "properties": {"list": {"$ref": "#/$defs/node"}},
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "required": ["list"],
    "additionalProperties": False,
}
# Draft 7, as tools of older clients have it.
TOOL = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "definitions": {"unit": {"enum": ["C", "F", None]}},
    "properties": {
        "place": {"type": "string", "nullable": True, "example": "Bern"},
        "unit": {"$ref": "#/definitions/unit"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7, "multipleOf": 1},
        "pair": {"type": "array", "items": [{"type": "integer"}, {"type": "boolean"}]},
    },
    "required": ["place", "reason"],
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (STEPS, {"steps": [{"explanation": "é", "output": '"'}], "final_answer": None}),
        (
            COMPONENTS,
            {
                "type": "div",
                "label": "",
                "children": [{"type": "form", "label": "", "children": [], "attributes": []}],
                "attributes": [{"name": "a", "value": "b"}],
            },
        ),
        (LINKED, {"list": {"value": 1.5, "next": {"value": -1, "next": None}}}),
        (TOOL, {"place": "Bern", "unit": None, "pair": [1, True], "reason": [{}]}),
        (
            ZOD,
            {
                "email": "a@b.co",
                "age": 1,
                "role": "user",
                "point": [0.5, 1],
                "byName": {"x": True},
                "result": {"status": "ok"},
                "both": {"a": 1, "b": None},
            },
        ),
    ],
    ids=["openai-steps", "openai-components", "openai-linked", "draft-7", "zod"],
)
def test_schemas_of_clients_are_written_and_validate(schema: Any, value: Any) -> None:
    automaton = compile_constraint(Constraint("json_schema", json.dumps(schema)))
    validator = jsonschema_rs.validator_for(schema, validate_formats=True)
    assert validator.is_valid(value)
    assert automaton.accepts(json.dumps(value, ensure_ascii=False).encode())
    for text in walks(automaton, seed=1, count=20, steps=300):
        assert validator.is_valid(json.loads(text)), text
