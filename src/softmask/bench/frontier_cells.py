"""The ways of decoding that `softmask bench frontier` compares. A new one is a line.

Commit rules that are registered beside the shipped ones take part by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..rules import Rule, added


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
    Cell("each-.05", "entropy threshold", {"entropy_threshold": 0.05}),
    Cell("each-.2", "entropy threshold", {"entropy_threshold": 0.2}),
    Cell("each-.45", "entropy threshold", {"entropy_threshold": 0.45}),
    Cell("agree-2", "trust", {"entropy_threshold": 0.2, "agreement": 2}),
    Cell("plain-score", "trust", {"commit_from": "plain"}, fewer=2),
    Cell("tempered-score", "trust", {"threshold": 0.9, "score_temperature": 1.5}),
    Cell("early-.5", "blocks", {**BLOCKS, "next_block_at": 0.5, "entropy_threshold": 0.2}),
    Cell("early-.1", "blocks", {**BLOCKS, "next_block_at": 0.1, "entropy_threshold": 0.2}),
    Cell("not-early", "blocks", {**BLOCKS, "entropy_threshold": 0.2}),
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


def rule_cells(rule: Rule) -> list[Cell]:
    """The ways of decoding by a commit rule: with each of its options that are to be tried.

    A rule of scores has all steps, half and a quarter of them; one that decides itself how many
    tokens a step commits has its own pace.
    """
    paces = {"": 1} if rule.returns == "rows" else {"": 1, "-half": 2, "-quarter": 4}
    cells = []
    for options in rule.frontier:
        values = "".join(f"-{value}" for value in options.values())
        for pace, fewer in paces.items():
            sampling = {"alg": rule.name, "alg_options": dict(options)}
            cells.append(Cell(f"{rule.name}{values}{pace}", rule.name, sampling, fewer))
    return cells


def all_cells() -> list[Cell]:
    """The cells above, and those of registered rules."""
    return [*CELLS, *(cell for rule in added("commit") for cell in rule_cells(rule))]


def choose_cells(names: str | None) -> list[Cell]:
    """The cells that --only names; all without it. A rule's name stands for all of its cells.

    Raises:
        ValueError: there is no such cell.
    """
    cells = all_cells()
    if names is None:
        return cells
    known = {cell.name: [cell] for cell in cells}
    known |= {rule.name: rule_cells(rule) for rule in added("commit")}
    for name in names.split(","):
        if name not in known:
            raise ValueError(f"there is no cell {name!r}; known: {', '.join(known)}")
    chosen = {cell.name: cell for name in names.split(",") for cell in known[name]}
    return list(chosen.values())
