"""Soft-masking: the only place with this mathematics (Hersche et al., arXiv 2510.17206).

For a position that is still [MASK] after a step's commit, with p = softmax of that step's logits:

    H      = -sum_v p_v log p_v                                  nats, fp32, whole vocabulary
    lambda = scale * r(t) * sigmoid(steepness * (-H - offset))
    q      = softmax over the k largest logits | softmax(logits / temperature)
    e_next = (1 - lambda) * E[MASK] + lambda * sum_i q_i E[i]

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

# Rows whose fp32 statistics are computed at once: bounds the temporaries (32 rows of a
# vocabulary of 152k are 19 MB) and keeps them warm in the cache between the passes.
CHUNK_ROWS = 32


class SoftTokens(NamedTuple):
    """A superposition of tokens at every position, kept sparse.

    Column 0 of `ids_BLK` is the token itself. `dense_NV` (mode "temperature" only) adds weights
    over the whole vocabulary at the flat positions `rows_N`.
    """

    ids_BLK: Tensor
    weights_BLK: Tensor
    rows_N: Tensor | None = None
    dense_NV: Tensor | None = None

    def embed(self, table_VD: Tensor) -> Tensor:
        """(B, L, D) input embeddings in the table's dtype; the sum is taken in fp32."""
        # Mixed-precision training must not round the weights: 1 - lambda has 8 bits in bfloat16.
        with torch.autocast(table_VD.device.type, enabled=False):
            superposed_BLKD = F.embedding(self.ids_BLK, table_VD).float()
            embeds_BLD = torch.einsum("blk,blkd->bld", self.weights_BLK, superposed_BLKD)
            if self.dense_NV is not None:
                mixed_ND = (self.dense_NV.to(table_VD.dtype) @ table_VD).float()
                flat = embeds_BLD.flatten(0, 1).index_add(0, self.rows_N, mixed_ND)
                embeds_BLD = flat.view_as(embeds_BLD)
        return embeds_BLD.to(table_VD.dtype)


class Feedback(NamedTuple):
    """What one step's logits tell the next one, at the flat positions `rows_N`."""

    rows_N: Tensor
    # Mode "topk": the entropy and the leading tokens. Mode "temperature": all logits, as both
    # the entropy and the mixture depend on the temperature.
    entropy_N: Tensor | None = None
    ids_NK: Tensor | None = None
    logits_NK: Tensor | None = None
    logits_NV: Tensor | None = None


def top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row and their ids, largest first: (N, k), (N, k).

    Exact, and several times faster than `torch.topk` on a CPU: the k largest entries lie in the
    k blocks of columns with the largest maxima, so one pass of maxima finds the candidates.
    """
    size = logits_NV.shape[-1]
    width = 128
    if k == 1:
        return torch.max(logits_NV, dim=-1, keepdim=True)
    if logits_NV.is_cuda or size < 32 * width or k > 16:
        return torch.topk(logits_NV, k, dim=-1)
    body = size - size % width
    blocks_NCW = logits_NV[:, :body].unflatten(-1, (-1, width))
    block_NK = blocks_NCW.amax(-1).topk(k, dim=-1).indices
    columns = block_NK[..., None] * width + torch.arange(width, device=logits_NV.device)
    tail = torch.arange(body, size, device=logits_NV.device).expand(len(logits_NV), -1)
    candidates = torch.cat([columns.flatten(1), tail], dim=1)
    values, place = logits_NV.gather(1, candidates).topk(k, dim=-1)
    return values, candidates.gather(1, place)


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,) entropy in nats of softmax(logits), fp32, as logsumexp(z) - sum p z.

    Logits of minus infinity count as probability 0.
    """
    parts = []
    for chunk_NV in logits_NV.split(CHUNK_ROWS):
        # Shifting by the maximum keeps sum p z from cancelling; finite floor: 0 * -inf is NaN.
        z_NV = chunk_NV.float()
        z_NV = (z_NV - z_NV.amax(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).min)
        p_NV = z_NV.exp()
        total_N = p_NV.sum(-1)
        parts.append(total_N.log() - (p_NV * z_NV).sum(-1) / total_N)
    return torch.cat(parts) if parts else logits_NV.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def feedback(
    logits_NV: Tensor,
    rows_N: Tensor,
    k: int,
    mode: str,
    stays_M: Tensor | None = None,
    entropy_N: Tensor | None = None,
) -> Feedback:
    """Statistics of a step's aligned, unfiltered logits at the masked positions `rows_N`.

    Args:
        stays_M: indices into the N rows of those that are still masked; None: all of them.
        entropy_N: the entropies, where the unmasking rule has them already.

    Raises:
        ValueError: k is larger than the vocabulary.
    """
    if mode == "temperature":
        parts = [rows_N, None, None, None, logits_NV]
    else:
        check_k(k, logits_NV.shape[-1])
        values_NK, ids_NK = top_k(logits_NV, k)
        parts = [rows_N, entropy(logits_NV) if entropy_N is None else entropy_N]
        parts += [ids_NK, values_NK.float()]
    # Chosen after the reduction: a copy of the logits' rows would be the step's largest tensor.
    return Feedback(*(p if p is None or stays_M is None else p[stays_M] for p in parts))


def join(parts: list[Feedback]) -> Feedback:
    """The feedback of consecutive chunks of rows (at least one chunk) as that of all rows."""
    return Feedback(*(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True)))


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
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.k, self.exact = mode, k, exact
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
            return seen.entropy_N
        return entropy(seen.logits_NV.float() / self.temperature)

    def weight(self, entropy_N: Tensor, rate_N: Tensor | float = 1.0) -> Tensor:
        """(N,) lambda in [0, 1] of rows with this entropy (nats); `rate_N` is r(t)."""
        return self.scale * rate_N * torch.sigmoid(self.steepness * (-entropy_N - self.offset))

    def forward(
        self, ids_BL: Tensor, seen: Feedback, rate_N: Tensor | float = 1.0
    ) -> tuple[SoftTokens, Tensor]:
        """Mixes the feedback into the tokens; returns them and lambda_N.

        Every position outside `seen.rows_N` keeps its token with weight exactly 1.
        """
        entropy_N = self.entropy(seen)
        lambda_N = self.weight(entropy_N, rate_N)
        own_N = ids_BL.flatten()[seen.rows_N]
        if self.mode == "topk":
            q_NK = torch.softmax(seen.logits_NK, dim=-1)
            ids_NK = torch.cat([own_N[:, None], seen.ids_NK], dim=1)
            weights_NK = torch.cat([1 - lambda_N[:, None], lambda_N[:, None] * q_NK], dim=1)
            dense = (None, None)
        else:
            q_NV = torch.softmax(seen.logits_NV.float() / self.temperature, dim=-1)
            ids_NK, weights_NK = own_N[:, None], 1 - lambda_N[:, None]
            dense = (seen.rows_N, lambda_N[:, None] * q_NV)
        columns = ids_NK.shape[1]
        ids_BLK = ids_BL[..., None].repeat(1, 1, columns).flatten(0, 1)
        ids_BLK = ids_BLK.index_copy(0, seen.rows_N, ids_NK).view(*ids_BL.shape, columns)
        plain_K = torch.zeros(columns, device=ids_BL.device)
        plain_K[0] = 1.0
        weights_BLK = plain_K.repeat(ids_BL.numel(), 1).index_copy(0, seen.rows_N, weights_NK)
        weights_BLK = weights_BLK.view(*ids_BL.shape, columns)
        return SoftTokens(ids_BLK, weights_BLK, *dense), lambda_N


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
