"""softmask eval compare: two evaluations, paired sample by sample.

Paired differences of two evaluations, or of two folders of them, with 95 % intervals, and accuracy
against forwards as a PNG. A difference that is smaller than the score's spread over chat templates
(`softmask eval --templates`) is not called significant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from ..reporting.words import tell
from .options import new_parser, path_of


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval compare", __doc__)
    parser.add_argument("a", type=path_of, metavar="A")
    parser.add_argument("b", type=path_of, metavar="B")
    parser.add_argument("--plot", type=path_of, help="the PNG to draw")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    from rich.console import Console

    from ..evaluation.compare import compare, draw, left_out, refusals, table_of

    differences = compare(args.a, args.b)
    console = Console()
    console.print(table_of(differences, console.width))
    for sentence in (*refusals(differences), *left_out(args.a, args.b)):
        tell(sentence, sys.stdout)
    if args.plot is not None:
        draw(args.a, args.b, args.plot)
        print(args.plot)
    if args.json:
        rows = [dataclasses.asdict(d) | {"significant": d.significant} for d in differences]
        print(json.dumps(rows))
    return 0
