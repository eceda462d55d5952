"""The engine under load: 64 requests of mixed length at once, against the same one at a time.

    python benchmarks/engine_load.py benchmarks/results/DATE_engine_load

Half of them are fresh puzzles, half stories of 16 to 200 new tokens; the bundled model, greedy in
fp32, soft-masked, in blocks of 16 tokens, one token a step, without a cache and with cache "dual".
Both go through the engine: one at a time means that the next is submitted when the last is done.
They take turns within one process, so that a busy machine slows both. Also: whether every result
equals that of the request alone, how long each waited, in which order they entered, how much of the
time is not the batch's own, and the peak of memory (in processes of their own) against the budget.
People read the tables; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from softmask.config import SamplingConfig
from softmask.decoding.batch import Batch
from softmask.decoding.prompts import encode, rules_of
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import prompt_of
from softmask.puzzles.solve import DEMO_KINDS, NEW_TOKENS, fresh_puzzles, name_of
from softmask.reporting.measure import pair_ratios, peak_mb, summary
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.serving.engine import Engine, Request, Result

REQUESTS, BLOCK = 64, 16
STORY_TOKENS = (16, 200)
CACHES = ("none", "dual")
OPENINGS = (
    "One day, {}",
    "{} had a red ball",
    "Once upon a time, there was a little girl named {}. She",
    "It was raining. {} sat by the window and",
)
NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
Numbers = dict[str, Any]


def requests(checkpoint: Checkpoint, cache: str) -> list[Request]:
    """The load, in the order in which it is submitted."""
    half = REQUESTS // 2
    groups = fresh_puzzles(half, [name for name in DEMO_KINDS if name in NEW_TOKENS])
    puzzles = [p for row in zip(*groups.values(), strict=True) for p in row][:half]
    prompts = [(prompt_of(puzzle), NEW_TOKENS[name_of(puzzle)]) for puzzle in puzzles]
    stories = [opening.format(name) for opening in OPENINGS for name in NAMES][:half]
    low, high = STORY_TOKENS
    prompts += [
        (story, low + round(i * (high - low) / (half - 1))) for i, story in enumerate(stories)
    ]
    random.Random(0).shuffle(prompts)
    mask_id, rules = checkpoint.model.mask_id, rules_of(checkpoint, infill=False)
    return [
        Request(
            (*encode(checkpoint, prompt), *[mask_id] * new),
            SamplingConfig(steps=new, alg="topk_margin", block_length=BLOCK, cache=cache),
            checkpoint.soft_mask,
            rules,
        )
        for prompt, new in prompts
    ]


def engine_for(checkpoint: Checkpoint, cache: str, args: argparse.Namespace) -> Engine:
    return Engine(
        checkpoint.model,
        memory_mb=args.memory_mb,
        running=args.running,
        queue=REQUESTS,
        cached=cache != "none",
        k=checkpoint.soft_mask.k,
    )


def together(engine: Engine, load_: list[Request]) -> tuple[float, list[Result], int]:
    """Seconds until all are done that were submitted at once, how they ended, and `overtaken`."""
    started = time.perf_counter()
    handles = [engine.submit(one) for one in load_]
    results = [handle.result() for handle in handles]
    seconds = time.perf_counter() - started
    pairs = zip(handles, results, strict=True)
    return seconds, results, overtaken([t.submitted + r.waited for t, r in pairs])


def one_at_a_time(engine: Engine, load_: list[Request]) -> tuple[float, list[Result]]:
    started = time.perf_counter()
    results = [engine.submit(one).result() for one in load_]
    return time.perf_counter() - started, results


@contextlib.contextmanager
def inside_batch() -> Iterator[list[float]]:
    """Seconds of each `Batch.step`, while it is open."""
    step, seconds = Batch.step, []

    def timed(batch, texts=None) -> None:
        started = time.perf_counter()
        step(batch, texts)
        seconds.append(time.perf_counter() - started)

    Batch.step = timed
    try:
        yield seconds
    finally:
        Batch.step = step


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and the largest."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3), "max": round(max(values), 3)}


def tokens_of(load_: list[Request]) -> int:
    """How many are written."""
    return sum(one.sampling.steps for one in load_)


def overtaken(entered: list[float]) -> int:
    """The most requests that entered before one that had come before them."""
    return max(sum(later < own for later in entered[i:]) for i, own in enumerate(entered))


def measure(checkpoint: Checkpoint, cache: str, args: argparse.Namespace) -> Numbers:
    """All rounds of one way of decoding."""
    load_ = requests(checkpoint, cache)
    alone_s, together_s, outside, differing, steps = [], [], [], set(), 0
    with engine_for(checkpoint, cache, args) as engine:
        together(engine, load_[:4])
        for number in range(args.rounds):
            seconds, alone = one_at_a_time(engine, load_)
            alone_s.append(seconds)
            before = engine.stats()
            with inside_batch() as batch_seconds:
                seconds, results, passed = together(engine, load_)
            together_s.append(seconds)
            steps = engine.stats().steps - before.steps
            outside.append(1000 * (seconds - sum(batch_seconds)) / steps)
            pairs = enumerate(zip(alone, results, strict=True))
            differing |= {i for i, (a, b) in pairs if a.ids != b.ids}
            assert {result.finish_reason for result in (*alone, *results)} == {"done"}
            print(
                f"{cache}, round {number + 1}: one at a time {alone_s[-1]:.1f} s, together "
                f"{together_s[-1]:.1f} s",
                flush=True,
            )
        limits = engine.limits
    tokens = tokens_of(load_)
    total = [result.waited + result.ran for result in results]
    return {
        "tokens": tokens,
        "steps": steps,
        "positions": limits.positions,
        "needed_positions": sum(len(one.ids) for one in load_),
        "raw": {"one_at_a_time_s": alone_s, "together_s": together_s},
        "one_at_a_time": summary([tokens / s for s in alone_s]),
        "together": summary([tokens / s for s in together_s]),
        "ratio": pair_ratios(alone_s, together_s),
        "outside_batch_ms": summary(outside),
        "step_ms": round(1000 * statistics.median(together_s) / steps, 2),
        "waited_s": percentiles([result.waited for result in results]),
        "total_s": percentiles(total),
        "alone_s": percentiles([result.ran for result in alone]),
        "overtaken": passed,
        "differing": sorted(differing),
    }


def resident_mb() -> float:
    """What this process has in memory now."""
    lines = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    return int(lines["VmRSS"].split()[0]) / 2**10


def memory_growth(cache: str, args: argparse.Namespace) -> float:
    """By how many megabytes this process grew, at most, from the first request on."""
    checkpoint = load(device="cpu", dtype="float32")
    load_ = requests(checkpoint, cache)
    warm = requests(checkpoint, "none")[:1]
    with Engine(checkpoint.model, positions=len(warm[0].ids), cached=False) as engine:
        together(engine, warm)  # threads and libraries are no part of it
    before = resident_mb()
    with engine_for(checkpoint, cache, args) as engine:
        together(engine, load_)
    return peak_mb("cpu") - before


def memory_of(cache: str, args: argparse.Namespace) -> float:
    """The same, in a process of its own."""
    options = ["--memory-mb", str(args.memory_mb), "--running", str(args.running)]
    command = [sys.executable, __file__, "--only", cache, *options]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])["growth_mb"]


def spread(numbers: dict[str, float], digits: int = 1) -> str:
    low, middle, high = (numbers[key] for key in ("min", "median", "max"))
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def tables_of(found: dict[str, Numbers], budget: float) -> list[Table]:
    speed = light_table(f"{REQUESTS} requests, median \\[min..max] of rounds")
    for column in ("cache", "one at a time, tokens/s", "together, tokens/s", "ratio", "unequal"):
        speed.add_column(column, justify="left" if column == "cache" else "right")
    seconds = light_table(f"seconds a request (p50, p95, max), memory of {budget:.0f} MB")
    for column in ("cache", "waited", "total", "alone", "overtaken", "engine ms a step", "MB"):
        seconds.add_column(column, justify="left" if column == "cache" else "right")
    for cache, numbers in found.items():
        speed.add_row(
            cache,
            spread(numbers["one_at_a_time"]),
            spread(numbers["together"]),
            spread(numbers["ratio"], 2),
            str(len(numbers["differing"])),
        )
        timings = (numbers[key] for key in ("waited_s", "total_s", "alone_s"))
        seconds.add_row(
            cache,
            *(" ".join(f"{value:.1f}" for value in timing.values()) for timing in timings),
            str(numbers["overtaken"]),
            f"{numbers['outside_batch_ms']['median']:.2f} of {numbers['step_ms']:.1f}",
            f"{numbers['growth_mb']:.0f}",
        )
    return [speed, seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-mb", type=float, default=128.0, help="the budget (default 128)")
    parser.add_argument("--running", type=int, default=REQUESTS, help="most at once (default 64)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=CACHES)
    parser.add_argument("--only", choices=CACHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps({"growth_mb": memory_growth(args.only, args)}))
        return
    if args.folder is not None:
        claim(args.folder)
    checkpoint = load(device="cpu", dtype="float32")
    found = {cache: measure(checkpoint, cache, args) for cache in args.caches}
    for cache, numbers in found.items():
        numbers["growth_mb"] = round(memory_of(cache, args), 1)
    tables = tables_of(found, args.memory_mb)
    for table in tables:
        Console().print(table)
    settings = {"requests": REQUESTS, "block_length": BLOCK, "memory_mb": args.memory_mb}
    settings |= {"running": args.running, "rounds": args.rounds, "story_tokens": STORY_TOKENS}
    result = {"settings": settings, "summary": found}
    if args.folder is not None:
        write(args.folder, ["python", *sys.argv], result, tables)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
