"""softmask pull: a model or an adapter of the Hub comes onto this machine.

Fetches what softmask reads of a repository into the Hub's cache, and for an adapter its base model
too. What is there already is not fetched again, and what a broken download left is completed.
Prints the folder; every command then takes the repository's name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import add_family_option, new_parser


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("pull", __doc__)
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    add_family_option(parser)
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    try:
        print(_pull(args))
    except KeyboardInterrupt:
        _say("stopped: files that are whole are kept, and the same command goes on")
        raise
    return 0


def _pull(args: argparse.Namespace) -> Path:
    """Fetches and checks what is asked for; returns its folder."""
    from ..config import BUNDLED
    from ..hub.download import pull
    from ..hub.folder import adapter_tensor_names, base_of, is_adapter
    from ..hub.local import look_at, may_be_found
    from ..reporting.progress import progress

    folder = pull(args.repo, args.revision, _say, args.family)
    if is_adapter(folder):
        base, revision = base_of(folder)
        if base is None or not may_be_found(base):
            adapter_tensor_names(folder)
            what = "it names no base" if base is None else f"its base {base} is not"
            _say(f"{args.repo} is here, but {what}: give one as --model beside --adapter")
            return folder
        if base != BUNDLED and not Path(base).is_dir():
            _say(f"{args.repo} is an adapter of {base}")
            pull(base, revision, _say, args.family)
    with progress(f"checking {args.repo}"):
        from ..hub.checkpoints import find

        find(args.repo, revision=args.revision, family=args.family, local_only=True)
    named = {"revision": args.revision, "family": args.family}
    options = "".join(f" --{name} {value}" for name, value in named.items() if value is not None)
    entry = look_at(folder, args.repo, options, family=args.family)
    assert entry is not None
    _say(f"{args.repo} is ready: {entry.use}")
    return folder


def _say(sentence: str) -> None:
    print(f"softmask: {sentence}", file=sys.stderr)
