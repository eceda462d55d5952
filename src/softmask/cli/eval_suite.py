"""softmask eval suite: a named suite, plain and soft-masked, at several numbers of forwards.

Runs all of its cells, and prints its table. A run that was stopped goes on by the same command.
With --templates each cell runs once under each of several prompts, in place of the suite's own.
The suites:
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import require
from ..evaluation.config import model_args
from ..evaluation.suites import MODES, SUITES, Cell, Suite
from ..evaluation.templates import check_prompts, evaluate_under
from ..reporting.progress import progress
from .eval_options import (
    add_eval_model,
    add_task_options,
    add_template_option,
    load_lm,
    logger_of,
    named_model_args,
    need_lm_eval,
    read_config,
    read_template_option,
)
from .options import add_hidden, new_parser, set_threads, words

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.spread import Spread


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    titles = [f"    {name:<22} {suite.title}" for name, suite in SUITES.items()]
    parser = new_parser("eval suite", "\n".join([__doc__ or "", *titles]))
    parser.add_argument("suite", choices=sorted(SUITES), metavar="SUITE", help="one of the above")
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
    add_template_option(parser)
    add_task_options(parser)
    add_eval_model(parser)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    from rich.console import Console

    from ..evaluation.suites import cells

    suite = SUITES[args.suite]
    require(
        args.against is None or bool(suite.published),
        f"no published score is known for the suite {args.suite}: leave out --against",
    )
    templates = read_template_option(args)
    require(
        args.against is None or not templates,
        "the published scores are of the suite's own prompts: leave out --against or --templates",
    )
    named, fractions = named_model_args(args), _fractions(args.fractions)
    model, config = model_args(named), read_config(args, (suite.parts[0].task,))
    require("nfe" not in named, "a suite has several numbers of forwards: --fractions, not --nfe")
    require(
        "softmasking" not in named, "a suite is run plain and soft-masked: --modes, not --soft-mask"
    )
    require(
        "diffusion_steps" not in named or len(fractions or suite.fractions) == 1,
        "--steps would be the same at each number of forwards: give one of --fractions too",
    )
    work = cells(
        suite,
        model,
        config,
        modes=words(args.modes) if args.modes else None,
        fractions=fractions,
        tasks=words(args.tasks) if args.tasks else None,
        named=named,
    )
    out = args.out or Path("evals") / (args.suite + ("-templates" if templates else ""))
    need_lm_eval()
    with progress("reading the tasks"):
        from ..evaluation.definitions import check_tasks
        from ..evaluation.evaluate import evaluate

        every = dataclasses.replace(config, tasks=tuple(cell.part.task for cell in work))
        for one in [template.of(every) for template in templates] or [every]:
            check_tasks(one)
    _check_soft_masks(work)
    found: list[tuple[Cell, list[dict[str, Any]]]] = []
    spreads: list[tuple[Cell, list[Spread]]] = []
    loaded: str | None = None
    lm: Any = None
    work.sort(key=lambda cell: MODES.index(cell.mode))
    for number, cell in enumerate(work, 1):
        own = cell.args
        if cell.mode == "plain" and args.plain_adapter is not None:
            own = dataclasses.replace(own, adapter=args.plain_adapter)
        if lm is None or loaded != own.adapter:
            lm = None  # before the next one is there
            lm, loaded = load_lm(own), own.adapter
            check_prompts(templates, lm.tokenizer, lm.checkpoint.name)
        say = logger_of(lm)
        say(f"{number}/{len(work)}  {cell.folder}")
        what = (lm, own, cell.config, out / cell.folder)
        how: Any = {"command": ["softmask", *argv], "overwrite": args.overwrite, "report": say}
        if templates:
            spreads.append((cell, evaluate_under(templates, *what, **how)))
        else:
            found.append((cell, evaluate(*what, **how)))
    if lm.ranks.index == 0:
        for table in _tables(suite, found, spreads, against=args.against is not None):
            Console().print(table)
        print(out)
    lm.ranks.leave()
    return 0


def _check_soft_masks(work: Sequence[Cell]) -> None:
    """Raises ValueError where soft cells lack parameters: hours of plain ones come before them."""
    from ..hub.checkpoints import find

    soft = [cell.args for cell in work if cell.mode == "soft"]
    if not soft:
        return
    one = soft[0]  # all are of one model
    source = find(one.pretrained, one.adapter, revision=one.revision, family=one.family)
    for args in soft:
        args.soft_mask(source.soft_mask, source.name)


def _tables(
    suite: Suite,
    found: list[tuple[Cell, list[dict[str, Any]]]],
    spreads: list[tuple[Cell, list[Spread]]],
    *,
    against: bool,
) -> list[Table]:
    """The suite's scores, of one prompt or over templates, and beside published ones if asked."""
    from ..evaluation.spread import suite_spreads
    from ..evaluation.suites import against_published, suite_table

    if spreads:
        return [suite_spreads(suite, spreads)]
    compared = against_published(suite, found) if against else None
    return [suite_table(suite, found), *([] if compared is None else [compared])]


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
