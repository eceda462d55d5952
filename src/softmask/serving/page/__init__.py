"""The page that shows a run step by step: one self-contained HTML text, live or of a trace.

    page_html({"mode": "live", "model": {...}, "examples": [...]})     what the server sends at /
    page_html({"mode": "trace", "trace": {...}})                       a file that opens anywhere

It loads nothing from anywhere: style, scripts and data are part of it. docs/reference/trace.md
describes what it reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache
from importlib import resources
from typing import Any

# In this order: a file uses what those before it define.
SCRIPTS = (
    "format.js",
    "run.js",
    "stream.js",
    "palette.js",
    "canvas.js",
    "strip.js",
    "popover.js",
    "sudoku.js",
    "countdown.js",
    "difference.js",
    "panel.js",
    "timeline.js",
    "controls.js",
    "picture.js",
    "gestures.js",
    "main.js",
)
STYLE, SCRIPT = "<style></style>", "<script></script>"
DATA = '<script type="application/json" id="softmask-data"></script>'


def page_html(data: dict[str, Any]) -> str:
    """The whole page.

    Args:
        data: {"mode": "live", "model", "examples"} or {"mode": "trace", "trace"}.
    """
    # No text in it can end the element, or begin a comment in it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return _frame().replace(DATA, DATA.replace("><", f">{text}<"))


def examples() -> list[dict[str, Any]]:
    """What the bundled model can do: texts, and settings for them."""
    return json.loads(_read("examples.json"))


def page_csp(html: str) -> str:
    """The Content-Security-Policy under which the page works: its own style and script alone."""
    style, script = (
        _hash(re.search(f"<{name}>(.*?)</{name}>", html, re.DOTALL)) for name in ("style", "script")
    )
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {style}",
            f"script-src {script}",
            "connect-src 'self'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hash(element: re.Match[str] | None) -> str:
    assert element is not None
    digest = hashlib.sha256(element[1].encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@lru_cache(maxsize=1)
def _frame() -> str:
    """The page without its data."""
    script = "\n".join(_read(name) for name in SCRIPTS)
    html = _read("index.html")
    assert all(html.count(place) == 1 for place in (STYLE, SCRIPT, DATA))
    html = html.replace(STYLE, f"<style>\n{_read('style.css')}</style>")
    return html.replace(SCRIPT, f"<script>\n{script}</script>")


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
