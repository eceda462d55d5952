"""The form of an answer, as OpenAI's, vLLM's and llama.cpp's requests ask for it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..constraints.constraint import Constraint
from .strict import JsonObject, Strict, Text

MOST_CHOICES = 10_000
Schema = JsonObject | bool
Choices = Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)]


class NamedSchema(Strict):
    """OpenAI's `json_schema`. An answer keeps to it whether `strict` is said or not."""

    kind = "named_schema"

    schema_: Schema = Field(True, alias="schema")


class ResponseFormat(Strict):
    """OpenAI's `response_format`."""

    kind = "response_format"

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        named = self.json_schema is not None
        if self.schema_ is not None:
            if named or self.type == "text":
                raise ValueError("schema stands in json_schema, or alone beside a type of JSON")
        elif named != (self.type == "json_schema"):
            raise ValueError("json_schema goes with type 'json_schema', and with no other")
        return self


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: one of its fields."""

    kind = "structured_outputs"

    json_: Schema | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None
    json_object: bool | None = None


class Structured(Strict):
    """The fields by which a request may ask for a form: at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    grammar: Text | None = None
    json_schema: Schema | None = None

    @property
    def constraint(self) -> Constraint | None:
        """The form that is asked for; None: any text."""
        found = self._forms()
        return found[0][1] if found else None

    @model_validator(mode="after")
    def _one_form(self) -> Structured:
        names = [name for name, _ in self._forms()]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} each ask for a form: give one of them")
        return self

    def _forms(self) -> list[tuple[str, Constraint]]:
        outputs = self.structured_outputs or StructuredOutputs()
        asked = self.response_format
        found: list[tuple[str, Constraint | None]] = [
            ("response_format", None if asked is None else _of_format(asked)),
            ("structured_outputs.json", _of_schema(outputs.json_)),
            ("structured_outputs.regex", _of_text("regex", outputs.regex)),
            ("structured_outputs.choice", _of_choice(outputs.choice)),
            ("structured_outputs.grammar", _of_text("grammar", outputs.grammar)),
            (
                "structured_outputs.json_object",
                Constraint("json_object") if outputs.json_object else None,
            ),
            ("guided_json", _of_schema(self.guided_json)),
            ("guided_regex", _of_text("regex", self.guided_regex)),
            ("guided_choice", _of_choice(self.guided_choice)),
            ("guided_grammar", _of_text("grammar", self.guided_grammar)),
            ("grammar", _of_text("grammar", self.grammar)),
            ("json_schema", _of_schema(self.json_schema)),
        ]
        return [(name, form) for name, form in found if form is not None]


def _of_format(asked: ResponseFormat) -> Constraint | None:
    if asked.json_schema is not None:
        return _of_schema(asked.json_schema.schema_)
    if asked.schema_ is not None and (asked.schema_ or asked.type == "json_schema"):
        return _of_schema(asked.schema_)
    return Constraint("json_object") if asked.type == "json_object" else None


def _of_schema(schema: Schema | str | None) -> Constraint | None:
    if schema is None:
        return None
    return Constraint("json_schema", schema if isinstance(schema, str) else json.dumps(schema))


def _of_choice(choices: list[str] | None) -> Constraint | None:
    return None if choices is None else Constraint("choice", json.dumps(choices))


def _of_text(kind: Literal["regex", "grammar"], text: str | None) -> Constraint | None:
    return None if text is None else Constraint(kind, text)
