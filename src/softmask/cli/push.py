"""softmask push: an adapter or an exported model goes up to the Hub.

Uploads the folder of an adapter or of an exported model to the Hub, without training state; with
--model or --adapter instead of a folder it exports those first.
"""

from __future__ import annotations

import argparse

from ..reporting.progress import progress
from .options import add_family_option, add_layout_option, new_parser, path_of


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("push", __doc__)
    parser.add_argument("repo", metavar="REPO", help="where to: OWNER/NAME")
    parser.add_argument("folder", nargs="?", type=path_of, metavar="FOLDER", help="what to upload")
    parser.add_argument("--model", help="export this folder or Hub id, and upload that")
    parser.add_argument("--adapter", help="with this adapter merged in")
    add_family_option(parser)
    add_layout_option(parser)
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", help="branch to write to (default: main)")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would go up, and send nothing"
    )
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    with progress("reading what is to go up"):
        from ..hub.push import push

    address = push(
        args.repo,
        args.folder,
        model=args.model,
        adapter=args.adapter,
        family=args.family,
        layout=args.layout,
        private=args.private,
        revision=args.revision,
        message=args.message,
        dry_run=args.dry_run,
    )
    if address is not None:
        print(address)
    return 0
