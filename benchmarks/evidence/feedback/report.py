"""What the experiment found: verdict, tables, plots and numbers."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from arms import BARS, BUFFER, CHOICE, FEWER, ROWS_OF_PLAIN, RULE, WAYS
from common import PLAIN, Arm, cost_table, draw, estimate, minus, percent
from puzzles import Scores
from rich.table import Table
from rule import Condition, conditions, gain, in_errors, not_worse, over_forwards

from softmask.reporting.result_folder import write
from softmask.reporting.tables import light_table

ALL = ("full", "1/2", "1/4", "1/8")  # as drawn, if all are there


class Found(Scores):
    """Scores of this experiment: by arm and mode, tables of seeds x puzzles by forwards."""

    def at(self, arm: str, mode: str, fewer: str) -> list[list[float]] | None:
        """(seeds, puzzles) solved; None: not scored, or not of every seed."""
        found = self.solved(arm, mode, self.groups[0], fewer)
        return found if found is not None and len(found) == len(self.seeds) else None

    def both(self, arm: str, mode: str = "own") -> dict[str, list[list[float]]] | None:
        """By number of forwards, those of the rule; None: not scored."""
        found = {fewer: self.at(arm, mode, fewer) for fewer in FEWER}
        whole = {fewer: table for fewer, table in found.items() if table is not None}
        return whole if len(whole) == len(FEWER) else None

    def plain(self, like: Mapping[str, list[list[float]]]) -> dict[str, list[list[float]]]:
        """The reference on the same puzzles (some ways solve only the first of them)."""
        known = self.both(PLAIN)
        return {
            fewer: [row[: len(table[0])] for row in known[fewer]] for fewer, table in like.items()
        }

    def modes(self) -> Iterator[tuple[Arm, str]]:
        for arm in self.arms:
            cells = self.raw[arm.name][0]["cells"]
            for mode in dict.fromkeys(cell["mode"] for cell in cells):
                if self.both(arm.name, mode) is not None:
                    yield arm, mode

    def conditions(self, arm: Arm, margin: float | None) -> list[Condition] | None:
        """The rule for this arm; None: something that it needs was not scored."""
        if margin is not None:
            return not_worse(self.both(arm.name), self.both(PLAIN), margin)
        controls = [] if arm.name in ROWS_OF_PLAIN else [BUFFER]
        if arm.name == BUFFER or not self.raw.keys() >= {*controls}:
            return None
        parts = [self.both(arm.name), self.both(arm.name, "off"), *map(self.both, controls)]
        if None in parts:
            return None
        own, off, control = parts if controls else [*parts, None]
        return conditions(own, off, self.both(PLAIN), control, BARS.get(arm.name, BARS_OF_ALL))

    def wrong(self, arm: str, fewer: str) -> list[float]:
        """Share of wrong tokens among those committed, by step, over seeds and puzzles."""
        cells = self.cells(arm, "own", self.groups[0], fewer)
        steps = zip(
            zip(*(cell["committed"] for cell in cells), strict=True),
            zip(*(cell["wrong"] for cell in cells), strict=True),
            strict=True,
        )
        return [sum(wrong) / max(1, sum(committed)) for committed, wrong in steps]


BARS_OF_ALL = min(BARS.values())  # shown of arms that cannot succeed


def report(experiment: Any, out: Path) -> None:
    """Writes the result folder."""
    runs, suffix = experiment.runs, experiment.suffix
    names = [f"{name}{suffix}" for name in dict.fromkeys(g.name for g in (RULE, *WAYS))]
    whole = [
        arm
        for arm in runs.arms
        if all((runs.folder(arm, s) / f"{names[0]}.json").is_file() for s in runs.seeds)
    ]
    missing = [arm.name for arm in runs.arms if arm not in whole]
    if PLAIN in missing:
        raise ValueError(
            f"{PLAIN} is not scored yet, and all else is compared with it: --stage test"
        )
    runs.arms = tuple(whole)
    found = Found(runs, names)
    margin, choice = experiment.problem.margin, read(experiment.choice)
    verdicts = {arm.name: found.conditions(arm, margin) for arm in whole if arm.name != PLAIN}
    said = sentences(verdicts, missing, margin)
    is_in_place = bool(found.raw[PLAIN][0]["cells"][0]["committed"])
    print(*said, sep="\n")
    tables = [
        *said,
        "",
        solved_table(found),
        seeds_table(found),
        rule_table(found, verdicts),
        control_table(found),
        *([wrong_table(found)] if is_in_place else []),
        *([] if choice is None else [choice_table(choice)]),
        cost_table(runs, "equal quiet seconds but for 1"),
    ]
    draw(
        {
            "by forwards": partial(accuracy_panel, runs, found, "forwards"),
            "by seconds of decoding": partial(accuracy_panel, runs, found, "seconds"),
        },
        out / "accuracy.png",
        "solved, %",
    )
    if is_in_place:
        panels = {fewer: partial(wrong_panel, runs, found, fewer) for fewer in FEWER}
        draw(panels, out / "wrong_commits.png", "wrong, % of tokens committed")
    result = {
        **runs.describe(out),
        "timing": read(experiment.timing),
        CHOICE: choice,
        "not_run": missing,
        "verdict": said,
        "rule": {
            name: [
                asdict(one) | {"errors": in_errors(one.found), "holds": one.holds} for one in rule
            ]
            for name, rule in verdicts.items()
            if rule is not None
        },
        "numbers": numbers(found),
        "raw": found.raw,
    }
    write(out, ["python", *sys.argv], result, tables)


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def sentences(
    verdicts: Mapping[str, list[Condition] | None],
    missing: list[str],
    margin: float | None = None,
) -> list[str]:
    """The verdict in words, arm by arm that was asked for and can succeed.

    With a `margin` arms need not win: which of them lose surely less than that.
    """
    said = []
    if margin is not None:
        for name, rule in verdicts.items():
            surely = all(one.holds for one in rule or ())
            which = "surely less" if surely else "NOT surely less"
            said.append(f"{name}: loses {which} than {100 * margin:g} points")
    can_succeed = () if margin is not None else BARS
    for name in (name for name in can_succeed if name in {*verdicts, *missing}):
        rule = verdicts.get(name)
        if rule is None:
            said.append(f"{name}: no verdict, as not all that it needs was run")
        elif all(one.holds for one in rule):
            said.append(f"{name}: SUCCEEDS, all {len(rule)} conditions hold")
        else:
            failed = "; ".join(one.what for one in rule if not one.holds)
            said.append(f"{name}: does NOT succeed, it misses: {failed}")
    return said + ([f"not run: {', '.join(missing)}"] if missing else [])


def solved_table(found: Found) -> Table:
    """Solved by number of forwards, and below it the paired difference to the reference."""
    (puzzles,) = {len(row) for row in found.at(PLAIN, "own", "full")}
    table = light_table(
        f"{found.groups[0]}: {puzzles} puzzles, {len(found.seeds)} seeds; solved, % (standard "
        "error), and minus 2, paired; shuffled: the first of them"
    )
    table.add_column("continued, decoded")
    for fewer in FEWER:
        forwards = found.forwards(PLAIN, "own", found.groups[0], fewer)
        table.add_column(f"{forwards:.0f} forwards", justify="right")
    table.add_column("mean of both", justify="right")
    table.add_column("forwards", justify="right")
    for arm, mode in found.modes():
        own = found.both(arm.name, mode)
        plain = found.plain(own)
        is_reference = (arm.name, mode) == (PLAIN, "own")
        cells = [percent(estimate(own[fewer])) for fewer in FEWER]
        cells.append(percent(estimate(over_forwards(own))))
        if not is_reference:
            gaps = [estimate(minus(own[fewer], plain[fewer])) for fewer in FEWER]
            gaps.append(gain(own, plain))
            cells = [f"{c}\n{percent(g, '+')}" for c, g in zip(cells, gaps, strict=True)]
        counted = [found.forwards(arm.name, mode, found.groups[0], fewer) for fewer in FEWER]
        title = arm.title if mode == "own" else f"    {mode}"
        table.add_row(title, *cells, " / ".join(f"{c:.1f}" for c in counted))
    return table


def seeds_table(found: Found) -> Table:
    """Every seed by itself."""
    table = light_table("by seed: solved, %, mean of both numbers of forwards (minus 2, same seed)")
    table.add_column("continued, decoded")
    for seed in found.seeds:
        table.add_column(f"seed {seed}", justify="right")
    for arm, mode in found.modes():
        own = found.both(arm.name, mode)
        means = [100 * statistics.fmean(row) for row in over_forwards(own)]
        plain = [100 * statistics.fmean(row) for row in over_forwards(found.plain(own))]
        cells = [f"{a:.1f} ({a - b:+.1f})" for a, b in zip(means, plain, strict=True)]
        table.add_row(arm.title if mode == "own" else f"    {mode}", *cells)
    return table


def rule_table(found: Found, verdicts: Mapping[str, list[Condition] | None]) -> Table:
    """The rule of success, line by line."""
    table = light_table(
        "the rule of success: points (standard error); arms without a verdict cannot succeed"
    )
    for name in ("continued", "condition"):
        table.add_column(name)
    for name in ("points", "in errors", "bar", "holds"):
        table.add_column(name, justify="right")
    for arm in found.arms:
        for one in verdicts.get(arm.name) or ():
            errors, holds = f"{in_errors(one.found):+.2f}", "yes" if one.holds else "no"
            table.add_row(
                arm.title, one.what, percent(one.found, "+"), errors, f"{one.bar:g}", holds
            )
    return table


def control_table(found: Found) -> Table:
    """Every arm against the one that differs in one thing."""
    table = light_table("minus the control, paired, mean of both: points (standard error)")
    for name in ("continued", "control"):
        table.add_column(name)
    for name in ("points", "in errors"):
        table.add_column(name, justify="right")
    titles = {arm.name: arm.title for arm in found.arms}
    for arm in found.arms:
        if arm.needs and arm.needs[-1] in titles:
            gap = gain(found.both(arm.name), found.both(arm.needs[-1]))
            row = (arm.title, titles[arm.needs[-1]], percent(gap, "+"), f"{in_errors(gap):+.2f}")
            table.add_row(*row)
    return table


def wrong_table(found: Found) -> Table:
    """Wrong commits over the course of decoding."""
    table = light_table("wrong tokens, % of those committed, by quarter of the steps, own scale")
    table.add_column("continued")
    for fewer in FEWER:
        table.add_column(fewer, justify="right")
    for arm in found.arms:
        cells = []
        for fewer in FEWER:
            shares = found.wrong(arm.name, fewer)
            cut = [shares[i * len(shares) // 4 : (i + 1) * len(shares) // 4] for i in range(4)]
            cells.append(" ".join(f"{100 * statistics.fmean(part or [0.0]):.1f}" for part in cut))
        table.add_row(arm.title, *cells)
    return table


def choice_table(choice: Mapping[str, Any]) -> Table:
    """What the way of decoding was chosen by."""
    table = light_table("the primary arm on the puzzles for choices: solved, %, mean of both")
    table.add_column("decoded")
    table.add_column("solved", justify="right")
    for mode, solved in choice["solved"].items():
        table.add_row(
            mode + (" (chosen)" if mode == choice["chosen"] else ""), f"{100 * solved:.1f}"
        )
    return table


def accuracy_panel(runs: Any, found: Found, what: str, axis: Any) -> None:
    """Solved against counted forwards or measured seconds, with bands of a standard error."""
    group = found.groups[0]
    for arm in found.arms:
        points = []
        for fewer in ALL:
            cells = found.cells(arm.name, "own", group, fewer)
            if cells is None or len(cells) < len(found.seeds):
                continue
            count = len(cells[0]["solved"])
            each = [c["forwards"] if what == "forwards" else c["seconds"] / count for c in cells]
            known = found.accuracy(arm.name, "own", group, fewer)
            points.append((statistics.fmean(each), 100 * known.mean, 100 * known.error))
        at, mean, error = zip(*points, strict=True)
        colour = runs.colours[arm.name]
        axis.plot(at, mean, "o-", color=colour, label=arm.title, markersize=3, linewidth=1)
        low = [m - e for m, e in zip(mean, error, strict=True)]
        high = [m + e for m, e in zip(mean, error, strict=True)]
        axis.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlabel(f"{what} a puzzle" + (", 64 side by side" if what == "seconds" else ""))
    if what == "forwards":
        axis.set_xscale("log")
        axis.set_xticks(at, [f"{x:.0f}" for x in at])  # of the last arm; all are alike
        axis.minorticks_off()


def wrong_panel(runs: Any, found: Found, fewer: str, axis: Any) -> None:
    for arm in found.arms:
        shares = [100 * share for share in found.wrong(arm.name, fewer)]
        steps = range(1, len(shares) + 1)
        axis.plot(steps, shares, color=runs.colours[arm.name], label=arm.title, linewidth=1)
    axis.set_xlabel("step")


def numbers(found: Found) -> list[dict[str, Any]]:
    """All ways of all arms, with every seed."""
    rows = []
    for arm, mode in found.modes():
        own = found.both(arm.name, mode)
        plain = found.plain(own)
        rows.append(
            {
                "arm": arm.name,
                "mode": mode,
                "puzzles": len(own[FEWER[0]][0]),
                "solved": {fewer: asdict(estimate(own[fewer])) for fewer in FEWER},
                "minus_plain": {
                    fewer: asdict(estimate(minus(own[fewer], plain[fewer]))) for fewer in FEWER
                },
                "mean_minus_plain": asdict(gain(own, plain)),
                "by_seed": {
                    fewer: [statistics.fmean(row) for row in own[fewer]] for fewer in FEWER
                },
                "forwards": {
                    fewer: found.forwards(arm.name, mode, found.groups[0], fewer) for fewer in FEWER
                },
            }
        )
    return rows
