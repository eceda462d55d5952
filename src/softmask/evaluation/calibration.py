"""Does a model's confidence mean what it says, once feedback is iterated?

Two measures on texts whose masks have a true token each, with feedback and without:
* passes: the same masks are read again and again, nothing is committed, and each pass has the
  feedback of the one before. Confidence that grows while what is right does not is the feedback's.
* decoding: what each step commits, and what it leaves masked.
Both are steps of the denoising loop's own `Batch`. Confidence is the probability of the leading
token (of a committed one: its own) by the logits, before temperature and filters.

Shape suffixes: P positions, N masked positions that are read, L columns of a text, V vocabulary,
K superposed tokens, D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SamplingConfig, SoftMaskConfig, is_on, require
from ..decoding.batch import Batch
from ..decoding.hooks import Hooks
from ..decoding.likelihood import generator_for
from ..decoding.prompts import encode, encode_holes, rules_of
from ..decoding.sequence import Rules
from ..models import DreamModel
from ..models.checkpoint import Checkpoint
from ..puzzles.puzzles import Puzzle, holed
from ..reporting.progress import progress
from .batching import batched
from .calibration_scores import Found, Measured, Sums, found_of
from .measure_config import CalibrationConfig

# The published schedule linspace(1, eps, steps + 1) leaves every commit to its last step where it
# ends next to its start: the steps before it are passes without commits.
AT_ONCE = 1 - 1e-6


class Canvas(NamedTuple):
    """A text, and which of its tokens are to be predicted."""

    true_L: Tensor
    masked_L: Tensor


def puzzle_canvases(checkpoint: Checkpoint, puzzles: Sequence[Puzzle]) -> list[Canvas]:
    """Sudokus as they are filled in, with the digits of their solutions as true tokens.

    Raises:
        ValueError: the tokenizer has no token for each digit.
    """
    canvases = []
    for puzzle in puzzles:
        solved = dataclasses.replace(puzzle, input=puzzle.output)
        ids_L = torch.tensor(encode_holes(checkpoint, holed(puzzle)).ids)
        true_L = torch.tensor(encode(checkpoint, holed(solved)))
        masked_L = ids_L == checkpoint.model.mask_id
        if true_L.shape != ids_L.shape or bool((true_L != ids_L)[~masked_L].any()):
            raise ValueError(
                "this tokenizer has no token for each digit, so the blanks of a Sudoku have no "
                "true tokens: give --texts"
            )
        canvases.append(Canvas(true_L, masked_L))
    return canvases


def text_canvases(windows: Sequence[Sequence[int]], share: float, seed: int) -> list[Canvas]:
    """Windows of text with this share of their tokens masked, one at least, and never the first.

    The masks are a function of (seed, the window's ids) alone.
    """
    canvases = []
    for window in windows:
        count = max(1, round(share * (len(window) - 1)))
        draw_L = torch.rand(len(window) - 1, generator=generator_for(seed, window))
        masked_L = torch.zeros(len(window), dtype=torch.bool)
        masked_L[1 + draw_L.argsort()[:count]] = True
        canvases.append(Canvas(torch.tensor([int(i) for i in window]), masked_L))
    return canvases


def calibration(
    checkpoint: Checkpoint,
    canvases: Sequence[Canvas],
    config: CalibrationConfig,
    soft_mask: SoftMaskConfig | None,
    sampling: Callable[[int], SamplingConfig],
) -> Found:
    """Both measures of these texts, with feedback (where `soft_mask` is on) and without.

    Without feedback every pass would be the first, so there is one.

    Args:
        sampling: how a text with so many masks is into.

    Raises:
        ValueError: a text longer than the model's context, a text without masks, fewer steps than
            blocks, or logits that are NaN.
    """
    _check(checkpoint.model, canvases)
    # Like lengths side by side, the longest first: what does not fit into memory fails at once.
    order = sorted(range(len(canvases)), key=lambda i: -len(canvases[i].true_L))
    configs = [sampling(int(canvas.masked_L.sum())) for canvas in canvases]
    rules = rules_of(checkpoint, infill=True)
    ways = {"on": soft_mask, "off": None} if is_on(soft_mask) else {"off": None}
    most = max(one.steps for one in configs)
    measured = {
        way: Measured(len(canvases), config.passes if soft else 1, most)
        for way, soft in ways.items()
    }
    with progress("", 2 * len(ways) * len(canvases), "texts") as shown:
        for way, soft in ways.items():
            for batch in batched(order, config.batch_size):
                texts = [canvases[i] for i in batch]
                index = torch.tensor(batch)
                shown.update(f"feedback {way}: reading masks again")
                into = measured[way]
                read_again(checkpoint.model, texts, rules, soft, into.read, index)
                shown.advance(len(batch))
                shown.update(f"feedback {way}: decoding")
                own = [configs[i] for i in batch]
                seeds = [config.seed + i for i in batch]
                decode(checkpoint.model, texts, own, rules, soft, into, index, seeds)
                shown.advance(len(batch))
    masks_W = torch.tensor([float(canvas.masked_L.sum()) for canvas in canvases])
    return found_of(masks_W, measured)


@torch.no_grad()
def read_again(
    model: DreamModel,
    canvases: Sequence[Canvas],
    rules: Rules,
    soft_mask: SoftMaskConfig | None,
    sums: Sums,
    texts: Tensor,
) -> None:
    """Reads the masks of some texts `sums.rounds` times, and adds up what each pass says.

    Args:
        texts: the numbers of these texts in `sums`.
    """
    config = SamplingConfig(steps=sums.rounds + 1, eps=AT_ONCE)
    batch, true_P, text_P = _lay(model, canvases, [config] * len(canvases), rules, soft_mask)
    rows_N = batch.masked_P.nonzero().squeeze(1)
    true_N, text_N = true_P[rows_N], texts[text_P[rows_N].cpu()]
    before_NV: Tensor | None = None
    for index in range(sums.rounds):
        values = _input(batch, rows_N)
        _step(batch)
        assert batch.logits_PV is not None
        logits_NV = batch.logits_PV[rows_N].float()
        logits_NV[:, list(rules.suppressed)] = torch.finfo(torch.float32).min
        logprobs_NV = logits_NV.log_softmax(-1)
        best_N, top_N = logprobs_NV.max(-1)
        values["nats"] = -logprobs_NV.gather(1, true_N[:, None]).squeeze(1)
        if before_NV is not None:
            values["flips"] = top_N != before_NV.argmax(-1)
            values["kl"] = F.kl_div(before_NV, logprobs_NV, reduction="none", log_target=True).sum(
                -1
            )
        before_NV = logprobs_NV
        sums.add(index, text_N, best_N.exp(), top_N == true_N, values)


@torch.no_grad()
def decode(
    model: DreamModel,
    canvases: Sequence[Canvas],
    configs: Sequence[SamplingConfig],
    rules: Rules,
    soft_mask: SoftMaskConfig | None,
    into: Measured,
    texts: Tensor,
    seeds: Sequence[int],
) -> None:
    """Decodes some texts, and adds up what each step commits and what it leaves masked."""
    batch, true_P, text_P = _lay(model, canvases, configs, rules, soft_mask, seeds)
    store, text_P = batch.logprobs, texts[text_P.cpu()].to(text_P.device)
    assert store is not None
    generated_P, index = batch.masked_P.clone(), 0
    while not all(sequence.is_done for sequence in batch.sequences):
        lambda_P = batch.soft.lambda_P.clone()
        store.forget(slice(None))
        _step(batch)
        read_P = ~store.logprobs_PK[:, 0].isnan()
        for sums, rows_P in (
            (into.committed, read_P & batch.committed_P),
            (into.waiting, read_P & batch.masked_P),
        ):
            rows_N = rows_P.nonzero().squeeze(1)
            token_N, logprob_N = store.ids_PK[rows_N, 0], store.logprobs_PK[rows_N, 0]
            if sums is into.committed:
                token_N, logprob_N = batch.canvas_P[rows_N], store.logprob_P[rows_N]
            right_N, values = token_N == true_P[rows_N], {"lambda": lambda_P[rows_N]}
            sums.add(index, text_P[rows_N].cpu(), logprob_N.exp(), right_N, values)
        index += 1
    wrong_P = generated_P & (batch.canvas_P != true_P)
    for sequence, text in zip(batch.sequences, texts.tolist(), strict=True):
        own = slice(sequence.start, sequence.start + sequence.length)
        into.forwards_W[text] = sequence.forwards
        into.exact_W[text] = float(not wrong_P[own].any())


def _lay(
    model: DreamModel,
    canvases: Sequence[Canvas],
    configs: Sequence[SamplingConfig],
    rules: Rules,
    soft_mask: SoftMaskConfig | None,
    seeds: Sequence[int] | None = None,
) -> tuple[Batch, Tensor, Tensor]:
    """Texts side by side on one canvas; of each position the true token, and which text it is of.

    Without seeds nothing is to be committed, and the batch keeps all logits instead.
    """
    sizes = [len(canvas.true_L) for canvas in canvases]
    true_P = torch.cat([canvas.true_L for canvas in canvases]).to(model.device)
    text_P = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(model.device)
    if seeds is None:
        batch = Batch(model, sum(sizes), hooks=Hooks((1, sum(sizes)), model.config.vocab_size))
    else:
        cached = any(config.cache != "none" for config in configs)
        batch = Batch(model, sum(sizes), cached=cached, top_logprobs=1)
    start = 0
    for row, (canvas, config) in enumerate(zip(canvases, configs, strict=True)):
        generator = None
        if seeds is not None and config.is_random:
            generator = torch.Generator(model.device).manual_seed(seeds[row])
        batch.add(
            start,
            canvas.true_L.masked_fill(canvas.masked_L, model.mask_id).to(model.device),
            config,
            soft_mask=soft_mask,
            rules=rules,
            generator=generator,
            top_logprobs=0 if seeds is None else 1,
        )
        start += sizes[row]
    return batch, true_P, text_P


def _input(batch: Batch, rows_N: Tensor) -> dict[str, Tensor]:
    """What the next pass reads at these masks: lambda; the norm of its embedding over that of the
    mask's, and the angle between the mask's and what is mixed in, in degrees (NaN: nothing is)."""
    ids_1N, everywhere_N = batch.canvas_P[rows_N][None], torch.ones_like(rows_N, dtype=torch.bool)
    soft = batch.soft.tokens(ids_1N, rows_N, everywhere_N)
    weights_1NK = soft.weights_BLK.clone()
    weights_1NK[..., 0] = 0
    with batch.model.input_table() as table_VD:
        mask_D = table_VD[batch.mask_id].float()
        whole_ND = soft.embed(table_VD)[0].float()
        added_ND = soft._replace(weights_BLK=weights_1NK).embed(table_VD)[0].float()
    size_N = added_ND.norm(dim=-1)
    cosine_N = (added_ND @ mask_D / (size_N * mask_D.norm())).clamp(-1, 1)
    return {
        "lambda": batch.soft.lambda_P[rows_N],
        "norm": whole_ND.norm(dim=-1) / mask_D.norm(),
        "angle": cosine_N.acos() * (180 / math.pi),
    }


def _step(batch: Batch) -> None:
    """One step of all texts.

    Raises:
        ValueError: the model's logits are NaN.
    """
    batch.step()
    for sequence in batch.sequences:
        if sequence.failure is not None:
            raise ValueError(sequence.failure)


def _check(model: DreamModel, canvases: Sequence[Canvas]) -> None:
    _ = model.mask_id  # raises where there is none
    require(len(canvases) > 0, "there is nothing to measure: give at least one text")
    require(
        all(bool(canvas.masked_L.any()) for canvas in canvases),
        "a text without masks says nothing: mask at least one token of each",
    )
    longest, most = max(len(c.true_L) for c in canvases), model.config.max_position_embeddings
    require(
        longest <= most,
        f"a text has {longest} tokens, but the model's context is {most}: lower the length",
    )
