"""denoise(): THE loop. Everything that generates drains it: calls, streams, the live view, hooks.

A canvas holds tokens and masks; generation is a canvas whose tail is masked, infilling one with
masks anywhere. Each step runs one forward, commits some positions, and, with soft-masking,
remembers what it saw at the others as the next step's input.
Shape suffixes: B batch, L length, N masked rows (flat indices into B * L), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .config import SamplingConfig, SoftMaskConfig
from .modeling import DreamModel
from .modeling.modeling_dream import positions_from_mask
from .soft_mask import SoftMask, SoftTokens, check_k, feedback, rate
from .unmask import RowNoise, choose_positions, choose_tokens, transfer_count, transfer_share

LogitsHook = Callable[[int, Tensor, Tensor], Tensor]
TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]

# On an accelerator a look at the logits' health is a synchronisation, so it is taken rarely.
NAN_CHECK_EVERY = 16


@dataclass(frozen=True)
class DenoiseStep:
    """The canvas after one step.

    `lambda_BL` and `candidate_BL` (0 and the canvas' token elsewhere) describe the positions
    that stay masked: the weight of the feedback, and the token that leads there.
    """

    index: int
    steps: int
    canvas_BL: Tensor
    committed_BL: Tensor
    left_B: tuple[int, ...]
    forwards: int
    logits_BLV: Tensor | None
    lambda_BL: Tensor | None
    candidate_BL: Tensor


@dataclass(frozen=True)
class Rules:
    """What text-level generation adds to the published algorithm; all off by default.

    `suppressed` ids are never predicted nor mixed in; `end_ids` get the end penalty, and, with
    `stop`, end their row once everything before them is decided: what is masked behind becomes
    `fill_id`.
    """

    suppressed: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    stop: bool = False
    fill_id: int = 0


class Place(NamedTuple):
    """Where a row stands: the block it fills, and the step of how many within that block."""

    block: int
    step: int
    steps: int


class _Schedule:
    """Which positions a step may commit, and how many: per row, on the host.

    Counts are known ahead wherever each step commits just what it plans; then no step waits for
    the device. `recount` reads them off the canvas where that does not hold.
    """

    def __init__(self, masked_BL: Tensor, config: SamplingConfig) -> None:
        self.config = config
        size = config.block_length or masked_BL.shape[1]
        # Blocks count masks, not columns: what lies between two holes takes no step.
        place_BL = masked_BL.cumsum(dim=1) - 1
        self.block_BL = (place_BL // size).masked_fill(~masked_BL, -1)
        self.blocks_B = [int(b) + 1 for b in self.block_BL.amax(dim=1)]
        if max(self.blocks_B) > config.steps:
            raise ValueError(
                f"{config.steps} steps cannot fill {max(self.blocks_B)} blocks: give at least one "
                "step a block, or a larger block_length"
            )
        self.recount(masked_BL)

    def recount(self, masked_BL: Tensor) -> None:
        blocks = self.block_BL.masked_fill(~masked_BL, -1).cpu()
        self.left = [
            [int((row == j).sum()) for j in range(count)]
            for row, count in zip(blocks, self.blocks_B, strict=True)
        ]

    @property
    def left_B(self) -> tuple[int, ...]:
        return tuple(map(sum, self.left))

    def at(self, step: int) -> list[Place]:
        """Where every row stands."""
        places = []
        for count in self.blocks_B:
            each, extra = divmod(self.config.steps, max(count, 1))
            # The first `extra` blocks get one step more.
            block = min(step // (each + 1), extra)
            inner = step - block * (each + 1)
            if block == extra:
                more, inner = divmod(inner, each)
                block += more
            places.append(Place(block, inner, each + (block < extra)))
        return places

    def counts(self, places: list[Place]) -> list[int]:
        """How many positions each row commits."""
        return [
            transfer_count(row[block], inner, steps, self.config.eps) if row else 0
            for row, (block, inner, steps) in zip(self.left, places, strict=True)
        ]

    def commit(self, places: list[Place], counts_B: Sequence[int]) -> None:
        for row, (block, _, _), count in zip(self.left, places, counts_B, strict=True):
            if row:
                row[block] -= count

    def open_counts(self, places: list[Place]) -> list[int]:
        """How many masks the current block of each row holds."""
        return [
            row[place.block] if row else 0 for row, place in zip(self.left, places, strict=True)
        ]

    def open_BL(self, masked_BL: Tensor, places: list[Place]) -> Tensor:
        """The masks that the current block of each row holds."""
        if self.config.block_length is None:
            return masked_BL
        current = torch.tensor([block for block, _, _ in places], device=masked_BL.device)
        return masked_BL & (self.block_BL == current[:, None])


def denoise(
    model: DreamModel,
    canvas_BL: Tensor,
    config: SamplingConfig,
    *,
    attention_mask_BL: Tensor | None = None,
    soft_mask: SoftMaskConfig | None = None,
    rules: Rules | None = None,
    generators: Sequence[torch.Generator] | None = None,
    logits_hook: LogitsHook | None = None,
    tokens_hook: TokensHook | None = None,
) -> Iterator[DenoiseStep]:
    """Denoises a canvas, yielding after each step.

    Args:
        canvas_BL: token ids, `model.config.mask_token_id` where something is to be filled in.
        attention_mask_BL: 1 at tokens, 0 at padding (left or right); None: no padding.
        soft_mask: feeds positions that stay masked back as mixtures; None or scale 0: plain.
        generators: one a row for reproducible rows; None: torch's global generator.
        logits_hook, tokens_hook: Dream's hooks, called as (step, canvas, aligned logits
            (B, L, V)); either makes every step compute all logits. The tokens hook is also
            called once before the first step, with (None, canvas, None).

    Raises:
        ValueError: the canvas is empty or longer than the model's context, it has no mask token,
            k is larger than the vocabulary, too few steps for the blocks, or the model's logits
            are NaN.
    """
    check_canvas(model, canvas_BL)
    if soft_mask is not None:
        check_k(soft_mask.k, model.config.vocab_size)
    return _steps(
        _Loop(
            model,
            canvas_BL,
            config,
            attention_mask_BL,
            soft_mask,
            rules or Rules(),
            RowNoise(generators, canvas_BL.device),
            logits_hook,
            tokens_hook,
        )
    )


@torch.no_grad()
def _steps(loop: _Loop) -> Iterator[DenoiseStep]:
    for step in range(loop.config.steps):
        places = loop.schedule.at(step)
        counts_B = loop.schedule.counts(places)
        if loop.needs_forward(counts_B):
            view = loop.predict(step, places)
            loop.commit(step, view, places, counts_B)
            loop.mix(view, last=step == loop.config.steps - 1)
        else:
            loop.committed_BL = torch.zeros_like(loop.masked_BL)
        yield loop.snapshot(step)


class _View(NamedTuple):
    """What one forward predicts at the rows it was asked for."""

    rows_N: Tensor
    rows_B: list[int]  # how many of them lie in each row of the batch
    open_BL: Tensor  # the masks that this step may commit
    logits_NV: Tensor
    logits_BLV: Tensor | None
    tokens_N: Tensor
    confidence_N: Tensor | None
    entropy_N: Tensor | None


class _Loop:
    """The state of one denoising: the canvas, its schedule, and the next step's soft tokens."""

    def __init__(
        self,
        model: DreamModel,
        canvas_BL: Tensor,
        config: SamplingConfig,
        attention_mask_BL: Tensor | None,
        soft_mask: SoftMaskConfig | None,
        rules: Rules,
        noise: RowNoise,
        logits_hook: LogitsHook | None,
        tokens_hook: TokensHook | None,
    ) -> None:
        self.model, self.config, self.rules, self.noise = model, config, rules, noise
        self.logits_hook, self.tokens_hook = logits_hook, tokens_hook
        self.hooked = logits_hook is not None or tokens_hook is not None
        self.mask_id = model.config.mask_token_id
        self.suppressed = torch.tensor(rules.suppressed, device=canvas_BL.device)
        self.end_ids = torch.tensor(rules.end_ids, device=canvas_BL.device)
        self.mixer = make_mixer(soft_mask, canvas_BL.device)
        self.rate_schedule = soft_mask.schedule if soft_mask is not None else "none"
        self.padding_BL = attention_mask_BL
        if attention_mask_BL is not None and bool((attention_mask_BL != 0).all()):
            self.padding_BL = None
        self.positions_BL = None
        if self.padding_BL is not None:
            self.positions_BL = positions_from_mask(self.padding_BL)
        if tokens_hook is not None:
            canvas_BL = tokens_hook(None, canvas_BL, None)
        self.canvas_BL = canvas_BL.clone()
        self.generated_BL = self.masked_BL = self._masks()
        self.schedule = _Schedule(self.masked_BL, config)
        self.start_B = torch.tensor(self.schedule.left_B, device=canvas_BL.device)
        # Each step commits just what it plans, unless one of these interferes.
        interferes = rules.stop or self.hooked or config.alg == "origin"
        self.planned = self.mask_id in rules.suppressed and not interferes
        self.soft_tokens: SoftTokens | None = None
        self.lambda_BL: Tensor | None = None
        self.logits_BLV: Tensor | None = None
        self.committed_BL = torch.zeros_like(self.masked_BL)
        self.candidate_BL = self.canvas_BL
        self.forwards = 0

    def _masks(self) -> Tensor:
        masked_BL = self.canvas_BL == self.mask_id
        return masked_BL if self.padding_BL is None else masked_BL & self.padding_BL.bool()

    def needs_forward(self, counts_B: Sequence[int]) -> bool:
        """False where a forward could change nothing.

        A plain greedy step that commits nothing would be repeated word for word by the next one;
        with soft-masking it still moves the input, and random rules draw.
        """
        if self.hooked:
            return True
        if not any(self.schedule.left_B):
            return False
        repeats = self.mixer is None and self.config.temperature == 0
        return any(counts_B) or not repeats or self.config.alg == "origin"

    def predict(self, step: int, places: list[Place]) -> _View:
        """One forward, and a token for each of its rows."""
        open_BL = self.schedule.open_BL(self.masked_BL, places)
        # Soft-masking reads every mask, plain decoding only those it may commit.
        reads_all = self.mixer is not None
        rows_BL = self.masked_BL if reads_all else open_BL
        rows_B = list(self.schedule.left_B) if reads_all else self.schedule.open_counts(places)
        rows_N = torch.nonzero_static(rows_BL.flatten(), size=sum(rows_B)).squeeze(1)
        plain = self.soft_tokens is None
        logits = self.model(
            self.canvas_BL if plain else None,
            attention_mask=self.padding_BL,
            position_ids=self.positions_BL,
            soft_tokens=self.soft_tokens,
            rows=None if self.hooked else rows_N,
        ).logits
        self.forwards += 1
        if self.hooked:
            self.logits_BLV = logits
            if self.logits_hook is not None:
                self.logits_BLV = self.logits_hook(step, self.canvas_BL, logits)
            logits = self.logits_BLV.flatten(0, 1)[rows_N]
        self._apply_rules(logits)
        if not logits.is_cuda or step % NAN_CHECK_EVERY == NAN_CHECK_EVERY - 1:
            refuse_nan(logits, step)
        if self.config.alg == "origin":
            tokens_N, confidence_N, entropy_N = logits.new_zeros(0, dtype=torch.long), None, None
        else:
            tokens_N, confidence_N, entropy_N = choose_tokens(
                logits, self.config, self.noise, rows_B
            )
        return _View(
            rows_N, rows_B, open_BL, logits, self.logits_BLV, tokens_N, confidence_N, entropy_N
        )

    def _apply_rules(self, logits_NV: Tensor) -> None:
        if len(self.end_ids) and self.config.end_penalty:
            logits_NV[:, self.end_ids] -= self.config.end_penalty
        if len(self.suppressed):
            logits_NV[:, self.suppressed] = torch.finfo(logits_NV.dtype).min

    def commit(self, step: int, view: _View, places: list[Place], counts_B: Sequence[int]) -> None:
        """Writes this step's tokens into the canvas."""
        if self.config.alg == "origin":
            chosen_N, tokens_N = self._origin(view, places)
            self.committed_BL = torch.zeros_like(self.masked_BL)
            self.committed_BL.view(-1)[view.rows_N] = chosen_N
        else:
            tokens_N = view.tokens_N
            self.committed_BL = self._most_confident(view, counts_B)
        flat = self.canvas_BL.flatten()
        predicted_BL = flat.index_copy(0, view.rows_N, tokens_N).view_as(self.canvas_BL)
        self.canvas_BL = torch.where(self.committed_BL, predicted_BL, self.canvas_BL)
        if self.tokens_hook is not None:
            self.canvas_BL = self.tokens_hook(step, self.canvas_BL, view.logits_BLV)
        if self.rules.stop:
            self._stop_finished_rows()
        self.masked_BL = self._masks()
        if self.planned:
            self.schedule.commit(places, counts_B)
        else:
            self.schedule.recount(self.masked_BL)
        self.candidate_BL = torch.where(self.masked_BL, predicted_BL, self.canvas_BL)

    def _most_confident(self, view: _View, counts_B: Sequence[int]) -> Tensor:
        confidence_N, noise_N = view.confidence_N, None
        if self.config.block_length is not None:
            closed_N = ~view.open_BL.flatten()[view.rows_N]
            confidence_N = confidence_N.masked_fill(closed_N, -torch.inf)
        if self.config.alg_temp and any(counts_B):
            noise_N = self.noise.exponential_at(self.masked_BL, view.rows_N, view.rows_B)
        return choose_positions(
            confidence_N,
            view.rows_N,
            self.canvas_BL.shape,
            counts_B,
            self.config.alg_temp,
            noise_N,
        )

    def _origin(self, view: _View, places: list[Place]) -> tuple[Tensor, Tensor]:
        """Each mask commits by a coin of its own, 1 - s / t; tokens are drawn for those alone."""
        shares = [transfer_share(inner, steps, self.config.eps) for _, inner, steps in places]
        share_B = torch.tensor(shares, device=self.canvas_BL.device)
        row_of_N = view.rows_N // self.canvas_BL.shape[1]
        chosen_N = self.noise.uniform(view.rows_B) < share_B[row_of_N]
        chosen_N &= view.open_BL.flatten()[view.rows_N]
        counts_B = row_of_N[chosen_N].bincount(minlength=len(places)).tolist()
        tokens, _, _ = choose_tokens(view.logits_NV[chosen_N], self.config, self.noise, counts_B)
        tokens_N = torch.full_like(view.rows_N, self.mask_id)
        tokens_N[chosen_N] = tokens
        return chosen_N, tokens_N

    def _stop_finished_rows(self) -> None:
        """Fills what is masked behind a row's first end token, once all before it is decided."""
        masked_BL = self._masks()
        ended_BL = torch.isin(self.canvas_BL, self.end_ids) & self.generated_BL
        behind_BL = ended_BL.cumsum(1) > 0
        open_before_B1 = (masked_BL & ~behind_BL).any(dim=1, keepdim=True)
        fill_BL = masked_BL & behind_BL & ~open_before_B1
        self.canvas_BL = self.canvas_BL.masked_fill(fill_BL, self.rules.fill_id)

    def mix(self, view: _View, last: bool) -> None:
        """From this step's logits at what stays masked to the next step's soft tokens."""
        self.soft_tokens, self.lambda_BL = None, None
        left = sum(self.schedule.left_B)
        if self.mixer is None or last or not left:
            return
        stays_N = self.masked_BL.flatten()[view.rows_N]
        if self.hooked:  # a hook may have masked positions that this step did not read
            left = int(stays_N.sum())
        stays = torch.nonzero_static(stays_N, size=left).squeeze(1)
        seen = feedback(
            view.logits_NV, view.rows_N, self.mixer.k, self.mixer.mode, stays, view.entropy_N
        )
        left_B = torch.tensor(self.schedule.left_B, device=self.canvas_BL.device)
        rate_B = rate(self.rate_schedule, left_B, self.start_B)
        rate_N = rate_B[seen.rows_N // self.canvas_BL.shape[1]]
        self.soft_tokens, lambda_N = self.mixer(self.canvas_BL, seen, rate_N)
        self.lambda_BL = torch.zeros(self.canvas_BL.shape, device=self.canvas_BL.device)
        self.lambda_BL.view(-1)[seen.rows_N] = lambda_N

    def snapshot(self, step: int) -> DenoiseStep:
        return DenoiseStep(
            index=step,
            steps=self.config.steps,
            canvas_BL=self.canvas_BL,
            committed_BL=self.committed_BL,
            left_B=self.schedule.left_B,
            forwards=self.forwards,
            logits_BLV=self.logits_BLV,
            lambda_BL=self.lambda_BL,
            candidate_BL=self.candidate_BL,
        )


def make_mixer(soft_mask: SoftMaskConfig | None, device: torch.device) -> SoftMask | None:
    """The module for fixed numbers; None where soft-masking changes nothing."""
    if soft_mask is None or soft_mask.scale == 0:
        return None
    mixer = SoftMask(
        soft_mask.scale,
        soft_mask.offset,
        soft_mask.steepness,
        soft_mask.temperature,
        mode=soft_mask.mode,
        k=soft_mask.k,
        exact=True,
    )
    return mixer.to(device)


def check_canvas(model: DreamModel, canvas_BL: Tensor) -> None:
    """Raises ValueError for a canvas that the model cannot take."""
    if model.config.mask_token_id is None:
        raise ValueError("the model's config has no mask_token_id: it is no masked diffusion model")
    if canvas_BL.dim() != 2 or canvas_BL.numel() == 0:
        raise ValueError(f"the canvas must be (batch, length), not {tuple(canvas_BL.shape)}")
    context = model.config.max_position_embeddings
    if canvas_BL.shape[1] > context:
        raise ValueError(
            f"prompt and new tokens together are {canvas_BL.shape[1]} tokens, but the model's "
            f"context is {context}: shorten the prompt or ask for fewer new tokens"
        )


def refuse_nan(logits_NV: Tensor, step: int) -> None:
    """Raises ValueError if any logit is NaN. One value a row shows it: NaN spreads in the sum."""
    if bool(torch.isnan(logits_NV.sum(dim=-1)).any()):
        raise ValueError(
            f"the model's logits are NaN at step {step}: its weights are damaged, or its dtype "
            "overflows (try --dtype float32 or bfloat16)"
        )
