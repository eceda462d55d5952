"""softmask eval: a model's scores on tasks of lm-evaluation-harness, with a record.

Evaluates a model on tasks of lm-evaluation-harness, upstream's and those in this package.

    softmask eval --tasks gsm8k_cot --model BASE --adapter ADAPTER --apply-chat-template
    softmask eval suite dream --model BASE --adapter ADAPTER --confirm-run-unsafe-code
    softmask eval sweep --tasks gsm8k_cot --steps 1,1/2,1/4 --threshold .7,.9 --model BASE
    softmask eval compare evals/dream/plain evals/dream/soft
    softmask eval ppl --data held_out.txt
    softmask eval samples --scorer gpt2
    softmask eval calibration --puzzles sudoku_9x9

`softmask eval suite -h`, and likewise sweep, report, compare, ppl, samples and calibration,
explains those. A run that was stopped goes on by the same command; several GPUs: torchrun
--nproc_per_node 4 -m softmask eval ...
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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
from .options import new_parser, set_threads


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval", __doc__)
    parser.add_argument("--tasks", required=True, help="names, with commas between them")
    add_prompt_options(parser)
    add_task_options(parser)
    add_eval_model(parser)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    model = read_model_args(args)
    tasks = tuple(args.tasks.split(","))
    config = read_config(args, tasks)
    folder = args.out or Path("evals") / name_of_record(model, tasks)
    from rich.console import Console

    need_lm_eval()
    with progress("reading the tasks"):
        from ..evaluation.evaluate import check_tasks, evaluate, table_of

        check_tasks(config)
    lm = load_lm(model)
    rows = evaluate(
        lm,
        model,
        config,
        folder,
        command=["softmask", *argv],
        overwrite=args.overwrite,
        report=logger_of(lm),
    )
    if lm.ranks.index == 0:
        Console().print(table_of(rows, _title(lm)))
        print(folder)
    lm.ranks.leave()
    return 0


def _title(lm: Any) -> str:
    soft = lm.soft_mask
    how = "plain" if soft is None else f"soft-masked, k={soft.k}, scale {soft.scale:.3g}"
    return f"{lm.checkpoint.name}, {how}"
