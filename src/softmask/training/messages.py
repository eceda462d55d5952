"""A row of a source becomes a chat under our names, or the reason why it is left out.

Forms that are read: two columns, a prompt and a response; a list of {role, content}, the content a
text or OpenAI's list of parts; ShareGPT's list of {from, value}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .config import SourceConfig

ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bing", "bard"), "assistant"),
}
TOOL_ROLES = (
    "tool", "tool_call", "tool_response", "function", "function_call", "function_response",
    "observation", "ipython", "environment",
)  # fmt: skip
FORMS = (("role", "content"), ("from", "value"))
# The column by default, and that of files in ShareGPT's form.
MESSAGES, SHAREGPT = "messages", "conversations"
TEXT_PARTS = ("text", "input_text", "output_text")
SURROGATE = re.compile("[\ud800-\udfff]")

# Reasons, as `Counts` shows them.
INCOMPLETE = "incomplete"
TOOL_TURNS = "tool turns"
NO_TEXT = "not text"

Messages = list[dict[str, str]]


def columns_of(source: SourceConfig, where: str, there: Iterable[str]) -> tuple[str, ...]:
    """The columns of a source that hold the chat: one with messages, or prompt and response.

    Raises:
        ValueError: one is not there.
    """
    there = list(there)
    wanted: tuple[str, ...] = (source.messages_column,)
    if source.prompt_column is not None and source.response_column is not None:
        wanted = (source.prompt_column, source.response_column)
    elif wanted == (MESSAGES,) and MESSAGES not in there and SHAREGPT in there:
        wanted = (SHAREGPT,)
    for name in wanted:
        if name not in there:
            raise ValueError(
                f"{where} has no column {name!r} but {', '.join(there)}: set messages_column, or "
                "prompt_column and response_column"
            )
    return wanted


def messages_of(source: SourceConfig, where: str, row: Any) -> Messages | str:
    """The chat of a row, or the reason why it is left out.

    Raises:
        ValueError: the row is of no known form; `where` is its id.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    values = [row[name] for name in columns_of(source, where, row)]
    if len(values) == 2:
        roles = ("user", "assistant")
        chat = [{"role": r, "content": c} for r, c in zip(roles, values, strict=True)]
    else:
        chat = [] if values[0] is None else values[0]
    if not isinstance(chat, list):
        raise ValueError(f"{where}: expected a list of messages, found {type(chat).__name__}")
    messages = []
    for each in chat:
        message = _message(where, each)
        if isinstance(message, str):
            return message
        messages.append(message)
    whole = len(messages) > 1 and messages[-1]["role"] == "assistant"
    return messages if whole and messages[-1]["content"].strip() else INCOMPLETE


def _message(where: str, message: Any) -> dict[str, str] | str:
    """One message under our names, or why its chat is left out."""
    keys = next((f for f in FORMS if isinstance(message, dict) and set(f) <= set(message)), None)
    if keys is None:
        shown = f"the keys {', '.join(message)}" if isinstance(message, dict) else repr(message)
        raise ValueError(
            f"{where}: a message must have the keys role and content (or from and value), not "
            f"{shown}"
        )
    name, content = (message[key] for key in keys)
    role = str(name).lower()
    if role in TOOL_ROLES or message.get("tool_calls") or message.get("function_call"):
        return TOOL_TURNS
    if role not in ROLES:
        raise ValueError(f"{where}: unknown role {name!r}; known: {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(p, dict) and "type" in p for p in content):
        texts: list[Any] = [
            part.get("text") if part["type"] in TEXT_PARTS else None for part in content
        ]
        if not all(isinstance(text, str) for text in texts):
            return NO_TEXT
        content = "".join(texts)  # as the server joins them
    if not isinstance(content, str | None):
        raise ValueError(f"{where}: content must be text, not {type(content).__name__}")
    if content is None or SURROGATE.search(content):
        return INCOMPLETE  # half of a pair: JSON can hold it, UTF-8 and a tokenizer cannot
    return {"role": ROLES[role], "content": content}
