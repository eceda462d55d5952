"""Solves puzzles with one model in every way that an experiment asks for: one JSON file.

    python benchmarks/evidence/score_puzzles.py MODEL OUT.json --data PUZZLES [--untrained]

PUZZLES is a folder of NAME.jsonl files, as `puzzles.py` writes them. A model with soft-masking
also decodes at half of its learned scale, with its feedback off, and with its feedback shuffled
among the masked positions of a text; a plain one with soft-mask parameters that nobody trained. The
last three on the first quarter of every file. In bfloat16, as trained.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from common import FEWER

from softmask.config import SoftMaskConfig
from softmask.decoding.batch import Batch
from softmask.decoding.predictions import Predictions
from softmask.decoding.soft_state import SoftState
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.puzzles import Puzzle, read_puzzles
from softmask.puzzles.solve import is_right, solve
from softmask.soft_mask import Mixture

BATCH = 64
# Where every soft run begins (the recipes say the same).
UNTRAINED = SoftMaskConfig(k=3, scale=0.5, offset=-1.0, steepness=2.0)


@dataclass(frozen=True)
class Cell:
    """Puzzles solved in one way: "1" or "0" for each, in the file's order."""

    puzzles: str
    mode: str
    fewer: str
    solved: str
    forwards: float  # a puzzle, counted
    seconds: float


def modes_of(checkpoint: Checkpoint, untrained: bool) -> dict[str, SoftMaskConfig | None]:
    """The soft-masking of every way of decoding."""
    if checkpoint.soft_mask is None:
        return {"own": None, **({"untrained": UNTRAINED} if untrained else {})}
    own = checkpoint.soft_mask
    half = replace(own, scale=own.scale / 2)
    return {"own": own, "half": half, "off": None, "shuffled": own}


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


def score(
    checkpoint: Checkpoint,
    name: str,
    puzzles: Sequence[Puzzle],
    mode: str,
    fewer: str,
    soft: SoftMaskConfig | None,
    size: int,
) -> Cell:
    """How the puzzles of a file are solved in one way."""
    solved, forwards, begun = "", 0, time.perf_counter()
    with shuffled_feedback(0) if mode == "shuffled" else nullcontext():
        for start in range(0, len(puzzles), size):
            batch = puzzles[start : start + size]
            done = solve(checkpoint, batch, FEWER[fewer], soft).completions()
            for puzzle, completion in zip(batch, done, strict=True):
                solved += str(int(is_right(puzzle, completion.text)))
                forwards += completion.forwards
    seconds = time.perf_counter() - begun
    return Cell(name, mode, fewer, solved, forwards / len(puzzles), round(seconds, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=BATCH, help="puzzles solved side by side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(args.model, device=args.device, dtype="bfloat16")
    cells = []
    for file in sorted(args.data.glob("*.jsonl")):
        kind = "sudoku" if "sudoku" in file.name else "countdown"
        puzzles = read_puzzles(file, kind)
        for mode, soft in modes_of(checkpoint, args.untrained).items():
            whole = mode in ("own", "half")
            chosen = puzzles if whole else puzzles[: math.ceil(len(puzzles) / 4)]
            for fewer in FEWER:
                cells.append(score(checkpoint, file.stem, chosen, mode, fewer, soft, args.batch))
                print(json.dumps(asdict(cells[-1])), flush=True)
    soft = checkpoint.soft_mask
    result = {"soft_mask": soft and asdict(soft), "cells": [asdict(cell) for cell in cells]}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
