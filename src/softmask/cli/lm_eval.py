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
    from lm_eval.__main__ import HarnessCLI
    from lm_eval.utils import setup_logging

    from ..evaluation import harness  # noqa: F401, registers the model

    setup_logging()
    cli = HarnessCLI()
    sys.argv = ["lm_eval", *args.words]
    cli.execute(complete(cli.parse_args()))
    return 0


def complete(parsed: argparse.Namespace) -> argparse.Namespace:
    """The harness' own arguments, with our tasks, and a device that this machine has."""
    if parsed.command != "run":
        return parsed
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from ..evaluation.tasks import FOLDER
    from ..hub.load import choose_device

    file = EvaluatorConfig.load_yaml_config(parsed.config) if parsed.config else {}
    # Read in this order: a task of the user's replaces ours of its name.
    own = parsed.include_path or file.get("include_path")
    parsed.include_path = [str(FOLDER), *([own] if own else [])]
    if parsed.device is None and "device" not in file:
        # The harness' default is the first GPU: on a machine without one, and for every process.
        parsed.device = choose_device(None).type
    return parsed
