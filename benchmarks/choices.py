"""What one forward a choice is worth beside many: the estimators of likelihoods, on choices.

    python benchmarks/choices.py TEXTS --out benchmarks/results/DATE_choices

A story (separated by <|endoftext|>) is cut at the end of a sentence. Which of four sentences goes
on: its own next one, or one of three other stories? The bundled model says so by each estimator.
Printed: how often it is right (by the sum of log-probabilities, and by their mean over the
characters, as lm_eval's acc and acc_norm), how often it chooses as the bound of the most samples
does, how far the nats of a choice and the differences of two lie from that bound's, and forwards.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean

from rich.console import Console

import softmask
from softmask.decoding.score import score
from softmask.puzzles.stories import split_stories
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
REFERENCE = "masks, 128"
WAYS = {
    REFERENCE: {"samples": 128},
    "masks, 16": {"samples": 16},
    "masks, 4": {"samples": 4},
    "masks, 1": {"samples": 1},
    "chain": {"estimator": "chain"},
    "one_step": {"estimator": "one_step"},
}


def questions(texts: list[str], count: int) -> list[tuple[str, list[str]]]:
    """Contexts of one sentence, and four that may go on, of which the first does."""
    draw = random.Random(0)
    stories = [SENTENCE.split(" ".join(text.split())) for text in texts]
    stories = [story for story in stories if len(story) > 8]
    found = []
    for _ in range(count):
        own, *others = draw.sample(stories, 4)
        at = draw.randrange(2, len(own) - 1)
        wrong = [other[draw.randrange(2, len(other) - 1)] for other in others]
        found.append((own[at - 1], [" " + text for text in (own[at], *wrong)]))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the result")
    parser.add_argument("--count", type=int, default=24, help="questions (24)")
    args = parser.parse_args()
    if args.out is not None:
        claim(args.out)
    asked = questions(split_stories(args.texts.read_text(encoding="utf-8")), args.count)
    checkpoint = softmask.load("default", device="cpu")
    table = light_table(f"{len(asked)} questions of four choices")
    columns = ("right", "by character", "as the reference", "nats off", "differences off")
    for column in ("estimator", *columns, "forwards a choice"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    nats: dict[str, list[list[float]]] = {}
    summary = {}
    for way, settings in WAYS.items():
        found = [
            score(checkpoint, context, choices, soft_mask=False, batch_size=64, **settings)
            for context, choices in asked
        ]
        own = nats[way] = [[one.nats for one in four] for four in found]
        by_character = [
            [value / len(text) for value, text in zip(values, choices, strict=True)]
            for values, (_, choices) in zip(own, asked, strict=True)
        ]
        pairs = list(zip(own, nats[REFERENCE], strict=True))
        off = [a - b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)]
        gaps = [
            (mine[i] - mine[j]) - (theirs[i] - theirs[j])
            for mine, theirs in pairs
            for i, j in combinations(range(4), 2)
        ]
        row = {
            "right": fmean(values.index(min(values)) == 0 for values in own),
            "by character": fmean(values.index(min(values)) == 0 for values in by_character),
            "as the reference": fmean(a.index(min(a)) == b.index(min(b)) for a, b in pairs),
            "nats off": fmean(value**2 for value in off) ** 0.5,
            "nats above": fmean(off),
            "differences off": fmean(value**2 for value in gaps) ** 0.5,
            "forwards a choice": fmean(one.forwards for four in found for one in four),
        }
        summary[way] = {name: round(value, 4) for name, value in row.items()}
        table.add_row(way, *(f"{row[name]:.2f}" for name in (*columns, "forwards a choice")))
    spread = [a - b for values in nats[REFERENCE] for a, b in combinations(values, 2)]
    summary["differences of the reference"] = round(fmean(x**2 for x in spread) ** 0.5, 4)
    Console(width=100).print(table)
    if args.out is not None:
        write(args.out, ["python", *sys.argv], {"summary": summary, "nats": nats}, [table])


if __name__ == "__main__":
    main()
