"""Does trained feedback beat plain decoding at equal seconds and equal forwards? See README.md.

    python benchmarks/evidence/feedback/run.py OUT [--stage time|train|test|choose|ways|report]

Without --stage all of them, in this order. What is done is not done again: the same command goes
on after a kill. OUT gets result.json (every seed, every puzzle), table.txt, plots and logs; runs,
models, puzzles and timing.json go to --work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # what all experiments share

from arms import (
    ARMS,
    CARRY,
    CHOICE,
    CHOICES,
    CHOSEN,
    KNOWN,
    MORE,
    PROBLEMS,
    RULE,
    SECOND,
    TEST,
    TWO_PASSES,
    UPDATES_OF,
    WAYS,
    Group,
    suffix_of,
)
from common import (
    HERE,
    PLAIN,
    Arm,
    Runs,
    Task,
    add_run_options,
    run_chains,
    seconds_of,
)
from puzzles import write_lines

from softmask.files import write_atomically
from softmask.reporting.result_folder import claim

STAGES = ("time", "train", "test", "choose", "ways", "report")
ROUNDS = 3
# Three lines of the log, two stretches of six updates.
TIMED = ("train.steps=18", "train.log_every=6", "train.eval_batches=1")


class Feedback:
    """The experiment: its runs, its puzzles, and what each stage makes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.problem, self.dtype = PROBLEMS[args.task], args.dtype
        more = (*MORE, f"train.precision={self.dtype}", *self.problem.settings)
        self.runs = Runs(self.problem.recipe, args, more, KNOWN)
        self.work, self.set, self.share = self.runs.work, args.puzzles, args.share
        self.seconds = args.seconds or self.problem.seconds
        self.suffix = suffix_of(self.set)

    # Equal seconds.

    @property
    def timing(self) -> Path:
        return self.work / "timing.json"

    def rounds(self) -> list[dict[str, Any]]:
        return json.loads(self.timing.read_text())["rounds"] if self.timing.is_file() else []

    def time(self) -> None:
        """Rounds of a few updates of every arm, in turns, until each is in three of them."""
        self.runs.make_base()
        rounds = self.rounds()
        while True:
            timed = [name for done in rounds for name in done["seconds"]]
            missing = [
                arm
                for arm in self.runs.arms
                if arm.name not in UPDATES_OF and timed.count(arm.name) < ROUNDS
            ]
            if not missing:
                break
            number = len(rounds) + 1
            arms = [self.runs.of(PLAIN), *(arm for arm in missing if arm.name != PLAIN)]
            folders = {arm.name: self.work / "timing" / f"{number}-{arm.name}" for arm in arms}
            load = [os.getloadavg()[0]]
            for arm in arms:
                always = ("train.soft_probability=1.0",) if arm.name in TWO_PASSES else ()
                task = self.runs.trained(arm, number, (*TIMED, *always), folders[arm.name])
                run_chains([[task]], 1)
                load.append(os.getloadavg()[0])
            seconds = {name: seconds_of(folder) for name, folder in folders.items()}
            for name in TWO_PASSES.keys() & seconds.keys():
                more = seconds[name] - seconds[PLAIN]
                seconds[name] = seconds[PLAIN] + TWO_PASSES[name] * more
            rounds.append({"seconds": seconds, "load": load})
            found = {"rounds": rounds, "seconds": seconds_by_arm(rounds)}
            write_atomically(self.timing, json.dumps(found, indent=1) + "\n")

    def updates(self) -> dict[str, int]:
        """Of every arm that was timed: as many as fit into the seconds.

        The reference has at least as many as the primary arm, whatever the clock says.
        """
        each = seconds_by_arm(self.rounds())
        updates = {name: max(1, round(self.seconds / s)) for name, s in each.items()}
        updates[PLAIN] = max(updates[PLAIN], updates.get(CARRY, 0))
        return updates | {name: updates[of] for name, of in UPDATES_OF.items() if of in updates}

    def train(self) -> None:
        self.runs.make_base()
        updates = self.updates()
        tasks = [
            self.runs.trained(arm, seed, [f"train.steps={updates[arm.name]}"])
            for seed in self.runs.seeds
            for arm in self.runs.arms
        ]
        run_chains([[task] for task in tasks], self.runs.workers)

    # Puzzles, and what is solved of them.

    def puzzles(self, name: str) -> Path:
        """The folder of these puzzles; made where it is missing."""
        folder = self.work / "puzzles" / name
        file = folder / f"{self.problem.file}.jsonl"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            count = max(4, round(self.share * self.problem.sizes[name]))
            write_lines(file, islice(self.problem.puzzles(f"feedback/{name}"), count))
        return folder

    def scoring(
        self,
        arm: Arm,
        seed: int,
        group: Group,
        puzzles: str,
        modes: Sequence[str],
    ) -> Task:
        """The scores of one model in these ways."""
        folder = self.puzzles(puzzles)
        name = group.name if puzzles == CHOICE else f"{group.name}{self.suffix}"
        count = len((folder / f"{self.problem.file}.jsonl").read_text().splitlines())

        def score(_arm: Arm, model: Path, out: Path) -> list[str]:
            words = [str(HERE / "score_puzzles.py"), str(model), str(out), "--data", str(folder)]
            words += ["--modes", ",".join(modes), "--fewer", ",".join(group.fewer)]
            words += ["--dtype", self.dtype]
            # An error over puzzles needs two of them.
            return [*words, "--first", str(max(2, round(group.share * count)))]

        return self.runs.scored(arm, seed, name, score)

    def choose(self) -> None:
        """All ways of decoding of the primary arm on the puzzles for choices."""
        if CARRY not in [arm.name for arm in self.runs.arms] or self.set != TEST:
            return
        arm = self.runs.of(CARRY)
        group = Group(CHOICE, CHOICES)
        tasks = [self.scoring(arm, s, group, CHOICE, CHOICES) for s in self.runs.seeds]
        run_chains([[task] for task in tasks], self.runs.workers)
        found = [json.loads(task.product.read_text())["cells"] for task in tasks]
        solved = {
            mode: statistics.fmean(
                int(one)
                for cells in found
                for cell in cells
                if cell["mode"] == mode
                for one in cell["solved"]
            )
            for mode in CHOICES
        }
        best = max(CHOICES, key=lambda mode: solved[mode])  # of equal ones the first
        chosen = {"chosen": best, "solved": solved, "seeds": list(self.runs.seeds)}
        write_atomically(self.choice, json.dumps(chosen, indent=1) + "\n")

    @property
    def choice(self) -> Path:
        return self.work / "choice.json"

    def ways(self) -> None:
        """The further ways of decoding, as far as they have been chosen."""
        chosen = None
        if self.choice.is_file():
            chosen = json.loads(self.choice.read_text())["chosen"]
        # `half` and `own` have scores of their own.
        is_new = chosen not in (None, "own", "half")
        groups = [
            replace(group, modes=(chosen,)) if group.name == CHOSEN else group
            for group in WAYS
            if group.name != CHOSEN or is_new
        ]
        self.score(groups)

    def test(self) -> None:
        """At the learned scale and with the feedback off: what the rule of success is about."""
        self.score([RULE])

    def score(self, groups: Sequence[Group]) -> None:
        """Every model of these groups, in their order."""
        tasks = []
        for group in groups:
            names = group.arms or tuple(arm.name for arm in self.runs.arms)
            arms = [arm for arm in self.runs.arms if arm.name in names]
            for seed in self.runs.seeds:
                for arm in arms:
                    modes = group.modes if arm.is_soft else ("own",)
                    tasks.append(self.scoring(arm, seed, group, self.set, modes))
        run_chains([[task] for task in tasks], self.runs.workers)


