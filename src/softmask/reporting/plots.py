"""Plots: matplotlib where it is installed, files that are whole or not there, and the frontier."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The two ways that most plots compare.
PLAIN, SOFT = "tab:blue", "tab:orange"
OTHERS = ("tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def need_matplotlib() -> None:
    """Raises ValueError where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'softmask[eval]'")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that no window shows.

    Raises:
        ValueError: matplotlib is missing.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, target: Path) -> None:
    """Writes a figure in the format that the file's name ends in, else as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format=target.suffix.removeprefix(".") or "png")
    write_atomically(target, picture.getvalue())


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other one exceeds in one coordinate and reaches in the other."""
    kept: list[int] = []
    best, beside = -math.inf, math.inf  # largest y so far, and the x at which it was reached
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        x, y = points[place]
        if y > best or (y == best and x == beside):
            kept.append(place)
            best, beside = y, x
    return sorted(kept)
