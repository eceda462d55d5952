"""Plots a rule of your own against shipped ones: puzzles solved against tokens a second.

    python examples/plot_frontier.py                       # frontier.png, under a minute
    python examples/plot_frontier.py --puzzles 100         # smaller standard errors

`softmask bench frontier --only full,threshold-.9,steady:steady --out DIR` measures the same.
"""

import argparse
from pathlib import Path

import eager  # noqa: F401, registers a feedback rule: a third way beside plain and soft-masked
import steady  # noqa: F401, registers a commit rule
from rich.console import Console

import softmask
from softmask.bench.frontier import MADE, measure, puzzles_of, tables_of
from softmask.bench.frontier_cells import choose_cells
from softmask.bench.frontier_plot import draw

CELLS = "full,quarter,eighth,threshold-.7,threshold-.9,factor-1,steady"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--puzzles", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--kind", choices=MADE, default="sudoku_4x4_4", help="of puzzles")
    parser.add_argument("--cells", default=CELLS, help="ways of decoding, shipped and your own")
    parser.add_argument("--out", type=Path, default=Path("frontier.png"))
    args = parser.parse_args(argv)
    groups = {args.kind: puzzles_of(None, args.puzzles)[args.kind]}
    console, checkpoint = Console(), softmask.load(device="cpu")
    with console.status("loading") as status:
        rows = measure(
            lambda _loading: checkpoint,
            groups,
            choose_cells(args.cells),
            batch=10,
            tick=lambda what, _done: status.update(what),
        )
    for table in tables_of(rows):
        console.print(table)
    draw(rows, args.out)
    console.print(f"the plot is {args.out}")


if __name__ == "__main__":
    main()
