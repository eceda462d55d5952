"""A row of a source becomes a chat under our names, or the reason why it is left out.

Forms that are read, found by the names of the columns: a list of {role, content}, the content a
text or OpenAI's list of parts; ShareGPT's list of {from, value}; two columns, a prompt and a
response, under the names in `PAIRS`; Alpaca's instruction, input and output; and plain text. A
conversation's system prompt may stand in a column beside it, and Alpaca's earlier turns in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

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
# The column by default, that of files in ShareGPT's form, and that of plain text.
MESSAGES, SHAREGPT, TEXT = "messages", "conversations", "text"
# Columns of a prompt and its response, as data sets and other trainers name them.
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "chosen"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("query", "response"),
    ("input", "output"),
)  # fmt: skip
# What to do where no name is known; a recipe has the same settings for each source.
SAY_WHICH = (
    "name them by --prompt-column and --response-column, or by --messages-column (in a recipe: "
    "settings of the source)"
)
MORE = "input"  # beside an instruction: what it is about; may be empty
SYSTEM, HISTORY = "system", "history"  # a prompt before all; earlier turns, [question, answer] each
# The one message of a row of plain text, which no template is put around.
TEXT_ROLE = "softmask:text"
TEXT_PARTS = ("text", "input_text", "output_text")
SURROGATE = re.compile("[\ud800-\udfff]")

# Reasons, as `Counts` shows them.
INCOMPLETE = "incomplete"
TOOL_TURNS = "tool turns"
NO_TEXT = "not text"

Messages = list[dict[str, str]]


class Columns(NamedTuple):
    """The columns of a source that are read."""

    chat: tuple[str, ...]  # the response last where they are several
    beside: tuple[str, ...] = ()  # of SYSTEM and HISTORY

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.chat, *self.beside)


def columns_of(source: SourceConfig, where: str, there: Iterable[str]) -> Columns:
    """The columns of a source that hold the chat.

    Raises:
        ValueError: one is not there, or none has a name that is known.
    """
    there = list(there)
    chat = _chat_columns(source, where, there)
    # Where somebody says which columns hold the chats, these do.
    is_named = source.prompt_column is not None or source.messages_column != MESSAGES
    if is_named or chat == (TEXT,):
        return Columns(chat)
    beside = (SYSTEM, HISTORY) if chat[0] == "instruction" else (SYSTEM,)
    return Columns(chat, tuple(name for name in beside if name in there))


def _chat_columns(source: SourceConfig, where: str, there: list[str]) -> tuple[str, ...]:
    if source.prompt_column is not None and source.response_column is not None:
        wanted: tuple[str, ...] = (source.prompt_column, source.response_column)
    elif source.messages_column != MESSAGES:
        wanted = (source.messages_column,)
    else:
        return _known_columns(where, there)
    for name in wanted:
        if name not in there:
            raise ValueError(f"{where} has no column {name!r} but {', '.join(there)}: {SAY_WHICH}")
    return wanted


def _known_columns(where: str, there: list[str]) -> tuple[str, ...]:
    for name in (MESSAGES, SHAREGPT):
        if name in there:
            return (name,)
    for prompt, response in PAIRS:
        if prompt in there and response in there:
            more = (MORE,) if prompt == "instruction" and MORE in there else ()
            return (prompt, *more, response)
    if TEXT in there:
        return (TEXT,)
    pairs = ", ".join(f"{prompt} and {response}" for prompt, response in PAIRS)
    raise ValueError(
        f"{where} has no columns of a known form but {', '.join(there) or 'none'}: {SAY_WHICH}; "
        f"known are {MESSAGES}, {SHAREGPT} and {TEXT}, and of two columns {pairs}"
    )


def form_of(columns: Columns) -> str:
    """What rows with these columns are taken for, in words."""
    beside = "".join(f", {name} before" for name in columns.beside)
    if columns.chat == (TEXT,):
        return "plain text (a column text), trained on as a whole"
    if len(columns.chat) == 1:
        return f"conversations (a column {columns.chat[0]}{beside})"
    *prompts, response = columns.chat
    ask = "asks" if len(prompts) == 1 else "ask"
    return f"pairs ({' and '.join(prompts)} {ask}, {response} is the answer{beside})"


def messages_of(source: SourceConfig, where: str, row: Any) -> Messages | str:
    """The chat of a row, or the reason why it is left out.

    Raises:
        ValueError: the row is of no known form; `where` is its id.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found {type(row).__name__}")
    columns = columns_of(source, where, row)
    values = [row[name] for name in columns.chat]
    if columns.chat == (TEXT,) and source.messages_column != TEXT:
        return _text(where, values[0])
    if len(values) > 1:
        asked: Any = values[0]
        if len(values) == 3 and isinstance(asked, str):
            more = _text_or_none(where, MORE, values[1])
            asked = f"{asked}\n\n{more}" if more else asked
        chat: Any = [
            *(_turns(where, row[HISTORY]) if HISTORY in columns.beside else ()),
            {"role": "user", "content": asked},
            {"role": "assistant", "content": values[-1]},
        ]
    else:
        chat = [] if values[0] is None else values[0]
    if not isinstance(chat, list):
        raise ValueError(f"{where}: expected a list of messages, found {type(chat).__name__}")
    if [each.get("role") for each in chat if isinstance(each, dict)] == [TEXT_ROLE]:
        return chat  # read from a file before
    messages = []
    for each in chat:
        message = _message(where, each)
        if isinstance(message, str):
            return message
        messages.append(message)
    system = _text_or_none(where, SYSTEM, row[SYSTEM]) if SYSTEM in columns.beside else None
    if system and not any(message["role"] == "system" for message in messages):
        if SURROGATE.search(system):
            return INCOMPLETE
        messages.insert(0, {"role": "system", "content": system})
    whole = len(messages) > 1 and messages[-1]["role"] == "assistant"
    return messages if whole and messages[-1]["content"].strip() else INCOMPLETE


def _text_or_none(where: str, name: str, value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"{where}: {name} must be text, not {type(value).__name__}")
    return value if value and value.strip() else None


def _turns(where: str, history: Any) -> Iterator[dict[str, Any]]:
    """Alpaca's earlier turns as messages."""
    turns = history or []  # a table has an empty text where there are none
    if not isinstance(turns, list) or not all(isinstance(t, list) and len(t) == 2 for t in turns):
        raise ValueError(f"{where}: {HISTORY} must be a list of [question, answer]")
    for turn in turns:
        for role, content in zip(("user", "assistant"), turn, strict=True):
            yield {"role": role, "content": content}


def _text(where: str, text: Any) -> Messages | str:
    if not isinstance(text, str | None):
        raise ValueError(f"{where}: text must be text, not {type(text).__name__}")
    whole = text is not None and text.strip() and not SURROGATE.search(text)
    return [{"role": TEXT_ROLE, "content": text or ""}] if whole else INCOMPLETE


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
