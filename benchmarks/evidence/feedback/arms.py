"""The arms of this experiment, its ways of decoding and its puzzles, as README.md fixes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common import PLAIN, Arm
from puzzles import held_out_sudokus

from softmask.puzzles.held_out import unevaluated
from softmask.puzzles.puzzles import Puzzle, generate_puzzles

PLAIN_UPDATES, TWO_PASS, BUFFER, CARRY, UNROLLED = (
    "plain-updates",
    "two-pass",
    "buffer",
    "carry",
    "unrolled",
)


def along(
    stages: int = 8, forwards: int = 1, weighting: str = "row", reveal: str = "confidence"
) -> tuple[str, ...]:
    """The settings of training along a trajectory."""
    trajectory = f"{{stages: {stages}, forwards: {forwards}, reveal: {reveal}}}"
    return f"train.trajectory={trajectory}", f"train.weighting={weighting}"


BY_ENTROPY = ("soft_mask.weight=entropy", "soft_mask.scale=0.9")
# Rows masked as in plain training, each for four updates.
AT_RANDOM = along(stages=4, weighting="mean", reveal="random")
# The last of `needs` is the control: the arm that differs in one thing.
ARMS = (
    Arm(PLAIN, "2 plain", is_soft=False, needs=()),
    Arm(PLAIN_UPDATES, "1 plain, updates of 3", is_soft=False, needs=(TWO_PASS, PLAIN)),
    Arm(TWO_PASS, "3 two-pass"),
    Arm(BUFFER, "4 buffer, no carry", along(), is_soft=False),
    Arm(CARRY, "5 buffer, carry", along(), needs=(PLAIN, BUFFER)),
    Arm(UNROLLED, "6 two unrolled", along(forwards=2), needs=(PLAIN, BUFFER, CARRY)),
    Arm(
        "two-pass-spherical",
        "7 two-pass, spherical",
        ("soft_mask.mixture=spherical",),
        needs=(PLAIN, TWO_PASS),
    ),
    Arm(
        "two-pass-entropy",
        "8 two-pass, by entropy",
        BY_ENTROPY,
        needs=(PLAIN, TWO_PASS),
    ),
)


def ablation(name: str, title: str, *settings: str) -> Arm:
    """The primary arm with one thing changed."""
    return Arm(f"{CARRY}-{name}", f"5, {title}", (*along(), *settings), needs=(PLAIN, CARRY))


CARRY_RANDOM, SELDOM, ORDERED = "carry-random", "two-pass-entropy-fifth", "plain-ordered"
# Run by name alone, these and the ablations.
LATER = (
    Arm(CARRY_RANDOM, "9 rows at random, carry", (*AT_RANDOM, *BY_ENTROPY)),
    Arm("buffer-random", "10 rows at random, no carry", AT_RANDOM, is_soft=False),
    Arm(SELDOM, "11 two-pass, by entropy, 0.2", (*BY_ENTROPY, "train.soft_probability=0.2")),
    Arm(ORDERED, "12 plain, half from the left", ("train.left_to_right=0.5",), is_soft=False),
)
ABLATIONS = (
    ablation("mean", "mean over masks", *along(weighting="mean")),
    ablation("4-stages", "4 stages", *along(stages=4)),
    ablation("16-stages", "16 stages", *along(stages=16)),
    ablation("always", "all rows read", "train.soft_probability=1.0"),
    ablation("k1", "k = 1", "soft_mask.k=1"),
    ablation("constant", "constant weight", "soft_mask.weight=constant", "soft_mask.scale=0.36"),
    ablation("entropy", "by entropy", *BY_ENTROPY),
    ablation("spherical", "spherical", "soft_mask.mixture=spherical"),
)
# The arms that can succeed: how many standard errors each has to lie above the reference.
BARS = {CARRY: 2.5, UNROLLED: 2.74, CARRY_RANDOM: 2.5, SELDOM: 2.74}
# Of these, without the condition on arm 4: their rows are those of plain training.
ROWS_OF_PLAIN = (CARRY_RANDOM, SELDOM)
# Two passes come by chance: few in the updates that are timed. Timed with two in each of them, this
# share of what that costs counts.
TWO_PASSES = {SELDOM: 0.2}
# Not timed: they get as many updates as another arm.
UPDATES_OF = {PLAIN_UPDATES: TWO_PASS, ORDERED: PLAIN}
KNOWN = (*ARMS, *LATER, *ABLATIONS)
# Of all runs: they are evaluated once, at their end.
MORE = ("train.eval_at_start=false", "train.eval_every=1000000")
FEWER = ("full", "1/4")  # forwards a token that the rule of success is about
# Puzzles by the name that they are seeded with.
TEST, CHOICE, SECOND = "test", "choice", "second"


def hard_sudokus(name: str) -> Iterator[Puzzle]:
    """With 30 givens."""
    return held_out_sudokus(name, 30)


def countdowns(name: str) -> Iterator[Puzzle]:
    """With four numbers, none in an evaluation file."""
    seed = random.Random(f"held out/{name}").getrandbits(60)
    return unevaluated(generate_puzzles(seed, {"countdown_4": 1.0}))


@dataclass(frozen=True)
class Problem:
    """What the models are trained for, and asked.

    `recipe` is NAME of NAME-base.yaml and NAME-more.yaml; `margin`: arms need not win, but not lose
    by so much.
    """

    recipe: str
    puzzles: Callable[[str], Iterator[Puzzle]]
    file: str
    sizes: dict[str, int]
    seconds: float  # of training, at the speed of a quiet machine
    settings: tuple[str, ...] = ()
    margin: float | None = None


PROBLEMS = {
    "sudoku": Problem(
        "sudoku", hard_sudokus, "sudoku_hard", {TEST: 240, CHOICE: 80, SECOND: 240}, 300.0
    ),
    # A trajectory knows no left to right, so no arm is masked that way.
    "countdown": Problem(
        "countdown-6m",
        countdowns,
        "countdown_4",
        {TEST: 1000, CHOICE: 200, SECOND: 1000},
        200.0,
        ("train.left_to_right=0.0",),
        margin=0.03,
    ),
}


def suffix_of(puzzles: str) -> str:
    """Of the files of scores: those of other puzzles than the first ones lie beside those."""
    return "" if puzzles == TEST else f"-{puzzles}"


CHOICES = (
    "own",
    "half",
    "entropy-1.5",
    "entropy-2",
    "tokens-1.5",
    "tokens-2",
    "both-1.5",
    "both-2",
)
CHOSEN = "chosen"
SHUFFLED = 0.25  # share of the puzzles that are solved with shuffled feedback


@dataclass(frozen=True)
class Group:
    """Scores that one process makes of one model: a file NAME.json.

    `arms`: whose; empty: of all. Modes that need feedback are left out for plain arms.
    """

    name: str
    modes: tuple[str, ...]
    arms: tuple[str, ...] = ()
    fewer: tuple[str, ...] = FEWER
    share: float = 1.0


# What the rule of success is about.
RULE = Group("own", ("own", "off"))
# Further ways, in the order of importance: what time does not reach is at the end.
WAYS = (
    Group(CHOSEN, (CHOSEN,), (CARRY,)),
    Group("commit-plain", ("commit-plain",), (CARRY,)),
    Group("half", ("half",), (CARRY, TWO_PASS)),
    Group("shuffled", ("shuffled",), (CARRY, UNROLLED, TWO_PASS), share=SHUFFLED),
    Group(CHOSEN, (CHOSEN,), (UNROLLED, TWO_PASS)),
    Group("curve", ("own",), fewer=("1/2", "1/8")),
    Group("half", ("half",), (UNROLLED,)),
    Group("commit-plain", ("commit-plain",), (UNROLLED, TWO_PASS)),
)
