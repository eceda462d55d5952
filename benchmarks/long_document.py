"""What it takes of memory to fill the holes of a long document.

    python benchmarks/long_document.py --out benchmarks/results/DATE_long_document

A text of a published shape's tokens (`softmask bench --shape`, random weights, all layers) is given
but for holes at equal distances, which are filled soft-masked and without a cache: every step
computes all of it. Each dtype runs in a process of its own, which reads its peak (resident memory)
after the weights are made and after the holes are filled. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from softmask.bench.cells import Plan
from softmask.bench.shapes import choose_shape, kinds_of, random_model, weight_bytes
from softmask.config import SamplingConfig
from softmask.decoding.sampler import denoise
from softmask.reporting.measure import peak_mb, timed
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

CPU = torch.device("cpu")


def fill(args: argparse.Namespace) -> dict[str, Any]:
    """Fills the holes in this process."""
    ((name, dtype, quantize),) = kinds_of((args.child,))
    shape = choose_shape(args.shape)
    layers = args.layers or shape.layers
    model = random_model(shape, layers, args.tokens, dtype or torch.float32, CPU, quantize)
    loaded = peak_mb("cpu")
    generator = torch.Generator().manual_seed(1)
    ids_L = torch.randint(0, model.mask_id, (args.tokens,), generator=generator)
    apart = args.tokens // args.holes
    for start in range(apart // 2, args.tokens, apart):
        ids_L[start : start + args.hole] = model.mask_id
    masks = int((ids_L == model.mask_id).sum())
    sampling, soft = SamplingConfig(steps=args.steps, alg="entropy"), Plan().soft_mask("topk")
    steps: list[Any] = []
    run = denoise(model, ids_L[None], sampling, soft_mask=soft)
    seconds = timed(lambda: steps.extend(run), CPU, "processor")
    assert steps[-1].left_B == (0,)
    return {
        "dtype": name,
        "layers": layers,
        "weights_mb": round(sum(weight_bytes(model, quantize)) / 2**20, 1),
        "masks": masks,
        "steps": len(steps),
        "loaded_mb": round(loaded, 1),
        "peak_mb": round(peak_mb("cpu"), 1),
        "processor_seconds_per_step": round(seconds / len(steps), 2),
    }


def main() -> None:
    """Fills the document in each dtype, or in one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="qwen-0.5b", help="whose network (qwen-0.5b)")
    parser.add_argument("--layers", type=int, help="its layers (default: all)")
    parser.add_argument("--tokens", type=int, default=4096, help="of the document (4096)")
    parser.add_argument("--holes", type=int, default=16, help="how many (16)")
    parser.add_argument("--hole", type=int, default=16, help="tokens of each (16)")
    parser.add_argument("--steps", type=int, default=2, help="of filling all of them (2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32, int8, ...")
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child is not None:
        print(json.dumps(fill(args)))
        return
    kinds_of(tuple(args.dtypes))
    if args.out is not None:
        claim(args.out)
    rows = []
    for dtype in args.dtypes:
        words = [sys.executable, __file__, *sys.argv[1:], "--child", dtype]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    table = light_table(
        f"{args.shape}: {args.tokens} tokens, {args.holes} holes of {args.hole}, "
        f"{args.threads} threads"
    )
    for column in ("dtype", "weights MB", "peak MB", "above loaded", "steps", "processor s a step"):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    for row in rows:
        numbers = (row["weights_mb"], row["peak_mb"], row["peak_mb"] - row["loaded_mb"])
        seconds = f"{row['processor_seconds_per_step']:.1f}"
        shown = [f"{value:,.0f}" for value in numbers]
        table.add_row(row["dtype"], *shown, str(row["steps"]), seconds)
    Console().print(table)
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "child")}
        write(args.out, ["python", *sys.argv], {"settings": settings, "rows": rows}, [table])


if __name__ == "__main__":
    main()
