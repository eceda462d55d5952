"""`softmask bench frontier`: the frontier, the cells, the folder."""

from __future__ import annotations

import json
import sys

import pytest
from commands import failed
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import softmask
from softmask.bench.frontier import Row, measure, puzzles_of, runs, tables_of
from softmask.bench.frontier_cells import CELLS, Cell, choose_cells
from softmask.cli.main import main
from softmask.config import SamplingConfig
from softmask.puzzles.held_out import held_out_digest, read_held_out
from softmask.puzzles.puzzles import is_solved
from softmask.reporting.plots import non_dominated

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def exceeds(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether `one` is better in a coordinate and no worse in the other."""
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


@given(POINTS)
def test_the_frontier_is_what_no_point_exceeds(points) -> None:
    kept = non_dominated(points)
    for place, point in enumerate(points):
        assert (place in kept) == (not any(exceeds(other, point) for other in points))


def test_cells_are_decodings_of_their_own_names() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        SamplingConfig(**cell.sampling)
    assert [cell.name for cell in choose_cells("dual,full,dual")] == ["dual", "full"]


def test_made_puzzles_are_the_same_each_time_and_in_no_evaluation_file() -> None:
    groups, held_out = puzzles_of(None, 5), read_held_out()
    assert groups == puzzles_of(None, 5)
    for name, puzzles in groups.items():
        assert len(set(puzzles)) == 5
        for puzzle in puzzles:
            assert is_solved(puzzle.kind, puzzle.input, puzzle.output)
            assert held_out_digest(puzzle.kind, puzzle.input) not in held_out
            if name.startswith("sudoku"):
                assert 16 - puzzle.input.count("0") == int(name[-1])


@pytest.mark.parametrize("columns", [80, 60])
def test_names_of_cells_are_whole_in_a_terminal_of_few_columns(capsys, columns) -> None:
    row = Row("sudoku_4x4_4", 9, "entropy-.05", "entropy", "plain", 1.0, 0.0, 0.1, 0.1, 3.5, 184, 9)
    Console(width=columns).print(tables_of([row], columns)[0])
    shown = capsys.readouterr().out
    assert "entropy-.05  plain" in shown
    assert ("184" in shown) == (columns == 80)


@pytest.fixture(scope="module")
def checkpoint():
    return softmask.load(device="cpu")


@pytest.mark.long
def test_cells_are_paired_with_the_full_schedule_and_fewer_forwards_cost_fewer(checkpoint) -> None:
    asked, said = [], []

    def load_with(loading):
        asked.append(loading)
        return checkpoint

    groups = {"sudoku_4x4_8": puzzles_of(None, 2)["sudoku_4x4_8"]}
    cells = [*choose_cells("full,quarter,threshold-.9"), Cell("other", "weights", loading={"x": 1})]
    rows = measure(load_with, groups, cells, 1, lambda what, _done: said.append(what))
    assert len(said) == runs(groups, len(rows), 1) == 8 * 3
    assert asked == [{}, {}, {}, {"x": 1}]
    table = {(row.cell, row.mode): row for row in rows}
    assert len(table) == 8
    full = table["full", "plain"]
    assert full.difference is None
    assert full.accuracy == 1.0
    assert table["other", "plain"].difference == table["other", "plain"].difference_error == 0.0
    assert full.forwards > table["quarter", "plain"].forwards == 6
    assert 1 <= table["threshold-.9", "soft"].forwards < full.forwards
    assert full.n == 2
    assert any(row.on_frontier for row in rows)


def test_the_folder_holds_numbers_table_and_plot(capsys, tmp_path) -> None:
    folder = tmp_path / "frontier"
    arguments = ["--only", "quarter", "--puzzles", "2", "--batch", "2", "--device", "cpu"]
    assert main(["bench", "frontier", *arguments, "--json", "--out", str(folder)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert len(result["rows"]) == 3 * 2
    assert result["rows"][0]["difference"] is None
    held = json.loads((folder / "result.json").read_text())
    assert held["rows"] == result["rows"]
    assert held["command"].startswith("softmask bench frontier --only quarter")
    assert "countdown_3, 2 puzzles" in "\n".join(lines)
    assert "countdown_3, 2 puzzles" in (folder / "table.txt").read_text()
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    line = failed(capsys, "bench", "frontier", *arguments, "--out", str(folder))
    assert "holds a result already" in line


def test_puzzles_come_from_files(data, tmp_path, capsys) -> None:
    groups = puzzles_of(data / "planning", 2)
    assert {len(puzzles) for puzzles in groups.values()} == {2}
    assert set(groups) <= {"sudoku_4x4_4", "sudoku_4x4_8", "cd3_test"}
    assert "holds no" in failed(capsys, "bench", "frontier", "--files", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only full,fastest", "no cell 'fastest'; known: full, half"),
        ("--puzzles 0", "--puzzles must be at least 1"),
        ("--batch 0", "--batch must be at least 1"),
        ("--model /no/such/model --only full", "no folder"),
        ("--fast", "--fast"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message) -> None:
    assert message in failed(capsys, "bench", "frontier", *arguments.split())


def test_without_matplotlib_a_folder_is_refused_at_once(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = failed(capsys, "bench", "frontier", "--out", str(tmp_path / "f"))
    assert line.endswith("plots need matplotlib: pip install 'softmask[eval]'")
    assert not (tmp_path / "f").exists()
