"""Makes the pictures of docs/page anew: each state of the page, small.

    python benchmarks/page_screenshots.py docs/page

Needs Chromium and Pillow; the runs are of the bundled model, with fixed seeds.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_browser import browser, server
from PIL import Image

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(STATES)} (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with server() as address, browser() as chromium:
        for name in args.names or STATES:
            state, scheme, size = STATES[name]
            context = chromium.new_context(viewport=size, color_scheme=scheme)
            page = context.new_page()
            page.goto(address)
            state(page)
            page.wait_for_timeout(700)  # what was just decided fades
            small(page.screenshot(full_page=name != "hover"), args.out / f"{name}.png")
            context.close()
            print(name, flush=True)


if __name__ == "__main__":
    main()
