"""Two ways of decoding two arms, paired by seed and puzzle, on one set of puzzles or several.

    python benchmarks/evidence/feedback/compare.py OUT --work WORK --seeds 7-9 \\
        --first carry-random:half --second plain:own --puzzles test,second

Reads the scores that run.py made. `report` shows a set alone; this also takes the sets together.
OUT gets result.json (every seed and puzzle) and table.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # what all experiments share

from arms import FEWER, RULE, SECOND, TEST, suffix_of
from common import estimate, folder_of, minus, percent
from rule import gain, in_errors, over_forwards

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.training.sweep import parse_seeds

Solved = dict[str, list[list[float]]]  # by number of forwards, seeds x puzzles


def solved(work: Path, arm_and_mode: str, seeds: Sequence[int], puzzles: str) -> Solved:
    """What an arm solved of a set, decoded in a way: ARM:MODE.

    Raises:
        ValueError: it was not scored so.
    """
    arm, _, mode = arm_and_mode.partition(":")
    name = RULE.name if mode in RULE.modes else mode
    found: Solved = {fewer: [] for fewer in FEWER}
    for seed in seeds:
        file = folder_of(work, arm, seed) / f"{name}{suffix_of(puzzles)}.json"
        scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"cells": []}
        cells = {cell["fewer"]: cell for cell in scores["cells"] if cell["mode"] == mode}
        if not found.keys() <= cells.keys():
            raise ValueError(f"{arm_and_mode} of seed {seed} was not scored on {puzzles}: run.py")
        for fewer, rows in found.items():
            rows.append([float(one) for one in cells[fewer]["solved"]])
    return found


def together(sets: Sequence[Solved]) -> Solved:
    """The puzzles of all sets, one behind the other."""
    return {
        fewer: [[*chain(*rows)] for rows in zip(*(one[fewer] for one in sets), strict=True)]
        for fewer in FEWER
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="of runs and scores")
    parser.add_argument("--seeds", default="1-3")
    parser.add_argument("--first", required=True, metavar="ARM:MODE")
    parser.add_argument("--second", required=True, metavar="ARM:MODE", help="taken from the first")
    parser.add_argument("--puzzles", default=TEST, help=f"{TEST}, {SECOND}, or both by a comma")
    args = parser.parse_args(argv)
    seeds, sets = parse_seeds(args.seeds), args.puzzles.split(",")
    found = {
        one: [solved(args.work, way, seeds, one) for way in (args.first, args.second)]
        for one in sets
    }
    if len(sets) > 1:
        found["all"] = [together(ways) for ways in zip(*found.values(), strict=True)]
    table = light_table(f"{args.first} minus {args.second}: solved, points (standard error)")
    for name in ("puzzles", "full", "1/4", "mean of both", "in errors"):
        table.add_column(name, justify="right")
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    numbers = {}
    for name, (first, second) in found.items():
        both = gain(first, second)
        gaps = minus(over_forwards(first), over_forwards(second))
        by_seed = [sum(row) / len(row) for row in gaps]
        each = {fewer: estimate(minus(first[fewer], second[fewer])) for fewer in FEWER}
        numbers[name] = {
            "puzzles": len(gaps[0]),
            "mean": asdict(both),
            "by_forwards": {fewer: asdict(one) for fewer, one in each.items()},
            "by_seed": by_seed,
            "first": {fewer: asdict(estimate(first[fewer])) for fewer in FEWER},
            "second": {fewer: asdict(estimate(second[fewer])) for fewer in FEWER},
        }
        table.add_row(
            f"{name}, {len(gaps[0])}",
            *(percent(each[fewer], "+") for fewer in FEWER),
            percent(both, "+"),
            f"{in_errors(both):+.2f}",
            *(f"{100 * one:+.1f}" for one in by_seed),
        )
    claim(args.out)
    raw = {name: found[name] for name in sets}
    result = {"ways": [args.first, args.second], "seeds": list(seeds), "numbers": numbers}
    write(args.out, ["python", *sys.argv], result | {"solved": raw}, [table])


if __name__ == "__main__":
    main()
