"""A hook of the site: writes the reference off the code, and follows links out of docs/.

The command line comes from the parsers, settings from the dataclasses, HTTP fields from the request
models. Python's page names what is public; mkdocstrings reads it off the docstrings.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import typing
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
    "Settings of decoding": ["softmask.config.SamplingConfig", "softmask.config.SoftMaskConfig"],
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

    os.environ["COLUMNS"] = "96"
    lines = [
        "# Command line",
        "",
        "Every command and its options, as `softmask COMMAND --help` prints them.",
        "",
        "| command | what it does |",
        "|---|---|",
        *(f"| `softmask {name}` | {help} |" for name, help in COMMANDS.items()),
        "",
    ]
    words = [[name] for name in COMMANDS if name != "lm_eval"]
    words += [[name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs]
    for command in sorted(words, key=lambda w: (list(COMMANDS).index(w[0]), len(w))):
        parser = find_command(command)[0].make_parser()
        lines += [f"## softmask {' '.join(command)}", "", "```text", parser.format_help(), "```"]
        hidden = [
            option
            for action in parser._actions
            if action.help == argparse.SUPPRESS and action.dest != "only"
            for option in action.option_strings
        ]
        if hidden:
            names = ", ".join(f"`{option}`" for option in hidden)
            lines += ["", f"Published and older names are accepted too: {names}."]
        lines.append("")
    return "\n".join(lines)


def settings() -> str:
    """A table for each class of settings."""
    from softmask import config
    from softmask.evaluation import config as evaluation
    from softmask.serving import config as serving
    from softmask.training import config as training

    sections = {
        "Decoding and soft-masking": config,
        "Training": training,
        "Evaluation": evaluation,
        "Serving": serving,
    }
    lines = [
        "# Settings",
        "",
        "Every setting with its type, its default and what it means, read off the dataclasses that",
        "parse it. A key that is unknown or a value of another type is an error that names the",
        "nearest key.",
    ]
    for title, module in sections.items():
        lines += ["", f"## {title}"]
        for cls in vars(module).values():
            if not isinstance(cls, type) or cls.__module__ != module.__name__:
                continue
            if not dataclasses.is_dataclass(cls) or not _explained(cls):
                continue
            summary = (cls.__doc__ or "").split("\n\n")[0].strip()
            lines += ["", f"### {cls.__name__}", "", " ".join(summary.split()), ""]
            lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
            hints = typing.get_type_hints(cls)
            for field in dataclasses.fields(cls):
                default = field.default
                if default is dataclasses.MISSING and callable(field.default_factory):
                    default = field.default_factory()
                meaning = field.metadata.get("help", "")
                cells = (f"`{field.name}`", _name(hints[field.name]), _value(default), meaning)
                lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join([*lines, ""])


def http() -> str:
    """The fields of requests."""
    from softmask.serving import protocol

    requests = {
        "POST /v1/chat/completions": protocol.ChatRequest,
        "POST /v1/completions": protocol.CompletionRequest,
        "POST /v1/denoise": protocol.DenoiseRequest,
        "The key `softmask` of every request": protocol.Extension,
    }
    lines = [
        "# HTTP",
        "",
        "The fields of every request that `softmask serve` answers, read off the models that check",
        "them. A field that is not here is refused by name. [Serve](../guides/serve.md) shows",
        "requests and answers; `/openapi.json` of a running server describes both for programs.",
        "",
        "| route | what it answers |",
        "|---|---|",
        "| `GET /` | the page that shows the denoising |",
        "| `GET /v1/models`, `GET /v1/models/NAME` | the model that is served |",
        "| `POST /v1/chat/completions` | OpenAI's chat completions, whole or streamed |",
        "| `POST /v1/completions` | OpenAI's completions; with `suffix` the text between |",
        "| `POST /v1/denoise` | every step of one text ([trace](trace.md)) |",
        "| `GET /health`, `GET /metrics` | whether requests are taken; Prometheus |",
    ]
    for title, model in requests.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| field | type | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _value(_default(field))
            meaning = field.description or ", ".join(map(str, field.metadata))
            cells = (f"`{name}`", _name(field.annotation), default, meaning)
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
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
    for title, names in PUBLIC.items():
        lines += ["", f"## {title}", "", *(f"::: {name}\n" for name in names)]
    return "\n".join([*lines, ""])


def _explained(cls: type) -> bool:
    return any("help" in field.metadata for field in dataclasses.fields(cls))


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not None else field.default


def _name(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"\b(?:softmask|typing|collections)(?:\.\w+)*\.(?=\w)", "", text)
    text = re.sub(r"Annotated\[(\w+(?:\[\w+\])?), .*\]", r"\1", text)
    return f"`{text}`" if len(text) < 60 else "see meaning"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if dataclasses.is_dataclass(value) or hasattr(type(value), "model_fields"):
        return "its own"
    return f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
