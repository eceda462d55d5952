"""The likelihood of a given text under a masked diffusion model: Monte-Carlo estimates in nats.

The model gives no exact likelihood, only a bound, an expectation over which tokens are masked.
LLaDA's form of it (Nie et al., arXiv 2502.09992, appendix) draws the number of masked tokens, not
the probability of each to be masked, which removes most of the variance:

    -log p(x | c) <= E_l E_(S of size l) [ L / l * sum_(i in S) -log p(x_i | c, x without S) ]

Shape suffixes: B batch, L length, N masked rows (flat indices into B * L), V vocabulary, S samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig, require, require_positive, setting
from ..decoding.sampler import Rules, denoise
from ..models import DreamModel
from ..soft_mask import SoftMask, SoftTokens, feedback, make_mixer, rate
from .batching import batched, pad

Request = tuple[Sequence[int], Sequence[int]]  # context and continuation, token ids


@dataclass(frozen=True)
class LikelihoodConfig:
    """Samples, batch size and seed of an estimate."""

    samples: int = setting(128, "Monte-Carlo samples")
    batch_size: int = setting(16, "rows of one forward")
    seed: int = setting(0, "of the masks; each question has its own")

    def __post_init__(self) -> None:
        require_positive(self, "samples", "batch_size")


@dataclass(frozen=True)
class Estimate:
    """A negative log-likelihood in nats, summed over the tokens: in expectation an upper bound.

    `error` is its standard error as if the samples were independent: as they are spread evenly
    over the number of masks, the true one is smaller. NaN for one sample that is not the only
    possible one. `forwards` counts rows of forward passes: one for each different mask, two with
    soft-masking.
    """

    nats: float
    error: float
    tokens: int
    forwards: int


def negative_log_likelihoods(
    model: DreamModel,
    requests: Sequence[Request],
    config: LikelihoodConfig,
    soft_mask: SoftMaskConfig | None = None,
    *,
    questions: Sequence[Sequence[int]] | None = None,
) -> list[Estimate]:
    """Estimates -log p(continuation | context) of every request, in their order.

    Requests of the same question share their random numbers (`draw_masks`), so that its choices
    are compared on the same masks. Samples that agree in their mask are one row
    of a forward: a continuation of L tokens takes at most 2^L - 1 rows, a single token one.

    With `soft_mask` (scale above 0) the estimate takes two passes, hence twice the forwards: the
    first reads the masks plainly, the second reads all of them as mixtures of what the first
    predicted. That is a function of the masked text still, so the bound holds. r(t) has m = l
    masks left of M = L.

    Args:
        requests: pairs of token ids. A text without context gets the model's end-of-text token
            as its context: there is no row that could predict position 0.
        questions: some numbers for each request, the same for those of one question; default: its
            context (which the choices of a question like Winogrande's do not share).

    Raises:
        ValueError: an empty context or continuation, a request longer than the model's window,
            or a model without a mask token.
    """
    _check(model, requests)
    if questions is None:
        questions = [context for context, _ in requests]
    mixer = make_mixer(soft_mask, model.device)
    # Longest first, so that running out of memory shows at once.
    order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i])))
    rows = (row for i in order for row in _rows(i, requests[i], questions[i], config))
    found: list[list[tuple[float, int]]] = [[] for _ in requests]
    for batch in batched(rows, config.batch_size):
        nats_B = _masked_nats(model, batch, mixer, soft_mask)
        for row, nats in zip(batch, nats_B.tolist(), strict=True):
            found[row.request].append((row.scale * nats, row.samples))
    passes = 1 if mixer is None else 2
    return [
        _estimate(values, len(continuation), passes)
        for values, (_, continuation) in zip(found, requests, strict=True)
    ]


def rolling(
    model: DreamModel,
    documents: Sequence[Sequence[int]],
    config: LikelihoodConfig,
    soft_mask: SoftMaskConfig | None = None,
    *,
    prefix_id: int,
    max_length: int | None = None,
) -> list[Estimate]:
    """Estimates -log p of whole documents, each token predicted once (`rolling_windows`).

    Args:
        prefix_id: what stands before a document, the model's end-of-text token as a rule.
        max_length: tokens of a window; default: the model's own.

    Raises:
        ValueError: as `negative_log_likelihoods`; a max_length below 2 or beyond the model's.
    """
    longest = model.config.max_position_embeddings
    size = longest if max_length is None else max_length
    if not 2 <= size <= longest:
        raise ValueError(f"max_length must lie between 2 and the model's {longest}, not {size}")
    windows = [rolling_windows(document, prefix_id, size) for document in documents]
    flat = [window for each in windows for window in each]
    parts = iter(negative_log_likelihoods(model, flat, config, soft_mask))
    return [_total(list(islice(parts, len(each)))) for each in windows]


def rolling_windows(document: Sequence[int], prefix_id: int, max_length: int) -> list[Request]:
    """Cuts a document into requests of at most max_length tokens that predict each token once.

    The first has the prefix as its context, a later one as many of the tokens before it as fit:
    half a window, more where the document's rest is short.
    """
    tokens = list(document)
    windows: list[Request] = []
    start = 0
    while start < len(tokens):
        most = max_length - (max_length // 2 if start else 1)
        continuation = tokens[start : start + most]
        context = tokens[max(0, start - max_length + len(continuation)) : start]
        windows.append((context or [prefix_id], continuation))
        start += len(continuation)
    return windows


def greedy_matches(
    model: DreamModel,
    requests: Sequence[Request],
    soft_mask: SoftMaskConfig | None = None,
    batch_size: int = 16,
) -> list[bool]:
    """Whether greedy decoding writes exactly the continuation of each request.

    The sampler's own decoding at temperature 0: rule "entropy", as many steps as the continuation
    has tokens, so that every row is alone with rows of its length and has its own schedule. In
    the published schedule such a run commits one token a step, and the last two together (finding
    B7). A batch ends as soon as all of its rows have missed.

    Raises:
        ValueError: as `negative_log_likelihoods`, or k is larger than the vocabulary.
    """
    require(batch_size >= 1, f"batch_size must be at least 1, not {batch_size}")
    _check(model, requests)
    matches = [False] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i][1]), len(requests[i][0])))
    for _, same_length in groupby(order, key=lambda i: len(requests[i][1])):
        for batch in batched(same_length, batch_size):
            found_B = _greedy(model, [requests[i] for i in batch], soft_mask)
            for i, found in zip(batch, found_B, strict=True):
                matches[i] = found
    return matches


def _greedy(
    model: DreamModel, requests: list[Request], soft_mask: SoftMaskConfig | None
) -> list[bool]:
    """`greedy_matches` of one batch, whose continuations have the same length."""
    mask_id, tokens = model.mask_id, len(requests[0][1])
    true_BL, attention_BL = pad([_ids(request) for request in requests], model.device)
    start_B1 = torch.tensor([[len(context)] for context, _ in requests], device=model.device)
    place_L = torch.arange(true_BL.shape[1], device=model.device)
    asked_BL = (place_L >= start_B1) & (place_L < start_B1 + tokens)
    steps = denoise(
        model,
        true_BL.masked_fill(asked_BL, mask_id),
        SamplingConfig(steps=tokens),
        attention_mask_BL=attention_BL,
        soft_mask=soft_mask,
        rules=Rules(suppressed=(mask_id,)),
    )
    missed_B = torch.zeros(len(requests), dtype=torch.bool, device=model.device)
    for step in steps:
        missed_B |= (step.committed_BL & (step.canvas_BL != true_BL)).any(dim=1)
        if bool(missed_B.all()):
            break
    return (~missed_B).tolist()


def draw_masks(question: Sequence[int], length: int, config: LikelihoodConfig) -> Tensor:
    """(S, L) bool: which of a continuation's `length` tokens each sample masks, 1 to L of them.

    A function of (seed, question) alone: sample s masks the l positions with the smallest of its
    uniform numbers u[s, :L], l = 1 + floor(L * time[s]). The times are a systematic sample of
    [0, 1): one random offset, equal distances. So the numbers of masks cover 1..L evenly, each
    with probability 1 / L.
    """
    generator = generator_for(config.seed, question)
    offset = torch.rand((), dtype=torch.float64, generator=generator)
    times_S = (torch.arange(config.samples, dtype=torch.float64) + offset) / config.samples
    # Column after column: continuations of different lengths agree in those that both have.
    columns = [
        torch.rand(config.samples, dtype=torch.float64, generator=generator) for _ in range(length)
    ]
    rank_SL = torch.stack(columns, dim=1).argsort(dim=1).argsort(dim=1)
    count_S = 1 + (times_S * length).long().clamp_max(length - 1)
    return rank_SL < count_S[:, None]


def generator_for(seed: int, ids: Sequence[int]) -> torch.Generator:
    """The random numbers that belong to these token ids under this seed, on any machine."""
    name = f"{seed}:{','.join(map(str, map(int, ids)))}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def soft_input(
    table_VD: Tensor,
    mixer: SoftMask,
    schedule: str,
    noisy_BL: Tensor,
    masked_BL: Tensor,
    rows_N: Tensor,
    logits_NV: Tensor,
    start_B: Tensor,
) -> tuple[SoftTokens, Tensor]:
    """The input of pass 2, with every mask mixed with an earlier pass's prediction; lambda (N,).

    Args:
        table_VD: the model's input embeddings.
        logits_NV: the earlier pass at the flat positions `rows_N`, which are all of `masked_BL`.
        start_B: M of r(t), the masks a row began with.
    """
    seen = feedback(logits_NV, rows_N, mixer.k, mixer.mode)
    rate_B = rate(schedule, masked_BL.sum(dim=1), start_B)
    return mixer(noisy_BL, seen, table_VD, rate_B[rows_N // noisy_BL.shape[1]])


class _Row(NamedTuple):
    """One row of a forward: a request under one mask."""

    request: int
    ids_L: Tensor
    masked_L: Tensor
    start: int  # tokens of the continuation
    samples: int  # how many samples drew this mask
    scale: float  # L / l


def _rows(
    index: int, request: Request, question: Sequence[int], config: LikelihoodConfig
) -> Iterator[_Row]:
    context, continuation = request
    length, ids_L = len(continuation), _ids(request)
    drawn_SL = draw_masks(question, length, config)
    different, samples = torch.unique(drawn_SL, dim=0, return_counts=True)
    before = torch.zeros(len(context), dtype=torch.bool)
    for mask_L, count in zip(different, samples.tolist(), strict=True):
        scale = length / int(mask_L.sum())
        yield _Row(index, ids_L, torch.cat([before, mask_L]), length, count, scale)


def _ids(request: Request) -> Tensor:
    return torch.tensor([*map(int, request[0]), *map(int, request[1])])


@torch.no_grad()
def _masked_nats(
    model: DreamModel,
    batch: list[_Row],
    mixer: SoftMask | None,
    soft_mask: SoftMaskConfig | None,
) -> Tensor:
    """(B,) fp64: cross-entropy of the true tokens, summed over each row's masks."""
    ids_BL, attention_BL = pad([row.ids_L for row in batch], model.device)
    masked_BL, _ = pad([row.masked_L for row in batch], model.device)
    noisy_BL = ids_BL.masked_fill(masked_BL, model.mask_id)
    rows_N = masked_BL.flatten().nonzero().squeeze(1)
    inputs = {"attention_mask": attention_BL, "rows": rows_N}
    text: dict[str, Any] = {"input_ids": noisy_BL}
    if mixer is not None and soft_mask is not None:
        logits_NV = model(noisy_BL, **inputs).logits
        start_B = torch.tensor([row.start for row in batch], device=model.device)
        schedule = soft_mask.schedule
        with model.input_table() as table_VD:
            soft_tokens, _ = soft_input(
                table_VD, mixer, schedule, noisy_BL, masked_BL, rows_N, logits_NV, start_B
            )
        del logits_NV
        text = {"soft_tokens": soft_tokens}
    losses_N = model(**text, **inputs, labels=ids_BL.flatten()[rows_N]).losses
    # Summed on the host: an accelerator's index_add does not repeat its order.
    row_N = (rows_N // ids_BL.shape[1]).cpu()
    nats_B = torch.zeros(len(batch), dtype=torch.float64)
    return nats_B.index_add(0, row_N, losses_N.cpu().double())


def _estimate(values: list[tuple[float, int]], tokens: int, passes: int) -> Estimate:
    """From the values of the different masks, each with how many samples drew it."""
    samples = sum(count for _, count in values)
    mean = math.fsum(value * count for value, count in values) / samples
    if tokens == 1:
        error = 0.0
    elif samples == 1:
        error = math.nan
    else:
        squares = math.fsum(count * (value - mean) ** 2 for value, count in values)
        error = math.sqrt(squares / (samples - 1) / samples)
    return Estimate(mean, error, tokens, passes * len(values))


def _total(parts: list[Estimate]) -> Estimate:
    """Of windows with different contexts, hence independent random numbers; 0 for none."""
    return Estimate(
        nats=math.fsum(part.nats for part in parts),
        error=math.hypot(*(part.error for part in parts)),
        tokens=sum(part.tokens for part in parts),
        forwards=sum(part.forwards for part in parts),
    )


def _check(model: DreamModel, requests: Sequence[Request]) -> None:
    _ = model.mask_id  # raises where there is none
    window = model.config.max_position_embeddings
    for i, (context, continuation) in enumerate(requests):
        if not len(context):
            raise ValueError(
                f"request {i} has an empty context: give the model's end-of-text token as one"
            )
        if not len(continuation):
            raise ValueError(f"request {i} has an empty continuation: there is nothing to predict")
        size = len(context) + len(continuation)
        if size > window:
            raise ValueError(
                f"request {i} has {size} tokens, but the model's window is {window}: cut its "
                "context on the left"
            )
