"""softmask eval sweep: a task decoded in many ways, its score against tokens per forward.

A point is a way of decoding (so many steps, a threshold, an entropy threshold) under a feedback; it
is an evaluation in a folder of its own, which a run that is repeated finds finished. Points of one
knob and one feedback make a curve. A point is on the frontier of its task if no other one has as
good a score at more tokens per forward.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..config import FEEDBACK_PRESETS, require, require_choice
from ..reporting.plots import non_dominated
from ..reporting.tables import light_table
from . import record
from .compare import bounds, is_beyond_zero
from .config import SWEPT, ModelArgs
from .intervals import interval
from .parallelism import Samples, area_of, read_samples
from .suites import main_score, score_name

RESULT = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One way of decoding: a value of a knob, under a feedback."""

    feedback: str
    knob: str
    value: Fraction | float
    args: ModelArgs

    @property
    def name(self) -> str:
        """feedback/knob-value: the point's folder below the sweep's, and its name in tables."""
        return f"{self.feedback}/{self.knob}-{str(self.value).replace('/', '_')}"


def points(
    args: ModelArgs,
    *,
    steps: Sequence[Fraction],
    threshold: Sequence[float],
    entropy_threshold: Sequence[float],
    feedback: Sequence[str],
) -> list[Point]:
    """The points, in the order of their values; each one's settings are checked.

    Args:
        args: the model, and settings of decoding for all points.
        steps: denoising steps for each mask, in (0, 1].
        threshold, entropy_threshold: with one step a mask, which they end early.
        feedback: names of presets.

    Raises:
        ValueError: nothing to sweep, a value out of range, or a setting of `args` that the sweep
            sets itself.
    """
    set_already = [name for name in SWEPT if getattr(args, name) is not None]
    require(not set_already, f"the sweep sets {', '.join(set_already)} itself: leave it out")
    for name in feedback:
        require_choice("feedback", name, tuple(FEEDBACK_PRESETS))
    for share in steps:
        require(0 < share <= 1, f"steps are shares of the masks, in (0, 1]: 1,1/2,1/4, not {share}")
    values: list[tuple[str, Fraction | float, dict[str, Any]]] = [
        *(("steps", share, {"nfe": float(share)}) for share in steps),
        *(("threshold", value, {"nfe": 1.0, "threshold": value}) for value in threshold),
        *(
            ("entropy-threshold", value, {"nfe": 1.0, "entropy_threshold": value})
            for value in entropy_threshold
        ),
    ]
    require(bool(values), "name what to sweep: --steps, --threshold or --entropy-threshold")
    require(bool(feedback), "name a feedback: published, off, ...")
    found = []
    for name in dict.fromkeys(feedback):
        own: dict[str, Any] = {"feedback": name}
        if name == "off":
            # Soft-mask settings concern the other points.
            own |= dict.fromkeys(args.soft_mask_changes)
        for knob, value, settings in values:
            found.append(Point(name, knob, value, dataclasses.replace(args, **own, **settings)))
    return list({point.name: point for point in found}.values())


@dataclass(frozen=True)
class Row:
    """What a point reached on a task; `difference` is paired with the first point of the sweep."""

    task: str
    metric: str
    filter: str
    point: str
    feedback: str
    knob: str
    value: str
    n: int
    score: float
    error: float | None
    forwards: float
    tokens: float
    tokens_per_forward: float
    seconds: float
    tokens_per_second: float
    difference: float
    low: float | None
    high: float | None
    on_frontier: bool


@dataclass(frozen=True)
class Curve:
    """AUP of the points of one knob and one feedback on a task, 95 % bounds (one sample: None)."""

    task: str
    feedback: str
    knob: str
    points: int
    aup: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sweep:
    """What a finished sweep says; `pairs` has the paired difference of any two points of a task."""

    rows: list[Row]
    curves: list[Curve]
    pairs: list[dict[str, Any]]


def read(found: Sequence[Point], folder: Path, metric: str | None = None) -> Sweep:
    """Reads the evaluations of all points.

    Args:
        metric: NAME or NAME,FILTER; None: a suite's score of the task, else the task's first.

    Raises:
        ValueError: a task has no such metric, or generates nothing.
    """
    rows: list[Row] = []
    curves: list[Curve] = []
    pairs: list[dict[str, Any]] = []
    records = {point.name: record.read_run(folder / point.name) for point in found}
    for task, name, filter_name in _scores(folder / found[0].name, metric):
        runs = {
            point.name: read_samples(folder / point.name, task, name, filter_name)
            for point in found
        }
        seconds = _seconds(records, task)
        differences = {
            (a, b): paired_difference(runs[a], runs[b]) for a, b in itertools.combinations(runs, 2)
        }
        rows += _rows(found, runs, seconds, differences, (task, name, filter_name))
        curves += _curves(found, runs, task)
        pairs += [{"task": task, "a": a, "b": b, **d} for (a, b), d in differences.items()]
    return Sweep(rows, curves, pairs)


def _scores(run: Path, metric: str | None) -> list[tuple[str, str, str]]:
    """Task, metric and filter of each task that has samples."""
    rows = [r for r in record.summary(run) if (run / f"samples_{r['task']}.jsonl").is_file()]
    scores = chosen(rows, metric)
    without = sorted({row["task"] for row in rows} - {task for task, *_ in scores})
    require(not without, f"{', '.join(without)} has no metric {metric}")
    return scores


