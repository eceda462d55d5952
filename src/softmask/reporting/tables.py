"""The frame that tables of numbers share: light, so that they fit 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table


def light_table(title: str | None = None) -> Table:
    """A table without columns yet."""
    return Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
