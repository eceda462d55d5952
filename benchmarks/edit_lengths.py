"""The length of a replaced stretch: how often the likeliest draft has that of the true one.

    python benchmarks/edit_lengths.py TEXTS

Stretches of 1, 3 and 5 tokens are cut out of stories as `healing.py` cuts them, and written anew
greedily with 1 to 5 tokens. Printed: how often the kept draft has the true length (by chance: a
fifth), and how often it is the true text; by the mean of the tokens' log-probabilities, which
`softmask.edit` keeps by, and by their sum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from healing import cuts

import softmask
from softmask.puzzles.stories import split_stories

HOLES = 100


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", type=Path)
    args = parser.parse_args()
    checkpoint = softmask.load(device="cpu")
    texts = split_stories(args.texts.read_text(encoding="utf-8"))
    print("| tokens | kept by | true length | true text | mean length |\n|---|---|---|---|---|")
    for size in (1, 3, 5):
        right = {"mean": [0, 0, 0], "sum": [0, 0, 0]}
        for before, stretch, behind in cuts(checkpoint, texts, size)[:HOLES]:
            text = f"{before} {behind}"
            place = len(before) + 1
            drafts = softmask.edit(
                checkpoint, text, place, place, max_new_tokens=5, temperature=0, block_length=None
            ).drafts
            kept = {"mean": drafts[0], "sum": max(drafts, key=lambda d: d.score * d.tokens)}
            for name, draft in kept.items():
                right[name][0] += draft.tokens == size
                right[name][1] += draft.replacement == stretch[1:]
                right[name][2] += draft.tokens
        for name, (lengths, same, total) in right.items():
            row = f"| {size} | {name} | {lengths} of {HOLES} | {same} of {HOLES}"
            print(f"{row} | {total / HOLES:.1f} |", flush=True)


if __name__ == "__main__":
    main()
