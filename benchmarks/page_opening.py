"""Makes what the page opens on, and its examples, from today's bundled model.

    python benchmarks/page_opening.py                writes opening.json and examples.json
    python benchmarks/page_opening.py --puzzles 50   quicker, over fewer puzzles than 250

An example is kept where the soft-masked and the plain run differ more often than not: over new
puzzles of its kind, or over 20 seeds of its text. What it says of itself are these rates. The
opening is a recorded run of the first example, cut down to what the page draws.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import softmask
from softmask.config import SamplingConfig
from softmask.decoding.generation import Generation
from softmask.decoding.prompts import encode_holes, rules_of
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import Puzzle, generate_countdown, holed, new_sudoku_9x9
from softmask.puzzles.solve import ALG, NEW_TOKENS, is_right, solve
from softmask.serving.request import Request
from softmask.serving.trace import record, trace_file

PAGE = Path(softmask.__file__).parent / "serving" / "page"
# The hardest grids, each with one solution, in as few forwards as still solve half of them.
GIVENS, STEPS = 28, 8
STORY, STORY_TOKENS, SEEDS = "One day, Tom", 64, 20
HOLES = "One day,[[5]] went to the park. He was very happy because[[8]]."
# Of a position, all but those of next to no probability; of a number; bytes.
CANDIDATES, SMALLEST, DIGITS, LARGEST = 3, 0.02, 2, 36_000
BATCH = 50
Texts = tuple[list[str], list[str]]  # soft-masked, plain


def answers(checkpoint: Checkpoint, puzzles: list[Puzzle], fewer: float) -> Texts:
    """What is written behind or into puzzles of one kind."""
    batches = [puzzles[start : start + BATCH] for start in range(0, len(puzzles), BATCH)]
    both = [
        [
            done.text
            for batch in batches
            for done in solve(checkpoint, batch, fewer, soft).completions()
        ]
        for soft in (checkpoint.soft_mask, None)
    ]
    return both[0], both[1]


def stories(checkpoint: Checkpoint, text: str, **more: Any) -> Texts:
    """A text gone on with, or its holes filled in, seed by seed; as the checkpoint samples."""
    both = [
        [
            Generation(checkpoint, text, soft_mask=soft, seed=seed, chat=False, **more)
            .completions()[0]
            .text
            for seed in range(SEEDS)
        ]
        for soft in (checkpoint.soft_mask, None)
    ]
    return both[0], both[1]


def differing(texts: Texts) -> list[bool]:
    return [soft != plain for soft, plain in zip(*texts, strict=True)]


def of_puzzles(
    checkpoint: Checkpoint,
    seeds: int,
    make: Callable[[random.Random], Puzzle],
    fewer: float,
    what: str,
) -> tuple[Puzzle, float, str]:
    """The puzzle to show, how often the two differ (0: there is none to show), and a sentence."""
    puzzles = [make(random.Random(seed)) for seed in range(seeds)]
    texts = answers(checkpoint, puzzles, fewer)
    soft, plain = ([is_right(p, t) for p, t in zip(puzzles, one, strict=True)] for one in texts)
    differ = differing(texts)
    sentence = (
        f"{what}. Of {seeds} others as hard, soft-masked solves {sum(soft)} and "
        f"plain {sum(plain)}; the two differ in {sum(differ)}. This is one that soft-masked alone "
        "solves."
    )
    alone = [p for p, s, other in zip(puzzles, soft, plain, strict=True) if s and not other]
    return (alone or puzzles)[0], sum(differ) / seeds if alone else 0.0, sentence


def make_examples(checkpoint: Checkpoint, count: int) -> list[dict[str, Any]]:
    """All that are worth showing, with what they say of themselves."""
    greedy = {"alg": ALG, "temperature": 0, "top_p": 1, "block_length": 0}
    blanks = 81 - GIVENS
    found = []

    def add(name: str, text: str, settings: dict[str, Any], rate: float, about: str) -> None:
        print(f"{name}: differ in {rate:.0%}. {about}", flush=True)
        if rate > 0.5:
            found.append({"name": name, "about": about, "text": text, "settings": settings})

    puzzle, rate, about = of_puzzles(
        checkpoint,
        count,
        lambda rng: new_sudoku_9x9(rng, GIVENS),
        blanks / STEPS,
        f"A 9x9 Sudoku of {GIVENS} givens, its {blanks} blanks filled in where they stand, in "
        f"{STEPS} forwards",
    )
    add("Sudoku", holed(puzzle), {**greedy, "steps": STEPS}, rate, about)
    for numbers, fewer in ((4, 4), (5, 4)):
        masks = NEW_TOKENS[f"countdown_{numbers}"]
        puzzle, rate, about = of_puzzles(
            checkpoint,
            count,
            lambda rng, n=numbers: generate_countdown(rng, n),  # type: ignore[misc]
            fewer,
            f"{numbers} numbers and a target, joined step by step, in {masks // fewer} forwards",
        )
        settings = {**greedy, "max_tokens": masks, "steps": masks // fewer}
        add(f"Countdown, {numbers} numbers", puzzle.prompt, settings, rate, about)
    told = (
        "A 6 M-parameter model's story: words by habit, no plot. In stories it is seldom sure of a "
        "word it leaves open, so lambda is near 0 and little is fed back"
    )
    for name, text, more, settings in (
        ("Story", STORY, {"max_new_tokens": STORY_TOKENS}, {"max_tokens": STORY_TOKENS}),
        (
            "Story with holes",
            HOLES,
            {"infill": True, "sampling": SamplingConfig(steps=4, alg=ALG)},
            {"steps": 4, **greedy},
        ),
    ):
        differ = differing(stories(checkpoint, text, **more))
        about = f"{told}. Over {SEEDS} seeds soft-masked and plain differ in {sum(differ)}."
        seed = differ.index(True) if any(differ) else 0
        add(name, text, {**settings, "seed": seed}, sum(differ) / SEEDS, about)
    return found


def recorded(checkpoint: Checkpoint, example: dict[str, Any]) -> dict[str, Any]:
    """The first example's run, soft-masked and plain."""
    ids = encode_holes(checkpoint, example["text"])
    sampling = SamplingConfig(steps=STEPS, alg=ALG)
    runs = []
    for soft in (checkpoint.soft_mask, None):
        request = Request(
            tuple(ids),
            sampling,
            soft_mask=soft,
            rules=rules_of(checkpoint, infill=True),
            seed=0,
            top_logprobs=CANDIDATES,
            trace=True,
        )
        runs.append(record(checkpoint, request, infill=True, id=f"run-{len(runs) + 1}"))
    for run in runs:
        for step in run["steps"]:
            leave_out_unlikely(step["masked"])
        run["steps"] = shortened(run["steps"])
    return {"about": example["about"], "trace": trace_file(runs)}


