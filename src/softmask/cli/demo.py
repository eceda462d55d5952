"""softmask demo: a hard Sudoku soft-masked beside plain, a story, and how often puzzles are solved.

Without options: fills in a hard 9x9 Sudoku in few forwards, soft-masked beside plain, goes on with
a story, and counts over fresh puzzles, in under a minute. With --kinds or --files it counts alone,
in as many forwards as there are masks, half and a quarter of them.
"""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from ..config import require
from ..reporting.progress import progress
from .options import add_feedback_option, new_parser, path_of, with_feedback

PUZZLES = 16  # of each kind, in the table: what two slow cores solve in half a minute


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("demo", __doc__)
    parser.add_argument("--model", help="another folder or Hub id than the bundled model")
    parser.add_argument(
        "--svg", type=path_of, help="write the Sudoku as one animated picture, and do nothing else"
    )
    parser.add_argument("--puzzles", type=int, help=f"fresh puzzles a row of the table ({PUZZLES})")
    parser.add_argument("--kinds", help="sudoku_9x9,countdown_3,...: count these alone")
    parser.add_argument("--givens", type=int, help="of the 9x9 Sudokus, 28 to 80 (28: hard)")
    parser.add_argument("--files", type=path_of, help="score Dream's evaluation files there")
    parser.add_argument("--limit", type=int, help="with --files: at most this many of each file")
    add_feedback_option(parser)
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    _check(args)
    console = Console()
    if args.svg is None:
        name = args.model or "a model of 6.4 million parameters, which comes with the package"
        console.print(f"softmask demo: {name}", highlight=False, markup=False)
    with progress("loading torch and the model (5 to 15 s)"):
        from ..hub.load import load
        from ..puzzles.solve import ALG
        from . import demo_show

        checkpoint = with_feedback(load(args.model), args.feedback)
    require(
        checkpoint.soft_mask is not None,
        f"{checkpoint.name} is decoded without feedback here, so there is nothing to compare: give "
        "--feedback spherical, say",
    )
    if args.svg is not None:
        with progress("denoising"):
            demo_show.write_picture(checkpoint, args.svg)
        print(f"the picture is {args.svg}")
        return 0
    count = PUZZLES if args.puzzles is None else args.puzzles
    if args.files is not None:
        cells = demo_show.file_cells(args.files, args.limit)
    elif args.kinds is not None:
        cells = demo_show.kind_cells(args.kinds.split(","), count, args.givens)
    else:
        demo_show.show(checkpoint, console, measured=args.feedback is None)
        cells = demo_show.few_cells(count, args.givens)
    rows = demo_show.scores(checkpoint, cells)
    console.print(demo_show.table_of(rows, console.width))
    if args.json:
        print(json.dumps({"model": checkpoint.name, "alg": ALG, "rows": rows}))
    elif args.files is None and args.kinds is None:
        console.print(demo_show.what_next(), highlight=False)
    return 0


def _check(args: argparse.Namespace) -> None:
    idle: tuple[str, ...] = ("limit",)
    where = "only with --files"
    if args.svg is not None:
        idle, where = ("files", "givens", "kinds", "limit", "puzzles", "json"), "not with --svg"
        require(args.svg.parent.is_dir(), f"there is no folder for {args.svg}")
    elif args.files is not None:
        idle, where = ("givens", "kinds", "puzzles"), "not with --files"
    for name in idle:
        if getattr(args, name) not in (None, False):
            raise ValueError(f"--{name} has a meaning {where}: leave it out")
    if args.givens is not None and "sudoku_9x9" not in (args.kinds or "sudoku_9x9").split(","):
        raise ValueError("--givens has a meaning only with sudoku_9x9: leave it out")
    least = min(1 if n is None else n for n in (args.puzzles, args.limit))
    require(least >= 1, "--puzzles and --limit must be at least 1")
