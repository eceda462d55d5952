"""Texts that are denoised together, each at its own place in its own plan.

A Batch is a flat canvas of P positions on which texts lie side by side; they may come and go
between steps. A step runs one packed forward over the windows of the texts that need one, and then,
for all texts of like settings at once: reads the logits of masked positions, commits some, and
keeps what it saw at the others as the next step's input.
Shape suffixes: P positions, T computed positions, N masked positions that are read, M those of
them that stay masked, R texts, L columns of one text, V vocabulary, D width, K superposed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig
from ..logits import LogitStatistics, statistics
from ..models import DreamModel
from ..models.lm_head import chunked_logits, read_head
from ..models.packing import Layout, Span
from ..soft_mask import Feedback, SoftMask, SoftTokens, feedback_of, make_mixer, rate
from .cuda_graphs import Graphs, suits_graphs
from .kv_cache import KeyValueStore
from .logprobs import Sights
from .schedule import Move, Plan
from .sequence import Rules, Settings, Text
from .soft_state import SoftState
from .unmask import (
    Choice,
    Ragged,
    RowNoise,
    choose_by_rule,
    choose_likeliest,
    choose_positions,
    choose_tokens,
    is_greedy,
    leading,
)

LogitsHook = Callable[[int, Tensor, Tensor], Tensor]
TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]

# On an accelerator a look at the logits' health is a synchronisation, so it is taken rarely.
NAN_CHECK_EVERY = 16
# What a step changes of a batch, beside its texts and their soft state.
CHANGING = ("canvas_P", "masked_P", "committed_P", "candidate_P")


@dataclass(frozen=True)
class Hooks:
    """Dream's hooks, which see the whole canvas, of this shape, and all logits."""

    shape: tuple[int, int]
    logits: LogitsHook | None = None
    tokens: TokensHook | None = None


class Saved(NamedTuple):
    """A batch before a step."""

    tensors: dict[str, Tensor]
    soft: dict[str, Any]
    texts: dict[int, dict[str, Any]]
    forwards: int


class View(NamedTuple):
    """What one forward says of texts of like settings."""

    texts: list[Text]
    moves: list[Move]
    counts_R: list[int]  # how many rows of each were read
    rows_N: Tensor  # flat positions
    ragged: Ragged
    seen: LogitStatistics | None = None
    logits_NV: Tensor | None = None  # where statistics alone do not do
    choice: Choice | None = None


