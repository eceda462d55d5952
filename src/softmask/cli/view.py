"""softmask view: a recorded run in a browser.

Makes a page of a trace (of generate --trace, or exported by the page) and opens it in a browser.
"""

from __future__ import annotations

import argparse
import webbrowser

from ..config import read_json, require
from ..files import write_atomically
from .options import new_parser, path_of
from .recording import page_of


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("view", __doc__)
    parser.add_argument("file", type=path_of, metavar="FILE", help="trace.json")
    parser.add_argument("--out", type=path_of, help="the page (default: beside the file, as .html)")
    parser.add_argument("--no-open", action="store_true", help="write it, and open no browser")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    from ..serving.trace import check_trace

    require(args.file.is_file(), f"there is no file {args.file}")
    trace = check_trace(read_json(args.file), str(args.file))
    out = args.out or args.file.with_suffix(".html")
    is_trace = out.resolve() == args.file.resolve()
    require(not is_trace, f"{out} is the trace itself: name another file with --out")
    require(out.parent.is_dir(), f"there is no folder for {out}")
    write_atomically(out, page_of(trace))
    if not args.no_open:
        webbrowser.open(out.resolve().as_uri())
    print(f"the page is {out}")
    return 0
