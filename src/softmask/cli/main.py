"""`softmask COMMAND ...`: finds the command's module and runs it.

Each command is a module of this package with `make_parser()` and `run(args, argv)`. It is imported
when it is called, so that `softmask --help` loads neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__

# The commands in the order of `--help`, each with its line there.
COMMANDS = {
    "generate": "write a text from a prompt, or fill holes in one",
    "chat": "talk with an Instruct model",
    "demo": "the bundled model solves puzzles, and how often, and writes stories",
    "train": "fine-tune or pretrain a model by a recipe",
    "eval": "score a model on benchmarks, with a record that can be trusted",
    "lm_eval": "lm-evaluation-harness' own command line, which then knows --model softmask",
    "bench": "ms per step, tokens/s and memory, plain and soft-masked",
    "serve": "an OpenAI-compatible server, and a page that shows the denoising",
    "view": "look at a recorded run in a browser",
    "export": "write a folder that transformers loads without softmask",
    "push": "upload an adapter or an exported model to the Hub",
}
# Commands of commands: `softmask eval suite`, with the module that runs each.
SUBCOMMANDS = {
    "eval": {
        "suite": "eval_suite",
        "ppl": "eval_ppl",
        "samples": "eval_samples",
        "compare": "eval_compare",
    },
    "bench": {"frontier": "bench_frontier"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Where it is installed, it advises on every import to install kernels of its own.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    make_parser().parse_args(argv[:1])
    try:
        command, rest = find_command(argv)
        return command.run(command.make_parser().parse_args(rest), argv)
    except ValueError as error:
        sentence = " ".join(str(error).split())
        print(f"softmask: error: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left: say nothing, and keep Python from flushing to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the first word: a command, --help or --version."""
    parser = argparse.ArgumentParser(
        prog="softmask",
        description="Run, train, evaluate and time soft-masked diffusion language models.",
    )
    parser.add_argument("--version", action="version", version=f"softmask {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        commands.add_parser(name, help=help, add_help=False)
    return parser


def find_command(argv: Sequence[str]) -> tuple[ModuleType, list[str]]:
    """The module of the command that `argv` begins with, and the words behind its name."""
    name, *rest = argv
    module = {"eval": "evaluate"}.get(name, name)
    if rest and rest[0] in SUBCOMMANDS.get(name, {}):
        module, rest = SUBCOMMANDS[name][rest[0]], rest[1:]
    return importlib.import_module(f".{module}", __package__), rest
