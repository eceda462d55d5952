"""Which token, and which positions: pure functions over the masked rows of a step.

Rules and filters are those of Dream's `generation_utils.py`, row-wise: every row of the batch
has its own count and, where seeded, its own random numbers.
Shape suffixes: B batch, L length, N masked rows (flat indices into B * L), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig
from ..logits import CHUNK_ROWS, FLOOR, LogitStatistics, top_k

HOST_FP32: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


class Choice(NamedTuple):
    """A token for each of N masked rows, and what commit rules read, all fp32.

    `chance_N` is the token's probability, `entropy_N` the entropy in nats, `ids_NK` and
    `chances_NK` the leading tokens: all of the distribution after temperature and filters, over
    the temperature of the scores.
    """

    tokens_N: Tensor
    chance_N: Tensor
    entropy_N: Tensor
    ids_NK: Tensor
    chances_NK: Tensor


class Ragged:
    """Values of masked rows of R sequences, as a table (R, L) by their columns in their sequences.

    Args:
        counts_R: rows of each sequence.
        starts_R, lengths_R: where each sequence begins on the flat canvas, and its columns.
        rows_N: flat positions, sequence after sequence.
    """

    def __init__(
        self,
        counts_R: Sequence[int],
        starts_R: Sequence[int],
        lengths_R: Sequence[int],
        rows_N: Tensor,
    ) -> None:
        self.lengths_R = tuple(lengths_R)
        counts, starts = torch.tensor([counts_R, starts_R], device=rows_N.device)
        sequence = torch.arange(len(counts_R), device=rows_N.device)
        self.sequence_N = sequence.repeat_interleave(counts, output_size=len(rows_N))
        self.column_N = rows_N - starts[self.sequence_N]

    def table(self, values_N: Tensor, fill: float) -> Tensor:
        """(R, L), `fill` where no value is."""
        shape = (len(self.lengths_R), max(self.lengths_R))
        return values_N.new_full(shape, fill).index_put_((self.sequence_N, self.column_N), values_N)

    def flat(self, table_RL: Tensor) -> Tensor:
        """(N,) again."""
        return table_RL[self.sequence_N, self.column_N]

    def top(self, table_RL: Tensor, counts_R: Sequence[int]) -> Tensor:
        """(R, L) bool: the `counts_R[r]` largest values of sequence r; never minus infinity.

        Among equal ones the choice is that of torch.topk(count) over the sequence's own columns, as
        published (probabilities of exactly 1 are common). It depends on the count, so sequences of
        one length are chosen together only where they want equally many.
        """
        chosen_RL = torch.zeros_like(table_RL, dtype=torch.bool)
        alike: dict[tuple[int, int], list[int]] = {}
        for r, (length, count) in enumerate(zip(self.lengths_R, counts_R, strict=True)):
            if count:
                alike.setdefault((length, count), []).append(r)
        for (length, count), sequences in alike.items():
            rows = slice(None) if len(sequences) == len(self.lengths_R) else sequences
            best_RK, place_RK = table_RL[rows, :length].topk(count, dim=1)
            chosen_RL[rows] = chosen_RL[rows].scatter(1, place_RK, best_RK > -torch.inf)
        return chosen_RL


class RowNoise:
    """Random numbers for rows: one generator a row, or torch's global one for all of them.

    With generators, what a row draws does not depend on its neighbours. Without, the draws come
    in the order of the published code, so that `torch.manual_seed` reproduces it.
    """

    def __init__(self, generators: Sequence[torch.Generator] | None, device: torch.device) -> None:
        self.generators = generators
        self.device = device
        self._fp32: dict[str, Any] = {"dtype": torch.float32, "device": device}

    def uniform(self, counts_B: Sequence[int]) -> Tensor:
        """(N,) uniform numbers, `counts_B[b]` of them for row b."""
        return self._fill(counts_B, None, lambda x, g: x.uniform_(generator=g))

    def exponential(self, counts_B: Sequence[int], width: int) -> Tensor:
        """(N, width) exponential numbers: p / e is largest at v with probability p_v.

        `torch.multinomial` draws in just this way.
        """
        return self._fill(counts_B, width, lambda x, g: x.exponential_(generator=g))

    def uniform_at(self, positions: int, rows_N: Tensor, counts_B: Sequence[int]) -> Tensor:
        """(N,) uniform numbers at the flat positions `rows_N` of a canvas of so many."""
        if self.generators is None:  # as published: for the whole canvas
            return torch.rand(positions, **self._fp32)[rows_N]
        return self.uniform(counts_B)

    def exponential64_at(
        self, positions: int, rows_N: Tensor, counts_B: Sequence[int], width: int
    ) -> Tensor:
        """(N, width) exponential numbers in float64, as LLaDA's code has them: -log of uniform."""
        wide: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        if self.generators is None:
            return -torch.rand(positions, width, **wide)[rows_N].log()
        pairs = zip(counts_B, self.generators, strict=True)
        return -torch.cat([torch.rand(n, width, generator=g, **wide) for n, g in pairs]).log()

    def exponential_at(
        self, positions: int, rows_N: Tensor, counts_B: Sequence[int], wanted_B: Sequence[bool]
    ) -> Tensor:
        """(N,) exponential numbers at the flat positions `rows_N` of a canvas of so many.

        A row that wants none gets ones: what its generator draws next does not depend on whether a
        neighbour wanted some in this step.
        """
        if self.generators is None:
            # The published call draws for the whole canvas and leaves most of it unused.
            return torch.empty(positions, **self._fp32).exponential_()[rows_N]
        parts = []
        for count, generator, wanted in zip(counts_B, self.generators, wanted_B, strict=True):
            ones_N = torch.ones(count, **self._fp32)
            parts.append(ones_N.exponential_(generator=generator) if wanted else ones_N)
        return torch.cat(parts)

    def _fill(
        self,
        counts_B: Sequence[int],
        width: int | None,
        draw: Callable[[Tensor, torch.Generator | None], Tensor],
    ) -> Tensor:
        def empty(rows: int) -> Tensor:
            return torch.empty((rows,) if width is None else (rows, width), **self._fp32)

        if self.generators is None:
            return draw(empty(sum(counts_B)), None)
        parts = [draw(empty(n), g) for n, g in zip(counts_B, self.generators, strict=True)]
        return torch.cat(parts)