class Batch:
    """A flat canvas of `positions`, and the texts on it.

    Args:
        cached: keep keys and values, which texts with a cache need.
        watch: how many leading tokens of what is read are kept for those who watch.
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
        watch: int = 0,
        hooks: Hooks | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.model, self.hooks, self.positions = model, hooks, positions
        if graphs and not suits_graphs(model):
            raise ValueError("CUDA graphs need an unquantised model on one CUDA device")
        use_graphs = suits_graphs(model) if graphs is None else graphs
        self._forward = Graphs(model) if use_graphs else model.hidden
        self.device = model.device
        self.mask_id = model.config.mask_token_id
        self.texts: list[Text] = []
        self.canvas_P = torch.zeros(positions, dtype=torch.long, device=self.device)
        self.real_P = torch.zeros(positions, dtype=torch.bool, device=self.device)
        self.masked_P = torch.zeros_like(self.real_P)
        self.committed_P = torch.zeros_like(self.real_P)
        self.candidate_P = torch.zeros_like(self.canvas_P)
        self.place_P = torch.zeros_like(self.canvas_P)
        self.previous_P = torch.arange(positions, device=self.device)
        self.store = KeyValueStore(positions) if cached else None
        self.soft = SoftState(positions, self.device)
        self.sights = Sights(positions, watch, self.device) if watch else None
        self.logits_PV: Tensor | None = None
        self.forwards = 0
        self._layout: tuple[object, Layout] | None = None
        self._mixers: dict[SoftMaskConfig, SoftMask | None] = {}
        self._biases: dict[tuple[Rules, float], Tensor | None] = {}

    def add(
        self,
        start: int,
        ids_L: Tensor,
        config: SamplingConfig,
        *,
        soft_mask: SoftMaskConfig | None = None,
        rules: Rules | None = None,
        generator: torch.Generator | None = None,
        watch: int = 0,
    ) -> Text:
        """Lays a text onto the free positions from `start` on.

        `watch`: how many leading tokens of it `sights` shall know, at most the batch's.

        Raises:
            ValueError: fewer steps than blocks.
        """
        masked_L = (ids_L == self.mask_id).cpu().numpy()
        plan = Plan(masked_L, config)
        rules = rules or Rules()
        hooked = self.hooks is not None
        text = Text(
            start=start,
            length=len(ids_L),
            config=config,
            soft_mask=soft_mask,
            rules=rules,
            generator=generator,
            watch=watch,
            may_write_masks=hooked or self.mask_id not in rules.suppressed,
            plan=plan,
            generated_L=masked_L,
        )
        own = slice(start, start + text.length)
        self.canvas_P[own] = ids_L
        self.candidate_P[own] = ids_L
        self.real_P[own] = True
        self.masked_P[own] = ids_L == self.mask_id
        self.place_P[own] = torch.arange(text.length, device=self.device)
        self.previous_P[own] = torch.arange(start, start + text.length, device=self.device) - 1
        self.previous_P[start] = start
        self.committed_P[own] = False
        self.soft.forget(own)
        if self.sights is not None:
            self.sights.forget(own)
        self.texts.append(text)
        self.texts.sort(key=lambda t: t.start)
        return text

    def drop(self, text: Text) -> None:
        """Takes a text off the canvas; its positions are free."""
        self.texts.remove(text)
        own = slice(text.start, text.start + text.length)
        self.real_P[own] = False
        self.masked_P[own] = False

    @torch.no_grad()
    def step(self, texts: Sequence[Text] | None = None) -> None:
        """One step of every text, or of these, that is not done.

        A text whose logits are NaN says so in `failure`, and is done.
        """
        self.committed_P = torch.zeros_like(self.masked_P)
        texts = self.texts if texts is None else texts
        live = [t for t in texts if not t.is_done or self.hooks is not None]
        moves = {id(t): t.plan.at(t.step) for t in live}
        busy = [t for t in live if self.hooks or t.needs_forward(moves[id(t)])]
        if busy:
            views = self._predict(busy, [moves[id(t)] for t in busy])
            for view in views:
                self._commit(view)
            self._settle(views)
            for view in views:
                self._mix(view)
        for text in live:
            text.step += 1

    def save(self) -> Saved:
        """All that a step changes, but for keys and values, which a repeated step writes anew."""
        tensors = {name: getattr(self, name).clone() for name in CHANGING}
        texts = {id(text): text.save() for text in self.texts}
        return Saved(tensors, self.soft.save(), texts, self.forwards)

    def restore(self, saved: Saved) -> None:
        """Takes a step back, with the same texts on the canvas as when it was saved."""
        for name, tensor in saved.tensors.items():
            setattr(self, name, tensor.clone())
        self.soft.restore(saved.soft)
        self.forwards = saved.forwards
        for text in self.texts:
            text.restore(saved.texts[id(text)])

    # What is computed.

    def _predict(self, busy: list[Text], moves: list[Move]) -> list[View]:
        """One forward, and a token for each of the masked positions that are read."""
        shift = self.model.config.logit_shift
        for text, move in zip(busy, moves, strict=True):
            if move.block != text.block:
                text.block, text.age = move.block, 0
        windows = [t.window(m, shift=shift) for t, m in zip(busy, moves, strict=True)]
        layout = self._layout_of(busy, windows)
        groups = self._groups(busy, moves, windows)
        rows = [group.rows_N for group in groups]
        wanted = [layout.flat_T] if self.hooks is not None else rows
        hidden_TD = self._forward(self._tokens(layout), layout)
        hidden_ND = hidden_TD[layout.sources(torch.cat(wanted), shift=shift)]
        self.forwards += 1
        for text in busy:
            text.forwards += 1
            text.age += 1
        if self.hooks is not None:
            return [self._read_hooked(group, hidden_ND, layout.flat_T) for group in groups]
        parts = hidden_ND.split([len(r) for r in rows])
        return [self._read(group, part) for group, part in zip(groups, parts, strict=True)]

    def _layout_of(self, busy: list[Text], windows: list[tuple[int, int]]) -> Layout:
        key = tuple((t.start, t.length, *w) for t, w in zip(busy, windows, strict=True))
        if self._layout is None or self._layout[0] != key:
            lines = [
                (Span(b - a, t.start, t.length), t.flat_L[a:b])
                for t, (a, b) in zip(busy, windows, strict=True)
            ]
            # Lines of like shape side by side: attention takes them in one call.
            lines.sort(key=lambda line: (line[0].queries, line[0].length))
            spans, columns = zip(*lines, strict=True)
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
        self, busy: list[Text], moves: list[Move], windows: list[tuple[int, int]]
    ) -> list[View]:
        """The masked positions to read, by settings."""
        groups: dict[Settings, list[tuple[Text, Move, tuple[int, int]]]] = {}
        for entry in zip(busy, moves, windows, strict=True):
            groups.setdefault(entry[0].settings, []).append(entry)
        return [self._rows_of(group) for group in groups.values()]

    def _rows_of(self, group: list[tuple[Text, Move, tuple[int, int]]]) -> View:
        """Soft-masking reads every mask in the window, plain decoding what it may commit."""
        ranges, counts_R = [], []
        for text, move, (start, stop) in group:
            if not text.is_soft:
                start, stop = text.opened(move)
            ranges.append(text.flat_L[start:stop])
            before = 0 if text.is_planned or start == 0 else text.masks_before(start, move)
            counts_R.append(text.masks_before(stop, move) - before)
        flat = torch.from_numpy(np.concatenate(ranges)).to(self.device)
        # The count is known: a search for it would wait for the device.
        place_N = torch.nonzero_static(self.masked_P[flat], size=sum(counts_R)).squeeze(1)
        texts, moves, _ = zip(*group, strict=True)
        starts, lengths = [t.start for t in texts], [t.length for t in texts]
        rows_N = flat[place_N]
        ragged = Ragged(counts_R, starts, lengths, rows_N)
        return View(list(texts), list(moves), counts_R, rows_N, ragged)

    def _read(self, view: View, hidden_ND: Tensor) -> View:
        """What the head says at the rows of a view."""
        head, bias_V, settings = self.model.lm_head, self._bias(view), view.texts[0].settings
        soft_mask, size = settings.soft_mask, self.model.config.vocab_size
        by_temperature = soft_mask is not None and soft_mask.mode == "temperature"
        k = self._leading(view)
        if is_greedy(settings.config) and not by_temperature:
            return self._choose(view, read_head(head, hidden_ND, size, k, bias_V), None)
        logits_NV = torch.cat(list(chunked_logits(head, hidden_ND, size, bias_V)))
        return self._choose(view, statistics(logits_NV, k), logits_NV)

    def _read_hooked(self, view: View, hidden_TD: Tensor, flat_T: Tensor) -> View:
        """As `_read`, with the logits of the whole canvas shown to a hook."""
        head, size = self.model.lm_head, self.model.config.vocab_size
        logits_TV = torch.cat(list(chunked_logits(head, hidden_TD, size)))
        logits_PV = logits_TV.new_zeros(self.positions, logits_TV.shape[1])
        logits_PV[flat_T] = logits_TV  # padding predicts nothing: 0
        shape = self.hooks.shape
        if self.hooks.logits is not None:
            logits_BLV = logits_PV.view(*shape, -1)
            canvas_BL = self.canvas_P.clone().view(shape)
            logits_PV = self.hooks.logits(view.texts[0].step, canvas_BL, logits_BLV).flatten(0, 1)
        self.logits_PV = logits_PV
        logits_NV, bias_V = logits_PV[view.rows_N], self._bias(view)
        if bias_V is not None:
            logits_NV = logits_NV + bias_V.to(logits_NV.dtype)
        return self._choose(view, statistics(logits_NV, self._leading(view)), logits_NV)

    def _leading(self, view: View) -> int:
        """How many leading tokens are to be read."""
        settings, watched = view.texts[0].settings, max(text.watch for text in view.texts)
        mixed = 1 if settings.soft_mask is None else settings.soft_mask.k
        return max(leading(settings.config), mixed, watched)

    def _choose(self, view: View, seen: LogitStatistics, logits_NV: Tensor | None) -> View:
        self._check_health(view, seen)
        config, choice = view.texts[0].settings.config, None
        if is_greedy(config):
            choice = choose_likeliest(seen, config)
        elif config.alg != "origin":  # which draws for the chosen positions alone
            choice = choose_tokens(logits_NV, config, self._noise(view), view.counts_R)
        return view._replace(seen=seen, logits_NV=logits_NV, choice=choice)

    def _check_health(self, view: View, seen: LogitStatistics) -> None:
        """Texts whose logits are NaN fail; the sum of exponentials shows any."""
        regular = self.forwards % NAN_CHECK_EVERY == 0
        if not (regular or self.device.type == "cpu"):
            return
        bad_N = torch.isnan(seen.total_N)
        if bool(bad_N.any()):
            for index in view.ragged.text_N[bad_N].unique().tolist():
                text = view.texts[index]
                text.failure = (
                    f"the model's logits are NaN at step {text.step}: its weights are damaged, or "
                    "its dtype overflows (try --dtype float32 or bfloat16)"
                )

    def _noise(self, view: View) -> RowNoise:
        seeded = view.texts[0].settings.seeded
        return RowNoise([t.generator for t in view.texts] if seeded else None, self.device)

    def _bias(self, view: View) -> Tensor | None:
        """(V,) what is added to the logits: the rules."""
        settings = view.texts[0].settings
        key = settings.rules, settings.config.end_penalty
        if key not in self._biases:
            (rules, penalty), bias_V = key, None
            if rules.suppressed or (rules.end_ids and penalty):
                bias_V = torch.zeros(self.model.config.vocab_size, device=self.device)
                bias_V[list(rules.end_ids)] = -penalty
                bias_V[list(rules.suppressed)] = torch.finfo(self.model.dtype).min
            self._biases[key] = bias_V
        return self._biases[key]

    # What comes of it.

    def _commit(self, view: View) -> None:
        """Writes a step's tokens onto the canvas."""
        by_coin = view.texts[0].config.alg == "origin"
        chosen_N, tokens_N = self._by_coin(view) if by_coin else self._by_confidence(view)
        rows_N = view.rows_N
        self.committed_P[rows_N] = chosen_N
        self.candidate_P[rows_N] = tokens_N
        self.canvas_P[rows_N] = torch.where(chosen_N, tokens_N, self.canvas_P[rows_N])
        if any(text.watch for text in view.texts):
            # Where there are no logits the token is the likeliest.
            logits_N = view.seen.logits_NK[:, 0]
            if view.logits_NV is not None:
                logits_N = view.logits_NV.gather(1, tokens_N[:, None]).squeeze(1)
            self.sights.put(rows_N, view.seen, chosen_N, logits_N)

    def _open(self, view: View) -> Tensor | None:
        """(N,) bool: rows that may be committed now; None where all may."""
        if all(text.config.block_length is None for text in view.texts):
            return None
        bounds = [t.opened(m) for t, m in zip(view.texts, view.moves, strict=True)]
        bounds = [(t.start + a, t.start + b) for t, (a, b) in zip(view.texts, bounds, strict=True)]
        bounds_R2 = torch.tensor(bounds, device=self.device)
        low_N, high_N = bounds_R2[view.ragged.text_N].unbind(1)
        return (view.rows_N >= low_N) & (view.rows_N < high_N)

    def _by_confidence(self, view: View) -> tuple[Tensor, Tensor]:
        config, choice, noise_N = view.texts[0].config, view.choice, None
        open_N, confidence_N = self._open(view), choice.confidence_N
        if open_N is not None:
            confidence_N = confidence_N.masked_fill(~open_N, -torch.inf)
        counts_R = [move.count for move in view.moves]
        if config.alg_temp and any(counts_R):
            noise = self._noise(view)
            noise_N = noise.exponential_at(self.positions, view.rows_N, view.counts_R)
        chosen_N = choose_positions(confidence_N, counts_R, view.ragged, config.alg_temp, noise_N)
        if config.adaptive:
            if open_N is None:
                open_N = torch.ones_like(chosen_N)
            thresholds = [text.plan.threshold for text in view.texts]
            chosen_N |= choose_by_rule(choice, open_N, config, thresholds, view.ragged)
        return chosen_N, choice.tokens_N

    def _by_coin(self, view: View) -> tuple[Tensor, Tensor]:
        """Each mask commits by a coin of its own, 1 - s / t; tokens are drawn for those alone."""
        noise, text_N = self._noise(view), view.ragged.text_N
        share_R = torch.tensor([move.share for move in view.moves], device=self.device)
        chosen_N, open_N = noise.uniform(view.counts_R) < share_R[text_N], self._open(view)
        if open_N is not None:
            chosen_N &= open_N
        tokens_N = torch.full_like(view.rows_N, self.mask_id)
        if view.choice is not None:
            return chosen_N, torch.where(chosen_N, view.choice.tokens_N, tokens_N)
        counts_R = text_N[chosen_N].bincount(minlength=len(view.texts)).tolist()
        config = view.texts[0].config
        tokens_N[chosen_N] = choose_tokens(view.logits_NV[chosen_N], config, noise, counts_R)[0]
        return chosen_N, tokens_N

    def _settle(self, views: list[View]) -> None:
        """What is masked now, and how much each text has left."""
        if self.hooks is not None and self.hooks.tokens is not None:
            shape, step = self.hooks.shape, views[0].texts[0].step
            logits_BLV = self.logits_PV.view(*shape, -1)
            canvas_BL = self.hooks.tokens(step, self.canvas_P.view(shape), logits_BLV)
            self.canvas_P = canvas_BL.flatten().clone()
        pairs = [pair for view in views for pair in zip(view.texts, view.moves, strict=True)]
        for text, move in pairs:
            if text.is_planned and text.plan.left:
                text.plan.left[move.block] -= move.count
        self._look([text for text, _ in pairs if not text.is_planned])
        self.masked_P = (self.canvas_P == self.mask_id) & self.real_P
        self.candidate_P = torch.where(self.masked_P, self.candidate_P, self.canvas_P)

    def _look(self, texts: list[Text]) -> None:
        """Counts off the canvas what is left, and ends texts behind an end token."""
        if not texts:
            return
        canvas_P = self.canvas_P.cpu().numpy()
        for text in texts:
            ids_L = canvas_P[text.start : text.start + text.length]
            text.masked_L = ids_L == self.mask_id
            ended = text.generated_L & np.isin(ids_L, text.rules.end_ids)
            if text.rules.stop and ended.any():
                behind_L = ended.cumsum() > 0
                # Only once everything before the end is decided.
                if not (text.masked_L & ~behind_L).any():
                    fill = torch.from_numpy(text.flat_L[text.masked_L]).to(self.device)
                    self.canvas_P[fill] = text.rules.fill_id
                    text.masked_L = np.zeros_like(text.masked_L)
            text.plan.recount(text.masked_L)

    def _mix(self, view: View) -> None:
        """From what was read at the masks that stay to the next step's soft tokens."""
        mixer, left = self._mixer(view), [text.plan.total_left for text in view.texts]
        if mixer is None or not any(left):
            return
        stays_N = self.masked_P[view.rows_N]
        if all(text.is_planned for text in view.texts):
            count = sum(view.counts_R) - sum(move.count for move in view.moves)
            stays_M = torch.nonzero_static(stays_N, size=count).squeeze(1)
        else:
            stays_M = stays_N.nonzero().squeeze(1)
        start = torch.tensor([text.plan.masks for text in view.texts], device=self.device)
        rate_R = rate(view.texts[0].soft_mask.schedule, torch.tensor(left).to(start), start)
        rows_M = view.rows_N[stays_M]
        if mixer.mode == "topk":
            seen = feedback_of(LogitStatistics(*(x[stays_M] for x in view.seen)), rows_M, mixer.k)
        else:
            seen = Feedback(rows_M, logits_NV=view.logits_NV[stays_M])
        table_VD = self.model.model.embed_tokens.weight
        rate_M = rate_R[view.ragged.text_N[stays_M]]
        mixed = mixer.mix(self.canvas_P[rows_M], seen, table_VD, rate_M)
        self.soft.put(rows_M, mixed)

    def _mixer(self, view: View) -> SoftMask | None:
        config = view.texts[0].settings.soft_mask
        if config is not None and config not in self._mixers:
            self._mixers[config] = make_mixer(config, self.device)
        return self._mixers.get(config)
