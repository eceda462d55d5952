"""Soft-masking: the only place with this mathematics (Hersche et al., arXiv 2510.17206).

For a position that is still [MASK] after a step's commit, with p = softmax of that step's logits:

    H      = -sum_v p_v log p_v                                  nats, fp32, whole vocabulary
    lambda = scale * r(t) * sigmoid(steepness * (-H - offset))
    q      = softmax over the k largest logits | softmax(logits / temperature)
    e_next = (1 - lambda) * E[MASK] + lambda * sum_i q_i E[i]

That is the published mixture and weight, and the default; `mixtures.py` has the others. Two more
temperatures are 1 as published: H can be read off softmax(logits / entropy_temperature), and q off
logits / token_temperature; in mode "temperature" they multiply its own.

Four pieces, in the order of a step: `feedback()` reads the statistics off the logits and holds
no parameter; a feedback rule (`rules.py`; the published modes are two of them) reads off those how
confident a position is, and what is mixed in; `SoftMask` owns the numbers, fixed or learned, and
turns all of this into `SoftTokens`; `SoftTokens.embed()` makes the input embeddings inside the
model's forward.

Shape suffixes: B batch, L length, N chosen rows (flat indices into B * L), V vocabulary, D width,
K superposed tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SoftMaskConfig, is_on
from .logits import LogitStatistics, entropy, statistics, tempered
from .mixtures import MIXTURES, WEIGHTS, Ends
from .rule_inputs import MaskedRows, are_shares
from .rules import Chosen, find

# Below it 1 - lambda is 1 in fp32, and what is mixed in is lost in rounding.
NEGLIGIBLE = 2.0**-25
# Fields of SoftMaskConfig that training leaves as they are.
FIXED = ("mode", "k", "mixture", "weight", "entropy_temperature", "token_temperature", "options")


class SoftTokens(NamedTuple):
    """A superposition of tokens at every position, kept sparse.

    Column 0 of `ids_BLK` is the token itself. `added_BLD` (mode "temperature" only) are embeddings
    of mixtures over the whole vocabulary, in fp32, already weighted.
    """

    ids_BLK: Tensor
    weights_BLK: Tensor
    added_BLD: Tensor | None = None

    def embed(self, table_VD: Tensor) -> Tensor:
        """(B, L, D) input embeddings in the table's dtype; the sum is taken in fp32."""
        # Mixed-precision training must not round the weights: 1 - lambda has 8 bits in bfloat16.
        with torch.autocast(table_VD.device.type, enabled=False):
            superposed_BLKD = F.embedding(self.ids_BLK, table_VD).float()
            embeds_BLD = torch.einsum("blk,blkd->bld", self.weights_BLK, superposed_BLKD)
            if self.added_BLD is not None:
                embeds_BLD = embeds_BLD + self.added_BLD
        return embeds_BLD.to(table_VD.dtype)


class Mixture(NamedTuple):
    """What N positions become: column 0 of `ids_NK` is the token itself; `lambda_N` in [0, 1]."""

    ids_NK: Tensor
    weights_NK: Tensor
    lambda_N: Tensor
    added_ND: Tensor | None = None


class Feedback(NamedTuple):
    """What one step's logits hand to the next one, at the flat positions `rows_N`."""

    rows_N: Tensor
    # The entropy, at its temperature, and the leading tokens; or all logits, where a rule reads
    # them, or mixes in all tokens and its temperature is learned.
    entropy_N: Tensor | None = None
    ids_NK: Tensor | None = None
    logits_NK: Tensor | None = None
    logits_NV: Tensor | None = None
    total_N: Tensor | None = None  # log sum exp
    # Of rules that mix in all tokens, where logits are not kept: (M,) indices of the rows to their
    # (M, X) mean embeddings, and norms (`models.lm_head.Blend`).
    blend: Callable[[Tensor], Tensor] | None = None

    def at(self, index: slice | Tensor) -> Feedback:
        """Of some of the rows, their statistics."""
        return Feedback(*(one[index] if isinstance(one, Tensor) else None for one in self))  # type: ignore[arg-type]


