"""Calls of functions as a model's chat template writes them, with arguments of their schemas."""

import json
from collections.abc import Callable
from typing import Any

from .constraint import Kind
from .controls import is_mark
from .forms import (
    EMPTY,
    Form,
    TooLarge,
    alternatives,
    chars,
    combined,
    literal,
    marked_text,
    repeat,
    sequence,
)
from .json_schema import schema_form

_ANY_TEXT = repeat(chars([(0, 0x10FFFF)]))
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def tools_form(source: str, form_of: Callable[[Kind, str], Form]) -> Form:
    """Calls of some functions, or a text in their place or before them.

    Args:
        source: a JSON object. `open`, `middle`, `between`, `close`: what stands before the first
            name, between a name and its arguments, between two calls (null: there is one call at
            most) and behind the last, with marks for control tokens. `functions`: of each its name
            and the JSON schema of its arguments. `text`: null where a call has to come; else kind
            and source of the form of a text that may stand in place of calls, both null for any
            text, which may then stand before calls too.
        form_of: the form of a kind and its source.

    Raises:
        ValueError: a schema is malformed, not supported or no object.
        TooLarge: it takes too many states.
    """
    asked = json.loads(source) if source.startswith("{") else {}
    missing = {"open", "middle", "between", "close", "functions", "text"} - asked.keys()
    if missing or not asked["open"] or not asked["functions"]:
        raise ValueError("what calls look like is incomplete: see ToolSyntax.constraint")
    between = asked["between"]
    one = alternatives(*(_call(name, asked["middle"], p) for name, p in asked["functions"]))
    separator = {} if between is None else {"separator": marked_text(between)}
    calls = sequence(
        marked_text(asked["open"]),
        repeat(one, 1, 1 if between is None else None, **separator),
        marked_text(asked["close"]),
    )
    if asked["text"] is None:
        return calls
    kind, text = asked["text"]
    if kind is not None:
        begun = [marked_text(f"{name}{asked['middle']}") for name, _ in asked["functions"]]
        own = _without(form_of(kind, text), asked["open"], alternatives(*begun))
        return alternatives(own, calls)
    free = _without(_ANY_TEXT, asked["open"], EMPTY)
    return alternatives(free, sequence(free, calls))


def _without(text: Form, opens: str, begun: Form) -> Form:
    """Texts in which no call begins: nothing says `opens`, and goes on with what has `begun`."""
    if is_mark(opens[0]):  # which no text holds
        return text
    call = sequence(_ANY_TEXT, literal(opens), begun, _ANY_TEXT)
    return combined(text, call, without=True)


def _call(name: str, middle: str, parameters: Any) -> Form:
    """A function's name and arguments."""
    try:
        return sequence(literal(name), marked_text(middle), schema_form(json.dumps(parameters)))
    except TooLarge as error:
        raise TooLarge(f"{name}: {error}") from None
    except ValueError as error:
        raise ValueError(f"tool {name}: {error}") from None


def arguments_schema(parameters: Any) -> Any:
    """The schema of a function's arguments, which are an object whatever it says.

    Raises:
        ValueError: it allows no objects.
    """
    if not parameters:
        return NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise ValueError("parameters have to be of type object")
    closed: dict[str, Any] = {"type": "object"}
    if parameters.get("properties") == {}:
        # It takes nothing, as everybody writes it who has a function of no arguments.
        closed["additionalProperties"] = False
    return closed | parameters