def seconds_by_arm(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of an update: the reference's median over its first rounds, times an arm's median
    ratio to the reference of the same round."""
    each = [done["seconds"] for done in rounds]
    reference = statistics.median(seconds[PLAIN] for seconds in each[:ROUNDS])
    names = dict.fromkeys(name for seconds in each for name in seconds)
    ratios = {
        name: [seconds[name] / seconds[PLAIN] for seconds in each if name in seconds]
        for name in names
    }
    return {name: reference * statistics.median(ratios[name]) for name in names}


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("out", type=Path)
    made.add_argument("--stage", choices=STAGES, help="this one alone (default: all)")
    made.add_argument("--task", choices=PROBLEMS, default="sudoku")
    made.add_argument("--puzzles", choices=[TEST, SECOND], default=TEST, help="that are solved")
    made.add_argument("--seconds", type=float, help="of training, each arm (default: by task)")
    made.add_argument("--share", type=float, default=1.0, help="of the puzzles (default 1)")
    made.add_argument("--dtype", default="bfloat16", help="of training and decoding")
    add_run_options(made, ARMS, KNOWN)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    stages = STAGES if args.stage is None else (args.stage,)
    if "report" in stages:
        claim(args.out)
    experiment = Feedback(args)
    for stage in stages:
        if stage == "report":
            from report import report

            report(experiment, args.out)
        else:
            getattr(experiment, stage)()


if __name__ == "__main__":
    main()
