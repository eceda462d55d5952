"""softmask generate --html, --svg, --trace: a run as a file to look at."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..config import require
from ..files import write_atomically
from .options import path_of


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """What `generate` can keep of a run."""
    group = parser.add_argument_group("recording")
    group.add_argument("--html", type=path_of, help="every step as a page that opens anywhere")
    group.add_argument("--svg", type=path_of, help="every step as one animated picture")
    group.add_argument(
        "--trace", type=path_of, help="write every step as JSON (docs/reference/trace.md)"
    )
    group.add_argument(
        "--against-plain",
        action="store_true",
        help="with a recording: also the plain run of the same seed, side by side",
    )


def is_recording(args: argparse.Namespace) -> bool:
    """Whether any of these options was given.

    Raises:
        ValueError: they contradict others.
    """
    files = [path for path in (args.html, args.svg, args.trace) if path is not None]
    wanted = bool(files)
    require(wanted or not args.against_plain, "--against-plain is for --html, --svg and --trace")
    if wanted:
        for name in ("stream", "json"):
            require(not getattr(args, name), f"--{name} and a recording contradict each other")
        require(args.num_return_sequences == 1, "a recording shows one text: leave out -n")
        for path in files:
            require(path.parent.is_dir(), f"there is no folder for {path}")
            require(not path.is_dir(), f"{path} is a folder: name a file")
        different = {path.resolve() for path in files}
        require(len(different) == len(files), "two recordings have one name: give each its own")
    return wanted


def record_run(args: argparse.Namespace, run: Any) -> dict[str, Any]:
    """Denoises what `run` (a Generation that has not begun) is about; returns the trace.

    Raises:
        ValueError: there is no soft-masking to compare, or the run failed.
    """
    from ..serving.trace import record_ways, ways_of

    return record_ways(run, ways_of(run, against_plain=args.against_plain))


def write_recordings(args: argparse.Namespace, trace: dict[str, Any]) -> list[Path]:
    """Writes the files that were asked for, and names them."""
    if args.trace is not None:
        write_atomically(args.trace, json.dumps(trace, ensure_ascii=False))
    if args.html is not None:
        write_atomically(args.html, page_of(trace))
    if args.svg is not None:
        from .svg import picture

        write_atomically(args.svg, picture(trace))
    return [path for path in (args.html, args.svg, args.trace) if path is not None]


def page_of(trace: dict[str, Any]) -> str:
    """The page that shows a trace, as HTML."""
    from ..serving.page import page_html

    return page_html({"mode": "trace", "trace": trace})
