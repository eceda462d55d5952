"""Block caches: which columns a step computes, and the keys and values of all others.

All of them are one idea. A store keeps keys and values of the whole sequence. A step computes a
window of columns, whose own enter the store in place, and reads the rest as it was left:

    none       the whole sequence, every step
    prefix     from the block to the end
    dual       the block alone
    refresh    every so many steps more than that: the block's neighbourhood, or the whole sequence
    exact      of a block-causal model: the block alone, and once what was decided before it

The first step of a block always computes the whole text, as far as it takes part: where
`lookahead` is set, a text grows with its blocks, and nothing reads what lies behind. By then the
tokens before it are committed, and enter the store as what they are: never as the soft mixtures
that the step which committed them still read.
"""

from __future__ import annotations

from torch import Tensor

from ..config import SamplingConfig
from ..models import DreamConfig, DreamModel


def window(
    config: SamplingConfig, first: int, last: int, length: int, age: int, *, shift: bool
) -> tuple[int, int]:
    """The columns [start, stop) of a sequence that a step computes.

    Args:
        first, last: columns of the block's first and last mask, as it began.
        length: columns of the text that take part.
        age: forwards since the block began.
        shift: whether a column is predicted from the one before it, which then has to be computed
            too. (Without it the block's first column would have no prediction of this step.)
    """
    if config.cache == "none" or age == 0:
        return 0, length
    margin = 0
    if config.refresh_every is not None and age % config.refresh_every == 0:
        if config.refresh_window is None:
            return 0, length
        margin = config.refresh_window
    start = max(0, first - shift - margin)
    stop = length if config.cache == "prefix" else min(length, last + 1 + margin)
    return start, stop


def exact_window(kept: int, start: int, stop: int, *, shift: bool) -> tuple[int, int]:
    """The columns that a step of a block-causal model computes.

    Args:
        kept: columns whose keys and values are final.
        start, stop: of the block. What was decided before it since is computed once, beside the
            block's first step: it sees no later block, so it is as if computed alone.
        shift: as in `window`.
    """
    return max(0, min(kept, start - shift)), stop


class KeyValueStore:
    """Keys and values of every position of a flat canvas, layer by layer, updated in place."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, layer: int, flat_T: Tensor, keys_TSD: Tensor, values_TSD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes in the keys and values of the positions `flat_T`; returns all, (P, S, D) each."""
        if layer not in self.layers:
            size = (self.positions, *keys_TSD.shape[1:])
            # Zeros, not whatever was in memory: NaN there would spread from positions never read.
            self.layers[layer] = (keys_TSD.new_zeros(size), values_TSD.new_zeros(size))
        keys_PSD, values_PSD = self.layers[layer]
        keys_PSD.index_copy_(0, flat_T, keys_TSD)
        values_PSD.index_copy_(0, flat_T, values_TSD)
        return keys_PSD, values_PSD

    @property
    def bytes(self) -> int:
        """What it takes up."""
        return sum(x.numel() * x.element_size() for pair in self.layers.values() for x in pair)


def heads_of(config: DreamConfig) -> tuple[int, int]:
    """How many heads keys and values have, and how wide a head is."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_key_value_heads or heads, width


def bytes_per_position(model: DreamModel) -> int:
    """What a position of the store takes up: keys and values of every layer."""
    kv_heads, width = heads_of(model.config)
    return 2 * model.config.num_hidden_layers * kv_heads * width * model.dtype.itemsize
