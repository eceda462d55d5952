"""The bundled model: small, legible, loaded without a network, and good at what its card says."""

from __future__ import annotations

import io
import json
import random
import re
from importlib import resources
from pathlib import Path

import pytest
from paths import ROOT
from rich.console import Console

import softmask
from softmask.cli.demo_show import table_of
from softmask.cli.main import main
from softmask.config import SamplingConfig, sampling_to_file
from softmask.decoding.generation import Generation
from softmask.puzzles.held_out import held_out_digest, read_held_out
from softmask.puzzles.puzzles import is_solved, new_sudoku_9x9, prompt_of
from softmask.puzzles.solve import (
    answer_in,
    file_puzzles,
    fresh_puzzles,
    score,
    solve,
    the_example,
)
from softmask.training.recipe import read_recipe

RESULTS = ROOT / "benchmarks" / "results"
DEFAULT = Path(str(resources.files("softmask"))) / "default"


@pytest.fixture(scope="module")
def checkpoint():
    return softmask.load(device="cpu")


def test_it_is_small_and_has_a_card_with_its_figures() -> None:
    size = sum(path.stat().st_size for path in DEFAULT.iterdir())
    assert size <= 16 * 2**20
    card = (DEFAULT / "README.md").read_text()
    for word in ("Sudoku", "Countdown", "softmask demo --files", "license: apache-2.0"):
        assert word in card


def test_it_brings_soft_mask_parameters_that_training_moved(checkpoint) -> None:
    soft = checkpoint.soft_mask
    assert soft.mode == "topk"
    assert soft.scale > 0.05
    assert (soft.scale, soft.offset, soft.steepness) != (0.5, -1.0, 2.0)


KINDS = [("sudoku_9x9", 8, 0.75), ("sudoku_4x4", 16, 0.9), ("countdown_3", 16, 0.5)]


@pytest.mark.parametrize(("kind", "count", "least"), KINDS)
def test_it_solves_fresh_puzzles_plain_and_soft_masked(checkpoint, kind, count, least) -> None:
    puzzles = fresh_puzzles(count, [kind])[kind]
    for soft in (None, checkpoint.soft_mask):
        assert score(checkpoint, puzzles, 4, soft).accuracy >= least


@pytest.mark.long  # 6 million parameters
def test_it_solves_a_sudoku_in_a_canvas_just_as_long_as_the_answer(checkpoint) -> None:
    puzzles = fresh_puzzles(32, ["sudoku_4x4"])["sudoku_4x4"]
    run = Generation(
        checkpoint,
        [prompt_of(puzzle) for puzzle in puzzles],
        max_new_tokens=19,  # 16 digits, 3 line breaks
        sampling=SamplingConfig(steps=10, alg="topk_margin"),
        seed=0,
        chat=False,
    )
    texts = [done.text for done in run.completions()]
    solved = [is_solved(p.kind, p.input, text) for p, text in zip(puzzles, texts, strict=True)]
    assert sum(solved) >= 30


def test_a_9x9_sudoku_is_filled_in_where_it_stands(checkpoint) -> None:
    puzzle = new_sudoku_9x9(random.Random(1), 60)
    run = solve(checkpoint, [puzzle], 4, None)
    (done,) = run.completions()
    assert done.forwards == 6  # 21 blanks, a quarter of them
    answer = answer_in(puzzle, done.text)
    assert len(answer) >= len(puzzle.input)
    first = puzzle.input.index("0")
    assert answer[:first] == puzzle.input[:first]
    assert answer.rstrip("\n").endswith(puzzle.input.rsplit("0", 1)[1])


def test_the_puzzles_of_the_demo_were_held_out_of_its_training() -> None:
    held_out = read_held_out()
    for puzzles in fresh_puzzles(5).values():
        assert len(puzzles) == 5
        assert not any(held_out_digest(p.kind, p.input) in held_out for p in puzzles)


def test_the_example_of_the_demo_is_what_its_script_found() -> None:
    example = the_example()
    kept = json.loads((RESULTS / "2026-11-28_demo_example" / "result.json").read_text())
    for name in ("forwards", "givens", "twins", "fresh", "fed_back"):
        assert kept[name] == getattr(example, name)
    assert (kept["input"], kept["output"]) == (example.puzzle.input, example.puzzle.output)
    # What is shown is the rule: the answers differ more often than not.
    for counts in (example.twins, example.fresh):
        assert counts["differ"] > counts["n"] / 2
        assert counts["soft"] > counts["plain"]


def test_a_prompt_without_a_model_gets_a_story(capsys) -> None:
    assert main(["generate", "One day, Tom", "--max-new-tokens", "60", "--seed", "1"]) == 0
    words = capsys.readouterr().out.lower().replace(".", " ").replace(",", " ").split()
    common = {"the", "a", "and", "to", "was", "he", "she", "they", "with", "his", "big", "saw"}
    assert len(words) > 25
    assert len([word for word in words if word in common]) > len(words) / 4


def test_a_story_with_a_hole_gets_it_filled(capsys) -> None:
    text = "One day, Tom went to the[[6]]. He was very happy."
    assert main(["generate", "--infill", text, "--seed", "1"]) == 0
    out = capsys.readouterr().out.rstrip("\n")
    before, after = text.split("[[6]]")
    assert out.startswith(before)
    assert out.endswith(after)
    assert any(c.isalpha() for c in out[len(before) : -len(after)])