def filter_logits(
    logits_NV: Tensor, top_p: float | None, top_k_count: int | None, min_p: float | None = None
) -> Tensor:
    """Floors what any of the filters drops, each by the unfiltered logits.

    top_p keeps a token while the mass of the likelier ones is at most top_p, hence always the
    first; top_k keeps ties with the k-th; min_p keeps a token that is at least this share as likely
    as the first.
    """
    if top_p is not None and top_p < 1:
        logits_NV = logits_NV.masked_fill(_beyond_nucleus(logits_NV, top_p), FLOOR)
    if top_k_count is not None:
        kth_N1 = top_k(logits_NV, min(top_k_count, logits_NV.shape[-1]))[0][:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < kth_N1, FLOOR)
    if min_p is not None:
        least_N1 = logits_NV.amax(-1, keepdim=True) + math.log(min_p)
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, FLOOR)
    return logits_NV


def _beyond_nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """(N, V) bool: the tokens that top_p drops.

    On a CPU the sort with its ids took a quarter of a busy step. Values alone, sorted by numpy, say
    the least logit that is kept; only rows with equal logits on both sides of it need the ids.
    """
    if logits_NV.device.type != "cpu":
        return _beyond_nucleus_by_id(logits_NV, top_p)
    ordered_NV = -torch.from_numpy(np.sort(-logits_NV.numpy(), axis=-1))
    dropped_NV = ordered_NV.softmax(-1).cumsum(-1)[:, :-1] > top_p
    last_N1 = dropped_NV.logical_not().sum(-1, keepdim=True)
    least_N1 = ordered_NV.gather(1, last_N1)
    next_N1 = ordered_NV.gather(1, (last_N1 + 1).clamp(max=logits_NV.shape[1] - 1))
    beyond_NV = logits_NV < least_N1
    tied_N = (least_N1 <= next_N1).squeeze(1) & (last_N1.squeeze(1) < logits_NV.shape[1] - 1)
    if tied_N.any():
        beyond_NV[tied_N] = _beyond_nucleus_by_id(logits_NV[tied_N], top_p)
    return beyond_NV


def _beyond_nucleus_by_id(logits_NV: Tensor, top_p: float) -> Tensor:
    """The same by a stable sort: of equal logits the lower ids come first."""
    ordered_NV, ids_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
    cumulative_NV = ordered_NV.softmax(-1).cumsum(-1)
    dropped_NV = torch.zeros_like(ids_NV, dtype=torch.bool)
    dropped_NV[:, 1:] = cumulative_NV[:, :-1] > top_p
    return torch.zeros_like(dropped_NV).scatter(1, ids_NV, dropped_NV)


def is_greedy(config: SamplingConfig) -> bool:
    """Whether statistics do: tokens are the likeliest ones, nothing filtered nor put off."""
    unfiltered = config.top_k is None and config.min_p is None and config.top_p in (None, 1.0)
    return unfiltered and config.late_ends == "no" and config.temperature == 0


def leading(config: SamplingConfig) -> int:
    """How many leading tokens the commit rules read."""
    tops = [chosen.rule.top for chosen in (config.ordering, config.deciding) if chosen]
    return max(1, *tops)


def choose_likeliest(
    seen: LogitStatistics, temperature: float = 1.0, temperatures: Sequence[float] = ()
) -> Choice:
    """The greedy choice, read off the logits' statistics.

    Args:
        temperature: of the confidence; beside 1 one of the further `temperatures` of `seen`.
    """
    total_N, entropy_N, logits_NK = seen.total_N, seen.entropy_N, seen.logits_NK
    if temperature != 1:
        column = temperatures.index(temperature)
        total_N, entropy_N = seen.totals_NT[:, column], seen.entropies_NT[:, column]
        logits_NK = logits_NK / temperature
    chances_NK = (logits_NK - total_N[:, None]).exp()
    return Choice(seen.ids_NK[:, 0], chances_NK[:, 0], entropy_N, seen.ids_NK, chances_NK)


