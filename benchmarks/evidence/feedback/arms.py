"""The arms of this experiment, its ways of decoding and its puzzles, as README.md fixes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import PLAIN, Arm

HERE = Path(__file__).parent
SECONDS = 300.0  # of training, at the speed of a quiet machine
PLAIN_UPDATES, TWO_PASS, BUFFER, CARRY, UNROLLED = (
    "plain-updates",
    "two-pass",
    "buffer",
    "carry",
    "unrolled",
)
ALONG = ("train.trajectory={stages: 8, forwards: 1}", "train.weighting=row")
ARMS = (
    Arm(PLAIN, "2 plain", is_soft=False, needs=()),
    Arm(PLAIN_UPDATES, "1 plain, updates of 3", is_soft=False, needs=(PLAIN, TWO_PASS)),
    Arm(TWO_PASS, "3 two-pass"),
    Arm(BUFFER, "4 buffer, no carry", ALONG, is_soft=False),
    Arm(CARRY, "5 buffer, carry", ALONG, needs=(PLAIN, BUFFER)),
    Arm(
        UNROLLED,
        "6 two unrolled",
        ("train.trajectory={stages: 8, forwards: 2}", "train.weighting=row"),
        needs=(PLAIN, BUFFER),
    ),
    Arm("two-pass-spherical", "7 two-pass, spherical", ("soft_mask.mixture=spherical",)),
    Arm(
        "two-pass-entropy",
        "8 two-pass, by entropy",
        ("soft_mask.weight=entropy", "soft_mask.scale=0.9"),
    ),
)
# The arms that can succeed: how many standard errors each has to lie above the reference.
BARS = {CARRY: 2.5, UNROLLED: 2.74}
# Of all runs: they are evaluated once, at their end.
MORE = ("train.eval_at_start=false", "train.eval_every=1000000")
FEWER = ("full", "1/4")  # forwards a token that the rule of success is about
GIVENS = 30
# Puzzles by the name that they are seeded with.
TEST, CHOICE = "test", "choice"
SIZES = {TEST: 240, CHOICE: 80, "second": 240}
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
