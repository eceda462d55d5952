"""Does soft-masking help on Python code? One shared plain model, continued, three seeds.

    python benchmarks/evidence/code_corpus.py CODE
    python benchmarks/evidence/smollm2.py SCORER
    python benchmarks/evidence/text.py OUT --code CODE --scorer SCORER

OUT gets result.json (every seed, window, sample and line), table.txt, plots and logs; runs and
models go to --work. An interrupted experiment goes on by the same command.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    ARMS,
    COLOURS,
    HERE,
    PLAIN,
    REFERENCE,
    Arm,
    Estimate,
    Runs,
    add_run_options,
    cost_table,
    draw,
    estimate,
    minus,
    percent,
)
from rich.table import Table
from score_text import STEPS

from softmask.result_folder import claim, write
from softmask.sweep import parse_seeds
from softmask.tables import light_table

NAMES = (PLAIN, "soft-1", REFERENCE)
MODES = {"own": "{}", "off": "    feedback off", "shuffled": "    feedback shuffled"}


class Scores:
    """What all runs reached."""

    def __init__(self, runs: Runs) -> None:
        self.arms, self.seeds, self.raw = runs.arms, runs.seeds, runs.raw()

    def ways(self) -> list[tuple[Arm, str, str]]:
        """(arm, mode, title) of everything that was decoded."""
        return [
            (arm, mode, title.format(arm.title))
            for arm in self.arms
            for mode, title in MODES.items()
            if arm.is_soft or mode == "own"
        ]

    def nats(self, arm: str, way: str) -> list[list[float]]:
        return [run["nats"][way] for run in self.raw[arm]]

    def cells(self, arm: str, mode: str, fewer: str) -> list[dict[str, Any]]:
        """One for each seed."""
        wanted = (mode, fewer)
        cells = [cell for run in self.raw[arm] for cell in run["cells"]]
        return [cell for cell in cells if (cell["mode"], cell["fewer"]) == wanted]

    def filled(self, arm: str, mode: str, fewer: str) -> list[list[float]]:
        return [[float(c) for c in cell["filled"]] for cell in self.cells(arm, mode, fewer)]

    def log_perplexity(self, arm: str, mode: str, fewer: str) -> Estimate:
        """Nats a token of all texts of a seed; the error is that over seeds."""
        seeds = [
            sum(n for n, _, _ in cell["nats"]) / sum(tokens for _, tokens, _ in cell["nats"])
            for cell in self.cells(arm, mode, fewer)
        ]
        return over_seeds(seeds)

    def quality(self, arm: str, mode: str, fewer: str, key: str) -> Estimate:
        return over_seeds([cell["quality"][key] for cell in self.cells(arm, mode, fewer)])

    def nats_table(self) -> Table:
        """Held-out nats a token, and minus the plain arm on the same masks."""
        windows = len(self.nats(PLAIN, "plain")[0])
        table = light_table(
            f"held-out code, {windows} windows, {len(self.seeds)} seeds: nats a token (s.e.), <="
        )
        table.add_column("continued")
        for column in ("feedback", "nats", "minus (a), paired", "lambda"):
            table.add_column(column, justify="right")
        plain = self.nats(PLAIN, "plain")
        for arm in self.arms:
            for way in self.raw[arm.name][0]["nats"]:
                own = self.nats(arm.name, way)
                gain = "" if arm.name == PLAIN else number(estimate(minus(own, plain)), "+")
                shown = {"plain": "off"}.get(way, way) if arm.is_soft else ""
                mixed = [x for run in self.raw[arm.name] for x in run["lambda"].get(way, [])]
                table.add_row(
                    arm.title,
                    shown,
                    number(estimate(own)),
                    gain,
                    f"{statistics.fmean(mixed):.3f}" if mixed else "",
                )
        return table

    def decoding_table(self) -> Table:
        """Samples and infilled lines at every number of forwards."""
        lines = len(self.filled(PLAIN, "own", "full")[0])
        samples = len(self.cells(PLAIN, "own", "full")[0]["nats"])
        table = light_table(
            f"{samples} samples of 112 tokens: perplexity by SmolLM2-135M / entropy, nats / "
            f"repeated 4-grams, %; {lines} lines infilled: exact, %, and minus (a)"
        )
        table.add_column("continued")
        for name in STEPS:
            table.add_column(f"{name}, samples", justify="right")
            table.add_column(f"{name}, lines", justify="right")
        for arm, mode, title in self.ways():
            cells = []
            for fewer in STEPS:
                which = (arm.name, mode, fewer)
                nats = self.log_perplexity(*which)
                entropy = self.quality(*which, "unigram_entropy").mean
                repeated = 100 * self.quality(*which, "repetition_4").mean
                perplexity = math.exp(nats.mean)
                cells.append(
                    f"{perplexity:.0f} ({perplexity * nats.error:.0f}) / {entropy:.2f} / "
                    f"{repeated:.1f}"
                )
                own = self.filled(*which)
                text = percent(estimate(own))
                if (arm.name, mode) != (PLAIN, "own"):
                    gain = estimate(minus(own, self.filled(PLAIN, "own", fewer)))
                    text += f"\n{percent(gain, '+')}"
                cells.append(text)
            table.add_row(title, *cells)
        return table

    def panel(self, what: str, axis: Any) -> None:
        """A measure against counted forwards."""
        for arm, mode, title in self.ways():
            if mode == "off":
                continue
            which = [(arm.name, mode, fewer) for fewer in STEPS]
            if what == "lines":
                found = [estimate(self.filled(*w)) for w in which]
                values, errors = [100 * f.mean for f in found], [100 * f.error for f in found]
                forwards = "filled_forwards"
            else:
                found = [self.log_perplexity(*w) for w in which]
                values = [math.exp(f.mean) for f in found]
                errors = [v * f.error for v, f in zip(values, found, strict=True)]
                forwards = "forwards"
            axis.errorbar(
                [statistics.fmean(c[forwards] for c in self.cells(*w)) for w in which],
                values,
                yerr=errors,
                fmt="o:" if mode == "shuffled" else "o-",
                color=COLOURS[arm.name],
                label=title.strip() if mode == "own" else f"{arm.title}, shuffled",
                markersize=4,
                capsize=2,
            )
        axis.set_xscale("log", base=2)
        axis.set_xlabel(f"forwards a {what.removesuffix('s')}")

    def numbers(self) -> dict[str, Any]:
        plain = self.nats(PLAIN, "plain")
        nats = [
            {
                "arm": arm.name,
                "feedback": way,
                "nats": asdict(estimate(self.nats(arm.name, way))),
                "minus_plain": asdict(estimate(minus(self.nats(arm.name, way), plain))),
            }
            for arm in self.arms
            for way in self.raw[arm.name][0]["nats"]
        ]
        decoding = [
            {
                "arm": arm.name,
                "mode": mode,
                "fewer": fewer,
                "nats_of_samples": asdict(self.log_perplexity(arm.name, mode, fewer)),
                "entropy": asdict(self.quality(arm.name, mode, fewer, "unigram_entropy")),
                "repetition_4": asdict(self.quality(arm.name, mode, fewer, "repetition_4")),
                "filled": asdict(estimate(self.filled(arm.name, mode, fewer))),
                "filled_minus_plain": asdict(
                    estimate(
                        minus(self.filled(arm.name, mode, fewer), self.filled(PLAIN, "own", fewer))
                    )
                ),
            }
            for arm, mode, _ in self.ways()
            for fewer in STEPS
        ]
        return {"nats": nats, "decoding": decoding}


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean and its error over seeds; one seed has none."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)


def number(found: Estimate, sign: str = "") -> str:
    """3.512 (0.021)"""
    return f"{found.mean:{sign}.3f} ({found.error:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--code", type=Path, required=True, help="what code_corpus.py wrote")
    parser.add_argument("--scorer", type=Path, required=True, help="a causal language model")
    add_run_options(parser)
    parser.add_argument("--count", type=int, help="windows, samples and lines (default: many)")
    args = parser.parse_args()
    claim(args.out)
    work = args.work or args.out / "work"

    def score(_arm: Arm, model: Path, out: Path) -> list[str]:
        files = ["--text", str(args.code / "held_out.txt"), "--scorer", str(args.scorer)]
        command = [str(HERE / "score_text.py"), str(model), str(out), *files]
        for name in ("windows", "samples", "lines"):
            command += [] if args.count is None else [f"--{name}", str(args.count)]
        return command

    more = [f"corpus.text=[{args.code / 'train.txt'}]", *args.more]
    arms = [arm for arm in ARMS if arm.name in NAMES]
    runs = Runs("code", arms, parse_seeds(args.seeds), work, more, score)
    runs.run(args.workers)
    scores = Scores(runs)
    panels = {
        "lines filled in exactly, %": partial(scores.panel, "lines"),
        "samples: perplexity by SmolLM2-135M": partial(scores.panel, "samples"),
    }
    draw(panels, args.out / "decoding.png", "")
    result = {**runs.describe(args.out), "numbers": scores.numbers(), "raw": scores.raw}
    tables = [scores.nats_table(), scores.decoding_table(), cost_table(runs)]
    write(args.out, ["python", *sys.argv], result, tables)


if __name__ == "__main__":
    main()
