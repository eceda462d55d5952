"""render_chat(): a conversation in a model's chat template, within bounds.

A template is a program that came with a model. It runs in Jinja's sandbox, as transformers runs it
(same filters, functions and tags), but with bounds on its time and on the size of what it builds:
a loop in a loop would hang the process, and a doubled string fill its memory.
"""

from __future__ import annotations

import functools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from transformers import PreTrainedTokenizerBase

from ..settings import require

# Seconds of processor time for one conversation; Qwen's template takes a thousandth of one.
MOST_SECONDS = 2.0
# Characters or items of anything that a template makes.
MOST_ITEMS = 2**24
# What a template is given of a conversation itself, and what is no template's to read.
GIVEN = (
    *("messages", "tools", "documents", "add_generation_prompt"),
    *("continue_final_message", "chat_template", "tokenize"),
)
# What Python says of a wrong program.
FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TemplateError,
    TypeError,
    ValueError,
)


class ChatTemplateError(ValueError):
    """The template refuses these messages, or fails on them."""


class _Endless(BaseException):
    """Past the template's own bounds; not an Exception, which a filter could take for its own."""


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as one text.

    Args:
        tokenizer: its `chat_template` is the template, its special tokens are known there by name.
        template: in place of the tokenizer's.
        tools: functions that may be called, as OpenAI's `tools` has them.
        add_generation_prompt: up to where the next answer begins.
        continue_final_message: the last message stays open.
        variables: more that the template may read, as `enable_thinking`; one that it does not
            read changes nothing.

    Raises:
        ChatTemplateError: the template refuses the messages, or fails on them.
        ValueError: there is no template, it is no valid one, or it takes too long; a variable has
            a name that means something else.
    """
    source = tokenizer.chat_template if template is None else template
    if not isinstance(source, str):
        raise ValueError("this tokenizer has no chat template: pass the prompt as raw text")
    for name in variables or ():
        require(name not in GIVEN, f"{name} cannot be a variable of a chat template: rename it")
    chat = [{k: v for k, v in message.items() if v is not None} for message in messages]
    # A template that trims the message trims the mark's space.
    mark, said = secrets.token_hex(16), ""
    if continue_final_message:
        said = chat[-1]["content"]
        chat[-1]["content"] = f"{said}{mark} "
    compiled, bounds = _compile(source)
    bounds.begin()
    try:
        text = compiled.render(
            {
                **tokenizer.special_tokens_map,
                **(variables or {}),
                "messages": chat,
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
    except _Endless as error:
        raise ValueError(f"the model's chat template {error}: mend it, or pass raw text") from error
    except FAULTS as error:
        what = str(error) or type(error).__name__
        raise ChatTemplateError(
            f"the model's chat template refuses these messages: {what}"
        ) from error
    if continue_final_message:
        if mark not in text:
            raise ChatTemplateError("the model's chat template leaves out the last message")
        text, _, behind = text.rpartition(mark)
        if said.strip() and not behind.startswith(" "):
            text = text.removesuffix(said[len(said.rstrip()) :])
    return text


def check_template(text: str) -> None:
    """Whether a text can be a chat template at all.

    Raises:
        ValueError: it cannot, and why.
    """
    _compile(text)


class _Bounds(threading.local):
    """What a template may use, counted anew for each conversation in its thread."""

    def __init__(self) -> None:
        self.end = 0.0

    def begin(self) -> None:
        self.end = time.thread_time() + MOST_SECONDS

    def check_time(self, *_: Any) -> str:
        """Called by every turn of a loop and every call."""
        if time.thread_time() > self.end:
            raise _Endless(f"is not done after {MOST_SECONDS:g} seconds")
        return ""

    def check_size(self, *sizes: int) -> None:
        """The product of these is at least the size of what is about to be made."""
        size = 1
        for factor in sizes:
            size *= max(1, factor)
        if size > MOST_ITEMS:
            raise _Endless(f"builds something of more than {MOST_ITEMS:,} characters")


def _size(value: Any) -> int:
    """Characters, items, or the number itself: how large a result an argument can make."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(min(abs(value), MOST_ITEMS + 1)) if value == value else 0
    return len(value) if hasattr(value, "__len__") else 0


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with `bounds`; each method is where Jinja does what its name says."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, bounds: _Bounds) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            # It would compute `"a" * 10 ** 10` while it compiles.
            optimized=False,
        )
        self.bounds = bounds
        self.filters = {name: self._bounded(filter_) for name, filter_ in self.filters.items()}
        self.filters["tojson"] = _tojson
        del self.filters["format"]
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
            "namespace": _PlainNamespace,
        }
        self.concat = self._concat  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(tick, lineno=loop.lineno))
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [
                nodes.Call(nodes.EnvironmentAttribute("join"), joined.nodes, [], None, None)
            ]
        tree.set_environment(self)
        return tree

    def tick(self) -> str:
        return self.bounds.check_time()

    def join(self, *parts: Any) -> str:
        return self._concat(map(str, parts))

    def _concat(self, parts: Iterable[str]) -> str:
        made, size = [], 0
        for part in parts:
            size += len(part)
            self.bounds.check_size(size)
            made.append(part)
        return "".join(made)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if not numbers:
                self.bounds.check_size(_size(left), _size(right))
            elif operator == "**" and isinstance(left, int) and isinstance(right, int):
                self.bounds.check_size(left.bit_length(), abs(right))
        elif operator == "+" and hasattr(left, "__len__"):
            self.bounds.check_size(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting by % is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.bounds.check_time()
        owner = getattr(obj, "__self__", None)
        self._check_arguments(owner, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: a width in a format string is a size of its own, so there is no `format`."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        formats = isinstance(obj, str) and attr in ("format", "format_map")
        return not formats and super().is_safe_attribute(obj, attr, value)

    def _check_arguments(
        self, applied_to: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        own = len(applied_to) if hasattr(applied_to, "__len__") else 1
        for value in (*args, *kwargs.values()):
            self.bounds.check_size(own, _size(value))

    def _bounded(self, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, which takes what it is applied to, and numbers, within bounds."""
        # Jinja passes some of them its context first, by a mark on the function.
        first = 1 if hasattr(filter_, "jinja_pass_arg") else 0

        @functools.wraps(filter_)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.bounds.check_time()
            self._check_arguments(args[first], args[first + 1 :], kwargs)
            return filter_(*args, **kwargs)

        return bounded


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant says, for training; here its text alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """Jinja's namespace without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        Namespace.__init__(self, *rest, **kwargs)
        for name in dict(*rest, **kwargs):
            _check_plain(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_plain(name)
        super().__setitem__(name, value)


def _check_plain(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _tojson(value: Any, **options: Any) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@functools.lru_cache(maxsize=32)
def _compile(text: str) -> tuple[Template, _Bounds]:
    bounds = _Bounds()
    bounds.begin()  # constants are computed here
    try:
        return _Environment(bounds).from_string(text), bounds
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is broken ({error}): correct it") from error
    except (*FAULTS, SyntaxError, _Endless) as error:
        # Too deep for the parser, or for Python's own compiler.
        what = str(error) or type(error).__name__
        raise ValueError(f"the chat template is broken ({what}): correct it") from error
