"""Sequences that are denoised together, each at its own step of its own schedule.

A Batch is a flat canvas of P positions on which sequences lie side by side; they may come and go
between steps. A step runs one packed forward over the windows of the sequences that need one. Then,
for all sequences of like settings at once, it reads the logits of masked positions, commits some,
and keeps what it read at the others as the next step's input.
Shape suffixes: P positions, T computed positions, N masked positions that are read, M those of
them that stay masked, R sequences, L columns of one sequence, V vocabulary, K superposed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig
from ..models import DreamModel
from ..models.packing import Layout, Span
from ..soft_mask import SoftMask, SoftTokens, make_mixer, rate
from .canvas_constraint import CanvasConstraint, HoleConstraint
from .commit import choose_commits
from .constrained import look_again, renew, settle, write_fixed
from .cuda_graphs import Graphs, suits_graphs
from .hooks import Hooks
from .kv_cache import KeyValueStore
from .logprobs import LogprobStore
from .predictions import LogitReader, Predictions, Rows, fail_where_nan
from .rule_state import RuleState
from .rule_views import feedback_at, given_up, judge_feedback
from .schedule import ScheduledStep, StepSchedule
from .sequence import Rules, SequenceState, Settings
from .soft_state import SoftState
from .unmask import Ragged

if TYPE_CHECKING:
    from ..constraints.token_automaton import TokenAutomaton

# On an accelerator a look at the logits' health is a synchronisation, so it is taken rarely.
NAN_CHECK_EVERY = 16
# What a step changes of a batch, beside its sequences and their soft state.
CHANGING = ("canvas_P", "masked_P", "committed_P", "candidate_P")


class Saved(NamedTuple):
    """A batch before a step."""

    tensors: dict[str, Tensor]
    soft: dict[str, Any]
    memory: dict[Any, Any]
    sequences: dict[int, dict[str, Any]]
    forwards: int


class Batch:
    """A flat canvas of `positions`, and the sequences on it.

    Args:
        cached: keep keys and values, which sequences with a cache need.
        top_logprobs: how many leading tokens of each position `logprobs` keeps; 0: none.
        graphs: record forwards as CUDA graphs; None: where the model suits them.

    Raises:
        ValueError: graphs are asked for where there can be none.
    """

    def __init__(
        self,
        model: DreamModel,
        positions: int,
        *,
        cached: bool = False,
        top_logprobs: int = 0,
        hooks: Hooks | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.model, self.hooks, self.positions = model, hooks, positions
        if graphs and not suits_graphs(model):
            raise ValueError("CUDA graphs need an unquantised model on one CUDA device")
        use_graphs = suits_graphs(model) if graphs is None else graphs
        self._forward = Graphs(model) if use_graphs else model.hidden
        self.device = model.device
        self.mask_id = model.mask_id
        self.sequences: list[SequenceState] = []
        self.canvas_P = torch.zeros(positions, dtype=torch.long, device=self.device)
        self.real_P = torch.zeros(positions, dtype=torch.bool, device=self.device)
        self.masked_P = torch.zeros_like(self.real_P)
        self.committed_P = torch.zeros_like(self.real_P)
        self.candidate_P = torch.zeros_like(self.canvas_P)
        self.place_P = torch.zeros_like(self.canvas_P)
        self.previous_P = torch.arange(positions, device=self.device)
        self.store = KeyValueStore(positions) if cached else None
        self.soft = SoftState(positions, self.device)
        self.memory = RuleState(positions, self.device)
        self.logprobs = LogprobStore(positions, top_logprobs, self.device) if top_logprobs else None
        self.logits_PV: Tensor | None = None
        self.forwards = 0
        self._reader = LogitReader(model)
        self._layout: tuple[object, Layout] | None = None
        self._mixers: dict[SoftMaskConfig, SoftMask | None] = {}

    def add(
        self,
        start: int,
        ids_L: Tensor,
        config: SamplingConfig,
        *,
        soft_mask: SoftMaskConfig | None = None,
        rules: Rules | None = None,
        generator: torch.Generator | None = None,
        top_logprobs: int = 0,
        constraint: TokenAutomaton | None = None,
        holes: tuple[int, ...] | None = None,
    ) -> SequenceState:
        """Lays a sequence onto the free positions from `start` on.

        Args:
            top_logprobs: leading tokens that `logprobs` keeps of it, at most the batch's.
            constraint: the form of the text between its first and its last mask; or of
            holes: those that begin at these columns, each by itself.

        Raises:
            ValueError: fewer steps than blocks, or no text of the form fits into the masks.
        """
        masked_L = ids_L.eq(self.mask_id).cpu().numpy()
        schedule = StepSchedule(masked_L, config)
        rules = rules or Rules()
        hooked = self.hooks is not None
        sequence = SequenceState(
            start=start,
            length=len(ids_L),
            config=config,
            soft_mask=soft_mask,
            rules=rules,
            generator=generator,
            top_logprobs=top_logprobs,
            may_write_masks=hooked or self.mask_id not in rules.suppressed,
            schedule=schedule,
            generated_L=masked_L,
        )
        if constraint is not None:
            canvas = constraint, ids_L.cpu().numpy(), self.mask_id
            whole = holes is None
            sequence.constraint = (
                CanvasConstraint(*canvas) if whole else HoleConstraint(*canvas, holes or ())
            )
            sequence.settings = Settings.of(sequence)
        own = slice(start, start + sequence.length)
        self.canvas_P[own] = ids_L
        self.candidate_P[own] = ids_L
        self.real_P[own] = True
        self.masked_P[own] = ids_L == self.mask_id
        self.place_P[own] = torch.arange(sequence.length, device=self.device)
        self.previous_P[own] = torch.arange(start, start + sequence.length, device=self.device) - 1
        self.previous_P[start] = start
        self.committed_P[own] = False
        self.soft.forget(own)
        self.memory.forget(own)
        if self.logprobs is not None:
            self.logprobs.forget(own)
        self.sequences.append(sequence)
        self.sequences.sort(key=lambda s: s.start)
        if sequence.constraint is not None:
            self._write_fixed(sequence)
            schedule.recount(sequence.masked_L)
            sequence.step = schedule.due(0)
            self.masked_P[own] = self.canvas_P[own] == self.mask_id
        return sequence

    def drop(self, sequence: SequenceState) -> None:
        """Takes a sequence off the canvas; its positions are free."""
        self.sequences.remove(sequence)
        own = slice(sequence.start, sequence.start + sequence.length)
        self.real_P[own] = False
        self.masked_P[own] = False

    @torch.no_grad()
    def step(self, sequences: Sequence[SequenceState] | None = None) -> None:
        """One step of every sequence, or of these, that is not done.

        A sequence whose logits are NaN says so in `failure`, and is done.
        """
        self.committed_P = torch.zeros_like(self.masked_P)
        sequences = self.sequences if sequences is None else sequences
        live = [s for s in sequences if not s.is_done or self.hooks is not None]
        renew(live, self._ids)
        scheduled = {id(s): s.schedule.at(s.step) for s in live}
        busy = [s for s in live if self.hooks or s.needs_forward(scheduled[id(s)])]
        if busy:
            groups = self._predict(busy, [scheduled[id(s)] for s in busy])
            # Feedback must not point at what a step's commits have made impossible.
            pairs = [
                group.pairs() if group.settings.automaton and group.settings.soft_mask else None
                for group in groups
            ]
            for group in groups:
                self._commit(group)
            self._update_masks(groups)
            for group, before in zip(groups, pairs, strict=True):
                if before is not None:
                    group = look_again(group, before, self._reader)
                self._mix(group)
        for sequence in live:
            sequence.step += 1
            if sequence.constraint is not None:
                sequence.step = sequence.schedule.due(sequence.step)

    def save(self) -> Saved:
        """All that a step changes, but for keys and values, which a repeated step writes anew."""
        tensors = {name: getattr(self, name).clone() for name in CHANGING}
        sequences = {id(sequence): sequence.save() for sequence in self.sequences}
        return Saved(tensors, self.soft.save(), self.memory.save(), sequences, self.forwards)

    def restore(self, saved: Saved) -> None:
        """Takes a step back, with the same sequences on the canvas as when it was saved."""
        for name, tensor in saved.tensors.items():
            setattr(self, name, tensor.clone())
        self.soft.restore(saved.soft)
        self.memory.restore(saved.memory)
        self.forwards = saved.forwards
        for sequence in self.sequences:
            sequence.restore(saved.sequences[id(sequence)])

    # What is computed.

    def _predict(
        self, busy: list[SequenceState], scheduled_R: list[ScheduledStep]
    ) -> list[Predictions]:
        """One forward, and a token for each of the masked positions that are read."""
        shift = self.model.config.logit_shift
        for sequence, scheduled in zip(busy, scheduled_R, strict=True):
            if scheduled.block != sequence.block:
                sequence.block, sequence.age = scheduled.block, 0
        windows = [
            sequence.window(scheduled, shift=shift)
            for sequence, scheduled in zip(busy, scheduled_R, strict=True)
        ]
        layout = self._layout_of(busy, windows)
        groups = self._groups(busy, scheduled_R, windows)
        rows = [group.rows_N for group in groups]
        wanted = [layout.flat_T] if self.hooks is not None else rows
        hidden_TD = self._forward(self._tokens(layout), layout)
        hidden_ND = hidden_TD[layout.sources(torch.cat(wanted), shift=shift)]
        self.forwards += 1
        for sequence in busy:
            sequence.forwards += 1
            sequence.age += 1
        if self.hooks is not None:
            found = [self._read_hooked(group, hidden_ND, layout.flat_T) for group in groups]
        else:
            parts = zip(groups, hidden_ND.split([len(r) for r in rows]), strict=True)
            found = [self._reader.read(group, part_ND) for group, part_ND in parts]
        if self.device.type == "cpu" or self.forwards % NAN_CHECK_EVERY == 0:
            for predictions in found:
                fail_where_nan(predictions)
        return found

    def _layout_of(self, busy: list[SequenceState], windows: list[tuple[int, int]]) -> Layout:
        key = tuple((s.start, s.reach, *w) for s, w in zip(busy, windows, strict=True))
        if self._layout is None or self._layout[0] != key:
            pieces = [
                (Span(b - a, s.start, s.reach), s.flat_L[a:b])
                for s, (a, b) in zip(busy, windows, strict=True)
            ]
            # Windows of like shape side by side: attention takes them in one call.
            pieces.sort(key=lambda piece: (piece[0].queries, piece[0].length))
            spans, columns = zip(*pieces, strict=True)
            flat_T = torch.from_numpy(np.concatenate(columns)).to(self.device)
            layout = Layout(flat_T, self.place_P[flat_T], self.previous_P, spans, self.store)
            self._layout = key, layout
        return self._layout[1]

    def _tokens(self, layout: Layout) -> Tensor | SoftTokens:
        """(1, T) what the forward reads: ids, or, once anything was mixed, soft tokens."""
        flat_T = layout.flat_T
        ids_1T = self.canvas_P[flat_T][None]
        if not self.soft.is_used:
            return ids_1T
        return self.soft.tokens(ids_1T, flat_T, self.masked_P[flat_T])

    def _groups(
        self,
        busy: list[SequenceState],
        scheduled_R: list[ScheduledStep],
        windows: list[tuple[int, int]],
    ) -> list[Rows]:
        """The masked positions to read, by settings."""
        groups: dict[Settings, list[tuple[SequenceState, ScheduledStep, tuple[int, int]]]] = {}
        for entry in zip(busy, scheduled_R, windows, strict=True):
            groups.setdefault(entry[0].settings, []).append(entry)
        return [self._rows_of(group) for group in groups.values()]

    def _rows_of(self, group: list[tuple[SequenceState, ScheduledStep, tuple[int, int]]]) -> Rows:
        """Soft-masking reads every mask in the window, plain decoding what it may commit."""
        ranges, counts_R = [], []
        for sequence, scheduled, (start, stop) in group:
            if not sequence.is_soft:
                start, stop = sequence.committable(scheduled)
            ranges.append(sequence.flat_L[start:stop])
            before = 0
            if start and not sequence.is_planned:
                before = sequence.masks_before(start, scheduled)
            counts_R.append(sequence.masks_before(stop, scheduled) - before)
        flat = torch.from_numpy(np.concatenate(ranges)).to(self.device)
        # The count is known: a search for it would wait for the device.
        place_N = torch.nonzero_static(self.masked_P[flat], size=sum(counts_R)).squeeze(1)
        sequences, scheduled_R, _ = zip(*group, strict=True)
        starts = [sequence.start for sequence in sequences]
        lengths = [sequence.reach for sequence in sequences]
        rows_N = flat[place_N]
        return Rows(
            sequences, scheduled_R, counts_R, rows_N, Ragged(counts_R, starts, lengths, rows_N)
        )

    def _read_hooked(self, rows: Rows, hidden_TD: Tensor, flat_T: Tensor) -> Predictions:
        """The predictions of rows, with the logits of the whole canvas shown to a hook."""
        assert self.hooks is not None
        logits_TV = self._reader.logits(hidden_TD)
        logits_PV = logits_TV.new_zeros(self.positions, logits_TV.shape[1])
        logits_PV[flat_T] = logits_TV  # padding predicts nothing: 0
        shape = self.hooks.shape
        if self.hooks.logits is not None:
            logits_BLV = logits_PV.view(*shape, -1)
            canvas_BL = self.canvas_P.clone().view(shape)
            step = rows.sequences[0].step
            logits_PV = self.hooks.logits(step, canvas_BL, logits_BLV).flatten(0, 1)
        self.logits_PV = logits_PV
        return self._reader.read_logits(rows, logits_PV[rows.rows_N])

    # What comes of it.

    def _commit(self, predictions: Predictions) -> None:
        """Writes a step's tokens onto the canvas."""
        chosen_N, tokens_N = choose_commits(
            predictions, self.positions, self.mask_id, self.memory, self.soft
        )
        if predictions.settings.automaton is not None:
            chosen_N, tokens_N = settle(predictions, chosen_N, tokens_N, self._reader)
        rows_N = predictions.rows_N
        self.committed_P[rows_N] = chosen_N
        self.candidate_P[rows_N] = tokens_N
        self.canvas_P[rows_N] = torch.where(chosen_N, tokens_N, self.canvas_P[rows_N])
        if self.logprobs is not None and any(s.top_logprobs for s in predictions.sequences):
            logits_N = predictions.logits_of(tokens_N)
            self.logprobs.put(rows_N, predictions.seen, chosen_N, logits_N)

    def _update_masks(self, groups: list[Predictions]) -> None:
        """What is masked now, and how much each sequence has left."""
        if self.hooks is not None and self.hooks.tokens is not None:
            shape, step = self.hooks.shape, groups[0].sequences[0].step
            assert self.logits_PV is not None
            logits_BLV = self.logits_PV.view(*shape, -1)
            canvas_BL = self.hooks.tokens(step, self.canvas_P.view(shape), logits_BLV)
            self.canvas_P = canvas_BL.flatten().clone()
        pairs = [
            pair
            for group in groups
            for pair in zip(group.sequences, group.scheduled_R, strict=True)
        ]
        for sequence, scheduled in pairs:
            if sequence.is_planned and sequence.schedule.left:
                sequence.schedule.left[scheduled.block] -= scheduled.commits
        self._recount([sequence for sequence, _ in pairs if not sequence.is_planned], groups)
        self.masked_P = (self.canvas_P == self.mask_id) & self.real_P
        self.candidate_P = torch.where(self.masked_P, self.candidate_P, self.canvas_P)

    def _recount(self, sequences: list[SequenceState], groups: list[Predictions]) -> None:
        """Counts off the canvas what is left, and ends texts that a stopping rule ends."""
        if not sequences:
            return
        canvas_P = self.canvas_P.cpu().numpy()
        for sequence in sequences:
            ids_L = canvas_P[sequence.start : sequence.start + sequence.length]
            sequence.masked_L = ids_L == self.mask_id
            given_up_L = given_up(sequence, ids_L, groups)
            if given_up_L is not None:
                fill = torch.from_numpy(sequence.flat_L[given_up_L]).to(self.device)
                self.canvas_P[fill] = sequence.rules.fill_id
                sequence.masked_L &= ~given_up_L
            if sequence.constraint is not None:
                self._write_fixed(sequence)
            sequence.schedule.recount(sequence.masked_L)

    def _ids(self, sequence: SequenceState) -> np.ndarray:
        """(L,) a sequence's tokens, on the host."""
        return self.canvas_P[sequence.start : sequence.start + sequence.length].cpu().numpy()

    def _write_fixed(self, sequence: SequenceState) -> None:
        """Writes what a sequence's constraint leaves no choice about, behind what was committed."""
        written = write_fixed(sequence, self._ids(sequence))
        if written:
            columns, tokens = torch.tensor(written, device=self.device).unbind(1)
            rows = sequence.start + columns
            self.canvas_P[rows] = self.candidate_P[rows] = tokens
            self.committed_P[rows] = True
            if self.logprobs is not None:
                self.logprobs.put_certain(rows, tokens)

    def _mix(self, predictions: Predictions) -> None:
        """From what was read at the masks that stay to the next step's soft tokens."""
        config = predictions.settings.soft_mask
        mixer = self._mixer(config)
        schedules = [sequence.schedule for sequence in predictions.sequences]
        left = [schedule.total_left for schedule in schedules]
        if config is None or mixer is None or not any(left):
            return
        stays_N = self.masked_P[predictions.rows_N]
        if all(sequence.is_planned for sequence in predictions.sequences):
            committed = sum(scheduled.commits for scheduled in predictions.scheduled_R)
            count = sum(predictions.counts_R) - committed
            stays_M = torch.nonzero_static(stays_N, size=count).squeeze(1)
        else:
            stays_M = stays_N.nonzero().squeeze(1)
        start = torch.tensor([schedule.masks for schedule in schedules], device=self.device)
        rate_R = rate(config.schedule, torch.tensor(left).to(start), start)
        rows_M = predictions.rows_N[stays_M]
        seen = feedback_at(mixer, predictions, stays_M)
        judged = judge_feedback(mixer, seen, predictions, stays_M, self.memory, self.soft)
        rate_M = rate_R[predictions.ragged.sequence_N[stays_M]]
        with self.model.input_table() as table_VD:
            mixture = mixer.mix(self.canvas_P[rows_M], seen, table_VD, rate_M, judged)
        self.soft.put(rows_M, mixture)

    def _mixer(self, config: SoftMaskConfig | None) -> SoftMask | None:
        if config is None:
            return None
        if config not in self._mixers:
            self._mixers[config] = make_mixer(config, self.device)
        return self._mixers[config]
