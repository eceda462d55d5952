"""The pictures of README and documents are what today's model draws."""

from __future__ import annotations

import pytest
from paths import ROOT

from softmask.puzzles.puzzles import is_solved


@pytest.mark.slow
def test_the_animated_sudoku_is_a_solution(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pictures = pytest.importorskip("pictures")
    pictures.animate(tmp_path / "sudoku.svg")
    drawn = (tmp_path / "sudoku.svg").read_text(encoding="utf-8")
    title = drawn.split("<title>")[1].split("</title>")[0]
    assert title.startswith("Sudoku\n")
    given = pictures.GRID.removeprefix("Sudoku\n").rstrip("\n")
    for size in range(1, 10):
        given = given.replace(f"[[{size}]]", "0" * size)
    answer = title.removeprefix("Sudoku\n").strip()
    assert is_solved("sudoku", given, answer)
