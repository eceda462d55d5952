"""Makes the pictures of README and documents anew, from today's bundled model.

    python benchmarks/pictures.py                 all of them, into docs/
    python benchmarks/pictures.py light sudoku    these screenshots alone

docs/pictures/sudoku.svg is `softmask demo --svg`; docs/page/*.png are states of the page, with
fixed seeds. The screenshots need Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from page_browser import browser, server
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 780}
LARGEST = 150_000  # bytes
COLOURS = 128


def run(page: Any, example: str, *, compare: bool = False) -> None:
    """Loads an example and runs it to its end."""
    page.get_by_role("button", name=example, exact=True).click()
    page.set_checked("#compare", compare)
    page.click("#run")
    page.wait_for_selector("#run:not([hidden])")


def scrub(page: Any, share: float) -> None:
    """To a step within the run; the pointer goes nowhere."""
    page.eval_on_selector(
        "#scrub",
        "(range, share) => { range.value = Math.round(share * range.max);"
        " range.dispatchEvent(new Event('input')); }",
        share,
    )


def story(page: Any) -> None:
    run(page, "Story")
    page.click("#prose")


def side_by_side(page: Any) -> None:
    run(page, "Countdown", compare=True)
    scrub(page, 0.4)


def stories(page: Any) -> None:
    run(page, "Story", compare=True)


def scrubbed(page: Any) -> None:
    run(page, "Story")
    page.click("#prose")
    scrub(page, 0.4)


def hover(page: Any) -> None:
    scrubbed(page)
    page.locator(".token.masked").nth(3).hover()


def infill(page: Any) -> None:
    run(page, "Story with holes")
    scrub(page, 0.5)


def sudoku(page: Any) -> None:
    run(page, "Sudoku in 6 steps", compare=True)
    scrub(page, 0.5)


def settings(page: Any) -> None:
    page.click("summary")


def error(page: Any) -> None:
    run(page, "Sudoku")
    page.evaluate("document.getElementById('settings').open = true")
    page.select_option("[name='softmask.alg']", "origin")
    page.fill("[name='softmask.threshold']", "0.9")
    page.evaluate("document.getElementById('settings').open = false")
    page.click("#run")
    page.wait_for_selector("#alert strong")


# Name: state, dark or light, size.
STATES: dict[str, tuple[Callable[[Any], None], str, dict[str, int]]] = {
    "light": (story, "light", DESKTOP),
    "dark": (scrubbed, "dark", DESKTOP),
    "phone": (sudoku, "light", PHONE),
    "phone_dark": (side_by_side, "dark", PHONE),
    "side_by_side": (side_by_side, "light", DESKTOP),
    "stories": (stories, "light", DESKTOP),
    "scrubbed": (scrubbed, "light", DESKTOP),
    "hover": (hover, "light", DESKTOP),
    "infill": (infill, "light", DESKTOP),
    "sudoku": (sudoku, "light", DESKTOP),
    "sudoku_dark": (sudoku, "dark", DESKTOP),
    "settings": (settings, "light", DESKTOP),
    "error": (error, "light", DESKTOP),
}


def small(shot: bytes, path: Path) -> None:
    """Writes a picture with a palette."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size < LARGEST, f"{path} has {size} bytes"


def animate(path: Path) -> None:
    """Writes README's picture: the demo's Sudoku, soft-masked beside plain."""
    command = [sys.executable, "-m", "softmask", "demo", "--svg", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def photograph(names: Sequence[str], out: Path) -> None:
    """Writes screenshots of the page in these states."""
    with server() as address, browser() as chromium:
        for name in names:
            state, scheme, size = STATES[name]
            context = chromium.new_context(viewport=size, color_scheme=scheme)
            page = context.new_page()
            page.goto(address)
            state(page)
            page.wait_for_timeout(700)  # what was just decided fades
            small(page.screenshot(full_page=name != "hover"), out / f"{name}.png")
            context.close()
            print(name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(STATES)} (default: all)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (default: docs)")
    args = parser.parse_args()
    for name in ("page", "pictures"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    if not args.names:
        animate(args.out / "pictures" / "sudoku.svg")
    photograph(args.names or list(STATES), args.out / "page")


if __name__ == "__main__":
    main()
