"""Makes the pictures of README and documents anew, from today's bundled model.

    python benchmarks/pictures.py                 all of them, into docs/
    python benchmarks/pictures.py opening phone   these screenshots alone

docs/pictures/sudoku.svg is `softmask demo --svg`; docs/pictures/terminal_*.svg are commands in a
terminal (`terminal_pictures.py`), docs/page/*.png states of the page (`page_pictures.py`), with
fixed seeds. The page's need Chromium and Pillow, the terminal's pyte.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import terminal_pictures
from page_pictures import STATES, photograph

DOCS = Path(__file__).parents[1] / "docs"


def animate(path: Path) -> None:
    """Writes README's picture: the demo's Sudoku, soft-masked beside plain."""
    command = [sys.executable, "-m", "softmask", "demo", "--svg", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [*STATES, *terminal_pictures.STATES]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder (default: docs)")
    args = parser.parse_args()
    for name in ("page", "pictures"):
        (args.out / name).mkdir(parents=True, exist_ok=True)
    if not args.names:
        animate(args.out / "pictures" / "sudoku.svg")
    names = args.names or known
    typed = [name for name in names if name in terminal_pictures.STATES]
    terminal_pictures.draw(typed, args.out / "pictures")
    shown = [name for name in names if name not in terminal_pictures.STATES]
    if shown:
        photograph(shown, args.out / "page")


if __name__ == "__main__":
    main()
