"""`softmask COMMAND ...`: finds the command's module and runs it.

Each command is a module of this package with `make_parser()` and `run(args, argv)`. It is imported
when it is called, so that `softmask --help` loads neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..reporting.words import tell
from . import threads
from .mistakes import as_typed, sentence
from .welcome import WELCOME

# The commands in the order of `--help`, each with its line there.
COMMANDS = {
    "generate": "write a text from a prompt, or fill holes in one",
    "chat": "talk with an Instruct model",
    "demo": "the bundled model on a Sudoku, soft-masked beside plain, and how often it is right",
    "train": "fine-tune or pretrain a model by a recipe",
    "eval": "score a model on benchmarks, with a record that can be trusted",
    "lm_eval": "lm-evaluation-harness' own command line, which then knows --model softmask",
    "models": "what is on this machine, and what to type to use it",
    "pull": "fetch a model or an adapter from the Hub",
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
        "sweep": "eval_sweep",
        "ppl": "eval_ppl",
        "samples": "eval_samples",
        "calibration": "eval_calibration",
        "compare": "eval_compare",
        "report": "eval_report",
    },
    "bench": {"frontier": "bench_frontier", "growth": "bench_growth"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.

    What a user can cause ends in one sentence: settings and files that do not suit (ValueError),
    what the system refuses (OSError: a full disk, a missing right, the Hub), too little memory.
    Anything else is a fault of this program and keeps its traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    threads.prepare(lasting=argv[:1] == ["serve"])
    # Where it is installed, it advises on every import to install kernels of its own.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        _check_streams()
        try:
            return _run(argv)
        finally:
            _flush_output()
    except BrokenPipeError:
        # The reader of our output has left: say nothing.
        _discard_output()
        return 0
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        reason = sentence(error)
        if reason is None:
            raise
        tell(f"softmask: error: {reason}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(argv: list[str]) -> int:
    if not argv:
        # Someone who looks around gets an answer; a script whose command got lost, an error code.
        print(WELCOME, end="")
        return 2
    _check_names(argv)
    make_parser().parse_args(argv[:1])
    from ..reporting.progress import progress  # `softmask --help` has ended, and needs no display

    # Where a module imports torch, seconds pass before the command can speak for itself.
    with progress("starting", quiet="--quiet" in argv):
        command, rest = find_command(argv)
    parser = command.make_parser()
    try:
        code: int = command.run(parser.parse_args(rest), argv)
    except ValueError as error:
        reason = as_typed(str(error), parser, rest)
        if reason == str(error):
            raise
        raise ValueError(reason) from error
    return code


def _check_streams() -> None:
    """Python has no object for a stream that was closed, and the next file would take its number.

    Raises:
        ValueError: standard output is closed, so that answers would be lost without a word.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            os.dup2(handle, number)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115
            if name == "stdout":
                raise ValueError("standard output is closed: send it to a file, or to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Where it is not UTF-8, as pipes on Windows, a finished text would be lost for a character.
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    """Here, so that a full disk under the last lines is said, and not lost at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _discard_output() -> None:
    """Keeps Python from writing to our output once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_names(argv: Sequence[str]) -> None:
    """Names the nearest command to a misspelt one, or the nearest one below a command.

    Raises:
        ValueError: the first word is no command, or the second no command of it but nearly.
    """
    name, below = (*argv, "", "")[:2]
    command = next((word for word in argv if word in COMMANDS), None)
    if name.startswith("-") and name not in ("-h", "--help", "--version") and command:
        raise ValueError(f"options stand behind the command: softmask {command} {name} ...")
    if name and not name.startswith("-") and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`softmask --help` lists them"
        raise ValueError(f"there is no command {name}: {hint}")
    known = SUBCOMMANDS.get(name, {})
    near = difflib.get_close_matches(below, known, n=1)
    if near and below not in known and not below.startswith("-"):
        raise ValueError(f"there is no command {name} {below}: did you mean {name} {near[0]}?")


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
