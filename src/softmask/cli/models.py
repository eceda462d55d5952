"""softmask models: what is on this machine, and what to type to use it.

Lists the bundled model, the Hub's cache, and the models, adapters and runs below the current
folder, or below folders that you name.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..reporting.words import tell
from .options import new_parser, path_of

if TYPE_CHECKING:
    from rich.table import Table

    from ..hub.local import Entry

# Each kind with its title and the command that uses it.
TITLES = {
    "model": ("Models", "softmask generate --model NAME"),
    "adapter": ("Adapters", "softmask generate --model NAME"),
    "run": ("Unfinished runs", "softmask train NAME/recipe.json --out NAME"),
}
NARROW = 72  # columns of a terminal that has no room for names and five sizes


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("models", __doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        type=path_of,
        metavar="FOLDER",
        help="look in these and two levels below them (default: the current folder)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    from rich.console import Console
    from rich.filesize import decimal

    from ..config import require
    from ..hub.local import bundled, cached
    from ..reporting.machine import memory
    from ..training.listing import below

    for folder in args.folders:
        require(folder.is_dir(), f"there is no folder {folder}")
    entries = [*bundled(), *cached()]
    entries += [entry for folder in args.folders or [Path()] for entry in below(folder)]
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries]))
        return 0
    console = Console(highlight=False)
    width = console.width
    if not console.is_terminal:
        console.width = 1000  # no name is cut
        width = max((len(entry.name) for entry in entries), default=0)
    for kind, (title, command) in TITLES.items():
        of_kind = [entry for entry in entries if entry.kind == kind]
        if of_kind:
            console.print(f"[bold]{title}[/]  [dim]{command}[/]")
            console.print(_table(of_kind, width, is_terminal=console.is_terminal))
            console.print()
    for entry in entries:
        if entry.problem is not None:
            mend = f" (`{entry.use}`)" if entry.use else ""
            tell(f"softmask: {entry.problem}{mend}", sys.stderr)
    here = memory()
    free = f"of {decimal(here.total)} of memory {decimal(here.available)} are free"
    if not console.is_terminal or console.width >= NARROW:
        free = f"beside its files, what a model takes when it is loaded on a CPU; {free}"
    tell(f"softmask: {free}", sys.stderr)
    tell("softmask: `softmask pull OWNER/NAME` fetches from the Hub", sys.stderr)
    return 0


def _table(entries: Sequence[Entry], width: int, *, is_terminal: bool) -> Table:
    """Names, what they are, their size, and that of models in memory.

    In a terminal of `width` columns what they are stands below their name, and where it is narrow
    there is one size; elsewhere names have `width` columns.
    """
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(overflow="fold", width=None if is_terminal else width)
    ways = list(dict.fromkeys(way for entry in entries for way in entry.loaded or ()))
    if is_terminal and width < NARROW:
        ways = []
    if not is_terminal:
        table.add_column(overflow="fold")
    for _ in ("files", *ways):
        table.add_column(justify="right", no_wrap=True)
    if ways:
        before = [""] if is_terminal else ["", ""]
        table.add_row(*before, *(Text(title, style="dim") for title in ("files", *ways)))
    for entry in entries:
        what = Text(entry.what.removeprefix("adapter "), style="dim" if is_terminal else "")
        if entry.problem is not None:
            what.append(", not whole", style="red")
        sizes = [(entry.loaded or {}).get(way) for way in ways]
        taken = ["" if size is None else decimal(size) for size in sizes]
        name = Text(entry.name)
        named = [name + Text("\n  ") + what] if is_terminal else [name, what]
        table.add_row(*named, decimal(entry.bytes), *taken)
    return table
