"""How a model's chat template writes calls of functions, found by having it write some.

No model's way is built in: whatever is written as a name and the JSON of the arguments, with fixed
text around them, is understood. Names of added tokens in the fixed text, such as `<tool_call>`,
are tokens, which people's texts cannot hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..constraints import controls
from ..constraints.constraint import Constraint
from ..models.checkpoint import Checkpoint
from .chat_template import ChatTemplateError, render_chat
from .control_names import ControlNames

# What the template is given to write. No template writes these by itself.
_NAMES = ("probe_function_a", "probe_function_b")
_ARGUMENTS = ({"probe_key_a": 1}, {"probe_key_b": 2})
_USER = {"role": "user", "content": "."}
NO_TOOLS = "this model's chat template knows no tools: describe them in words, in a message"
UNKNOWN = (
    "this model's chat template does not write calls as names and JSON, which is all that is "
    "understood here: describe the functions in words, in a message"
)


@dataclass(frozen=True)
class Function:
    """A function that may be called; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] | bool


@dataclass(frozen=True)
class ToolSyntax:
    """The fixed text of calls, with marks in place of control tokens.

    Attributes:
        open: before the first name.
        middle: between a name and its arguments.
        between: between the arguments of a call and the name of the next; None: one call at most.
        close: behind the last arguments.
        controls: the names of the control tokens, by the numbers of their marks.
    """

    open: str
    middle: str
    between: str | None
    close: str
    controls: tuple[str, ...]

    def constraint(
        self,
        functions: Sequence[Function],
        *,
        required: bool,
        parallel: bool,
        text: Constraint | None,
    ) -> Constraint:
        """The form of an answer that may call functions.

        Args:
            required: a call has to come.
            parallel: several calls may come.
            text: the form of a text in place of calls; None: any.
        """
        kind, source = (None, None) if text is None else (text.kind, text.source)
        spec = {
            "open": self.open,
            "middle": self.middle,
            "between": self.between if parallel else None,
            "close": self.close,
            "functions": [[one.name, one.parameters] for one in functions],
            "text": None if required else [kind, source],
        }
        return Constraint("tools", json.dumps(spec), self.controls)


def tool_syntax(checkpoint: Checkpoint) -> ToolSyntax:
    """How calls are written in the checkpoint's chat template.

    Raises:
        ValueError: the template knows no tools, or writes calls in another way.
    """
    tokenizer = checkpoint.tokenizer
    tools = [_tool(name) for name in _NAMES]
    generation = render_chat(tokenizer, [_USER], tools=tools, add_generation_prompt=True)
    if _NAMES[0] not in generation:
        raise ValueError(NO_TOOLS)
    turn = _turn(checkpoint, tools, 1)
    if turn is None:
        raise ValueError(UNKNOWN)
    alike = zip(generation, turn, strict=False)
    start = next(
        (place for place, (one, other) in enumerate(alike) if one != other), len(generation)
    )
    before, name, behind = turn[start:].partition(_NAMES[0])
    middle, arguments, close = behind.partition(json.dumps(_ARGUMENTS[0]))
    ends = [str(tokenizer.convert_ids_to_tokens(token)) for token in checkpoint.end_ids]
    close = close[: min((close.find(end) for end in ends if end in close), default=None)]
    if not (name and arguments and middle):
        raise ValueError(UNKNOWN)
    added = ControlNames(tokenizer).ids
    names = tuple(one for one in added if one in before + middle + close)
    if len(names) > controls.MOST:
        raise ValueError(UNKNOWN)
    before = controls.marked(before, names)
    # What stands before the last control token is not what a call is known by.
    marks = [place for place, one in enumerate(before) if controls.is_mark(one)]
    before = before[marks[-1] :] if marks else before.lstrip()
    if not before:
        raise ValueError(UNKNOWN)
    two = _turn(checkpoint, tools, 2)
    between = None
    if two is not None:
        _, _, behind = two.partition(json.dumps(_ARGUMENTS[0]))
        between, name, _ = behind.partition(_NAMES[1])
        between = controls.marked(between, names) if name else None
    middle, close = (controls.marked(text, names) for text in (middle, close.rstrip()))
    return ToolSyntax(before, middle, between, close, names)


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"probe_key": {"type": "integer"}}}
    function = {"name": name, "description": ".", "parameters": parameters}
    return {"type": "function", "function": function}


def _turn(checkpoint: Checkpoint, tools: list[dict[str, Any]], calls: int) -> str | None:
    """A conversation whose last message calls functions; None: the template refuses it."""
    made = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": _NAMES[number], "arguments": _ARGUMENTS[number]},
        }
        for number in range(calls)
    ]
    message = {"role": "assistant", "content": "", "tool_calls": made}
    try:
        return render_chat(checkpoint.tokenizer, [_USER, message], tools=tools)
    except ChatTemplateError:
        return None
