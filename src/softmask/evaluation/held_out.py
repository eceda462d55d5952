"""Held-out text: nats per token and perplexity (bounds), plain and soft, on the same masks.

Every window is masked at `times` values of t, one in each stratum of (0, 1], and predicted
* plain: without feedback;
* fresh: with the feedback of a first pass on the same masks (two forwards), as in training;
* stale: with the feedback of a pass on the canvas one denoising step earlier, with more masks. A
  sampler has this feedback, at one forward a step.
All three are bounds: the input of a pass depends on the masked text and on random numbers alone.

Shape suffixes: B batch, L length, N masked rows (flat indices into B * L), V vocabulary,
W windows, J times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Group
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..config import SoftMaskConfig, require
from ..decoding.control_names import ControlNames
from ..decoding.halves import AsMemoryAllows
from ..decoding.likelihood import generator_for
from ..decoding.masked_rows import pad, soft_input
from ..logits import CHUNK_ROWS, entropy
from ..models import DreamModel
from ..reporting.progress import progress
from ..reporting.tables import light_table
from ..reporting.words import count
from ..soft_mask import SoftMask, make_mixer
from ..training.objective import BUCKETS, beside
from .auto_batch import AutoBatch
from .batching import batched
from .measure_config import HeldOutConfig
from .ranks import Ranks
from .standard_errors import clustered_ratio


@dataclass(frozen=True)
class Score:
    """One way of predicting: the bound in nats a token, its standard error clustered by window.

    Over the masked positions: the share of right likeliest tokens, the mean entropy of the
    predictions (nats), and the mean lambda of what was mixed in (None: plain). None where no
    position was masked; the error is None for a single window.
    """

    nats: float
    error: float | None
    perplexity: float
    accuracy: float | None
    entropy: float | None
    mean_lambda: float | None


@dataclass(frozen=True)
class Difference:
    """Soft minus plain, in nats a token, paired by mask; negative where soft-masking helps."""

    nats: float
    error: float | None


@dataclass(frozen=True)
class Slice:
    """Everything that was masked at times in (low, high]."""

    low: float
    high: float
    samples: int  # masked windows
    masked: int  # masked tokens
    plain: Score
    fresh: Score | None = None
    stale: Score | None = None
    fresh_minus_plain: Difference | None = None
    stale_minus_plain: Difference | None = None


@dataclass(frozen=True)
class HeldOut:
    """The whole, and ten slices of t (those with a time in them); `dataclasses.asdict` is JSON.

    `batching` says how many rows ran at once and why. The means of the slices' nats, weighted by
    their predicted tokens, is that of the whole.
    """

    windows: int
    tokens: int  # predicted: all but the first of each window
    forwards: int  # rows of forward passes, of all ways together
    whole: Slice
    by_time: tuple[Slice, ...]
    batching: dict[str, Any]


def windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int
) -> list[list[int]]:
    """Texts, tokenised and cut into windows of `length`; a rest of at least 2 tokens is kept.

    Raises:
        ValueError: a length below 2, or no text that has two tokens.
    """
    require(length >= 2, f"length must be at least 2, not {length}")
    encoded = ControlNames(tokenizer).encode_batch(texts)
    cut = [ids[i : i + length] for ids in encoded for i in range(0, len(ids), length)]
    kept = [window for window in cut if len(window) >= 2]
    if not kept:
        raise ValueError("the held-out text has no two tokens in a row: give a longer one")
    return kept


def draw(window: Sequence[int], config: HeldOutConfig) -> tuple[Tensor, Tensor]:
    """Times t (J,) in (0, 1], and numbers u (J, L): at time t the positions with u < t are masked.

    A function of (seed, the window's ids) alone. u[:, 0] lies above every t: position 0 is
    context. fp64.
    """
    generator = generator_for(config.seed, window)
    inside_J = torch.rand(config.times, dtype=torch.float64, generator=generator)
    times_J = (torch.arange(1, config.times + 1) - inside_J) / config.times
    shape = (config.times, len(window))
    draw_JL = torch.rand(shape, dtype=torch.float64, generator=generator)
    draw_JL[:, 0] = 2.0
    return times_J, draw_JL


def held_out(
    model: DreamModel,
    windows: Sequence[Sequence[int]],
    config: HeldOutConfig,
    soft_mask: SoftMaskConfig | None,
) -> HeldOut:
    """Bounds on the nats a token of these windows: plain, and with `soft_mask` fresh and stale.

    Bound = mean over t of 1/t * sum over the masked of -log p(true token) / predicted tokens;
    position 0 of a window is context and never predicted. r(t) has m masks left of all predicted
    positions. Each pass holds the (N, V) logits of its masked rows, as a step of the sampler does.

    Raises:
        ValueError: no windows, one with fewer than 2 tokens or more than the model's window, or a
            model without a mask token.
    """
    _check(model, windows)
    tally = _Tally(windows, config, soft_mask is not None)
    mixer = make_mixer(soft_mask, model.device)
    schedule = "none" if soft_mask is None else soft_mask.schedule
    rows, auto = _rows_at_once(model, windows, config, mixer is not None)
    memory = AsMemoryAllows()

    def predict(batch: Sequence[_Row]) -> None:
        tally.add(batch, _predict(model, batch, mixer, schedule, tally.ways))

    with progress("predicting masked tokens", len(windows) * config.times, "rows") as shown:
        for batch in batched(_rows(windows, config), rows):
            memory.run(batch, lambda row: len(row.ids_L), predict)
            shown.advance(len(batch))
    passes = 1 if mixer is None else 4
    return tally.result(passes, {**auto, "out_of_memory": memory.halved})


def _rows_at_once(
    model: DreamModel, windows: Sequence[Sequence[int]], config: HeldOutConfig, soft: bool
) -> tuple[int, dict[str, Any]]:
    """How many rows a forward has, and for the record why."""
    if isinstance(config.batch_size, int):
        return config.batch_size, {}
    auto = AutoBatch(model, Ranks())
    count = len(windows) * config.times
    # Of feedback the logits of the pass before are there too.
    rows = auto.of_windows(max(map(len, windows)), passes=2 if soft else 1, rows=count)
    return rows, auto.record()


class _Row(NamedTuple):
    """A window at one time."""

    window: int
    time: int
    t: float
    ids_L: Tensor
    masked_L: Tensor
    earlier_L: Tensor  # one denoising step earlier: these, and more


def _rows(windows: Sequence[Sequence[int]], config: HeldOutConfig) -> Iterator[_Row]:
    """Every window at every time that masks anything; longest first, so that padding is small."""
    for w in sorted(range(len(windows)), key=lambda w: -len(windows[w])):
        ids_L = torch.tensor([int(i) for i in windows[w]])
        times_J, draw_JL = draw(windows[w], config)
        # The first step begins at t = 1: nothing lies before it.
        earlier_J = (times_J + 1 / config.steps).clamp_max(1.0)
        for j, t in enumerate(times_J.tolist()):
            masked_L = draw_JL[j] < t
            if bool(masked_L.any()):
                yield _Row(w, j, t, ids_L, masked_L, draw_JL[j] < earlier_J[j])


class _Reading(NamedTuple):
    """Predictions at the masked positions: nats, whether right, entropy, lambda; (4, N)."""

    rows_N: Tensor  # the row of the batch
    values_4N: Tensor


@torch.no_grad()
def _predict(
    model: DreamModel,
    batch: Sequence[_Row],
    mixer: SoftMask | None,
    schedule: str,
    ways: tuple[str, ...],
) -> dict[str, _Reading]:
    ids_BL, attention_BL = pad([row.ids_L for row in batch], model.device)
    masked_BL, _ = pad([row.masked_L for row in batch], model.device)
    earlier_BL, _ = pad([row.earlier_L for row in batch], model.device)
    mask_id = model.mask_id
    noisy_BL = ids_BL.masked_fill(masked_BL, mask_id)
    rows_N = masked_BL.flatten().nonzero().squeeze(1)
    labels_N, row_N = ids_BL.flatten()[rows_N], (rows_N // ids_BL.shape[1]).cpu()
    predicted_BL = torch.arange(ids_BL.shape[1], device=model.device).expand_as(ids_BL) > 0
    clean = beside(model, ids_BL, predicted_BL)
    inputs = {"attention_mask": attention_BL, "rows": rows_N, **clean}
    logits_NV = model(noisy_BL, **inputs).logits
    plain = _Reading(row_N, _read(logits_NV, labels_N))
    if mixer is None:  # scale 0, if there is a soft mask at all: every way is the plain one
        return dict.fromkeys(ways, plain)
    start_B = torch.tensor([len(row.ids_L) - 1 for row in batch], device=model.device)

    def softly(seen_NV: Tensor) -> _Reading:
        with model.input_table() as table_VD:
            soft_tokens, lambda_N = soft_input(
                table_VD, mixer, schedule, noisy_BL, masked_BL, rows_N, seen_NV, start_B
            )
        output = model(soft_tokens=soft_tokens, **inputs)
        return _Reading(row_N, _read(output.logits, labels_N, lambda_N))

    fresh = softly(logits_NV)
    del logits_NV
    stale = softly(model(ids_BL.masked_fill(earlier_BL, mask_id), **inputs).logits)
    return {"plain": plain, "fresh": fresh, "stale": stale}


def _read(logits_NV: Tensor, labels_N: Tensor, lambda_N: Tensor | None = None) -> Tensor:
    """(4, N) on the host, fp64: nats, whether the likeliest token is right, entropy, lambda."""
    pairs = zip(logits_NV.split(CHUNK_ROWS), labels_N.split(CHUNK_ROWS), strict=True)
    nats_N = torch.cat([F.cross_entropy(z.float(), y, reduction="none") for z, y in pairs])
    right_N = logits_NV.argmax(-1) == labels_N
    lambda_N = torch.zeros_like(nats_N) if lambda_N is None else lambda_N
    return torch.stack([nats_N, right_N, entropy(logits_NV), lambda_N]).cpu().double()


class _Tally:
    """Sums over the masked positions, of each way, window and time."""

    def __init__(self, windows: Sequence[Sequence[int]], config: HeldOutConfig, soft: bool) -> None:
        self.ways = ("plain", "fresh", "stale") if soft else ("plain",)
        self.predicted_W1 = torch.tensor([[len(window) - 1.0] for window in windows]).double()
        self.times_WJ = torch.stack([draw(window, config)[0] for window in windows])
        self.masked_WJ = torch.zeros_like(self.times_WJ)
        self.rows = 0
        self.sums = {way: self.times_WJ.new_zeros(4, *self.times_WJ.shape) for way in self.ways}

    def add(self, batch: Sequence[_Row], readings: dict[str, _Reading]) -> None:
        self.rows += len(batch)
        w, j = (torch.tensor(x) for x in zip(*((r.window, r.time) for r in batch), strict=True))
        self.masked_WJ[w, j] = torch.tensor([float(r.masked_L.sum()) for r in batch]).double()
        for way, (row_N, values_4N) in readings.items():
            sums_4B = values_4N.new_zeros(4, len(batch)).index_add(1, row_N, values_4N)
            sums_4B[0] /= torch.tensor([r.t for r in batch], dtype=torch.float64)
            self.sums[way][:, w, j] = sums_4B

    def result(self, passes: int, batching: dict[str, Any]) -> HeldOut:
        # The slice that a time falls into as (low, high]: t = 0.1 belongs to the first.
        bucket_WJ = (self.times_WJ * BUCKETS).ceil().long().clamp(1, BUCKETS) - 1
        slices = [
            self._slice(i / BUCKETS, (i + 1) / BUCKETS, bucket_WJ == i)
            for i in range(BUCKETS)
            if bool((bucket_WJ == i).any())
        ]
        return HeldOut(
            windows=len(self.times_WJ),
            tokens=int(self.predicted_W1.sum()),
            forwards=passes * self.rows,
            whole=self._slice(0.0, 1.0, torch.ones_like(bucket_WJ, dtype=torch.bool)),
            by_time=tuple(slices),
            batching=batching,
        )

    def _slice(self, low: float, high: float, chosen_WJ: Tensor) -> Slice:
        values: dict[str, Any] = {way: self._score(way, chosen_WJ) for way in self.ways}
        for way in self.ways[1:]:
            values[f"{way}_minus_plain"] = self._difference(way, chosen_WJ)
        samples, masked = int(chosen_WJ.sum()), int((self.masked_WJ * chosen_WJ).sum())
        return Slice(low, high, samples, masked, **values)

    def _score(self, way: str, chosen_WJ: Tensor) -> Score:
        nats, error = self._bound(self.sums[way][0], chosen_WJ)
        masked = (self.masked_WJ * chosen_WJ).sum().item()
        means = (self.sums[way][1:] * chosen_WJ).sum(dim=(1, 2)) / masked
        accuracy, entropy_, mixed = means.tolist() if masked else (None, None, None)
        # One mask at a tiny t can bring a slice of little text beyond what fp64 holds.
        perplexity = math.exp(nats) if nats < 700 else math.inf
        return Score(nats, error, perplexity, accuracy, entropy_, None if way == "plain" else mixed)

    def _difference(self, way: str, chosen_WJ: Tensor) -> Difference:
        return Difference(*self._bound(self.sums[way][0] - self.sums["plain"][0], chosen_WJ))

    def _bound(self, nats_WJ: Tensor, chosen_WJ: Tensor) -> tuple[float, float | None]:
        top_W = (nats_WJ * chosen_WJ).sum(dim=1)
        return clustered_ratio(top_W, (self.predicted_W1 * chosen_WJ).sum(dim=1))


def _check(model: DreamModel, windows: Sequence[Sequence[int]]) -> None:
    _ = model.mask_id  # raises where there is none
    sizes = [len(window) for window in windows]
    if not sizes or min(sizes) < 2:
        raise ValueError("held-out windows need at least 2 tokens each, and there must be one")
    most = model.config.max_position_embeddings
    if max(sizes) > most:
        raise ValueError(
            f"a window has {max(sizes)} tokens, but the model's own is {most}: lower the length"
        )


def table_of(found: dict[str, Any]) -> Group:
    """`asdict(HeldOut)` as tables: each kind of feedback on the whole, then the gain by time."""
    whole = found["whole"]
    ways = [way for way in ("plain", "fresh", "stale") if whole[way] is not None]
    title = f"{count(found['windows'], 'window')}, {count(found['tokens'], 'token')} predicted"
    table = _table(title, "feedback", "nats a token", "perplexity", "- plain", "right", "lambda")
    for way in ways:
        score, gain = whole[way], whole.get(f"{way}_minus_plain")
        table.add_row(
            way,
            _with_error(score["nats"], score["error"]),
            f"<= {score['perplexity']:.2f}",
            "" if gain is None else _with_error(gain["nats"], gain["error"], "+"),
            "" if score["accuracy"] is None else f"{100 * score['accuracy']:.1f} %",
            "" if score["mean_lambda"] is None else f"{score['mean_lambda']:.3f}",
        )
    if ways == ["plain"]:
        return Group(table)
    by_time = _table("by how much is masked", "t", "plain", "fresh - plain", "stale - plain")
    for part in found["by_time"]:
        cells = [_with_error(part["plain"]["nats"], part["plain"]["error"])]
        for way in ways[1:]:
            gain = part[f"{way}_minus_plain"]
            cells.append(_with_error(gain["nats"], gain["error"], "+"))
        by_time.add_row(f"{part['low']:.1f}-{part['high']:.1f}", *cells)
    return Group(table, by_time)


def _table(title: str, first: str, *columns: str) -> Table:
    table = light_table(title)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" + ("" if error is None else f" ({error:.4f})")
