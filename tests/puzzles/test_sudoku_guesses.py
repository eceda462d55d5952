"""9x9 Sudoku by difficulty: bands, one solution each, and a count that is the solver's."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.puzzles.sudoku_9x9 import bases as trained_on
from softmask.puzzles.sudoku_9x9 import is_grid, solve, twin
from softmask.puzzles.sudoku_guesses import (
    BANDS,
    BASES_A_BAND,
    bases,
    difficulty,
    generate,
    search,
)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*BANDS, (3, 5), (15, 18), (30, None)]))
def test_a_generated_puzzle_has_one_solution_and_a_difficulty_in_its_band(seed, band) -> None:
    least, most = band
    cells, grid, guesses, base = generate(random.Random(seed), least, most)
    assert (cells, grid, guesses, base) == generate(random.Random(seed), least, most)
    assert bases()[base][0].count("0") == cells.count("0")
    assert solve(cells).grids == (grid,)
    assert is_grid(grid)
    assert least <= guesses == difficulty(cells)
    assert most is None or guesses <= most


def test_the_bases_lie_in_their_bands_and_are_none_that_is_trained_on() -> None:
    found = bases()
    assert len({cells for cells, _ in found}) == len(found) == len(BANDS) * BASES_A_BAND
    for place, (cells, guesses) in enumerate(found):
        least, most = BANDS[place // BASES_A_BAND]
        assert least <= guesses == difficulty(cells) <= most
    # Symmetries keep how often the digits and the lines of three are given.
    trained = {_invariant(cells) for cells in trained_on()}
    assert not trained & {_invariant(cells) for cells, _ in found}
    rng = random.Random(0)
    (moved,) = twin(rng, found[0][0])
    assert _invariant(moved) == _invariant(found[0][0])


def _invariant(cells: str) -> tuple:
    """What all symmetric twins of a puzzle have in common."""
    rows = [[int(cells[9 * r + c] != "0") for c in range(9)] for r in range(9)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    ways = [
        sorted(
            sorted(tuple(sorted(sum(line[b : b + 3]) for b in (0, 3, 6))) for line in band)
            for band in (way[at : at + 3] for at in (0, 3, 6))
        )
        for way in (rows, columns)
    ]
    digits = sorted(cells.count(digit) for digit in "123456789")
    return str(digits), str(sorted(map(str, ways)))


@pytest.mark.parametrize("place", [0, pytest.param(2 * BASES_A_BAND, marks=pytest.mark.slow)])
def test_the_search_finds_the_bases_that_are_shipped(place: int) -> None:
    cells = search(random.Random(place), *BANDS[place // BASES_A_BAND])
    assert (cells, difficulty(cells)) == bases()[place]


@pytest.mark.parametrize("band", [(-1, 3), (41, None), (5, 4)])
def test_a_band_that_cannot_be_is_an_error(band) -> None:
    with pytest.raises(ValueError, match="difficulties go from at least 0 to 40 to at most"):
        generate(random.Random(0), *band)
