"""9x9 Sudoku by difficulty, generated: the rows of the tasks and their scores."""

from __future__ import annotations

import random
from typing import Any

from ...puzzles import sudoku_guesses
from ...puzzles.puzzles import is_solved
from ...puzzles.sudoku import as_rows

__all__ = ["documents", "results"]

SAMPLES = 100


def documents(
    *, least: int = 0, most: int | None = None, samples: int = SAMPLES, seed: int = 0, **_: Any
) -> dict[str, Any]:
    """Return the rows of a task, as lm-eval's `custom_dataset`: one split, "test".

    A row has `input` and `output`, nine lines of nine digits (0 for a blank), `guesses`, its
    difficulty, and `twin_of`, by which the standard error is clustered. The same arguments give the
    same rows; further ones are lm-eval's, without a say.

    Raises:
        ValueError: bounds that `sudoku_guesses.generate` does not have, or no samples.
    """
    from datasets import Dataset

    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    rng = random.Random(f"sudoku_9x9 {seed}")
    made = [sudoku_guesses.generate(rng, least, most) for _ in range(samples)]
    rows = [
        {"input": as_rows(one.cells), "output": as_rows(one.grid)}
        | {"guesses": one.guesses, "twin_of": one.base}
        for one in made
    ]
    return {"test": Dataset.from_list(rows)}


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Return whether the grid is right by the rules, and the share of its blanks that are.

    The second compares with the one solution, digit by digit in reading order, spaces aside.
    """
    answer = "".join(answers[0].split()).ljust(81)
    cells, grid = ("".join(doc[name].split()) for name in ("input", "output"))
    blanks = [place for place, given in enumerate(cells) if given == "0"]
    right = sum(answer[place] == grid[place] for place in blanks)
    return {
        "solved": float(is_solved("sudoku", doc["input"], answers[0])),
        "cells": right / len(blanks),
    }
