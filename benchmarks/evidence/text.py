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
    COLOURS,
    HERE,
    PLAIN,
    REFERENCE,
    Arm,
    Estimate,
    Runs,
    add_run_options,
    chosen_arms,
    cost_table,
    draw,
    estimate,
    minus,
    percent,
)
from rich.table import Table
from score_text import MODES, STEPS, chosen_modes

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

NAMES = f"{PLAIN},soft-1,{REFERENCE}"
COUNTS = ("windows", "samples", "lines", "problems")


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
            if self.cells(arm.name, mode, "full")
        ]

    def nats(self, arm: str, way: str) -> list[list[float]]:
        return [run["nats"][way] for run in self.raw[arm]]

    def cells(self, arm: str, mode: str, fewer: str) -> list[dict[str, Any]]:
        """One for each seed."""
        wanted = (mode, fewer)
        cells = [cell for run in self.raw[arm] for cell in run["cells"]]
        return [cell for cell in cells if (cell["mode"], cell["fewer"]) == wanted]

    def right(self, arm: str, mode: str, fewer: str, what: str = "filled") -> list[list[float]]:
        """Of lines ("filled") or problems ("solved"): seeds x items."""
        return [[float(c) for c in cell[what]] for cell in self.cells(arm, mode, fewer)]

    @property
    def items(self) -> list[str]:
        """What `right` knows of: problems only where they were given."""
        return [what for what in ("filled", "solved") if what in self.raw[PLAIN][0]["cells"][0]]

    def gain(self, arm: str, mode: str, fewer: str, what: str) -> Estimate:
        """Over the plain arm, paired by seed and item."""
        own, plain = self.right(arm, mode, fewer, what), self.right(PLAIN, "own", fewer, what)
        return estimate(minus(own, plain))

    def log_perplexity(self, arm: str, mode: str, fewer: str) -> Estimate:
        """Nats a token of all texts of a seed; the error is that over seeds."""
        return over_seeds([nats_of(cell) for cell in self.cells(arm, mode, fewer)])

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
        lines = len(self.right(PLAIN, "own", "full")[0])
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
                cells.append(self.accuracy(*which))
            table.add_row(title, *cells)
        return table

    def accuracy(self, arm: str, mode: str, fewer: str, what: str = "filled") -> str:
        """Right ones, and below them minus the plain arm's, paired."""
        text = percent(estimate(self.right(arm, mode, fewer, what)))
        if (arm, mode) == (PLAIN, "own"):
            return text
        return f"{text}\n{percent(self.gain(arm, mode, fewer, what), '+')}"

    def problems_table(self) -> Table:
        """GSM8K at every number of forwards."""
        problems = len(self.right(PLAIN, "own", "full", "solved")[0])
        table = light_table(f"{problems} problems of GSM8K: solved, %, and minus (a), paired")
        table.add_column("continued")
        for name in STEPS:
            forwards = [cell["solved_forwards"] for cell in self.cells(PLAIN, "own", name)]
            title = f"{name}: {statistics.fmean(forwards):.1f} forwards"
            table.add_column(title, justify="right")
        for arm, mode, title in self.ways():
            row = [self.accuracy(arm.name, mode, fewer, "solved") for fewer in STEPS]
            table.add_row(title, *row)
        return table

    def panel(self, what: str, axis: Any) -> None:
        """A measure against counted forwards."""
        for arm, mode, title in self.ways():
            if mode == "off":
                continue
            which = [(arm.name, mode, fewer) for fewer in STEPS]
            if what == "lines":
                found = [estimate(self.right(*w)) for w in which]
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
                **{
                    what: asdict(estimate(self.right(arm.name, mode, fewer, what)))
                    for what in self.items
                },
                **{
                    f"{what}_minus_plain": asdict(self.gain(arm.name, mode, fewer, what))
                    for what in self.items
                },
            }
            for arm, mode, _ in self.ways()
            for fewer in STEPS
        ]
        return {"nats": nats, "decoding": decoding}


def nats_of(cell: dict[str, Any]) -> float:
    """Nats a token of all samples of a cell, by the scorer."""
    return sum(n for n, _, _ in cell["nats"]) / sum(tokens for _, tokens, _ in cell["nats"])


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean and its error over seeds; one seed has none."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)


def number(found: Estimate, sign: str = "") -> str:
    """3.512 (0.021)"""
    return f"{found.mean:{sign}.3f} ({found.error:.3f})"


def scoring_parser(description: str | None) -> argparse.ArgumentParser:
    """With what every experiment takes that scores samples of text."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--code", type=Path, required=True, help="what code_corpus.py wrote")
    parser.add_argument("--scorer", type=Path, required=True, help="a causal language model")
    return parser


def scoring(args: argparse.Namespace, model: Path, out: Path) -> list[str]:
    """The command from a model to its scores on held-out files."""
    files = ["--text", str(args.code / "held_out.txt"), "--scorer", str(args.scorer)]
    return [str(HERE / "score_text.py"), str(model), str(out), *files]


def main() -> None:
    parser = scoring_parser(__doc__)
    add_run_options(parser, chosen_arms(NAMES))
    for name in COUNTS:
        parser.add_argument(f"--{name}", type=int, help="how many (default: that of score_text.py)")
    parser.add_argument("--modes", type=chosen_modes, help="of feedback (default: all)")
    parser.add_argument("--words", type=Path, help="train on what `words.py` wrote there, too")
    parser.add_argument("--gsm8k", type=Path, help="score these problems, too")
    args = parser.parse_args()
    claim(args.out)

    def score(_arm: Arm, model: Path, out: Path) -> list[str]:
        command = scoring(args, model, out)
        for name in COUNTS:
            value = getattr(args, name)
            command += [] if value is None else [f"--{name}", str(value)]
        command += [] if args.modes is None else ["--modes", ",".join(args.modes)]
        return command + ([] if args.gsm8k is None else ["--gsm8k", str(args.gsm8k)])

    texts = [args.code / "train.txt", *sorted(args.words.glob("*.txt") if args.words else ())]
    runs = Runs("code", args, [f"corpus.text=[{','.join(map(str, texts))}]"])
    runs.run(score)
    scores = Scores(runs)
    panels = {
        "lines filled in exactly, %": partial(scores.panel, "lines"),
        "samples: perplexity by SmolLM2-135M": partial(scores.panel, "samples"),
    }
    draw(panels, args.out / "decoding.png", "")
    result = {**runs.describe(args.out), "numbers": scores.numbers(), "raw": scores.raw}
    tables = [scores.nats_table(), scores.decoding_table()]
    tables += [scores.problems_table()] if "solved" in scores.items else []
    tables.append(cost_table(runs))
    write(args.out, ["python", *sys.argv], result, tables)


if __name__ == "__main__":
    main()
