"""What is known of a field of a request: the rows of the tables in `fields.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "chat",
    "completions",
    "denoise",
    "message",
    "part",
    "stream_options",
    "response_format",
    "named_schema",
    "structured_outputs",
    "tool",
    "function",
    "tool_choice",
    "allowed_choice",
    "allowed_tools",
    "named_function",
    "tool_call",
    "called_function",
    "responses",
    "responses_text",
    "responses_format",
    "responses_tool",
    "responses_choice",
    "responses_allowed",
    "item",
    "item_part",
    "score",
    "edit",
]
Does = Literal["implemented", "logged", "ignored", "neutral"]
BOTH: tuple[Kind, ...] = ("chat", "completions")
ALL: tuple[Kind, ...] = (*BOTH, "denoise")
CHAT, COMPLETIONS, DENOISE = BOTH[:1], BOTH[1:], ALL[2:]
MESSAGE: tuple[Kind, ...] = ("message",)
PART: tuple[Kind, ...] = ("part",)
OPTIONS: tuple[Kind, ...] = ("stream_options",)
FORMAT: tuple[Kind, ...] = ("response_format",)
NAMED: tuple[Kind, ...] = ("named_schema",)
OUTPUTS: tuple[Kind, ...] = ("structured_outputs",)
TOOL: tuple[Kind, ...] = ("tool",)
FUNCTION: tuple[Kind, ...] = ("function",)
CHOICE: tuple[Kind, ...] = ("tool_choice",)
ALLOWED: tuple[Kind, ...] = ("allowed_choice",)
AMONG: tuple[Kind, ...] = ("allowed_tools",)
CHOSEN: tuple[Kind, ...] = ("named_function",)
CALL: tuple[Kind, ...] = ("tool_call",)
CALLED: tuple[Kind, ...] = ("called_function",)
SCORE: tuple[Kind, ...] = ("score",)
EDIT: tuple[Kind, ...] = ("edit",)

# Sentences of several tables.
TEXT_ALONE = "this model reads and writes text alone"
NOT_KEPT = "no answer is kept from one request to the next"
FOUND = "what was computed before is found by itself, and changes no answer"
SALT = "requests of another one share no kept keys and values with this"
NO_REASONING = "the model does not reason apart from its answer"
TURNED_OFF = "a detail of something that is off"
MIN_P = "tokens at least this share as likely as the likeliest are kept; 0: all"
VARIABLES = "variables of the chat template, as `enable_thinking`"
DEFINED = "the tool of this name says it, under tools"
IN_ANY_CASE = "arguments and answers keep to their schema in any case"


@dataclass(frozen=True)
class Known:
    """A field that clients send, and in which kinds of objects.

    Args:
        meaning: what it does; of one that is ignored, why it changes nothing; of one that is
            accepted at a neutral value alone, what to do instead.
        neutral: values at which it changes nothing, beside null.
        api: whose field it is.
    """

    name: str
    does: Does
    meaning: str
    kinds: tuple[Kind, ...] = BOTH
    neutral: tuple[Any, ...] = ()
    api: str = ""

    def is_dropped(self, value: Any) -> bool:
        """Whether a request means the same without this value."""
        if value is None or self.does == "ignored":
            return True
        # To Python false is 0.
        return any(
            value == one and isinstance(value, bool) == isinstance(one, bool)
            for one in self.neutral
        )


def done(name: str, meaning: str, kinds: tuple[Kind, ...] = BOTH, *neutral: Any) -> Known:
    return Known(name, "implemented", meaning, kinds, neutral)


def logged(name: str, meaning: str, kinds: tuple[Kind, ...] = BOTH) -> Known:
    return Known(name, "logged", f"{meaning}; goes into the server's log", kinds)


def ignored(reason: str, *names: str, kinds: tuple[Kind, ...] = BOTH) -> tuple[Known, ...]:
    return tuple(Known(name, "ignored", reason, kinds) for name in names)


def only(name: str, *neutral: Any, instead: str, kinds: tuple[Kind, ...] = BOTH) -> Known:
    return Known(name, "neutral", instead, kinds, neutral)
