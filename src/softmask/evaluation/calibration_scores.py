"""Confidence against correctness in numbers: means, gaps, expected calibration errors.

Errors are standard errors over texts, of whose tokens none is taken for independent of another.

Shape suffixes: N tokens, W texts, R rounds (passes or steps), B bins of confidence.
"""

from __future__ import annotations

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
        confidence_N, right_N = confidence_N.double().cpu(), right_N.double().cpu()
        bin_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1  # (low, high]
        counted_N3 = torch.stack([torch.ones_like(right_N), confidence_N, right_N], dim=1)
        self.bins_WRB3[:, index].index_put_((text_N, bin_N), counted_N3, accumulate=True)
        for name, value_N in values.items():
            value_N = value_N.double().cpu()
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


Parts = tuple[Sums, Sums, Sums, Tensor, Tensor]


def found_of(masks_W: Tensor, parts: Mapping[str, Parts]) -> Found:
    """The numbers from sums: of each way its passes, its decoding's commits, what that left
    masked, and by text forwards and whether all is right."""
    ways = {
        way: Way(_passes(read), _decoding(*decoded)) for way, (read, *decoded) in parts.items()
    }
    differences = _differences(parts) if "on" in parts else {}
    return Found(
        texts=len(masks_W),
        masks=int(masks_W.sum()),
        ways=ways,
        on_minus_off=differences,
        by_text=_by_text(masks_W, parts),
        verdict=verdict(ways, differences),
    )


def _passes(read: Sums) -> tuple[Pass, ...]:
    found = []
    for index in range(read.rounds):
        own = slice(index, index + 1)
        seen = read.calibration(own)
        values = {name: read.mean(name, own) for name in ("nats", "lambda", "norm")}
        nats, mixed, norm = values.values()
        assert seen is not None and nats is not None and mixed is not None and norm is not None
        found.append(
            Pass(
                number=index + 1,
                seen=seen,
                reliability=read.reliability(own),
                nats=nats,
                flips=read.mean("flips", own),
                kl=read.mean("kl", own),
                mean_lambda=mixed,
                norm=norm,
                angle=read.mean("angle", own),
            )
        )
    return tuple(found)


def _decoding(committed: Sums, waiting: Sums, forwards_W: Tensor, exact_W: Tensor) -> Decoding:
    every = slice(None)
    whole = committed.calibration(every)
    assert whole is not None, "a decoding commits something"
    used = int(committed.bins_WRB3[..., 0].sum((0, 2)).nonzero().max()) + 1

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
    wrong, ones_W = Mean(1 - whole.right.value, whole.right.error), torch.ones_like(exact_W)
    exact, forwards = mean_of(exact_W, ones_W), mean_of(forwards_W, ones_W)
    assert exact is not None and forwards is not None
    return Decoding(
        committed=whole,
        waiting=waiting.calibration(every),
        wrong=wrong,
        exact=exact,
        forwards=forwards,
        reliability=committed.reliability(every),
        by_stretch=tuple(steps(*edge) for edge in zip(edges, edges[1:], strict=False)),
        by_step=tuple(steps(index, index + 1) for index in range(used)),
    )


def _differences(parts: Mapping[str, Parts]) -> dict[str, Mean]:
    """On minus off, paired by text."""
    by_way = []
    for way in ("on", "off"):
        read, committed, _waiting, _forwards_W, exact_W = parts[way]
        tokens_W, sure_W, right_W = read.bins_WRB3[:, -1].sum(1).unbind(1)
        written_W, _, good_W = committed.bins_WRB3.sum((1, 2)).unbind(1)
        by_way.append(
            {
                "gap": (sure_W - right_W, tokens_W),
                "wrong": (written_W - good_W, written_W),
                "exact": (exact_W, torch.ones_like(exact_W)),
            }
        )
    found = {}
    for name, (on_W, count_W) in by_way[0].items():
        off_W, _ = by_way[1][name]
        found[name] = Mean(*clustered_ratio(on_W - off_W, count_W))
    return found


def _by_text(masks_W: Tensor, parts: Mapping[str, Parts]) -> list[dict[str, object]]:
    """Of each text and way: right and confidence (sums over its masks) by pass; commits, wrong ones
    and their confidence by step; forwards."""
    rows = []
    for text, masks in enumerate(masks_W.tolist()):
        row: dict[str, object] = {"masks": int(masks)}
        for way, (read, committed, _waiting, forwards_W, _exact_W) in parts.items():
            _, sure_R, right_R = read.bins_WRB3[text].sum(1).unbind(1)
            commits_R, confidence_R, good_R = committed.bins_WRB3[text].sum(1).unbind(1)
            row[way] = {
                "right": right_R.int().tolist(),
                "confidence": [round(value, 4) for value in sure_R.tolist()],
                "commits": commits_R.int().tolist(),
                "wrong": (commits_R - good_R).int().tolist(),
                "commit_confidence": [round(value, 4) for value in confidence_R.tolist()],
                "forwards": int(forwards_W[text]),
            }
        rows.append(row)
    return rows


def verdict(ways: Mapping[str, Way], differences: Mapping[str, Mean]) -> str:
    """What the numbers say, in sentences."""
    off = ways["off"]
    first = f"Read once, without feedback, the model is {_surer(off.passes[0].seen.gap)}."
    if "on" not in ways:
        wrong = _percent(off.decoding.wrong)
        return f"{first} Of what decoding commits, {wrong} is wrong."
    on = ways["on"]
    last = on.passes[-1]
    readings = f"After {last.number} passes with feedback" if last.number > 1 else "In one pass"
    again = f"{readings} it is {_surer(last.seen.gap)}."
    wrong = f"{_percent(on.decoding.wrong)} with feedback and {_percent(off.decoding.wrong)} without"
    change = differences["wrong"]
    clear = change.error is not None and abs(change.value) >= 2 * change.error
    doubt = "" if clear else ", a difference within its error"
    return f"{first} {again} Of what decoding commits, {wrong} is wrong{doubt}."


def _surer(gap: Mean) -> str:
    points = 100 * gap.value
    error = "" if gap.error is None else f" (standard error {100 * gap.error:.1f})"
    if gap.error is not None and abs(gap.value) < 2 * gap.error:
        return f"as sure as it is right, within the error: {points:+.1f} points{error}"
    kind = "surer" if points > 0 else "less sure"
    return f"{abs(points):.1f} points{error} {kind} than it is right"


def _percent(mean: Mean) -> str:
    error = "" if mean.error is None else f" ({100 * mean.error:.1f})"
    return f"{100 * mean.value:.1f} %{error}"

