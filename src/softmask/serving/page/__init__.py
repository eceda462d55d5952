"""The page that shows a run step by step: one self-contained HTML text, live or of a trace.

    page_html(live_data(description))                     what the server sends at /
    page_html({"mode": "trace", "trace": {...}})          a file that opens anywhere

It loads nothing from anywhere: style, scripts and data are part of it. docs/reference/trace.md
describes what it reads.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from ...config import (
    FEEDBACK_HELP,
    FEEDBACK_MIXTURES,
    FEEDBACK_PRESETS,
    FEEDBACK_WEIGHTS,
    SOFT_MASK_SCHEDULES,
    SoftMaskConfig,
)
from ...rules import names
from ...sampling import CACHES, COMMIT_SOURCES, SamplingConfig
from ...shipped_rules import UNMASK_RULES

# In this order: a file uses what those before it define.
SCRIPTS = (
    "format.js",
    "run.js",
    "stream.js",
    "palette.js",
    "sudoku.js",
    "countdown.js",
    "difference.js",
    "canvas.js",
    "strip.js",
    "popover.js",
    "panel.js",
    "timeline.js",
    "picture.js",
    "gestures.js",
    "view.js",
    "settings.js",
    "refill.js",
    "texts.js",
    "draft.js",
    "message.js",
    "conversation.js",
    "main.js",
)
STYLES = ("style.css", "run.css", "conversation.css")
ELEMENTS = ("style", "script")
STYLE, SCRIPT = (f"<{name}></{name}>" for name in ELEMENTS)
DATA = '<script type="application/json" id="softmask-data"></script>'
SOFT = ("feedback", "k", "scale", "mixture", "weight", "offset", "steepness", "schedule")
# The settings that the form has, by group, under the names of a request.
GROUPS = {
    "Canvas": ("max_tokens", "softmask.steps", "softmask.block_length", "softmask.cache"),
    "Trust": (
        *("softmask.entropy_threshold", "softmask.next_block_at", "softmask.agreement"),
        *("softmask.commit_from", "softmask.score_temperature"),
    ),
    "Choice of tokens": ("softmask.alg", "softmask.threshold", "temperature", "top_p", "seed"),
    "Soft-masking": tuple(f"softmask.soft_mask.{name}" for name in SOFT),
}
CHOICES = {
    "cache": CACHES,
    "alg": UNMASK_RULES,
    "schedule": SOFT_MASK_SCHEDULES,
    "mixture": FEEDBACK_MIXTURES,
    "weight": FEEDBACK_WEIGHTS,
    "feedback": tuple(FEEDBACK_PRESETS),
    "commit_from": COMMIT_SOURCES,
}
# What is no setting of decoding: kind and sentence, those of `softmask generate`.
OTHERS = {
    "max_tokens": ("int", "masks to fill"),
    "seed": ("int", "of the random choices (default: a new one)"),
    "softmask.soft_mask.feedback": ("str", FEEDBACK_HELP),
}


def page_html(data: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        data: `live_data(...)`, or {"mode": "trace", "trace"}.
    """
    # No text in it can end the element, or begin a comment in it.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return _frame().replace(DATA, DATA.replace("><", f">{text}<"))


def live_data(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the page of a server knows: its model, the settings, examples, and a recorded run.

    Args:
        description: of the model, as `Service.description` has it, with its name.
    """
    return {
        "mode": "live",
        "model": dict(description),
        "settings": settings(),
        "feedback": {
            name: dataclasses.asdict(preset)
            for name, preset in FEEDBACK_PRESETS.items()
            if isinstance(preset, SoftMaskConfig)
        },
        "examples": examples() if description["bundled"] else [],
        "opening": json.loads(_read("opening.json")),
    }


def examples() -> list[dict[str, Any]]:
    """What the bundled model can do: texts, settings for them, and a sentence on what to see."""
    return json.loads(_read("examples.json"))


def settings() -> list[dict[str, Any]]:
    """The settings of the form, group by group, each with the sentence that explains it.

    A sentence is the command line's own, and so are the values that can be chosen.
    """
    return [
        {"name": group, "fields": [_field(name) for name in own]} for group, own in GROUPS.items()
    ]


def _field(path: str) -> dict[str, Any]:
    name = path.rsplit(".", 1)[-1]
    if path in OTHERS:
        kind, sentence = OTHERS[path]
        return {"name": path, "kind": kind, "help": sentence, **_choices(name)}
    config = SoftMaskConfig if ".soft_mask." in path else SamplingConfig
    (found,) = (field for field in dataclasses.fields(config) if field.name == name)
    annotation = typing.get_type_hints(config)[name]
    kinds = [kind.__name__ for kind in typing.get_args(annotation) or (annotation,)]
    field: dict[str, Any] = {"name": path, "kind": kinds[0], "help": found.metadata["help"]}
    if name in CHOICES:
        # The values stand in the list beside the sentence.
        sentence = field["help"].replace(": " + ", ".join(CHOICES[name]), "")
        field |= {"help": sentence, **_choices(name)}
    return field


def _choices(name: str) -> dict[str, list[str]]:
    if name not in CHOICES:
        return {}
    # Rules that were registered can be chosen too.
    return {"choices": names("commit") if name == "alg" else list(CHOICES[name])}


def page_csp(html: str) -> str:
    """The Content-Security-Policy under which a page works: its own style and script alone."""
    elements = (re.search(f"<{name}>(.*?)</{name}>", html, re.DOTALL) for name in ELEMENTS)
    hashes = zip(ELEMENTS, elements, strict=True)
    return "; ".join(
        (
            "default-src 'none'",
            *(f"{name}-src {_hash(element[1])}" for name, element in hashes if element),
            "connect-src 'self'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@lru_cache(maxsize=1)
def _frame() -> str:
    """The page without its data."""
    style, script = ("\n".join(_read(name) for name in names) for names in (STYLES, SCRIPTS))
    html = _read("index.html")
    assert all(html.count(place) == 1 for place in (STYLE, SCRIPT, DATA))
    html = html.replace(STYLE, f"<style>\n{style}</style>")
    return html.replace(SCRIPT, f"<script>\n{script}</script>")


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
