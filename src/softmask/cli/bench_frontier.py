"""softmask bench frontier: accuracy against speed.

Measures what every faster way of decoding costs in accuracy, in tables and a plot. With --json the
last line is for scripts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..bench.frontier_cells import Cell, all_cells, choose_cells
from ..reporting.plots import need_matplotlib
from ..reporting.progress import progress
from .options import add_feedback_option, new_parser, path_of, with_feedback
from .rule_options import add_rules_option, rule_name

if TYPE_CHECKING:
    from ..bench.frontier import Row
    from ..models.checkpoint import Checkpoint
    from ..puzzles.puzzles import Puzzle


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("bench frontier", __doc__)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--puzzles", type=int, default=100, help="of each kind (default 100)")
    parser.add_argument("--files", type=path_of, help="take them from Dream's files in this folder")
    names = ", ".join(cell.name for cell in all_cells())
    parser.add_argument(
        "--only",
        type=_cells,
        metavar="NAME,...",
        help=f"only these cells: {names}; or a commit rule of yours, by name or as MODULE:NAME",
    )
    add_rules_option(parser)
    add_feedback_option(parser)
    parser.add_argument("--batch", type=int, default=1, help="puzzles at once (default 1)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best)")
    parser.add_argument("--dtype", help="float32, bfloat16 (default: by device)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument(
        "--out", type=path_of, help="write result.json, table.txt and a plot to this folder"
    )
    parser.add_argument("--json", action="store_true", help="the last line is JSON, for scripts")
    return parser


def _cells(text: str) -> str:
    return ",".join(map(rule_name, text.split(",")))


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    for name in ("puzzles", "batch", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1")

    import torch
    from rich.console import Console

    from ..bench.frontier import puzzles_of, tables_of
    from ..bench.frontier_plot import PLOT, draw
    from ..reporting.result_folder import claim, write

    cells, groups = choose_cells(args.only), puzzles_of(args.files, args.puzzles)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out is not None:
        need_matplotlib()
        claim(args.out)
    console = Console()
    model, rows = _measure(args, cells, groups)
    for table in tables_of(rows, console.width):
        console.print(table)
    settings = {name: str(v) for name, v in vars(args).items() if v is not None}
    result = {
        "model": model,
        "threads": torch.get_num_threads(),
        "settings": settings,
        "cells": [dataclasses.asdict(cell) for cell in cells],
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    if args.out is not None:
        draw(rows, args.out / PLOT)
        write(args.out, ["softmask", *argv], result, tables_of(rows))
    if args.json:
        print(json.dumps(result))
    return 0


def _measure(
    args: argparse.Namespace,
    cells: Sequence[Cell],
    groups: Mapping[str, Sequence[Puzzle]],
) -> tuple[str, list[Row]]:
    """The model's name, and what its cells reached; a terminal shows how far it is."""
    from ..bench.frontier import measure, modes_of, runs
    from ..hub.load import load

    held: dict[str, Checkpoint] = {}

    def load_with(loading: Mapping[str, Any]) -> Checkpoint:
        key = repr(sorted(loading.items()))
        if key not in held:
            loaded = load(args.model, device=args.device, dtype=args.dtype, **loading)
            held[key] = with_feedback(loaded, args.feedback)
        return held[key]

    with progress("loading the model", unit="runs") as shown:
        modes = sum(len(modes_of(load_with(cell.loading))) for cell in cells)
        shown.update(total=runs(groups, modes, args.batch))

        def tick(what: str, done: int) -> None:
            shown.update(what)
            shown.advance(done)

        rows = measure(load_with, groups, cells, args.batch, tick)
    return load_with(cells[0].loading).name, rows
