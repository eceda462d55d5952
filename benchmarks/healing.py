"""A space before a hole: as it is typed, left to the model, or the model's to begin with.

    python benchmarks/healing.py TEXTS

Stretches of 1, 3 and 6 words' tokens that follow a space are cut out of stories (separated by
<|endoftext|>) and filled in greedily by the bundled model, one token a step. Printed: how often
the true text comes back, how often exactly one space joins, and the chain log-likelihood of the
true stretch in nats.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

import softmask
from softmask.config import SamplingConfig
from softmask.constraints.constraint import Constraint
from softmask.decoding.forms import automaton_for
from softmask.decoding.prompts import encode, rules_of
from softmask.decoding.sampler import denoise
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.stories import split_stories

HOLES, BEFORE, BEHIND = 200, 60, 30
BEGINS_WITH_SPACE = Constraint("regex", " (?s:.)*")


def cuts(checkpoint: Checkpoint, texts: list[str], size: int) -> list[tuple[str, str, str]]:
    """Before, the stretch with its space, behind."""
    draw, found = random.Random(size), []
    while len(found) < HOLES:
        ids = encode(checkpoint, draw.choice(texts))
        place = draw.randrange(10, max(11, len(ids) - size - 10))
        stretch = checkpoint.decode(ids[place : place + size])
        parts = [ids[max(0, place - BEFORE) : place], ids[place + size :][:BEHIND]]
        before, behind = (checkpoint.decode(part) for part in parts)
        whole = stretch.startswith(" ") and stretch[1:2].isalpha() and before[-1:].isalpha()
        if whole and not behind[:1].isalnum() and "\ufffd" not in before + stretch + behind:
            found.append((before, stretch, behind))
    return found


def fill(
    checkpoint: Checkpoint, rows: list[tuple[list[int], int, list[int]]], forced: bool, soft: bool
) -> list[str]:
    """What is written into the hole of each row."""
    model, texts = checkpoint.model, []
    automaton = automaton_for(checkpoint, BEGINS_WITH_SPACE, infill=True) if forced else None
    for before, size, behind in rows:
        canvas = torch.tensor([[*before, *[model.mask_id] * size, *behind]])
        steps = denoise(
            model,
            canvas,
            SamplingConfig(steps=size),
            soft_mask=checkpoint.soft_mask if soft else None,
            rules=rules_of(checkpoint, infill=True),
            constraint=automaton,
        )
        *_, last = steps
        texts.append(checkpoint.decode(last.canvas_BL[0, len(before) : len(before) + size]))
    return texts


def nats(checkpoint: Checkpoint, rows: list[tuple[list[int], list[int], list[int]]]) -> float:
    """Mean of the chain's negative log-likelihood of the stretches, with what is behind seen."""
    total = 0.0
    for before, true, behind in rows:
        # From the left, what is masked being the rest of the stretch alone.
        ids = torch.tensor([*before, *true, *behind])
        batch = ids.repeat(len(true), 1)
        for row in range(len(true)):
            batch[row, len(before) + row : len(before) + len(true)] = checkpoint.model.mask_id
        places = torch.arange(len(true)) * len(ids) + len(before) + torch.arange(len(true))
        with torch.no_grad():
            losses = checkpoint.model(batch, rows=places, labels=torch.tensor(true)).losses
        total += float(losses.sum())
    return total / len(rows)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 6], help="tokens")
    args = parser.parse_args()
    checkpoint = softmask.load(device="cpu")
    texts = split_stories(args.texts.read_text(encoding="utf-8"))
    print("| tokens | space | true text | joins by one space | nats of the true text |")
    print("|---|---|---|---|---|")
    for size in args.sizes:
        found = cuts(checkpoint, texts, size)
        ids = [tuple(encode(checkpoint, part) for part in one) for one in found]
        bare = [encode(checkpoint, stretch[1:]) for _, stretch, _ in found]
        space = encode(checkpoint, " ")
        typed = [(b + space, w, a) for (b, _, a), w in zip(ids, bare, strict=True)]
        variants = {
            "typed": (typed, False),
            "left to the model": (ids, False),
            "the hole's first": (ids, True),
        }
        for name, (rows, forced) in variants.items():
            for soft in (False, True):
                holes = [(before, len(true), behind) for before, true, behind in rows]
                written = fill(checkpoint, holes, forced, soft)
                if name == "typed":
                    written = [f" {text}" for text in written]
                right = sum(w == s for w, (_, s, _) in zip(written, found, strict=True))
                joined = sum(w[:1] == " " and w[1:2] not in ("", " ") for w in written)
                kind = f"{name}, {'soft-masked' if soft else 'plain'}"
                likely = f"{nats(checkpoint, rows):.2f}"
                print(f"| {size} | {kind} | {right} of {HOLES} | {joined} | {likely} |", flush=True)


if __name__ == "__main__":
    main()
