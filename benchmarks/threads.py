"""How threads should wait: on a quiet machine, and beside other processes that compute.

    python benchmarks/threads.py --out benchmarks/results/DATE_threads

Threads of OpenMP spin while they wait, or sleep ("passive", what a softmask command chooses), or
there is only one. Each way generates the same tokens in a process of its own, in turns; beside it
compute none, one, ... processes, which want the same cores. Seconds, the median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from first_minute import load
from rich.console import Console

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

WAYS = {
    "spinning": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# The bundled model, and one of Qwen2's shape at 0.1 B parameters: widths where threads pay.
PROGRAM = """
import dataclasses, json, sys, time
import torch, softmask
from softmask.models import DreamConfig, DreamModel

size, tokens, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
checkpoint = softmask.load(device="cpu")
if size == "wide":
    torch.manual_seed(0)
    own = checkpoint.model.config
    config = DreamConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=own.vocab_size, max_position_embeddings=512,
        **{k: getattr(own, k) for k in ("mask_token_id", "pad_token_id", "bos_token_id",
                                        "eos_token_id")})
    checkpoint = dataclasses.replace(checkpoint, model=DreamModel(config).eval())
seconds = []
for seed in range(runs + 1):
    begun = time.perf_counter()
    softmask.generate(checkpoint, "One day, Tom", max_new_tokens=tokens, seed=seed)
    seconds.append(time.perf_counter() - begun)
print(json.dumps([torch.get_num_threads(), seconds[1:]]))
"""
SIZES = {"bundled": 64, "wide": 16}  # new tokens


def seconds_of(way: str, size: str, runs: int) -> tuple[int, list[float]]:
    """Threads, and the seconds of each run in a process of its own."""
    ours = ("OMP_", "GOMP_", "KMP_", "MKL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, size, str(SIZES[size]), str(runs)],
        env=environment | WAYS[way],
        capture_output=True,
        text=True,
        check=True,
    )
    threads, seconds = json.loads(done.stdout)
    return threads, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--repeat", type=int, default=3, help="processes of each way (3)")
    parser.add_argument("--runs", type=int, default=3, help="texts in each process (3)")
    parser.add_argument("--busy", default="0,1,2", help="processes that compute beside it (0,1,2)")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    raw: dict[str, list[float]] = {}
    threads: dict[str, int] = {}
    cells = [(size, int(busy)) for size in SIZES for busy in args.busy.split(",")]
    for size, busy in cells:
        with load(busy):
            for _ in range(args.repeat):
                for way in WAYS:
                    threads[way], found = seconds_of(way, size, args.runs)
                    raw.setdefault(f"{size}, {busy} busy, {way}", []).extend(found)
    table = light_table(f"seconds for a text, median (worst); {os.cpu_count()} processors")
    for column in ("model", "busy processes", *WAYS):
        table.add_column(column, justify="left" if column == "model" else "right")
    summary: dict[str, float] = {}
    for size, busy in cells:
        row = []
        for way in WAYS:
            values = raw[f"{size}, {busy} busy, {way}"]
            summary[f"{size}, {busy} busy, {way}"] = round(statistics.median(values), 3)
            row.append(f"{statistics.median(values):.2f} ({max(values):.2f})")
        table.add_row(size, str(busy), *row)
    Console(width=100).print(table)
    if args.out is not None:
        settings = {"repeat": args.repeat, "runs": args.runs, "threads": threads}
        found = {"settings": settings, "raw_seconds": raw, "summary": summary}
        write(args.out, ["python", *sys.argv], found, [table])


if __name__ == "__main__":
    main()
