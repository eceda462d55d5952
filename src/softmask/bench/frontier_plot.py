"""Accuracy against speed, drawn: a panel for each kind of puzzles, the frontier as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ..reporting.plots import OTHERS, PLAIN, SOFT, new_figure, save

PLOT = "frontier.png"
COLOURS = {"plain": PLAIN, "soft": SOFT}
MARKERS = ("o", "s", "^", "D", "P", "v", "X", "*")


def draw(rows: Sequence[Any], target: Path) -> None:
    """Draws rows of `softmask bench frontier` into a PNG.

    Raises:
        ValueError: matplotlib is missing.
    """
    panels = list(dict.fromkeys(row.puzzles for row in rows))
    families = list(dict.fromkeys(row.family for row in rows))
    markers = dict(zip(families, cycle(MARKERS), strict=False))
    modes = list(dict.fromkeys(row.mode for row in rows))
    colours = COLOURS | dict(
        zip([m for m in modes if m not in COLOURS], cycle(OTHERS), strict=False)
    )
    figure = new_figure(5.2 * len(panels), 5.4)
    axes = figure.subplots(1, len(panels), squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=True):
        _panel(axis, [row for row in rows if row.puzzles == panel], markers, colours)
        axis.set_title(panel)
    axes[0].set_ylabel("solved, % (bars: standard error)")
    handles = _legend({mode: colours[mode] for mode in modes}, markers)
    figure.legend(handles=handles, loc="outside lower center", ncols=8, fontsize=9)
    save(figure, target)


def _panel(
    axis: Any, rows: Sequence[Any], markers: dict[str, str], colours: dict[str, str]
) -> None:
    for row in rows:
        axis.errorbar(
            row.tokens_per_second,
            100 * row.accuracy,
            yerr=100 * row.error,
            fmt=markers[row.family],
            color=colours[row.mode],
            markersize=7 if row.on_frontier else 5,
            alpha=1.0 if row.on_frontier else 0.45,
            elinewidth=0.8,
        )
    kept = sorted((row for row in rows if row.on_frontier), key=lambda row: row.tokens_per_second)
    axis.plot(
        [row.tokens_per_second for row in kept],
        [100 * row.accuracy for row in kept],
        color="black",
        linewidth=1,
        zorder=0,
    )
    for index, row in enumerate(reversed(kept)):
        # To the right and to the left in turns: on a frontier neighbours stand close.
        side = (
            {"xytext": (7, 4), "ha": "left"}
            if index % 2 == 0
            else {"xytext": (-7, -10), "ha": "right"}
        )
        axis.annotate(
            row.cell,
            (row.tokens_per_second, 100 * row.accuracy),
            **side,
            textcoords="offset points",
            fontsize=8,
            color=colours[row.mode],
        )
    axis.set_xscale("log")
    axis.margins(x=0.22, y=0.08)  # room for names
    axis.set_xlabel("tokens/s")
    axis.grid(alpha=0.3, which="both")


def _legend(modes: Mapping[str, str], markers: dict[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    colours = [Line2D([], [], color=own, linewidth=4, label=mode) for mode, own in modes.items()]
    shapes = [
        Line2D([], [], color="gray", marker=marker, linestyle="", label=family)
        for family, marker in markers.items()
    ]
    return [*colours, *shapes, Line2D([], [], color="black", linewidth=1, label="frontier")]