class Judged(NamedTuple):
    """What a feedback rule says of N positions: how confident it is, in [0, 1], and the shares of
    what is mixed in, of leading tokens or (dense rules) of all; None: softmax of k logits."""

    confidence_N: Tensor
    shares: Tensor | None = None


def confidence(entropy_N: Tensor, offset: Tensor, steepness: Tensor) -> Tensor:
    """(N,) the published confidence in [0, 1] of rows with this entropy (nats)."""
    return torch.sigmoid(steepness * (-entropy_N - offset))


@torch.no_grad()
def feedback(
    logits_NV: Tensor, rows_N: Tensor, k: int, mode: str, entropy_temperature: float = 1.0
) -> Feedback:
    """LogitStatistics of a step's aligned, unfiltered logits at the masked positions `rows_N`.

    Raises:
        ValueError: k is larger than the vocabulary.
    """
    rule = find("feedback", mode)
    if rule.dense:
        return Feedback(rows_N, logits_NV=logits_NV)
    check_k(k, logits_NV.shape[-1])
    k = min(max(k, rule.top), logits_NV.shape[-1])
    return feedback_of(statistics(logits_NV, k, entropy_temperature), rows_N, k)


def feedback_of(seen: LogitStatistics, rows_N: Tensor, k: int) -> Feedback:
    """The feedback of mode "topk" from statistics of at least k leading tokens."""
    return Feedback(
        rows_N, seen.tempered_N, seen.ids_NK[:, :k], seen.logits_NK[:, :k], total_N=seen.total_N
    )


def check_k(k: int, vocabulary: int) -> None:
    """Raises ValueError unless 1 <= k <= vocabulary."""
    if not 1 <= k <= vocabulary:
        raise ValueError(f"soft-mask k is {k}, but the vocabulary has {vocabulary} tokens: lower k")


