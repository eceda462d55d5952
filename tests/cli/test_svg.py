"""generate --svg: every step of a run as one animated picture."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from paths import ROOT

from softmask.cli.main import main
from softmask.cli.svg import picture as picture_of
from softmask.puzzles.puzzles import is_solved

SVG = "{http://www.w3.org/2000/svg}"
PUZZLE = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"


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
    arguments = ["--file", str(folder / "p.txt"), "--steps", "6"]
    assert main(["generate", *arguments, "--svg", str(folder / "p.svg"), "--against-plain"]) == 0
    return ElementTree.parse(folder / "p.svg").getroot()


def halves(picture):
    """The elements of the soft-masked run, and of the plain one."""
    half = float(picture.get("width")) / 2
    elements = [e for e in picture if e.get("x") is not None]
    return [[e for e in elements if (float(e.get("x")) > half) is side] for side in (False, True)]


def shown(elements, tag: str, opacity) -> list:
    return [e for e in elements if e.tag == f"{SVG}{tag}" and opacity(e) > 0]


def resting(element) -> float:
    return float(element.get("opacity", 1))


def test_a_sudoku_ends_as_a_solved_grid_with_and_without_animation(picture) -> None:
    solution = picture.find(f"{SVG}title").text.splitlines()
    assert is_solved("sudoku", PUZZLE.removeprefix("Sudoku\n")[:19], "\n".join(solution))
    for moment in (resting, lambda element: drawn(element, 5.0)):
        soft, plain = halves(picture)
        left = seen(shown(soft, "text", moment), moment)
        assert left[:2] == ["soft-masked", "6 forwards, solved"]
        assert left[2:6] == solution
        assert not any("wrong" in (e.get("class") or "") for e in shown(soft, "text", moment))
        assert seen(shown(plain, "text", moment), moment)[0] == "plain"
    boxes = [path.get("d") for path in picture if path.get("class") == "boxes"]
    assert [path.count("v") for path in boxes] == [3, 3]  # of each run: two boxes side by side


def test_the_first_picture_has_givens_and_masks_and_each_step_one_caption(picture) -> None:
    left, _ = halves(picture)
    first = seen(shown(left, "text", lambda e: drawn(e, 0.1)), lambda e: drawn(e, 0.1))
    assert first[1] == "0 forwards"
    assert first[2:6] == PUZZLE.replace("0", "·").split("\n")[1:5]
    for step in range(6):
        opacity = lambda e, step=step: drawn(e, 0.7 * step + 0.1)  # noqa: E731
        now = seen(shown(left, "text", opacity), opacity)
        assert now[1] == f"{step} forward{'' if step == 1 else 's'}"


def test_masked_cells_have_ghosts_and_a_shade_where_something_is_fed_back(picture) -> None:
    soft, plain = halves(picture)
    after = lambda e: drawn(e, 0.8)  # noqa: E731
    ghosts = [e for e in shown(soft, "text", after) if e.get("class") == "ghost"]
    shades = [e for e in shown(soft, "rect", after) if e.get("class") == "shade"]
    assert ghosts
    assert len(shades) == len(ghosts)
    assert 0 < max(map(after, shades)) < 1
    assert not [e for e in plain if e.get("class") == "shade"]


def test_cells_where_two_runs_part_are_framed_and_wrong_ones_red() -> None:
    drawing = ElementTree.parse(ROOT / "docs" / "pictures" / "sudoku.svg").getroot()
    soft, plain = halves(drawing)
    framed = [[e for e in side if e.get("class") == "parted"] for side in (soft, plain)]
    red = [e for e in shown(plain, "text", resting) if e.get("class") == "wrong"]
    assert len(framed[0]) == len(framed[1]) == len(red) > 0
    assert not [e for e in soft if e.get("class") == "wrong"]
    assert all(drawn(e, 0.1) == 0 for e in framed[0])


def test_ghosts_of_a_story_keep_the_space_before_a_word() -> None:
    texts = {"1": " dog", "2": " ran", "3": " "}
    masked = {"position": [0, 1, 2], "candidates": [[1], [2], [3]], "w": [[1.0]] * 3}
    step = {"texts": texts, "masked": masked | {"lambda": [0.5] * 3}, "forwards": 1}
    step["committed"] = {"position": [], "id": []}
    start = {"tokens": [{"masked": True, "text": ""}] * 3, "name": "soft-masked"}
    end = {"pieces": [" dog", " ran", ""], "text": "dog ran"}
    run = {"start": start, "steps": [step], "end": end}
    texts = ElementTree.fromstring(picture_of({"runs": [run]})).findall(f"{SVG}text")
    assert [e.text for e in texts if e.get("class") == "ghost"][:2] == [" dog", " ran"]


def test_what_a_text_says_is_no_markup(tmp_path, capsys) -> None:
    target = tmp_path / "p.svg"
    arguments = ["--max-new-tokens", "4", "--steps", "2", "--svg", str(target)]
    assert main(["generate", "<script> & </svg>\x1b[31m\x07", *arguments]) == 0
    texts = ElementTree.parse(target).getroot().findall(f"{SVG}text")
    given = "".join(t.text for t in texts if t.get("class") == "given")
    assert given.startswith("<script>&</svg>\ufffd[31m\ufffd")


def test_the_legend_of_a_plain_run_says_that_nothing_is_fed_back(tmp_path) -> None:
    target = tmp_path / "p.svg"
    (tmp_path / "p.txt").write_text(PUZZLE)
    arguments = ["--file", str(tmp_path / "p.txt"), "--steps", "6", "--no-soft-mask"]
    assert main(["generate", *arguments, "--svg", str(target)]) == 0
    texts = ElementTree.parse(target).getroot().findall(f"{SVG}text")
    text = " ".join(e.text for e in texts if e.get("class") == "caption")
    assert "leans to, not fed back" in text
    assert "lambda" not in text
