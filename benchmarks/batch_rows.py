"""Whether more rows in a forward pay: seconds a text, by rows and by the positions of a step.

    python benchmarks/batch_rows.py --out benchmarks/results/DATE_batch_rows

The bundled model and a random one of 50 M parameters write texts of several lengths, so many at a
time, without a cache (a step computes every position) and in blocks with one (it computes a
block). Sizes of batches take turns; seconds a text are the median over the repeats: on a CPU those
of the processor, of one thread, as others may want it too. What `--batch-size auto` makes of it:
`PAYING` in `softmask.evaluation.auto_batch`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

import softmask
from softmask.config import SamplingConfig
from softmask.decoding.generation import Generation
from softmask.models import DreamConfig, DreamModel
from softmask.reporting.measure import timed
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

PROMPT = list(range(20, 52))
CACHED = {"cache": "dual", "block_length": 16}
# New tokens, steps, and what else is said of decoding.
WAYS = {
    "16 tokens": (16, 4, {}),
    "64 tokens": (64, 4, {}),
    "256 tokens": (256, 2, {}),
    "128 tokens in cached blocks": (128, 16, CACHED),
}


def models(device: str) -> dict[str, softmask.Checkpoint]:
    bundled = softmask.load(device=device)
    torch.manual_seed(0)
    own = bundled.model.config
    config = DreamConfig(
        **{k: getattr(own, k) for k in ("mask_token_id", "pad_token_id", "eos_token_id")},
        **{"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10},
        **{"num_attention_heads": 10, "num_key_value_heads": 5, "vocab_size": own.vocab_size},
        max_position_embeddings=1024,
    )
    random = DreamModel(config).eval().to(device)
    return {"bundled": bundled, "50 M": dataclasses.replace(bundled, model=random)}


def seconds_of(checkpoint: softmask.Checkpoint, way: str, rows: int) -> float:
    """Of a text, when so many are written at once."""
    tokens, steps, settings = WAYS[way]
    sampling = SamplingConfig(steps=steps, **settings)
    how = {"max_new_tokens": tokens, "sampling": sampling, "soft_mask": False, "seed": 0}

    def run() -> None:
        Generation(checkpoint, [PROMPT] * rows, **how).completions()

    if checkpoint.model.device.type != "cpu":
        return timed(run, checkpoint.model.device) / rows
    began = time.process_time()
    run()
    return (time.process_time() - began) / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each size (3)")
    parser.add_argument("--rows", default="1,2,4,8,16,32", help="rows of a forward (1,2,4,...)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    torch.set_num_threads(1 if args.device == "cpu" else torch.get_num_threads())
    sizes = [int(rows) for rows in args.rows.split(",")]
    found, tables = {}, []
    for name, checkpoint in models(args.device).items():
        table = light_table(f"{name}: seconds a text (positions of a step)")
        for column in ("", *map(str, sizes)):
            table.add_column(column, justify="right", no_wrap=True)
        for way, (tokens, _, settings) in WAYS.items():
            width = settings.get("block_length", len(PROMPT) + tokens)
            turns: dict[int, list[float]] = {rows: [] for rows in sizes}
            for turn in range(args.repeat + 1):  # the first warms up
                for rows in sizes:
                    seconds = seconds_of(checkpoint, way, rows)
                    if turn:
                        turns[rows].append(seconds)
            medians = {rows: statistics.median(values) for rows, values in turns.items()}
            found[f"{name}, {way}"] = {"positions_of_a_row": width, "seconds_a_text": turns}
            table.add_row(
                way, *(f"{value:.3f} ({rows * width})" for rows, value in medians.items())
            )
        Console(width=100).print(table)
        tables.append(table)
    if args.out is not None:
        write(args.out, ["python", *sys.argv], {"seconds": found}, tables)


if __name__ == "__main__":
    main()
