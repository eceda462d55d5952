"""The messages of a conversation, as requests have them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..settings import shown
from .field_rows import TEXT_ALONE
from .strict import Strict, Text, wrong
from .tools import ToolCalls


class TextPart(Strict):
    kind = "part"

    type: Literal["text"]
    text: Text


ROLES = ("system", "developer", "user", "assistant", "tool")


class Message(Strict):
    kind = "message"

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)] = ""
    name: Text | None = None
    tool_calls: ToolCalls = Field(default_factory=list)
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, values: Any) -> Any:
        """Names what no type could: which role, which part, and that there is no content."""
        if not isinstance(values, dict):
            raise ValueError("a message is an object with role and content")
        role, content = values.get("role"), values.get("content")
        if "role" in values and role not in ROLES:
            raise wrong("role", f"{shown(role)} is none of {', '.join(ROLES)}")
        if values.get("tool_calls") and role != "assistant":
            raise wrong("tool_calls", "an assistant alone calls tools")
        if content is None and values.get("tool_calls"):
            return values
        if content is None:
            raise wrong("content", "a message says something: give a text, which may be empty")
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and kind != "text":
                    raise wrong("content", f"{TEXT_ALONE}: {shown(kind)} parts cannot be read")
        elif not isinstance(content, str):
            raise wrong("content", "not a text, nor a list of parts of type text")
        return values

    @property
    def text(self) -> str:
        """All of the content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def as_template(self) -> dict[str, Any]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.text}
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [call.as_template() for call in self.tool_calls]
        return message


# One fault is enough: of a long list there could be a hundred thousand.
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
