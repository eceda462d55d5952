"""What a block in the middle of a text costs: its first step, and each of those behind it.

Half of a text is decided, and the rest are masks. A block's first step computes what its cache does
not keep (the whole text, or of a block-causal model the block before too), the others their window.
Two steps so say what a whole generation costs, which at a published shape would take hours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from ..config import SamplingConfig, SoftMaskConfig
from ..decoding.batch import Batch
from ..decoding.sequence import Rules
from ..models import DreamModel
from ..reporting.measure import timed
from .benchmark import FEWEST, MOST, SECONDS, SOFT
from .choices import BLOCK, BLOCK_STEPS
from .roofline import Work, counted
from .shapes import part

PIECES = ("first", "later")  # of a block's steps
# On a GPU the forwards behind the first are recorded as graphs before they are timed.
UNTIMED = {"cuda": 5}


@dataclass(frozen=True)
class Cell:
    """A way of decoding a batch of texts of one length."""

    cache: str
    tokens: int
    batch: int
    mode: str = "plain"

    @property
    def name(self) -> str:
        """As messages have it."""
        return f"{self.cache}, {self.tokens} tokens, batch {self.batch}, {self.mode}"


@dataclass(frozen=True)
class Plan:
    """How texts are decoded: in blocks of `block` masks and `steps` steps; `k` tokens are mixed."""

    block: int = BLOCK
    steps: int = BLOCK_STEPS
    k: int = 3

    def check(self, cell: Cell) -> None:
        """Raises ValueError where half a text has no room for the blocks that are timed.

        Or where a block-causal model, which has a block more to fill, would lack a step for it.
        """
        if cell.cache == "exact" and self.steps < 2:
            raise ValueError(
                f"--block-steps must be at least 2 with cache exact, not {self.steps}: give more, "
                "or another --cache"
            )
        if cell.tokens < 4 * self.block:
            raise ValueError(
                f"{cell.tokens} tokens are too few for blocks of {self.block}, two of which lie in "
                f"half of a text: give at least {4 * self.block}, or a smaller --block-length"
            )

    def soft_mask(self, mode: str) -> SoftMaskConfig | None:
        """The feedback of a mode."""
        if mode == "plain":
            return None
        further: dict[str, dict[str, Any]] = {
            "topk": {"k": self.k},
            "temperature": {"temperature": 1.0},
        }
        return SoftMaskConfig(mode=mode, **further[mode], **SOFT)

    def batch(self, model: DreamModel, cell: Cell) -> Batch:
        """The texts, their first half decided; of a block-causal model, one block more of it."""
        decided = cell.tokens // 2 // self.block * self.block
        made = Batch(model, cell.batch * cell.tokens, cached=cell.cache != "none")
        blocks = -(-(cell.tokens - decided) // self.block)
        is_causal = model.config.block_size is not None
        config = SamplingConfig(
            steps=blocks * self.steps,
            block_length=None if is_causal else self.block,
            cache=cell.cache,
            alg="entropy",
        )
        generator = torch.Generator().manual_seed(1)
        for row in range(cell.batch):
            ids_L = torch.randint(0, model.mask_id, (cell.tokens,), generator=generator)
            ids_L[decided:] = model.mask_id
            made.add(
                row * cell.tokens,
                ids_L.to(model.device),
                config,
                soft_mask=self.soft_mask(cell.mode),
                rules=Rules(suppressed=(model.mask_id,)),
            )
        # Its first block begins with all of the prompt, which later ones find kept.
        for _ in range(self.steps if is_causal else 0):
            made.step()
        return made


@dataclass
class Times:
    """Milliseconds of the two kinds of steps, by depth, and what each computes."""

    ms: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)


Beside = TypeVar("Beside", bound=Callable[[], object])


def measure(
    model: DreamModel,
    cells: Sequence[Cell],
    plan: Plan,
    depths: Sequence[int],
    tick: Callable[[str], None],
    repeat: int | None = None,
    probe: Callable[[set[int]], Beside] | None = None,
    clock: str = "wall",
) -> tuple[dict[Cell, Times], Beside | None]:
    """Times cells in turns, at each depth: `repeat` rounds, or by the clock.

    Args:
        model: with at least as many layers as any of the depths.
        depths: so many of its layers are computed.
        tick: is told what begins.
        probe: given the numbers of rows that products of these cells have, makes what is called
            once a round, to time what results are compared with.
        clock: as for `timed`; also of the seconds that end it.
    """
    sizes = {cell: plan.block if cell.cache == "exact" else None for cell in cells}
    found = {cell: Times({d: {piece: [] for piece in PIECES} for d in depths}) for cell in cells}
    for cell in cells:
        tick(f"{cell.name}: warm-up")
        shallow = part(model, depths[0], sizes[cell])
        made = plan.batch(shallow, cell)
        for piece in PIECES:
            with counted(shallow) as done:
                made.step()
            found[cell].work[piece] = done
    work = [one for times in found.values() for one in times.work.values()]
    counts = {round(count) for one in work for count in (one.positions, one.rows)}
    beside = None if probe is None else probe(counts)
    seconds, rounds = 0.0, 0
    while rounds < (repeat or FEWEST) or (repeat is None and rounds < MOST and seconds < SECONDS):
        rounds += 1
        seconds += 0.0 if beside is None else timed(beside, model.device, clock)
        for cell in cells:
            tick(f"{cell.name}: round {rounds}")
            for depth in depths:
                made = plan.batch(part(model, depth, sizes[cell]), cell)
                kept = found[cell].ms[depth]
                seconds += _time(made, plan, kept, clock)
    return found, beside


def _time(made: Batch, plan: Plan, kept: dict[str, list[float]], clock: str) -> float:
    """Times a block's first step, and the mean of those behind it; returns the seconds it took."""
    untimed = min(UNTIMED.get(made.device.type, 0), plan.steps - 2)
    first = timed(made.step, made.device, clock)
    for _ in range(untimed):
        made.step()
    count = max(min(2, plan.steps - 1 - untimed), 1)

    def later() -> None:
        for _ in range(count):
            made.step()

    behind = timed(later, made.device, clock)
    kept["first"].append(1000 * first)
    kept["later"].append(1000 * behind / count)
    return first + behind
