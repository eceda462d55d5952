"""softmask eval compare A B: paired differences, sample by sample, and accuracy against forwards.

A and B are folders of evaluations, or of many (a suite's `plain` and `soft`): those in the same
place below A and B are compared. Samples are paired by task, document and filter, so what is hard
for both does not count as noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..config import read_json
from ..files import read_json_lines
from ..reporting.plots import need_matplotlib, new_figure, save
from ..reporting.tables import light_table
from . import record, spread
from .config import RESULTS, RUN
from .intervals import interval
from .suites import MODE_ALIASES, score_name

Pairs = dict[tuple[str, str, str], dict[str, float]]
WIDE = 76  # columns of a screen that has room for the whole table
FRACTION = re.compile(r"@(\d+)_(\d+)$")  # forwards a token, in the name of a suite's cell


@dataclass(frozen=True)
class Difference:
    """B minus A on one metric; `low` and `high` bound it with 95 % confidence (`interval`), or are
    None for a single sample.

    `spread`: the standard deviation of the score over chat templates, the larger of both sides'
    where one was measured. `significant`: the interval leaves out zero, and the difference is no
    smaller than the spread.
    """

    place: str
    task: str
    metric: str
    filter: str
    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    only_a: int  # samples that A has right and B wrong, where a sample is right or wrong
    only_b: int
    forwards_a: float | None
    forwards_b: float | None
    spread: float | None = None

    @property
    def beyond_zero(self) -> bool:
        return is_beyond_zero(self.low, self.high)

    @property
    def significant(self) -> bool:
        return self.beyond_zero and abs(self.difference) >= (self.spread or 0.0)


def is_beyond_zero(low: float | None, high: float | None) -> bool:
    """Whether an interval leaves out zero; none leaves out nothing."""
    return low is not None and high is not None and (low > 0 or high < 0)


def compare(a: Path, b: Path, *, seed: int = 0) -> list[Difference]:
    """Every metric that both sides have.

    Raises:
        ValueError: a folder without finished evaluations, nothing in common, or samples that are
            not of the same documents.
    """
    one, two = runs_in(a), runs_in(b)
    places = sorted(
        (place for place in one if place in two), key=lambda place: _naturally((place,))
    )
    if not places:
        raise ValueError(f"{a} and {b} have no evaluation in common: compare like with like")
    found = []
    for place in places:
        found += _compare_runs(place, one[place], two[place], seed)
    if not found:
        raise ValueError(f"{a} and {b} have no metric in common: compare like with like")
    return found


def runs_in(folder: Path) -> dict[str, Path]:
    """Finished evaluations in a folder and below, by their place in it ("." for itself).

    A place in a suite's folder begins with the mode under its present name, whatever the folder's:
    unless there are folders of both names, which then keep theirs.

    Raises:
        ValueError: there is none.
    """
    found = {
        path.parent.relative_to(folder): path.parent
        for path in sorted(folder.rglob(RESULTS))
        if (path.parent / RUN).is_file() and not _measures(read_json(path.parent / RUN))
    }
    if not found:
        raise ValueError(f"{folder} holds no finished evaluation: give a folder of `softmask eval`")
    modes = {place.parts[:1] for place in found}
    return {
        str(place if _present(place).parts[:1] in modes else _present(place)): path
        for place, path in found.items()
    }


def _measures(run: Any) -> bool:
    """Whether a record is of another command that keeps its folders beside evaluations."""
    return isinstance(run, dict) and any(name in run for name in ("ppl", "samples", "calibration"))


def _present(place: Path) -> Path:
    """A place whose mode has its present name."""
    mode, *rest = place.parts or (".",)
    return Path(MODE_ALIASES.get(mode, mode), *rest)


def _compare_runs(place: str, a: Path, b: Path, seed: int) -> list[Difference]:
    spent = [forwards_of(folder) for folder in (a, b)]
    one, two = scores_of(a), scores_of(b)
    spreads = _spreads(a, b)
    found = []
    for key in one.keys() & two.keys():
        left, right = one[key], two[key]
        # A sample may have been left out of a metric in one of them.
        if left.keys() != right.keys() and _documents(one, key[0]) != _documents(two, key[0]):
            raise ValueError(
                f"{a} and {b} scored different documents of {key[0]}: give both the same --limit "
                "and data"
            )
        documents = sorted(left.keys() & right.keys())
        if not documents:
            continue
        x = np.array([left[d] for d in documents])
        y = np.array([right[d] for d in documents])
        low, high = interval(y - x, seed) or (None, None)
        found.append(
            Difference(
                place,
                *key,
                n=len(documents),
                a=float(x.mean()),
                b=float(y.mean()),
                difference=float((y - x).mean()),
                low=low,
                high=high,
                only_a=int(((x == 1) & (y == 0)).sum()),
                only_b=int(((x == 0) & (y == 1)).sum()),
                forwards_a=spent[0].get(key[0]),
                forwards_b=spent[1].get(key[0]),
                spread=spreads.get(key),
            )
        )
    return sorted(found, key=lambda d: (d.task, d.metric, d.filter))


def _documents(found: Pairs, task: str) -> set[str]:
    """Those of a task that have any score."""
    return {document for key, scores in found.items() if key[0] == task for document in scores}


def _spreads(a: Path, b: Path) -> dict[tuple[str, str, str], float]:
    """Of each score the larger of the deviations over the templates beside A and beside B."""
    folders = {folder.resolve().parent for folder in (a, b)}
    if len(folders) == 1:
        return {}  # two templates of one command: their difference is what the spread is made of
    found: dict[tuple[str, str, str], float] = {}
    for one in (one for folder in folders for one in spread.read(folder)):
        found[one.key] = max(found.get(one.key, 0.0), one.deviation)
    return found


def scores_of(folder: Path) -> Pairs:
    """Of each (task, metric, filter) the score of every document, by its hash and number."""
    found: Pairs = {}
    for path in sorted(folder.glob("samples_*.jsonl")):
        task = path.stem.removeprefix("samples_")
        for number, sample in enumerate(read_json_lines(path), start=1):
            try:
                document = f"{sample['doc_hash']}/{sample['doc_id']}"
                name = "" + sample["filter"]  # a text, or no sample
                values = {metric: sample[metric] for metric in sample["metrics"]}
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}, is no sample: repeat the evaluation with --overwrite"
                ) from error
            for metric, value in values.items():
                known = isinstance(value, int | float) and math.isfinite(value)
                if known and record.is_measured(metric, value):
                    found.setdefault((task, metric, name), {})[document] = float(value)
    return found


def forwards_of(folder: Path) -> dict[str, float]:
    """Mean forwards of a sample, by task."""
    rows = record.summary(folder)
    return {row["task"]: row["forwards"] for row in rows if row["forwards"] is not None}


def table_of(differences: Sequence[Difference], width: int = WIDE) -> Table:
    """The differences as a table: values, interval, and samples that one side alone has right.

    On a screen of fewer columns than WIDE without how many samples and forwards there are.
    """
    table = light_table("B - A, paired by sample; 95 % interval")
    table.add_column("evaluation", overflow="fold")
    is_wide = width >= WIDE
    spreads = any(d.spread is not None for d in differences)
    more = ("spread",) if spreads else ()
    counts = ("n",) if is_wide else ()
    spending = ("only\nA/B", "forwards\nA/B") if is_wide else ()
    for column in (*counts, "A", "B", "B - A", "95 %", *more, *spending):
        table.add_column(column, justify="right", no_wrap=True)
    metrics = {(d.metric, d.filter) for d in differences}
    for d, name in zip(differences, _names(differences), strict=True):
        if len(metrics) > 1:
            name += f" {score_name(d.metric, d.filter)}"
        spent = [("-" if f is None else f"{f:.0f}") for f in (d.forwards_a, d.forwards_b)]
        table.add_row(
            FRACTION.sub(_fraction, name),
            *([str(d.n)] if is_wide else []),
            f"{d.a:.3f}",
            f"{d.b:.3f}",
            f"{d.difference:+.3f}",
            bounds(d.low, d.high, "+.3f"),
            *(["" if d.spread is None else f"{d.spread:.3f}"] if spreads else []),
            *([f"{d.only_a}/{d.only_b}", "/".join(spent)] if is_wide else []),
            style="bold" if d.significant else None,
        )
    return table


def _fraction(found: re.Match[str]) -> str:
    """Forwards a token as a suite's own table has them, behind a space, where lines break."""
    numerator, denominator = found.groups()
    return f" {numerator}" if denominator == "1" else f" {numerator}/{denominator}"


