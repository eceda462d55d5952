"""The numbers of `softmask eval calibration` as tables and as a plot, off their JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..reporting.plots import new_figure, save
from ..reporting.tables import light_table

PLOT = "calibration.png"
TITLES = {"on": "with feedback", "off": "without feedback"}
# Bins of fewer tokens are not drawn.
LEAST = 10
COLOURS = {"on": "tab:orange", "off": "tab:blue"}


def table_of(found: dict[str, Any]) -> Group:
    """`asdict(Found)` as tables, with the verdict below."""
    ways = found["ways"]
    parts: list[Any] = [_passes(found)]
    if "on" in ways and len(ways["on"]["passes"]) > 1:
        parts.append(_feedback(ways["on"]["passes"][1:]))
    parts += [_commits(ways), _waiting(ways), _results(ways), Text(found["verdict"])]
    return Group(*parts)


def _passes(found: dict[str, Any]) -> Table:
    table = _table(
        f"the same masks read again: {found['texts']} texts, {found['masks']} masks",
        *("feedback", "pass", "right, %", "sure, %", "surer by", "ECE, %", "nats"),
    )
    for way in ("off", "on"):
        for one in found["ways"].get(way, {"passes": []})["passes"]:
            seen = one["seen"]
            cells = [_points(seen[name]) for name in ("right", "confidence")]
            cells += [_points(seen["gap"], "+"), _points(seen["ece"]), _number(one["nats"])]
            table.add_row(way, str(one["number"]), *cells)
    table.caption = "surer by: sure minus right, points; in brackets: standard errors over texts"
    return table


def _feedback(passes: list[dict[str, Any]]) -> Table:
    table = _table(
        "feedback on: what a pass changes of the one before, and what it reads",
        *("pass", "other token, %", "KL, 1e-3 nats", "lambda", "norm", "angle"),
    )
    for one in passes:
        kl = {name: None if value is None else 1000 * value for name, value in one["kl"].items()}
        cells = [_points(one["flips"]), _number(kl, 1)]
        cells += [_number(one[name]) for name in ("mean_lambda", "norm")]
        table.add_row(str(one["number"]), *cells, _number(one["angle"], 1))
    return table


def _commits(ways: dict[str, Any]) -> Table:
    columns = [f"{name}\n{way}" for name in ("wrong, %", "surer by") for way in ways]
    table = _table("decoding: what steps commit", "steps", "commits", *columns)
    for name, parts in _stretches(ways):
        done = [part["committed"] for part in parts]
        counts = "/".join(dict.fromkeys(str(0 if c is None else c["tokens"]) for c in done))
        cells = [_points(None if one is None else _wrong(one["right"])) for one in done]
        cells += [_points(None if one is None else one["gap"], "+") for one in done]
        table.add_row(name, counts, *cells)
    return table


def _waiting(ways: dict[str, Any]) -> Table:
    columns = [f"{name}\n{way}" for name in ("right, %", "surer by") for way in ways]
    columns += ["lambda\non"] if "on" in ways else []
    table = _table("decoding: what steps leave masked", "steps", *columns)
    for name, parts in _stretches(ways):
        left = [part["waiting"] for part in parts]
        cells = [_points(None if one is None else one["right"]) for one in left]
        cells += [_points(None if one is None else one["gap"], "+") for one in left]
        if "on" in ways:
            cells.append(_number(parts[0]["mean_lambda"]))
        table.add_row(name, *cells)
    return table


def _stretches(ways: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The name of each stretch of steps, and what each way did there."""
    for parts in zip(*(one["decoding"]["by_stretch"] for one in ways.values()), strict=True):
        ends = dict.fromkeys((parts[0]["first"], parts[0]["last"]))
        yield "-".join(map(str, ends)), list(parts)


def _results(ways: dict[str, Any]) -> Table:
    table = _table(
        "decoding: all steps",
        *("feedback", "wrong commits, %", "ECE of commits, %", "texts all right, %", "forwards"),
    )
    for way, one in ways.items():
        done = one["decoding"]
        means = (done["wrong"], done["committed"]["ece"], done["exact"])
        table.add_row(way, *map(_points, means), f"{done['forwards']['value']:.1f}")
    return table


