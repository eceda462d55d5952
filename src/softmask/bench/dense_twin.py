"""The published step, computed as published: the slow twin that `softmask bench --twin` times.

Logits of every position, shifted by copying all of them; a mixture over the whole vocabulary at
every position, also those that need none, multiplied with the embedding table; all of it once more
after the last step. Same tokens as `denoise` for rows of equal mask counts (alg entropy,
temperature 0), with the same passes over the same tensors: findings B7 and B8 of the published
Dream code with its soft-masking change.
Shape suffixes: B batch, L length, N masked rows, V vocabulary, D width, K leading tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SoftMaskConfig
from ..models import DreamModel
from ..models.linear import torchs_own_products

EPS = 1e-3  # last time of the schedule
TINY = 1e-10  # keeps log p finite


class TwinStep(NamedTuple):
    """The canvas after a step; `forwards` so far."""

    canvas_BL: Tensor
    left_B: tuple[int, ...]
    forwards: int


@torch.no_grad()
def denoise_densely(
    model: DreamModel, canvas_BL: Tensor, steps: int, soft_mask: SoftMaskConfig | None = None
) -> Iterator[TwinStep]:
    """Denoises a canvas by the published computation; plain without `soft_mask`.

    Raises:
        ValueError: a schedule of the feedback (the released code stops there: finding B1), or
            rows with unequal numbers of masks (which it corrupts: B3).
    """
    mask_id = model.mask_id
    if soft_mask is not None and soft_mask.schedule != "none":
        raise ValueError("the published computation has no working schedule: use schedule none")
    if canvas_BL.eq(mask_id).sum(dim=1).unique().numel() > 1:
        raise ValueError("the published computation needs rows with equally many masks")
    x_BL, embeds_BLD = canvas_BL.clone(), None
    times = torch.linspace(1, EPS, steps + 1, device=x_BL.device)
    for step in range(steps):
        masked_BL = x_BL.eq(mask_id)
        logits_BLV = _logits(model, x_BL, embeds_BLD)
        confidence_N, tokens_N = _sample(logits_BLV[masked_BL])
        masks = masked_BL.sum() / len(x_BL)
        share = 1 - times[step + 1] / times[step] if step < steps - 1 else 1.0
        _commit(x_BL, masked_BL, confidence_N, tokens_N, int(masks * share), mask_id)
        if soft_mask is not None:
            mixture_BLV = _mixture(logits_BLV, x_BL, x_BL.eq(mask_id), soft_mask)
            table_VD = model.model.embed_tokens.weight
            embeds_BLD = mixture_BLV.to(table_VD.dtype) @ table_VD
        yield TwinStep(x_BL.clone(), tuple(x_BL.eq(mask_id).sum(dim=1).tolist()), step + 1)


def _logits(model: DreamModel, x_BL: Tensor, embeds_BLD: Tensor | None) -> Tensor:
    """(B, L, V) logits; each position read off the one before it, through a copy of them all."""
    given = {"input_ids": x_BL} if embeds_BLD is None else {"inputs_embeds": embeds_BLD}
    with torchs_own_products():
        logits_BLV = model.lm_head(model.model(**given, use_cache=False).last_hidden_state)
    if not model.config.logit_shift:
        return logits_BLV
    return torch.cat([logits_BLV[:, :1], logits_BLV[:, :-1]], dim=1)


def _sample(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Negative entropy and likeliest token of each masked row."""
    probs_NV = torch.softmax(logits_NV, dim=-1)
    _, tokens_N = probs_NV.max(dim=-1)
    return torch.sum(probs_NV * torch.log(probs_NV + TINY), dim=-1), tokens_N


def _commit(
    x_BL: Tensor,
    masked_BL: Tensor,
    confidence_N: Tensor,
    tokens_N: Tensor,
    count: int,
    mask_id: int,
) -> None:
    """Writes the `count` surest tokens of each row into the canvas."""
    if not count:
        return
    confidence_BL = torch.full_like(x_BL, -torch.inf, dtype=confidence_N.dtype)
    confidence_BL[masked_BL] = confidence_N
    places = torch.topk(confidence_BL, count).indices
    tokens_BL = torch.zeros_like(x_BL) + mask_id
    tokens_BL[masked_BL] = tokens_N
    x_BL.scatter_(1, places, tokens_BL.gather(1, places))


def _mixture(logits_BLV: Tensor, x_BL: Tensor, masked_BL: Tensor, soft: SoftMaskConfig) -> Tensor:
    """(B, L, V) weights of all tokens at all positions."""
    tempered_BLV = logits_BLV / (soft.temperature if soft.mode == "temperature" else 1.0)
    probs_BLV = torch.softmax(tempered_BLV, dim=-1)
    log_BLV = torch.log(probs_BLV + TINY)
    confidence_BL = torch.sum(probs_BLV * log_BLV, dim=-1)
    lambda_BL = soft.scale * torch.sigmoid(soft.steepness * (confidence_BL - soft.offset))
    lambda_BL1 = torch.where(masked_BL, lambda_BL, torch.zeros_like(lambda_BL)).unsqueeze(-1)
    onehot_BLV = F.one_hot(x_BL, num_classes=logits_BLV.shape[-1]).to(logits_BLV.dtype)
    if soft.mode == "topk":
        probs_BLV = _leading(logits_BLV, soft.k)
    return (1 - lambda_BL1) * onehot_BLV + lambda_BL1 * probs_BLV


def _leading(logits_BLV: Tensor, k: int) -> Tensor:
    """(B, L, V): softmax over the k largest logits, 0 elsewhere, counted as the original does."""
    values_BLK, ids_BLK = torch.topk(logits_BLV, k, dim=-1)
    probs_BLV = torch.zeros_like(logits_BLV).scatter_(-1, ids_BLK, values_BLK.softmax(dim=-1))
    # A pass and a synchronisation, and it fails where a probability underflows: finding B6.
    if int(torch.sum(probs_BLV > 0)) != ids_BLK.numel():
        raise ValueError("a leading token has probability 0, where the published code stops")
    return probs_BLV
