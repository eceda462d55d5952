"""A hook of the site: writes the reference off the code, and follows links out of docs/.

The command line comes from the parsers, settings from the dataclasses, HTTP fields from the request
models. Python's page names what is public; mkdocstrings reads it off the docstrings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")
# What `import softmask` offers and what a program builds on, by the heading of its section.
PUBLIC = {
    "Load and generate": [
        "softmask.hub.load.load",
        "softmask.decoding.generation.generate",
        "softmask.decoding.generation.Generation",
        "softmask.decoding.generation.Completion",
        "softmask.models.checkpoint.Checkpoint",
    ],
    "Score and edit given texts": [
        "softmask.decoding.score.score",
        "softmask.decoding.likelihood.Estimate",
        "softmask.serving.edits.edit",
        "softmask.serving.edits.Edit",
        "softmask.serving.edits.Draft",
    ],
    "Settings of decoding": [
        "softmask.config.SamplingConfig",
        "softmask.config.SoftMaskConfig",
        "softmask.config.PromptKind",
    ],
    "Rules of your own": [
        "softmask.rules.commit_rule",
        "softmask.rules.feedback_rule",
        "softmask.rules.stopping_rule",
        "softmask.rule_inputs.MaskedRows",
        "softmask.rule_inputs.TextSoFar",
    ],
    "A run as arrays": ["softmask.tracing.trace", "softmask.tracing.Trace"],
    "The loop": ["softmask.decoding.sampler.denoise", "softmask.decoding.sampler.DenoiseStep"],
    "The model": [
        "softmask.models.modeling_dream.DreamModel",
        "softmask.decoding.diffusion_generate.diffusion_generate",
        "softmask.soft_mask.SoftMask",
    ],
    "Requests on an engine": [
        "softmask.serving.engine.Engine",
        "softmask.serving.request.Request",
        "softmask.serving.request.RequestHandle",
        "softmask.serving.request.Event",
        "softmask.serving.request.Result",
        "softmask.serving.scoring.ScoreRequest",
        "softmask.serving.scoring.ScoreResult",
    ],
    "Train and share": [
        "softmask.training.run.train",
        "softmask.hub.export.export",
        "softmask.hub.push.push",
    ],
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and pictures that lie beside docs/."""
    pages = {
        "reference/command-line.md": command_line(),
        "reference/settings.md": settings(),
        "reference/http.md": http(),
        "reference/python.md": python(),
    }
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for picture, _, up, target, _ in LINK.findall(path.read_text(encoding="utf-8")):
            place = (path.parent / up / target).resolve()
            outside = not place.is_relative_to(ROOT / "docs")
            uri = place.relative_to(ROOT).as_posix()
            if picture and outside and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ name the file: the site has pages and their pictures alone."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def follow(match: re.Match[str]) -> str:
        picture, text, up, target, _ = match.groups()
        place = (folder / up / target).resolve()
        if place.is_relative_to(ROOT / "docs"):
            return match[0]
        if not place.exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
        uri = place.relative_to(ROOT).as_posix()
        if picture:
            depth = page.file.src_uri.count("/")
            return f"![{text}]({'../' * depth}{uri})"
        return f"{text} (`{uri}`)"

    return LINK.sub(follow, markdown)


def command_line() -> str:
    """Every command with its help, and the words that it accepts beside those."""
    from softmask.cli.main import COMMANDS, SUBCOMMANDS, find_command

    lines = [
        "# Command line",
        "",
        "Every command and its options, read off the parsers; `softmask COMMAND --help-all` prints",
        "the same, and `--help` what is used most. [Get started](../get-started.md) and the guides",
        "show them in use.",
        "",
        *table("command", "what it does")(
            (f"[softmask {name}](#softmask-{name})", help) for name, help in COMMANDS.items()
        ),
        "",
    ]
    for name in COMMANDS:
        if name == "lm_eval":
            lines += ["## softmask lm_eval", "", "The options are the harness' own.", ""]
            continue
        for words in ([name], *([name, sub] for sub in SUBCOMMANDS.get(name, ()))):
            parser = find_command(words)[0].make_parser()
            lines += [f"## softmask {' '.join(words)}", "", parser.description or "", ""]
            lines += options(parser)
    return "\n".join(lines)


