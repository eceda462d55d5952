"""Rows of given texts under masks, read by a model: padded, in one forward, or two with feedback.

Shape suffixes: B batch, L length, D width, N masked rows that are read (flat indices into B * L),
M all masked rows, V vocabulary, K leading tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..config import SoftMaskConfig
from ..logits import top_k
from ..models import DreamModel
from ..soft_mask import SoftMask, SoftTokens, feedback, rate
from .guidance import away


class MaskedRow(NamedTuple):
    """One row of a forward: a request under one mask, read at some of the masks."""

    request: int
    ids_L: Tensor
    masked_L: Tensor
    read_L: Tensor
    start: int  # tokens of the continuation, or of its part in a block
    samples: int  # how many samples drew this mask
    scale: float  # L / l
    given: int  # tokens of the context
    block: int = 0  # of a block-causal model, L being this block's


def read_rows(
    model: DreamModel,
    batch: Sequence[MaskedRow],
    mixer: SoftMask | None,
    soft_mask: SoftMaskConfig | None,
    top: int = 0,
    guidance: float = 0.0,
) -> tuple[Tensor, Tensor, list[tuple[tuple[int, float], ...]]]:
    """One forward (two with a mixer) of some rows.

    Returns:
        (N,) of which row each mask is that was read, and (N,) fp32 its true token's cross-entropy,
        on the host; and the `top` leading tokens there with their log-probabilities.
    """
    ids_BL, attention_BL = pad([row.ids_L for row in batch], model.device)
    masked_BL, _ = pad([row.masked_L for row in batch], model.device)
    read_BL, _ = pad([row.read_L for row in batch], model.device)
    noisy_BL = ids_BL.masked_fill(masked_BL, model.mask_id)
    rows_N = read_BL.flatten().nonzero().squeeze(1)
    given_B = torch.tensor([row.given for row in batch], device=model.device)
    reading: dict[str, Any] = {"attention_mask": attention_BL, "prompt_lengths": given_B}
    blind = functools.partial(_without_context, model, guidance, batch, noisy_BL)
    text: dict[str, Any] = {"input_ids": noisy_BL}
    if mixer is not None and soft_mask is not None:
        masks_M = masked_BL.flatten().nonzero().squeeze(1)
        first = {**reading, "rows": masks_M}
        logits_MV = blind(model(noisy_BL, **first).logits, None, first)
        start_B = torch.tensor([row.start for row in batch], device=model.device)
        with model.input_table() as table_VD:
            soft_tokens, _ = soft_input(
                table_VD,
                mixer,
                soft_mask.schedule,
                noisy_BL,
                masked_BL,
                masks_M,
                logits_MV,
                start_B,
            )
        del logits_MV
        text = {"soft_tokens": soft_tokens}
    true_N = ids_BL.flatten()[rows_N]
    row_N = (rows_N // ids_BL.shape[1]).cpu()
    inputs = {**reading, "rows": rows_N}
    if not top and not guidance:
        return row_N, model(**text, **inputs, labels=true_N).losses.cpu(), []
    logits_NV = blind(model(**text, **inputs).logits, text.get("soft_tokens"), inputs)
    logprobs_NV = logits_NV.float().log_softmax(-1)
    losses_N = -logprobs_NV.gather(1, true_N[:, None]).squeeze(1)
    if not top:
        return row_N, losses_N.cpu(), []
    values_NK, ids_NK = (part.tolist() for part in top_k(logprobs_NV, top))
    leading = [tuple(zip(*pair, strict=True)) for pair in zip(ids_NK, values_NK, strict=True)]
    return row_N, losses_N.cpu(), leading


def _without_context(
    model: DreamModel,
    guidance: float,
    batch: Sequence[MaskedRow],
    noisy_BL: Tensor,
    logits_NV: Tensor,
    soft_tokens: SoftTokens | None,
    inputs: dict[str, Any],
) -> Tensor:
    """Guided logits: a second branch reads the same with masks for the context."""
    if not guidance:
        return logits_NV
    given = [torch.arange(len(row.ids_L), device=row.ids_L.device) < row.given for row in batch]
    given_BL, _ = pad(given, model.device)
    with model.input_table() as table_VD:
        read_BLD = table_VD[noisy_BL] if soft_tokens is None else soft_tokens.embed(table_VD)
        read_BLD = torch.where(given_BL[..., None], table_VD[model.mask_id], read_BLD)
    blind_NV = model(inputs_embeds=read_BLD, **inputs).logits
    return away(logits_NV, blind_NV, guidance)


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
    seen = feedback(logits_NV, rows_N, mixer.k, mixer.mode, mixer.entropy_temperature)
    rate_B = rate(schedule, masked_BL.sum(dim=1), start_B)
    return mixer(noisy_BL, seen, table_VD, rate_B[rows_N // noisy_BL.shape[1]])


def pad(rows: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor (B, L), padded on the right; its attention mask, None if none is padded.

    Padding is 0 (False for bool rows), which nothing reads.
    """
    values_BL = pad_sequence(list(rows), batch_first=True).to(device)
    sizes_B = torch.tensor([len(row) for row in rows], device=device)
    real_BL = torch.arange(values_BL.shape[1], device=device) < sizes_B[:, None]
    same = len({len(row) for row in rows}) == 1
    return values_BL, None if same else real_BL.long()
