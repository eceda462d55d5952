"""Finds the 9x9 Sudoku that `softmask demo` shows, and how often what it shows happens.

    python benchmarks/demo_example.py --out benchmarks/results/DATE_demo_example

Puts fresh Sudokus to the bundled model, soft-masked and plainly in few forwards. One that is solved
soft-masked alone is looked at more closely: a symmetric twin of it (digits renamed, rows and
columns permuted) is the same puzzle to a player and another one to the model, as another seed is to
a story. Of the puzzles that their twins tell apart best one is shown, where there is one with
soft-masking right more often than not and answers that differ more often than not, in a symmetry in
which the plain answer is wrong in many cells. Its rates are over twins that had no part in the
choice, and come out lower.

Beside that, what is fed back: mean lambda and entropy at masked positions, over all steps, of that
Sudoku's twins and of 20 seeds of the story that the demo shows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softmask import Generation, load
from softmask.decoding.prompts import rules_of
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import Puzzle, new_sudoku_9x9, twin_of
from softmask.puzzles.solve import STORY, STORY_TOKENS, answer_in, is_right, solve
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.serving.engine import Request
from softmask.serving.trace import record

BATCH = 50
FINALISTS = 6


def answers(
    checkpoint: Checkpoint, puzzles: Sequence[Puzzle], forwards: int, soft: bool
) -> list[str]:
    """What the model writes."""
    texts = []
    for start in range(0, len(puzzles), BATCH):
        batch = puzzles[start : start + BATCH]
        run = solve(checkpoint, batch, 1, checkpoint.soft_mask if soft else None, steps=forwards)
        texts += [done.text for done in run.completions()]
    return texts


def compare(
    checkpoint: Checkpoint, puzzles: Sequence[Puzzle], forwards: int
) -> tuple[dict[str, int], list[Puzzle]]:
    """How many are solved each way and how many answers differ; those solved soft-masked alone.

    The latter in order, with the most wrong cells of the plain answer first.
    """
    ways = [answers(checkpoint, puzzles, forwards, soft) for soft in (True, False)]
    right = [[is_right(p, t) for p, t in zip(puzzles, way, strict=True)] for way in ways]
    counts = {
        "n": len(puzzles),
        "soft": sum(right[0]),
        "plain": sum(right[1]),
        "differ": sum(a != b for a, b in zip(*ways, strict=True)),
    }
    alone = []
    for puzzle, soft, plain, text in zip(puzzles, *right, ways[1], strict=True):
        if soft and not plain:
            digits = answer_in(puzzle, text).strip()
            wrong = sum(a != b for a, b in zip(digits, puzzle.output, strict=False))
            alone.append((wrong, puzzle))
    return counts, [puzzle for _, puzzle in sorted(alone, key=lambda one: -one[0])]


def twins_of(
    checkpoint: Checkpoint, rng: random.Random, puzzle: Puzzle, count: int, forwards: int
) -> tuple[dict[str, int], list[Puzzle]]:
    """What `compare` says of new twins."""
    return compare(checkpoint, [twin_of(rng, puzzle) for _ in range(count)], forwards)


def feedback(checkpoint: Checkpoint, runs: Sequence[Generation]) -> dict[str, float]:
    """Mean lambda and entropy (nats) of the masked positions of soft-masked runs of one row."""
    lambdas, entropies = [], []
    for run in runs:
        request = Request(
            tuple(run.canvas_BL[0].tolist()),
            run.sampling,
            soft_mask=run.soft_mask,
            rules=rules_of(checkpoint, infill=run.infill),
            seed=run.seeds[0],
            top_logprobs=1,
            trace=True,
        )
        trace = record(checkpoint, request, infill=run.infill, id="run")
        for step in trace["steps"]:
            lambdas += step["masked"]["lambda"]
            entropies += [value for value in step["masked"]["entropy"] if value is not None]
    return {
        "runs": len(runs),
        "mean_lambda": round(statistics.fmean(lambdas), 3),
        "mean_entropy": round(statistics.fmean(entropies), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--givens", type=int, default=28, help="of each Sudoku (28)")
    parser.add_argument("--forwards", type=int, default=8, help="for all of its blanks (8)")
    parser.add_argument("--puzzles", type=int, default=250, help="fresh Sudokus (250)")
    parser.add_argument("--few", type=int, default=8, help="twins of each that may be shown (8)")
    parser.add_argument("--twins", type=int, default=100, help="twins of the one that is shown")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    rng = random.Random(f"demo example/{args.givens}")
    checkpoint = load(device="cpu")
    puzzles = [new_sudoku_9x9(rng, args.givens) for _ in range(args.puzzles)]
    fresh, alone = compare(checkpoint, puzzles, args.forwards)
    print(fresh, flush=True)
    tried = []
    for puzzle in alone:
        counts, clear = twins_of(checkpoint, rng, puzzle, args.few, args.forwards)
        tried.append((counts["soft"] - counts["plain"], counts["differ"], [*clear, puzzle]))
        print(puzzle.input.replace("\n", ""), counts, flush=True)
    again = []
    for _, _, (clear, *_others) in sorted(tried, key=lambda one: one[:2])[-FINALISTS:]:
        counts, _ = twins_of(checkpoint, rng, clear, args.twins // 2, args.forwards)
        usual = min(counts["soft"], counts["differ"]) > counts["n"] / 2
        again.append((usual, counts["soft"] - counts["plain"], clear))
        print(clear.input.replace("\n", ""), counts, flush=True)
    *_, shown = max(again, key=lambda one: one[:2])
    twins = [twin_of(rng, shown) for _ in range(args.twins)]
    counts, _ = compare(checkpoint, twins, args.forwards)
    print(shown.input, counts)
    steps, seeds = args.forwards, range(20)
    soft = checkpoint.soft_mask
    grids = [solve(checkpoint, [twin], 1, soft, steps=steps) for twin in twins[: len(seeds)]]
    stories = [
        Generation(checkpoint, STORY, max_new_tokens=STORY_TOKENS, seed=seed) for seed in seeds
    ]
    found: dict[str, Any] = {
        "forwards": args.forwards,
        "givens": args.givens,
        "input": shown.input,
        "output": shown.output,
        "twins": counts,
        "fresh": fresh,
        "fed_back": {
            "sudoku": feedback(checkpoint, grids),
            "story": feedback(checkpoint, stories),
        },
    }
    if args.out is not None:
        table = light_table(f"{args.forwards} forwards, {args.givens} givens")
        for name in ("puzzles", *counts):
            table.add_column(name)
        for name in ("fresh", "twins"):
            table.add_row(name, *map(str, found[name].values()))
        write(args.out, ["python", *sys.argv], found | {"tried": len(tried)}, [table])


if __name__ == "__main__":
    main()
