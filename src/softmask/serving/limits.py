"""What an engine accepts: a memory budget, as the requests that fit it."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..config import require
from ..decoding.canvas_constraint import check_fits
from ..decoding.grid import grid_of
from ..decoding.growing import Growth
from ..decoding.kv_cache import KeyValueStore, bytes_per_position
from ..decoding.memory import Footprint
from ..decoding.prefix_cache import PrefixCache
from ..decoding.sampler import check_canvas
from ..decoding.schedule import StepSchedule
from ..models import DreamModel
from ..soft_mask import check_k
from .request import Request

# Steps, unless the context is longer still: planning them takes time for which others wait.
MOST_STEPS = 4096
# Of the memory, what prefixes may take up where nothing is said.
PREFIX_SHARE = 0.25


class Limits:
    """How long the canvas is, how much memory is left for logits, and which requests are refused.

    Args:
        memory_mb: what requests may take up, weights not included; or
        positions: the length of its canvas, whose memory then follows.
        running: how many may run at once.
        cached: whether keys and values are kept.
        k: the most tokens that soft-masking may mix in, and that may be reported as top_logprobs.
        prefix_cache_mb: as of `Engine`.

    Raises:
        ValueError: neither or both of memory and positions, a count below 1, too little memory, or
            a prefix cache for a model whose caches are not exact.
    """

    def __init__(
        self,
        model: DreamModel,
        *,
        memory_mb: float | None,
        positions: int | None,
        running: int,
        cached: bool,
        k: int,
        prefix_cache_mb: float | None = None,
    ) -> None:
        require((memory_mb is None) != (positions is None), "give either memory_mb or positions")
        for name, value in (("positions", positions), ("running", running), ("k", k)):
            require(value is None or value >= 1, f"{name} must be at least 1, not {value}")
        cached = cached or model.config.block_size is not None
        self.model, self.running, self.cached, self.k = model, running, cached, k
        self.footprint = Footprint.of(model, cached=cached, k=k)
        self._check_prefix_cache(prefix_cache_mb or 0)
        share = PREFIX_SHARE if prefix_cache_mb is None and model.config.block_size else 0
        kept_mb = share * (memory_mb or 0) + (prefix_cache_mb or 0)
        self.kept_bytes = int(kept_mb * 2**20)
        if positions is None:
            assert memory_mb is not None
            self.memory = int((memory_mb - kept_mb) * 2**20)
            fitting, least = self.footprint.positions(self.memory), self.footprint.total(1) / 2**20
            least = least / (1 - share) + (prefix_cache_mb or 0)
            require(fitting >= 1, f"{memory_mb} MB are too little memory: give {least:.1f} or more")
            # More than those that run can use would only be in the way.
            positions = min(fitting, running * model.config.max_position_embeddings)
        else:
            self.memory = self.footprint.most(positions)
        self.positions = positions
        # What is computed fits in any case; logits are counted request by request.
        self.reading = self.memory - self.footprint.fixed - positions * self.footprint.held

    def make_prefix_cache(self, store: KeyValueStore | None) -> PrefixCache | None:
        """What keeps blocks of a batch's earlier requests; None: they are not kept."""
        size = self.model.config.block_size
        if size is None or store is None:
            return None
        cache = PrefixCache(store, self.kept_bytes, size, bytes_per_position(self.model))
        return cache if cache.capacity else None

    def _check_prefix_cache(self, asked: float) -> None:
        size = self.model.config.block_size
        require(0 <= asked < math.inf, f"prefix_cache_mb must be 0 (none) or more, not {asked}")
        require(
            not asked or size is not None,
            "prefixes are kept of block-causal models alone, whose caches are exact, and this "
            "model looks at the whole text: leave out prefix_cache_mb",
        )
        least = (size or 0) * bytes_per_position(self.model) / 2**20
        require(
            not asked or asked >= least,
            f"prefix_cache_mb of {asked} does not hold a block: give {least:.3g} or more, or 0",
        )

    def check(self, request: Request) -> tuple[int, int]:
        """How many masks a request has, and how many bytes it takes to read them.

        Raises:
            ValueError: one sentence on why it cannot be run.
        """
        ids_1L = torch.tensor([request.ids], device="cpu")
        check_canvas(self.model, ids_1L, request.rules)
        masked_L = ids_1L[0].numpy() == self.model.mask_id
        require(bool(masked_L.any()), "nothing is to be written: the canvas has no mask")
        self._check_settings(request)
        if request.room is not None:
            return self._check_growing(request, masked_L)
        self.check_form(request)
        grid = grid_of(self.model.config, masked_L, request.sampling)
        schedule = StepSchedule(masked_L, request.sampling, grid)
        # A text that may write masks has them in blocks that are past.
        may_return = grid is None and self.model.mask_id not in request.rules.suppressed
        most = schedule.masks if may_return else schedule.most_open
        return schedule.masks, self._check_room(request, most)

    def check_form(self, request: Request) -> None:
        """Whether a text of the asked form fits into the holes that there are.

        Walks the canvas where the form's last one was another: not for an event loop.

        Raises:
            ValueError: none does.
        """
        if request.constraint is not None and request.holes is None and request.room is None:
            check_fits(request.constraint, request.ids, self.model.mask_id)

    def _check_growing(self, request: Request, masked_L: np.ndarray) -> tuple[int, int]:
        """As `check`, of a hole that may grow to so many masks as there is room for."""
        room, formed = request.room, request.constraint is not None
        assert room is not None
        context = self.model.config.max_position_embeddings
        require(
            room.columns <= context,
            f"the text may grow to {room.columns} tokens, but the model's context is {context}: "
            "allow fewer new tokens",
        )
        Growth.of(masked_L, room, request.sampling, self.model.config, formed=formed)
        most = room.columns - int((~masked_L).sum())
        return int(masked_L.sum()), self._check_room(request, most)

    def _check_settings(self, request: Request) -> None:
        sampling, soft_mask = request.sampling, request.soft_mask
        most = max(MOST_STEPS, self.model.config.max_position_embeddings)
        require(
            # Those of a hole that grows are not planned.
            sampling.steps <= most or request.room is not None,
            f"{sampling.steps} steps are too many: at most {most}",
        )
        require(
            self.cached or sampling.cache == "none",
            f"this engine keeps no keys and values: leave out cache {sampling.cache}",
        )
        reported = min(self.k, self.model.config.vocab_size)
        require(
            request.top_logprobs <= reported,
            f"{request.top_logprobs} leading tokens are asked for: this engine reports at most "
            f"{reported}",
        )
        if soft_mask is not None:
            check_k(soft_mask.k, self.model.config.vocab_size)
            require(
                soft_mask.k <= self.k,
                f"soft-mask k is {soft_mask.k}, but this engine mixes in at most {self.k}: lower k",
            )

    def _check_room(self, request: Request, masks: int) -> int:
        """Whether an empty canvas would have room for it; the bytes to read it."""
        require(
            request.positions <= self.positions,
            f"the request takes {request.positions} positions, but the engine has room for "
            f"{self.positions}: shorten it, or give the engine more memory",
        )
        constrained = request.constraint is not None
        reading = self.footprint.reading(
            masks, request.sampling, request.soft_mask, constrained=constrained
        )
        require(
            reading <= self.reading,
            f"the request's logits take {reading / 2**20:.1f} MB, but the engine has "
            f"{self.reading / 2**20:.1f} for them: ask for fewer new tokens, or give the engine "
            "more memory",
        )
        return reading
