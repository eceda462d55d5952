"""Log-likelihoods of given texts: which masks a model reads a text under, and what comes of it.

A masked diffusion model knows no one likelihood: tokens may be decided in any order. Four
estimators of -log p(x | c) of a continuation x of L tokens:

* "masks": LLaDA's bound (Nie et al., arXiv 2502.09992, appendix), which draws the number of masked
  tokens, not the probability of each to be masked, which removes most of the variance:

      -log p(x | c) <= E_l E_(S of size l) [ L / l * sum_(i in S) -log p(x_i | c, x without S) ]

  A forward for each different mask S; the mean over orders, so a bound.
* "chain": token by token from the left, everything behind masked. The exact log-probability under
  the decoding that goes that way at temperature 1, and the only one of which every part of a text
  has its share: the sum from token i on is the log-probability of the rest behind what is before.
  A forward for each token, and no chance.
* "llada": the bound as LLaDA's own evaluation draws it, number for number: see `llada_masks`.
* "one_step": all tokens masked at once, the sum of their log-probabilities. The exact
  log-probability under decoding that writes them all in one step at temperature 1, each without
  knowing the others: the bound's term of S = everything alone. One forward, and no chance.

A block-causal model reads every block behind whole ones, as it was trained: its bound is the sum of
the bounds of its blocks, and one step is one a block.

Shape suffixes: B batch, L length, N masked rows (flat indices into B * L), S samples.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..config import ESTIMATORS, SoftMaskConfig, require, require_choice, require_positive, setting
from ..models import DreamModel
from ..sampling import check_guidance
from ..soft_mask import make_mixer
from .grid import Grid, blocks_of
from .halves import AsMemoryAllows
from .masked_rows import MaskedRow, read_rows

Request = tuple[Sequence[int], Sequence[int]]  # context and continuation, token ids
Estimator = Literal["masks", "chain", "llada", "one_step"]
# Those without chance, which know each token's share too.
EXACT = ("chain", "one_step")
# Masks are drawn there, whatever torch's default device is: the same on any machine.
HOST = torch.device("cpu")


@dataclass(frozen=True)
class LikelihoodConfig:
    """Samples, batch size and seed of an estimate."""

    samples: int = setting(128, "Monte-Carlo samples")
    batch_size: int = setting(16, "rows of one forward")
    seed: int = setting(0, "of the masks; each question has its own")
    estimator: Estimator = setting(
        "masks",
        "masks: sampled masks, a bound; chain: one token a forward from the left, exact; llada: "
        "the bound as LLaDA's evaluation draws it; one_step: all tokens in one forward",
    )
    guidance: float = setting(
        0.0,
        "classifier-free guidance w, as in sampling: what is scored is no likelihood of the model",
    )

    def __post_init__(self) -> None:
        require_positive(self, "samples", "batch_size")
        require_choice("estimator", self.estimator, ESTIMATORS)
        check_guidance(self.guidance)
        require(
            self.estimator != "llada" or self.samples >= self.batch_size,
            "estimator llada draws groups of batch_size masks: give samples of at least "
            f"{self.batch_size}",
        )

    def rows(self, tokens: int) -> int:
        """Rows of forwards for a text of so many tokens, at most."""
        return {"chain": tokens, "one_step": 1}.get(self.estimator, self.samples)


@dataclass(frozen=True)
class Estimate:
    """A negative log-likelihood in nats, summed over the tokens: in expectation an upper bound.

    `error` is its standard error as if the samples were independent: as they are spread evenly
    over the number of masks, the true one is smaller. NaN for one sample that is not the only
    possible one; 0 for a chain and for one step, which are exact. `forwards` counts rows of forward
    passes: one for each different mask, two with soft-masking.
    """

    nats: float
    error: float
    tokens: int
    forwards: int


class TokenScore(NamedTuple):
    """A token's log-probability where it was read, and the leading tokens there with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Scorer:
    """Scores continuations in as many forwards as one likes: `step` until it returns False.

    With `soft_mask` (scale above 0) each row takes two passes: the first reads the masks plainly,
    the second reads all of them as mixtures of what the first predicted. That is a function of the
    masked text still, so bound and chain hold. r(t) has m = l masks left of M = L.

    Args:
        requests: pairs of token ids. A text without context gets the model's end-of-text token
            as its context: there is no row that could predict position 0.
        config: its `batch_size` is not used: each step has its own.
        questions: some numbers for each request, the same for those of one question, whose random
            numbers they then share; default: its context.
        top: leading tokens that are told of each token by an estimator without chance.
        memory: what reads too many rows in halves, and remembers it for other scorers; default:
            one of its own.

    Raises:
        ValueError: an empty context or continuation, a request longer than the model's window,
            or a model without a mask token.
    """

    def __init__(
        self,
        model: DreamModel,
        requests: Sequence[Request],
        config: LikelihoodConfig,
        soft_mask: SoftMaskConfig | None = None,
        *,
        questions: Sequence[Sequence[int]] | None = None,
        top: int = 0,
        memory: AsMemoryAllows | None = None,
    ) -> None:
        check_requests(model, requests)
        if questions is None:
            questions = [context for context, _ in requests]
        self.model, self.requests, self.config = model, requests, config
        self.soft_mask, self.top = soft_mask, top
        self._mixer = make_mixer(soft_mask, model.device)
        # Longest first, so that running out of memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i])))
        self._rows = (row for i in order for row in self._rows_of(i, questions[i]))
        self._next = next(self._rows, None)
        # Of each block of each request.
        self._values: dict[int, dict[int, list[tuple[float, int, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._tokens: dict[int, list[TokenScore]] = defaultdict(list)
        self._memory = AsMemoryAllows() if memory is None else memory
        self.forwards = 0

    def _rows_of(self, index: int, question: Sequence[int]) -> Iterator[MaskedRow]:
        request = self.requests[index]
        grid = blocks_of(self.model.config, len(request[0]), sum(map(len, request)))
        if self.config.estimator == "chain":
            return chain_rows(index, request, grid)
        return sampled_rows(index, request, question, self.config, grid)

    @property
    def _passes(self) -> int:
        return (1 if self._mixer is None else 2) * (2 if self.config.guidance else 1)

    def step(self, rows: int, positions: int | None = None) -> bool:
        """One forward, of at most so many rows and positions, but of one at least; what is left."""
        batch: list[MaskedRow] = []
        while self._next is not None and len(batch) < rows:
            longest = max(len(row.ids_L) for row in (*batch, self._next))
            if batch and positions is not None and longest * (len(batch) + 1) > positions:
                break
            batch.append(self._next)
            self._next = next(self._rows, None)
        if batch:
            self._memory.run(batch, lambda row: len(row.ids_L), self._read)
        return self._next is not None

    @torch.no_grad()
    def _read(self, batch: Sequence[MaskedRow]) -> None:
        row_N, losses_N, leading = read_rows(
            self.model, batch, self._mixer, self.soft_mask, self.top, self.config.guidance
        )
        # Summed on the host: an accelerator's index_add does not repeat its order.
        zeros_B = torch.zeros(len(batch), dtype=torch.float64, device=HOST)
        nats_B = zeros_B.index_add(0, row_N, losses_N.double())
        self.forwards += len(batch) * self._passes
        for row, nats in zip(batch, nats_B.tolist(), strict=True):
            value = (row.scale * nats, row.samples, row.start)
            self._values[row.request][row.block].append(value)
        if self.config.estimator in EXACT:
            tops = leading or [()] * len(losses_N)
            for place, loss, top in zip(row_N.tolist(), losses_N.tolist(), tops, strict=True):
                self._tokens[batch[place].request].append(TokenScore(-loss, top))

    def estimates(self) -> list[Estimate]:
        """Of every request, in their order, once no rows are left."""
        passes, is_exact = self._passes, self.config.estimator in EXACT
        found = []
        for i, (_, continuation) in enumerate(self.requests):
            blocks, tokens = list(self._values[i].values()), len(continuation)
            forwards = passes * sum(map(len, blocks))
            if is_exact:
                parts = [(math.fsum(value for value, *_ in values), 0.0) for values in blocks]
            else:
                parts = [_mean(values) for values in blocks]
            nats = math.fsum(mean for mean, _ in parts)
            # Blocks draw their masks independently.
            error = math.hypot(*(error for _, error in parts))
            found.append(Estimate(nats, error, tokens, forwards))
        return found

    def tokens(self) -> list[list[TokenScore]]:
        """Of every request the tokens of its continuation; by estimators without chance alone."""
        return [self._tokens[i] for i in range(len(self.requests))]


def sampled_rows(
    index: int,
    request: Request,
    question: Sequence[int],
    config: LikelihoodConfig,
    grid: Grid | None,
) -> Iterator[MaskedRow]:
    """The rows of estimators that mask many tokens at once.

    Samples that agree in their mask are one: a continuation of L tokens takes at most 2^L - 1, a
    single token one.
    """
    given = start = len(request[0])
    ids_L, block = ids_of(request), 0
    draw = DRAWS[config.estimator]
    while start < len(ids_L):
        stop = len(ids_L) if grid is None else grid.end(start)
        # The first block's random numbers are those of a model without blocks.
        drawn_SL = draw([*question, *[-block] * (block > 0)], stop - start, config)
        different, samples = torch.unique(drawn_SL, dim=0, return_counts=True)
        before = torch.zeros(start, dtype=torch.bool, device=HOST)
        for mask_L, count in zip(different, samples.tolist(), strict=True):
            scale, masked_L = (stop - start) / int(mask_L.sum()), torch.cat([before, mask_L])
            how = (stop - start, count, scale, given, block)
            yield MaskedRow(index, ids_L[:stop], masked_L, masked_L, *how)
        start, block = stop, block + 1


def chain_rows(index: int, request: Request, grid: Grid | None) -> Iterator[MaskedRow]:
    """The rows of the estimator "chain"."""
    context, continuation = request
    ids_L = ids_of(request)
    for place in range(len(context), len(ids_L)):
        seen_L = ids_L if grid is None else ids_L[: grid.end(place)]
        place_L = torch.arange(len(seen_L), device=HOST)
        read = place_L >= place, place_L == place
        yield MaskedRow(index, seen_L, *read, len(continuation), 1, 1.0, len(context))


def draw_masks(question: Sequence[int], length: int, config: LikelihoodConfig) -> Tensor:
    """(S, L) bool: which of a continuation's `length` tokens each sample masks, 1 to L of them.

    A function of (seed, question) alone: sample s masks the l positions with the smallest of its
    uniform numbers u[s, :L], l = 1 + floor(L * time[s]). The times are a systematic sample of
    [0, 1): one random offset, equal distances. So the numbers of masks cover 1..L evenly, each
    with probability 1 / L.
    """
    wide: dict[str, Any] = {"dtype": torch.float64, "device": HOST}
    generator = generator_for(config.seed, question)
    offset = torch.rand((), generator=generator, **wide)
    times_S = (torch.arange(config.samples, **wide) + offset) / config.samples
    # Column after column: continuations of different lengths agree in those that both have.
    columns = [torch.rand(config.samples, generator=generator, **wide) for _ in range(length)]
    rank_SL = torch.stack(columns, dim=1).argsort(dim=1).argsort(dim=1)
    count_S = 1 + (times_S * length).long().clamp_max(length - 1)
    return rank_SL < count_S[:, None]


def llada_masks(question: Sequence[int], length: int, config: LikelihoodConfig) -> Tensor:
    """(S, L) bool: as `get_log_likelihood.py` of ML-GSAI/LLaDA draws them.

    In groups of `batch_size`: one number k ~ U{1..L}, the others of the group at equal distances
    behind it, around; which tokens, by a permutation each. As there, only whole groups count.
    """
    groups, size = config.samples // config.batch_size, config.batch_size
    generator = generator_for(config.seed, question)
    place_L, drawn = torch.arange(length, device=HOST), []
    for _ in range(groups):
        first = int(torch.randint(1, length + 1, (), generator=generator, device=HOST))
        last = first + (size - 1) * (length / size)
        count_S = torch.linspace(float(first), last, size, dtype=torch.float32, device=HOST)
        for count in ((count_S.round().long() - 1) % length + 1).tolist():
            order_L = torch.randperm(length, generator=generator, device=HOST)
            drawn.append((place_L < count)[order_L])
    return torch.stack(drawn)


def one_mask(_question: Sequence[int], length: int, _config: LikelihoodConfig) -> Tensor:
    """(1, L) bool: all of a continuation, once."""
    return torch.ones(1, length, dtype=torch.bool, device=HOST)


DRAWS = {"masks": draw_masks, "llada": llada_masks, "one_step": one_mask}


def generator_for(seed: int, ids: Sequence[int]) -> torch.Generator:
    """The random numbers that belong to these token ids under this seed, on any machine."""
    name = f"{seed}:{','.join(map(str, map(int, ids)))}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator(HOST).manual_seed(int.from_bytes(digest[:4], "big"))


def ids_of(request: Request) -> Tensor:
    """(L,) context and continuation."""
    return torch.tensor([*map(int, request[0]), *map(int, request[1])], device=HOST)


def _mean(values: list[tuple[float, int, int]]) -> tuple[float, float]:
    """Mean and error of the values of a block's masks, each with how many samples drew it, and of
    how many tokens."""
    samples, tokens = sum(count for _, count, _ in values), values[0][2]
    mean = math.fsum(value * count for value, count, _ in values) / samples
    if tokens == 1:
        return mean, 0.0
    if samples == 1:
        return mean, math.nan
    squares = math.fsum(count * (value - mean) ** 2 for value, count, _ in values)
    return mean, math.sqrt(squares / (samples - 1) / samples)


def check_requests(model: DreamModel, requests: Sequence[Request]) -> None:
    """Raises ValueError for a request that a model cannot score."""
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
