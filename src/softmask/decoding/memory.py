"""How much memory a batch takes: what a budget in megabytes means in positions.

A position of the flat canvas holds keys and values, soft state, and a copy of what a step may have
to take back. On top come, first, activations while it is computed, then logits while it is read;
the worst step computes and reads every position, as the first step of a block does. The weights
are no part of it: they are there before the first request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import SamplingConfig, SoftMaskConfig, is_on
from ..logits import CHUNK_ROWS
from ..models import DreamConfig, DreamModel
from ..models.lm_head import CHUNK_LOGITS, piece_logits
from .kv_cache import bytes_per_position, heads_of
from .likelihood import LikelihoodConfig

# Bytes that live at once for a row and an entry of the vocabulary. Drawing: the logits, and the
# random numbers twice, sequence by sequence and joined. A feedback rule that sees all logits: they,
# those of the rows that stay masked, these over the temperature, their softmax.
DRAWN, DENSE = 12, 16
# Of a row and an entry of the width, where feedback mixes in all tokens: their mean embedding as it
# grows, a piece of it, and copies of the rows that stay masked.
BLENDED = 16
# Of a row that is only read: logits and exponentials of the narrowest piece of the vocabulary,
# and its places, statistics and choice.
STREAMED, CHOSEN = 2 * 4 * 256, 256
# Canvas, candidates, places and neighbours as int64 and three flags; half of it again where a
# step is saved.
BOOKKEEPING = 35 + 18
# What filters make of an entry of a chunk of rows, ids of a sort included.
FILTERED = 40
# Of a row and an expert: scores in float32, copies of them with the bias and without the groups
# that are left out, and flags. Of a row and an expert that it goes through: places as int64.
ROUTED, SORTED = 4 * 6, 8 * 6


@dataclass(frozen=True)
class Footprint:
    """Bytes: of any batch, of a position, and on top while one is computed or a row is read.

    Every term is an upper bound: a measured peak lies below the sum, by a fifth for models of
    usual proportions (`tests/test_engine.py` holds a factor of two).
    """

    fixed: int
    held: int
    computed: int
    read: int
    vocabulary: int
    width: int

    @classmethod
    def of(
        cls, model: DreamModel, *, cached: bool, k: int, device: torch.device | None = None
    ) -> Footprint:
        """That of batches of this model that mix in, and report, up to `k` tokens.

        Args:
            device: where it will be, if it is not there yet.
        """
        config, size = model.config, model.dtype.itemsize
        heads = config.num_attention_heads
        kv_heads, per_head = heads_of(config)
        width, vocabulary = config.hidden_size, config.vocab_size
        store = bytes_per_position(model)
        # Ids, weights and lambda, and the embeddings of mode "temperature"; twice.
        soft = 2 * (12 * (k + 1) + 4 + 4 * width)
        # Reported ids and log-probabilities, and two numbers more; while they are read, twice.
        logprobs = 16 * k + 8
        # The residual and a layer's input stay meanwhile.
        attention = size * (4 * heads + 6 * kv_heads) * per_head
        if config.block_size is not None:  # keys and values of each head, beside a mask
            attention += size * 2 * heads * per_head
        mlp = size * (3 * max(config.feed_forward_widths) + width)
        if config.num_experts:
            mlp = max(mlp, _routed(config, size))
        mixing = (size + 4) * (k + 1) * width + 8 * width
        computed = 2 * size * width + max(attention, mlp, mixing)
        # The head streams pieces on a CPU; elsewhere chunks of rows are whole.
        on_cpu = (device or model.device).type == "cpu"
        pieces = 8 * piece_logits() if on_cpu else size * CHUNK_LOGITS
        return cls(
            fixed=pieces + CHUNK_ROWS * FILTERED * vocabulary,
            held=BOOKKEEPING + (store if cached else 0) + soft + logprobs,
            computed=computed,
            read=STREAMED + CHOSEN + 2 * logprobs + size * width,
            vocabulary=vocabulary,
            width=width,
        )

    def total(self, positions: int) -> int:
        """Of a batch with a canvas of so many positions."""
        return self.fixed + positions * (self.held + max(self.computed, self.read))

    def most(self, positions: int) -> int:
        """Of such a batch when every row is drawn from: no request on it takes more."""
        return self.total(positions) + positions * (
            max(DRAWN, DENSE) * self.vocabulary + BLENDED * self.width
        )

    def positions(self, memory: int) -> int:
        """The longest canvas within so many bytes; 0 where none is."""
        each = self.held + max(self.computed, self.read)
        return max(0, (memory - self.fixed) // each)

    def reading(
        self,
        masks: int,
        sampling: SamplingConfig,
        soft_mask: SoftMaskConfig | None,
        *,
        constrained: bool = False,
    ) -> int:
        """On top, while the rows of one sequence are read, of which `masks` take part at once."""
        soft = is_on(soft_mask)
        if sampling.block_length is not None and not (soft or sampling.opens_early):
            masks = min(masks, sampling.block_length)  # plain decoding reads what it may commit
        keeps_logits = sampling.temperature > 0 or sampling.by_chance or constrained
        entry, blended = DRAWN if keeps_logits else 0, 0
        if soft_mask is not None and soft:
            rule = soft_mask.feedback.rule
            blended = BLENDED * self.width if rule.streamed else 0
            entry = DENSE if rule.reads_logits else entry
        return masks * (self.read + blended + entry * self.vocabulary)

    def scoring(
        self,
        masks: int,
        config: LikelihoodConfig,
        soft_mask: SoftMaskConfig | None,
        *,
        top: int = 0,
    ) -> int:
        """On top, for the logits of a row that is scored, with at most so many masks.

        Args:
            top: leading tokens that are told of each.
        """
        guided = 2 if config.guidance else 1  # branches, whose logits are both there
        if is_on(soft_mask):
            logits = masks * self.vocabulary  # of the first pass, all at once
        elif config.estimator == "chain":
            logits = self.vocabulary
        elif guided == 2 or top:
            logits = masks * self.vocabulary
        else:
            logits = min(masks * self.vocabulary, CHUNK_LOGITS)
        return DRAWN * guided * logits

    def rows(self, memory: int, positions: int, reading: int, *, held: bool = True) -> int:
        """How many rows of so many positions fit, each with so many bytes on top while it is read.

        Args:
            held: they stay on a canvas from step to step; else they are read once.
        """
        kept = self.held * positions if held else 0
        computed = positions * max(self.computed, self.read)
        return max(0, (memory - self.fixed) // (kept + max(computed, reading)))


def _routed(config: DreamConfig, size: int) -> int:
    """Bytes that a position takes in a layer's experts, at `size` bytes a number.

    Each expert that it goes through has a row of its own: of the width what goes in, what comes
    out, that weighted, and in the order of positions; of the expert's width what is inside.
    """
    width, inner = config.hidden_size, config.moe_intermediate_size
    row = width + max(3 * width, 4 * inner)
    rows = config.num_experts_per_tok * (size * row + SORTED)
    return rows + ROUTED * config.num_experts + size * 2 * width
