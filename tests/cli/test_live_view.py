"""The live view, drawn into a console of a known size."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tiny import write_dream_folder

import softmask
from softmask.cli.live_view import AMBER, GREY, LiveView, render, shade
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


def test_the_view_leaves_nothing_behind(checkpoint) -> None:
    console = console_of(40, 10)
    run = run_of(checkpoint, tokens=4)
    with LiveView(run, console) as view:
        for step in run:
            view.show(step)
    assert console.file.getvalue().endswith("\x1b[2K")  # the frame's last line is erased
