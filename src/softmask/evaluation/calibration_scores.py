"""Confidence against correctness in numbers: means, gaps, expected calibration errors.

Errors are standard errors over texts, of whose tokens none is taken for independent of another.

Shape suffixes: N tokens, W texts, R rounds (passes or steps), B bins of confidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .standard_errors import clustered_ratio

BINS = 15
# Steps are shown in so many stretches: a table of fifty rows shows nothing.
STRETCHES = 8


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error over texts (None: a single text)."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Bin:
    """The tokens of confidence in one of equal bins."""

    tokens: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How sure a model is of some tokens, and how many of them are right.

    `gap` is confidence minus right. `ece` is the expected calibration error over equal bins: the
    mean of |confidence - right| by bin, weighted by tokens; its error is a jackknife's.
    """

    tokens: int
    right: Mean
    confidence: Mean
    gap: Mean
    ece: Mean


@dataclass(frozen=True)
class Pass:
    """One reading of the same masks; the three about its input say what feedback it had.

    `nats` of the true token. `flips`: the share of masks with another leading token than in the
    pass before; `kl`: nats from that pass's predictions to these, KL(now || before). `norm`: of the
    input embedding, over the mask's own; `angle`: degrees between the mask's embedding and what is
    mixed in.
    """

    number: int
    seen: Calibration
    reliability: tuple[Bin, ...]
    nats: Mean
    flips: Mean | None
    kl: Mean | None
    mean_lambda: Mean
    norm: Mean
    angle: Mean | None


@dataclass(frozen=True)
class Steps:
    """The steps from `first` to `last` of decoding: what they committed, what they left masked.

    `mean_lambda` is the weight of the feedback that their masks had.
    """

    first: int
    last: int
    committed: Calibration | None
    waiting: Calibration | None
    mean_lambda: Mean | None


@dataclass(frozen=True)
class Decoding:
    """A decoding of all texts. `wrong`: the share of commits that are wrong; `exact`: of texts
    without a wrong one; `forwards` a text."""

    committed: Calibration
    waiting: Calibration | None
    wrong: Mean
    exact: Mean
    forwards: Mean
    reliability: tuple[Bin, ...]
    by_stretch: tuple[Steps, ...]
    by_step: tuple[Steps, ...]