def choose_tokens(
    logits_NV: Tensor,
    config: SamplingConfig,
    noise: Callable[[int], Tensor] | None,
    late_ids: Sequence[int] = (),
) -> Choice:
    """A token for every masked row under temperature and filters.

    Args:
        noise: draws (N, width) exponential numbers; None: the likeliest tokens.
        late_ids: tokens that nobody is sure of.
    """
    parts = []
    noise_NV = None
    if config.temperature > 0 and noise is not None:
        noise_NV = noise(logits_NV.shape[-1])
    for start in range(0, len(logits_NV), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        drawn = None if noise_NV is None else noise_NV[chunk]
        parts.append(_choose_chunk(logits_NV[chunk].float(), config, drawn, late_ids))
    if not parts:
        none = logits_NV.new_zeros(0, dtype=torch.float32)
        none_NK = none.view(0, 1).expand(0, leading(config))
        return Choice(none.long(), none, none, none_NK.long(), none_NK)
    return Choice(*map(torch.cat, zip(*parts, strict=True)))


def tempered_and_filtered(raw_NV: Tensor, config: SamplingConfig) -> Tensor:
    """(N, V) fp32 logits of what tokens are drawn from: over the temperature, what the filters drop
    at the floor."""
    logits_NV = raw_NV / config.temperature if config.temperature > 0 else raw_NV
    return filter_logits(logits_NV, config.top_p, config.top_k, config.min_p)


def _choose_chunk(
    raw_NV: Tensor, config: SamplingConfig, noise_NV: Tensor | None, late_ids: Sequence[int]
) -> Choice:
    logits_NV = tempered_and_filtered(raw_NV, config)
    probs_NV = logits_NV.softmax(-1)
    chances_NK, ids_NK = top_k(probs_NV, min(leading(config), probs_NV.shape[-1]))
    if noise_NV is None:
        tokens_N = probs_NV.max(-1).indices
    elif noise_NV.dtype == torch.float64:
        # exp(l) / (-log u)^T, LLaDA's form of the same draw: equal to the last bit.
        likely_NV = raw_NV.double().exp().masked_fill(logits_NV == FLOOR, 0)
        tokens_N = (likely_NV / noise_NV**config.temperature).argmax(-1)
    else:
        tokens_N = (probs_NV / noise_NV).argmax(-1)
    score_NV = raw_NV if config.raw_scores else logits_NV
    if late_ids:
        score_NV = score_NV.index_fill(1, torch.tensor(late_ids, device=score_NV.device), FLOOR)
    if score_NV is not logits_NV or config.score_temperature != 1:
        probs_NV = (score_NV / config.score_temperature).softmax(-1)
        chances_NK = probs_NV.gather(1, ids_NK)
    chance_N = probs_NV.gather(1, tokens_N[:, None]).squeeze(1)
    entropy_N = -(probs_NV * (probs_NV + 1e-10).log()).sum(-1)
    return Choice(tokens_N, chance_N, entropy_N, ids_NK, chances_NK)


@lru_cache(maxsize=8)
def _times(steps: int, eps: float) -> Tensor:
    """(steps + 1,) float32 times, as published. One by one they would not be the same: where a CPU
    multiplies and adds in one operation, torch's rounding is another than without. They are
    kept, so that a caller's default dtype and device must not show in them."""
    return torch.linspace(1, eps, steps + 1, **HOST_FP32)


@lru_cache(maxsize=4096)
def transfer_share(step: int, steps: int, eps: float) -> float:
    """1 - s / t for the times of this step, 1 at the last."""
    if step == steps - 1:
        return 1.0
    t, s = _times(steps, eps)[step : step + 2]
    return (1 - s / t).item()


def transfer_count(masks: int, step: int, steps: int, eps: float) -> int:
    """How many of a row's masks are committed in this step: int(masks * (1 - s / t)), fp32.

    With as many steps as masks the first step therefore commits none and the last one two
    (finding B7).
    """
    share = torch.tensor(transfer_share(step, steps, eps), **HOST_FP32)
    return int(torch.tensor(masks, **HOST_FP32) * share)


def choose_positions(
    confidence_N: Tensor,
    counts_R: Sequence[int],
    ragged: Ragged,
    alg_temp: float | None = None,
    noise_N: Tensor | None = None,
) -> Tensor:
    """(N,) bool: the `counts_R[r]` most confident rows of sequence r; never one at minus infinity.

    With `alg_temp` the choice is a draw without replacement from softmax(confidence / alg_temp),
    by the exponential numbers `noise_N`, in logarithms: nothing underflows.
    """
    score_N = confidence_N
    if noise_N is not None:
        assert alg_temp is not None
        score_N = confidence_N / alg_temp - noise_N.log()
    return ragged.flat(ragged.top(ragged.table(score_N, -torch.inf), counts_R))
