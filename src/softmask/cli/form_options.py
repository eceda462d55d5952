"""Options that ask for the form of an answer."""

from __future__ import annotations

import argparse
import json

from ..constraints.constraint import Constraint
from ..files import read_text
from .options import path_of

OPTIONS = ("regex", "json_schema", "json_object", "choice", "grammar")


def add_form_options(parser: argparse.ArgumentParser) -> None:
    """Adds them: of an infilling they are of the text from its first hole to its last."""
    group = parser.add_argument_group("the form of the answer, which it keeps to")
    group.add_argument("--regex", metavar="PATTERN", help="all of it matches this, as by re")
    group.add_argument(
        "--json-schema", type=path_of, metavar="FILE", help="it is JSON that validates against FILE"
    )
    group.add_argument("--json-object", action="store_true", help="it is a JSON object")
    group.add_argument(
        "--choice", action="append", metavar="TEXT", help="it is this text, or another --choice"
    )
    group.add_argument(
        "--grammar",
        type=path_of,
        metavar="FILE",
        help="it is of this grammar (GBNF or Lark)",
    )


def constraint_of(args: argparse.Namespace) -> Constraint | None:
    """The form that the options ask for; None: any text.

    Raises:
        ValueError: two of them contradict each other, or a file cannot be read.
    """
    given = [name for name in OPTIONS if getattr(args, name) not in (None, False)]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{names} each say what the answer is: give one of them")
    if args.regex is not None:
        return Constraint("regex", args.regex)
    if args.json_schema is not None:
        return Constraint("json_schema", read_text(args.json_schema))
    if args.choice is not None:
        return Constraint("choice", json.dumps(args.choice))
    if args.grammar is not None:
        return Constraint("grammar", read_text(args.grammar))
    return Constraint("json_object") if args.json_object else None
