"""softmask eval: a model's scores on tasks of lm-evaluation-harness, with a record.

Evaluates a model on tasks of lm-evaluation-harness, upstream's and those in this package.

    softmask eval --tasks gsm8k_cot --model BASE --adapter ADAPTER --apply-chat-template
    softmask eval --tasks gsm8k_cot --templates raw,own,steps --model BASE --adapter ADAPTER
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

from ..evaluation.templates import check_prompts, evaluate_under
from ..reporting.progress import progress
from .eval_options import (
    add_eval_model,
    add_prompt_options,
    add_task_options,
    add_template_option,
    load_lm,
    logger_of,
    name_of_record,
    need_lm_eval,
    read_config,
    read_model_args,
    read_template_option,
)
from .options import new_parser, set_threads, words


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval", __doc__)
    parser.add_argument("--tasks", required=True, help="names, with commas between them")
    add_template_option(parser)
    add_prompt_options(parser)
    add_task_options(parser)
    add_eval_model(parser)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    model = read_model_args(args)
    tasks = words(args.tasks)
    config = read_config(args, tasks)
    templates = read_template_option(args)
    name = name_of_record(model, tasks) + ("-templates" if templates else "")
    folder = args.out or Path("evals") / name
    from rich.console import Console

    need_lm_eval()
    with progress("reading the tasks"):
        from ..evaluation import spread
        from ..evaluation.definitions import check_tasks
        from ..evaluation.evaluate import evaluate, table_of

        for one in [template.of(config) for template in templates] or [config]:
            check_tasks(one)
    lm = load_lm(model)
    check_prompts(templates, lm.tokenizer, lm.checkpoint.name)
    say = logger_of(lm)
    what = (lm, model, config, folder)
    how: Any = {"command": ["softmask", *argv], "overwrite": args.overwrite, "report": say}
    if templates:
        tables = spread.tables_of(evaluate_under(templates, *what, **how))
    else:
        tables = [table_of(evaluate(*what, **how), _title(lm))]
    if lm.ranks.index == 0:
        for table in tables:
            Console().print(table)
        print(folder)
    lm.ranks.leave()
    return 0


def _title(lm: Any) -> str:
    soft = lm.soft_mask
    how = "plain" if soft is None else f"soft-masked, k={soft.k}, scale {soft.scale:.3g}"
    return f"{lm.checkpoint.name}, {how}"
