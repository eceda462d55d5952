"""Named evaluations: the published settings, cell by cell, beside the published scores.

A suite is a file of `reference/`: its tasks and settings, where they were published, and the scores
as far as they are known. A cell is one task, decoded plainly ("plain") or soft-masked ("soft"),
with one forward for each token, for two or for four.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from ..config import require_choice
from ..reporting.tables import light_table
from .config import EvalConfig, ModelArgs

MODES = ("plain", "soft")
# Older names of modes, in commands and in the folders of finished evaluations.
MODE_ALIASES = {"binary": "plain"}
FULL, HALF, QUARTER = Fraction(1), Fraction(1, 2), Fraction(1, 4)
# So many standard errors apart, a score is said not to be reproduced.
SIGNIFICANT = 2.0
REFERENCE = Path(__file__).with_name("reference")


@dataclass(frozen=True)
class Part:
    """One task of a suite.

    `score` is the column of the table: metric and filter. No `tokens`: a likelihood task, which
    has no steps to save. `documents`: how many the published score is of. `args` are settings of
    this task alone.
    """

    task: str
    score: tuple[str, str]
    tokens: int | None = None
    num_fewshot: int | None = 0
    documents: int | None = None
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Tasks with the settings they share: `sampling` of texts, `likelihood` of given ones."""

    title: str
    source: str
    parts: tuple[Part, ...]
    chat: bool
    sampling: Mapping[str, Any]
    likelihood: Mapping[str, Any] = field(default_factory=dict)
    fractions: tuple[Fraction, ...] = (FULL,)
    modes: tuple[str, ...] = MODES
    system: str | None = None
    # (task, fraction, mode) -> per cent, by model, where the publication's value is known.
    published: Mapping[str, Mapping[tuple[str, Fraction, str], float]] = field(default_factory=dict)


def _read(path: Path) -> Suite:
    """A file of `reference/`."""
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = [Part(**part | {"score": tuple(part["score"])}) for part in held.pop("parts")]
    published = {
        model: {
            (cell["task"], Fraction(cell.get("fraction", 1)), mode): cell[mode]
            for cell in cells
            for mode in MODES
            if mode in cell
        }
        for model, cells in held.pop("published", {}).items()
    }
    fractions = tuple(Fraction(share) for share in held.pop("fractions", [1]))
    modes = tuple(held.pop("modes", MODES))
    return Suite(parts=tuple(parts), published=published, fractions=fractions, modes=modes, **held)


SUITES = {path.stem: _read(path) for path in sorted(REFERENCE.glob("*.yaml"))}
_SCORES = {part.task: part.score for suite in SUITES.values() for part in suite.parts}


