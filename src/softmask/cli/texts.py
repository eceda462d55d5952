"""softmask eval ppl | eval samples: measures of texts, each with a record."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import PUBLISHED_KEYS, from_mapping
from ..decoding.prompts import encode
from ..evaluation import held_out as bound
from ..evaluation import record, text_quality
from ..evaluation.config import ModelArgs
from ..evaluation.held_out import HeldOutConfig
from ..hub.load import load
from .evaluate import add_model, add_out, need_lm_eval, read_model_args
from .options import add_settings, given


def ppl_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softmask eval ppl",
        description="Bound on the perplexity of held-out texts: plain, and soft-masked with the "
        "feedback of a pass over the same masks (two forwards) and of the step before (what the "
        "sampler has), all on the same masks.",
    )
    parser.add_argument("--data", type=Path, required=True, help="a text, or jsonl with `text`")
    parser.add_argument("--limit", type=int, help="only the first so many windows")
    add_settings(parser, HeldOutConfig, "--", {})
    add_out(parser)
    add_model(
        parser, tuple(f.name for f in dataclasses.fields(ModelArgs) if f.name not in PUBLISHED_KEYS)
    )
    return parser


def samples_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softmask eval samples",
        description="Quality of free texts: perplexity under another model, entropy, distinct "
        "n-grams, repetition, MAUVE. Writes the texts itself, or reads them.",
    )
    parser.add_argument("--texts", type=Path, help="judge these: jsonl with `text`")
    parser.add_argument("--count", type=int, default=64, help="else: texts to write (64)")
    parser.add_argument("--prompt", help="beginning of every text (default: none)")
    parser.add_argument("--scorer", help="folder or Hub id of a causal model that scores")
    parser.add_argument("--references", type=Path, help="real texts, for MAUVE (needs --scorer)")
    add_out(parser)
    add_model(parser)
    return parser


def ppl(args: argparse.Namespace, command: list[str]) -> int:
    config = from_mapping(HeldOutConfig, given(args, HeldOutConfig), "options")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {args.limit}")
    texts = _read_texts(args.data)

    def measure(checkpoint: Any, model: ModelArgs, _folder: Path) -> dict[str, Any]:
        soft = model.soft_mask(checkpoint.soft_mask, checkpoint.name)
        cut = bound.windows(checkpoint.tokenizer, texts, config.length)[: args.limit]
        return dataclasses.asdict(bound.held_out(checkpoint.model, cut, config, soft))

    what = {"held_out": dataclasses.asdict(config), "limit": args.limit, "data": _digest(texts)}
    return _measured(args, command, f"ppl-{args.data.stem}", what, measure, bound.table_of)


def samples(args: argparse.Namespace, command: list[str]) -> int:
    if args.count < 1:
        raise ValueError(f"--count must be at least 1, not {args.count}")
    references = None if args.references is None else _read_texts(args.references)
    given_texts = None if args.texts is None else _read_texts(args.texts)
    if references is not None and args.scorer is None:
        raise ValueError("--references are for MAUVE, which needs --scorer too")

    def measure(checkpoint: Any, model: ModelArgs, folder: Path) -> dict[str, Any]:
        texts = given_texts
        if texts is None:
            texts = _write_texts(checkpoint, model, folder, args.prompt or "", args.count)
        scorer = None
        if args.scorer is not None:
            scorer = text_quality.Scorer(
                args.scorer, device=args.device, batch_size=model.batch_size
            )
        ids = [encode(checkpoint, text) for text in texts]
        return {
            **dataclasses.asdict(text_quality.quality(texts, ids, scorer, references)),
            "texts": texts,
        }

    what = {
        "scorer": args.scorer,
        "count": args.count,
        "prompt": args.prompt,
        "given": None if given_texts is None else _digest(given_texts),
        "references": None if references is None else _digest(references),
    }
    return _measured(args, command, "samples", what, measure, text_quality.table_of)


def _write_texts(
    checkpoint: Any, model: ModelArgs, folder: Path, prompt: str, count: int
) -> list[str]:
    """Texts that begin with the prompt, each with a stream of its own; kept as they come."""
    need_lm_eval()
    from lm_eval.api.instance import Instance

    from ..evaluation.harness import SoftMaskLM
    from ..evaluation.responses import Responses

    lm = SoftMaskLM.around(checkpoint, model, Responses(folder))
    # Temperature 1 where nothing else is said: greedy texts would all be one.
    request = Instance("generate_until", {}, (prompt, {"do_sample": True}), 0, ("samples", 0, 1))
    return [prompt + text for text in lm.generate_until([request] * count)]


def _measured(
    args: argparse.Namespace,
    command: list[str],
    name: str,
    what: dict[str, Any],
    measure: Callable[[Any, ModelArgs, Path], dict[str, Any]],
    table_of: Callable[[dict[str, Any]], Any],
) -> int:
    """Measures a checkpoint in one process, keeps a record, and shows the table."""
    model = read_model_args(args)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "eval ppl and eval samples run in one process: start them without a launcher"
        )
    checkpoint = load(**model.to_load)
    folder = args.out or Path("evals") / name
    settings = record.settings_of(checkpoint, model, **{name.split("-")[0]: what})
    found = record.claim(folder, settings, args.overwrite)
    if found is None:
        run = {**record.origin(command), **settings}
        record.write(folder / record.RUN, run)
        found = measure(checkpoint, model, folder)
        record.write(folder / record.RUN, run | {"finished": record.now()})
        record.write(folder / record.RESULTS, found)
    Console().print(table_of(found))
    print(folder)
    return 0


def _read_texts(path: Path) -> list[str]:
    """The texts of a file: `text` of each line of a .jsonl, else the whole file as one.

    Raises:
        ValueError: no such file, not UTF-8, or a line without a text.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it first") from error
    if path.suffix != ".jsonl":
        return [content]
    texts = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            texts.append(json.loads(line)["text"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{path}, line {number}: expected {{"text": "..."}}') from error
    return texts


def _digest(texts: Sequence[str]) -> str:
    """What tells these texts from others."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
