"""An answer that ends long before its canvas: with the whole canvas, and as it grows.

    python benchmarks/early_end.py [FOLDER] [--length 60] [--max-new-tokens 1024]

The answer ends in the block in which its last token stands, so its forwards are those of that block
and the ones before, one a token. They are timed on a random model with every mask of the canvas in
each forward, as published, and with a canvas that grows block by block (`lookahead`). The two take
turns, and ratios are of one round. People read the table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.sampler import Rules, denoise
from softmask.models import DreamConfig, DreamModel
from softmask.reporting.measure import pair_ratios, summary, timed
from softmask.reporting.progress import progress
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

PROMPT, BLOCK = 100, 32
SOFT = SoftMaskConfig(k=3, scale=0.6, offset=-3.0, steepness=1.0)
CACHES = ("none", "dual")


def make_model(args: argparse.Namespace) -> DreamModel:
    """A random model of Dream's architecture, whose last id is the mask."""
    torch.manual_seed(0)
    config = DreamConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=max(args.hidden // 256, 1),
        max_position_embeddings=8192,
        mask_token_id=args.vocabulary - 1,
        pad_token_id=None,
        eos_token_id=0,
    )
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    return DreamModel(config).eval().to(args.device, dtype)


def answer(
    model: DreamModel,
    args: argparse.Namespace,
    soft_mask: SoftMaskConfig | None,
    cache: str,
    lookahead: int | None,
) -> None:
    """The forwards of an answer of `--length` tokens."""
    canvas_1L = torch.full((1, PROMPT + args.max_new_tokens), model.mask_id, device=args.device)
    canvas_1L[:, :PROMPT] = torch.arange(1, PROMPT + 1)
    config = SamplingConfig(
        steps=args.max_new_tokens,
        block_length=BLOCK,
        lookahead=lookahead,
        cache=cache,
        threshold=1.0,  # one token a forward, from the first one on
    )
    steps = denoise(model, canvas_1L, config, soft_mask=soft_mask, rules=Rules((model.mask_id,)))
    forwards = math.ceil(args.length / BLOCK) * BLOCK
    for _ in itertools.islice(steps, forwards):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--length", type=int, default=60, help="tokens of the answer")
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="masks of the canvas")
    parser.add_argument("--lookahead", type=int, default=64, help="masks behind the block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=16384)
    args = parser.parse_args()
    if args.folder is not None:
        claim(args.folder)
    model, device = make_model(args), torch.device(args.device)
    ways = {"plain": None, "soft-masked": SOFT}
    cells = [(name, cache) for name in ways for cache in CACHES]
    table = light_table(
        f"an answer of {args.length} tokens, max_new_tokens {args.max_new_tokens}: median seconds"
    )
    for column in ("", "cache", "whole canvas", f"lookahead {args.lookahead}", "times faster"):
        table.add_column(column, justify="left" if column in ("", "cache") else "right")
    rows = []
    with progress("timing", total=len(cells) * (args.rounds + 1), unit="rounds") as shown:
        for name, cache in cells:
            whole, grown = [], []
            for number in range(args.rounds + 1):
                for lookahead, seconds in ((None, whole), (args.lookahead, grown)):
                    call = functools.partial(answer, model, args, ways[name], cache, lookahead)
                    took = timed(call, device)
                    if number:  # the first warms up
                        seconds.append(took)
                shown.advance()
            row = {"way": name, "cache": cache, "whole_s": summary(whole)}
            row |= {"grown_s": summary(grown), "ratio": pair_ratios(whole, grown)}
            rows.append(row)
            medians = [f"{row[key]['median']:.2f}" for key in ("whole_s", "grown_s")]
            spread = "{median:.1f} [{min:.1f}..{max:.1f}]".format(**row["ratio"])
            table.add_row(name, cache, *medians, spread)
    Console(width=100).print(table, markup=False)
    settings = {name: value for name, value in vars(args).items() if name != "folder"}
    result = {"settings": settings | {"block_length": BLOCK, "prompt": PROMPT}, "rows": rows}
    if args.folder is not None:
        write(args.folder, ["python", *sys.argv], result, [table])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
