"""Requests of OpenAI's Responses API, which become chats. Nothing is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ..config import require
from ..settings import shown
from .field_rows import TEXT_ALONE
from .fields_responses import SEND_ALL
from .messages import ROLES, Message
from .protocol import MOST_TOP, ChatRequest, Logged, Shared, Variables
from .strict import JsonObject, Strict, Text, text_or_more, wrong
from .structured import NamedSchema, ResponseFormat, Schema
from .tools import (
    MOST_TOOLS,
    AllowedChoice,
    AllowedTools,
    CalledFunction,
    FunctionDefinition,
    Mode,
    Name,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
    check_choice,
    choice_form,
    functions_alone,
)

LOGPROBS = "message.output_text.logprobs"
MOST_METADATA = 16
PARTS = ("input_text", "output_text", "text")


class ItemPart(Strict):
    kind = "item_part"

    type: Literal["input_text", "output_text", "text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        kind = values.get("type") if isinstance(values, dict) else None
        if isinstance(kind, str) and kind not in PARTS:
            raise wrong("type", f"{TEXT_ALONE}: {shown(kind)} parts cannot be read")
        return values


Content = Annotated[
    Annotated[Text, Tag("a text")]
    | Annotated[list[ItemPart], Field(fail_fast=True), Tag("more than a text")],
    Discriminator(text_or_more),
]
# What an item needs beside its type.
NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}


class Item(Strict):
    """An item of `input`: a message, a call of a function, or what came of it."""

    kind = "item"

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    call_id: Text | None = None
    name: Name | None = None
    arguments: Text | None = None
    output: Content | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_known(cls, values: Any) -> Any:
        """Names what no type could: which item, which role, and what an item lacks."""
        if not isinstance(values, dict):
            raise ValueError("an item is an object with type, or with role and content")
        kind, role = values.get("type", "message"), values.get("role")
        if kind == "item_reference":
            raise wrong("type", f"nothing is kept that an item could refer to: {SEND_ALL}")
        if kind not in tuple(NEEDED):  # it may be a list
            raise wrong("type", f"{shown(kind)} is none of {', '.join(NEEDED)}")
        for name in NEEDED[kind]:
            if values.get(name) is None:
                raise wrong(name, f"a {kind} needs it")
        if role is not None and role not in ROLES[:-1]:
            raise wrong("role", f"{shown(role)} is none of {', '.join(ROLES[:-1])}")
        return values

    @model_validator(mode="after")
    def _is_call(self) -> Item:
        if self.type == "function_call":
            self.called()
        return self

    def called(self) -> ToolCall:
        """A call, as chats have it."""
        assert self.name is not None  # as was checked
        assert self.arguments is not None
        CalledFunction.check_arguments(self.arguments)
        function = CalledFunction(name=self.name, arguments=self.arguments)
        return ToolCall(id=self.call_id or "", function=function)


def _text_of(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class TextFormat(Strict):
    kind = "responses_format"

    type: Literal["text", "json_object", "json_schema"]
    name: Text | None = None
    schema_: Schema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema goes with type 'json_schema', and with no other")
        return self


class TextConfig(Strict):
    kind = "responses_text"

    format: TextFormat | None = None


class ResponsesTool(Strict):
    """A function; in chats its fields stand under `function`."""

    kind = "responses_tool"

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: JsonObject | None = None

    _functions_alone = model_validator(mode="before")(functions_alone)


class ResponsesNamed(Strict):
    """`tool_choice` that names a function."""

    kind = "responses_choice"

    type: Literal["function"]
    name: Name

    _functions_alone = model_validator(mode="before")(functions_alone)

    def as_chat(self) -> NamedTool:
        return NamedTool(type="function", function=NamedFunction(name=self.name))


class ResponsesAllowed(Strict):
    """`tool_choice` that names several functions, of which the model chooses."""

    kind = "responses_allowed"

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ResponsesNamed] = Field(min_length=1, max_length=MOST_TOOLS)

    def as_chat(self) -> AllowedChoice:
        tools = [tool.as_chat() for tool in self.tools]
        return AllowedChoice(
            type="allowed_tools", allowed_tools=AllowedTools(mode=self.mode, tools=tools)
        )


Input = Annotated[
    Annotated[Text, Tag("a text")]
    | Annotated[list[Item], Field(min_length=1, fail_fast=True), Tag("more than a text")],
    Discriminator(text_or_more),
]
Choice = Annotated[
    Annotated[Mode, Tag("a text")]
    | Annotated[ResponsesNamed, Tag("more than a text")]
    | Annotated[ResponsesAllowed, Tag("some tools")],
    Discriminator(choice_form),
]


class ResponsesRequest(Shared):
    """POST /v1/responses."""

    kind = "responses"

    input: Input
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextConfig | None = None
    tools: list[ResponsesTool] = Field(default_factory=list, max_length=MOST_TOOLS)
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool = True
    # Agents ask for encrypted reasoning with every request; there is none here.
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default_factory=list
    )
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    chat_template_kwargs: Variables = Field(default_factory=dict)
    stream: bool = False
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=MOST_METADATA)
    user: Logged | None = None
    safety_identifier: Logged | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_reasoning(cls, values: Any) -> Any:
        """Clients send a conversation's reasoning along; there is none here to go on from."""
        items = values.get("input") if isinstance(values, dict) else None
        if not isinstance(items, list):
            return values
        kept = [one for one in items if not isinstance(one, dict) or one.get("type") != "reasoning"]
        return {**values, "input": kept}

    @model_validator(mode="after")
    def _has_tools(self) -> ResponsesRequest:
        check_choice([tool.name for tool in self.tools], self._chat_choice)
        return self

    @property
    def _chat_choice(self) -> Mode | NamedTool | AllowedChoice:
        choice = self.tool_choice
        return choice if isinstance(choice, str) else choice.as_chat()

    @property
    def format(self) -> TextFormat:
        """The form of the answer."""
        asked = None if self.text is None else self.text.format
        return TextFormat(type="text") if asked is None else asked

    def as_chat(self) -> ChatRequest:
        """The chat that this asks for."""
        logprobs = LOGPROBS in self.include or self.top_logprobs is not None
        shared = {name: getattr(self, name) for name in Shared.model_fields}
        return ChatRequest(
            **shared,
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            response_format=_chat_format(self.format),
            tools=[_chat_tool(tool) for tool in self.tools],
            tool_choice=self._chat_choice,
            chat_template_kwargs=self.chat_template_kwargs,
            parallel_tool_calls=self.parallel_tool_calls,
            logprobs=logprobs,
            top_logprobs=self.top_logprobs,
            stream=self.stream,
            user=self.user,
            safety_identifier=self.safety_identifier,
        )

    def _messages(self) -> list[Message]:
        said = [Message(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*said, Message(role="user", content=self.input)]
        return said + _turns(self.input)


def _turns(items: Sequence[Item]) -> list[Message]:
    """Items as messages: calls are a part of the assistant's turn in which they were made."""
    turns: list[Message] = []
    for item in items:
        if item.type == "function_call_output":
            output = _text_of(item.output)
            turns.append(Message(role="tool", content=output, tool_call_id=item.call_id))
        elif item.type == "function_call":
            if not turns or turns[-1].role != "assistant":
                turns.append(Message(role="assistant", content=""))
            before = turns.pop()
            calls = [*before.tool_calls, item.called()]
            require(
                len(calls) <= MOST_TOOLS,
                f"input: {len(calls)} calls in a row are too many: at most {MOST_TOOLS}",
            )
            turns.append(Message(role="assistant", content=before.content, tool_calls=calls))
        else:
            assert item.role is not None  # as was checked
            turns.append(Message(role=item.role, content=_text_of(item.content)))
    return turns


def _chat_format(asked: TextFormat) -> ResponseFormat | None:
    if asked.type == "text":
        return None
    if asked.schema_ is None:
        return ResponseFormat(type=asked.type)
    return ResponseFormat(type=asked.type, json_schema=NamedSchema(schema=asked.schema_))


def _chat_tool(tool: ResponsesTool) -> Tool:
    values = {name: getattr(tool, name) for name in FunctionDefinition.model_fields}
    return Tool(type="function", function=FunctionDefinition(**values))
