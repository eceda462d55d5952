"""Whole rows of a block-causal model: a position sees its own block and those before it.

A row is computed as it is, or as two streams, noisy and clean, side by side: what it takes to learn
all blocks of a row at once, each behind clean ones, as in decoding. A noisy position sees its own
block among the noisy ones and earlier blocks among the clean ones; a clean position sees clean ones
up to its own block.

Shape suffixes: B batch (1 where rows agree), L length, S positions of all streams, N chosen rows
(flat indices into B * L).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from .configuration_dream import DreamConfig


@dataclass(frozen=True)
class Blocks:
    """Places in the text and blocks of the positions of a row, and how many streams of it."""

    position_BL: Tensor
    block_BL: Tensor
    streams: int = 1

    @classmethod
    def of(
        cls,
        config: DreamConfig,
        tokens: Tensor,
        position_ids: Tensor | None,
        prompt_lengths: Tensor | None,
        streams: int,
    ) -> Blocks:
        """Those of a block-causal model.

        Args:
            tokens: (B, L, ...) ids or embeddings of a stream.
            position_ids: (B, L); default: all are counted from 0.
            prompt_lengths: (B,) where the first block begins that is written whole, if that is how
                the model has them; None: at the start.
        """
        assert config.block_size is not None
        if position_ids is None:
            position_ids = torch.arange(tokens.shape[1])[None]
        position_BL = block_BL = position_ids.to(tokens.device)
        if config.block_origin == "prompt" and prompt_lengths is not None:
            missing_B = -prompt_lengths.to(tokens.device) % config.block_size
            block_BL = block_BL + missing_B[:, None]
        return cls(position_BL, block_BL // config.block_size, streams)

    @property
    def position_ids(self) -> Tensor:
        """(B, S) of all streams."""
        return self.position_BL.repeat(1, self.streams)

    def masks(
        self, config: DreamConfig, dtype: torch.dtype, padding_BL: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Who sees whom, keyed by layer type, as the model's kind of attention takes it.

        SDPA's and the eager one's is dense: a byte for each pair of S positions where rows agree,
        else for each row (eager: as many as a number of `dtype` has), and S is twice the length
        with two streams. Flex attention's keeps a number for each pair of 128 positions.

        Args:
            padding_BL: 1 at real tokens, 0 at padding; None: all are real.
        """
        block_BS = self.block_BL.repeat(1, self.streams)
        batch, positions = block_BS.shape
        if padding_BL is not None:
            batch, padding_BL = len(padding_BL), padding_BL.repeat(1, self.streams)
            block_BS = block_BS.expand(batch, -1)
        # The last stream is the clean one; alone, it is all there is.
        clean_S = torch.arange(positions, device=block_BS.device)
        clean_S = clean_S >= positions - positions // self.streams

        def sees(row: Any, _head: Any, query: Any, key: Any) -> Any:
            ahead = block_BS[row, query] - block_BS[row, key]
            whole = clean_S[key] & (ahead >= (~clean_S[query]).long())
            return whole | ((ahead == 0) & (clean_S[query] == clean_S[key]))

        mask: Any = create_bidirectional_mask(
            config,
            # Read for its shape, its device and its dtype.
            torch.empty(batch, positions, 0, dtype=dtype, device=block_BS.device),
            padding_BL,
            and_mask_function=sees,
        )
        return dict.fromkeys(config.layer_types or (), mask)

    def sources(self, source_N: Tensor, rows_N: Tensor | None) -> Tensor:
        """Flat indices into B * S of the rows that predict `rows_N`.

        Args:
            source_N: of one stream. A row of an earlier block is a clean one: where logits are
                shifted, what predicts the first token of a block is the full block in front.
        """
        assert rows_N is not None
        rows_N = rows_N.to(source_N.device)
        length, block_M = self.block_BL.shape[1], self.block_BL.flatten().to(source_N.device)
        block_N, from_N = (block_M[flat_N % len(block_M)] for flat_N in (rows_N, source_N))
        return source_N + (rows_N // length + (block_N != from_N)) * length
