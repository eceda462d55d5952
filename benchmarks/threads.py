"""How threads should wait: on a quiet machine, and beside other processes that compute.

    python benchmarks/threads.py --out benchmarks/results/DATE_threads

Threads of OpenMP look for their next share of work for a while and then sleep. libgomp, which torch
brings on Linux, looks GOMP_SPINCOUNT times: 300,000 where nothing is set ("spinning"), never where
OMP_WAIT_POLICY is passive. A process of each way has the model and generates the same text when it
is asked to, in turns; beside it compute none, one, ... processes, which want the same cores.
Seconds, the median over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from first_minute import load
from rich.console import Console

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

WAYS: dict[str, dict[str, str]] = {
    "spinning": {},
    "30,000": {"GOMP_SPINCOUNT": "30000"},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
    "3,000": {"GOMP_SPINCOUNT": "3000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
# The bundled model, and one of Qwen2's shape at 0.1 B parameters: widths where threads pay.
PROGRAM = """
import dataclasses, json, sys, time
import torch, softmask
from softmask.models import DreamConfig, DreamModel

size, tokens = sys.argv[1], int(sys.argv[2])
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
softmask.generate(checkpoint, "One day, Tom", max_new_tokens=tokens, seed=0)
print(torch.get_num_threads(), flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    softmask.generate(checkpoint, "One day, Tom", max_new_tokens=tokens, seed=int(line))
    print(json.dumps(time.perf_counter() - begun), flush=True)
"""
SIZES = {"bundled": 64, "wide": 16}  # new tokens


class Worker:
    """A process that has a model, and the count of its threads."""

    def __init__(self, way: str, size: str) -> None:
        ours = ("OMP_", "GOMP_", "KMP_", "MKL_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, size, str(SIZES[size])],
            env=environment | WAYS[way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.threads = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process ended before it had answered")
        return line

    def seconds(self, seed: int) -> float:
        """Of one text."""
        assert self._process.stdin is not None
        print(seed, file=self._process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (5)")
    parser.add_argument("--busy", default="0,1,2", help="processes that compute beside it (0,1,2)")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    raw: dict[str, list[float]] = {}
    threads: dict[str, int] = {}
    loads = [int(busy) for busy in args.busy.split(",")]
    for size in SIZES:
        with ExitStack() as stack:
            workers = {}
            for way in WAYS:
                workers[way] = Worker(way, size)
                stack.callback(workers[way].close)
                threads[way] = workers[way].threads
            for busy in loads:
                with load(busy):
                    for seed in range(args.repeat):
                        for way, worker in workers.items():
                            key = f"{size}, {busy} busy, {way}"
                            raw.setdefault(key, []).append(worker.seconds(seed))
    table = light_table(
        f"seconds for a text, median (worst) of {args.repeat}; {os.cpu_count()} processors"
    )
    for column in ("model", "busy", *WAYS):
        table.add_column(column, justify="left" if column == "model" else "right")
    summary: dict[str, float] = {}
    for size in SIZES:
        for busy in loads:
            row = []
            for way in WAYS:
                key = f"{size}, {busy} busy, {way}"
                summary[key] = round(statistics.median(raw[key]), 3)
                row.append(f"{summary[key]:.2f} ({max(raw[key]):.2f})")
            table.add_row(size, str(busy), *row)
    Console(width=100).print(table)
    if args.out is not None:
        settings = {"repeat": args.repeat, "threads": threads, "ways": WAYS}
        found = {"settings": settings, "raw_seconds": raw, "summary": summary}
        write(args.out, ["python", *sys.argv], found, [table])


if __name__ == "__main__":
    main()
