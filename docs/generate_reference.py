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
    "The form of an answer": ["softmask.constraints.constraint.Constraint"],
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
    from softmask import config, sampling
    from softmask.evaluation import calibration, held_out
    from softmask.evaluation import config as evaluation
    from softmask.serving import config as serving
    from softmask.training import config as training

    sections = {
        "Decoding and soft-masking": [sampling, config],
        "Training": [training],
        "Evaluation": [evaluation, held_out, calibration],
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
        # Once each: modules import classes of others.
        found = dict.fromkeys(v for m in modules for v in vars(m).values() if isinstance(v, type))
        for cls in found:
            if cls.__module__ not in {m.__name__ for m in modules}:
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
    """The routes, and the fields of requests."""
    from softmask.serving.reference import ROUTES, tables

    lines = [
        "# HTTP",
        "",
        "The fields of every request that `softmask serve` answers, read off the models that check",
        "them, and what becomes of the fields that other servers have. [Serve](../guides/serve.md)",
        "shows requests and answers, [trace](trace.md) the steps of `/v1/denoise`; `/docs` and",
        "`/openapi.json` of a running server describe requests for people and for programs.",
        "",
        *table("route", "what it answers")((f"`{name}`", what) for name, what in ROUTES.items()),
    ]
    for one in tables():
        lead = [one.lead, ""] if one.lead else []
        lines += ["", f"## {one.title}", "", *lead, *table(*one.head)(one.rows)]
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


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if value is dataclasses.MISSING:
        return "required"
    return "its own" if dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"
