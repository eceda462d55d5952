"""How far a score moves with the template: its spread, beside its standard error.

A score under one template has an error from the samples that happen to be in the task. Another
template moves it too, and no standard error knows of that: a difference between two models that is
smaller than this spread says as much of the template as of the models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from ..config import from_mapping, read_json
from ..files import write_atomically
from ..reporting.tables import light_table
from . import record
from .suites import Cell, Suite, main_score, score_name

# Beside the folders of the evaluations, one for each template.
RESULT = "templates.json"


@dataclass(frozen=True)
class Spread:
    """A score under several templates.

    `main`: it is the task's main score. `share`: it lies in [0, 1] and is shown in per cent.
    `deviation` is the standard deviation over the templates (of a sample of them, so with n - 1),
    `range` the best minus the worst, `error` the mean of the scores' standard errors.
    """

    task: str
    metric: str
    filter: str
    main: bool
    share: bool
    n: int
    scores: dict[str, float]
    errors: dict[str, float | None]
    mean: float
    deviation: float
    range: float
    error: float | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.metric, self.filter

    @property
    def name(self) -> str:
        """The score, for people."""
        return f"{self.task}: {score_name(self.metric, self.filter)}"

    def shown(self, value: float) -> str:
        """A value on the scale of the score: in per cent where it is a share."""
        return f"{100 * value:.1f}" if self.share else f"{value:.4g}"


def spreads_of(folders: Mapping[str, Path]) -> list[Spread]:
    """The spread of every score of finished evaluations.

    Args:
        folders: by template the evaluation under it, at least two.
    """
    by_score: dict[tuple[str, str, str], dict[str, dict]] = {}
    for template, folder in folders.items():
        for row in record.summary(folder):
            score = (row["task"], row["metric"], row["filter"])
            by_score.setdefault(score, {})[template] = row
    found = []
    for (task, metric, filter_name), rows in by_score.items():
        if rows.keys() != folders.keys():
            continue  # a metric that no sample of some evaluation has
        known = [(m, f) for of, m, f in by_score if of == task]
        values = {template: float(row["value"]) for template, row in rows.items()}
        errors = {template: row["stderr"] for template, row in rows.items()}
        given = [error for error in errors.values() if error is not None]
        found.append(
            Spread(
                *(task, metric, filter_name),
                main=(metric, filter_name) == main_score(task, known),
                share=all(record.is_share(row) for row in rows.values()),
                n=min(row["n"] for row in rows.values()),
                scores=values,
                errors=errors,
                mean=fmean(values.values()),
                deviation=stdev(values.values()),
                range=max(values.values()) - min(values.values()),
                error=fmean(given) if given else None,
            )
        )
    return found


def write(folder: Path, spreads: Sequence[Spread]) -> None:
    """Writes the result of a command into the folder above its evaluations."""
    held = {"spreads": [dataclasses.asdict(spread) for spread in spreads]}
    write_atomically(folder / RESULT, json.dumps(held, indent=1, ensure_ascii=False) + "\n")


def read(folder: Path) -> list[Spread]:
    """The spreads that a folder holds; none where no command wrote any.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return []
    held = read_json(path)
    spreads = held.get("spreads") if isinstance(held, dict) else None
    if not isinstance(spreads, list):
        raise ValueError(f"{path} holds no spreads: repeat `softmask eval --templates`")
    return [from_mapping(Spread, spread, str(path)) for spread in spreads]


def tables_of(spreads: Sequence[Spread]) -> list[Table]:
    """A table for each task's main score: under each template, and how far it moves."""
    tables = []
    for spread in spreads:
        if not spread.main:
            continue
        unit = ", %" if spread.share else ""
        table = light_table(f"{spread.name}{unit}, {spread.n} samples")
        table.add_column("template", overflow="fold")
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("standard error", justify="right", no_wrap=True)
        rows = [(name, score, spread.errors[name]) for name, score in spread.scores.items()]
        for name, score, error in (*rows, ("mean", spread.mean, spread.error)):
            shown = "" if error is None else spread.shown(error)
            table.add_row(name, spread.shown(score), shown, end_section=name == rows[-1][0])
        table.add_row("standard deviation", spread.shown(spread.deviation), "")
        table.add_row("range", spread.shown(spread.range), "")
        tables.append(table)
    return tables


def suite_spreads(suite: Suite, found: Sequence[tuple[Cell, Sequence[Spread]]]) -> Table:
    """A row for each cell of a suite: its score over the templates, and how far that moves."""
    count = max((len(one.scores) for _, spreads in found for one in spreads), default=0)
    table = light_table(f"{suite.title}: over {count} chat templates")
    table.add_column("task", overflow="fold")
    for column in ("NFE", "mode"):
        table.add_column(column, no_wrap=True)
    for column in ("mean", "standard\ndeviation", "range", "standard\nerror"):
        table.add_column(column, justify="right", no_wrap=True)
    for cell, spreads in found:
        wanted = (cell.part.task, *cell.part.score)
        one = next((one for one in spreads if one.key == wanted), None)
        if one is None:
            continue
        values = (one.mean, one.deviation, one.range, one.error)
        shown = ["" if value is None else one.shown(value) for value in values]
        table.add_row(cell.part.task, str(cell.fraction), cell.mode, *shown)
    return table
