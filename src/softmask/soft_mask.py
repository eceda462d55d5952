"""Soft-masking: the only place with this mathematics (Hersche et al., arXiv 2510.17206).

For a position that is still [MASK] after a step's commit, with p = softmax of that step's logits:

    H      = -sum_v p_v log p_v                                  nats, fp32, whole vocabulary
    lambda = scale * r(t) * sigmoid(steepness * (-H - offset))
    q      = softmax over the k largest logits | softmax(logits / temperature)
    e_next = (1 - lambda) * E[MASK] + lambda * sum_i q_i E[i]

With `keep_norm` (ours; off by default) e_next is stretched to the mean norm of what it is made of.

Three pieces, in the order of a step: `feedback()` reads the statistics off the logits and holds
no parameter; `SoftMask` owns the numbers, fixed or learned, and turns the statistics into
`SoftTokens`; `SoftTokens.embed()` makes the input embeddings inside the model's forward.

Shape suffixes: B batch, L length, N chosen rows (flat indices into B * L), V vocabulary, D width,
K superposed tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SoftMaskConfig, is_on
from .logits import LogitStatistics, entropy, statistics


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
    # Mode "topk": the entropy and the leading tokens. Mode "temperature": all logits, as both
    # the entropy and the mixture depend on the temperature.
    entropy_N: Tensor | None = None
    ids_NK: Tensor | None = None
    logits_NK: Tensor | None = None
    logits_NV: Tensor | None = None


@torch.no_grad()
def feedback(logits_NV: Tensor, rows_N: Tensor, k: int, mode: str) -> Feedback:
    """LogitStatistics of a step's aligned, unfiltered logits at the masked positions `rows_N`.

    Raises:
        ValueError: k is larger than the vocabulary.
    """
    if mode == "temperature":
        return Feedback(rows_N, logits_NV=logits_NV)
    check_k(k, logits_NV.shape[-1])
    return feedback_of(statistics(logits_NV, k), rows_N, k)


def feedback_of(seen: LogitStatistics, rows_N: Tensor, k: int) -> Feedback:
    """The feedback of mode "topk" from statistics of at least k leading tokens."""
    return Feedback(rows_N, seen.entropy_N, seen.ids_NK[:, :k], seen.logits_NK[:, :k])


def check_k(k: int, vocabulary: int) -> None:
    """Raises ValueError unless 1 <= k <= vocabulary."""
    if not 1 <= k <= vocabulary:
        raise ValueError(f"soft-mask k is {k}, but the vocabulary has {vocabulary} tokens: lower k")


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


class SoftMask(nn.Module):
    """The soft-mask parameters, learned through unconstrained raw values.

    scale = sigmoid(raw); offset = -softplus(raw) - 1e-6; steepness, temperature =
    softplus(raw) + 1e-6: the published training head (`transparency_head.py`), whose initial
    scale is clamped to [1e-6, 1 - 1e-6] before the logit. With `exact=True` the given numbers are
    used as they are and nothing is learned: decoding, where scale 0 must equal plain bit for bit.
    Always fp32: at 1e-2 the optimiser's updates vanish in bfloat16. Each has shape (1,):
    FSDP2 does not shard tensors without a dimension.
    """

    def __init__(
        self,
        scale: float,
        offset: float = -0.75,
        steepness: float = 6.66,
        temperature: float = 1.0,
        *,
        mode: str = "topk",
        k: int = 1,
        keep_norm: bool = False,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.k, self.keep_norm, self.exact = mode, k, keep_norm, exact
        if exact:
            values = {"scale": scale, "offset": offset, "steepness": steepness}
            for name, value in (values | {"temperature": temperature}).items():
                self.register_buffer(f"raw_{name}", torch.tensor([float(value)]), persistent=False)
            return
        # In fp32 as published: 1 - 1e-6 is rounded before the logit.
        clamped = torch.tensor([float(scale)]).clamp(1e-6, 1 - 1e-6)
        self.raw_scale = nn.Parameter(torch.logit(clamped))
        self.raw_offset = nn.Parameter(torch.tensor([_softplus_inverse(max(-offset, 1e-6))]))
        self.raw_steepness = nn.Parameter(torch.tensor([_softplus_inverse(max(steepness, 1e-6))]))
        # Without a use in mode "topk" it would be a parameter that never gets a gradient.
        self.raw_temperature = nn.Parameter(
            torch.tensor([_softplus_inverse(max(temperature, 1e-6))]),
            requires_grad=mode == "temperature",
        )

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
        """(N,) entropy in nats that confidence is read off.

        Mode "topk": of softmax(logits); mode "temperature": of the tempered distribution itself,
        as published (`neg_entropy` of p at `mixture_temp`).
        """
        if self.mode == "topk":
            assert seen.entropy_N is not None
            return seen.entropy_N
        assert seen.logits_NV is not None
        return entropy(seen.logits_NV.float() / self.temperature)

    def weight(self, entropy_N: Tensor, rate_N: Tensor | float = 1.0) -> Tensor:
        """(N,) lambda in [0, 1] of rows with this entropy (nats); `rate_N` is r(t)."""
        return self.scale * rate_N * torch.sigmoid(self.steepness * (-entropy_N - self.offset))

    def mix(
        self, own_N: Tensor, seen: Feedback, table_VD: Tensor, rate_N: Tensor | float = 1.0
    ) -> Mixture:
        """What the positions of `seen` become, whose tokens are `own_N` (masks).

        `table_VD` are the input embeddings, which mode "temperature" mixes here.
        """
        lambda_N = self.weight(self.entropy(seen), rate_N)
        if self.mode == "topk":
            assert seen.ids_NK is not None
            assert seen.logits_NK is not None
            q_NK = torch.softmax(seen.logits_NK, dim=-1)
            ids_NK = torch.cat([own_N[:, None], seen.ids_NK], dim=1)
            weights_NK = torch.cat([1 - lambda_N[:, None], lambda_N[:, None] * q_NK], dim=1)
            if self.keep_norm:
                vectors_NKD = F.embedding(ids_NK, table_VD).float()
                mixed_ND = torch.einsum("nk,nkd->nd", weights_NK, vectors_NKD)
                mean_N = (weights_NK * vectors_NKD.norm(dim=-1)).sum(1)
                weights_NK = weights_NK * _stretch(mixed_ND, mean_N)[:, None]
            return Mixture(ids_NK, weights_NK, lambda_N)
        assert seen.logits_NV is not None
        q_NV = torch.softmax(seen.logits_NV.float() / self.temperature, dim=-1)
        with torch.autocast(table_VD.device.type, enabled=False):
            weighted_NV = (lambda_N[:, None] * q_NV).to(table_VD.dtype)
            added_ND = (weighted_NV @ table_VD).float()
        weights_N = 1 - lambda_N
        if self.keep_norm:
            norms_V = table_VD.float().norm(dim=1)
            mixed_ND = weights_N[:, None] * F.embedding(own_N, table_VD).float() + added_ND
            mean_N = weights_N * norms_V[own_N] + lambda_N * (q_NV @ norms_V)
            stretch_N = _stretch(mixed_ND, mean_N)
            weights_N, added_ND = weights_N * stretch_N, added_ND * stretch_N[:, None]
        return Mixture(own_N[:, None], weights_N[:, None], lambda_N, added_ND)

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
        plain_K = torch.zeros(columns, device=ids_BL.device)
        plain_K[0] = 1.0
        weights_BLK = plain_K.repeat(ids_BL.numel(), 1).index_copy(0, rows_N, mixed.weights_NK)
        added_BLD = mixed.added_ND
        if added_BLD is not None:
            nothing = added_BLD.new_zeros(ids_BL.numel(), added_BLD.shape[1])
            added_BLD = nothing.index_copy(0, rows_N, added_BLD).view(*ids_BL.shape, -1)
        soft = SoftTokens(ids_BLK, weights_BLK.view(*ids_BL.shape, columns), added_BLD)
        return soft, mixed.lambda_N


def _stretch(mixed_ND: Tensor, mean_N: Tensor) -> Tensor:
    """(N,) what a mixture is to be multiplied with, to have the mean norm of its parts.

    Embeddings of different tokens are nearly orthogonal: their mixture is 20 to 40 % shorter.
    """
    return mean_N / mixed_ND.norm(dim=1).clamp_min(1e-12)


def make_mixer(config: SoftMaskConfig | None, device: torch.device) -> SoftMask | None:
    """The module for fixed numbers; None where soft-masking changes nothing."""
    if not is_on(config):
        return None
    names = ("scale", "offset", "steepness", "temperature", "mode", "k", "keep_norm")
    return SoftMask(**{name: getattr(config, name) for name in names}, exact=True).to(device)


def rate(schedule: str, left_B: Tensor, start_B: Tensor) -> Tensor:
    """r(t) of each row: 1 | m/M | 1 while m/M > 0.5 else 0; M = 0 counts as ratio 1.

    The published code takes one ratio for the whole batch (finding B4); ours is per row.
    """
    ratio_B = torch.where(start_B > 0, left_B / start_B.clamp_min(1), 1.0)
    if schedule == "linear":
        return ratio_B
    if schedule == "stepwise":
        return (ratio_B > 0.5).float()
    return torch.ones_like(ratio_B)
