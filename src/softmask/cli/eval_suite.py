"""softmask eval suite: a named suite, plain and soft-masked, at several numbers of forwards.

Runs all of its cells, and prints its table. A run that was stopped goes on by the same command.
The suites:
"""

from __future__ import annotations

import argparse
import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..config import require
from ..evaluation.suites import MODES, SUITES
from ..reporting.progress import progress
from .eval_options import (
    add_eval_model,
    add_task_options,
    load_lm,
    logger_of,
    need_lm_eval,
    read_config,
    read_model_args,
)
from .options import add_hidden, new_parser, set_threads


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    titles = "; ".join(f"{name}: {suite.title}" for name, suite in SUITES.items())
    parser = new_parser("eval suite", f"{__doc__}{titles}.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--tasks", help="only these of the suite, with commas between them")
    parser.add_argument("--modes", help="plain, soft, or both (default: the suite's)")
    parser.add_argument("--fractions", help="forwards for each token: 1,1/2,1/4 (default: all)")
    parser.add_argument(
        "--against",
        choices=["published"],
        help="a second table: ours beside the published scores, the difference in standard errors",
    )
    parser.add_argument(
        "--plain-adapter",
        help="decode the plain cells with this adapter (fine-tuned without soft-masking), and "
        "not with --adapter, soft-masking off",
    )
    add_hidden(parser, "--binary-adapter", dest="plain_adapter")
    add_task_options(parser)
    add_eval_model(parser)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    from rich.console import Console

    from ..evaluation.suites import against_published, cells, suite_table

    suite = SUITES[args.suite]
    require(
        args.against is None or bool(suite.published),
        f"no published score is known for the suite {args.suite}: leave out --against",
    )
    model, config = read_model_args(args), read_config(args, (suite.parts[0].task,))
    work = cells(
        suite,
        model,
        config,
        modes=args.modes.split(",") if args.modes else None,
        fractions=_fractions(args.fractions),
        tasks=args.tasks.split(",") if args.tasks else None,
    )
    out = args.out or Path("evals") / args.suite
    need_lm_eval()
    with progress("reading the tasks"):
        from ..evaluation.evaluate import check_tasks, evaluate

        check_tasks(dataclasses.replace(config, tasks=tuple(cell.part.task for cell in work)))
    found, loaded = [], None
    lm: Any = None
    work.sort(key=lambda cell: MODES.index(cell.mode))
    for number, cell in enumerate(work, 1):
        own = cell.args
        if cell.mode == "plain" and args.plain_adapter is not None:
            own = dataclasses.replace(own, adapter=args.plain_adapter)
        if lm is None or loaded != own.adapter:
            lm = None  # before the next one is there
            lm, loaded = load_lm(own), own.adapter
        say = logger_of(lm)
        say(f"{number}/{len(work)}  {cell.folder}")
        rows = evaluate(
            *(lm, own, cell.config, out / cell.folder),
            command=["softmask", *argv],
            overwrite=args.overwrite,
            report=say,
        )
        found.append((cell, rows))
    compared = against_published(suite, found) if args.against else None
    if lm.ranks.index == 0:
        Console().print(suite_table(suite, found))
        if compared is not None:
            Console().print(compared)
        print(out)
    lm.ranks.leave()
    return 0


def _fractions(text: str | None) -> list[Fraction] | None:
    if text is None:
        return None
    try:
        found = [Fraction(piece) for piece in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"write fractions as 1,1/2,1/4, not {text!r}") from error
    if not all(0 < fraction <= 1 for fraction in found):
        raise ValueError(f"fractions must lie in (0, 1], not {text}")
    return found
