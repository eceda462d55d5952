"""How cost and memory grow with a text's length and with the batch, for each cache.

The exponent is the slope of the least squares line through the logarithms, over the upper half of
the points, where what does not grow weighs least. `softmask bench growth` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from ..models import DreamModel
from ..reporting.measure import summary
from ..reporting.tables import light_table
from .cells import Cell, Plan, measure

AXES = ("tokens", "batch")


@dataclass(frozen=True)
class Fit:
    """An exponent with its standard error; None where too few points say none."""

    exponent: float | None
    error: float | None

    def __str__(self) -> str:
        if self.exponent is None:
            return ""
        return f"{self.exponent:.2f}" + ("" if self.error is None else f" ({self.error:.2f})")


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """The exponent of y in x, over the upper half of the points, three of them at least."""
    ordered = sorted(points)
    upper = ordered[-max(math.ceil(len(ordered) / 2), 3) :]
    if len(upper) < 2 or any(y <= 0 for _, y in upper):
        return Fit(None, None)
    x, y = np.log(np.array(upper)).T
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    if len(upper) == 2:
        return Fit(float(slope), None)
    left = y - y.mean() - slope * (x - x.mean())
    return Fit(float(slope), float(np.sqrt((left**2).sum() / (len(upper) - 2) / spread)))


def cells_of(
    caches: Sequence[str], lengths: Sequence[int], batches: Sequence[int], at: int, mode: str
) -> list[Cell]:
    """The lengths at batch 1, and the batches at `at` tokens; each once."""
    found = [Cell(cache, tokens, 1, mode) for cache in caches for tokens in lengths]
    found += [Cell(cache, at, batch, mode) for cache in caches for batch in batches]
    return list(dict.fromkeys(found))


def run(
    model: DreamModel,
    cells: Sequence[Cell],
    plan: Plan,
    tick: Callable[[str], None],
    peak_mb: Callable[[Cell | None], float],
    repeat: int,
    clock: str = "wall",
) -> list[dict[str, Any]]:
    """Milliseconds a token and MB above the model's of each cell.

    Args:
        peak_mb: of a cell, or of the model alone, in a process of its own.
        repeat: rounds.
        clock: as for `timed`.
    """
    rows = []
    depth = model.config.num_hidden_layers
    found, _ = measure(model, cells, plan, (depth,), tick, repeat, clock=clock)
    tick("peak memory of the model")
    alone = peak_mb(None)
    for cell in cells:
        tick(f"{cell.name}: peak memory")
        ms = found[cell].ms[depth]
        pairs = zip(ms["first"], ms["later"], strict=True)
        tokens = plan.block * cell.batch
        each = [(first + (plan.steps - 1) * later) / tokens for first, later in pairs]
        rows.append(
            vars(cell)
            | {"ms_per_token": summary(each), "raw_ms": ms}
            | {"mb": round(peak_mb(cell) - alone, 1)}
        )
    return rows


def curves(rows: Sequence[Mapping[str, Any]], at: int) -> dict[str, dict[str, list[Any]]]:
    """The rows by axis and cache: lengths at batch 1, batches at `at` tokens."""
    found: dict[str, dict[str, list[Any]]] = {axis: {} for axis in AXES}
    for row in rows:
        if row["batch"] == 1:
            found["tokens"].setdefault(row["cache"], []).append(row)
        if row["tokens"] == at:
            found["batch"].setdefault(row["cache"], []).append(row)
    return {
        axis: {cache: sorted(own, key=lambda row: row[axis]) for cache, own in lines.items()}
        for axis, lines in found.items()
    }


def fits(lines: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, dict[str, Fit]]]:
    """The exponents of time and memory, by axis and cache."""
    return {
        axis: {
            cache: {
                "ms_per_token": fit([(r[axis], r["ms_per_token"]["median"]) for r in own]),
                "mb": fit([(r[axis], r["mb"]) for r in own]),
            }
            for cache, own in by_cache.items()
        }
        for axis, by_cache in lines.items()
    }


def tables_of(rows: Sequence[Mapping[str, Any]], at: int, title: str) -> list[Table]:
    """A table for each axis: its values as columns, each cache's time and memory, exponents."""
    lines = curves(rows, at)
    found, tables = fits(lines), []
    for axis, by_cache in lines.items():
        values = sorted({row[axis] for own in by_cache.values() for row in own})
        what = "length, batch 1" if axis == "tokens" else f"batch, {at} tokens"
        table = light_table(f"{title}\n{what}; exponent over the upper half (standard error)")
        table.add_column("cache")
        table.add_column("")
        for value in (*values, "exponent"):
            table.add_column(str(value), justify="right")
        for cache, own in by_cache.items():
            ms = {row[axis]: f"{row['ms_per_token']['median']:.2f}" for row in own}
            mb = {row[axis]: f"{row['mb']:.0f}" for row in own}
            for name, cells, key in (("ms a token", ms, "ms_per_token"), ("MB", mb, "mb")):
                shown = [cells.get(value, "") for value in values]
                label = cache if name != "MB" else ""
                table.add_row(label, name, *shown, str(found[axis][cache][key]))
        tables.append(table)
    return tables
