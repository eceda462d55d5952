"""The likelihood of given texts, for evaluation: of pairs, of whole documents, and greedy matches.

The estimators are in `decoding/likelihood.py`, which scores for a server too.
Shape suffixes: B batch, L length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, groupby, islice

import torch

from ..config import SamplingConfig, SoftMaskConfig, require
from ..decoding.halves import AsMemoryAllows
from ..decoding.likelihood import (
    Estimate,
    LikelihoodConfig,
    Request,
    Scorer,
    check_requests,
    ids_of,
)
from ..decoding.masked_rows import pad
from ..decoding.sampler import Rules, denoise
from ..models import DreamModel
from .batching import batched


def negative_log_likelihoods(
    model: DreamModel,
    requests: Sequence[Request],
    config: LikelihoodConfig,
    soft_mask: SoftMaskConfig | None = None,
    *,
    questions: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
    memory: AsMemoryAllows | None = None,
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
        rows: of one forward; default: the config's `batch_size`.
        memory: as of `Scorer`.

    Raises:
        ValueError: an empty context or continuation, a request longer than the model's window,
            or a model without a mask token.
    """
    scorer = Scorer(model, requests, config, soft_mask, questions=questions, memory=memory)
    while scorer.step(rows or config.batch_size):
        pass
    return scorer.estimates()


def estimates_and_matches(
    model: DreamModel,
    requests: Sequence[Request],
    config: LikelihoodConfig,
    soft_mask: SoftMaskConfig | None = None,
    *,
    questions: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
    memory: AsMemoryAllows | None = None,
) -> list[tuple[Estimate, bool]]:
    """Each request's estimate, and whether greedy decoding writes its continuation.

    Of the estimator "one_step" both come of the same forward: the decoding is the one whose
    likelihood it is, of all tokens in one step. Elsewhere it is that of `greedy_matches`.

    Args: as of `negative_log_likelihoods`.

    Raises:
        ValueError: as `negative_log_likelihoods`, or k is larger than the vocabulary.
    """
    rows = rows or config.batch_size
    if config.estimator != "one_step":
        estimates = negative_log_likelihoods(
            model, requests, config, soft_mask, questions=questions, rows=rows, memory=memory
        )
        matches = greedy_matches(model, requests, soft_mask, rows, memory)
        return list(zip(estimates, matches, strict=True))
    scorer = Scorer(model, requests, config, soft_mask, questions=questions, top=2, memory=memory)
    while scorer.step(rows):
        pass
    # Decoding never writes the mask: where it leads, the second does.
    written = [
        [next(token for token, _ in score.top if token != model.mask_id) for score in scores]
        for scores in scorer.tokens()
    ]
    matches = [list(one[1]) == ids for one, ids in zip(requests, written, strict=True)]
    return list(zip(scorer.estimates(), matches, strict=True))


def rolling(
    model: DreamModel,
    documents: Sequence[Sequence[int]],
    config: LikelihoodConfig,
    soft_mask: SoftMaskConfig | None = None,
    *,
    prefix_id: int,
    max_length: int | None = None,
    rows: int | None = None,
    memory: AsMemoryAllows | None = None,
) -> list[Estimate]:
    """Estimates -log p of whole documents, each token predicted once (`rolling_windows`).

    Every window of a document has random numbers of its own, which follow from the document's
    tokens: errors average out over documents, and no other document changes an estimate.

    Args:
        prefix_id: what stands before a document, the model's end-of-text token as a rule.
        max_length: tokens of a window; default: the model's own.
        rows, memory: as of `negative_log_likelihoods`.

    Raises:
        ValueError: as `negative_log_likelihoods`; a max_length below 2 or beyond the model's.
    """
    longest = model.config.max_position_embeddings
    size = longest if max_length is None else max_length
    if not 2 <= size <= longest:
        raise ValueError(f"max_length must lie between 2 and the model's {longest}, not {size}")
    windows = [rolling_windows(document, prefix_id, size) for document in documents]
    flat = [window for each in windows for window in each]
    # Not its context, which is the prefix alone at the start of every document.
    questions = [
        [number, *document]
        for document, each in zip(documents, windows, strict=True)
        for number in range(len(each))
    ]
    parts = iter(
        negative_log_likelihoods(
            model, flat, config, soft_mask, questions=questions, rows=rows, memory=memory
        )
    )
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
    memory: AsMemoryAllows | None = None,
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
    check_requests(model, requests)
    matches = [False] * len(requests)
    memory = AsMemoryAllows() if memory is None else memory
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i][1]), len(requests[i][0])))
    for _, same_length in groupby(order, key=lambda i: len(requests[i][1])):
        for batch in batched(same_length, batch_size):
            parts = memory.run(
                [requests[i] for i in batch],
                lambda request: len(request[0]) + len(request[1]),
                lambda part: _greedy(model, part, soft_mask),
            )
            for i, found in zip(batch, chain.from_iterable(parts), strict=True):
                matches[i] = found
    return matches


def _greedy(
    model: DreamModel, requests: Sequence[Request], soft_mask: SoftMaskConfig | None
) -> list[bool]:
    """`greedy_matches` of one batch, whose continuations have the same length."""
    mask_id, tokens = model.mask_id, len(requests[0][1])
    true_BL, attention_BL = pad([ids_of(request) for request in requests], model.device)
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


def _total(parts: list[Estimate]) -> Estimate:
    """Of windows with random numbers of their own; 0 for none."""
    return Estimate(
        nats=math.fsum(part.nats for part in parts),
        error=math.hypot(*(part.error for part in parts)),
        tokens=sum(part.tokens for part in parts),
        forwards=sum(part.forwards for part in parts),
    )