def main_score(task: str, known: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Of a task's scores, metric and filter, the one a suite shows, else the first."""
    own = _SCORES.get(task)
    return known[0] if own is None or own not in known else own


def score_name(metric: str, filter_name: str) -> str:
    """What a score is called in tables."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


@dataclass(frozen=True)
class Cell:
    """One evaluation of a suite; `folder` is its place in the suite's."""

    part: Part
    fraction: Fraction
    mode: str
    args: ModelArgs
    config: EvalConfig

    @property
    def folder(self) -> str:
        """mode/task@1_4: the same below both modes, so that two modes can be compared."""
        name = f"{self.fraction.numerator}_{self.fraction.denominator}"
        return f"{self.mode}/{self.part.task}@{name}"


def cells(
    suite: Suite,
    args: ModelArgs,
    config: EvalConfig,
    *,
    modes: Sequence[str] | None = None,
    fractions: Sequence[Fraction] | None = None,
    tasks: Sequence[str] | None = None,
    named: Collection[str] | None = None,
) -> list[Cell]:
    """The evaluations of a suite, with its settings where `args` gives no others.

    Args:
        args: the model, and the settings of decoding that shall differ from the suite's:
        named: those of its fields that somebody has given; None: those that are not the default.
        config: limit, data, system message, permission; its tasks and examples are the suite's.
        modes: of `MODES` and `MODE_ALIASES`; None: the suite's.

    Raises:
        ValueError: a mode, a fraction or a task that the suite does not have.
    """
    modes = list(dict.fromkeys(MODE_ALIASES.get(mode, mode) for mode in modes or suite.modes))
    for mode in modes:
        require_choice("mode", mode, MODES)
    known = tuple(part.task for part in suite.parts)
    for task in tasks or ():
        require_choice("task", task, known)
    if named is None:
        unset = ModelArgs()
        names = [field.name for field in dataclasses.fields(ModelArgs)]
        named = [name for name in names if getattr(args, name) != getattr(unset, name)]
    found = []
    for part in suite.parts:
        if tasks is not None and part.task not in tasks:
            continue
        for fraction in suite.fractions if fractions is None else fractions:
            if part.tokens is None and fraction != FULL:
                continue
            for mode in modes:
                found.append(
                    Cell(
                        part,
                        fraction,
                        mode,
                        _args(suite, part, fraction, mode, args, named),
                        _config(suite, part, config),
                    )
                )
    return found


def _args(
    suite: Suite,
    part: Part,
    fraction: Fraction,
    mode: str,
    args: ModelArgs,
    named: Collection[str],
) -> ModelArgs:
    values: dict[str, Any] = {**suite.likelihood}
    if part.tokens is not None:
        values = {"max_new_tokens": part.tokens, **suite.sampling}
    values = {n: v for n, v in {**values, **part.args}.items() if n not in named}
    if part.tokens is not None and args.diffusion_steps is None:
        values["nfe"] = float(fraction)
    # A soft cell without soft-mask parameters must be an error, not a second plain one.
    values["softmasking"] = mode == "soft"
    if mode == "plain":
        values |= dict.fromkeys(["feedback", *args.soft_mask_changes])
    return dataclasses.replace(args, **values)


def _config(suite: Suite, part: Part, config: EvalConfig) -> EvalConfig:
    return dataclasses.replace(
        config,
        tasks=(part.task,),
        num_fewshot=part.num_fewshot if config.num_fewshot is None else config.num_fewshot,
        apply_chat_template=suite.chat,
        system_instruction=config.system_instruction or suite.system,
    )


def score_of(cell: Cell, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of a cell's summary that the suite's table shows; None where nothing was scored."""
    wanted = (cell.part.task, *cell.part.score)
    found = (row for row in rows if (row["task"], row["metric"], row["filter"]) == wanted)
    return next(found, None)


def suite_table(suite: Suite, found: Sequence[tuple[Cell, Sequence[dict[str, Any]]]]) -> Table:
    """A row for each task and share of forwards: both modes in per cent, and published values."""
    by_place = {(cell.part.task, cell.fraction, cell.mode): (cell, rows) for cell, rows in found}
    table = light_table(suite.title)
    table.add_column("task", overflow="fold")
    for column in ("NFE", *MODES, "forwards"):
        table.add_column(column, justify="right")
    places = sorted({place[:2] for place in by_place}, key=lambda place: -place[1])
    for part in suite.parts:
        for task, fraction in (place for place in places if place[0] == part.task):
            pair = [by_place.get((task, fraction, mode)) for mode in MODES]
            rows = [None if one is None else score_of(*one) for one in pair]
            spent = [None if row is None else row["forwards"] for row in rows]
            forwards = " / ".join("-" if f is None else f"{f:.0f}" for f in spent)
            table.add_row(task, str(fraction), *map(_show, rows), forwards)
            for model, known in suite.published.items():
                values = [known.get((task, fraction, mode)) for mode in MODES]
                if None not in values:
                    cells_of = [f"{value:.1f}" + 6 * " " for value in values]
                    table.add_row(f"  published, {model}", "", *cells_of, style="dim")
        table.add_section()
    return table


def against_published(
    suite: Suite, found: Sequence[tuple[Cell, Sequence[dict[str, Any]]]]
) -> Table | None:
    """Ours beside the published scores, and how many standard errors lie between.

    The error of a difference is of both: ours as the harness has it, the published one's as that of
    a share of so many documents. None: no score is known of what ran.
    """
    table = light_table(f"against the published scores ({suite.source})")
    table.add_column("task", overflow="fold")
    for column in ("NFE", "mode", "model"):
        table.add_column(column)
    for column in ("published", "ours", "difference", "in s.e."):
        table.add_column(column, justify="right", no_wrap=True)
    for model, known in suite.published.items():
        for cell, rows in found:
            value = known.get((cell.part.task, cell.fraction, cell.mode))
            if value is None:
                continue
            row = score_of(cell, rows)
            if row is None:
                continue
            difference = 100 * row["value"] - value
            errors = difference / _error(row, cell.part, value / 100) / 100
            table.add_row(
                *(cell.part.task, str(cell.fraction), cell.mode, model, f"{value:.1f}", _show(row)),
                *(f"{difference:+.1f}", f"{errors:+.1f}"),
                style="bold" if abs(errors) > SIGNIFICANT else None,
            )
    return table if table.row_count else None


def _error(row: Mapping[str, Any], part: Part, published: float) -> float:
    """The standard error of ours minus the published score."""
    theirs = published * (1 - published) / (part.documents or row["n"])
    own = row["value"] * (1 - row["value"]) / row["n"] if row["stderr"] is None else 0.0
    return math.sqrt(theirs + own + (row["stderr"] or 0.0) ** 2)


def _show(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    error = "" if row["stderr"] is None else f" ({100 * row['stderr']:.1f})"
    return f"{100 * row['value']:.1f}{error}"
