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
from .strict import JsonObject, Strict, Text, check_json, text_or_more, wrong

MOST_TOOLS = 128
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Mode = Literal["none", "auto", "required"]
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


class AllowedTools(Strict):
    kind = "allowed_tools"

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MOST_TOOLS, fail_fast=True)]


class AllowedChoice(Strict):
    """`tool_choice` that names several functions, of which the model chooses."""

    kind = "allowed_choice"

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _arguments(text: str) -> Any:
    found = json.loads(text or "{}")
    return {} if found is None else found


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
        """Whether they are an object. Clients send nothing, or null, for no arguments."""
        try:
            found = _arguments(arguments)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise wrong(
                "arguments",
                "not a JSON object as text: mend the call, or leave it out with its answer",
            )
        try:
            check_json(found)
        except ValueError as error:
            raise wrong("arguments", str(error)) from None


class ToolCall(Strict):
    """A call of an earlier turn."""

    kind = "tool_call"

    id: Text = ""
    type: Literal["function"] = "function"
    function: CalledFunction

    _functions_alone = model_validator(mode="before")(functions_alone)

    def as_template(self) -> dict[str, Any]:
        """As chat templates take it, which write the arguments as JSON themselves."""
        arguments = _arguments(self.function.arguments)
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


def choice_form(value: Any) -> str:
    """Which of its types a choice is to be; see `text_or_more`."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "some tools" if kind == "allowed_tools" else text_or_more(value)


Choice = Annotated[
    Annotated[Mode, Tag("a text")]
    | Annotated[NamedTool, Tag("more than a text")]
    | Annotated[AllowedChoice, Tag("some tools")],
    Discriminator(choice_form),
]
Tools = Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolCalls = Annotated[list[ToolCall], Field(max_length=MOST_TOOLS, fail_fast=True)]


def choice_of(given: Mode | NamedTool | AllowedChoice) -> tuple[Mode, list[str]]:
    """Whether tools may be called, or have to be, and the names of those; none: any."""
    if isinstance(given, NamedTool):
        return "required", [given.function.name]
    if isinstance(given, AllowedChoice):
        among = given.allowed_tools
        return among.mode, [tool.function.name for tool in among.tools]
    return given, []


def check_choice(names: Sequence[str], choice: Mode | NamedTool | AllowedChoice) -> None:
    """Whether a choice among tools can be made.

    Raises:
        ValueError: there are no tools to choose from, two have one name, or there is no such.
    """
    mode, chosen = choice_of(choice)
    require(len(set(names)) == len(names), "tools: two functions have the same name")
    if not names:
        require(mode != "required" and not chosen, "tool_choice needs tools to choose from")
    for name in chosen:
        require(name in names, f"tool_choice: there is no tool {shown(name)}")


def tools_constraint(
    syntax: ToolSyntax,
    tools: Sequence[Tool],
    *,
    required: bool,
    parallel: bool,
    text: Constraint | None,
) -> Constraint:
    """The form of an answer that may call these tools; see `ToolSyntax.constraint`.

    Raises:
        ValueError: parameters are no object's.
    """
    functions = []
    for tool in tools:
        try:
            schema = arguments_schema(tool.function.parameters)
        except ValueError as error:
            raise ValueError(f"tool {tool.function.name}: {error}") from None
        functions.append(Function(tool.function.name, schema))
    return syntax.constraint(functions, required=required, parallel=parallel, text=text)
