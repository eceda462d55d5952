"""softmask eval ppl: a bound on the perplexity of held-out texts, with a record.

Bound on the perplexity of held-out texts: plain, and soft-masked with the feedback of a pass over
the same masks (two forwards) and of the step before (what the sampler has), all on the same
masks.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..config import PUBLISHED_KEYS, from_mapping
from ..evaluation.config import ModelArgs, read_batch_size
from ..evaluation.measure_config import HeldOutConfig
from .eval_options import add_eval_model, add_record_options
from .eval_texts import digest_of, measure_and_record, read_texts
from .options import add_settings, given, new_parser, path_of, set_threads


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval ppl", __doc__)
    parser.add_argument("--data", type=path_of, required=True, help="a text, or jsonl with `text`")
    parser.add_argument("--limit", type=int, help="only the first so many windows")
    add_settings(parser, HeldOutConfig, "--", {})
    add_record_options(parser)
    add_eval_model(
        parser, tuple(f.name for f in dataclasses.fields(ModelArgs) if f.name not in PUBLISHED_KEYS)
    )
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    values = given(args, HeldOutConfig)
    if "batch_size" in values:
        values["batch_size"] = read_batch_size(values["batch_size"])
    config = from_mapping(HeldOutConfig, values, "options")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {args.limit}")

    texts = read_texts(args.data)

    from ..evaluation.held_out import held_out, table_of, windows

    def measure(checkpoint: Any, model: ModelArgs, _folder: Path) -> dict[str, Any]:
        soft = model.soft_mask(checkpoint.soft_mask, checkpoint.name)
        cut = windows(checkpoint.tokenizer, texts, config.length)[: args.limit]
        return dataclasses.asdict(held_out(checkpoint.model, cut, config, soft))

    what = {"held_out": dataclasses.asdict(config), "limit": args.limit, "data": digest_of(texts)}
    return measure_and_record(args, argv, f"ppl-{args.data.stem}", what, measure, table_of)