class SoftMask(nn.Module):
    """The soft-mask parameters, learned through unconstrained raw values.

    scale = sigmoid(raw); offset = -softplus(raw) - 1e-6; steepness, temperature =
    softplus(raw) + 1e-6: the published training head (`transparency_head.py`), whose initial
    scale is clamped to [1e-6, 1 - 1e-6] before the logit. With `exact=True` the given numbers are
    used as they are and nothing is learned: decoding, where scale 0 must equal plain bit for bit.
    Always fp32: at 1e-2 the optimiser's updates vanish in bfloat16. Each has shape (1,):
    FSDP2 does not shard tensors without a dimension.
    """

    raw_offset: Tensor
    raw_steepness: Tensor
    raw_temperature: Tensor

    def __init__(
        self,
        scale: float,
        offset: float = -0.75,
        steepness: float = 6.66,
        temperature: float = 1.0,
        *,
        mode: str = "topk",
        k: int = 1,
        mixture: str = "linear",
        weight: str = "sigmoid",
        entropy_temperature: float = 1.0,
        token_temperature: float = 1.0,
        options: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.k, self.mixture, self.weight, self.exact = mode, k, mixture, weight, exact
        self.entropy_temperature, self.token_temperature = entropy_temperature, token_temperature
        self.options = options or {}
        if not exact:
            self._check_trains()
        if exact:
            values = {"scale": scale, "offset": offset, "steepness": steepness}
            for name, value in (values | {"temperature": temperature}).items():
                self.register_buffer(f"raw_{name}", _one_number(value), persistent=False)
            return
        # In fp32 as published: 1 - 1e-6 is rounded before the logit.
        clamped = _one_number(scale).clamp(1e-6, 1 - 1e-6)
        self.raw_scale = nn.Parameter(torch.logit(clamped))
        # What is not used would be a parameter that never gets a gradient.
        sure = weight == "sigmoid"
        for name, value, used in (
            ("offset", -offset, sure),
            ("steepness", steepness, sure),
            ("temperature", temperature, mode != "topk"),
        ):
            least = max(value, 1e-6)
            raw = _one_number(least + math.log(-math.expm1(-least)))  # softplus' inverse
            self.register_parameter(f"raw_{name}", nn.Parameter(raw, requires_grad=used))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SoftMask:
        # All of `to`, `half`, `cuda` and so on: the device is taken, and another dtype is not.
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    @property
    def rule(self) -> Chosen:
        """The feedback rule."""
        return Chosen(find("feedback", self.mode), self.options)

    @property
    def is_dense(self) -> bool:
        """Whether it reads all logits."""
        return self.rule.rule.dense

    @property
    def reads(self) -> int:
        """How many leading tokens are read, of which at least k are mixed in."""
        return max(self.k, self.rule.rule.top)

    @property
    def scale(self) -> Tensor:
        return self.raw_scale if self.exact else torch.sigmoid(self.raw_scale)

    @property
    def offset(self) -> Tensor:
        return self.raw_offset if self.exact else -F.softplus(self.raw_offset) - 1e-6

    @property
    def steepness(self) -> Tensor:
        return self.raw_steepness if self.exact else F.softplus(self.raw_steepness) + 1e-6

    @property
    def temperature(self) -> Tensor:
        return self.raw_temperature if self.exact else F.softplus(self.raw_temperature) + 1e-6

    def entropy(self, seen: Feedback) -> Tensor:
        """(N,) entropy in nats that the weight of the feedback is read off.

        Mode "topk": of softmax(logits); mode "temperature": of the tempered distribution itself,
        as published (`neg_entropy` of p at `mixture_temp`). Each at `entropy_temperature`.
        """
        if seen.logits_NV is not None:
            return entropy(tempered(self._own(seen.logits_NV), self.entropy_temperature))
        assert seen.entropy_N is not None
        return seen.entropy_N

    def _own(self, logits_NV: Tensor) -> Tensor:
        """(N, V) logits over the mode's own temperature, in fp32."""
        return logits_NV.float() / self.temperature

    def view(
        self, seen: Feedback, more: Mapping[str, Callable[[], Any]] | None = None
    ) -> MaskedRows:
        """What a feedback rule sees: the statistics, the parameters, and what a step knows too."""
        sources: dict[str, Callable[[], Any]] = {
            "offset": lambda: self.offset,
            "steepness": lambda: self.steepness,
            "temperature": lambda: self.temperature,
            "entropy_temperature": lambda: self.entropy_temperature,
            "token_temperature": lambda: self.token_temperature,
            "confidence": lambda: lambda seen_N: confidence(seen_N, self.offset, self.steepness),
            "entropy_of": lambda: entropy,
            "tempered": lambda: tempered,
        }

        @functools.cache
        def read() -> LogitStatistics:
            if seen.logits_NV is not None:
                most = min(self.reads, seen.logits_NV.shape[1])
                return statistics(seen.logits_NV, most, self.entropy_temperature)
            assert seen.ids_NK is not None
            assert seen.logits_NK is not None
            assert seen.total_N is not None
            assert seen.entropy_N is not None
            return LogitStatistics(
                seen.ids_NK, seen.logits_NK, seen.total_N, seen.entropy_N, seen.entropy_N
            )

        @functools.cache
        def chances() -> Tensor:
            return (read().logits_NK - read().total_N[:, None]).exp()

        sources |= {
            "tokens_N": lambda: read().ids_NK[:, 0],
            "entropy_N": lambda: (
                self.entropy(seen) if self.rule.rule.streamed else read().tempered_N
            ),
            "top_ids_NK": lambda: read().ids_NK,
            "top_logits_NK": lambda: read().logits_NK,
            "top_probability_NK": chances,
            "probability_N": lambda: chances()[:, 0],
            "margin_N": lambda: chances()[:, 0] - chances()[:, 1],
        }
        if seen.logits_NV is not None:
            sources["logits_NV"] = lambda: seen.logits_NV
        return MaskedRows(sources | dict(more or {}))

    def _check_trains(self) -> None:
        """Raises ValueError for a rule that sees one text at a time, or keeps a state."""
        rule = self.rule.rule
        if not rule.batched or rule.state:
            raise ValueError(
                f"the feedback rule {rule.name} needs the steps of one text, so it is for decoding "
                "alone: training and likelihoods take batched rules without state"
            )

    def judge(self, seen: Feedback) -> Judged:
        """What the rule says of the rows of several texts; raises as `_check_trains`."""
        self._check_trains()
        return self.checked(self.rule.run(self.view(seen)), seen)

    def checked(self, result: Any, seen: Feedback) -> Judged:
        """A rule's result; what is not shipped is looked at, and made to be weights.

        Raises:
            ValueError: it has another shape, or values that are no numbers or not in [0, 1].
        """
        rule = self.rule.rule
        if rule.is_shipped:
            return Judged(*result) if isinstance(result, tuple) else Judged(result)
        is_pair = isinstance(result, tuple) and len(result) == 2
        confidence_N, shares = result if is_pair else (result, None)
        count = len(seen.rows_N)
        good = isinstance(confidence_N, Tensor) and confidence_N.shape == (count,)
        good = good and not (rule.streamed and is_pair)
        if good and shares is not None:
            of: Any = seen.logits_NV if rule.dense else seen.logits_NK
            columns = of.shape[1]
            least = columns if rule.dense else 1
            good = isinstance(shares, Tensor) and shares.dim() == 2
            good = good and len(shares) == count and not shares.isnan().any()
            good = good and least <= shares.shape[1] <= columns
        if not good or not are_shares(confidence_N):
            pair = ", or a pair of them and the shares of what is mixed in"
            raise ValueError(
                f"{rule} must return ({count},) numbers in [0, 1]{'' if rule.streamed else pair}, "
                "and no NaN"
            )
        if shares is not None:
            shares = shares.float().clamp_min(0)
            shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
        elif rule.reads_logits:
            raise ValueError(f"{rule} is dense: it must return shares too")
        return Judged(confidence_N.float().clamp(0, 1), shares)

    def mix(
        self,
        own_N: Tensor,
        seen: Feedback,
        table_VD: Tensor,
        rate_N: Tensor | float = 1.0,
        judged: Judged | None = None,
    ) -> Mixture:
        """What the positions of `seen` become, whose tokens are `own_N` (masks).

        `table_VD` are the input embeddings, `judged` is what the rule said already.
        """
        confidence_N, shares = self.judge(seen) if judged is None else judged
        # Mixed-precision training must not round what weights are made of.
        with torch.autocast(table_VD.device.type, enabled=False):
            weighed = WEIGHTS[self.weight](confidence_N, lambda: self.entropy(seen), len(table_VD))
            lambda_N = self.scale * rate_N * weighed
            if self.rule.rule.streamed:
                return self._mix_all(own_N, seen, table_VD, lambda_N)
            if shares is None:
                shares = self.leading_shares(seen)
            ids_NK = None if seen.ids_NK is None else seen.ids_NK[:, : shares.shape[1]]
            ends = Ends(own_N, ids_NK, shares, table_VD)
            mask_N, delta_N = MIXTURES[self.mixture](lambda_N, ends)
            if ids_NK is None:
                added_ND = ends.scaled_delta(delta_N)
                return Mixture(own_N[:, None], mask_N[:, None], lambda_N, added_ND)
            ids_NK = torch.cat([own_N[:, None], ids_NK], dim=1)
            weights_NK = torch.cat([mask_N[:, None], delta_N[:, None] * shares], dim=1)
            return Mixture(ids_NK, weights_NK, lambda_N)

    def leading_shares(self, seen: Feedback) -> Tensor:
        """(N, k) fp32 shares where a rule says none: softmax of the k leading logits.

        What the rule reads beyond k tokens is not mixed in by itself.
        """
        assert seen.logits_NK is not None
        mixed = self.k if self.reads > self.k else None
        logits_NK = tempered(seen.logits_NK[:, :mixed], self.token_temperature)
        return torch.softmax(logits_NK, dim=-1)

    def _mix_all(
        self, own_N: Tensor, seen: Feedback, table_VD: Tensor, lambda_N: Tensor
    ) -> Mixture:
        """All tokens, as a softmax weighs them; where logits are not kept, of the rows alone whose
        lambda is not lost in rounding."""
        mix, own_N1 = MIXTURES[self.mixture], own_N[:, None]
        if seen.blend is None:
            assert seen.logits_NV is not None
            own_NV = self._own(seen.logits_NV)
            shares_NV = tempered(own_NV, self.token_temperature).softmax(-1)
            ends = Ends(own_N, None, shares_NV, table_VD)
            mask_N, delta_N = mix(lambda_N, ends)
            return Mixture(own_N1, mask_N[:, None], lambda_N, ends.scaled_delta(delta_N))
        rows_M = torch.arange(len(own_N), device=own_N.device)
        if own_N.device.type == "cpu":  # elsewhere the host would wait to learn how many they are
            rows_M = rows_M[lambda_N > NEGLIGIBLE]
        mask_N = torch.ones_like(lambda_N)
        added_ND = lambda_N.new_zeros(len(own_N), table_VD.shape[1])
        if len(rows_M):
            ends = Ends.blended(own_N[rows_M], table_VD, seen.blend(rows_M))
            mask_N[rows_M], delta_M = mix(lambda_N[rows_M], ends)
            added_ND[rows_M] = ends.scaled_delta(delta_M)
        return Mixture(own_N1, mask_N[:, None], lambda_N, added_ND)

    def forward(
        self, ids_BL: Tensor, seen: Feedback, table_VD: Tensor, rate_N: Tensor | float = 1.0
    ) -> tuple[SoftTokens, Tensor]:
        """Mixes the feedback into a canvas of tokens; returns it and lambda_N.

        Every position outside `seen.rows_N` keeps its token with weight exactly 1.
        """
        rows_N = seen.rows_N
        mixed = self.mix(ids_BL.flatten()[rows_N], seen, table_VD, rate_N)
        columns = mixed.ids_NK.shape[1]
        ids_BLK = ids_BL[..., None].repeat(1, 1, columns).flatten(0, 1)
        ids_BLK = ids_BLK.index_copy(0, rows_N, mixed.ids_NK).view(*ids_BL.shape, columns)
        plain_K = torch.zeros(columns, dtype=torch.float32, device=ids_BL.device)
        plain_K[0] = 1.0
        weights_BLK = plain_K.repeat(ids_BL.numel(), 1).index_copy(0, rows_N, mixed.weights_NK)
        added_BLD = mixed.added_ND
        if added_BLD is not None:
            nothing = added_BLD.new_zeros(ids_BL.numel(), added_BLD.shape[1])
            added_BLD = nothing.index_copy(0, rows_N, added_BLD).view(*ids_BL.shape, -1)
        soft = SoftTokens(ids_BLK, weights_BLK.view(*ids_BL.shape, columns), added_BLD)
        return soft, mixed.lambda_N


def _one_number(value: float) -> Tensor:
    """(1,) fp32, whatever torch's default dtype and device are."""
    return torch.tensor([float(value)], dtype=torch.float32, device="cpu")


def make_mixer(config: SoftMaskConfig | None, device: torch.device) -> SoftMask | None:
    """The module for fixed numbers; None where soft-masking changes nothing."""
    if not is_on(config):
        return None
    names = ("scale", "offset", "steepness", "temperature", *FIXED)
    return SoftMask(**{name: getattr(config, name) for name in names}, exact=True).to(device)


def rate(schedule: str, left_B: Tensor, start_B: Tensor) -> Tensor:
    """r(t) of each row: 1 | m/M | 1 while m/M > 0.5 else 0; M = 0 counts as ratio 1.

    The published code takes one ratio for the whole batch (finding B4); ours is per row.
    """
    ratio_B = torch.where(start_B > 0, left_B / start_B.clamp_min(1).float(), 1.0)
    if schedule == "linear":
        return ratio_B
    if schedule == "stepwise":
        return (ratio_B > 0.5).float()
    return torch.ones_like(ratio_B)
