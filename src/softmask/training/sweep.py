"""Several runs one after another: seeds, and each with its plain twin."""

from __future__ import annotations

import dataclasses
import gc
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from .config import Recipe


def parse_seeds(text: str) -> list[int]:
    """`1231-1235` or `1,2,7-9`.

    Raises:
        ValueError: neither of the two.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            raise ValueError(f"--seeds takes 1231-1235 or 1,2,3, not {text!r}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"--seeds {part}: the last seed is below the first")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def run_name(recipe: Recipe) -> str:
    """The folder of a run: its recipe, its seed, and whether it is the plain twin."""
    plain = "" if recipe.soft_mask is not None else "-plain"
    return f"{recipe.name}-seed{recipe.seed}{plain}".replace("/", "-")


def runs_of(recipe: Recipe, seeds: Sequence[int], twins: bool) -> list[Recipe]:
    """The recipe for every seed, each followed by its twin without soft-masking.

    Raises:
        ValueError: twins of a recipe that has no soft-masking itself.
    """
    if twins and recipe.soft_mask is None:
        raise ValueError("--twins needs a recipe with soft-masking: this one is its own twin")
    seeded = [dataclasses.replace(recipe, seed=seed) for seed in seeds]
    return [run for one in seeded for run in ((one, one.twin()) if twins else (one,))]


def sweep(
    runs: Sequence[Recipe],
    folder: Path,
    train: Callable[[Recipe, Path], Path],
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Trains each run in a folder of its own; finished ones are not run again.

    Raises:
        ValueError: a run failed; those before it are done, and those after it are not begun.
    """
    results = []
    for number, recipe in enumerate(runs, 1):
        target = folder / run_name(recipe)
        report(f"run {number} of {len(runs)}: {target}")
        results.append(train(recipe, target))
        gc.collect()  # frees the model, which trainer and callbacks hold in reference cycles
    return results
