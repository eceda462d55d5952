"""Score the planning tasks: any answer that solves the puzzle by its rules counts."""

from __future__ import annotations

from typing import Any

from ..puzzles import is_solved

__all__ = ["countdown_results", "sudoku_results"]


def countdown_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the equations make the target, as lm-eval's `process_results`."""
    return {"solved": float(is_solved("countdown", doc["input"], results[0]))}


def sudoku_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the grid is filled by the rules, as lm-eval's `process_results`.

    Spaces between its digits do not count, as in Dream's evaluation.
    """
    return {"solved": float(is_solved("sudoku", doc["input"], results[0].replace(" ", "")))}