def options(parser: argparse.ArgumentParser) -> list[str]:
    """A table for each group of a command's options, and the names that help leaves out."""
    formatter = parser._get_formatter()
    lines, hidden = [], []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS:
                hidden += [f"`{name}`" for name in action.option_strings if action.dest != "only"]
            elif action.dest != "help":
                names = ", ".join(f"`{name}`" for name in action.option_strings)
                needed = " (required)" if action.required and action.option_strings else ""
                meaning = formatter._expand_help(action) if action.help else ""
                if action.choices is not None and action.dest not in meaning:
                    meaning += f" ({', '.join(map(str, action.choices))})"
                name = names or f"`{action.metavar or action.dest.upper()}`"
                rows.append((name + needed, meaning.strip()))
        if rows:
            title = {"positional arguments": "argument", "options": "option"}.get(group.title)
            lines += table(title or group.title, "meaning")(rows)
            lines.append("")
    if hidden:
        lines += [f"Published and older names are accepted too: {', '.join(hidden)}.", ""]
    return lines


def settings() -> str:
    """A table for each class of settings."""
    from softmask import config
    from softmask.evaluation import config as evaluation
    from softmask.evaluation import held_out
    from softmask.serving import config as serving
    from softmask.training import config as training

    sections = {
        "Decoding and soft-masking": [config],
        "Training": [training],
        "Evaluation": [evaluation, held_out],
        "Serving": [serving],
    }
    lines = [
        "# Settings",
        "",
        "Every setting with its type, its default and what it means, read off the dataclasses that",
        "parse it. A key that is unknown or a value of another type is an error that names the",
        "nearest key.",
    ]
    for title, modules in sections.items():
        lines += ["", f"## {title}"]
        for cls in [value for module in modules for value in vars(module).values()]:
            if not isinstance(cls, type) or cls.__module__ not in {m.__name__ for m in modules}:
                continue
            if not dataclasses.is_dataclass(cls) or not _explained(cls):
                continue
            lines += ["", f"### {cls.__name__}", "", _summary(cls), ""]
            rows, hints = [], typing.get_type_hints(cls)
            for field in dataclasses.fields(cls):
                default = field.default
                if default is dataclasses.MISSING and callable(field.default_factory):
                    default = field.default_factory()
                meaning = field.metadata.get("help") or _summary(hints[field.name])
                name = f"`{field.name}`"
                if cls is evaluation.ModelArgs and field.name in evaluation.OWN_NAMES:
                    name = f"`{evaluation.OWN_NAMES[field.name]}`, {name}"
                rows.append((name, _name(hints[field.name]), _value(default), meaning))
            lines += table("setting", "type", "default", "meaning")(rows)
    return "\n".join([*lines, "", *rules_of_decoding(), ""])


def rules_of_decoding() -> list[str]:
    """The registered rules, kind by kind."""
    from softmask.rules import SETTINGS, every

    rows = [
        (f"`{rule.name}`", f"`{rule.name}`" if rule.is_setting else SETTINGS[rule.kind], rule.help)
        for rule in every()
    ]
    lead = (
        "Named by `alg`, soft-mask `mode` and `stop_rule`; [your own](../guides/research.md) too."
    )
    return ["## Rules of decoding", "", lead, "", *table("rule", "setting", "what it does")(rows)]


