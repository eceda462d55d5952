"""Puzzles are generated solvable, checked by their rules and kept apart from evaluation."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED

from softmask.puzzles.countdown import first_solution
from softmask.puzzles.puzzles import (
    KINDS,
    MIXTURE_NAMES,
    Puzzle,
    canonical,
    generate_countdown,
    generate_puzzles,
    generate_sudoku,
    is_solved,
    prompt_of,
    read_puzzles,
)

PLANNING = SHARED / "planning"
needs_evaluation_files = pytest.mark.skipif(
    not PLANNING.is_dir(), reason="the planning evaluation files of Dream are not at hand"
)
EVEN = dict.fromkeys(MIXTURE_NAMES, 1.0)

seeds = st.integers(0, 2**32 - 1)
generated_puzzles = st.one_of(
    st.builds(lambda s, g: generate_sudoku(random.Random(s), g), seeds, st.integers(4, 15)),
    st.builds(lambda s, n: generate_countdown(random.Random(s), n), seeds, st.integers(3, 5)),
)


def sudoku_solutions(input: str) -> list[str]:
    """All solutions, by trying every row: slow, but it shares nothing with the module."""
    givens = input.split("\n")
    rows = ["".join(row) for row in permutations("1234")]
    grids: list[list[str]] = [[]]
    for given_row in givens:
        grids = [
            [*grid, row]
            for grid in grids
            for row in rows
            if all(g in ("0", digit) for g, digit in zip(given_row, row, strict=True))
            and all(row[c] != above[c] for above in grid for c in range(4))
        ]
    return [
        "\n".join(grid)
        for grid in grids
        if all(
            len(set(grid[top][left : left + 2] + grid[top + 1][left : left + 2])) == 4
            for top in (0, 2)
            for left in (0, 2)
        )
    ]


@given(generated_puzzles)
def test_every_generated_puzzle_is_solved_by_its_own_output(puzzle: Puzzle) -> None:
    assert is_solved(puzzle.kind, puzzle.input, puzzle.output)
    assert puzzle.prompt == prompt_of(puzzle)


@given(generated_puzzles, st.data())
def test_an_output_with_one_digit_changed_is_not_a_solution(
    puzzle: Puzzle, data: st.DataObject
) -> None:
    places = [i for i, character in enumerate(puzzle.output) if character.isdigit()]
    place = data.draw(st.sampled_from(places))
    digits = sorted(set("0123456789") - {puzzle.output[place]})
    digit = data.draw(st.sampled_from(digits))
    changed = puzzle.output[:place] + digit + puzzle.output[place + 1 :]
    assert not is_solved(puzzle.kind, puzzle.input, changed)


@given(seeds, st.integers(4, 15))
def test_a_sudoku_has_the_asked_givens_and_exactly_one_solution(seed: int, givens: int) -> None:
    puzzle = generate_sudoku(random.Random(seed), givens)
    assert 16 - puzzle.input.count("0") == givens
    assert sudoku_solutions(puzzle.input) == [puzzle.output]


@given(seeds, st.integers(3, 5))
def test_a_countdown_uses_all_its_numbers_and_reaches_a_target_in_range(
    seed: int, count: int
) -> None:
    puzzle = generate_countdown(random.Random(seed), count)
    *numbers, target = map(int, puzzle.input.split(","))
    assert len(numbers) == count
    assert all(1 <= number <= 99 for number in numbers)
    assert 10 <= target <= 100
    assert puzzle.output.count("=") == count - 1
    assert puzzle.output.endswith(f"={target}")


@given(
    st.sampled_from(KINDS),
    st.one_of(
        st.sampled_from(["1000\n0002\n4003\n0000", "15,44,79,50", "1,1,2"]),
        st.text(alphabet="0123456789,\n", max_size=40),
        st.text(max_size=40),
    ),
    st.one_of(
        st.text(max_size=80),
        st.text(alphabet="0123456789+-*/=,. \n", max_size=80),
        st.lists(st.from_regex(r"\A[0-9]{1,30}[-+*/][0-9]{1,30}=[0-9]{1,30}\Z"), max_size=5).map(
            ",".join
        ),
    ),
)
def test_no_text_makes_the_check_raise(kind: str, input: str, answer: str) -> None:
    assert is_solved(kind, input, answer) in (True, False)


@pytest.mark.parametrize(
    "answer",
    [
        "44-15=29,79-29=50",
        "79-44=35,35+15=50",
        "15+35=50,79-44=35",  # 35 is used before it is made
        "44-15=29,79-29=50,50-0=50",
        "44-15=29",
        "79-29=50,44-15=29",
        "44-15=29,79-29=50,",
        "44-15=30,79-29=50",
        "15-44=-29,79+-29=50",
        "44-15=29.0,79-29=50",
        "44-15=29,79-29=50 is right",
        "9" * 5000 + "-15=29,79-29=50",
        "\u0664\u0664-15=29,79-29=50",
        "044-15=29,79-29=50",
        "44/0=0,79-29=50",
        "",
    ],
)
def test_countdown_answers_are_checked_by_the_rules(answer: str) -> None:
    right = {"44-15=29,79-29=50", "79-44=35,35+15=50"}
    assert is_solved("countdown", "15,44,79,50", answer) == (answer in right)


def test_a_countdown_number_given_twice_may_be_used_twice_but_not_thrice() -> None:
    assert is_solved("countdown", "5,5,25", "5*5=25")
    assert not is_solved("countdown", "5,7,25", "5*5=25")
    assert not is_solved("countdown", "5,5,3,8", "5+5=10,5+3=8")


def test_a_countdown_division_must_be_exact() -> None:
    assert is_solved("countdown", "20,4,5", "20/4=5")
    assert not is_solved("countdown", "21,4,5", "21/4=5")


def test_white_space_does_not_matter_to_either_check() -> None:
    assert is_solved("countdown", "15,44,79,50", " 44 - 15 = 29, 79-29=50\n")
    assert is_solved("sudoku", "1000\n0002\n4003\n0000", "\n1234 \n3412\r\n4 1 2 3\n2341\n\n")


@pytest.mark.parametrize(
    "answer",
    [
        "1234\n3412\n4123\n2341\n1234",
        "1234\n3412\n4123\n2341\nDone.",
        "1234\n3412\n4123",
        "1234341241232341",
        "1234\n3412\n4321\n2143",  # a valid grid that changes a given
        "1234\n2342\n4123\n3411",
        "\u0661234\n3412\n4123\n2341",
        "",
    ],
)
def test_wrong_sudoku_answers_are_not_solutions(answer: str) -> None:
    assert is_solved("sudoku", "1000\n0002\n4003\n0000", "1234\n3412\n4123\n2341")
    assert not is_solved("sudoku", "1000\n0002\n4003\n0000", answer)


@given(seeds)
@settings(max_examples=10)
def test_the_same_seed_gives_the_same_stream(seed: int) -> None:
    first = list(islice(generate_puzzles(seed, EVEN), 20))
    reordered = dict(reversed(EVEN.items()))
    assert first == list(islice(generate_puzzles(seed, reordered), 20))
    assert first != list(islice(generate_puzzles(seed + 1, EVEN), 20))


def test_the_mixture_weights_are_the_shares_of_the_stream() -> None:
    weights = {"sudoku_4x4": 3.0, "countdown_3": 1.0}
    puzzles = list(islice(generate_puzzles(0, weights), 2000))
    kinds = Counter(puzzle.kind for puzzle in puzzles)
    assert 1400 < kinds["sudoku"] < 1600
    givens = {16 - p.input.count("0") for p in puzzles if p.kind == "sudoku"}
    assert givens == set(range(4, 13))
    assert all(p.input.count(",") == 3 for p in puzzles if p.kind == "countdown")


def test_held_out_puzzles_never_come_in_any_order_of_their_numbers() -> None:
    mixture = {"sudoku_4x4": 1.0, "countdown_3": 1.0}
    usual = list(islice(generate_puzzles(5, mixture), 400))
    held_out = {canonical(p.kind, p.input) for p in usual[::2]}
    rest = list(islice(generate_puzzles(5, mixture, held_out), 400))
    assert not held_out & {canonical(p.kind, p.input) for p in rest}
    assert rest[0] != usual[0]


def test_the_canonical_form_ignores_the_order_of_the_numbers_but_not_the_target() -> None:
    assert canonical("countdown", "44,79,15,50") == "15,44,79,50"
    assert canonical("countdown", "44,79,50,15") != canonical("countdown", "44,79,15,50")
    assert canonical("countdown", "9,10,50") == "9,10,50"
    assert canonical("sudoku", "1000\n0002\n4003\n0000") == "1000\n0002\n4003\n0000"


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"sudoku_16x16": 1.0}, "sudoku_16x16"),
        ({}, "positive"),
        ({"sudoku_4x4": 0.0}, "positive"),
        ({"sudoku_4x4": 2.0, "countdown_3": -1.0}, "negative"),
        ({"sudoku_4x4": float("nan")}, "finite"),
        ({"sudoku_4x4": float("inf")}, "finite"),
    ],
)
def test_a_bad_mixture_is_refused_before_the_first_puzzle(
    mixture: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate_puzzles(0, mixture)


def test_impossible_sizes_and_unknown_kinds_are_refused() -> None:
    rng = random.Random(0)
    with pytest.raises(ValueError, match="4 to 15 givens"):
        generate_sudoku(rng, 3)
    with pytest.raises(ValueError, match="3, 4 or 5 numbers"):
        generate_countdown(rng, 6)
    with pytest.raises(ValueError, match="sudoku or countdown"):
        prompt_of(Puzzle("chess", "", ""))
    with pytest.raises(ValueError, match="whole numbers"):
        canonical("countdown", "1,2,x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is no JSON"),
        (b"\xff\xfe\xff", "is not UTF-8"),
        (b"[" * 100_000, "is no JSON"),
        (b'["15,44,79,50"]', "exactly the texts"),
        (b'{"input": "15,44,79,50"}', "exactly the texts"),
        (b'{"input": "15,44,79,50", "output": 50}', "exactly the texts"),
        (b'{"input": "15;44;79;50", "output": ""}', "whole numbers"),
        (b'{"input": "15,44,79,50", "output": "44-15=29"}', "does not solve"),
    ],
)
def test_a_broken_line_of_a_puzzle_file_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    good = b'{"input": "15,44,79,50", "output": "44-15=29,79-29=50"}\n'
    path = tmp_path / "puzzles.jsonl"
    path.write_bytes(good)
    assert read_puzzles(path, "countdown") == [
        Puzzle("countdown", "15,44,79,50", "44-15=29,79-29=50")
    ]
    path.write_bytes(good + line + b"\n")
    with pytest.raises(ValueError, match=rf"puzzles\.jsonl:2.*{message}"):
        read_puzzles(path, "countdown")


@needs_evaluation_files
def test_all_reference_outputs_of_the_evaluation_files_are_solutions() -> None:
    # read_puzzles refuses a file whose outputs do not solve its inputs.
    sizes = {
        path.name: len(read_puzzles(path, "sudoku" if "sudoku" in path.name else "countdown"))
        for path in PLANNING.glob("*.jsonl")
    }
    assert sizes == {
        **{f"cd{numbers}_test.jsonl": 1000 for numbers in (3, 4, 5)},
        **{f"sudoku_4x4_{givens}.jsonl": 108 for givens in range(4, 13)},
    }


@needs_evaluation_files
@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_the_reference_outputs_are_the_ones_the_generator_would_write(numbers: int) -> None:
    for puzzle in read_puzzles(PLANNING / f"cd{numbers}_test.jsonl", "countdown"):
        *drawn, target = map(int, puzzle.input.split(","))
        assert ",".join(first_solution(tuple(drawn), target) or []) == puzzle.output


@needs_evaluation_files
def test_held_out_evaluation_puzzles_do_not_reach_a_training_stream() -> None:
    held_out = {
        canonical("sudoku", puzzle.input)
        for givens in range(4, 13)
        for puzzle in read_puzzles(PLANNING / f"sudoku_4x4_{givens}.jsonl", "sudoku")
    }
    free = list(islice(generate_puzzles(1, {"sudoku_4x4": 1.0}), 20_000))
    assert held_out & {p.input for p in free}  # without holding out, they do come
    kept = islice(generate_puzzles(1, {"sudoku_4x4": 1.0}, held_out), 20_000)
    assert not held_out & {p.input for p in kept}
