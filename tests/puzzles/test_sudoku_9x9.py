"""9x9 Sudoku: one solution each, twins that are puzzles again, and a check by rule."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.puzzles import sudoku
from softmask.puzzles.puzzles import canonical, generate_puzzles, generate_sudoku_9x9, is_solved
from softmask.puzzles.sudoku_9x9 import bases, dig, generate, is_grid, solution_of, solve, twin

# A puzzle of a newspaper's kind, and one that singles do not solve (Arto Inkala, 2010).
EASY = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
EASY_GRID = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
HARD = "005300000800000020070010500400005300010070006003200080060500009004000030000009700"
HARD_GRID = "145327698839654127672918543496185372218473956753296481367542819984761235521839764"

seeds = st.integers(0, 2**32 - 1)
FAST = settings(max_examples=40, deadline=None)


def rows(cells: str) -> str:
    return "\n".join(cells[start : start + 9] for start in range(0, 81, 9))


def test_known_puzzles_are_solved_and_told_apart_by_difficulty() -> None:
    easy, hard = solve(EASY), solve(HARD)
    assert (easy.grids, easy.guesses) == ((EASY_GRID,), 0)
    assert hard.grids == (HARD_GRID,)
    assert hard.guesses > 3


def test_several_solutions_and_none_are_noticed() -> None:
    assert len(solve("0" * 81).grids) == 2
    assert solve("11" + "0" * 79).grids == ()
    # A cell with no digit left, in no row, column or box a contradiction by itself.
    assert solve("123456780" + "0" * 17 + "9" + "0" * 54).grids == ()


@FAST
@given(seeds)
def test_twins_are_puzzles_with_as_many_givens_and_the_twin_as_solution(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.choice(bases())
    cells, grid = twin(rng, base, solution_of(base))
    assert is_grid(grid)
    assert solve(cells).grids == (grid,)


@FAST
@given(seeds, st.integers(28, 80))
def test_a_generated_puzzle_has_its_givens_and_one_solution(seed: int, givens: int) -> None:
    puzzle = generate_sudoku_9x9(random.Random(seed), givens)
    assert puzzle.prompt == f"Sudoku\n{puzzle.input}\nSolution\n"
    assert 81 - puzzle.input.count("0") == givens
    assert solve(puzzle.input.replace("\n", "")).grids == (puzzle.output.replace("\n", ""),)
    assert is_solved("sudoku", puzzle.input, puzzle.output)
    assert canonical("sudoku", puzzle.input) == puzzle.input
    again = generate_sudoku_9x9(random.Random(seed), givens)
    assert again == puzzle


@FAST
@given(seeds, st.integers(0, 80), st.integers(0, 9))
def test_one_wrong_digit_is_no_solution(seed: int, cell: int, digit: int) -> None:
    puzzle = generate_sudoku_9x9(random.Random(seed), 30)
    grid = puzzle.output.replace("\n", "")
    changed = grid[:cell] + str(digit) + grid[cell + 1 :]
    assert is_solved("sudoku", puzzle.input, rows(changed)) is (changed == grid)


@pytest.mark.parametrize("answer", ["", "1", rows(EASY_GRID)[:-1], EASY_GRID, rows(HARD_GRID)])
def test_what_is_no_solution_of_the_puzzle_is_refused(answer: str) -> None:
    assert not is_solved("sudoku", rows(EASY), answer)
    assert is_solved("sudoku", rows(EASY), rows(EASY_GRID))


def test_the_bundled_puzzles_are_dug_by_this_code_and_nothing_can_be_taken_from_them() -> None:
    assert len(set(bases())) == 512
    for number in (0, 511):
        assert dig(random.Random(f"sudoku9/{number}"))[0] == bases()[number]
    cells = bases()[7]
    for cell in (c for c in range(81) if cells[c] != "0"):
        assert len(solve(cells[:cell] + "0" + cells[cell + 1 :]).grids) == 2


def test_a_mixture_has_them() -> None:
    stream = generate_puzzles(3, {"sudoku_9x9": 1.0})
    givens = [81 - next(stream).input.count("0") for _ in range(200)]
    assert (min(givens), max(givens)) == (30, 50)


def test_too_few_givens_are_refused() -> None:
    with pytest.raises(ValueError, match="28 to 80"):
        generate(random.Random(0), 27)


def test_a_base_with_more_givens_than_wanted_is_refused() -> None:
    rng = random.Random(0)
    base, _ = generate(rng, 40)
    with pytest.raises(ValueError, match="the base has 40 givens, more than 30"):
        generate(rng, 30, base)


def test_a_puzzle_without_a_solution_is_given_up() -> None:
    """To show that it has none would take minutes."""
    cells = ".....5.8....6.1.43..........1.5........1"
    cells = (cells + ".6...3.......553.....61........4.........").replace(".", "0")
    assert sudoku.solution_of(cells) is None
    assert sudoku.solution_of(HARD) == HARD_GRID
