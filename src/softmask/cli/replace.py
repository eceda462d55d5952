"""softmask generate --replace START:END: a stretch of a text written anew."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import time
from typing import Any

from ..config import SamplingConfig, require
from ..constraints.constraint import Constraint
from ..reporting.progress import progress
from .closing_line import Cost, print_text, say
from .options import given, soft_mask_of

SPAN = re.compile(r"(\d{1,9}):(\d{1,9})")


def add_replace_options(parser: argparse.ArgumentParser) -> None:
    """What `generate` takes to replace a stretch."""
    parser.add_argument(
        "--replace",
        metavar="START:END",
        help="write the characters from START to END of the prompt anew (counted from 0, END not "
        "among them) and print the whole text: some lengths between --min-new-tokens and "
        "--max-new-tokens are tried, and the likeliest is kept",
    )
    parser.add_argument(
        "--min-new-tokens",
        type=int,
        help="with --replace: the fewest tokens to write (default: half of those replaced)",
    )


def check_replace(args: argparse.Namespace) -> tuple[int, int] | None:
    """The span that --replace names; None: it is not given.

    Raises:
        ValueError: it is no span, or goes together with what fills in or records otherwise.
    """
    if args.replace is None:
        require(args.min_new_tokens is None, "--min-new-tokens is for --replace")
        return None
    match = SPAN.fullmatch(args.replace)
    require(match is not None, f"--replace wants characters as START:END, not {args.replace!r}")
    assert match is not None
    others = {
        "--infill": args.infill is not None,
        "--stream": args.stream,
        "-n": args.num_return_sequences != 1,
        "--system": args.system is not None,
        "a recording": any((args.html, args.svg, args.trace, args.against_plain)),
    }
    for name, is_given in others.items():
        require(not is_given, f"--replace and {name} contradict each other")
    return int(match[1]), int(match[2])


def run_replace(
    args: argparse.Namespace,
    checkpoint: Any,
    text: str,
    span: tuple[int, int],
    constraint: Constraint | None,
) -> int:
    """Writes the stretch, and prints the text, what it took and the lengths that were tried."""
    from ..serving.edits import edit

    started = time.perf_counter()
    with progress("writing some lengths side by side", quiet=args.quiet):
        edited = edit(
            checkpoint,
            text,
            *span,
            min_new_tokens=args.min_new_tokens,
            max_new_tokens=args.max_new_tokens,
            soft_mask=soft_mask_of(args, checkpoint.soft_mask),
            seed=args.seed,
            constraint=constraint,
            **given(args, SamplingConfig),
        )
    seconds = time.perf_counter() - started
    if args.json:
        drafts = [draft._asdict() for draft in edited.drafts]
        print(json.dumps(dataclasses.asdict(edited) | {"drafts": drafts}))
    else:
        print_text(edited.text)
    tried = ", ".join(f"{draft.tokens}: {draft.score:.2f}" for draft in edited.drafts)
    tokens = sum(draft.tokens for draft in edited.drafts)
    seed = None if args.seed is not None else f"--seed {edited.seed} writes this again"
    cost = str(Cost(tokens, edited.forwards, seconds, None))
    say([cost, f"mean log-probability by number of tokens: {tried}", seed], args)
    return 0
