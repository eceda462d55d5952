"""Tools in requests: functions, the choice among them, and calls of earlier turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ..config import require
from ..constraints.constraint import Constraint
from ..constraints.tools import arguments_schema
from ..decoding.tool_syntax import Function, ToolSyntax
from ..settings import shown
from .strict import JsonObject, Strict, Text, text_or_more, wrong

MOST_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
FUNCTIONS_ALONE = "functions are the only tools here"


class FunctionDefinition(Strict):
    kind = "function"

    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None


def functions_alone(values: Any) -> Any:
    """Names a type of tool that there is not, before its other fields are."""
    kind = values.get("type") if isinstance(values, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise wrong("type", f"{FUNCTIONS_ALONE}: {shown(kind)} is another type")
    return values


class Tool(Strict):
    kind = "tool"

    type: Literal["function"]
    function: FunctionDefinition

    def as_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = self.function.model_dump(exclude_none=True)
        return {"type": self.type, "function": {"description": "", "parameters": {}} | function}

    _functions_alone = model_validator(mode="before")(functions_alone)


class NamedFunction(Strict):
    kind = "named_function"

    name: Name


class NamedTool(Strict):
    """`tool_choice` that names a function."""

    kind = "tool_choice"

    type: Literal["function"]
    function: NamedFunction

    _functions_alone = model_validator(mode="before")(functions_alone)


class CalledFunction(Strict):
    kind = "called_function"

    name: Name
    arguments: Text

    @model_validator(mode="after")
    def _is_object(self) -> CalledFunction:
        self.check_arguments(self.arguments)
        return self

    @staticmethod
    def check_arguments(arguments: str) -> None:
        """Whether they are an object. Clients send nothing for no arguments."""
        try:
            found = json.loads(arguments or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise wrong("arguments", "not a JSON object as text")


class ToolCall(Strict):
    """A call of an earlier turn."""

    kind = "tool_call"

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    _functions_alone = model_validator(mode="before")(functions_alone)

    def as_template(self) -> dict[str, Any]:
        """As chat templates take it, which write the arguments as JSON themselves."""
        arguments = json.loads(self.function.arguments or "{}")
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


Mode = Literal["none", "auto", "required"]
Choice = Annotated[
    Annotated[Mode, Tag("a text")] | Annotated[NamedTool, Tag("more than a text")],
    Discriminator(text_or_more),
]
Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolCalls = Annotated[list[ToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)]


def check_choice(names: Sequence[str], mode: str, chosen: str | None) -> None:
    """Whether a choice among tools can be made.

    Raises:
        ValueError: there are no tools to choose from, two have one name, or there is no such.
    """
    require(len(set(names)) == len(names), "tools: two functions have the same name")
    if not names:
        require(mode != "required" and chosen is None, "tool_choice needs tools to choose from")
    if chosen is not None and chosen not in names:
        raise ValueError(f"tool_choice: there is no tool {shown(chosen)}")


def tools_constraint(
    syntax: ToolSyntax,
    tools: Sequence[Tool],
    *,
    mode: str,
    chosen: str | None,
    parallel: bool,
    text: Constraint | None,
) -> Constraint:
    """The form of an answer that may call tools; see `ToolSyntax.constraint`.

    Raises:
        ValueError: parameters are no object's.
    """
    functions = []
    for tool in tools:
        if chosen in (None, tool.function.name):
            try:
                schema = arguments_schema(tool.function.parameters)
            except ValueError as error:
                raise ValueError(f"tool {tool.function.name}: {error}") from None
            functions.append(Function(tool.function.name, schema))
    required = mode == "required"
    # Who names a function wants one call of it.
    parallel = parallel and chosen is None
    return syntax.constraint(functions, required=required, parallel=parallel, text=text)
