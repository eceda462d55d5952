"""A sweep, drawn: score against tokens per forward and against seconds, with bands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reporting.plots import OTHERS, PLAIN, SOFT, new_figure, save
from .sweep import Row, Sweep

PLOT = "sweep.png"
LINES = {"steps": ("-", "o"), "threshold": ("--", "s"), "entropy-threshold": (":", "^")}
# Two-sided 95 % of a normal distribution.
NORMAL = 1.96


def draw(sweep: Sweep, target: Path) -> None:
    """Draws a sweep into a PNG, a row of two panels for each task.

    Raises:
        ValueError: matplotlib is missing.
    """
    tasks = list(dict.fromkeys(row.task for row in sweep.rows))
    feedbacks = list(dict.fromkeys(row.feedback for row in sweep.rows))
    others = iter(OTHERS)
    known = {"off": PLAIN, "published": SOFT}
    colours = {name: known.get(name) or next(others) for name in feedbacks}
    figure = new_figure(11, 4.2 * len(tasks) + 0.5)
    axes = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (parallel, timed) in zip(tasks, axes, strict=True):
        own = [row for row in sweep.rows if row.task == task]
        for axis, name, label in (
            (parallel, "tokens_per_forward", "tokens per forward"),
            (timed, "seconds", "seconds a sample, as they came"),
        ):
            _panel(axis, own, name, colours)
            axis.set(xlabel=label, title=task)
            axis.grid(alpha=0.3)
        kept = sorted((r for r in own if r.on_frontier), key=lambda r: r.tokens_per_forward)
        parallel.plot(
            [row.tokens_per_forward for row in kept],
            [100 * row.score for row in kept],
            *("k.-",),
            linewidth=0.8,
            markersize=3,
            label="frontier",
        )
        timed.set_xscale("log")
        parallel.set_ylabel("score, % (bands: 95 %)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    save(figure, target)


def _panel(axis: Any, rows: Sequence[Row], name: str, colours: dict[str, str]) -> None:
    """A line and a band for each curve."""
    for feedback, colour in colours.items():
        for knob, (line, marker) in LINES.items():
            own = [row for row in rows if (row.feedback, row.knob) == (feedback, knob)]
            own.sort(key=lambda row: getattr(row, name))
            if not own:
                continue
            x = [getattr(row, name) for row in own]
            y = [100 * row.score for row in own]
            band = [100 * NORMAL * (row.error or 0.0) for row in own]
            axis.plot(x, y, line, marker=marker, color=colour, label=f"{feedback}, {knob}")
            low = [value - error for value, error in zip(y, band, strict=True)]
            high = [value + error for value, error in zip(y, band, strict=True)]
            if len(own) > 1:
                axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            else:
                axis.errorbar(x, y, yerr=band, fmt="none", color=colour, capsize=3)
