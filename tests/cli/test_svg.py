"""generate --svg: every step of a run as one animated picture."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from softmask.cli.main import main

SVG = "{http://www.w3.org/2000/svg}"
PUZZLE = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"
DECODING = "--max-new-tokens 24 --alg topk_margin --temperature 0 --top-p 1 --block-length 24"


def drawn(element, seconds: float) -> float:
    """The opacity that a text has at a moment of the animation."""
    animation = element.find(f"{SVG}animate")
    if animation is None:
        return float(element.get("opacity", 1))
    share = seconds / float(animation.get("dur").removesuffix("s"))
    times = [float(time) for time in animation.get("keyTimes").split(";")]
    values = [float(value) for value in animation.get("values").split(";")]
    assert times[0] == 0
    assert times == sorted(times)
    return next(v for t, v in reversed(list(zip(times, values, strict=True))) if t <= share)


def seen(texts, opacity) -> list[str]:
    """Lines of what stands there."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for text in texts:
        if opacity(text) > 0:
            lines.setdefault(float(text.get("y")), []).append((float(text.get("x")), text.text))
    return ["".join(piece for _, piece in sorted(line)) for _, line in sorted(lines.items())]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The bundled model on an easy Sudoku in 6 steps, and what it wrote."""
    folder = tmp_path_factory.mktemp("picture")
    (folder / "p.txt").write_text(PUZZLE)
    arguments = ["--file", str(folder / "p.txt"), *DECODING.split(), "--steps", "6"]
    assert main(["generate", *arguments, "--svg", str(folder / "p.svg"), "--against-plain"]) == 0
    return ElementTree.parse(folder / "p.svg").getroot()


def test_the_last_picture_is_the_text_with_and_without_animation(picture, capsys) -> None:
    texts = picture.findall(f"{SVG}text")
    half = float(picture.get("width")) / 2
    solution = picture.find(f"{SVG}title").text.splitlines()
    for moment in (lambda text: float(text.get("opacity", 1)), lambda text: drawn(text, 6.2)):
        left = seen([t for t in texts if float(t.get("x")) < half], moment)
        assert left[:2] == ["soft-masked", "6 forwards"]
        assert left[2:8] == PUZZLE.strip().split("\n")
        assert left[8:] == solution
        right = seen([t for t in texts if float(t.get("x")) > half], moment)
        assert right[0] == "plain"


def test_the_first_picture_has_masks_and_each_step_one_caption(picture) -> None:
    texts = picture.findall(f"{SVG}text")
    left = [t for t in texts if float(t.get("x")) < float(picture.get("width")) / 2]
    first = seen(left, lambda text: drawn(text, 0.1))
    assert first[1] == "0 forwards"
    assert all(re.fullmatch("·+", line) for line in first[8:])
    for step in range(7):
        now = seen(left, lambda text, step=step: drawn(text, 0.7 * step + 0.1))
        assert now[1] == f"{step} forward{'' if step == 1 else 's'}"
    ghosts = [t for t in left if t.get("class") == "ghost"]
    assert ghosts
    assert max(drawn(t, 0.8) for t in ghosts) < 1


def test_what_a_text_says_is_no_markup(tmp_path, capsys) -> None:
    target = tmp_path / "p.svg"
    arguments = ["--max-new-tokens", "4", "--steps", "2", "--svg", str(target)]
    assert main(["generate", "<script> & </svg>", *arguments]) == 0
    texts = ElementTree.parse(target).getroot().findall(f"{SVG}text")
    assert "".join(t.text for t in texts if t.get("class") == "given").startswith("<script>&</svg>")
