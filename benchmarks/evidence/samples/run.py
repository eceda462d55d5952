"""Are samples of a model with feedback better, or only sharper? See README.md.

    python benchmarks/evidence/samples/run.py OUT --code CODE --scorer SCORER [--work WORK]

What is done is not done again: the same command goes on after a kill. OUT gets result.json (every
replicate and sample), table.txt, a plot and logs; models and scores lie in --work.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # what all experiments share

import numpy as np
from common import HERE, Estimate, Task, draw, estimate, minus, run_chains, seconds_of, training
from equal_entropy import point_of
from rich.table import Table
from score_text import STEPS
from text import over_seeds, scoring, scoring_parser

from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.training.sweep import parse_seeds

BAR, AT_LEAST_BELOW, OF = 2.5, 5, 6
TEMPERATURES = (0.85, 0.9, 0.95, 1.0)
OFFSET = ("soft_mask.scale=0.6", "soft_mask.offset=-6.0", "soft_mask.steepness=0.7")


@dataclass(frozen=True)
class Arm:
    """A way of continuing a replicate's model; `replicates`: how many of them, from the first.

    With `feedback`, a preset's name, the reference's models are decoded with that.
    """

    name: str
    settings: tuple[str, ...]
    is_soft: bool = True
    temperatures: tuple[float, ...] = (1.0,)
    replicates: int | None = None
    feedback: str | None = None


PLAIN = Arm("plain", ("train.steps=260",), is_soft=False, temperatures=TEMPERATURES)
PRIMARY = Arm("wide", OFFSET)
ARMS = (
    PLAIN,
    PRIMARY,
    Arm("published", (), replicates=3),
    Arm("spherical", (*OFFSET, "soft_mask.mixture=spherical"), replicates=3),
    Arm("carried", (*OFFSET, "train.trajectory={stages: 8}", "train.steps=250"), replicates=3),
    Arm("spherical, untrained", (), replicates=6, feedback="spherical"),
    Arm("rcd, untrained", (), replicates=6, feedback="rcd"),
)


def at_entropy(entropy: float, points: list[tuple[float, float]]) -> float:
    """Nats on the line between the two points beside an entropy, or on through the last two.

    `points`: at least two of (entropy, nats).
    """
    ordered = sorted(points)
    place = int(np.searchsorted([e for e, _ in ordered], entropy))
    (e0, n0), (e1, n1) = ordered[(i := min(max(place, 1), len(ordered) - 1)) - 1], ordered[i]
    return n0 + (n1 - n0) * (entropy - e0) / (e1 - e0)


class Samples:
    """What was found: entropy, nats and repeated 4-grams of every arm, replicate and forwards."""

    def __init__(self, scores: dict[tuple[str, int, float], dict[str, Any]]) -> None:
        self.scores = scores
        self.of = {
            (*key, cell["fewer"]): point_of(cell)
            for key, found in scores.items()
            for cell in found["cells"]
        }

    def seeds(self, arm: Arm) -> list[int]:
        return sorted({seed for name, seed, _ in self.scores if name == arm.name})

    def reference(self, seed: int, fewer: str) -> list[tuple[float, float]]:
        """(entropy, nats) of plain samples at each temperature."""
        return [self.of[PLAIN.name, seed, t, fewer][:2] for t in PLAIN.temperatures]

    def below(self, arm: Arm, fewer: str) -> list[float]:
        """Nats minus the reference's at equal entropy, by replicate."""
        found = []
        for seed in self.seeds(arm):
            entropy, nats, _ = self.of[arm.name, seed, 1.0, fewer]
            found.append(nats - at_entropy(entropy, self.reference(seed, fewer)))
        return found

    def values(self, arm: Arm) -> list[float]:
        """A replicate's value: the mean over the numbers of forwards."""
        rows = zip(*(self.below(arm, fewer) for fewer in STEPS), strict=True)
        return [statistics.fmean(row) for row in rows]

    def outside(self, arm: Arm) -> int:
        """How many points lie beyond the reference's entropies."""
        count = 0
        for seed in self.seeds(arm):
            for fewer in STEPS:
                known = [entropy for entropy, _ in self.reference(seed, fewer)]
                count += not min(known) <= self.of[arm.name, seed, 1.0, fewer][0] <= max(known)
        return count

    def verdict(self) -> dict[str, Any]:
        """The rule of README.md, computed whichever way it falls."""
        values = self.values(PRIMARY)
        found = over_seeds(values)
        means = {fewer: over_seeds(self.below(PRIMARY, fewer)) for fewer in STEPS}
        conditions = {
            f"at least {BAR} standard errors below": found.mean <= -BAR * found.error,
            f"at least {AT_LEAST_BELOW} of {OF} below": sum(v < 0 for v in values) >= AT_LEAST_BELOW
            and len(values) >= OF,
            "nowhere above by more than one": all(m.mean <= m.error for m in means.values()),
        }
        return {
            "value": asdict(found),
            "standard_errors": -found.mean / found.error,
            "replicates": values,
            "conditions": conditions,
            "success": all(conditions.values()),
        }

    def minus_primary(self, arm: Arm) -> Estimate:
        """An arm minus the primary one on the arm's replicates."""
        own = dict(zip(self.seeds(arm), self.values(arm), strict=True))
        first = dict(zip(self.seeds(PRIMARY), self.values(PRIMARY), strict=True))
        return over_seeds([own[seed] - first[seed] for seed in own])

    def table(self) -> Table:
        table = light_table("nats a token minus plain samples of like entropy (s.e.), < is better")
        for column in ("continued", *STEPS, "mean", "minus wide", "replicates", "outside"):
            table.add_column(column, justify="left" if column == "continued" else "right")
        for arm in ARMS[1:]:
            if not self.seeds(arm):
                continue
            cells = [over_seeds(self.below(arm, fewer)) for fewer in STEPS]
            cells.append(over_seeds(self.values(arm)))
            shown = [f"{found.mean:+.3f} ({found.error:.3f})" for found in cells]
            pair = "" if arm == PRIMARY else self.minus_primary(arm)
            versus = pair and f"{pair.mean:+.3f} ({pair.error:.3f})"
            each = " ".join(f"{v:+.2f}" for v in self.values(arm))
            table.add_row(arm.name, *shown, versus, each, str(self.outside(arm)))
        return table

    def points_table(self) -> Table:
        table = light_table("samples: perplexity / entropy of the words / repeated 4-grams, %")
        for column in ("continued", "temperature", *STEPS):
            table.add_column(column)
        for arm in ARMS:
            for temperature in arm.temperatures if self.seeds(arm) else ():
                cells = []
                for fewer in STEPS:
                    points = [self.of[arm.name, s, temperature, fewer] for s in self.seeds(arm)]
                    entropy, nats, repeated = (
                        statistics.fmean(part) for part in zip(*points, strict=True)
                    )
                    cells.append(f"{math.exp(nats):.0f} / {entropy:.2f} / {100 * repeated:.1f}")
                table.add_row(arm.name, str(temperature), *cells)
        return table

    def held_out_table(self) -> Table:
        """Nats a held-out token, minus the reference on the same masks."""
        table = light_table("held-out nats a token, minus plain (s.e.)")
        for column in ("continued", "feedback", "nats", "minus plain", "lambda"):
            table.add_column(column)
        for arm in ARMS:
            seeds = self.seeds(arm)
            every = [self.scores[arm.name, seed, 1.0] for seed in seeds]
            plain = [self.scores[PLAIN.name, seed, 1.0]["nats"]["plain"] for seed in seeds]
            for way in every[0]["nats"] if every else ():
                own = [found["nats"][way] for found in every]
                gap = estimate(minus(own, plain))
                mixed = [x for found in every for x in found["lambda"].get(way, [])]
                table.add_row(
                    arm.name,
                    "" if not arm.is_soft else {"plain": "off"}.get(way, way),
                    f"{estimate(own).mean:.3f}",
                    "" if arm == PLAIN else f"{gap.mean:+.3f} ({gap.error:.3f})",
                    f"{statistics.fmean(mixed):.3f}" if mixed else "",
                )
        return table

    def panel(self, fewer: str, axis: Any) -> None:
        """Each replicate's plain line, and the soft points."""
        for number, arm in enumerate(ARMS):
            for seed in self.seeds(arm):
                rows = sorted(self.of[arm.name, seed, t, fewer][:2] for t in arm.temperatures)
                axis.plot(
                    [entropy for entropy, _ in rows],
                    [nats for _, nats in rows],
                    "o-",
                    color=f"C{number}",
                    label=arm.name if seed == self.seeds(arm)[0] else None,
                    markersize=4,
                    linewidth=0.8,
                    alpha=0.8,
                )
        axis.set_xlabel("entropy of the words, nats")


