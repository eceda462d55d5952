"""Cost and memory against length and batch, drawn: a panel for each, with its exponents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from ..reporting.plots import OTHERS, PLAIN, SOFT, new_figure, save
from .growth import AXES, curves, fits

PLOT = "growth.png"
LABELS = {
    "ms_per_token": "ms a token",
    "mb": "peak MB above the model's",
    "tokens": "tokens of a text",
    "batch": "texts of a batch",
}


def draw(rows: Sequence[Mapping[str, Any]], at: int, target: Path, title: str) -> None:
    """Draws rows of `softmask bench growth` into a PNG.

    Raises:
        ValueError: matplotlib is missing.
    """
    lines = curves(rows, at)
    found = fits(lines)
    figure = new_figure(11, 8)
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(2, 2)
    for column, axis in enumerate(AXES):
        for row, key in enumerate(("ms_per_token", "mb")):
            panel = panels[row][column]
            for (cache, own), colour in zip(
                lines[axis].items(), cycle((PLAIN, SOFT, *OTHERS)), strict=False
            ):
                points = [(one[axis], _value(one, key)) for one in own if _value(one, key) > 0]
                label = f"{cache}: {found[axis][cache][key]}"
                panel.plot(*zip(*points, strict=True), marker="o", color=colour, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", subs=(2, 5))
            for axle in (panel.xaxis, panel.yaxis):
                axle.set_major_formatter("{x:g}")  # 256, not a power
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.set_xlabel(LABELS[axis])
            panel.set_ylabel(LABELS[key])
            panel.grid(alpha=0.3, which="both")
            panel.legend(title="cache: exponent (standard error)", fontsize=8)
    save(figure, target)


def _value(row: Mapping[str, Any], key: str) -> float:
    return row[key] if key == "mb" else row[key]["median"]
