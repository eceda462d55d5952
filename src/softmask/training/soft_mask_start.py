"""Soft-mask parameters to begin with, from the entropy that the model shows on the run's own data.

A feedback that is hardly let in teaches nothing: what text runs gained doubled when lambda began at
0.3 to 0.4 in place of 0.05 (docs/EVIDENCE.md). So the offset is minus the median entropy of masked
positions, where lambda is then half of the scale, and the steepness is such that the surer quarter
of them has three quarters of the scale or more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import SoftMaskConfig
from ..models import DreamModel
from .objective import beside
from .weights import evaluation_mode

FORWARDS = 8  # rows or batches that are looked at
# Steepness of the published start, and one below which confidence hardly counts.
STEEPEST, FLATTEST = 6.66, 0.5


class Start(NamedTuple):
    """What a run begins with, and what was seen of the entropy (nats) at masked positions."""

    soft_mask: SoftMaskConfig
    median: float
    surer_quarter: float
    positions: int

    def __str__(self) -> str:
        chosen = self.soft_mask
        return (
            f"soft-masking begins with offset {chosen.offset:.2f}, steepness "
            f"{chosen.steepness:.2f}, scale {chosen.scale:.2g}: lambda is {chosen.scale / 2:.2g} "
            f"at the median entropy of masked positions, {self.median:.2f} nats"
        )

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"soft_mask": dataclasses.asdict(self.soft_mask)}


@torch.no_grad()
def fitted_start(
    model: nn.Module,
    dream: DreamModel,
    batches: Iterable[dict[str, Any]],
    config: SoftMaskConfig,
    padding: int,
) -> Start:
    """Looks at masked batches (of `batches.Collator`), and fits offset and steepness to them.

    Args:
        dream: the DreamModel inside `model`, with soft-mask parameters.
        config: the recipe's; its scale, mode and k are kept.
        padding: the id that rows end with for the sake of others. A model is sure of it, so that
            a few short rows would make the text look sure.
    """
    assert dream.soft_mask is not None
    was_training = model.training
    evaluation_mode(model)
    parts = []
    for batch in batches:
        masked_BL = batch["masked_BL"].clone()
        masked_BL[:, 0] = False  # nothing precedes it that could predict it
        masked_BL &= _up_to_the_end(batch["ids_BL"], padding)
        rows_N = masked_BL.flatten().nonzero().squeeze(1).to(dream.device)
        if len(rows_N):
            noisy_BL = batch["noisy_BL"].to(dream.device)
            clean = beside(dream, *(batch[k].to(dream.device) for k in ("ids_BL", "maskable_BL")))
            seen = model(noisy_BL, rows=rows_N, observe=True, **clean).feedback
            parts.append(dream.soft_mask.entropy(seen).float().cpu())
    model.train(was_training)
    return start_for(torch.cat(parts) if parts else torch.zeros(1), config)


def _up_to_the_end(ids_BL: Tensor, padding: int) -> Tensor:
    """(B, L): whether a token that is no padding stands here or further on."""
    return (ids_BL != padding).flip(1).cumsum(1).flip(1) > 0


def start_for(entropy_N: Tensor, config: SoftMaskConfig) -> Start:
    """The start for these entropies (nats) of masked positions; the rule stands above."""
    surer, median = entropy_N.quantile(torch.tensor([0.25, 0.5])).tolist()
    # sigmoid(ln 3) is 3/4.
    steepness = math.log(3) / max(median - surer, math.log(3) / STEEPEST)
    chosen = dataclasses.replace(config, offset=-median, steepness=max(steepness, FLATTEST))
    return Start(chosen, median, surer, len(entropy_N))
