"""A recorded run as one animated picture (SVG), for a README or a slide.

Every position is a cell of fixed width: what it was given stands in grey, the leading candidate
of a mask is a ghost as strong as its share of the next input (lambda times weight, never quite
invisible), and what is committed is solid. Where animations do not run the last step is shown.
Several runs of a trace stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

CELL, LINE, SIZE = 9.6, 24, 16  # width of a character, height of a line and of the type, pixels
MARGIN, GAP, COLUMNS = 20, 48, 56  # around everything, between runs, characters of a line
FAINT = 0.16  # opacity of a ghost without feedback
HOLD = 3  # steps for which the last one stays

STYLE = """
text { font: 16px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #1b1f24 }
.given { fill: #6e7781 } .ghost { fill: #0969da } .caption { font-size: 13px; fill: #6e7781 }
.paper { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .given, .caption { fill: #8d96a0 } .ghost { fill: #58a6ff }
  .paper { fill: #0d1117 }
}"""


@dataclass
class _Cell:
    """A position: its text and look from a step on."""

    looks: list[tuple[int, str, str, float]] = field(default_factory=list)  # step, text, class

    def set(self, step: int, text: str, look: str, opacity: float) -> None:
        if not self.looks or self.looks[-1][1:] != (text, look, opacity):
            self.looks.append((step, text, look, opacity))

    @property
    def width(self) -> int:
        """In characters, for everything that ever stands here."""
        return max(1, *(len(_shown(text)) for _, text, _, _ in self.looks))


def picture(trace: dict[str, Any], seconds: float = 0.7) -> str:
    """The SVG of a trace's runs.

    Args:
        trace: what `trace.check_trace` lets through.
        seconds: of a step.
    """
    runs = trace["runs"]
    steps = max(len(run["steps"]) for run in runs)
    total = (steps + HOLD) * seconds
    parts, left, height = [], float(MARGIN), 0.0
    for run in runs:
        drawn, width, tall = _draw(run, left, steps, total, seconds)
        parts += drawn
        left += width + GAP
        height = max(height, tall)
    width, height = round(left - GAP + MARGIN), round(height + MARGIN)
    title = escape(runs[0]["end"]["text"].strip())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n<title>{title}</title>\n'
        f'<style>{STYLE}</style>\n<rect class="paper" width="100%" height="100%"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _draw(
    run: dict[str, Any], left: float, steps: int, total: float, seconds: float
) -> tuple[list[str], float, float]:
    """The elements of a run, its width, and where it ends."""
    cells, kept = _cells(run)
    parts = list(_captions(run, left, total, seconds))
    x, y, widest = 0.0, float(MARGIN + 2 * LINE), 26 * CELL
    for cell in cells[:kept]:
        breaks = cell.looks[-1][1].count("\n")
        if x and x + cell.width * CELL > COLUMNS * CELL:
            x, y = 0.0, y + LINE
        parts += _elements(cell, left + x, y, steps, total, seconds)
        x += cell.width * CELL
        widest = max(widest, x)
        if breaks:
            x, y = 0.0, y + breaks * LINE
    return parts, widest, y + (0 if x == 0 else LINE / 2)


def _cells(run: dict[str, Any]) -> tuple[list[_Cell], int]:
    """Every position's looks, and how many positions hold what was answered."""
    cells, texts = [], {}
    for token in run["start"]["tokens"]:
        cells.append(_Cell())
        if not token["masked"]:
            cells[-1].set(0, token["text"], "given", 1.0)
    written = 0
    for number, step in enumerate(run["steps"], start=1):
        texts.update(step["texts"])
        masked = step["masked"]
        for i, position in enumerate(masked["position"]):
            ids, shares = masked["candidates"][i], masked["w"][i]
            if ids:
                opacity = max(FAINT, (masked["lambda"][i] or 0) * (shares[0] if shares else 0))
                text = _shown(texts.get(str(ids[0]), "")).strip(" ") or "·"
                cells[position].set(number, text, "ghost", round(opacity, 2))
        for position, token in zip(
            step["committed"]["position"], step["committed"]["id"], strict=True
        ):
            cells[position].set(number, texts.get(str(token), ""), "", 1.0)
    pieces = run["end"]["pieces"]
    for position, piece in enumerate(pieces):
        if cells[position].looks and run["start"]["tokens"][position]["masked"]:
            step, _, look, opacity = cells[position].looks.pop()
            cells[position].set(step, piece, look, opacity)
        if piece:
            written = position + 1
    for cell in cells:
        if not cell.looks:
            cell.set(0, "", "", 1.0)
    return cells, max(written, 1)


def _elements(
    cell: _Cell, x: float, y: float, steps: int, total: float, seconds: float
) -> Iterator[str]:
    """One text for every look; each is visible while it holds."""
    ends = [step for step, *_ in cell.looks[1:]] + [None]
    if cell.looks[0][0] > 0:
        first = _animation(0, cell.looks[0][0], 1.0, total, seconds)
        yield f'<text class="given" opacity="0" x="{x:.1f}" y="{y:.0f}">·{first}</text>'
    for (step, text, look, opacity), end in zip(cell.looks, ends, strict=True):
        shown = escape(_shown(text))
        if not shown.strip():
            continue
        is_last = end is None
        moving = ""
        if step > 0 or not is_last:
            moving = _animation(step, end, opacity, total, seconds)
        rest = opacity if is_last else 0
        named = f' class="{look}"' if look else ""
        yield f'<text{named} opacity="{rest:g}" x="{x:.1f}" y="{y:.0f}">{shown}{moving}</text>'


def _captions(run: dict[str, Any], left: float, total: float, seconds: float) -> Iterator[str]:
    """The run's name, and below it the forward that is being shown."""
    x = f"{left:.1f}"
    yield f'<text x="{x}" y="{MARGIN + 4}">{escape(run["start"]["name"])}</text>'
    steps = run["steps"]
    for number in range(len(steps) + 1):
        is_last = number == len(steps)
        end = None if is_last else number + 1
        forwards = steps[number - 1]["forwards"] if number else 0
        said = f"{forwards} forward{'' if forwards == 1 else 's'}"
        moving = _animation(number, end, 1.0, total, seconds)
        yield (
            f'<text class="caption" opacity="{int(is_last)}" x="{x}" y="{MARGIN + 22}">'
            f"{said}{moving}</text>"
        )


def _animation(begin: int, end: int | None, opacity: float, total: float, seconds: float) -> str:
    """Visible from one step to another one, again and again; `end` None: up to the end."""
    times, values = [0.0], ["0"]
    start = begin * seconds / total
    if start == 0:
        values = [f"{opacity:g}"]
    else:
        times.append(start)
        values.append(f"{opacity:g}")
    if end is not None:
        times.append(end * seconds / total)
        values.append("0")
    if len(times) == 1:
        return ""
    return (
        f'<animate attributeName="opacity" calcMode="discrete" dur="{total:g}s" '
        f'repeatCount="indefinite" values="{";".join(values)}" '
        f'keyTimes="{";".join(f"{time:.4f}" for time in times)}"/>'
    )


def _shown(text: str) -> str:
    """One line of a token's text."""
    return text.replace("\n", "").replace("\t", "    ").replace("\ufffd", "")
