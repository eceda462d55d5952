"""From a constraint to its automaton."""

import functools

from . import json_values
from .automaton import ByteAutomaton, minimal
from .choice import choice_form
from .constraint import Constraint, Kind
from .forms import Form, TooLarge
from .grammar import grammar_form
from .json_schema import schema_form
from .nfa import determinise
from .regex import regex_form
from .tools import tools_form

# Characters. Whatever is longer exceeds the limits on states, and is parsed for seconds first.
MAX_SOURCE = 200_000

# What a kind is called in an error.
_NAMES = {
    "regex": "regex",
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "choice": "list of choices",
    "grammar": "grammar",
    "tools": "list of tools",
}


@functools.lru_cache(maxsize=64)
def compile_constraint(constraint: Constraint) -> ByteAutomaton:
    """The minimal automaton over bytes of the texts that a constraint allows.

    JSON is written as Python's `json.dumps(value, ensure_ascii=False)` does, so that braces, keys
    and spaces are fixed text. The automaton may leave out texts that the constraint allows (what
    is left out stands in each kind's module); it never adds one. The last 64 are kept.

    Raises:
        ValueError: The source is malformed, uses what is not supported, allows no text, or is too
            large; the message says which, in one sentence.
    """
    name = _NAMES[constraint.kind]
    if len(constraint.source) > MAX_SOURCE:
        raise ValueError(
            f"the {name} has {len(constraint.source):,} characters, the limit is {MAX_SOURCE:,}"
        )
    try:
        automaton = minimal(determinise(_form(constraint)))
    except TooLarge as error:
        raise TooLarge(
            f"the {name} is too large: {error} (counted lengths and items, nesting and ambiguity "
            "take many states)"
        ) from None
    except RecursionError:
        raise TooLarge(f"the {name} is nested too deeply") from None
    if automaton is None:
        raise ValueError(f"the {name} contradicts itself: no text has this form")
    return automaton


def _form(constraint: Constraint) -> Form:
    return _form_of(constraint.kind, constraint.source)


def _form_of(kind: Kind, source: str) -> Form:
    match kind:
        case "regex":
            return regex_form(source)
        case "json_schema":
            return schema_form(source)
        case "json_object":
            return json_values.any_object()
        case "choice":
            return choice_form(source)
        case "grammar":
            return grammar_form(source)
        case "tools":
            return tools_form(source, _form_of)