def http() -> str:
    """The fields of requests."""
    from softmask.serving import edit_body, messages, protocol, scores
    from softmask.serving.fields import FIELDS

    requests: dict[str, Any] = {
        "POST /v1/chat/completions": protocol.ChatRequest,
        "A message": messages.Message,
        "POST /v1/completions": protocol.CompletionRequest,
        "The key `stream_options`": protocol.StreamOptions,
        "POST /v1/denoise": protocol.DenoiseRequest,
        "POST /v1/edits": edit_body.EditBody,
        "The key `softmask` of every request": protocol.Extension,
        "POST /v1/score": scores.ScoreBody,
        "The key `softmask` of `/v1/score`": scores.ScoreExtension,
    }
    lines = [
        "# HTTP",
        "",
        "The fields of every request that `softmask serve` answers, read off the models that check",
        "them, and what becomes of the fields that other servers have. A field that is not here is",
        "refused by name. [Serve](../guides/serve.md) shows requests and answers; `/docs` and",
        "`/openapi.json` of a running server describe both, for people and for programs.",
        "",
        "| route | what it answers |",
        "|---|---|",
        "| `GET /` | the page that shows the denoising |",
        "| `GET /v1/models`, `GET /v1/models/NAME` | the model that is served |",
        "| `POST /v1/chat/completions` | OpenAI's chat completions, whole or streamed |",
        "| `POST /v1/completions` | OpenAI's completions; with `suffix` the text between |",
        "| `POST /v1/score` | log-probabilities of given continuations |",
        "| `POST /v1/edits` | a stretch of a text written anew |",
        "| `POST /v1/denoise` | every step of one text ([trace](trace.md)) |",
        "| `GET /health`, `GET /metrics` | whether requests are taken; Prometheus |",
        "| `GET /docs`, `GET /openapi.json` | this reference, and the schema |",
    ]
    for title, model in requests.items():
        schema = model.model_json_schema()
        rows = []
        for name in model.model_fields:
            field = schema["properties"][name]
            meaning = field.get("description")
            if meaning is None:
                raise PluginError(f"the field {name} of {title} has no description")
            default = "required" if name in schema.get("required", ()) else "-"
            if field.get("default") not in (None, []):
                default = _value(field["default"])
            rows.append((f"`{name}`", _json_type(field), default, meaning))
        lines += ["", f"## {title}", "", *table("field", "type", "default", "meaning")(rows)]
    kinds = {
        "chat": "chat",
        "completions": "completions",
        "message": "messages",
        "part": "parts of a message",
        "stream_options": "`stream_options`",
    }
    rows = [
        (
            f"`{field.name}`",
            field.api,
            ", ".join(kinds.get(kind, kind) for kind in field.kinds),
            " or ".join(["null", *map(_value, field.neutral)])
            if field.does == "neutral"
            else "any value",
            field.meaning,
        )
        for field in FIELDS
        if field.does in ("neutral", "ignored")
    ]
    lines += [
        "",
        "## Fields that change nothing",
        "",
        "Clients send these beside what they ask for. Where any value is accepted, the last column",
        "says why the field is passed over. The others are accepted at the value at which they",
        "change nothing, and refused by name at any other: the last column says what instead.",
        "",
        *table("field", "whose", "where", "accepted", "why, or what instead")(rows),
    ]
    return "\n".join([*lines, ""])


def python() -> str:
    """What is public, for mkdocstrings."""
    lines = [
        "# Python",
        "",
        "What a program uses. `softmask.load`, `softmask.generate`, `softmask.Generation`,",
        "`softmask.denoise` and the settings are names of the package itself; the others are",
        "imported from where they are shown. Names of tensors end in their axes: `canvas_BL` is",
        "(batch, length).",
    ]
    import softmask

    for title, names in PUBLIC.items():
        lines += ["", f"## {title}", ""]
        for name in names:
            short = name.rpartition(".")[2]
            heading = f"softmask.{short}" if short in softmask.__all__ else name
            lines += [f"::: {name}", "    options:", f"      heading: {heading}", ""]
    return "\n".join([*lines, ""])


def table(*head: str) -> Callable[[Iterable[Sequence[str]]], list[str]]:
    """Makes the lines of a table with these heads of rows."""

    def lines(rows: Iterable[Sequence[str]]) -> list[str]:
        cells = [head, ["---"] * len(head), *rows]
        return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]

    return lines


def _explained(cls: type) -> bool:
    return any("help" in field.metadata for field in dataclasses.fields(cls))


def _summary(cls: Any) -> str:
    """The first paragraph of a class of settings, or of those in a list; else nothing."""
    one = typing.get_args(cls)[0] if typing.get_origin(cls) is tuple else cls
    if not dataclasses.is_dataclass(one):
        return ""
    return " ".join((one.__doc__ or "").split("\n\n")[0].split())


def _name(annotation: Any) -> str:
    """A type as YAML's users say it: `float` or null."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(map(_name, typing.get_args(annotation)))
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) is tuple:
        return f"list of {_name(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        return "mapping"
    name = annotation.__name__
    link = dataclasses.is_dataclass(annotation)
    return f"[{name}](#{name.lower()})" if link else f"`{name}`"


def _json_type(schema: dict[str, Any]) -> str:
    """A type with its limits as JSON's users say it: integer, 1 to 64."""
    if members := schema.get("anyOf") or schema.get("oneOf"):
        names = [_json_type(one) for one in members if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(names))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        objects = ("Extension", "StreamOptions", "ScoreExtension")
        return "object" if name in objects else name
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_json_type(schema['items']).partition(',')[0]}"
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


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if value is dataclasses.MISSING:
        return "required"
    return "its own" if dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"