def test_the_demo_shows_a_sudoku_both_ways_with_rates_and_ends_with_a_table(capsys) -> None:
    assert main(["demo", "--puzzles", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    example = the_example()
    solved, *_ = [line for line in out.splitlines() if "not solved: " in line]
    assert solved.startswith("solved ")  # soft-masked, on the left
    for row in example.puzzle.output.split("\n"):
        assert any(re.sub(r"\D", "", line[:33]) == row for line in out.splitlines())
    words = " ".join(out.split())
    assert f"Of {example.twins['n']} symmetric twins" in words
    assert "One day, Tom " in out
    assert "mean lambda is 0.01" in words
    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["plain_forwards"] for row in rows] == [8, 12]
    assert err == ""
    assert "7* the two differ   7! wrong" in out


def test_its_recipe_writes_the_sampling_file_that_it_has() -> None:
    recipe = read_recipe("default")
    written = sampling_to_file(recipe.sampling, recipe.prompt_kinds)
    assert written == json.loads((DEFAULT / "sampling_config.json").read_text())


def test_a_puzzle_is_decoded_greedily_with_the_masks_it_needs_and_a_story_as_before(
    checkpoint,
) -> None:
    puzzle, story = fresh_puzzles(1, ["sudoku_4x4"])["sudoku_4x4"][0], "One day, Tom"
    run = Generation(checkpoint, puzzle.prompt)
    assert run.sampling == SamplingConfig(steps=24, alg="topk_margin")
    assert is_solved(puzzle.kind, puzzle.input, run.completions()[0].text)
    told = Generation(checkpoint, story).sampling
    assert (told.temperature, told.top_p, told.block_length, told.steps) == (0.8, 0.9, 16, 128)


@pytest.mark.long  # 6 million parameters
def test_the_demo_takes_one_kind_and_harder_sudokus(capsys) -> None:
    options = ["--kinds", "sudoku_9x9", "--givens", "60", "--puzzles", "1", "--json"]
    assert main(["demo", *options]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert {row["puzzles"] for row in rows} == {"sudoku_9x9"}
    assert [row["plain_forwards"] for row in rows] == [20, 11, 6]  # of 21 blanks
    with pytest.raises(ValueError, match="no puzzles sudoku_16x16: there are sudoku_9x9, "):
        fresh_puzzles(1, ["sudoku_16x16"])


def test_no_number_of_givens_counts_as_none(capsys) -> None:
    options = ["--kinds", "sudoku_9x9", "--givens", "0", "--puzzles", "1"]
    assert main(["demo", *options]) == 2
    assert "28" in capsys.readouterr().err


def test_the_demo_compares_nothing_where_nothing_is_fed_back(capsys) -> None:
    assert main(["demo", "--feedback", "off", "--puzzles", "1"]) == 2
    assert "nothing to compare: give --feedback spherical" in capsys.readouterr().err


def test_the_demo_tells_measured_figures_of_the_feedback_they_were_measured_with(capsys) -> None:
    assert main(["demo", "--feedback", "spherical", "--puzzles", "1"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "One day, Tom " in words
    assert "symmetric twins" not in words
    assert "mean lambda" not in words


SOLVED = {"input": "1234\n3412\n2143\n4320", "output": "1234\n3412\n2143\n4321"}


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("cd3_test", [], "cd3_test.jsonl holds no puzzle: give"),
        ("sudoku_4x4_4", [SOLVED] * 5, "holds no puzzle besides the first 8"),
        ("cd2_test", [{"input": "10,5,50", "output": "10*5=50"}], "puzzle 1 is a countdown_2"),
    ],
)
def test_files_that_the_demo_cannot_count_are_named(file, lines, message, tmp_path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / f"{file}.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        file_puzzles(tmp_path, None)


@pytest.mark.parametrize(
    "options",
    [
        ["--files", "folder", "--givens", "40"],
        ["--kinds", "countdown_3", "--givens", "40"],
        ["--limit", "3"],
        ["--svg", "a", "--limit", "3"],
    ],
    ids=" ".join,
)
def test_the_demo_refuses_an_option_that_would_do_nothing(options, capsys) -> None:
    assert main(["demo", *options]) == 2
    assert f"{options[-2]} has a meaning" in capsys.readouterr().err


def test_the_widest_table_fits_80_columns() -> None:
    names = {f"{mode}{what}": 1.0 for mode in ("plain", "soft") for what in ("", "_error")}
    forwards = {"plain_forwards": 35.0, "soft_forwards": 36.0}
    row = {"puzzles": "sudoku_4x4_10", "n": 1000, "steps": "quarter"} | names | forwards
    console = Console(width=80, file=io.StringIO())
    console.print(table_of([row]))
    assert "\u2026" not in console.file.getvalue()
    assert console.file.getvalue().count("forwards") == 2


def test_on_a_narrow_screen_the_table_leaves_the_counted_forwards_out() -> None:
    names = {f"{mode}{what}": 0.25 for mode in ("plain", "soft") for what in ("", "_error")}
    forwards = {"plain_forwards": 35.0, "soft_forwards": 36.0}
    row = {"puzzles": "countdown_3", "n": 16, "steps": "12 forwards"} | names | forwards
    console = Console(width=60, file=io.StringIO())
    console.print(table_of([row], console.width))
    assert "\u2026" not in console.file.getvalue()
    assert "25.0 (25.0)" in console.file.getvalue()
