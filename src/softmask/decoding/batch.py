"""Sequences that are denoised together, each at its own step of its own schedule.

A Batch is a flat canvas of P positions on which sequences lie side by side; they may come and go
between steps. A step runs one packed forward over the windows of the sequences that need one. Then,
for all sequences of like settings at once, it reads the logits of masked positions, commits some,
and keeps what it read at the others as the next step's input.
Shape suffixes: P positions, T computed positions, N masked positions that are read, M those of
them that stay masked, R sequences, L columns of one sequence, V vocabulary, K superposed tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig
from ..models import DreamModel
from ..models.packing import Layout
from ..soft_mask import NEGLIGIBLE, SoftTokens, make_mixer, rate
from .canvas_constraint import CanvasConstraint
from .commit import choose_commits
from .constrained import look_again, renew, settle, write_fixed
from .cuda_graphs import Graphs, suits_graphs
from .grid import grid_of
from .growing import Growth, OneByOne, Room
from .guidance import Twins, guided
from .hooks import Hooks
from .kv_cache import KeyValueStore
from .logprobs import LogprobStore
from .moving import grow
from .predictions import LogitReader, Predictions, Rows, fail_where_nan
from .rule_state import RuleState
from .rule_views import feedback_at, given_up, judge_feedback
from .schedule import ScheduledStep, StepSchedule
from .sequence import Rules, SequenceState, Settings
from .soft_state import SoftState
from .unmask import Choice
from .windows import Layouts, rows_by_settings

if TYPE_CHECKING:
    from ..constraints.token_automaton import TokenAutomaton

# On an accelerator a look at the logits' health is a synchronisation, so it is taken rarely.
NAN_CHECK_EVERY = 16
# Settings of the feedback that a batch keeps a module for: a server's batch lives long.
MIXERS = 64
NO_HOOKS = (
    "hooks see the logits of the whole canvas, and a block-causal model computes one block at a "
    "time: call generate() or denoise() without them"
)
# What a step changes of a batch, beside its sequences and their soft state.
CHANGING = ("canvas_P", "real_P", "masked_P", "committed_P", "candidate_P")


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
        cached: keep keys and values, which sequences with a cache need; those of a block-causal
            model are always kept.
        twins: further positions, for second branches alone: nothing is drawn for them.
        top_logprobs: how many leading tokens of each position `logprobs` keeps; 0: none.
        graphs: record forwards as CUDA graphs; None: where the model suits them, and is not
            block-causal.

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
        twins: int = 0,
    ) -> None:
        self.model, self.hooks, self.positions = model, hooks, positions
        if graphs and not suits_graphs(model):
            raise ValueError("CUDA graphs need an unquantised model on one CUDA device")
        is_causal = model.config.block_size is not None
        # What a block of these sees is of another length for each: few forwards have its shape.
        use_graphs = suits_graphs(model) and not is_causal if graphs is None else graphs
        self._forward = Graphs(model) if use_graphs else model.hidden
        self.device = model.device
        self.mask_id = model.mask_id
        self.sequences: list[SequenceState] = []
        every = positions + twins
        self.canvas_P = torch.zeros(every, dtype=torch.long, device=self.device)
        self.real_P = torch.zeros(every, dtype=torch.bool, device=self.device)
        self.masked_P = torch.zeros_like(self.real_P)
        self.committed_P = torch.zeros_like(self.real_P)
        self.candidate_P = torch.zeros_like(self.canvas_P)
        self.place_P = torch.zeros_like(self.canvas_P)
        self.previous_P = torch.arange(every, device=self.device)
        self.twins: Twins | None = None
        cached = cached or is_causal
        self.store = KeyValueStore(every) if cached else None
        self.soft = SoftState(every, self.device)
        self.memory = RuleState(every, self.device)
        self.logprobs = LogprobStore(every, top_logprobs, self.device) if top_logprobs else None
        self.logits_PV: Tensor | None = None
        self.forwards = 0
        self._reader = LogitReader(model, positions)
        self._layouts = Layouts(self.store)
        self._mixer = functools.lru_cache(MIXERS)(partial(make_mixer, device=self.device))

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
        twin: int | None = None,
        room: Room | None = None,
    ) -> SequenceState:
        """Lays a sequence onto the free positions from `start` on.

        Args:
            room: its one hole grows and shrinks, within so many free positions from `start` on.
            twin: a guided one needs as many free positions from here on.
            top_logprobs: leading tokens that `logprobs` keeps of it, at most the batch's.
            constraint: the form of the text between its first and its last mask; or of
            holes: those that begin at these columns, each by itself.

        Raises:
            ValueError: fewer steps than blocks, no text of the form fits into the masks, or the
                settings do not suit the model's attention (`grid_of`), or its device.
        """
        if config.noise == "float64" and self.device.type == "mps":
            raise ValueError("mps has no float64: leave out noise, or use --device cpu")
        masked_L = ids_L.eq(self.mask_id).cpu().numpy()
        grid = grid_of(self.model.config, masked_L, config)
        rules, growth = rules or Rules(), None
        hooked = self.hooks is not None
        if grid is not None:
            if hooked:
                raise ValueError(NO_HOOKS)
            # A block that is full stays so: later ones rest on its keys and values.
            kept = {*rules.suppressed, self.mask_id}
            rules = dataclasses.replace(rules, suppressed=tuple(sorted(kept)))
        if room is None:
            schedule = StepSchedule(masked_L, config, grid)
        else:
            if hooked:
                raise ValueError("hooks need a hole that keeps its length: leave them out")
            formed = constraint is not None
            growth = Growth.of(masked_L, room, config, self.model.config, formed=formed)
            schedule = OneByOne(masked_L, config)
            suppressed = growth.suppressed(len(ids_L), rules.suppressed)
            rules = dataclasses.replace(rules, suppressed=suppressed)
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
            grid=grid,
            twin=twin if config.guidance else None,
            growth=growth,
        )
        if constraint is not None:
            ids = ids_L.cpu().numpy()
            sequence.constraint = CanvasConstraint.of(constraint, ids, self.mask_id, holes)
            sequence.settings = Settings.of(sequence)
        own = slice(start, start + sequence.length)
        every = slice(start, start + (sequence.length if room is None else room.columns))
        self.canvas_P[own] = ids_L
        self.candidate_P[own] = ids_L
        self.real_P[own] = True
        self.masked_P[own] = ids_L == self.mask_id
        self.previous_P[every] = torch.arange(start, every.stop, device=self.device) - 1
        self.place_P[every] = self.previous_P[every] + (1 - start)
        self.previous_P[start] = start
        self.committed_P[own] = False
        if sequence.twin is not None:
            self.twins = self.twins or Twins(len(self.canvas_P), self.device)
            apart = self.twins.add(own, sequence.twin, ~self.masked_P[own])
            self.place_P[apart] = self.place_P[own]
            self.previous_P[apart] = self.previous_P[own] + (apart.start - start)
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
        if self.twins is not None:
            self.twins.drop(sequence)

    @torch.no_grad()
    def step(self, sequences: Sequence[SequenceState] | None = None) -> None:
        """One step of every sequence, or of these, that is not done.

        A sequence whose logits are NaN says so in `failure`, and is done.
        """
        self.committed_P = torch.zeros_like(self.masked_P)
        sequences = self.sequences if sequences is None else sequences
        live = [s for s in sequences if not s.is_done or self.hooks is not None]
        renew(live, self._ids)
        scheduled = [(s, s.schedule.at(s.step)) for s in live]
        busy = [(s, at) for s, at in scheduled if self.hooks or s.needs_forward(at)]
        if busy:
            groups = self._predict(*zip(*busy, strict=True))
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
            for sequence, _ in busy:
                if sequence.growth is not None and sequence.failure is None:
                    grow(self, sequence)
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
        self, busy: Sequence[SequenceState], scheduled_R: Sequence[ScheduledStep]
    ) -> list[Predictions]:
        """One forward, and a token for each of the masked positions that are read."""
        shift, before = self.model.config.logit_shift, self.forwards
        pairs = zip(busy, scheduled_R, strict=True)
        windows = [sequence.enter(scheduled, shift=shift) for sequence, scheduled in pairs]
        groups = rows_by_settings(busy, scheduled_R, windows, self.masked_P)
        rows = [group.rows_N for group in groups]
        # First, so that the store keeps what the other one computes.
        scores = self._score_apart(groups, busy, windows)
        layout = self._layouts.of(busy, windows, self.place_P, self.previous_P)
        wanted = [layout.flat_T] if self.hooks is not None else rows
        hidden_TD = self._run(busy, self._tokens(layout.flat_T), layout)
        hidden_ND = hidden_TD[layout.sources(torch.cat(wanted), shift=shift)]
        for sequence in busy:
            sequence.note_forward()
        if self.hooks is not None:
            found = [self._read_hooked(group, hidden_ND, layout.flat_T) for group in groups]
        else:
            parts = zip(groups, hidden_ND.split([len(r) for r in rows]), strict=True)
            both = [(g, guided(g, h_ND, hidden_TD, layout, shift=shift)) for g, h_ND in parts]
            found = [
                self._reader.read(g, h_ND, scores.get(g.settings), blends=self._blends(g))
                for g, h_ND in both
            ]
        if self.device.type == "cpu" or self.forwards % NAN_CHECK_EVERY < self.forwards - before:
            for predictions in found:
                fail_where_nan(predictions)
        return found

    def _blends(self, rows: Rows) -> bool:
        """Whether most of these rows will need what feedback mixes in of all tokens: on a CPU if
        most were fed back something before, elsewhere always. What a form leaves out changes with
        the commits."""
        soft_mask, formed = rows.settings.soft_mask, rows.settings.automaton is not None
        if soft_mask is None or formed or not soft_mask.feedback.rule.streamed:
            return False
        if self.device.type != "cpu":
            return True
        return bool((self.soft.lambda_P[rows.rows_N] > NEGLIGIBLE).float().mean() > 0.5)

    def _run(
        self, busy: Sequence[SequenceState], tokens: Tensor | SoftTokens, layout: Layout
    ) -> Tensor:
        """(T, D) of a forward in which these sequences take part."""
        self.forwards += 1
        for sequence in busy:
            sequence.forwards += 1 if sequence.twin is None else 2
        return self._forward(tokens, layout)

    def _score_apart(
        self,
        groups: Sequence[Rows],
        busy: Sequence[SequenceState],
        windows: Sequence[tuple[int, int]],
    ) -> dict[Settings, Choice]:
        """What a forward without feedback says where confidence is read off one, by settings."""
        own = [(s, window) for s, window in zip(busy, windows, strict=True) if s.is_scored_apart]
        if not own:
            return {}
        apart, own_windows = zip(*own, strict=True)
        layout = self._layouts.of(apart, own_windows, self.place_P, self.previous_P, apart=True)
        hidden_TD = self._run(apart, self.canvas_P[layout.flat_T][None], layout)
        shift, found = self.model.config.logit_shift, {}
        for group in groups:
            if group.sequences[0].is_scored_apart:
                hidden_ND = hidden_TD[layout.sources(group.rows_N, shift=shift)]
                found[group.settings] = self._reader.scores(group, hidden_ND)
        return found

    def _tokens(self, flat_T: Tensor) -> Tensor | SoftTokens:
        """(1, T) what the forward reads: ids, or, once anything was mixed, soft tokens."""
        hidden_T = None
        if self.twins is not None:
            flat_T, hidden_T = self.twins.read(flat_T)
        ids_1T, masked_T = self.canvas_P[flat_T][None], self.masked_P[flat_T]
        if hidden_T is not None:
            ids_1T, masked_T = ids_1T.masked_fill(hidden_T, self.mask_id), masked_T & ~hidden_T
        return self.soft.tokens(ids_1T, flat_T, masked_T) if self.soft.is_used else ids_1T

    def _read_hooked(self, rows: Rows, hidden_TD: Tensor, flat_T: Tensor) -> Predictions:
        """The predictions of rows, with the logits of the whole canvas shown to a hook."""
        assert self.hooks is not None
        logits_TV = self._reader.logits(hidden_TD)
        logits_PV = logits_TV.new_zeros(self.positions, logits_TV.shape[1])
        logits_PV[flat_T] = logits_TV  # padding predicts nothing: 0
        self.logits_PV = logits_PV = self.hooks.read(
            rows.sequences[0].step, self.canvas_P, logits_PV
        )
        return self._reader.read_logits(rows, logits_PV[rows.rows_N])

    # What comes of it.

    def _commit(self, predictions: Predictions) -> None:
        """Writes a step's tokens onto the canvas."""
        chosen_N, tokens_N = choose_commits(
            predictions, self.positions, self.mask_id, self.memory, self.soft
        )
        logits_N: Tensor | None = None
        if predictions.settings.automaton is not None:
            chosen_N, tokens_N, logits_N = settle(predictions, chosen_N, tokens_N, self._reader)
        rows_N = predictions.rows_N
        self.committed_P[rows_N] = chosen_N
        self.candidate_P[rows_N] = tokens_N
        self.canvas_P[rows_N] = torch.where(chosen_N, tokens_N, self.canvas_P[rows_N])
        logprobs = self._told(predictions)
        if logprobs is not None:
            if logits_N is None:
                logits_N = predictions.logits_of(tokens_N)
            logprobs.put(rows_N, predictions.seen, chosen_N, logits_N)

    def _told(self, predictions: Predictions) -> LogprobStore | None:
        """Where what was read is taken down, if somebody asks for it."""
        asked = any(sequence.top_logprobs for sequence in predictions.sequences)
        return self.logprobs if asked else None

    def _update_masks(self, groups: list[Predictions]) -> None:
        """What is masked now, and how much each sequence has left."""
        if self.hooks is not None:
            assert self.logits_PV is not None
            step = groups[0].sequences[0].step
            self.canvas_P = self.hooks.write(step, self.canvas_P, self.logits_PV)
        zips = [zip(group.sequences, group.scheduled_R, strict=True) for group in groups]
        pairs = list(itertools.chain(*zips))
        for sequence, scheduled in pairs:
            if sequence.is_planned:
                sequence.schedule.take(scheduled.block, scheduled.commits)
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
        if not len(stays_M):  # a window's block is full
            return
        start_R = torch.tensor([schedule.masks for schedule in schedules], device=self.device)
        rate_R = rate(config.schedule, torch.tensor(left, device=self.device), start_R)
        rows_M = predictions.rows_N[stays_M]
        seen = feedback_at(mixer, predictions, stays_M, self._reader)
        judged = judge_feedback(mixer, seen, predictions, stays_M, self.memory, self.soft)
        rate_M = rate_R[predictions.ragged.sequence_N[stays_M]]
        with self.model.input_table() as table_VD:
            mixture = mixer.mix(self.canvas_P[rows_M], seen, table_VD, rate_M, judged)
        self.soft.put(rows_M, mixture)
        logprobs = self._told(predictions)
        if logprobs is not None and mixer.rule.rule.streamed:
            logprobs.put_shares(rows_M, *self._reader.shares(predictions, stays_M))
