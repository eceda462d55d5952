"""From rows to masked batches: the order of a run, padding, noise.

`draw` is the number of a row in the run. Padding, times, masks and the choice between one pass and
two derive from (seed, draw), never from a generator's state: a resumed run, and a run on more
processes, see the same batches. Shape suffixes: B batch, L length.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .config import ConversationConfig, NoiseConfig, TrainConfig
from .corpus import Batch, Corpus
from .noise import corrupt, sample_times
from .schedule import GlobalBatch, Stage, TrainingSchedule, derived_seed
from .trajectory import MOST_ROWS, Visit, Visits, begin, shares

NOTHING = -1  # in place of a token, where rows of a batch are not of one length


class ConversationOrder(Dataset):
    """The rows of a run in the order in which they are trained on: epochs, each shuffled."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        seed: int,
        length: int,
        visits: Visits | None = None,
    ) -> None:
        """`length`: draws of the whole run. `visits`: rows stay for several draws."""
        self.rows, self.seed, self.length, self.visits = rows, seed, length, visits
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.length

    def epochs(self, draws: int) -> float:
        """How often so many draws are all rows."""
        stay = 1 if self.visits is None else self.visits.config.period
        return draws / (stay * len(self.rows))

    def __getitem__(self, draw: int) -> dict[str, Any]:
        if self.visits is None:
            return {**self._row(draw), "draw": draw}
        seen = self.visits.of(draw)
        return {**self._row(seen.row), "draw": draw, "visits": [seen]}

    def _row(self, number: int) -> dict[str, Any]:
        epoch, place = divmod(number, len(self.rows))
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
            # Rows that stay may be of two epochs at once.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(len(self.rows), generator=generator)
        return self.rows[int(self._orders[epoch][place])]


class CorpusOrder(Dataset):
    """The batches of a pretraining run, each of which counts as one row (`draw`)."""

    def __init__(
        self,
        corpus: Corpus,
        schedule: TrainingSchedule,
        global_batch: GlobalBatch,
        seed: int,
        visits: Visits | None = None,
    ) -> None:
        """`visits`: rows stay for several draws, those of a batch for different ones."""
        self.corpus, self.seed, self.visits = corpus, seed, visits
        self.schedule, self.global_batch = schedule, global_batch
        self._batches: dict[int, Batch] = {}

    def __len__(self) -> int:
        return self.schedule.steps * self.global_batch.size

    def epochs(self, _draws: int) -> None:
        """A corpus is endless: there is no passing over all of it."""

    def __getitem__(self, draw: int) -> dict[str, Any]:
        if self.visits is None:
            return {"batch": self._batch(draw), "draw": draw}
        rows, visits, kept = [], [], {}
        for number in self.visits.batches(draw):
            batch = self._batches.get(number) or self._batch(number)
            kept[number] = batch
            for place, row in enumerate(zip(*batch, strict=True)):
                seen = self.visits.of(draw, place)
                if seen.row == number:
                    rows.append(row)
                    visits.append(seen._replace(row=number * MOST_ROWS + place))
        self._batches = kept
        return {"batch": side_by_side(rows), "draw": draw, "visits": visits}

    def _batch(self, number: int) -> Batch:
        # Of rows that stay, `number` counts generations.
        period = 1 if self.visits is None else self.visits.config.period
        stage = self.schedule.at(self.global_batch.update_of(number) * period)
        return self.corpus.batch(self.seed, number, stage)


def side_by_side(rows: Sequence[tuple[Tensor, Tensor]]) -> Batch:
    """Rows (ids, which may be masked) of several batches as one; NOTHING is behind shorter ones."""
    ids, maskable = zip(*rows, strict=True)
    return Batch(
        pad_sequence([*ids], batch_first=True, padding_value=NOTHING),
        pad_sequence([*maskable], batch_first=True),
    )


