"""Makes the documents' pictures of the page anew, from today's bundled model, into docs/page.

    python benchmarks/page_pictures.py                  all of them
    python benchmarks/page_pictures.py opening phone    these alone

Seeds are fixed. Needs Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from page_browser import browser, server
from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "page"
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 780}
LARGEST = 150_000  # bytes
COLOURS = 128


def run(page: Any, example: str, *, compare: bool = True) -> None:
    """Loads an example and runs it to its end."""
    page.get_by_role("button", name=example, exact=True).click()
    page.set_checked("#compare", compare)
    page.click("#run")
    page.wait_for_selector("body:not(.busy)")


def scrub(page: Any, share: float) -> None:
    """To a step within the run; the pointer goes nowhere."""
    page.eval_on_selector(
        "#scrub",
        "(range, share) => { range.value = Math.round(share * range.max);"
        " range.dispatchEvent(new Event('input')); }",
        share,
    )


def opening(page: Any) -> None:
    scrub(page, 0.5)


def story(page: Any) -> None:
    run(page, "Story")
    page.click("#prose")


def hover(page: Any) -> None:
    run(page, "Sudoku")
    scrub(page, 0.4)
    page.locator(".token.masked").nth(3).hover()


def refill(page: Any) -> None:
    run(page, "Story", compare=False)
    page.click("#use")
    page.eval_on_selector(
        "#text",
        """(field) => {
          const from = field.value.indexOf(" ", 30);
          field.setSelectionRange(from, field.value.indexOf(".", from));
        }""",
    )
    page.wait_for_selector("#refill:not([hidden])")


def settings(page: Any) -> None:
    page.click("#settings summary")


def error(page: Any) -> None:
    page.evaluate("document.getElementById('settings').open = true")
    page.select_option("[name='softmask.alg']", "origin")
    page.fill("[name='softmask.threshold']", "0.9")
    page.click("#run")
    page.wait_for_selector("#alert strong")


# Name: state, dark or light, size.
STATES: dict[str, tuple[Callable[[Any], None], str, dict[str, int]]] = {
    "opening": (opening, "light", DESKTOP),
    "opening_dark": (opening, "dark", DESKTOP),
    "phone": (opening, "light", PHONE),
    "hover": (hover, "light", DESKTOP),
    "story": (story, "light", DESKTOP),
    "refill": (refill, "light", DESKTOP),
    "settings": (settings, "light", DESKTOP),
    "error": (error, "dark", DESKTOP),
}


def small(shot: bytes, path: Path) -> None:
    """Writes a picture with a palette."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    assert size < LARGEST, f"{path} has {size} bytes"


def photograph(names: Sequence[str], out: Path) -> None:
    """Writes screenshots of the page in these states."""
    out.mkdir(parents=True, exist_ok=True)
    with server() as address, browser() as chromium:
        for name in names:
            state, scheme, size = STATES[name]
            # Nothing plays by itself while it is photographed.
            context = chromium.new_context(
                viewport=size, color_scheme=scheme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(address)
            state(page)
            page.wait_for_timeout(100)
            small(page.screenshot(full_page=name != "hover"), out / f"{name}.png")
            context.close()
            print(name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(STATES)} (default: all)")
    parser.add_argument("--out", type=Path, default=PAGE, help="folder (default: docs/page)")
    args = parser.parse_args()
    photograph(args.names or list(STATES), args.out)


if __name__ == "__main__":
    main()