def bounds(low: float | None, high: float | None, form: str) -> str:
    """An interval in a table."""
    return "-" if low is None or high is None else f"{low:{form}} {high:{form}}"


def left_out(a: Path, b: Path) -> list[str]:
    """A sentence for each side that lacks a finished evaluation of the other.

    Raises:
        ValueError: a folder without finished evaluations.
    """
    one, two = runs_in(a), runs_in(b)
    lacking = ((a, two.keys() - one.keys()), (b, one.keys() - two.keys()))
    return [
        f"{folder} has no finished evaluation {', '.join(sorted(places))}: left out."
        for folder, places in lacking
        if places
    ]


def refusals(differences: Sequence[Difference]) -> list[str]:
    """A sentence for each difference that its samples show and the choice of a template hides."""
    return [
        f"{name}, {score_name(d.metric, d.filter)}: B - A ({d.difference:+.3f}) is smaller than "
        f"the spread over chat templates ({d.spread:.3f}, a standard deviation), so it is not "
        "called significant."
        for d, name in zip(differences, _names(differences), strict=True)
        if d.beyond_zero and not d.significant
    ]


def _names(differences: Sequence[Difference]) -> list[str]:
    """Where each evaluation lies, and its task where several lie there."""
    tasks: dict[str, set[str]] = {}
    for d in differences:
        tasks.setdefault(d.place, set()).add(d.task)
    found = []
    for d in differences:
        own = d.place if len(tasks[d.place]) == 1 else f"{d.place} {d.task}"
        found.append(d.task if d.place == "." else own)
    return found


