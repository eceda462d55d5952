"""Are soft-masked samples better, or only sharper? Against plain ones of the same entropy.

    python benchmarks/evidence/text.py OUT --code CODE --scorer SCORER --arms plain,wide --work WORK
    python benchmarks/evidence/equal_entropy.py OUT2 --code CODE --scorer SCORER --work WORK

A lower temperature lowers the perplexity of any model's samples, and their entropy with it. Plain
models are sampled at several temperatures; a soft-masked sample is compared with what lies between
their points at its own entropy. OUT2 gets result.json, table.txt and plot; scores lie in --work.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ARMS,
    COLOURS,
    PLAIN,
    Task,
    add_arm_options,
    chosen_arms,
    draw,
    folder_of,
    run_chains,
)
from rich.table import Table
from score_text import STEPS
from text import nats_of, over_seeds, scoring, scoring_parser

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.training.sweep import parse_seeds

TITLES = {arm.name: arm.title for arm in ARMS}


class Points:
    """Entropy, nats a token by the scorer and repeated 4-grams of samples.

    `scores`: what `score_text.py` wrote, by arm, seed and temperature.
    """

    def __init__(self, scores: dict[tuple[str, int, float], dict[str, Any]]) -> None:
        self.of = {
            (*key, cell["fewer"]): point_of(cell)
            for key, found in scores.items()
            for cell in found["cells"]
        }
        self.arms = list(dict.fromkeys(arm for arm, *_ in scores))
        self.seeds = sorted({seed for _, seed, _ in scores})
        self.temperatures = sorted({temperature for *_, temperature in scores})

    def means(self, arm: str, temperature: float, fewer: str) -> list[Any]:
        """An Estimate over the seeds of each coordinate."""
        points = [self.of[arm, seed, temperature, fewer] for seed in self.seeds]
        return [over_seeds(values) for values in zip(*points, strict=True)]

    def minus_plain(self, arm: str, temperature: float, fewer: str) -> list[float] | None:
        """Nats above the plain samples of like entropy, a seed each; None outside their range."""
        found = []
        for seed in self.seeds:
            plain = sorted(self.of[PLAIN, seed, t, fewer][:2] for t in self.temperatures)
            entropy, nats, _ = self.of[arm, seed, temperature, fewer]
            entropies, between = zip(*plain, strict=True)
            if not entropies[0] <= entropy <= entropies[-1]:
                return None
            found.append(nats - float(np.interp(entropy, entropies, between)))
        return found

    def table(self) -> Table:
        table = light_table("samples: perplexity (s.e.) / entropy / repeated 4-grams, %")
        for column in ("arm", "temperature"):
            table.add_column(column)
        for fewer in STEPS:
            table.add_column(fewer, justify="right")
        for arm in self.arms:
            for temperature in self.temperatures:
                cells = []
                for fewer in STEPS:
                    entropy, nats, repeated = self.means(arm, temperature, fewer)
                    perplexity = math.exp(nats.mean)
                    text = (
                        f"{perplexity:.0f} ({perplexity * nats.error:.0f}) / {entropy.mean:.2f} / "
                        f"{100 * repeated.mean:.1f}"
                    )
                    gap = None if arm == PLAIN else self.minus_plain(arm, temperature, fewer)
                    if gap is not None:
                        found = over_seeds(gap)
                        text += f"\nat equal entropy {found.mean:+.2f} ({found.error:.2f}) nats"
                    cells.append(text)
                table.add_row(TITLES[arm], str(temperature), *cells)
        return table

    def panel(self, fewer: str, axis: Any) -> None:
        for arm in self.arms:
            rows = [self.means(arm, temperature, fewer)[:2] for temperature in self.temperatures]
            axis.errorbar(
                [entropy.mean for entropy, _ in rows],
                [math.exp(nats.mean) for _, nats in rows],
                xerr=[entropy.error for entropy, _ in rows],
                yerr=[math.exp(nats.mean) * nats.error for _, nats in rows],
                fmt="o-",
                color=COLOURS[arm],
                label=TITLES[arm],
                markersize=4,
                capsize=2,
            )
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:.0f}")
        axis.set_xlabel("entropy of the words, nats")


def point_of(cell: dict[str, Any]) -> tuple[float, float, float]:
    return cell["quality"]["unigram_entropy"], nats_of(cell), cell["quality"]["repetition_4"]


def main() -> None:
    parser = scoring_parser(__doc__)
    add_arm_options(parser, chosen_arms("plain,wide"))
    parser.add_argument("--work", type=Path, required=True, help="of text.py: its models")
    parser.add_argument("--temperatures", default="0.8,0.9,1.0")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    claim(args.out)
    temperatures = [float(word) for word in args.temperatures.split(",")]
    keys = [
        (arm.name, seed, temperature)
        for temperature in temperatures
        for arm in args.arms
        for seed in parse_seeds(args.seeds)
    ]
    products = {(a, s, t): args.work / "temperatures" / f"{a}-seed{s}-{t}.json" for a, s, t in keys}
    few = ["--windows", "1", "--lines", "1", "--samples", str(args.samples), "--modes", "own"]
    tasks = []
    for (arm, seed, temperature), product in products.items():
        command = scoring(args, folder_of(args.work, arm, seed) / "model", product)
        command += [*few, "--temperature", str(temperature), "--device", args.device]
        tasks.append([Task((sys.executable, *command), product)])
    run_chains(tasks, args.workers)
    raw = {key: json.loads(product.read_text()) for key, product in products.items()}
    points = Points(raw)
    panels = {f"{fewer}: perplexity": partial(points.panel, fewer) for fewer in STEPS}
    draw(panels, args.out / "entropy.png", "")
    result = {
        "raw": [
            {"arm": arm, "seed": seed, "temperature": temperature, "cells": found["cells"]}
            for (arm, seed, temperature), found in raw.items()
        ],
        "at_equal_entropy": [
            {"arm": arm, "temperature": t, "fewer": fewer, "nats_minus_plain": gap}
            for arm in points.arms
            if arm != PLAIN
            for t in points.temperatures
            for fewer in STEPS
            if (gap := points.minus_plain(arm, t, fewer)) is not None
        ],
    }
    write(args.out, ["python", *sys.argv], result, [points.table()])


if __name__ == "__main__":
    main()
