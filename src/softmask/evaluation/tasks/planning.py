"""Score the planning tasks: any answer that solves the puzzle by its rules counts."""

from __future__ import annotations

from typing import Any

from ...puzzles.puzzles import is_solved
from ..answers import countdown_answer, solves_countdown, solves_sudoku, sudoku_answer

__all__ = ["countdown_d1_results", "countdown_results", "sudoku_d1_results", "sudoku_results"]


def countdown_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the equations make the target, as lm-eval's `process_results`."""
    return {"solved": float(is_solved("countdown", doc["input"], results[0]))}


def sudoku_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the grid is filled by the rules, as lm-eval's `process_results`.

    Spaces between its digits do not count, as in Dream's evaluation.
    """
    return {"solved": float(is_solved("sudoku", doc["input"], results[0].replace(" ", "")))}


def countdown_d1_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the boxed expression makes the target, as lm-eval's `process_results`."""
    numbers = [int(number) for number in doc["input"].split(",")]
    answer = countdown_answer(results[0])
    return {"solved": float(solves_countdown(numbers, int(doc["output"]), answer))}


def sudoku_d1_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return whether the grid is right, and the share of its empty cells that are.

    A grid without empty cells has all or nothing of them.
    """
    answer = sudoku_answer(results[0])
    rows = zip(doc["Puzzle"], doc["Solution"], answer or " " * 16, strict=True)
    right = [cell == solution for given, solution, cell in rows if given == "0"]
    solved = float(solves_sudoku(doc["Puzzle"], answer))
    return {"solved": solved, "cells": sum(right) / len(right) if right else solved}
