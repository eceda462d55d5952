"""Makes the pictures of README and documents anew, from today's bundled model.

    python benchmarks/pictures.py                 all of them, into docs/
    python benchmarks/pictures.py opening phone   these screenshots alone

docs/pictures/sudoku.svg is a recorded run; docs/page/*.png are states of the page
(`page_pictures.py`). Seeds are fixed.
The screenshots need Chromium and Pillow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from page_pictures import STATES, photograph

DOCS = Path(__file__).parents[1] / "docs"
# A Sudoku of 32 givens: `[[n]]` are n cells to fill in.
GRID = """\
Sudoku
1[[1]]69[[1]]3[[1]]72
4[[1]]7[[2]]8[[1]]1[[1]]
[[4]]6[[4]]
[[6]]2[[2]]
5[[3]]91[[3]]
9[[2]]82[[2]]67
3[[1]]96[[4]]5
[[1]]8[[2]]197[[1]]3
7[[4]]46[[2]]
"""
# Eight forwards for 49 cells: soft-masked it is right, plain it is not.
SETTINGS = "--steps 8 --block-length 128 --alg topk_margin --temperature 0 --top-p 1"


def animate(path: Path) -> None:
    """Writes the run of README's picture, soft-masked beside plain."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as grid:
        grid.write(GRID)
        grid.flush()
        words = ["--infill", "--file", grid.name, *SETTINGS.split(), "--against-plain"]
        command = [sys.executable, "-m", "softmask", "generate", *words, "--svg", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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
