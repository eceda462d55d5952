"""Puzzles put to a model: the generation that answers them, and how many it solves.

Fresh puzzles are in no evaluation file.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..config import SamplingConfig, SoftMaskConfig, require
from ..decoding.generation import Generation
from ..models.checkpoint import Checkpoint
from .held_out import unevaluated
from .puzzles import (
    Puzzle,
    generate_puzzles,
    holed,
    is_solved,
    new_sudoku_9x9,
    prompt_of,
    read_puzzles,
)

# Masks for an answer: the longest one and its end token.
NEW_TOKENS = {
    "sudoku_4x4": 24,
    "countdown_3": 24,
    "countdown_4": 36,
    "countdown_5": 56,
}
DEMO_KINDS = ("sudoku_9x9", "sudoku_4x4", "countdown_3", "countdown_4")
GIVENS = 32  # of the 9x9 Sudokus that the demo makes: the bundled model solves nine in ten
# A beginning to go on from.
STORY, STORY_TOKENS = "One day, Tom", 64
# The rule that commits what the model cannot confuse with a second candidate.
ALG = "topk_margin"
FEW_SHOT_POOL = 8  # first lines of each Sudoku file, prompts of the original evaluation
BATCH = 64


class Score(NamedTuple):
    """Accuracy with its standard error, and forwards a puzzle."""

    accuracy: float
    error: float
    forwards: float


def name_of(puzzle: Puzzle) -> str:
    """sudoku_4x4, countdown_3, ..."""
    if puzzle.kind == "sudoku":
        return "sudoku_4x4" if len(puzzle.input) < 81 else "sudoku_9x9"
    return f"countdown_{puzzle.input.count(',')}"


def solve(
    checkpoint: Checkpoint,
    puzzles: Sequence[Puzzle],
    fewer: int,
    soft: SoftMaskConfig | None,
    **sampling: Any,
) -> Generation:
    """The generation that answers puzzles of one kind, not yet run.

    A 9x9 Sudoku's own blanks are filled in; behind other puzzles a solution is written.

    Args:
        fewer: 1 takes as many steps as there are masks, 2 half of them, and so on.
        sampling: further fields of SamplingConfig, or `steps` in place of `fewer`.
    """
    name, in_place = name_of(puzzles[0]), is_in_place(puzzles[0])
    if in_place:
        masks = max(puzzle.input.count("0") for puzzle in puzzles)
        prompts = [holed(puzzle) for puzzle in puzzles]
    else:
        masks = NEW_TOKENS[name]
        prompts = [prompt_of(puzzle) for puzzle in puzzles]
    return Generation(
        checkpoint,
        prompts,
        infill=in_place,
        max_new_tokens=masks,
        sampling=SamplingConfig(**{"steps": math.ceil(masks / fewer), "alg": ALG, **sampling}),
        soft_mask=soft,
        seed=0,
        chat=False,
    )


def is_in_place(puzzle: Puzzle) -> bool:
    """Whether `solve` fills in the puzzle itself."""
    return name_of(puzzle) == "sudoku_9x9"


def answer_in(puzzle: Puzzle, written: str) -> str:
    """The answer in what `solve` writes: a puzzle that was filled in comes with its title."""
    return written.partition("\n")[2] if is_in_place(puzzle) else written


def is_right(puzzle: Puzzle, written: str) -> bool:
    """Whether what `solve` wrote solves the puzzle."""
    return is_solved(puzzle.kind, puzzle.input, answer_in(puzzle, written))


def score(
    checkpoint: Checkpoint,
    puzzles: Sequence[Puzzle],
    fewer: int,
    soft: SoftMaskConfig | None,
    steps: int | None = None,
    done: Callable[[float], None] | None = None,
) -> Score:
    """How many of the puzzles (of one kind) are solved by the rules of the puzzle.

    Args:
        fewer: see `solve`.
        steps: this many, in place of `fewer`.
        done: is told of so many puzzles that are answered, as it goes on.
    """
    solved, forwards = 0, 0
    fixed = {} if steps is None else {"steps": steps}
    for start in range(0, len(puzzles), BATCH):
        batch = puzzles[start : start + BATCH]
        run = solve(checkpoint, batch, fewer, soft, **fixed)
        for step in run:
            if done is not None:
                done(len(batch) / step.steps)
        answered = run.completions()
        solved += sum(is_right(p, c.text) for p, c in zip(batch, answered, strict=True))
        forwards += sum(completion.forwards for completion in answered)
    n = len(puzzles)
    accuracy = solved / n
    return Score(accuracy, math.sqrt(accuracy * (1 - accuracy) / n), forwards / n)


class Example(NamedTuple):
    """The Sudoku that is shown soft-masked beside plain, and how often it comes out so.

    Of `twins` (the same puzzle in other symmetries) and of `fresh` puzzles: how many there were
    (n), how many each way solves, and how many answers differ. `fed_back`: mean lambda and entropy
    on Sudokus and stories. `benchmarks/demo_example.py` finds all of it.
    """

    puzzle: Puzzle
    forwards: int
    givens: int
    twins: dict[str, int]
    fresh: dict[str, int]
    fed_back: dict[str, dict[str, float]]


def the_example() -> Example:
    """The one that comes with the package."""
    text = (resources.files(__package__) / "demo_example.json").read_text(encoding="utf-8")
    found = json.loads(text)
    puzzle = Puzzle("sudoku", found.pop("input"), found.pop("output"))
    return Example(puzzle, **found)


def fresh_puzzles(
    count: int, kinds: Sequence[str] = DEMO_KINDS, givens: int = GIVENS
) -> dict[str, list[Puzzle]]:
    """`count` generated puzzles of each kind, none of them from an evaluation file.

    Args:
        givens: of 9x9 Sudokus, 28 to 80.

    Raises:
        ValueError: an unknown kind, or givens out of range.
    """
    unknown = [name for name in kinds if name not in DEMO_KINDS]
    if unknown:
        raise ValueError(f"no puzzles {', '.join(unknown)}: there are {', '.join(DEMO_KINDS)}")
    return {name: list(islice(unevaluated(_made(name, givens)), count)) for name in kinds}


def _made(name: str, givens: int) -> Iterator[Puzzle]:
    rng = random.Random(f"demo/{name}")
    if name == "sudoku_9x9":
        while True:
            yield new_sudoku_9x9(rng, givens)
    yield from generate_puzzles(rng.getrandbits(60), {name: 1.0})


def file_puzzles(folder: Path, limit: int | None) -> dict[str, list[Puzzle]]:
    """Dream's evaluation files in a folder, without the few-shot pool of the Sudoku ones.

    Raises:
        ValueError: there is none, one holds no puzzle beside the pool, or one of another kind.
    """
    groups = {}
    for path in sorted(folder.glob("*.jsonl")):
        is_sudoku = path.name.startswith("sudoku_4x4_")
        if not is_sudoku and not path.name.startswith("cd"):
            continue
        pool = FEW_SHOT_POOL if is_sudoku else 0
        puzzles = read_puzzles(path, "sudoku" if is_sudoku else "countdown")[pool:][:limit]
        besides = f" besides the first {pool}, which are shown as examples" if pool else ""
        require(bool(puzzles), f"{path} holds no puzzle{besides}: give a file with more")
        for number, puzzle in enumerate(puzzles, start=pool + 1):
            name = name_of(puzzle)
            require(
                name in NEW_TOKENS,
                f"{path}, puzzle {number} is a {name}, which is not solved here: leave it out",
            )
        groups[path.stem] = puzzles
    if not groups:
        raise ValueError(f"{folder} holds no sudoku_4x4_N.jsonl and no cdN_test.jsonl")
    return groups