@dataclass(frozen=True)
class Way:
    """With feedback, or without."""

    passes: tuple[Pass, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Found:
    """`ways`: "on" (where there is feedback) and "off". `on_minus_off` is paired by text: the gap
    of the last pass, `wrong` and `exact`. `by_text` has the sums that all of it is made of."""

    texts: int
    masks: int
    ways: dict[str, Way]
    on_minus_off: dict[str, Mean]
    by_text: list[dict[str, object]]
    verdict: str


class Sums:
    """Sums over the tokens of each text, round by round."""

    def __init__(self, texts: int, rounds: int) -> None:
        self.rounds = rounds
        # Tokens, how sure, how many right, by bin of confidence.
        self.bins_WRB3 = torch.zeros(texts, rounds, BINS, 3, dtype=torch.float64)
        self.values: dict[str, Tensor] = {}  # (2, W, R): sums and counts

    def add(
        self,
        index: int,
        text_N: Tensor,
        confidence_N: Tensor,
        right_N: Tensor,
        values: Mapping[str, Tensor],
    ) -> None:
        """Adds tokens to a round; of further values those that are NaN do not count."""
        confidence_N, right_N = confidence_N.cpu().double(), right_N.cpu().double()
        bin_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1  # (low, high]
        counted_N3 = torch.stack([torch.ones_like(right_N), confidence_N, right_N], dim=1)
        self.bins_WRB3[:, index].index_put_((text_N, bin_N), counted_N3, accumulate=True)
        for name, value_N in values.items():
            value_N = value_N.cpu().double()
            known_N = ~value_N.isnan()
            sums_2WR = self.values.setdefault(name, self.bins_WRB3.new_zeros(2, *self.shape))
            pair_2N = torch.stack([value_N.where(known_N, 0), known_N.double()])
            sums_2WR[:, :, index] += sums_2WR.new_zeros(2, self.shape[0]).index_add(
                1, text_N, pair_2N
            )

    @property
    def shape(self) -> torch.Size:
        """(W, R)"""
        return self.bins_WRB3.shape[:2]

    @property
    def last_used(self) -> int:
        """How many rounds there are up to the last one with tokens."""
        return int(self.bins_WRB3[..., 0].sum((0, 2)).nonzero().max()) + 1

    def calibration(self, rounds: slice) -> Calibration | None:
        """Of the tokens of some rounds; None: there is none."""
        return calibration_of(self.bins_WRB3[:, rounds].sum(1))

    def reliability(self, rounds: slice) -> tuple[Bin, ...]:
        """The bins that have tokens."""
        bins_B3 = self.bins_WRB3[:, rounds].sum((0, 1))
        return tuple(
            Bin(int(count), sure / count, right / count)
            for count, sure, right in bins_B3.tolist()
            if count
        )

    def mean(self, name: str, rounds: slice) -> Mean | None:
        """Of a further value; None: nothing counts."""
        if name not in self.values:
            return None
        return mean_of(*self.values[name][:, :, rounds].sum(2))

    def must(self, name: str, rounds: slice) -> Mean:
        """Of a further value that every token has."""
        return Mean(*clustered_ratio(*self.values[name][:, :, rounds].sum(2)))


def mean_of(sums_W: Tensor, counts_W: Tensor) -> Mean | None:
    """A mean over tokens, from the sums and counts of texts; None: there are no tokens."""
    return Mean(*clustered_ratio(sums_W, counts_W)) if bool(counts_W.any()) else None


def calibration_of(bins_WB3: Tensor) -> Calibration | None:
    """From (W, B, 3) sums by bin: tokens, confidence, right; None: there are no tokens."""
    tokens_W, sure_W, right_W = bins_WB3.sum(1).unbind(1)
    if not tokens_W.any():
        return None

    def ratio(sums_W: Tensor) -> Mean:
        return Mean(*clustered_ratio(sums_W, tokens_W))

    return Calibration(
        tokens=int(tokens_W.sum()),
        right=ratio(right_W),
        confidence=ratio(sure_W),
        gap=ratio(sure_W - right_W),
        ece=_ece(bins_WB3[tokens_W > 0]),
    )


def _ece(bins_WB3: Tensor) -> Mean:
    """The expected calibration error, with the standard error of the jackknife over texts."""
    whole_B3 = bins_WB3.sum(0)
    value = _ece_of(whole_B3[None]).item()
    texts = len(bins_WB3)
    if texts < 2:
        return Mean(value, None)
    without_W = _ece_of(whole_B3 - bins_WB3)
    spread = (without_W - without_W.mean()).square().sum().item()
    return Mean(value, math.sqrt((texts - 1) / texts * spread))


def _ece_of(bins_WB3: Tensor) -> Tensor:
    """(W,) sum over bins of |confidence - right|, over all tokens."""
    tokens_WB, sure_WB, right_WB = bins_WB3.unbind(2)
    return (sure_WB - right_WB).abs().sum(1) / tokens_WB.sum(1)


class Measured:
    """What was seen of texts in one way: by pass; by step what was committed, and what stayed
    masked; of each text its forwards, and whether all of it came out right."""

    def __init__(self, texts: int, passes: int, steps: int) -> None:
        self.read = Sums(texts, passes)
        self.committed, self.waiting = Sums(texts, steps), Sums(texts, steps)
        self.forwards_W, self.exact_W = torch.zeros(2, texts, dtype=torch.float64)


def found_of(masks_W: Tensor, measured: Mapping[str, Measured]) -> Found:
    """The numbers of each way, from its sums."""
    # The same stretches of steps for both ways, up to the last commit of either.
    used = max(one.committed.last_used for one in measured.values())
    ways = {way: Way(_passes(one.read), _decoding(one, used)) for way, one in measured.items()}
    differences = _differences(measured["on"], measured["off"]) if "on" in measured else {}
    return Found(
        texts=len(masks_W),
        masks=int(masks_W.sum()),
        ways=ways,
        on_minus_off=differences,
        by_text=_by_text(masks_W, measured),
        verdict=verdict(ways, differences),
    )


def _passes(read: Sums) -> tuple[Pass, ...]:
    found = []
    for index in range(read.rounds):
        own = slice(index, index + 1)
        seen = read.calibration(own)
        assert seen is not None, "every pass reads every mask"
        found.append(
            Pass(
                number=index + 1,
                seen=seen,
                reliability=read.reliability(own),
                nats=read.must("nats", own),
                flips=read.mean("flips", own),
                kl=read.mean("kl", own),
                mean_lambda=read.must("lambda", own),
                norm=read.must("norm", own),
                angle=read.mean("angle", own),
            )
        )
    return tuple(found)


def _decoding(one: Measured, used: int) -> Decoding:
    every, committed, waiting = slice(None), one.committed, one.waiting
    whole = committed.calibration(every)
    assert whole is not None, "a decoding commits something"

    def steps(first: int, stop: int) -> Steps:
        own = slice(first, stop)
        pairs = [
            sums.values["lambda"][:, :, own].sum(2)
            for sums in (committed, waiting)
            if "lambda" in sums.values
        ]
        return Steps(
            first + 1,
            stop,
            committed.calibration(own),
            waiting.calibration(own),
            mean_of(*sum(pairs[1:], pairs[0])),
        )

    edges = [round(i * used / min(STRETCHES, used)) for i in range(min(STRETCHES, used) + 1)]
    ones_W = torch.ones_like(one.exact_W)
    return Decoding(
        committed=whole,
        waiting=waiting.calibration(every),
        wrong=Mean(1 - whole.right.value, whole.right.error),
        exact=Mean(*clustered_ratio(one.exact_W, ones_W)),
        forwards=Mean(*clustered_ratio(one.forwards_W, ones_W)),
        reliability=committed.reliability(every),
        by_stretch=tuple(steps(*edge) for edge in itertools.pairwise(edges)),
        by_step=tuple(steps(index, index + 1) for index in range(used)),
    )


def _differences(on: Measured, off: Measured) -> dict[str, Mean]:
    """On minus off, paired by text."""

    def parts(one: Measured) -> dict[str, tuple[Tensor, Tensor]]:
        tokens_W, sure_W, right_W = one.read.bins_WRB3[:, -1].sum(1).unbind(1)
        commits_W, _, good_W = one.committed.bins_WRB3.sum((1, 2)).unbind(1)
        return {
            "gap": (sure_W - right_W, tokens_W),
            "wrong": (commits_W - good_W, commits_W),
            "exact": (one.exact_W, torch.ones_like(one.exact_W)),
        }

    other = parts(off)
    return {
        name: Mean(*clustered_ratio(on_W - other[name][0], counts_W))
        for name, (on_W, counts_W) in parts(on).items()
    }


def _by_text(masks_W: Tensor, measured: Mapping[str, Measured]) -> list[dict[str, object]]:
    """Of each text and way: right, confidence and nats by pass, over its masks; commits, wrong
    ones and the sum of their confidence by step; forwards."""
    rows = []
    for text, masks in enumerate(masks_W.tolist()):
        row: dict[str, object] = {"masks": int(masks)}
        for way, one in measured.items():
            _, sure_R, right_R = one.read.bins_WRB3[text].sum(1).unbind(1)
            commits_R, confidence_R, good_R = one.committed.bins_WRB3[text].sum(1).unbind(1)
            row[way] = {
                "right": right_R.int().tolist(),
                "confidence": [round(value, 4) for value in sure_R.tolist()],
                "nats": [round(value, 4) for value in one.read.values["nats"][0, text].tolist()],
                "commits": commits_R.int().tolist(),
                "wrong": (commits_R - good_R).int().tolist(),
                "commit_confidence": [round(value, 4) for value in confidence_R.tolist()],
                "forwards": int(one.forwards_W[text]),
            }
        rows.append(row)
    return rows


def verdict(ways: Mapping[str, Way], differences: Mapping[str, Mean]) -> str:
    """What the numbers say, in sentences."""
    off = ways["off"]
    first = f"Read once, without feedback, the model is {_surer(off.passes[0].seen.gap)}."
    if "on" not in ways:
        plain = off.decoding.wrong
        share = f"{100 * plain.value:.1f} %{_error(plain)}"
        return f"{first} Of what decoding commits, {share} is wrong."
    on = ways["on"]
    last = on.passes[-1]
    readings = f"After {last.number} passes with feedback" if last.number > 1 else "In one pass"
    again = f"{readings} it is {_surer(last.seen.gap)}."
    wrong = [f"{100 * way.decoding.wrong.value:.1f} %" for way in (on, off)]
    change = f"{100 * differences['wrong'].value:+.1f} points{_error(differences['wrong'])}"
    return (
        f"{first} {again} Of what decoding commits, {wrong[0]} is wrong with feedback and "
        f"{wrong[1]} without, a difference of {change}."
    )


def _surer(gap: Mean) -> str:
    points = 100 * gap.value
    if gap.error is not None and abs(gap.value) < 2 * gap.error:
        return f"as sure as it is right, within the error: {points:+.1f} points{_error(gap)}"
    kind = "surer" if points > 0 else "less sure"
    return f"{abs(points):.1f} points{_error(gap)} {kind} than it is right"


def _error(mean: Mean) -> str:
    return "" if mean.error is None else f" (standard error {100 * mean.error:.1f})"
