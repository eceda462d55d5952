"""The forward process: which tokens are masked, and how many.

Masked diffusion with the linear (log-linear in MDLM's words) schedule: at time t every token is
[MASK] with probability t, independently. Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Longest partly masked window of block-wise corruption, in tokens.
WINDOW = 16


class Corrupted(NamedTuple):
    """Ids (B, L) with masks; which positions are masks, and which of them count in the loss."""

    noisy_BL: Tensor
    masked_BL: Tensor
    scored_BL: Tensor


def sample_times(batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(B,) times, stratified over [low, high]: one uniform draw in each of B equal slices.

    Stratification (MDLM's antithetic sampling) keeps a small batch from being all easy or hard.
    """
    offset = torch.rand(batch, generator=generator)
    slices_B = (torch.randperm(batch, generator=generator) + offset) / batch
    return low + (high - low) * slices_B


def corrupt(
    ids_BL: Tensor,
    maskable_BL: Tensor,
    times_B: Tensor,
    mask_token_id: int,
    generator: torch.Generator,
    left_to_right: float = 0.0,
    at_least_one: bool = True,
) -> Corrupted:
    """Masks each maskable token with probability t of its row, and with `at_least_one` one of each.

    With probability `left_to_right` a row is masked as in block-wise decoding instead: nothing
    before a random position, tokens with probability t in a window of up to WINDOW tokens after
    it, and everything after the window, which is not scored. All other masked tokens are.

    A row without a maskable position stays as it is.
    """
    draw_BL = torch.rand(ids_BL.shape, generator=generator)
    masked_BL, open_BL = draw_BL < times_B[:, None], maskable_BL
    behind_BL = torch.zeros_like(maskable_BL)
    if left_to_right > 0:
        batch = len(ids_BL)
        ordered_B1 = torch.rand(batch, 1, generator=generator) < left_to_right
        count_B1 = maskable_BL.sum(dim=1, keepdim=True)
        start_B1 = (torch.rand(batch, 1, generator=generator) * count_B1).long()
        width_B1 = torch.randint(1, WINDOW + 1, (batch, 1), generator=generator)
        place_BL = maskable_BL.cumsum(dim=1) - 1
        behind_BL = ordered_B1 & (place_BL >= start_B1 + width_B1)
        open_BL = maskable_BL & ~(ordered_B1 & (place_BL < start_B1))
    if at_least_one:
        # The row's smallest draw is masked in any case, so that no row is without a mask.
        first_B = draw_BL.masked_fill(~open_BL | behind_BL, 2.0).argmin(dim=1, keepdim=True)
        masked_BL = masked_BL.scatter(1, first_B, True)
    scored_BL = masked_BL & open_BL & ~behind_BL
    masked_BL = scored_BL | (behind_BL & open_BL)
    return Corrupted(ids_BL.masked_fill(masked_BL, mask_token_id), masked_BL, scored_BL)
