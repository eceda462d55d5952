"""softmask eval samples: the quality of free texts, with a record.

Quality of free texts: perplexity under another model, entropy, distinct n-grams, repetition,
MAUVE. Writes the texts itself, or reads them.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..evaluation.config import ModelArgs
from ..reporting.progress import progress
from .eval_options import add_eval_model, add_record_options, need_lm_eval, read_model_args
from .eval_texts import digest_of, measure_and_record, read_texts
from .options import new_parser, path_of, set_threads

COUNT = 64


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("eval samples", __doc__)
    parser.add_argument("--texts", type=path_of, help="judge these: jsonl with `text`")
    parser.add_argument("--count", type=int, help=f"else: texts to write ({COUNT})")
    parser.add_argument("--prompt", help="what every text goes on from, and is judged without")
    parser.add_argument("--scorer", help="folder or Hub id of a causal model that scores")
    parser.add_argument("--references", type=path_of, help="real texts, for MAUVE (needs --scorer)")
    add_record_options(parser)
    add_eval_model(parser)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    set_threads(args.threads)
    for name in ("count", "prompt"):
        if args.texts is not None and getattr(args, name) is not None:
            raise ValueError(f"--texts are judged as they are: leave out --{name}")
    count = COUNT if args.count is None else args.count
    if count < 1:
        raise ValueError(f"--count must be at least 1, not {count}")
    references = None if args.references is None else read_texts(args.references)
    given_texts = None if args.texts is None else read_texts(args.texts)
    if references is not None and args.scorer is None:
        raise ValueError("--references are for MAUVE, which needs --scorer too")

    from ..decoding.prompts import encode
    from ..evaluation import text_quality

    # Before hours of writing, and before a folder is claimed by a wrong name.
    if references is not None:
        text_quality.check_references(references)
    scorer = None
    if args.scorer is not None:
        size = read_model_args(args).batch_size
        size = size if isinstance(size, int) else 8
        scorer = text_quality.Scorer(args.scorer, device=args.device, batch_size=size)

    def measure(checkpoint: Any, model: ModelArgs, folder: Path) -> dict[str, Any]:
        texts, ran = given_texts, dict[str, Any]()
        if texts is None:
            texts, ran = _write_texts(checkpoint, model, folder, args.prompt or "", count)
        ids = [encode(checkpoint, text) for text in texts]
        return {
            **dataclasses.asdict(text_quality.quality(texts, ids, scorer, references)),
            "texts": [f"{args.prompt or ''}{text}" for text in texts],
            **ran,
        }

    what = {
        "scorer": args.scorer,
        "count": count,
        "prompt": args.prompt,
        "given": None if given_texts is None else digest_of(given_texts),
        "references": None if references is None else digest_of(references),
    }
    files = {"scorer_files": _fingerprint(args.scorer)}
    return measure_and_record(args, argv, "samples", what, measure, text_quality.table_of, files)


def _write_texts(
    checkpoint: Any, model: ModelArgs, folder: Path, prompt: str, count: int
) -> tuple[list[str], dict[str, Any]]:
    """Texts that go on from the prompt, each with a stream of its own; kept as they come. And how
    many were written at once."""
    need_lm_eval()
    with progress("loading the harness"):
        from lm_eval.api.instance import Instance

        from ..evaluation.harness import SoftMaskLM
        from ..evaluation.responses import Responses

    lm = SoftMaskLM.around(checkpoint, model, Responses(folder))
    # Temperature 1 where nothing else is said: greedy texts would all be one.
    request = Instance("generate_until", {}, (prompt, {"do_sample": True}), 0, ("samples", 0, 1))
    return lm.generate_until([request] * count), {"batching": lm.batching()}


def _fingerprint(scorer: str | None) -> str | None:
    """Of a scorer in a folder, which may be trained on."""
    from ..hub.checkpoints import fingerprint

    return fingerprint(Path(scorer)) if scorer is not None and Path(scorer).is_dir() else None
