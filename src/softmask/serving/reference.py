"""The reference of the HTTP interface, read off the models that check requests.

As tables for the documents, and as the page at /docs, which loads nothing from anywhere.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from .edit_body import EditBody
from .fields import FIELDS
from .messages import Message
from .protocol import ChatRequest, CompletionRequest, DenoiseRequest, Extension, StreamOptions
from .responses_api import Item, ResponsesRequest
from .scores import ScoreBody, ScoreExtension
from .structured import ResponseFormat, StructuredOutputs
from .tools import FunctionDefinition

ROUTES = {
    "GET /": "the page that shows the denoising",
    "POST /v1/chat/completions": "OpenAI's chat completions, whole or streamed",
    "POST /v1/completions": "OpenAI's completions; with `suffix` the text between the two",
    "POST /v1/score": "log-probabilities of given continuations",
    "POST /v1/edits": "a stretch of a text written anew",
    "POST /v1/responses": "OpenAI's Responses API, whole or streamed; nothing is stored",
    "POST /v1/denoise": "every step of one text",
    "GET /v1/models": "the model that is served, in a list",
    "GET /v1/models/{name}": "its entry: context, soft-mask parameters, defaults",
    "GET /health": "200 `ok`; 503 `closing` in a shutdown, `broken` where the engine broke down",
    "GET /metrics": "counts for Prometheus",
    "GET /docs": "this reference",
    "GET /openapi.json": "the schema",
}
REQUESTS: dict[str, type[BaseModel]] = {
    "POST /v1/chat/completions": ChatRequest,
    "A message": Message,
    "A tool's function": FunctionDefinition,
    "POST /v1/completions": CompletionRequest,
    "The key `stream_options`": StreamOptions,
    "POST /v1/responses": ResponsesRequest,
    "An item of `input`": Item,
    "POST /v1/denoise": DenoiseRequest,
    "POST /v1/edits": EditBody,
    "The key `softmask` of every request": Extension,
    "POST /v1/score": ScoreBody,
    "The key `softmask` of `/v1/score`": ScoreExtension,
    "The key `response_format`": ResponseFormat,
    "The key `structured_outputs`": StructuredOutputs,
}
PLACES = {
    "chat": "chat",
    "completions": "completions",
    "message": "messages",
    "part": "parts of a message",
    "stream_options": "`stream_options`",
    "named_schema": "`json_schema`",
    "structured_outputs": "`structured_outputs`",
    "function": "a tool's function",
    "tool": "`tools`",
    "tool_choice": "`tool_choice`",
    "allowed_choice": "`tool_choice`",
    "named_function": "a function that is chosen",
    "tool_call": "`tool_calls`",
    "called_function": "the function of a call",
    "denoise": "denoise",
    "score": "score",
    "responses": "responses",
    "responses_text": "`text` of responses",
    "responses_format": "`text.format`",
    "responses_tool": "`tools` of responses",
    "responses_choice": "`tool_choice` of responses",
    "responses_allowed": "`tool_choice` of responses",
    "item": "items of `input`",
    "item_part": "parts of an item",
}
NEUTRAL_TITLE = "Fields that change nothing"
NEUTRAL_LEAD = (
    "Clients send these beside what they ask for. Where any value is accepted, the last column "
    "says why the field is passed over. The others are accepted at the values at which they change "
    "nothing, and refused by name at any other: the last column says what to do instead. A field "
    "that is in no table is refused by name."
)


@dataclass(frozen=True)
class Table:
    """Rows below a heading; texts are Markdown, of which only backticks are used."""

    title: str
    lead: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@cache
def tables() -> Sequence[Table]:
    """The fields of every kind of request, and those that change nothing.

    Raises:
        ValueError: a field says nowhere what it does.
    """
    head = ("field", "type", "default", "meaning")
    fields = [Table(title, "", head, _rows(model)) for title, model in REQUESTS.items()]
    neutral = [
        (
            f"`{field.name}`",
            field.api,
            ", ".join(PLACES[kind] for kind in field.kinds),
            "any value"
            if field.does == "ignored"
            else " or ".join(f"`{json.dumps(value)}`" for value in (None, *field.neutral)),
            field.meaning,
        )
        for field in FIELDS
        if field.does in ("ignored", "neutral")
    ]
    last = ("field", "whose", "where", "accepted", "why, or what instead")
    return [*fields, Table(NEUTRAL_TITLE, NEUTRAL_LEAD, last, neutral)]


def _rows(model: type[BaseModel]) -> Sequence[tuple[str, ...]]:
    schema = model.model_json_schema()
    rows = []
    for own, declared in model.model_fields.items():
        name = declared.alias or own
        field = schema["properties"][name]
        if not field.get("description"):
            raise ValueError(f"the field {name} of {model.__name__} has no description")
        default = "required" if name in schema.get("required", ()) else "-"
        if field.get("default") not in (None, []):
            default = f"`{json.dumps(field['default'])}`"
        rows.append((f"`{name}`", _type(field), default, field["description"]))
    return rows


def _type(schema: Mapping[str, Any]) -> str:
    """A type with its limits as JSON's users say it: integer, 1 to 64."""
    if members := schema.get("anyOf") or schema.get("oneOf"):
        names = [_type(one) for one in members if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        own = {"Message": "message", "TextPart": "part", "SoftMaskChanges": "parameters"}
        own |= {"Item": "item", "ItemPart": "part", "Tool": "tool", "ResponsesTool": "tool"}
        return own.get(name, "object")
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema["type"] == "array":
        return f"list of {_type(schema['items']).partition(',')[0]}"
    limits = [
        f"{word} {schema[key]}"
        for key, word in {
            "minimum": "at least",
            "exclusiveMinimum": "above",
            "maximum": "at most",
            "exclusiveMaximum": "below",
        }.items()
        if key in schema
    ]
    return ", ".join([schema["type"], *limits])


# The page.

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#e0dcd2, #34363b); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.5rem 4rem; overflow-wrap: break-word;
  background: light-dark(#fcfbf8, #17181b); color: light-dark(#1c1c1e, #e8e6e1);
  font: 15px/1.5 "Inter", "Helvetica Neue", "Segoe UI", system-ui, sans-serif; }
a { color: inherit; }
h1 { font-size: 1.25rem; }
h2 { margin-top: 2.5rem; font-size: 1.1rem; scroll-margin-top: 1rem; }
code, pre { font: 0.9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { padding: 0.75rem 1rem; overflow-x: auto; background: light-dark(#ffffff, #1f2024);
  border: 1px solid var(--line); border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
td:first-child { white-space: nowrap; }
p { max-width: 48rem; }
"""


def page(name: str, address: str, *, chat: bool, keyed: bool) -> str:
    """The page at /docs of a server of this model.

    Args:
        name: the model's, for clients.
        address: of the server, as the reader calls it.
        chat: whether it answers conversations.
        keyed: whether it wants an API key.
    """
    ask: dict[str, Any] = {"model": name, "prompt": "One day, Tom", "max_tokens": 24}
    path = "completions"
    if chat:
        path, ask = "chat/completions", {"model": name, "max_tokens": 64}
        ask["messages"] = [{"role": "user", "content": "Hello"}]
    headers = ["Content-Type: application/json", *["Authorization: Bearer KEY"][: int(keyed)]]
    example = " \\\n    ".join(
        (
            f"curl -s {address}/v1/{path}",
            *(f"-H '{header}'" for header in headers),
            f"-d '{json.dumps(ask)}'",
        )
    )
    shown = tables()
    links = ", ".join(f'<a href="#{_anchor(t.title)}">{_inline(t.title)}</a>' for t in shown)
    routes = Table("Routes", "", ("route", "what it answers"), _as_rows(ROUTES))
    lead = (
        f"The model {name}, by OpenAI's interface. Settings for which OpenAI has no field stand "
        "under the key `softmask`. Answers say under the same key what they took."
    )
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>softmask: HTTP reference</title><style>{STYLE}</style></head>\n<body>",
            f"<h1>softmask: HTTP reference</h1>\n<p>{_inline(lead)} ",
            'Back to <a href="/">the page</a>; <a href="/openapi.json">the schema</a>.</p>\n',
            f"<pre>{html.escape(example)}</pre>\n<p>Fields: {links}</p>\n",
            *(_section(table) for table in (routes, *shown)),
            "</body></html>\n",
        )
    )


def _as_rows(pairs: Mapping[str, str]) -> Sequence[tuple[str, ...]]:
    return [(f"`{name}`", meaning) for name, meaning in pairs.items()]


def _section(table: Table) -> str:
    lead = f"<p>{_inline(table.lead)}</p>\n" if table.lead else ""
    lines = [_row(table.head, "th"), *(_row(row, "td") for row in table.rows)]
    title = f'<h2 id="{_anchor(table.title)}">{_inline(table.title)}</h2>\n'
    body = "\n".join(lines)
    return f'{title}{lead}<div class="scroll" tabindex="0"><table>\n{body}\n</table></div>\n'


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_inline(cell)}</{tag}>' for cell in cells)}</tr>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
