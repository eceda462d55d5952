"""softmask eval report: finished evaluations as one page, with Markdown and LaTeX beside it.

Scores with errors, score against tokens per forward, kinds of failures, sampled answers, what ran
on what. The page needs nothing beside itself and prints. Folders are those of `softmask eval`,
`eval suite` and `eval sweep`.

    softmask eval report evals/dream --out dream.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..config import require
from ..evaluation.config import ModelArgs
from ..files import write_atomically
from ..reporting.plots import need_matplotlib
from .eval_options import load_lm, need_lm_eval
from .options import new_parser, path_of, set_threads


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval report", __doc__)
    parser.add_argument("folders", type=path_of, nargs="+", metavar="DIR")
    parser.add_argument(
        "--out",
        type=path_of,
        default=Path("report.html"),
        help="the page; .md and .tex go beside it (default: report.html)",
    )
    parser.add_argument("--samples", type=int, default=10, help="answers shown of a task")
    parser.add_argument(
        "--trace",
        action="store_true",
        help="also run one sample of each task again, and show its steps",
    )
    parser.add_argument("--title", help="of the page")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    require(args.out.suffix == ".html", f"{args.out.name} must end in .html")
    require(args.out.parent.is_dir(), f"there is no folder for {args.out}")
    beside = [args.out.with_suffix(".md"), args.out.with_suffix(".tex")]
    # Without a page they are of no earlier report: a text of somebody's, by the same name.
    foreign = [] if args.out.exists() else [path.name for path in beside if path.exists()]
    require(
        not foreign,
        f"{', '.join(foreign)} would be overwritten, and no {args.out.name} is beside: name "
        "another page by --out",
    )
    require(args.samples >= 1, f"--samples must be at least 1, not {args.samples}")
    set_threads(args.threads)
    need_lm_eval()
    need_matplotlib()
    from ..evaluation.report import read_runs, read_spreads, read_tasks
    from ..evaluation.report_page import (
        html,
        kinds_table,
        latex,
        markdown,
        scores_table,
        spread_table,
    )

    runs = read_runs(args.folders)
    tasks = read_tasks(runs, args.samples)
    title = args.title or "Evaluation of " + ", ".join(
        dict.fromkeys(str((one.record.get("model") or {}).get("name")) for one in runs)
    )
    held = read_spreads(runs)
    spreads = [spread_table(held)] if held else []
    traces = _traces(tasks) if args.trace else {}
    tables = [scores_table(tasks), *spreads, *(kinds_table(task) for task in tasks if task.kinds)]
    for path, text in (
        (beside[0], markdown(title, tables)),
        (beside[1], latex(tables)),
        (args.out, html(title, runs, tasks, traces, *spreads)),
    ):
        write_atomically(path, text)
    print(f"the page is {args.out}")
    return 0


def _traces(tasks: list[Any]) -> dict[str, tuple[str, str]]:
    """By task the picture of its first sample's run, under the settings of the last run shown.

    Tasks whose holes may be filled at several lengths have none.
    """
    from ..serving.trace import record_ways
    from .svg import picture

    found = {}
    loaded: tuple[dict[str, Any], Any] | None = None
    for task in tasks:
        if not task.samples:
            continue
        shown = task.samples[0].answers[-1]
        one = next(run for run, _ in task.rows if run.name == shown.run)
        try:
            args = ModelArgs(**one.record["model_args"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{one.folder} was evaluated by another version, with other settings ({error}): "
                "leave out --trace"
            ) from error
        if loaded is None or loaded[0] != args.to_load:
            loaded = None  # before the next one is there
            loaded = (args.to_load, load_lm(args))
        chats = bool((one.record.get("evaluation") or {}).get("apply_chat_template"))
        lm = loaded[1].using(args, loaded[1].responses, chats=chats)
        run = lm.generation(*shown.arguments)
        if run is None:
            continue
        trace = record_ways(run, [lm.soft_mask])
        found[task.name] = (picture(trace), f"{one.name} writes: {trace['runs'][0]['end']['text']}")
    return found
