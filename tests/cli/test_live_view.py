"""The live view, drawn into a console of a known size."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console
from rich.style import Style
from rich.text import Text
from tiny import write_dream_folder

import softmask
from softmask.cli.grid_view import WRONG, Board, differing, side_by_side
from softmask.cli.live_view import LiveView, render
from softmask.cli.shades import AMBER, GREY, shade
from softmask.decoding.generation import Generation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(
        tmp_path_factory.mktemp("model") / "dream", max_position_embeddings=512
    )
    return softmask.load(folder, device="cpu", dtype="float32")


def run_of(checkpoint, prompt: str = "the one", tokens: int = 12, **more) -> Generation:
    soft = softmask.SoftMaskConfig(scale=0.9, offset=-8.0, k=2)
    return Generation(
        checkpoint, prompt, max_new_tokens=tokens, soft_mask=soft, seed=0, chat=False, **more
    )


def console_of(width: int, height: int) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system="truecolor",
    )


def drawn(console: Console, renderable) -> str:
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_a_frame_counts_steps_masks_and_lambda_above_the_canvas(checkpoint) -> None:
    run = run_of(checkpoint)
    step = list(run)[5]
    console = Console(file=io.StringIO(), width=70, color_system=None)
    counters, *canvas = drawn(console, render(run, step)).splitlines()
    left = int((step.canvas_BL == checkpoint.model.config.mask_token_id).sum())
    mean = step.lambda_BL[0].sum().item() / left
    assert counters == f"step 6/12  forwards 6  masks left {left}  mean lambda {mean:.2f}"
    assert "".join(canvas).startswith("the one")


def test_the_last_frame_shows_the_finished_text_and_no_shade(checkpoint) -> None:
    run = run_of(checkpoint, infill=True, prompt="the [[5]] one")
    *_, last = run
    frame = drawn(console_of(70, 20), render(run, last))
    assert "48;2;" not in frame  # no background colour
    plain = drawn(Console(file=io.StringIO(), width=200, color_system=None), render(run, last))
    assert plain.split("\n", 1)[1].split() == run.completions()[0].text.split()


def test_masks_are_shaded_by_lambda_from_grey_to_amber() -> None:
    for weight, colour in ((0.0, GREY), (1.0, AMBER), (-1.0, GREY), (2.0, AMBER)):
        assert tuple(shade(weight).bgcolor.triplet) == colour
    middle = shade(0.5).bgcolor.triplet
    assert all(min(a, b) < m < max(a, b) for a, m, b in zip(GREY, middle, AMBER, strict=True))


@pytest.mark.parametrize("height", [4, 8, 30])
def test_a_canvas_taller_than_the_screen_shows_the_lines_being_decided(checkpoint, height) -> None:
    console = console_of(24, height)
    run = run_of(
        checkpoint, prompt="the one " * 30, tokens=60, sampling={"steps": 6, "alg": "entropy"}
    )
    with LiveView(run, console) as view:
        for step in run:
            console.file.truncate(0)
            view.show(step)
            frame = console.file.getvalue()
            assert len(view.live.renderable.renderables) <= height - 1
            if step.left_B[0]:
                assert "48;2;" in frame


SUDOKU = "Sudoku\n[[2]]34\n3412\n2[[2]]3\n43[[2]]\n"


def grid_run(checkpoint, **more) -> Generation:
    return run_of(checkpoint, infill=True, prompt=SUDOKU, sampling={"steps": 3}, **more)


def test_a_sudoku_is_drawn_as_a_grid_with_boxes_and_stays(checkpoint) -> None:
    console = console_of(80, 24)
    run = grid_run(checkpoint)
    with LiveView(run, console) as view:
        for step in run:
            view.show(step)
    before, *_, last = console.file.getvalue().split("step 3/3")
    plain = Text.from_ansi(last).plain
    assert "\u250c\u2500\u2500\u2500\u2500\u2500\u2500\u252c" in plain
    assert "not solved: " in plain  # random weights
    assert "fed back: lambda 0 to 0.90" in Text.from_ansi(before).plain
    assert not console.file.getvalue().endswith("\x1b[2K")


def test_a_terminal_too_small_for_the_grid_gets_the_text(checkpoint) -> None:
    for size in ((80, 11), (12, 24)):
        assert LiveView(grid_run(checkpoint), console_of(*size)).board is None


def test_masked_cells_are_shaded_by_lambda_and_wrong_ones_end_red(checkpoint) -> None:
    run = grid_run(checkpoint)
    board = Board.of(run)
    first, *_, last = run
    masked = [i for i, digit in enumerate(board.digits(first)) if digit is None]
    assert masked
    for i, look in enumerate(looks_of(board.draw(first))):
        weight = first.lambda_BL[0, board.grid.positions[i]].item() / 0.9
        assert look.bgcolor == (shade(weight).bgcolor if i in masked else None)
    wrong = board.wrong(last)
    assert wrong
    ends = looks_of(board.draw(last))
    assert {i for i, look in enumerate(ends) if look == WRONG} == wrong


def test_two_runs_stand_side_by_side_and_part_where_they_differ(checkpoint) -> None:
    runs = [grid_run(checkpoint), grid_run(checkpoint)]
    boards, steps = [Board.of(run) for run in runs], [next(iter(run)) for run in runs]
    assert differing(boards, steps) == frozenset()
    steps[1].canvas_BL[0, boards[1].grid.positions[2]] += 1  # another digit than the given one
    assert differing(boards, steps) == {2}
    console = Console(file=io.StringIO(), width=80, color_system=None)
    frame = drawn(console, side_by_side(boards, steps, ("soft-masked", "plain"))).splitlines()
    assert frame[0].split() == ["soft-masked", "plain"]
    assert sum(line.count("*") for line in frame) == 2
    assert max(len(line.rstrip()) for line in frame) <= 80


def looks_of(text: Text) -> list[Style]:
    """The looks of each cell of a drawn grid, row after row."""
    spans = {span.start: span.style for span in text.spans}
    places = itertools.accumulate(len(line) + 1 for line in text.plain.split("\n"))
    starts = [0, *places]
    rows = [
        (start, line)
        for start, line in zip(starts, text.plain.split("\n"), strict=False)
        if line.startswith("\u2502")
    ]
    cells = [start + i for start, line in rows for i in (1, 4, 8, 11)]
    return [Style.parse(str(spans.get(cell, ""))) for cell in cells]


def test_the_view_leaves_nothing_behind(checkpoint) -> None:
    console = console_of(40, 10)
    run = run_of(checkpoint, tokens=4)
    with LiveView(run, console) as view:
        for step in run:
            view.show(step)
    assert console.file.getvalue().endswith("\x1b[2K")  # the frame's last line is erased
