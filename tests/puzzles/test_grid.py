"""Which position of a canvas is which cell of a Sudoku."""

from __future__ import annotations

import random

import pytest

from softmask.puzzles.grid import find_grid
from softmask.puzzles.puzzles import (
    Puzzle,
    generate_sudoku,
    generate_sudoku_9x9,
    is_solved,
    prompt_of,
    twin_of,
)


def pieces_of(text: str, masks: int = 0) -> list[str | None]:
    """Characters, those of `_` masked, and so many masks behind them."""
    return [None if char == "_" else char for char in text] + [None] * masks


def in_place(puzzle: Puzzle) -> list[str | None]:
    return pieces_of(f"Sudoku\n{puzzle.input.replace('0', '_')}\n")


@pytest.fixture(scope="module")
def nine() -> Puzzle:
    return generate_sudoku_9x9(random.Random(1), 30)


def test_a_sudoku_filled_in_where_it_stands(nine) -> None:
    grid = find_grid(in_place(nine))
    assert grid.givens == nine.input.replace("\n", "")
    start = len("Sudoku\n")
    assert grid.positions[:10] == (*range(start, start + 9), start + 10)
    assert (grid.side, grid.box, len(list(grid.rows()))) == (9, 3, 9)


def test_a_sudoku_written_behind_its_puzzle() -> None:
    puzzle = generate_sudoku(random.Random(1), 6)
    prompt = prompt_of(puzzle)
    grid = find_grid(pieces_of(prompt, 24))
    assert grid.givens == puzzle.input.replace("\n", "")
    assert grid.positions[:5] == tuple(len(prompt) + i for i in (0, 1, 2, 3, 5))
    assert find_grid(pieces_of(prompt, 19)) == grid
    assert find_grid(pieces_of(prompt, 18)) is None  # a digit short


def test_tokens_of_several_characters_count_as_one_position(nine) -> None:
    whole = in_place(nine)
    merged = ["Sud", "oku\n", *whole[len("Sudoku\n") :]]
    assert find_grid(merged).positions[0] == 2
    assert find_grid([*merged[:2], "12", *merged[4:]]) is None  # two cells in one


@pytest.mark.parametrize("text", ["One day, Tom", "Sudoku\n12__\n", "", "Sudoku\n1234\n" * 4])
def test_another_canvas_is_no_grid(text) -> None:
    assert find_grid(pieces_of(text, 24)) is None


def test_wrong_cells_are_those_that_the_one_solution_has_otherwise(nine) -> None:
    grid = find_grid(in_place(nine))
    digits = list(nine.output.replace("\n", ""))
    assert grid.wrong(digits) == frozenset()
    blank = grid.givens.index("0")
    digits[blank] = str(int(digits[blank]) % 9 + 1)
    assert grid.wrong(digits) == {blank}


def test_without_one_solution_wrong_is_what_clashes() -> None:
    grid = find_grid(pieces_of("Sudoku\n12__\n____\n____\n____\n"))
    right = list("1234341221434321")
    assert grid.wrong(right) == frozenset()
    assert grid.wrong(["2", *right[1:]]) == {0, 1, 8}


def test_a_twin_is_the_same_puzzle_in_other_places_and_digits(nine) -> None:
    twin = twin_of(random.Random(0), nine)
    assert twin.input != nine.input
    assert twin.input.count("0") == nine.input.count("0")
    assert is_solved("sudoku", twin.input, twin.output)
    with pytest.raises(ValueError, match="9x9"):
        twin_of(random.Random(0), generate_sudoku(random.Random(1), 6))