def draw(a: Path, b: Path, target: Path) -> None:
    """Draws accuracy against forwards into a PNG: a panel for each task, a line for A and for B.

    Raises:
        ValueError: matplotlib is missing, or nothing was generated, so that no forwards count.
    """
    need_matplotlib()
    lines = {folder: _points(folder) for folder in (a, b)}
    panels = sorted({panel for points in lines.values() for panel in points}, key=_naturally)
    if not panels:
        raise ValueError("these evaluations generate nothing: there are no forwards to plot")
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(3.6 * columns + 0.6, 3.2 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        top = 0.0
        for folder, style in ((a, "o--"), (b, "s-")):
            points = sorted(lines[folder].get(panel, []))
            if points:
                x, y, error = zip(*points, strict=True)
                axis.errorbar(x, y, yerr=error, fmt=style, label=folder.name, capsize=3)
                top = max(top, *(value + e for value, e in zip(y, error, strict=True)))
        axis.set(title=", ".join(panel), xlabel="forwards a sample")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.08 * top or 1)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    axes[0].set_ylabel("score (bars: standard error)")
    axes[0].legend(fontsize=8)
    save(figure, target)


def _points(folder: Path) -> dict[tuple[str, str], list[tuple[float, float, float]]]:
    """Of each (task, metric): forwards, score and standard error of every evaluation."""
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for run in runs_in(folder).values():
        for row in record.summary(run):
            if row["forwards"] is not None:
                key = (row["task"], score_name(row["metric"], row["filter"]))
                point = (row["forwards"], row["value"], row["stderr"] or 0.0)
                found.setdefault(key, []).append(point)
    return found


def _naturally(names: tuple[str, ...]) -> list[tuple[int, str | int]]:
    """A sort key that puts task 9 before task 10."""
    pieces = re.split(r"(\d+)", " ".join(names))
    return [(1, int(piece)) if piece.isdigit() else (0, piece) for piece in pieces]