def _wrong(right: dict[str, Any]) -> dict[str, Any]:
    return {"value": 1 - right["value"], "error": right["error"]}


def _table(title: str, *columns: str) -> Table:
    table = light_table(title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _points(mean: dict[str, Any] | None, sign: str = "") -> str:
    """A share in percent or points."""
    if mean is None:
        return ""
    error = "" if mean["error"] is None else f" ({100 * mean['error']:.1f})"
    return f"{100 * mean['value']:{sign}.1f}{error}"


def _number(mean: dict[str, Any] | None, digits: int = 3) -> str:
    if mean is None:
        return ""
    error = "" if mean["error"] is None else f" ({mean['error']:.{digits}f})"
    return f"{mean['value']:.{digits}f}{error}"


def draw(found: dict[str, Any], target: Path) -> None:
    """Draws `asdict(Found)` into a PNG: reliability by pass, right and sure by pass, wrong commits.

    Raises:
        ValueError: matplotlib is missing.
    """
    figure = new_figure(15, 4.8)
    reliability, passes, wrong = figure.subplots(1, 3)
    _draw_reliability(reliability, found["ways"])
    _draw_passes(passes, found["ways"])
    _draw_wrong(wrong, found["ways"])
    for axis in (reliability, passes, wrong):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(figure, target)


def _draw_reliability(axis: Any, ways: dict[str, Any]) -> None:
    from matplotlib import colormaps

    axis.plot([0, 100], [0, 100], color="gray", linewidth=1, linestyle=":")
    shown = ways["on" if "on" in ways else "off"]["passes"]
    # The first, the last and those that double between them.
    chosen = [one for one in shown if one["number"] in (1, 2, 4, len(shown))]
    for index, one in enumerate(chosen):
        colour = colormaps["viridis"](0.9 * index / max(len(chosen) - 1, 1))
        bins = [own for own in one["reliability"] if own["tokens"] >= LEAST]
        axis.plot(
            [100 * own["confidence"] for own in bins],
            [100 * own["right"] for own in bins],
            marker="o",
            markersize=4,
            color=colour,
            label=f"pass {one['number']}: ECE {100 * one['seen']['ece']['value']:.1f} %",
        )
    axis.set(xlabel="sure, %", ylabel="right, %")
    axis.set_title(f"reliability (bins of {LEAST} tokens or more)")


def _draw_passes(axis: Any, ways: dict[str, Any]) -> None:
    for way in ("on", "off"):
        passes = ways.get(way, {"passes": []})["passes"]
        for name, style, label in (("confidence", "s--", "sure"), ("right", "o-", "right")):
            axis.errorbar(
                [one["number"] for one in passes],
                [100 * one["seen"][name]["value"] for one in passes],
                yerr=[100 * (one["seen"][name]["error"] or 0) for one in passes],
                fmt=style,
                color=COLOURS[way],
                capsize=3,
                label=f"{label}, {TITLES[way]}",
            )
    axis.set(xlabel="pass over the same masks", ylabel="% of masks (bars: standard error)")
    axis.set_title("sure and right, nothing committed")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_wrong(axis: Any, ways: dict[str, Any]) -> None:
    for way, one in ways.items():
        parts = [part for part in one["decoding"]["by_step"] if part["committed"] is not None]
        step = [part["first"] for part in parts]
        wrong = [_wrong(part["committed"]["right"]) for part in parts]
        value = [100 * mean["value"] for mean in wrong]
        error = [100 * (mean["error"] or 0) for mean in wrong]
        axis.plot(step, value, color=COLOURS[way], marker=".", label=TITLES[way])
        low, high = ([v + sign * e for v, e in zip(value, error, strict=True)] for sign in (-1, 1))
        axis.fill_between(step, low, high, color=COLOURS[way], alpha=0.2, linewidth=0)
    axis.set(xlabel="step of decoding", ylabel="wrong commits, % (band: standard error)")
    axis.set_title("what decoding commits wrongly")
    axis.set_ylim(bottom=0)
