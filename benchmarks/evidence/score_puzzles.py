"""Solves puzzles with one model in every way that an experiment asks for: one JSON file.

    python benchmarks/evidence/score_puzzles.py MODEL OUT.json --data PUZZLES [--untrained]

PUZZLES is a folder of NAME.jsonl files, as `puzzles.py` writes them. A model with soft-masking
also decodes at half of its learned scale, with its feedback off, and with its feedback shuffled
among the masked positions of a text; a plain one with soft-mask parameters that nobody trained. The
last three on the first quarter of every file.

With --modes it decodes in these ways alone, all puzzles of every file or the --first of them.
Further ones: entropy-T, tokens-T and both-T (temperature T of the feedback, in the entropy, in the
tokens or in both), commit-plain (what commits is read off a pass without feedback, a second
forward, so half as many steps), preset-NAME (as --feedback NAME), and spherical-S (that preset at
lambda S).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import FEWER

from softmask.config import SoftMaskConfig
from softmask.decoding.batch import Batch
from softmask.decoding.generation import Generation, choose_soft_mask
from softmask.decoding.predictions import Predictions
from softmask.decoding.soft_state import SoftState
from softmask.files import write_atomically
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import Puzzle, read_puzzles
from softmask.puzzles.solve import is_in_place, is_right, solve
from softmask.soft_mask import Mixture

BATCH = 64
# Where every soft run begins (the recipes say the same).
UNTRAINED = SoftMaskConfig(k=3, scale=0.5, offset=-1.0, steepness=2.0)


# Of the feedback: the settings that a temperature is of, by the mode's first word.
TEMPERATURES = {
    "entropy": ("entropy_temperature",),
    "tokens": ("token_temperature",),
    "both": ("entropy_temperature", "token_temperature"),
}


@dataclass(frozen=True)
class Cell:
    """Puzzles solved in one way: "1" or "0" for each, in the file's order.

    Of Sudokus that are filled in, over all puzzles: tokens that each step committed, and how many
    of them are not the solution's.
    """

    puzzles: str
    mode: str
    fewer: str
    solved: str
    forwards: float  # a puzzle, counted
    seconds: float
    committed: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """How a mode decodes: with which soft-masking, and by which settings of sampling."""

    soft: SoftMaskConfig | None
    sampling: dict[str, Any] = field(default_factory=dict)
    forwards: int = 1  # a step
    is_shuffled: bool = False


def way_of(mode: str, own: SoftMaskConfig | None) -> Way:
    """The way of decoding of this name, with a model's own soft-masking.

    Raises:
        ValueError: an unknown mode, or one for which the model needs soft-masking.
    """
    if mode in ("own", "off"):
        return Way(own if mode == "own" else None)
    if mode == "untrained":
        return Way(UNTRAINED)
    if mode.startswith("preset-"):
        return Way(choose_soft_mask({"feedback": mode.removeprefix("preset-")}, own))
    if mode.startswith("spherical-"):
        preset = {"feedback": "spherical", "scale": float(mode.removeprefix("spherical-"))}
        return Way(choose_soft_mask(preset, own))
    if own is None:
        raise ValueError(f"this model has no soft-masking: it cannot decode as {mode}")
    if mode == "half":
        return Way(replace(own, scale=own.scale / 2))
    if mode == "shuffled":
        return Way(own, is_shuffled=True)
    if mode == "commit-plain":
        return Way(own, {"commit_from": "plain"}, forwards=2)
    what, _, temperature = mode.partition("-")
    if what not in TEMPERATURES:
        raise ValueError(f"no mode {mode}: see the head of {Path(__file__).name}")
    changed: dict[str, Any] = dict.fromkeys(TEMPERATURES[what], float(temperature))
    return Way(replace(own, **changed))


def modes_of(checkpoint: Checkpoint, untrained: bool) -> dict[str, float]:
    """The ways in which a model decodes where none are named, and the share of puzzles of each."""
    if checkpoint.soft_mask is None:
        return {"own": 1.0, **({"untrained": 0.25} if untrained else {})}
    return {"own": 1.0, "half": 1.0, "off": 0.25, "shuffled": 0.25}


@contextmanager
def shuffled_feedback(seed: int) -> Iterator[None]:
    """Within: what a masked position is fed back belongs to another one of its text, by chance.

    Mixtures and lambdas stay what they are; only who gets them changes, anew in every step.
    """
    generator = torch.Generator().manual_seed(seed)
    mix, put = Batch._mix, SoftState.put
    starts: list[int] = []

    def mix_knowing_sequences(batch: Batch, predictions: Predictions) -> None:
        starts[:] = sorted(sequence.start for sequence in predictions.sequences)
        mix(batch, predictions)

    def put_elsewhere(state: SoftState, rows_M: torch.Tensor, mixed: Mixture) -> None:
        text_M = torch.searchsorted(torch.tensor(starts), rows_M.cpu(), right=True)
        draw_M = torch.rand(len(rows_M), generator=generator)
        from_M = torch.argsort(text_M + draw_M.double())
        to_M = torch.argsort(text_M, stable=True)
        whose_M = torch.empty_like(to_M)
        whose_M[to_M] = from_M
        put(state, rows_M, Mixture(*(x if x is None else x[whose_M] for x in mixed)))

    Batch._mix, SoftState.put = mix_knowing_sequences, put_elsewhere
    try:
        yield
    finally:
        Batch._mix, SoftState.put = mix, put


def solution_of(checkpoint: Checkpoint, run: Generation, puzzles: Sequence[Puzzle]) -> torch.Tensor:
    """(B, L) the canvas of Sudokus that are filled in, solved."""
    digit = {d: checkpoint.tokenizer.encode(d, add_special_tokens=False) for d in "123456789"}
    solved_BL = run.canvas_BL.clone()
    for row, puzzle in enumerate(puzzles):
        cells = zip(puzzle.input, puzzle.output, strict=True)
        ids = [digit[right] for given, right in cells if given == "0"]
        solved_BL[row, solved_BL[row] == run.mask_id] = torch.tensor(ids).squeeze(1).to(solved_BL)
    return solved_BL


def score(
    checkpoint: Checkpoint,
    name: str,
    puzzles: Sequence[Puzzle],
    mode: str,
    fewer: str,
    size: int,
) -> Cell:
    """How the puzzles of a file are solved in one way."""
    way = way_of(mode, checkpoint.soft_mask)
    solved, forwards, begun = "", 0, time.perf_counter()
    committed: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    with shuffled_feedback(0) if way.is_shuffled else nullcontext():
        for start in range(0, len(puzzles), size):
            batch = puzzles[start : start + size]
            run = solve(checkpoint, batch, FEWER[fewer] * way.forwards, way.soft, **way.sampling)
            if is_in_place(batch[0]):
                solved_BL = solution_of(checkpoint, run, batch)
                for step in run:
                    committed[step.index] += int(step.committed_BL.sum())
                    differs_BL = step.committed_BL & (step.canvas_BL != solved_BL)
                    wrong[step.index] += int(differs_BL.sum())
            for puzzle, completion in zip(batch, run.completions(), strict=True):
                solved += str(int(is_right(puzzle, completion.text)))
                forwards += completion.forwards
    seconds = round(time.perf_counter() - begun, 2)
    each = [[count[step] for step in sorted(count)] for count in (committed, wrong)]
    return Cell(name, mode, fewer, solved, forwards / len(puzzles), seconds, *each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--modes", help="own,off,...: these, of all puzzles")
    parser.add_argument("--fewer", default=",".join(FEWER), help="forwards a token, full,1/4,...")
    parser.add_argument("--first", type=int, help="puzzles of each file (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=BATCH, help="puzzles solved side by side")
    parser.add_argument("--dtype", default="bfloat16", help="as trained (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = load(args.model, device=args.device, dtype=args.dtype)
    modes = modes_of(checkpoint, args.untrained)
    if args.modes is not None:
        modes = dict.fromkeys(args.modes.split(","), 1.0)
    cells = []
    for file in sorted(args.data.glob("*.jsonl")):
        kind = "sudoku" if "sudoku" in file.name else "countdown"
        puzzles = read_puzzles(file, kind)[: args.first]
        for mode, share in modes.items():
            chosen = puzzles[: math.ceil(share * len(puzzles))]
            for fewer in args.fewer.split(","):
                cells.append(score(checkpoint, file.stem, chosen, mode, fewer, args.batch))
                print(json.dumps(asdict(cells[-1])), flush=True)
    soft = checkpoint.soft_mask
    result = {"soft_mask": soft and asdict(soft), "cells": [asdict(cell) for cell in cells]}
    write_atomically(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