def main() -> None:
    parser = scoring_parser(__doc__)
    parser.add_argument("--seeds", default="11-16", help="a replicate each")
    parser.add_argument("--work", type=Path, help="of models and scores (default: OUT/work)")
    names = [arm.name for arm in ARMS[2:]]
    parser.add_argument(
        "--arm", action="append", choices=[*names, "none"], help="beside the rule's two (all)"
    )
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--more", action="append", default=[], metavar="KEY=VALUE", help="of all")
    parser.add_argument("--workers", type=int, default=2, help="replicates side by side")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    claim(args.out)
    work, seeds = args.work or args.out / "work", parse_seeds(args.seeds)
    corpus = (f"corpus.text=[{args.code / 'train.txt'}]", *args.more)

    def of(arm: Arm, seed: int) -> tuple[list[Task], dict[tuple[str, int, float], Path]]:
        """The tasks of an arm in a replicate, and the scores that they leave."""
        folder = work / f"{PLAIN.name if arm.feedback else arm.name}-seed{seed}"
        settings = (f"model.path={work / f'base-seed{seed}' / 'model'}", *arm.settings, *corpus)
        recipe = HERE / "code-more.yaml"
        tasks, scores = [], {}
        if arm.feedback is None:
            tasks.append(training(recipe, folder, seed, settings, arm.is_soft, args.device))
        for temperature in arm.temperatures:
            how = f"{arm.feedback}-{temperature}" if arm.feedback else f"{temperature}"
            product = folder / f"scores-{how}.json"
            command = scoring(args, folder / "model", product)
            command += ["--samples", str(args.samples), "--lines", "1", "--modes", "own"]
            command += ["--windows", str(args.windows if temperature == 1 else 1)]
            command += ["--temperature", str(temperature), "--device", args.device]
            command += ["--feedback", arm.feedback] if arm.feedback else []
            tasks.append(Task((sys.executable, *command), product))
            scores[arm.name, seed, temperature] = product
        return tasks, scores

    arms = [arm for arm in ARMS if arm in ARMS[:2] or arm.name in (args.arm or names)]
    products, chains = {}, {}
    for seed in seeds:
        base = training(
            HERE / "code-base.yaml", work / f"base-seed{seed}", seed, corpus, True, args.device
        )
        for arm in arms:
            if arm.replicates is None or seed in seeds[: arm.replicates]:
                tasks, scores = of(arm, seed)
                first = [base] if arm == PLAIN else []
                chains.setdefault((arm.replicates is not None, seed), []).extend([*first, *tasks])
                products |= scores
    # What the rule is about comes first; the others begin with its models.
    for later in (False, True):
        run_chains([chains[key] for key in sorted(chains) if key[0] == later], args.workers)
    samples = Samples({key: json.loads(file.read_text()) for key, file in products.items()})
    for arm in ARMS:
        for seed in () if arm.feedback else samples.seeds(arm):
            log = work / f"{arm.name}-seed{seed}" / "log.jsonl"
            shutil.copy(log, args.out / f"{arm.name}-seed{seed}.log.jsonl")
    panels = {f"{fewer}: nats a token": partial(samples.panel, fewer) for fewer in STEPS}
    draw(panels, args.out / "entropy.png", "")
    result = {
        "verdict": samples.verdict(),
        "arms": [asdict(arm) for arm in arms],
        "seconds_an_update": {
            arm.name: [seconds_of(work / f"{arm.name}-seed{s}") for s in samples.seeds(arm)]
            for arm in ARMS
            if arm.feedback is None
        },
        "nats_minus_plain": {
            arm.name: {fewer: samples.below(arm, fewer) for fewer in STEPS}
            for arm in ARMS[1:]
            if samples.seeds(arm)
        },
        "raw": [
            {"arm": name, "seed": seed, "temperature": temperature, **found}
            for (name, seed, temperature), found in samples.scores.items()
        ],
    }
    tables = [samples.table(), samples.points_table(), samples.held_out_table()]
    write(args.out, ["python", *sys.argv], result, tables)
    print(json.dumps(result["verdict"], indent=1))


if __name__ == "__main__":
    main()
