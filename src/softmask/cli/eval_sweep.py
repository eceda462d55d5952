"""softmask eval sweep: score against tokens per forward, over steps, thresholds and feedback.

Evaluates tasks once for each value and feedback, each in a folder of its own, and prints scores,
tokens per forward, paired differences and areas. A run that was stopped goes on by the same
command, and one that names more values adds them.

    softmask eval sweep --tasks gsm8k_cot --steps 1,1/2,1/4 --threshold .7,.9 --feedback off
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from ..config import FEEDBACK_PRESETS, require
from ..evaluation.config import SWEPT, ModelArgs
from ..files import write_atomically
from ..reporting.plots import need_matplotlib
from ..reporting.progress import progress
from .eval_options import (
    add_eval_model,
    add_prompt_options,
    add_task_options,
    load_lm,
    logger_of,
    name_of_record,
    need_lm_eval,
    read_config,
    read_model_args,
)
from .options import add_hidden, new_parser, set_threads, words

T = TypeVar("T")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval sweep", __doc__)
    parser.add_argument("--tasks", required=True, help="names, with commas between them")
    parser.add_argument("--steps", metavar="SHARES", help="denoising steps a mask: 1,1/2,1/4")
    parser.add_argument(
        "--threshold", metavar="VALUES", help="commit every token likelier than this: .7,.8,.9"
    )
    parser.add_argument(
        "--entropy-threshold",
        metavar="VALUES",
        help="commit every position of less entropy: .05,.2,.45",
    )
    parser.add_argument(
        "--feedback",
        metavar="NAMES",
        default="off,published",
        help=f"of {', '.join(FEEDBACK_PRESETS)} (default: off,published)",
    )
    parser.add_argument(
        "--metric", help="NAME or NAME,FILTER (default: a suite's own, or the task's first)"
    )
    add_hidden(parser, "--templates")
    add_prompt_options(parser)
    add_task_options(parser)
    add_eval_model(parser, leave_out=SWEPT, soft_mask=False)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    require(
        args.templates is None,
        "a sweep is of one prompt: give --templates to `softmask eval`, with the settings of one "
        "point (--nfe, --threshold, ...), or to `softmask eval suite`",
    )
    set_threads(args.threads)
    from rich.console import Console

    from ..evaluation.sweep import RESULT, chosen, points, read, tables_of
    from ..evaluation.sweep_plot import PLOT, draw

    model: ModelArgs = read_model_args(args)
    tasks = words(args.tasks)
    config = read_config(args, tasks)
    found = points(
        model,
        steps=_values("steps", args.steps, Fraction),
        threshold=_values("threshold", args.threshold, float),
        entropy_threshold=_values("entropy-threshold", args.entropy_threshold, float),
        feedback=words(args.feedback),
    )
    out: Path = args.out or Path("evals") / f"{name_of_record(model, tasks)}-sweep"
    need_lm_eval()
    need_matplotlib()
    with progress("reading the tasks"):
        from ..evaluation.definitions import check_generates, check_tasks
        from ..evaluation.evaluate import evaluate

        check_generates(config)
        check_tasks(config)
    lm: Any = load_lm(model)
    for point in found:
        point.args.soft_mask(lm.checkpoint.soft_mask, lm.checkpoint.name)  # before the first runs
    say = logger_of(lm)
    for number, point in enumerate(found, 1):
        say(f"{number}/{len(found)}  {point.name}")
        rows = evaluate(
            *(lm, point.args, config, out / point.name),
            command=["softmask", *argv],
            overwrite=args.overwrite,
            report=say,
        )
        chosen(rows, args.metric)  # known by now; hours of other points may follow
    if lm.ranks.index == 0:
        sweep = read(found, out, args.metric)
        write_atomically(out / RESULT, json.dumps(dataclasses.asdict(sweep), indent=1) + "\n")
        draw(sweep, out / PLOT)
        for table in tables_of(sweep):
            Console().print(table)
        print(out)
    lm.ranks.leave()
    return 0


def _values(name: str, text: str | None, read: Callable[[str], T]) -> list[T]:
    if text is None:
        return []
    try:
        return [read(piece) for piece in text.split(",")]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"--{name} takes numbers with commas between them, not {text!r}"
        ) from error
