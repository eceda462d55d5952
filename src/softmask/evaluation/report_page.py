"""The report of evaluations: an HTML page that needs nothing beside itself, Markdown, LaTeX."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..reporting.plots import PLAIN, SOFT, new_figure, non_dominated
from .record import is_share
from .report import Run, Task
from .spread import Spread
from .suites import score_name

TEMPLATE = Path(__file__).with_name("report.html.j2")
# What LaTeX takes for something else.
SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Table:
    """A table in every form: a caption, column names (the first is left-aligned), rows of text."""

    caption: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def scores_table(tasks: Sequence[Task]) -> Table:
    """The main score of every task in every run."""
    rows = []
    for task in tasks:
        for run, row in task.rows:
            error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
            shown = f"{100 * row['value']:.1f}{error}" if is_share(row) else f"{row['value']:.4g}"
            parallel = row.get("tokens_per_forward")
            rows.append(
                (
                    run.name,
                    task.name,
                    score_name(row["metric"], row["filter"]),
                    shown,
                    str(row["n"]),
                    _number(row["forwards"], 1),
                    _number(parallel, 2),
                )
            )
    return Table(
        "Scores in % ± standard error; forwards of a sample; TPF: tokens per forward",
        ("evaluation", "task", "metric", "score", "n", "forwards", "TPF"),
        rows,
    )


def spread_table(spreads: Sequence[tuple[str, Spread]]) -> Table:
    """How far the main scores move with the template, beside their standard error."""
    rows = [
        (
            *(folder, one.task, score_name(one.metric, one.filter), str(len(one.scores))),
            *(one.shown(value) for value in (one.mean, one.deviation, one.range)),
            "" if one.error is None else one.shown(one.error),
        )
        for folder, one in spreads
    ]
    return Table(
        "Over chat templates: mean score, standard deviation, range; standard error of one score",
        ("evaluation", "task", "metric", "templates", "mean", "deviation", "range", "error"),
        rows,
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def kinds_table(task: Task) -> Table:
    """How many answers of each run came out how."""
    every = {kind: sum(own[kind] for _, own in task.kinds) for _, o in task.kinds for kind in o}
    columns = sorted(every, key=lambda kind: (kind != "right", -every[kind], kind))
    rows = [(run.name, *(str(own[kind]) for kind in columns)) for run, own in task.kinds]
    return Table(f"{task.name}: what became of the answers", ("evaluation", *columns), rows)


def origin_table(runs: Sequence[Run]) -> Table:
    """What ran: each value once, with the evaluations that have it."""
    names = list(dict.fromkeys(name for run in runs for name in run.origin))
    rows = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for run in runs:
            by_value.setdefault(run.origin.get(name, ""), []).append(run.name)
        for value, whose in by_value.items():
            shared = "all" if len(by_value) == 1 else ", ".join(whose)
            rows.append((name, value, shared))
    return Table(
        "Each value, and the evaluations that have it", ("what", "value", "evaluations"), rows
    )


def draw(task: Task) -> tuple[str, str] | None:
    """Score against tokens per forward as (SVG, its words); None with fewer than two points.

    Raises:
        ValueError: matplotlib is missing.
    """
    points = [(run, row) for run, row in task.rows if row.get("tokens_per_forward")]
    if len(points) < 2:
        return None
    figure = new_figure(7, 3.6)
    from matplotlib import rc_context

    axis = figure.subplots()
    # As in the table: what is no share is no per cent.
    scale, unit = (100, " %") if all(is_share(row) for _, row in points) else (1, "")
    reached = [(row["tokens_per_forward"], scale * row["value"]) for _, row in points]
    for (run, row), (x, y) in zip(points, reached, strict=True):
        error = scale * (row["stderr"] or 0)
        axis.errorbar(x, y, yerr=error, fmt="o", color=SOFT if run.soft else PLAIN, capsize=2)
    kept = sorted(reached[place] for place in non_dominated(reached))
    axis.plot(*zip(*kept, strict=True), color="black", linewidth=0.9, zorder=0)
    for name, colour in (("plain", PLAIN), ("soft-masked", SOFT)):
        axis.plot([], [], "o", color=colour, label=name)
    axis.plot([], [], color="black", linewidth=0.9, label="frontier")
    axis.set(xlabel="tokens per forward", ylabel=f"score{unit and ', %'} (bars: standard error)")
    axis.set_title(task.name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    picture = io.BytesIO()
    # Without a date, and with names of its own, the same results make the same page.
    with rc_context({"svg.hashsalt": task.name}):
        figure.savefig(picture, format="svg", metadata={"Date": None})
    words = "; ".join(
        f"{run.name}: {y:.1f}{unit} at {x:.2f}"
        for (run, _), (x, y) in zip(points, reached, strict=True)
    )
    return picture.getvalue().decode(), f"{task.name}, score against tokens per forward. {words}"


def html(
    title: str,
    runs: Sequence[Run],
    tasks: Sequence[Task],
    traces: dict[str, tuple[str, str]],
    spreads: Table | None = None,
) -> str:
    """The page.

    Args:
        traces: by task, the SVG of a sample's run and its text.
        spreads: the table of spreads over templates, where there are any.
    """
    from jinja2 import Environment

    # Every value is escaped: answers of a model are text, whatever they look like.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    parts = [
        {
            "task": task,
            "kinds": kinds_table(task) if task.kinds else None,
            "plot": _inline(draw(task)),
            "trace": _inline(traces.get(task.name)),
        }
        for task in tasks
    ]
    return template.render(
        title=title,
        scores=scores_table(tasks),
        spreads=spreads,
        origin=origin_table(runs),
        parts=parts,
    )


def _inline(picture: tuple[str, str] | None) -> tuple[str, str] | None:
    """An SVG as the address of an image, and its words."""
    if picture is None:
        return None
    svg, words = picture
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", words


def markdown(title: str, tables: Sequence[Table]) -> str:
    """The tables in GitHub's Markdown."""
    parts = [f"# {title}\n"]
    for table in tables:
        parts.append(f"{table.caption}\n")
        lines = [table.columns, ("---", *("---:" for _ in table.columns[1:])), *table.rows]
        parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("|", "\\|"))


def latex(tables: Sequence[Table]) -> str:
    """The tables for LaTeX, with the rules of booktabs."""
    return "\n".join(line for table in tables for line in _latex(table)) + "\n"


def _latex(table: Table) -> Iterator[str]:
    yield "% needs \\usepackage{booktabs}"
    yield "\\begin{table}"
    yield f"\\caption{{{_escaped(table.caption)}}}"
    yield f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    yield "\\toprule"
    yield " & ".join(map(_escaped, table.columns)) + " \\\\"
    yield "\\midrule"
    for row in table.rows:
        yield " & ".join(map(_escaped, row)) + " \\\\"
    yield "\\bottomrule"
    yield "\\end{tabular}"
    yield "\\end{table}"


def _escaped(text: str) -> str:
    return "".join(SPECIAL.get(c, c) for c in text).replace("±", "$\\pm$")
