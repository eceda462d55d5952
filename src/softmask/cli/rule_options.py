"""Options that name rules of decoding, and the modules that they come from."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..rules import Kind, added, import_rule

PACKAGE = Path(__file__).parents[1]
# Settings that name a rule.
RULE_FIELDS: dict[str, Kind] = {
    "alg": "commit",
    "mode": "feedback",
    "transparency_alg": "feedback",
    "stop_rule": "stopping",
}


def add_rules_option(group: Any) -> None:
    """Modules with rules of decoding."""
    group.add_argument(
        "--rules",
        type=import_modules,
        metavar="MODULE,...",
        help="import these modules, which register rules of decoding (docs/guides/research.md)",
    )


def import_modules(text: str) -> str:
    """Imports the modules of a list; the folder that the command runs in is looked into too.

    Raises:
        argparse.ArgumentTypeError: there is no such module.
    """
    _look_here()
    for name in text.split(","):
        _check_module(name)
        with _explained():
            importlib.import_module(name)
    return text


def _check_module(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        own = Path(name).stem
        hint = f", as in {own}" if own.isidentifier() else ""
        raise argparse.ArgumentTypeError(
            f"{name!r} is no module: name it as in an import, without folder and .py{hint}"
        )


def rule_name(text: str) -> str:
    """A rule's name; of MODULE:NAME the module is imported first.

    Raises:
        argparse.ArgumentTypeError: there is no such module, or no rule in it.
    """
    if ":" not in text:
        return text
    _look_here()
    module, _, name = text.partition(":")
    if not module or not name:
        raise argparse.ArgumentTypeError(f"write MODULE:NAME and not {text!r}")
    _check_module(module)
    with _explained():
        return import_rule(text).name


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Within: a module that is not there, or no Python, is one sentence."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise argparse.ArgumentTypeError(f"there is no module {error.name}") from error
    except SyntaxError as error:
        raise argparse.ArgumentTypeError(
            f"{error.filename}:{error.lineno} is no Python ({error.msg}): correct it"
        ) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except TypeError as error:  # argparse would say that the name is wrong
        where = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(where) if not _is_ours(frame.filename)), where[-1])
        raise argparse.ArgumentTypeError(f"{own.filename}:{own.lineno}: {error}") from error


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(PACKAGE) or file.startswith("<frozen")


def _look_here() -> None:
    """The installed command does not look for modules where it is run, as `python -m` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def rule_options(text: str) -> dict[str, Any]:
    """A rule's options, written NAME=VALUE,... or as a JSON object.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    try:
        if text.startswith("{"):
            return dict(json.loads(text))
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {name.strip(): _value(word) for name, word in pairs}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"write NAME=VALUE,... and not {text!r}") from error


def _value(word: str) -> Any:
    """A number or a truth value where it is one, else the word."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def name_rules(parser: argparse.ArgumentParser) -> None:
    """Adds the rules that are known by now to the options' help: --rules may have brought some."""
    for action in parser._actions:
        if kind := getattr(action, "rules_of", None):
            own = ", ".join(rule.name for rule in added(kind))
            base = (action.help or "").partition("; also ")[0]
            action.help = f"{base}; also {own}" if own else base
