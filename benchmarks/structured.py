"""What a promised form costs: time a step, forwards a valid answer, and the first look at a form.

    python benchmarks/structured.py [FOLDER] [--tokenizer FOLDER] [--hidden 896 --layers 24]

Steps are timed on a random model, over the vocabulary of `--tokenizer` (default: the bundled one):
the same canvas with and without the form in turns, and ratios are of one round. Forwards are those
of the bundled model, once with the form and once without, where an answer counts if it is of the
form anyway. People read the tables; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerFast

import softmask
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint
from softmask.constraints.token_automaton import TokenAutomaton, Vocabulary
from softmask.constraints.vocabulary import token_bytes
from softmask.decoding.batch import Batch
from softmask.decoding.forms import automaton_for
from softmask.decoding.generation import generate
from softmask.decoding.sequence import Rules
from softmask.models import DreamConfig, DreamModel
from softmask.reporting.measure import pair_ratios, summary, timed
from softmask.reporting.progress import progress
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

SOFT = SoftMaskConfig(k=3, scale=0.6, offset=-3.0, steepness=1.0)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "city": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["dogs", "cats", "cake"]}, "maxItems": 3},
    },
    "required": ["name", "city", "age", "likes"],
    "additionalProperties": False,
}
FORMS = {
    "json_schema, 4 fields": Constraint("json_schema", json.dumps(PERSON)),
    "json_object": Constraint("json_object"),
    "regex, a telephone number": Constraint("regex", r"\+[0-9]{2} [0-9]{3} [0-9]{4}"),
    "choice of 3": Constraint("choice", json.dumps(["yes", "no", "I do not know"])),
}
PROMPTS = [
    f"Once upon a time there was a {who} who lived in a {where}. All about the {who}: "
    for who in ("girl", "boy", "dog", "bird")
    for where in ("house", "forest", "town", "box")
]


def make_model(args: argparse.Namespace, vocabulary: int) -> DreamModel:
    """A random model of Dream's architecture, whose last id is the mask."""
    torch.manual_seed(0)
    config = DreamConfig(
        vocab_size=vocabulary,
        hidden_size=args.hidden,
        intermediate_size=5 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(args.hidden // 64, 1),
        num_key_value_heads=max(args.hidden // 448, 1),
        max_position_embeddings=8192,
        mask_token_id=vocabulary - 1,
        pad_token_id=None,
        eos_token_id=0,
    )
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    return DreamModel(config).eval().to(args.device, dtype)


def time_steps(
    model: DreamModel, args: argparse.Namespace, soft: SoftMaskConfig | None, form: Any
) -> list[float]:
    """Seconds of each of the first steps of one text."""
    ids_L = torch.full((args.prompt + args.max_new_tokens,), model.mask_id, device=args.device)
    ids_L[: args.prompt] = torch.arange(1, args.prompt + 1)
    batch = Batch(model, len(ids_L))
    config = SamplingConfig(steps=args.max_new_tokens, alg="entropy", threshold=1.0)
    rules = Rules(suppressed=(model.mask_id,), end_ids=(0,), stop=True)
    batch.add(0, ids_L, config, soft_mask=soft, rules=rules, constraint=form)
    return [timed(batch.step, torch.device(args.device)) for _ in range(args.steps)]


def steps(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> tuple[Table, list[Any]]:
    """The tables and rows of the first looks and of the steps."""
    started = time.perf_counter()
    vocabulary = Vocabulary.of(token_bytes(tokenizer))
    reading = time.perf_counter() - started
    size = math.ceil((len(tokenizer) + 1) / 128) * 128
    model = make_model(args, size)
    table = light_table(
        f"a step of {args.max_new_tokens} masks, vocabulary {size}, width {args.hidden}, "
        f"{args.layers} layers: median milliseconds"
    )
    for column in ("form", "way", "first look s", "free", "of the form", "ratio"):
        table.add_column(column, justify="left" if column in ("form", "way") else "right")
    rows: list[dict[str, Any]] = []
    ways = {"plain": None, "soft-masked": SOFT}
    with progress("timing", total=len(FORMS) * 2 * (args.rounds + 1), unit="rounds") as shown:
        for name, constraint in FORMS.items():
            started = time.perf_counter()
            form = TokenAutomaton(
                compile_constraint(constraint),
                vocabulary,
                encode=lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"],
                end_ids=(0,),
                suppressed=(model.mask_id,),
            )
            look = time.perf_counter() - started
            for way, soft in ways.items():
                free, bound = [], []
                for number in range(args.rounds + 1):
                    for one, seconds in ((None, free), (form, bound)):
                        took = time_steps(model, args, soft, one)
                        if number:  # the first warms up
                            seconds += took
                    shown.advance()
                row = {"form": name, "way": way, "first_look_s": look, "states": form.states}
                row |= {"free_s": summary(free), "bound_s": summary(bound)}
                rows.append(row | {"ratio": pair_ratios(bound, free)})
                medians = [f"{1000 * row[key]['median']:.1f}" for key in ("free_s", "bound_s")]
                spread = "{median:.3f} [{min:.2f}..{max:.2f}]".format(**rows[-1]["ratio"])
                table.add_row(name, way, f"{look:.2f}", *medians, spread)
    return table, [{"vocabulary_s": reading}, *rows]


def forwards(args: argparse.Namespace) -> tuple[Table, list[Any]]:
    """The table and rows of forwards a valid answer."""
    checkpoint = softmask.load(device=args.device)
    table = light_table(
        f"the bundled model, {len(PROMPTS)} prompts, {args.answer} masks, a step a mask"
    )
    for column in ("form", "way", "valid", "forwards an answer", "forwards a valid answer"):
        table.add_column(column, justify="left" if column in ("form", "way") else "right")
    rows = []
    with progress("answering", total=len(FORMS) * 2, unit="forms") as shown:
        for name, constraint in FORMS.items():
            form = automaton_for(checkpoint, constraint, infill=False)
            for way, asked in (("free", None), ("of the form", constraint)):
                answers = generate(
                    checkpoint,
                    PROMPTS,
                    max_new_tokens=args.answer,
                    constraint=asked,
                    seed=0,
                    temperature=0.0,
                )
                valid = sum(form.accepts(one.text) for one in answers)
                total = sum(one.forwards for one in answers)
                rows.append(
                    {"form": name, "way": way, "valid": valid, "answers": len(answers)}
                    | {"forwards": total}
                )
                each = f"{total / valid:.1f}" if valid else "none is valid"
                share = f"{valid} of {len(answers)}"
                table.add_row(name, way, share, f"{total / len(answers):.1f}", each)
                shown.advance()
    return table, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--tokenizer", type=Path, help="vocab.json and merges.txt of Qwen's kind")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--answer", type=int, default=64, help="masks of the bundled model's answers"
    )
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    if args.folder is not None:
        claim(args.folder)
    if args.tokenizer is None:
        tokenizer = softmask.load(device="cpu").tokenizer
    else:
        from transformers import Qwen2Tokenizer

        tokenizer = Qwen2Tokenizer.from_pretrained(args.tokenizer)
    tables, rows = zip(steps(args, tokenizer), forwards(args), strict=True)
    for table in tables:
        Console(width=110).print(table, markup=False)
    settings = {n: v for n, v in vars(args).items() if n not in ("folder", "tokenizer")}
    result = {"settings": settings, "steps": rows[0], "forwards": rows[1]}
    if args.folder is not None:
        write(args.folder, ["python", *sys.argv], result, list(tables))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