def write_opening(checkpoint: Checkpoint, example: dict[str, Any]) -> None:
    text = json.dumps(recorded(checkpoint, example), separators=(",", ":"))
    assert len(text) < LARGEST, f"the opening has {len(text)} bytes"
    (PAGE / "opening.json").write_text(text + "\n", encoding="utf-8")
    print(f"opening.json: {len(text)} bytes")


def leave_out_unlikely(masked: dict[str, Any]) -> None:
    """Of each position's candidates those that nobody would see."""
    for row, chances in enumerate(masked["p"]):
        count = max(1, sum(p >= SMALLEST for p in chances))
        for name in ("candidates", "p", "w"):
            masked[name][row] = masked[name][row][:count]


def shortened(value: Any) -> Any:
    """Numbers with fewer digits."""
    if isinstance(value, float):
        short = round(value, DIGITS)
        return int(short) if short == int(short) else short
    if isinstance(value, dict):
        return {key: shortened(part) for key, part in value.items()}
    return [shortened(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--puzzles", type=int, default=250, help="of each kind (default 250)")
    args = parser.parse_args()
    checkpoint = softmask.load(device="cpu")
    examples = make_examples(checkpoint, args.puzzles)
    lines = ",\n ".join(json.dumps(example) for example in examples)
    (PAGE / "examples.json").write_text(f"[\n {lines}\n]\n", encoding="utf-8")
    write_opening(checkpoint, examples[0])


if __name__ == "__main__":
    main()
