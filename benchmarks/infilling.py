"""Holes as infilling tasks have them: how their length is said, and tokens healed at their ends.

    python benchmarks/infilling.py TEXTS

Spans of 4 to 24 characters are cut out of stories (separated by <|endoftext|>) at any place, also
within a token, and filled in greedily by the bundled model through the harness' model class.
Printed, for each way to say a hole's length: how often the true span comes back, how much longer
than the true one the kept span is in characters, forwards and seconds of a hole.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import fmean

from lm_eval.api.instance import Instance

from softmask.evaluation.config import model_args
from softmask.evaluation.harness import SoftMaskLM
from softmask.evaluation.responses import Responses
from softmask.hub.load import load
from softmask.puzzles.stories import split_stories

BEFORE, BEHIND = 200, 100
LENGTHS = "oracle,4,8,2/4/8/16"


def spans(texts: list[str], count: int) -> list[tuple[str, str, str]]:
    """Before, the span, behind."""
    draw, found = random.Random(0), []
    while len(found) < count:
        text, size = draw.choice(texts), draw.randint(4, 24)
        if len(text) > 60 + size:
            at = draw.randrange(30, len(text) - size - 30)
            before, behind = text[max(0, at - BEFORE) : at], text[at + size :][:BEHIND]
            found.append((before, text[at : at + size], behind))
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--holes", default=LENGTHS, help="as of `softmask eval --hole`, by commas")
    args = parser.parse_args()
    holes = spans(split_stories(args.texts.read_text(encoding="utf-8")), args.count)
    checkpoint = load("default", device="cpu")
    requests = [
        Instance(
            "generate_until",
            {},
            (before, {"suffix": behind, "reference": span, "max_gen_toks": 64}),
            0,
            ("spans", index, 1),
        )
        for index, (before, span, behind) in enumerate(holes)
    ]
    print("hole      healed  exact  characters more  forwards  seconds")
    for hole in args.holes.split(","):
        for healed in (False, True):
            given = model_args({"hole": hole, "token_healing": healed, "batch_size": 4})
            lm = SoftMaskLM.around(checkpoint, given, Responses())
            found = lm.generate_until(requests, disable_tqdm=True)
            records = list(lm.responses.by_key.values())
            pairs = [(text, span) for text, (_, span, _) in zip(found, holes, strict=True)]
            exact = sum(text == span for text, span in pairs)
            more = fmean(len(text) - len(span) for text, span in pairs)
            forwards = fmean(record["forwards"] for record in records)
            seconds = fmean(record["seconds"] for record in records)
            print(
                f"{hole:9s} {healed!s:6s} {exact:6d} {more:+16.1f} {forwards:9.1f} {seconds:8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
