"""The live view: a canvas being denoised in a terminal.

Decided text stands as it is, what was just decided in green, masks are shaded by lambda (grey:
nothing fed back yet; amber: fed back at full weight) and show their leading candidate as ghost.
A Sudoku is drawn as a grid (`grid_view.py`) where the terminal has room for it.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.style import Style
from rich.text import Text

from ..decoding.sampler import DenoiseStep
from .grid_view import Board, height_of, legend, width_of
from .shades import NEW, PROMPT, shade

GROWS = "\u2194"  # a mask that is about to become two


def render(run: Any, step: DenoiseStep, row: int = 0) -> Group:
    """One frame: a line of counters, and the canvas of one row.

    Args:
        run: the `Generation` being iterated over.
    """
    return Group(counters(step, row), canvas_text(run, step, row))


def counters(step: DenoiseStep, row: int = 0) -> Text:
    """step 12/64 . forwards 12 . masks left 34 . mean lambda 0.41"""
    parts = [
        f"step {step.index + 1}/{step.steps}",
        f"forwards {step.forwards}",
        f"masks left {step.left_B[row]}",
    ]
    if step.lambda_BL is not None and step.open_B[row]:
        mean = step.lambda_BL[row].sum().item() / step.open_B[row]
        parts.append(f"mean lambda {mean:.2f}")
    return Text("  ".join(parts), style="cyan", no_wrap=True, overflow="ellipsis")


def canvas_text(run: Any, step: DenoiseStep, row: int = 0, start: int | None = None) -> Text:
    """The row's canvas as far as it takes part, from `start` on (default: its prompt).

    Runs of the same style are decoded together, as bytes may span tokens.
    """
    mask_id = run.checkpoint.model.config.mask_token_id
    start = run.starts[row] if start is None else start
    generated = run.generated(step, row)
    masked = (step.canvas_BL[row] == mask_id).tolist()
    fresh = step.committed_BL[row].tolist()
    shown = step.candidate_BL[row].tolist()
    weights = step.lambda_BL[row].tolist() if step.lambda_BL is not None else [0.0] * len(shown)
    text = Text()
    pending: list[int] = []
    style = Style.null()

    def flush() -> None:
        if pending:
            text.append(run.tokenizer.decode(pending, skip_special_tokens=True), style)
            pending.clear()

    for i in range(start, step.reach_B[row]):
        if masked[i]:
            flush()
            text.append(_ghost(run, shown[i], mask_id), shade(weights[i]))
            continue
        now = PROMPT if not generated[i] else (NEW if fresh[i] else Style.null())
        if now != style:
            flush()
            style = now
        pending.append(shown[i])
    flush()
    return text


def _ghost(run: Any, token: int, mask_id: int) -> str:
    """The candidate at a mask, on one line; a block where it shows nothing."""
    if token == mask_id or token in run.checkpoint.end_ids:
        return "\u2591"
    if token == run.checkpoint.model.config.expand_token_id:
        return GROWS
    return (
        run.tokenizer.decode([token]).replace("\n", "\u21b5").replace("\ufffd", "\u2592")
        or "\u2591"
    )


class LiveView:
    """A context in which `show(step)` redraws; the last frame gives way to the text.

    A grid stays, as the text does not say which cells are wrong.

    Args:
        start: the column to show the canvas from; default: the whole of it.
    """

    def __init__(self, run: Any, console: Console, start: int | None = None) -> None:
        self.run, self.start = run, start
        self.board = Board.of(run) if start is None else None
        if self.board is not None:
            grid = self.board.grid
            # Above and below it: a line of counters, the verdict, two of the legend, the cursor.
            if width_of(grid) > console.width or height_of(grid) + 5 > console.height:
                self.board = None
        self.live = Live(
            console=console,
            auto_refresh=False,
            transient=self.board is None,
            vertical_overflow="crop",
        )

    def __enter__(self) -> LiveView:
        self.live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.live.stop()

    def show(self, step: DenoiseStep) -> None:
        """Draws a step; a canvas taller than the screen shows the lines being decided."""
        if self.board is not None:
            grid = self.board.draw(step)
            parts = [counters(step), grid, self.board.verdict(step)]
            if not self.board.is_done(step):
                parts.append(legend(self.board))
            self.live.update(Group(*parts), refresh=True)
            return
        console = self.live.console
        text = canvas_text(self.run, step, start=self.start)
        lines = list(text.wrap(console, console.width))
        room = max(console.height - 2, 1)
        if len(lines) > room:
            first = self._first_open_line(step, lines, room)
            lines = lines[first : first + room]
        self.live.update(Group(counters(step), *lines), refresh=True)

    def _first_open_line(self, step: DenoiseStep, lines: Any, room: int) -> int:
        """The line to start with: a little above the first mask."""
        for index, line in enumerate(lines):
            if any(span.style != Style.null() and _is_shaded(span.style) for span in line.spans):
                return max(0, min(index - min(2, room - 1), len(lines) - room))
        return len(lines) - room


def _is_shaded(style: Any) -> bool:
    return isinstance(style, Style) and style.bgcolor is not None
