"""Masks of whole rows whose positions see their own block and those before it.

Shape suffixes: B batch, L length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from .configuration_dream import DreamConfig


def refuse_noisy_rows(config: DreamConfig, what: str) -> None:
    """Raises ValueError where whole noisy rows say nothing of the model.

    A block-causal model has clean tokens in front of the block that it predicts; that takes two
    streams, noisy and clean, with a mask between them, which softmask has not yet.
    """
    if config.block_size is not None:
        raise ValueError(
            f"this model is block-causal: {what} needs clean blocks beside the noisy ones, which "
            "softmask does not compute yet"
        )


def block_causal_masks(
    config: DreamConfig,
    inputs: Tensor,
    dtype: torch.dtype,
    padding_BL: Tensor | None,
    position_ids: Tensor | None,
) -> dict[str, Tensor | None]:
    """The masks of a block-causal model, keyed by layer type, as its kind of attention takes them.

    Args:
        inputs: (B, L, ...) ids or embeddings.
        padding_BL: 1 at real tokens, 0 at padding; None: all are real.
        position_ids: (B, L) places in the text, which say in which block each lies.
    """
    assert config.block_size is not None
    batch, length = inputs.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(length, device=inputs.device)[None]
    block_BL = (position_ids.to(inputs.device) // config.block_size).expand(batch, length)
    mask: Any = create_bidirectional_mask(
        config,
        # Read for its shape, its device and its dtype.
        torch.empty(batch, length, 0, dtype=dtype, device=inputs.device),
        padding_BL,
        and_mask_function=lambda b, _head, query, key: block_BL[b, key] <= block_BL[b, query],
    )
    return dict.fromkeys(config.layer_types or (), mask)
