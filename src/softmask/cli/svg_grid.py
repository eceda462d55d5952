"""A recorded run on a Sudoku, drawn as a grid in an animated picture (SVG).

A masked cell shows the digit that leads there, as strong as its share of the next input, on a shade
by lambda, both against the largest lambda that the settings allow. Cells that two runs decide
differently get a frame from then on; wrong digits are red in the end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ..puzzles.grid import BLANK, Grid, find_grid

# Pixels of a cell's side.
SIDE = 30
SHADE = 0.6  # opacity of the shade at the largest lambda


def grid_of(run: dict[str, Any]) -> Grid | None:
    """The Sudoku that a run of a trace is about; None: something else."""
    tokens = run["start"]["tokens"]
    return find_grid([None if token["masked"] else token["text"] for token in tokens])


def width_of(grid: Grid) -> float:
    """Pixels of a drawn grid."""
    return float(SIDE * grid.side)


def parted(grid: Grid, runs: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Cells that two runs decide differently, and the step after which both have."""
    if len(runs) != 2 or grid_of(runs[1]) != grid:
        return {}
    ends = [decided(grid, run) for run in runs]
    pairs = enumerate(zip(*ends, strict=True))
    return {i: max(a[0], b[0]) for i, (a, b) in pairs if a[1] != b[1]}


def decided(grid: Grid, run: dict[str, Any]) -> list[tuple[int, str]]:
    """Of each cell: the step that decides it (0: given), and its text in the end."""
    steps = dict.fromkeys(grid.positions, 0)
    for number, step in enumerate(run["steps"], start=1):
        steps |= dict.fromkeys(step["committed"]["position"], number)
    pieces = run["end"]["pieces"]
    return [(steps[position], pieces[position].strip()) for position in grid.positions]


def shades(
    grid: Grid, run: dict[str, Any], x: float, y: float, seconds: float, total: float
) -> Iterator[str]:
    """A square behind each cell that was masked, its opacity lambda's."""
    most = strongest(run)
    weights = [[0.0] * (len(run["steps"]) + 1) for _ in grid.positions]
    cell_of = {position: i for i, position in enumerate(grid.positions)}
    for number, step in enumerate(run["steps"], start=1):
        masked = step["masked"]
        for position, weight in zip(masked["position"], masked["lambda"], strict=True):
            if position in cell_of:
                weights[cell_of[position]][number] = (weight or 0.0) / most
    times = ";".join(f"{n * seconds / total:.4f}" for n in range(len(run["steps"]) + 1))
    for i, values in enumerate(weights):
        if is_given(grid, i) or not any(values):
            continue
        shown = ";".join(f"{value * SHADE:.2f}".rstrip("0").rstrip(".") for value in values)
        left, top = corner(grid, i, x, y)
        yield (
            f'<rect class="shade" opacity="0" x="{left:g}" y="{top:g}" width="{SIDE}" '
            f'height="{SIDE}">{opacities(shown, times, total)}</rect>'
        )


def opacities(values: str, times: str, total: float) -> str:
    """An opacity that changes at these shares of `total` seconds, again and again."""
    return (
        f'<animate attributeName="opacity" calcMode="discrete" dur="{total:g}s" '
        f'repeatCount="indefinite" values="{values}" keyTimes="{times}"/>'
    )


def strongest(run: dict[str, Any]) -> float:
    """The largest lambda that a run's settings allow."""
    soft_mask = run["start"]["settings"]["soft_mask"]
    return soft_mask["scale"] if soft_mask and soft_mask["scale"] > 0 else 1.0


def frames(
    grid: Grid, cells: dict[int, int], x: float, y: float, seconds: float, total: float
) -> Iterator[str]:
    """A frame around each cell where two runs part, from then on."""
    for i, step in cells.items():
        left, top = corner(grid, i, x, y)
        yield (
            f'<rect class="parted" x="{left + 2:g}" y="{top + 2:g}" width="{SIDE - 4}" '
            f'height="{SIDE - 4}">{opacities("0;1", f"0;{step * seconds / total:.4f}", total)}'
            "</rect>"
        )


def lines(grid: Grid, x: float, y: float) -> Iterator[str]:
    """The lines between cells, and stronger ones between boxes."""
    size = SIDE * grid.side
    for name, every in (("cells", 1), ("boxes", grid.box)):
        strokes = [
            f"M{x + n * SIDE:g} {y:g}v{size}M{x:g} {y + n * SIDE:g}h{size}"
            for n in range(0, grid.side + 1, every)
        ]
        yield f'<path class="{name}" d="{"".join(strokes)}"/>'


def corner(grid: Grid, cell: int, x: float, y: float) -> tuple[float, float]:
    """Where a cell begins."""
    return x + cell % grid.side * SIDE, y + cell // grid.side * SIDE


def wrong(grid: Grid, run: dict[str, Any]) -> Collection[int]:
    """The cells that are wrong in the end."""
    return grid.wrong([text for _, text in decided(grid, run)])


def is_given(grid: Grid, cell: int) -> bool:
    """Whether the puzzle has a digit there."""
    return grid.givens[cell] != BLANK