def chosen(rows: Sequence[dict[str, Any]], metric: str | None) -> list[tuple[str, str, str]]:
    """Task, metric and filter of the score of each task of a summary that has it.

    Args:
        metric: NAME or NAME,FILTER; None: a suite's score of the task, else the task's first.

    Raises:
        ValueError: no task has such a metric, or it is no share: its areas would mean nothing.
    """
    by_task: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], {})[row["metric"], row["filter"]] = row
    name, _, filter_name = (metric or "").partition(",")
    scores = []
    for task, known in by_task.items():
        wanted = [one for one in known if one[0] == name and filter_name in ("", one[1])]
        if metric is None:
            wanted = [main_score(task, list(known))]
        if wanted:
            require(
                record.is_share(known[wanted[0]]),
                f"{','.join(wanted[0])} of {task} is no share of 1, so it has no area under it; "
                f"name another by --metric: {_names(known)}",
            )
            scores.append((task, *wanted[0]))
    require(bool(rows), "no task was evaluated that a score could be read of")
    every = _names(one for task in by_task.values() for one in task)
    require(bool(scores), f"what was evaluated has no metric {metric}; it has {every}")
    return scores


def _names(known: Iterable[tuple[str, str]]) -> str:
    return ", ".join(dict.fromkeys(",".join(one) for one in known))


def _seconds(records: Mapping[str, Any], task: str) -> dict[str, float]:
    """Mean seconds of a sample at each point."""
    seconds: dict[str, Any] = {
        name: (run.get("seconds_a_sample") or {}).get(task) for name, run in records.items()
    }
    # A group's own members have no name by which a kind is known before they run.
    require(None not in seconds.values(), f"{task} scores given texts: name tasks that generate")
    return seconds


def paired_difference(a: Samples, b: Samples) -> dict[str, Any]:
    """B minus A, document by document, with 95 % bounds (None for a single document).

    Raises:
        ValueError: they are of different documents.
    """
    require(
        np.array_equal(a.document_N, b.document_N),
        "the points scored different documents: choose a --metric that every document has",
    )
    differences = b.score_N - a.score_N
    low, high = interval(differences) or (None, None)
    return {"difference": float(differences.mean()), "low": low, "high": high}


def _rows(
    found: Sequence[Point],
    runs: Mapping[str, Samples],
    seconds: Mapping[str, float],
    differences: Mapping[tuple[str, str], dict[str, Any]],
    score: tuple[str, str, str],
) -> Iterator[Row]:
    reached = [(runs[p.name].tokens_per_forward, runs[p.name].score) for p in found]
    kept = set(non_dominated(reached))
    reference, none = found[0].name, {"difference": 0.0, "low": 0.0, "high": 0.0}
    for place, point in enumerate(found):
        run = runs[point.name]
        yield Row(
            *score,
            point=point.name,
            feedback=point.feedback,
            knob=point.knob,
            value=str(point.value),
            n=len(run.score_N),
            score=run.score,
            error=run.error,
            forwards=float(run.forwards_N.mean()),
            tokens=float(run.tokens_N.mean()),
            tokens_per_forward=run.tokens_per_forward,
            seconds=seconds[point.name],
            tokens_per_second=float(run.tokens_N.mean()) / max(seconds[point.name], 1e-9),
            **differences.get((reference, point.name), none),
            on_frontier=place in kept,
        )


def _curves(found: Sequence[Point], runs: Mapping[str, Samples], task: str) -> Iterator[Curve]:
    by_curve: dict[tuple[str, str], list[Samples]] = {}
    # A threshold that nothing reaches is one step a mask: where that was run, curves begin there.
    full = {p.feedback: runs[p.name] for p in found if (p.knob, p.value) == ("steps", 1)}
    for point in found:
        start = [full[point.feedback]] if point.feedback in full and point.knob != "steps" else []
        own = by_curve.setdefault((point.feedback, point.knob), start)
        own.append(runs[point.name])
    for (feedback, knob), own in by_curve.items():
        yield Curve(task, feedback, knob, len(own), *area_of(own, list(runs.values())))


def tables_of(sweep: Sweep) -> list[Table]:
    """A table for each task, and one of the areas."""
    tables = []
    first = sweep.rows[0].point
    for task in dict.fromkeys(row.task for row in sweep.rows):
        own = [row for row in sweep.rows if row.task == task]
        one = own[0]
        name = score_name(one.metric, one.filter)
        table = light_table(f"{task}: {name}, %, {one.n} samples (standard error); * frontier")
        table.add_column("feedback", no_wrap=True)
        table.add_column("way", no_wrap=True)
        for column in ("score", "95 % of the\ndifference", "forwards", "TPF", "tokens\n/s", ""):
            table.add_column(column, justify="right", no_wrap=True)
        for row in own:
            error = "" if row.error is None else f" ({100 * row.error:.1f})"
            apart = row.point != first
            table.add_row(
                row.feedback,
                f"{row.knob.removesuffix('-threshold')} {row.value}",
                f"{100 * row.score:.1f}{error}",
                _per_cent(row) if apart else "",
                f"{row.forwards:.1f}",
                f"{row.tokens_per_forward:.2f}",
                f"{row.tokens_per_second:.0f}",
                "*" if row.on_frontier else "",
                style="bold" if apart and is_beyond_zero(row.low, row.high) else None,
            )
        table.caption = f"differences are paired with {first}"
        tables.append(table)
    areas = light_table("AUP: area under score and tokens per forward")
    areas.add_column("task", overflow="fold")
    areas.add_column("curve", overflow="fold")
    for column in ("points", "AUP", "95 %"):
        areas.add_column(column, justify="right", no_wrap=True)
    for curve in sweep.curves:
        areas.add_row(
            curve.task,
            f"{curve.feedback}, {curve.knob}",
            str(curve.points),
            f"{curve.aup:.1f}",
            bounds(curve.low, curve.high, ".0f"),
        )
    return [*tables, areas]


def _per_cent(row: Row) -> str:
    low, high = (None if part is None else 100 * part for part in (row.low, row.high))
    return bounds(low, high, "+.1f")
