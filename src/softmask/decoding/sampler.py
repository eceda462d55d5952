"""denoise(): THE loop. Everything that generates drains it: calls, streams, the live view, hooks.

A canvas holds tokens and masks; generation is a canvas whose tail is masked, infilling one with
masks anywhere. Each step runs one forward, commits some positions, and, with soft-masking,
remembers what it saw at the others as the next step's input: `Batch.step`.
Shape suffixes: B batch, L length, P = B * L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig, require, shown
from ..models import DreamModel
from ..soft_mask import check_k
from .arguments import as_count
from .batch import Batch
from .growing import Room
from .hooks import Hooks, LogitsHook, TokensHook
from .sequence import Rules

if TYPE_CHECKING:
    from ..constraints.token_automaton import TokenAutomaton

__all__ = ["DenoiseStep", "LogitsHook", "Rules", "TokensHook", "check_canvas", "denoise"]


@dataclass(frozen=True)
class DenoiseStep:
    """The canvas after one step.

    `lambda_BL` and `candidate_BL` (0 and the canvas' token elsewhere) describe the positions
    that stay masked: the weight of the feedback, and the token that leads there. `forwards_B`
    counts those that each row took part in, `forwards` those of the batch. `reach_B` is the column
    up to which each row took part: with `lookahead`, masks behind it are still to come. Of the
    masks that are left in a row, `left_B`, `open_B` took part. `stop_B` is where each row ends,
    which moves where its hole grows.
    """

    index: int
    steps: int
    canvas_BL: Tensor
    committed_BL: Tensor
    left_B: tuple[int, ...]
    forwards: int
    forwards_B: tuple[int, ...]
    logits_BLV: Tensor | None
    lambda_BL: Tensor | None
    candidate_BL: Tensor
    reach_B: tuple[int, ...]
    open_B: tuple[int, ...]
    stop_B: tuple[int, ...]


# What is made within inference_mode could not be changed behind it, where a run may go on.
@torch.inference_mode(False)
def denoise(
    model: DreamModel,
    canvas_BL: Tensor,
    config: SamplingConfig,
    *,
    steps_B: Sequence[int] | None = None,
    attention_mask_BL: Tensor | None = None,
    soft_mask: SoftMaskConfig | None = None,
    rules: Rules | None = None,
    generators: Sequence[torch.Generator] | None = None,
    logits_hook: LogitsHook | None = None,
    tokens_hook: TokensHook | None = None,
    graphs: bool | None = None,
    constraint: TokenAutomaton | Sequence[TokenAutomaton | None] | None = None,
    holes_B: Sequence[tuple[int, ...] | None] | None = None,
    room_B: Sequence[Room] | None = None,
) -> Iterator[DenoiseStep]:
    """Denoises a canvas, yielding after each step.

    Args:
        canvas_BL: token ids, `model.config.mask_token_id` where something is to be filled in.
        steps_B: of each row, in place of the config's.
        attention_mask_BL: 1 at tokens, 0 at padding (left or right); None: no padding.
        soft_mask: feeds positions that stay masked back as mixtures; None or scale 0: plain.
        generators: one a row for reproducible rows; None: torch's global generator.
        logits_hook: Dream's hook, (step, canvas (B, L), aligned logits (B, L, V)) -> logits. It
            makes every step compute all logits.
        tokens_hook: Dream's hook, (step, canvas, logits) -> canvas; likewise. It is also called
            once before the first step, with (None, canvas, None).
        graphs: record forwards as CUDA graphs; None: where the model suits them.
        constraint: the form of each row's text between its first and its last mask, one for all
            rows or one for each; or, of a row with
        holes_B: the form of its holes that begin at these of its columns, each by itself.
        room_B: the one hole of each row grows and shrinks as DreamOn's do, and the row with it,
            into the padding to its right.

    Raises:
        ValueError: the canvas is empty or longer than the model's context, it has no mask token,
            an id lies outside of the vocabulary, what comes row by row has not as many rows,
            k is larger than the vocabulary, a row's attention mask has a gap, a cache, lookahead,
            commit_from or guidance is asked for together with hooks, too few steps for the blocks,
            the model's logits are NaN, a hook returns something else than it must, a hole cannot
            grow (`Growth.of`), graphs are asked for where there can be none, no text of the form
            fits, or an argument is of another type.
    """
    rules = rules or Rules()
    check_canvas(model, canvas_BL, rules)
    forms = constraint if isinstance(constraint, Sequence) else [constraint] * len(canvas_BL)
    _check_rows(
        canvas_BL,
        attention_mask_BL,
        steps_B=steps_B,
        generators=generators,
        constraint=forms,
        holes_B=holes_B,
        room_B=room_B,
    )
    _check_kinds(config, soft_mask, generators)
    if steps_B is not None:
        steps_B = [as_count("an entry of steps_B", steps) for steps in steps_B]
    if soft_mask is not None:
        check_k(soft_mask.k, model.config.vocab_size)
    spans = _spans(canvas_BL, attention_mask_BL)
    hooks = None
    if logits_hook is not None or tokens_hook is not None:
        whole = {"cache": "none", "lookahead": None, "commit_from": "soft", "guidance": 0}
        for name, off in whole.items():
            if getattr(config, name) != off:
                raise ValueError(f"hooks see the logits of the whole canvas: leave out the {name}")
        rows, columns = canvas_BL.shape
        hooks = Hooks((rows, columns), model.config.vocab_size, logits_hook, tokens_hook)
        canvas_BL = hooks.begin(canvas_BL)
    cached = config.cache != "none"
    count = canvas_BL.numel()
    twins = count if config.guidance else 0
    batch = Batch(model, count, cached=cached, hooks=hooks, graphs=graphs, twins=twins)
    batch.canvas_P[:count] = batch.candidate_P[:count] = canvas_BL.flatten()
    for row, (start, stop) in enumerate(spans):
        first = row * canvas_BL.shape[1] + start
        if room_B is not None and start + room_B[row].columns > canvas_BL.shape[1]:
            raise ValueError("a row may grow to more columns than the canvas has: pad it further")
        batch.add(
            first,
            canvas_BL[row, start:stop],
            config if steps_B is None else replace(config, steps=steps_B[row]),
            soft_mask=soft_mask,
            rules=rules,
            generator=None if generators is None else generators[row],
            constraint=forms[row],
            holes=None if holes_B is None else holes_B[row],
            twin=count + first,
            room=None if room_B is None else room_B[row],
        )
    steps = config.steps if steps_B is None else max(steps_B)
    return _steps(batch, canvas_BL.shape, config, steps)


def _steps(
    batch: Batch, shape: torch.Size, config: SamplingConfig, steps: int
) -> Iterator[DenoiseStep]:
    for index in range(steps):
        # Around the step alone: a decorated generator that is left half-way turns gradients off
        # and on again when it is collected, at exit in a half-removed torch.
        with torch.inference_mode(False), torch.no_grad():
            batch.step()
            for sequence in batch.sequences:
                if sequence.failure is not None:
                    raise ValueError(sequence.failure)
            step = _describe(batch, shape, index, steps)
        yield step
        grows = any(sequence.growth is not None for sequence in batch.sequences)
        if (config.adaptive or grows) and all(sequence.is_done for sequence in batch.sequences):
            return


def _describe(batch: Batch, shape: torch.Size, index: int, steps: int) -> DenoiseStep:
    is_soft = any(sequence.is_soft and not sequence.is_done for sequence in batch.sequences)
    logits_PV, count = batch.logits_PV, shape.numel()  # behind these lie guided rows' twins
    return DenoiseStep(
        index=index,
        steps=steps,
        # Copies: the batch goes on writing onto its own.
        canvas_BL=batch.canvas_P[:count].view(shape).clone(),
        committed_BL=batch.committed_P[:count].view(shape),
        left_B=tuple(sequence.schedule.total_left for sequence in batch.sequences),
        forwards=batch.forwards,
        forwards_B=tuple(sequence.forwards for sequence in batch.sequences),
        logits_BLV=None if logits_PV is None else logits_PV.view(*shape, -1),
        lambda_BL=(batch.soft.lambda_P * batch.masked_P)[:count].view(shape) if is_soft else None,
        candidate_BL=batch.candidate_P[:count].view(shape).clone(),
        # Sequences keep the order of the rows, and have no columns for padding on the left.
        reach_B=tuple(s.start % shape[1] + s.reach for s in batch.sequences),
        open_B=tuple(s.open for s in batch.sequences),
        stop_B=tuple(s.start % shape[1] + s.length for s in batch.sequences),
    )


def _spans(canvas_BL: Tensor, attention_mask_BL: Tensor | None) -> list[tuple[int, int]]:
    """The columns [start, stop) of each row that are no padding."""
    if attention_mask_BL is None:
        return [(0, canvas_BL.shape[1])] * len(canvas_BL)
    spans = []
    for row in (attention_mask_BL != 0).cpu():
        columns = row.nonzero().squeeze(1).tolist()
        start, stop = (columns[0], columns[-1] + 1) if columns else (0, 0)
        if len(columns) != stop - start or not columns:
            raise ValueError(
                "each row of the attention mask must mark one stretch of tokens, with padding to "
                "its left or right"
            )
        spans.append((start, stop))
    return spans


def _check_rows(
    canvas_BL: Tensor, attention_mask_BL: Tensor | None, **each: Sequence[Any] | None
) -> None:
    """Raises ValueError for a mask of another shape, or entries that are not one for each row."""
    shape, mask = tuple(canvas_BL.shape), attention_mask_BL
    if mask is not None:
        require(isinstance(mask, Tensor), "attention_mask_BL must be a tensor of the canvas' shape")
        own = tuple(mask.shape)
        require(own == shape, f"attention_mask_BL must have the canvas' shape {shape}, not {own}")
    for name, values in each.items():
        if values is not None:
            found = len(values) if isinstance(values, Sized) else shown(values)
            require(
                found == shape[0],
                f"{name} must have an entry for each row of the canvas, {shape[0]} in all, not "
                f"{found}",
            )


def _check_kinds(config: Any, soft_mask: Any, generators: Sequence[Any] | None) -> None:
    """Raises ValueError for settings that a call of `generate` would read, and others."""
    require(
        isinstance(config, SamplingConfig), f"config must be a SamplingConfig, not {shown(config)}"
    )
    require(
        soft_mask is None or isinstance(soft_mask, SoftMaskConfig),
        f"soft_mask must be a SoftMaskConfig or None here, not {shown(soft_mask)}",
    )
    for one in generators or ():
        require(
            isinstance(one, torch.Generator),
            f"generators must hold a torch.Generator for each row, not {shown(one)}",
        )


def check_canvas(model: DreamModel, canvas_BL: Tensor, rules: Rules) -> None:
    """Raises ValueError for a canvas, or ids of rules, that the model cannot take."""
    _ = model.mask_id  # raises where there is none
    is_tensor = isinstance(canvas_BL, Tensor)
    shape = tuple(canvas_BL.shape) if is_tensor else shown(canvas_BL)
    require(
        is_tensor and canvas_BL.dim() == 2 and canvas_BL.numel() > 0,
        f"the canvas must be a tensor (batch, length), not {shape}",
    )
    kind = str(canvas_BL.dtype).removeprefix("torch.")
    require("int" in kind, f"the canvas must hold token ids, whole numbers, not {kind}")
    context, size = model.config.max_position_embeddings, model.config.vocab_size
    if canvas_BL.shape[1] > context:
        raise ValueError(
            f"prompt and new tokens together are {canvas_BL.shape[1]} tokens, but the model's "
            f"context is {context}: shorten the prompt or ask for fewer new tokens"
        )
    least, most = int(canvas_BL.min()), int(canvas_BL.max())
    named = (least, most, *rules.suppressed, *rules.end_ids, rules.fill_id)
    # On a GPU an index out of range makes the device unusable for the whole process.
    require(
        min(named) >= 0 and max(named) < size,
        f"a token id lies outside of the model's vocabulary of {size}",
    )
