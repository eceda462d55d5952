"""A recorded run as one animated picture (SVG), for a README or a slide.

Every position is a cell of fixed width: what it was given stands in grey, the leading candidate
of a mask is a ghost as strong as its share of the next input (lambda times weight, never quite
invisible), and what is committed is solid. Where animations do not run the last step is shown.
Several runs of a trace stand side by side. A Sudoku is drawn as a grid (`svg_grid.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any
from xml.sax import saxutils

from ..puzzles.grid import Grid
from ..reporting.words import count
from ..serving.trace import steady
from . import svg_grid

CELL, LINE, SIZE = 9.6, 24, 16  # width of a character, height of a line and of the type, pixels
SMALL = 7.8  # width of a character of a caption
MARGIN, GAP, COLUMNS = 20, 48, 56  # around everything, between runs, characters of a line
FAINT = 0.55  # opacity of a ghost without feedback: it can be read
HOLD = 3  # steps for which the last one stays

# XML 1.0 has no way to write these.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

STYLE = """
text { font: 16px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #1b1f24 }
.given { fill: #6e7781 } .ghost { fill: #0969da } .caption { font-size: 13px; fill: #6e7781 }
.paper { fill: #ffffff } .wrong { fill: #cf222e; font-weight: bold } .shade { fill: #d4a72c }
.parted { fill: none; stroke: #8250df; stroke-width: 2 }
.cells { fill: none; stroke: #d0d7de } .boxes { fill: none; stroke: #6e7781; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .given, .caption { fill: #8d96a0 } .ghost { fill: #58a6ff }
  .paper { fill: #0d1117 } .wrong { fill: #ff7b72 } .shade { fill: #9e6a03 }
  .parted { stroke: #bc8cff } .cells { stroke: #30363d } .boxes { stroke: #8d96a0 }
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
    runs = [steady(run) for run in trace["runs"]]
    steps = max(len(run["steps"]) for run in runs)
    total = (steps + HOLD) * seconds
    parts, left, height = [], float(MARGIN), 0.0
    for run in runs:
        grid = svg_grid.grid_of(run)
        if grid is None:
            drawn, width, tall = _draw(run, left, steps, total, seconds)
        else:
            parted = svg_grid.parted(grid, runs)
            drawn, width, tall = _draw_grid(run, grid, parted, left, steps, total, seconds)
        parts += drawn
        left += width + GAP
        height = max(height, tall)
    if svg_grid.grid_of(runs[0]) is not None:
        lines = list(_legend(runs, height + LINE, left - GAP - MARGIN))
        parts += lines
        height += LINE + 18 * max(1, len(lines) - 1)
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


def _draw_grid(
    run: dict[str, Any],
    grid: Grid,
    parted: dict[int, int],
    left: float,
    steps: int,
    total: float,
    seconds: float,
) -> tuple[list[str], float, float]:
    """The elements of a run on a Sudoku, its width, and where it ends."""
    top = float(MARGIN + 2 * LINE - 12)
    wrong = svg_grid.wrong(grid, run)
    said = f"{count(len(wrong), 'cell')} wrong" if wrong else "solved"
    parts = list(_captions(run, left, total, seconds, f", {said}"))
    parts += svg_grid.shades(grid, run, left, top, seconds, total)
    parts += svg_grid.lines(grid, left, top)
    cells, _ = _cells(run, svg_grid.strongest(run))
    for number, position in enumerate(grid.positions):
        cell = cells[position]
        # In the middle of its square, without the space that a token may begin with.
        cell.looks = [(step, text.strip(), look, o) for step, text, look, o in cell.looks]
        step, text, look, opacity = cell.looks[-1]
        if svg_grid.is_given(grid, number):  # an answer repeats it
            cell.looks = [(0, grid.givens[number], "given", 1.0)]
            look = "given"
        else:
            cell.looks.pop()
        cell.set(step, text, "wrong" if number in wrong else look, opacity)
        x, y = svg_grid.corner(grid, number, left, top)
        x, y = x + (svg_grid.SIDE - CELL) / 2, y + svg_grid.SIDE / 2 + 0.35 * SIZE
        parts += _elements(cell, x, y, steps, total, seconds)
    parts += svg_grid.frames(grid, parted, left, top, seconds, total)
    return parts, svg_grid.width_of(grid), top + svg_grid.width_of(grid)


def _legend(runs: Sequence[dict[str, Any]], y: float, width: float) -> Iterator[str]:
    """What the looks of a grid's cells mean, in lines of this width."""
    most = svg_grid.strongest(runs[0])
    told = [f"blue on a shade: what a masked cell is fed back, lambda 0 to {most:.2f}"]
    if runs[0]["start"]["settings"]["soft_mask"] is None:
        told = ["blue: what a masked cell leans to, not fed back"]
    if len(runs) == 2:
        told.append("frame: the two differ; red: wrong")
    columns = max(20, int(width / SMALL))
    for line, said in enumerate(line for text in told for line in wrap(text, columns)):
        yield f'<text class="caption" x="{MARGIN}" y="{y + 18 * line:.0f}">{said}</text>'


def _cells(run: dict[str, Any], most: float = 1.0) -> tuple[list[_Cell], int]:
    """Every position's looks, and how many positions hold what was answered.

    Args:
        most: the lambda at which a ghost is as strong as what is decided.
    """
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
                share = shares[0] if shares else 0
                fed = (masked["lambda"][i] or 0) / most * (share or 0)
                opacity = FAINT + (1 - FAINT) * fed
                text = _shown(texts.get(str(ids[0]), ""))
                text = (
                    text if text.strip() else "·"
                )  # its leading space parts it from what precedes
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


def _captions(
    run: dict[str, Any], left: float, total: float, seconds: float, verdict: str = ""
) -> Iterator[str]:
    """The run's name, and below it the forward that is being shown, in the end with a verdict."""
    x = f"{left:.1f}"
    yield f'<text x="{x}" y="{MARGIN + 4}">{escape(run["start"]["name"])}</text>'
    steps = run["steps"]
    for number in range(len(steps) + 1):
        is_last = number == len(steps)
        end = None if is_last else number + 1
        forwards = steps[number - 1]["forwards"] if number else 0
        said = f"{count(forwards, 'forward')}{verdict if is_last else ''}"
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
    shares = ";".join(f"{time:.4f}" for time in times)
    return svg_grid.opacities(";".join(values), shares, total)


def escape(text: str) -> str:
    """A text as XML writes it; what it has no way to write becomes U+FFFD."""
    return saxutils.escape(UNWRITABLE.sub("\ufffd", text))


def _shown(text: str) -> str:
    """One line of a token's text."""
    return text.replace("\n", "").replace("\t", "    ").replace("\ufffd", "")
