"""Trajectory training: rows that stay for several forwards, and carry their feedback along.

The published objective masks each row at random and shows feedback of a plain pass. A sampler
meets other canvases: what is masked is what the model was unsure of, and feedback is what a pass
said that had read feedback itself. Here a row goes the sampler's way (PUMA, arXiv 2602.10314;
Relay, 2605.22967): it begins with few tokens revealed, each forward reveals those that the model is
surest of, as they truly are, and what the forward said of the others is what the next one reads.

`reveal: random` reveals any masks in place of the surest. A row is then masked as in training
without a trajectory, at random, and shows feedback that costs no forward of its own: that of its
visit before, with more masks and the weights of the update before.

A row stays for `stages` forwards. At stage a a share of its maskable tokens is revealed that is
drawn from [a, a + 1) / stages, so each forward reveals about 1 / stages of them. The rows of an
update are at different stages. Which row a place of the batch holds, and at which stage, derives
from the number of the update alone; what has to be kept between updates, and lies in a
checkpoint, is which tokens are masked and what was last said of them.

Shape suffixes: B rows, L length, N masked positions (flat indices into B * L), K leading tokens,
W the stages that an update runs through, and one more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..soft_mask import Feedback
from .config import TrajectoryConfig

# More rows than a batch of a corpus has.
MOST_ROWS = 2**20


class Visit(NamedTuple):
    """What a place of the batch holds in one update: a row, numbered over the run, at a stage."""

    row: int
    stage: int


@dataclass(frozen=True)
class Visits:
    """Which rows an update visits; `slots` draws an update, as of a GlobalBatch."""

    config: TrajectoryConfig
    slots: int

    def of(self, draw: int, place: int = 0) -> Visit:
        """What a draw holds; of a draw that is a whole batch, its row at this place.

        Neighbours are at different stages, from the first update on: rows that moved in step would
        all be nearly masked at once, and nearly revealed at once.
        """
        update, slot = divmod(draw, self.slots)
        generation, inner = divmod(update + (slot + place) % self.config.period, self.config.period)
        return Visit(generation * self.slots + slot, inner * self.config.forwards)

    def batches(self, draw: int) -> tuple[int, ...]:
        """The draws that began the rows of a draw which is a whole batch."""
        places = range(self.config.period)
        return tuple(sorted({self.of(draw, place).row for place in places}))


def shares(config: TrajectoryConfig, seed: int, visits: Sequence[Visit]) -> Tensor:
    """(B, W) shares of each row that are revealed at the stages of an update, and after it."""
    values = [
        [_share(config, seed, one.row, one.stage + more) for more in range(config.forwards + 1)]
        for one in visits
    ]
    return torch.tensor(values)


def _share(config: TrajectoryConfig, seed: int, row: int, stage: int) -> float:
    if stage >= config.stages:
        return 1.0
    return (stage + random.Random(f"share/{seed}/{row}/{stage}").random()) / config.stages


def begin(maskable_BL: Tensor, share_B: Tensor, generator: torch.Generator) -> Tensor:
    """(B, L) the masks of rows that no forward has seen: a share is revealed at random."""
    order_BL = torch.rand(maskable_BL.shape, generator=generator)
    return reveal(maskable_BL, maskable_BL, order_BL, share_B, least=0)


def reveal(
    masked_BL: Tensor, maskable_BL: Tensor, first_BL: Tensor, share_B: Tensor, least: int = 1
) -> Tensor:
    """(B, L) the masks that are left when this share of a row is revealed; at least one is.

    Those of the largest `first_BL` are revealed first, and `least` of them in any case.
    """
    target_B = ((1 - share_B) * maskable_BL.sum(1)).round().long()
    target_B = torch.minimum(target_B, masked_BL.sum(1) - least).clamp_min(1)
    order_BL = first_BL.masked_fill(~masked_BL, torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    # The masks lie behind all others in that order, the surest first.
    place_L = torch.arange(order_BL.shape[1], device=order_BL.device)
    stays_BL = place_L >= (order_BL.shape[1] - target_B)[:, None]
    return torch.zeros_like(masked_BL).scatter(1, order_BL, stays_BL) & masked_BL


@dataclass
class Carried:
    """What the rows of one forward of an update keep until the next update.

    `has_BL`: where something was said of a masked position: the entropy in nats, the leading ids
    and logits, and log sum exp. No column K without soft-masking.
    """

    rows: list[int]
    masked_BL: Tensor
    has_BL: Tensor
    entropy_BL: Tensor
    total_BL: Tensor
    ids_BLK: Tensor
    logits_BLK: Tensor

    def feedback(self, reads_B: Tensor) -> Feedback | None:
        """What the rows read of their state; None: nothing."""
        rows_N = (self.has_BL & self.masked_BL & reads_B[:, None]).flatten().nonzero().squeeze(1)
        if not len(rows_N) or not self.ids_BLK.shape[-1]:
            return None
        return Feedback(
            rows_N,
            self.entropy_BL.flatten()[rows_N],
            self.ids_BLK.flatten(0, 1)[rows_N],
            self.logits_BLK.flatten(0, 1)[rows_N],
            total_N=self.total_BL.flatten()[rows_N],
        )


TENSORS = tuple(field.name for field in fields(Carried) if field.name != "rows")


class Trajectories:
    """The rows that are under way on this device, by their place in an update."""

    def __init__(self, k: int) -> None:
        """`k`: leading tokens that are kept; 0: the masks alone, without feedback."""
        self.k = k
        self._carried: dict[int, Carried] = {}

    def enter(self, place: int, rows: list[int], masked_BL: Tensor) -> Carried:
        """The rows of a forward: as they were left, or, where they are new, with these masks.

        A canvas may have another length than before, as batches are padded: what is beyond the old
        one is as in `masked_BL`.
        """
        device, (batch, length) = masked_BL.device, masked_BL.shape
        number_BL = torch.zeros(batch, length, device=device)
        number_BLK = torch.zeros(batch, length, self.k, device=device)
        entered = Carried(
            list(rows),
            masked_BL.clone(),
            torch.zeros_like(masked_BL),
            number_BL,
            number_BL.clone(),
            number_BLK.long(),
            number_BLK,
        )
        before = self._carried.get(place)
        if before is None:
            return entered
        known = {row: index for index, row in enumerate(before.rows)}
        pairs = [(own, known[row]) for own, row in enumerate(rows) if row in known]
        if pairs:
            own_M, old_M = torch.tensor(pairs, device=device).T
            common = min(length, before.masked_BL.shape[1])
            for name in TENSORS:
                old, new = getattr(before, name), getattr(entered, name)
                new[own_M, :common] = old[old_M, :common]
        return entered

    def leave(self, place: int, carried: Carried, masked_BL: Tensor, said: Feedback) -> None:
        """Keeps what is masked now, and what was said of it."""
        rows_N = said.rows_N
        carried.masked_BL = masked_BL
        carried.has_BL = torch.zeros_like(masked_BL)
        if self.k:
            assert said.entropy_N is not None
            assert said.ids_NK is not None
            assert said.logits_NK is not None
            assert said.total_N is not None
            carried.has_BL.view(-1)[rows_N] = True
            carried.entropy_BL.view(-1)[rows_N] = said.entropy_N.detach()
            carried.total_BL.view(-1)[rows_N] = said.total_N.detach()
            carried.ids_BLK.view(-1, self.k)[rows_N] = said.ids_NK[:, : self.k]
            carried.logits_BLK.view(-1, self.k)[rows_N] = said.logits_NK.detach()[:, : self.k]
        self._carried[place] = carried

    def save(self, path: Path) -> None:
        """Writes all rows to a file."""
        tensors: dict[str, Tensor] = {}
        for place, carried in self._carried.items():
            tensors[f"{place}.rows"] = torch.tensor(carried.rows)
            for name in TENSORS:
                tensors[f"{place}.{name}"] = getattr(carried, name).contiguous().cpu()
        save_file(tensors, path)

    def load(self, path: Path, device: torch.device) -> None:
        """Takes up the rows of a file."""
        found: dict[int, dict[str, Any]] = {}
        for key, tensor in load_file(path).items():
            place, _, name = key.partition(".")
            found.setdefault(int(place), {})[name] = tensor
        self._carried = {
            place: Carried(parts.pop("rows").tolist(), **{n: parts[n].to(device) for n in TENSORS})
            for place, parts in found.items()
        }
