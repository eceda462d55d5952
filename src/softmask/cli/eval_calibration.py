"""softmask eval calibration: whether a model's confidence means what it says, under feedback.

Reads the same masks again and again, each time with the feedback of the pass before and nothing
committed, and decodes: how sure the model is, how often it is right, and what is committed
wrongly, with feedback and without. On Sudokus made anew, or on a text of yours.

    softmask eval calibration --puzzles sudoku_9x9
    softmask eval calibration --texts held_out.txt --share 0.5 --steps 32
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..config import SamplingConfig, from_mapping
from ..evaluation.config import ModelArgs
from ..evaluation.measure_config import CalibrationConfig
from ..files import write_atomically
from ..reporting.plots import need_matplotlib
from ..reporting.progress import progress
from .eval_options import add_eval_model, add_record_options
from .eval_texts import digest_of, measure_and_record, read_texts
from .options import add_settings, given, new_parser, path_of, set_threads

PUZZLES = ("sudoku_9x9",)
COUNT, GIVENS = 100, 30
BY_TEXT = "samples_calibration.jsonl"
# Settings of the harness' tasks, and those that this command has as its own.
LEFT_OUT = (
    *("batch_size", "max_batch_size", "seed", "add_bos_token", "max_length", "max_new_tokens"),
    *("escape_until", "end_penalty", "mc_num", "mc_batch_size"),
)


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval calibration", __doc__)
    parser.add_argument("--puzzles", choices=PUZZLES, help="on Sudokus made anew")
    parser.add_argument("--givens", type=int, help=f"given digits of each (default: {GIVENS})")
    parser.add_argument("--count", type=int, help=f"how many of them (default: {COUNT})")
    parser.add_argument("--texts", type=path_of, help="on a text, or jsonl with `text`")
    parser.add_argument("--limit", type=int, help="only the first so many windows of the texts")
    add_settings(parser, CalibrationConfig, "--", {})
    add_record_options(parser)
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    add_eval_model(parser, LEFT_OUT)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    config = from_mapping(CalibrationConfig, given(args, CalibrationConfig), "options")
    what = {"calibration": dataclasses.asdict(config), **_subject(args)}
    need_matplotlib()

    from ..evaluation.calibration import calibration, puzzle_canvases, text_canvases
    from ..evaluation.calibration_plot import PLOT, draw, table_of
    from ..evaluation.held_out import windows
    from ..puzzles.solve import ALG, fresh_puzzles

    texts = [] if args.texts is None else read_texts(args.texts)

    def measure(checkpoint: Any, model: ModelArgs, folder: Path) -> dict[str, Any]:
        soft = model.soft_mask(checkpoint.soft_mask, checkpoint.name)
        if args.puzzles is not None:
            with progress("making puzzles"):
                made = fresh_puzzles(what["count"], [args.puzzles], what["givens"])[args.puzzles]
            canvases = puzzle_canvases(checkpoint, made)
        else:
            cut = windows(checkpoint.tokenizer, texts, config.length)[: args.limit]
            canvases = text_canvases(cut, config.share, config.seed)
        # As puzzles are solved elsewhere, unless the command line says otherwise.
        usual = {} if args.puzzles is None else {"alg": ALG}

        def sampling(masks: int) -> SamplingConfig:
            return model.sampling(masks, usual)

        found = dataclasses.asdict(calibration(checkpoint, canvases, config, soft, sampling))
        draw(found, folder / PLOT)
        lines = [json.dumps(row) + "\n" for row in found.pop("by_text")]
        write_atomically(folder / BY_TEXT, "".join(lines))
        return found

    if args.texts is not None:
        what["data"] = digest_of(texts)
    subject = args.puzzles or args.texts.stem
    return measure_and_record(args, argv, f"calibration-{subject}", what, measure, table_of)


def _subject(args: argparse.Namespace) -> dict[str, Any]:
    """What is read, for the record.

    Raises:
        ValueError: nothing is, or two things are, or an option is of the other one.
    """
    if (args.puzzles is None) == (args.texts is None):
        raise ValueError("give --puzzles sudoku_9x9 or --texts FILE")
    for name, needed in (
        *(("givens", "puzzles"), ("count", "puzzles"), ("limit", "texts")),
        *(("share", "texts"), ("length", "texts")),
    ):
        value = getattr(args, name, None)
        if value is None:
            value = given(args, CalibrationConfig).get(name)
        if value is not None and getattr(args, needed) is None:
            raise ValueError(f"--{name} goes with --{needed}")
    for name in ("count", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.texts is not None:
        return {"limit": args.limit}
    return {
        "puzzles": args.puzzles,
        "givens": GIVENS if args.givens is None else args.givens,
        "count": COUNT if args.count is None else args.count,
    }