def padded_length(longest: int, extra: int, multiple: int) -> int:
    """`longest` + `extra`, rounded up to a multiple (of 8: for tensor cores)."""
    return -(-(longest + extra) // multiple) * multiple


def pad(
    rows: Sequence[dict[str, Any]],
    config: ConversationConfig,
    pad_token_id: int,
    generator: torch.Generator,
) -> Batch:
    """Rows padded on the right; everything after the prompt may be masked, the padding too.

    A random number of extra pad tokens (published: 0 to 49) teaches the model to end an answer
    early where the canvas is too long for it.
    """
    extra = int(torch.randint(0, config.extra_padding, (1,), generator=generator))
    longest = max(len(row["input_ids"]) for row in rows)
    length = padded_length(longest, extra, config.pad_multiple)
    ids_BL = torch.full((len(rows), length), pad_token_id)
    for ids_L, row in zip(ids_BL, rows, strict=True):
        ids_L[: len(row["input_ids"])] = torch.as_tensor(row["input_ids"])
    prompts_B = torch.tensor([int(row["prompt_length"]) for row in rows])
    return Batch(ids_BL, torch.arange(length) >= prompts_B[:, None])


def mask(
    batch: Batch,
    times_B: Tensor,
    noise: NoiseConfig,
    mask_token_id: int,
    generator: torch.Generator,
    left_to_right: float = 0.0,
) -> dict[str, Tensor]:
    """What the objective reads: noisy_BL, ids_BL, masked_BL, scored_BL, maskable_BL, times_B."""
    share_B = (1 - noise.floor) * times_B + noise.floor
    corrupted = corrupt(
        *batch, share_B, mask_token_id, generator, left_to_right, noise.at_least_one
    )
    return {**corrupted._asdict(), **batch._asdict(), "times_B": times_B}


def draw_times(rows: int, noise: NoiseConfig, generator: torch.Generator) -> Tensor:
    """(B,) times: one each, stratified over the batch, or (published) one for all."""
    if noise.per_row:
        return sample_times(rows, noise.t_low, noise.t_high, generator)
    return sample_times(1, noise.t_low, noise.t_high, generator).expand(rows)


@dataclass(frozen=True)
class Collator:
    """Makes the masked batch of one forward; its random numbers derive from the first row's draw.

    `conversations` is None for a corpus, whose rows are whole batches already.
    """

    train: TrainConfig
    noise: NoiseConfig
    conversations: ConversationConfig | None
    schedule: TrainingSchedule
    global_batch: GlobalBatch
    seed: int
    mask_token_id: int
    pad_token_id: int
    two_passes: bool
    visits: Visits | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The tensors of `mask`, and `soft`, `feedback_passes`, `draw` and `row_ids`.

        Where rows stay, what `visited` says is there in place of `feedback_passes`.
        """
        draw = rows[0]["draw"]
        stage = self.schedule.at(self.global_batch.update_of(draw))
        generator = torch.Generator().manual_seed(derived_seed("masks", self.seed, draw))
        batch = self.padded(rows, generator)
        names = {"draw": draw, "row_ids": [row.get("id", row["draw"]) for row in rows]}
        if self.visits is not None:
            visits = [seen for row in rows for seen in row["visits"]]
            return {**self.visited(batch, visits, draw, stage, generator), **names}
        times_B = draw_times(len(batch.ids_BL), self.noise, generator)
        soft, passes = self.coins(draw)
        return {
            **mask(batch, times_B, self.noise, self.mask_token_id, generator, stage.left_to_right),
            "soft": soft,
            "feedback_passes": passes,
            **names,
        }

    def visited(
        self,
        batch: Batch,
        visits: list[Visit],
        draw: int,
        stage: Stage,
        generator: torch.Generator,
    ) -> dict[str, Any]:
        """Rows that stay: the tensors of `mask` as if all were new, and what their stages need.

        Besides `place`, the number of the forward in its update, and `rows`, their numbers:
        `shares_BW` is revealed of a row at the stages of the update and after it, in the order of
        `order_BL` where that is random, `reads_B` is whether it reads its state, and `real_BL`,
        where rows are not of one length, what is text.
        """
        assert self.visits is not None
        real_BL = batch.ids_BL != NOTHING
        ids_BL = batch.ids_BL.masked_fill(~real_BL, self.pad_token_id)
        shares_BW = shares(self.visits.config, self.seed, visits)
        masked_BL = begin(batch.maskable_BL, shares_BW[:, 0], generator)
        reads_B = torch.rand(len(visits), generator=generator) < stage.soft_probability
        order_BL = None
        if self.visits.config.reveal == "random":
            order_BL = torch.rand(ids_BL.shape, generator=generator)
        update = self.global_batch.update_of(draw)
        carries = update > 0 or self.visits.config.forwards > 1
        return {
            "noisy_BL": ids_BL.masked_fill(masked_BL, self.mask_token_id),
            "ids_BL": ids_BL,
            "masked_BL": masked_BL,
            "scored_BL": masked_BL,
            "times_B": 1 - shares_BW[:, 0],
            "maskable_BL": batch.maskable_BL,
            "shares_BW": shares_BW,
            "reads_B": reads_B,
            "order_BL": order_BL,
            "real_BL": None if bool(real_BL.all()) else real_BL,
            "place": self.global_batch.forward_of(draw) % self.global_batch.accumulation,
            "rows": [seen.row for seen in visits],
            # Alike on all devices, as `coins` says.
            "soft": self.two_passes and carries and stage.soft_probability > 0,
        }

    def padded(self, rows: list[dict[str, Any]], generator: torch.Generator) -> Batch:
        if self.conversations is None:
            (row,) = rows
            return row["batch"]
        return pad(rows, self.conversations, self.pad_token_id, generator)

    def coins(self, draw: int) -> tuple[bool, int]:
        """Whether this forward is soft, and its number of feedback passes: alike on all devices.

        Sharded devices with different numbers of forwards would deadlock; others would wait for
        the slowest.
        """
        update, forward = self.global_batch.update_of(draw), self.global_batch.forward_of(draw)
        number = update if self.train.soft_coin == "step" else forward
        rng = random.Random(f"soft/{self.seed}/{number}")
        stage = self.schedule.at(update)
        soft = self.two_passes and rng.random() < stage.soft_probability
        return soft, rng.randint(1, stage.feedback_passes)


class Validation:
    """Batches whose rows, times and masks are the same at every evaluation."""

    def __init__(self, collator: Collator, data: Any, eval_batches: int) -> None:
        """`data`: validation rows of conversations, or a Corpus."""
        self.collator, self.data, self.eval_batches = collator, data, eval_batches

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.data.validation) if isinstance(self.data, Corpus) else ("all",)

    def batches(self, kind: str, part: int, parts: int) -> Iterator[tuple[dict[str, Tensor], bool]]:
        """Every `parts`-th batch of a kind, from `part` on, and whether it counts.

        All parts have the same number of batches, which sharded weights need: the last one may be
        a repetition that does not count.
        """
        conversations = not isinstance(self.data, Corpus)
        size = self.collator.global_batch.per_device
        count = -(-len(self.data) // size) if conversations else self.eval_batches
        for place in range(part, -(-count // parts) * parts, parts):
            number = place % count
            seed = derived_seed("validation", 0 if conversations else self.collator.seed, number)
            generator = torch.Generator().manual_seed(seed)
            make = self._conversations if conversations else self._corpus
            batch, times_B = make(kind, number, generator)
            collator = self.collator
            masked = mask(batch, times_B, collator.noise, collator.mask_token_id, generator)
            yield masked, place < count

    def _conversations(
        self, _kind: str, number: int, generator: torch.Generator
    ) -> tuple[Batch, Tensor]:
        """Times run evenly from t_low to t_high over the rows, as published."""
        size, noise = self.collator.global_batch.per_device, self.collator.noise
        places = range(number * size, min((number + 1) * size, len(self.data)))
        times = torch.linspace(noise.t_low, noise.t_high, len(self.data))
        batch = self.collator.padded([self.data[i] for i in places], generator)
        return batch, times[places.start : places.stop]

    def _corpus(self, kind: str, number: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        rng = random.Random(f"evaluation/{self.collator.seed}/{number}")
        batch = self.data.validation[kind](rng)
        noise = self.collator.noise
        return batch, sample_times(len(batch.ids_BL), noise.t_low, noise.t_high, generator)
