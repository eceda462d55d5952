"""softmask lm_eval: the harness' own command line, with this model and our tasks."""

from __future__ import annotations

import argparse
import sys

from .eval_options import need_lm_eval


def make_parser() -> argparse.ArgumentParser:
    """Takes every word as it is: the harness reads them."""
    # No character begins an option here.
    parser = argparse.ArgumentParser(prog="softmask lm_eval", prefix_chars="\0", add_help=False)
    parser.add_argument("words", nargs="*")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments.

    Raises:
        ValueError: lm_eval is not installed.
    """
    need_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    from ..evaluation import harness  # noqa: F401, registers the model
    from ..evaluation.tasks import FOLDER

    argv = args.words
    runs = argv[:1] == ["run"] or (argv and argv[0].startswith("--"))
    if runs and "--include_path" not in argv and "--help" not in argv:
        argv += ["--include_path", str(FOLDER)]
    sys.argv = ["lm_eval", *argv]
    cli_evaluate()
    return 0
