"""The ways of decoding that `softmask bench frontier` compares. A new one is a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A way of decoding: fields of SamplingConfig, and arguments of `load`.

    The schedule has `masks / fewer` steps; rules of confidence end it earlier.
    """

    name: str
    family: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    fewer: int = 1
    loading: Mapping[str, Any] = field(default_factory=dict)


REFERENCE = "full"
BLOCKS = {"block_length": 8}
CELLS = (
    Cell(REFERENCE, "schedule"),
    Cell("half", "schedule", fewer=2),
    Cell("quarter", "schedule", fewer=4),
    Cell("eighth", "schedule", fewer=8),
    Cell("threshold-.5", "threshold", {"threshold": 0.5}),
    Cell("threshold-.7", "threshold", {"threshold": 0.7}),
    Cell("threshold-.9", "threshold", {"threshold": 0.9}),
    Cell("threshold-.95", "threshold", {"threshold": 0.95}),
    Cell("annealed", "threshold", {"threshold": 0.95, "threshold_end": 0.5}),
    Cell("factor-.5", "factor", {"factor": 0.5}),
    Cell("factor-1", "factor", {"factor": 1.0}),
    Cell("factor-2", "factor", {"factor": 2.0}),
    Cell("entropy-.05", "entropy bound", {"entropy_bound": 0.05}),
    Cell("entropy-.2", "entropy bound", {"entropy_bound": 0.2}),
    Cell("entropy-.5", "entropy bound", {"entropy_bound": 0.5}),
    Cell("entropy-1", "entropy bound", {"entropy_bound": 1.0}),
    Cell("blocks", "cache", BLOCKS),
    Cell("ahead-8", "cache", {**BLOCKS, "lookahead": 8}),
    Cell("ahead-0", "cache", {**BLOCKS, "lookahead": 0}),
    Cell("prefix", "cache", {**BLOCKS, "cache": "prefix"}),
    Cell("dual", "cache", {**BLOCKS, "cache": "dual"}),
    Cell(
        "dual-near", "cache", {**BLOCKS, "cache": "dual", "refresh_every": 2, "refresh_window": 4}
    ),
    Cell("dual-refresh", "cache", {**BLOCKS, "cache": "dual", "refresh_every": 2}),
    Cell("dual-threshold", "cache", {**BLOCKS, "cache": "dual", "threshold": 0.9}),
    Cell("int8", "weights", loading={"quantize": "int8"}),
    Cell("int4", "weights", loading={"quantize": "int4"}),
)


def choose_cells(names: str | None) -> list[Cell]:
    """The cells that --only names; all without it.

    Raises:
        ValueError: there is no such cell.
    """
    known = {cell.name: cell for cell in CELLS}
    if names is None:
        return list(CELLS)
    for name in names.split(","):
        if name not in known:
            raise ValueError(f"there is no cell {name!r}; known: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names.split(","))]
