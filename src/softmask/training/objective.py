"""The masked-diffusion loss, with and without soft-masking, for pretraining and fine-tuning.

Shape suffixes: B batch, L length, N masked positions (flat indices into B * L), T time buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..models import DreamModel
from ..soft_mask import Feedback
from .config import WEIGHTINGS
from .trajectory import reveal

# Equal buckets of t in [0, 1] over which right predictions are counted.
BUCKETS = 10


class Loss(NamedTuple):
    """The loss of one forward, and values for the log; all on the device."""

    value: Tensor
    nats: Tensor  # plain mean cross-entropy, nats per masked token
    entropy: Tensor | None  # mean entropy at the masks that read feedback; None: none did
    mixed: Tensor | None  # mean lambda there
    reading: int  # how many they are
    hits_T: Tensor  # masked tokens whose most likely prediction is right, by t of their row
    total_T: Tensor  # masked tokens, by t of their row

    @property
    def has_masks(self) -> Tensor:
        """1, or 0 where nothing was masked: `nats` is a mean of nothing then."""
        return (self.total_T.sum() > 0).float()


def masked_diffusion_loss(
    model: nn.Module,
    noisy_BL: Tensor,
    ids_BL: Tensor,
    masked_BL: Tensor,
    times_B: Tensor,
    *,
    scored_BL: Tensor | None = None,
    maskable_BL: Tensor | None = None,
    soft: bool,
    feedback_passes: int = 1,
    weighting: str = "mean",
    attention_mask_BL: Tensor | None = None,
) -> Loss:
    """Cross-entropy of the true tokens at the masked positions (paper, Algorithm 1).

    With `soft`, a first pass without gradient makes the feedback, and a second pass, which alone
    is trained, reads the masked positions as mixtures (the gradient reaches the soft-mask
    parameters and, through the mixture, the embedding table; none goes through pass 1).
    Logits are computed at the masked positions only, in all passes.

    With more `feedback_passes` (not in the paper) each of them reads the feedback of the one
    before, as the steps of a sampler do.

    A block-causal model reads the true rows beside the noisy ones, and predicts every block behind
    true ones, in all passes; true tokens are never mixtures.

    Under DistributedDataParallel ranks may differ in `soft` and `feedback_passes`; under FSDP2 they
    may not, as every forward gathers parameters from all ranks. Gradient checkpointing must be the
    non-reentrant kind, transformers' default: the other one warns in pass 1, where no input has a
    gradient.

    Args:
        model: a DreamModel, or a PeftModel or DistributedDataParallel around one.
        noisy_BL, ids_BL: corrupted and true ids. masked_BL: which positions are predicted;
            position 0 never counts under the shift: nothing precedes it.
        scored_BL: which of the masked positions count in the loss; None: all. All get feedback.
        maskable_BL: which positions might have been masked: the answers, for weighting "answer".
        times_B: t of each row.
        weighting: "mean": mean over the masked tokens of the batch; "row": mean over rows of
            the mean over a row's; "elbo": sum over masked tokens of CE / t, per token of the
            batch, the bound itself; "answer": mean over rows of the bound per token that might
            have been masked, as LLaDA's fine-tuning; "published": mean over the masked tokens of
            CE / t, as the released training of soft-masking, whose rows share one t.

    Raises:
        ValueError: `soft` on a model without soft-mask parameters, an unknown weighting, one
            without what it needs, or no DreamModel inside `model`.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
    if weighting == "answer" and maskable_BL is None:
        raise ValueError("weighting answer needs maskable_BL: it counts the tokens of the answers")
    dream = inner(model)
    if soft and dream.soft_mask is None:
        raise ValueError("soft-mask training needs a model with soft-mask parameters")
    inputs = {"attention_mask": attention_mask_BL, **beside(dream, ids_BL, maskable_BL)}
    if dream.config.logit_shift:
        masked_BL = _without_first(masked_BL)
        maskable_BL = None if maskable_BL is None else _without_first(maskable_BL)
    rows_N = masked_BL.flatten().nonzero().squeeze(1)
    seen = None
    if soft:
        first = _without_ddp(model)
        with torch.no_grad():
            for _ in range(feedback_passes):
                seen = first(noisy_BL, feedback=seen, rows=rows_N, observe=True, **inputs).feedback
    forward = _scored(
        model,
        noisy_BL,
        ids_BL,
        rows_N,
        times_B,
        scored_BL=scored_BL,
        maskable_BL=maskable_BL,
        weighting=weighting,
        feedback=seen,
        inputs=inputs,
    )
    return forward.loss


def beside(dream: DreamModel, ids_BL: Tensor, maskable_BL: Tensor | None) -> dict[str, Any]:
    """What a forward of noisy rows takes besides: the clean ones, where a model is block-causal.

    It predicts a block behind whole ones; that its blocks may begin behind the prompt is read off
    what might have been masked.
    """
    if dream.config.block_size is None:
        return {}
    prompts_B = None if maskable_BL is None else maskable_BL.int().argmax(dim=1)
    return {"clean_ids": ids_BL, "prompt_lengths": prompts_B}


def trajectory_loss(
    model: nn.Module,
    ids_BL: Tensor,
    masked_BL: Tensor,
    maskable_BL: Tensor,
    shares_BW: Tensor,
    seen: Feedback | None,
    *,
    reads_B: Tensor,
    soft: bool,
    order_BL: Tensor | None = None,
    weighting: str = "row",
    attention_mask_BL: Tensor | None = None,
) -> tuple[Loss, Tensor, Feedback]:
    """The loss of rows that are under way, and what they carry on; see trajectory.py.

    Of W + 1 shares: W forwards, their losses averaged. Behind each masks are revealed until the
    next share of a row is, and what the forward said of the others is read by the next one, with
    its gradient.

    Args:
        model: as in `masked_diffusion_loss`.
        seen: what the rows read of their state; None: nothing.
        reads_B: which rows read what the forwards here say, too; `soft`: whether any may.
        order_BL: masks of the largest are revealed first; None: those the forward is surest of.

    Returns:
        The loss; the masks that are left; what the last forward said of those.
    """
    dream = inner(model)
    if dream.config.logit_shift:
        maskable_BL = _without_first(maskable_BL)
    masked_BL = masked_BL & maskable_BL
    losses = []
    said: Feedback | None = None
    for number in range(1, shares_BW.shape[1]):
        rows_N = masked_BL.flatten().nonzero().squeeze(1)
        forward = _scored(
            model,
            ids_BL.masked_fill(masked_BL, dream.mask_id),
            ids_BL,
            rows_N,
            masked_BL.sum(1) / maskable_BL.sum(1).clamp_min(1),
            weighting=weighting,
            feedback=seen,
            inputs={"attention_mask": attention_mask_BL},
            observe=True,
            attached=number + 1 < shares_BW.shape[1],
        )
        losses.append(forward.loss)
        said = forward.said
        assert said is not None
        assert said.logits_NK is not None
        assert said.total_N is not None
        first_BL = order_BL
        if first_BL is None:
            first_BL = torch.full(masked_BL.shape, -torch.inf, device=masked_BL.device)
            log_chance_N = (said.logits_NK[:, 0] - said.total_N).detach()
            first_BL.view(-1)[rows_N] = log_chance_N
        masked_BL = reveal(masked_BL, maskable_BL, first_BL, shares_BW[:, number])
        said = said.at(masked_BL.flatten()[rows_N])
        seen = said.at(reads_B[said.rows_N // ids_BL.shape[1]]) if soft else None
    assert said is not None
    return _averaged(losses), masked_BL, said


class _Scored(NamedTuple):
    loss: Loss
    said: Feedback | None


def _scored(
    model: nn.Module,
    noisy_BL: Tensor,
    ids_BL: Tensor,
    rows_N: Tensor,
    times_B: Tensor,
    *,
    weighting: str,
    feedback: Feedback | None,
    inputs: dict[str, Any],
    scored_BL: Tensor | None = None,
    maskable_BL: Tensor | None = None,
    observe: bool = False,
    attached: bool = False,
) -> _Scored:
    """The forward that is trained, and the loss at its masked positions `rows_N`."""
    length = ids_BL.shape[1]
    labels_N, time_N = ids_BL.flatten()[rows_N], times_B[rows_N // length]
    output = model(
        noisy_BL,
        feedback=feedback,
        labels=labels_N,
        rows=rows_N,
        observe=observe,
        attached=attached,
        **inputs,
    )
    scored_N = torch.ones_like(rows_N) if scored_BL is None else scored_BL.flatten()[rows_N]
    losses_N = output.losses * scored_N
    count = scored_N.sum().clamp_min(1)
    nats = losses_N.sum() / count
    if weighting == "mean":
        value = nats
    elif weighting == "row":
        row_N, zeros_B = rows_N // length, losses_N.new_zeros(len(ids_BL))
        count_B = zeros_B.index_add(0, row_N, scored_N.to(zeros_B.dtype))
        mean_B = zeros_B.index_add(0, row_N, losses_N) / count_B.clamp_min(1)
        value = mean_B.sum() / (count_B > 0).sum().clamp_min(1)
    elif weighting == "published":
        value = (losses_N / time_N).sum() / count
    elif weighting == "answer":
        assert maskable_BL is not None
        length_B = maskable_BL.sum(1).clamp_min(1)
        value = (losses_N / time_N / length_B[rows_N // length]).sum() / len(ids_BL)
    else:
        value = (losses_N / time_N).sum() / ids_BL.numel()
    reading = 0 if feedback is None else len(feedback.rows_N)
    loss = Loss(
        value,
        nats.detach(),
        output.entropies.mean() if reading else None,
        output.lambdas.mean() if reading else None,
        reading,
        *_hits(output.predicted == labels_N, scored_N.bool(), time_N),
    )
    return _Scored(loss, output.feedback)


def _averaged(losses: list[Loss]) -> Loss:
    """Of the forwards of an update; entropy and lambda of all masks that read feedback there."""
    reading = sum(loss.reading for loss in losses)

    def of_reading(means: Sequence[Tensor | None]) -> Tensor | None:
        pairs = zip(means, losses, strict=True)
        parts = [mean * loss.reading for mean, loss in pairs if mean is not None]
        return torch.stack(parts).sum() / reading if parts else None

    return Loss(
        torch.stack([loss.value for loss in losses]).mean(),
        torch.stack([loss.nats for loss in losses]).mean(),
        of_reading([loss.entropy for loss in losses]),
        of_reading([loss.mixed for loss in losses]),
        reading,
        torch.stack([loss.hits_T for loss in losses]).sum(0),
        torch.stack([loss.total_T for loss in losses]).sum(0),
    )


def _without_first(mask_BL: Tensor) -> Tensor:
    """Position 0 never counts under the shift: nothing precedes it."""
    mask_BL = mask_BL.clone()
    mask_BL[:, 0] = False
    return mask_BL


def inner(model: nn.Module) -> DreamModel:
    """The DreamModel itself, or the one inside a wrapper (DDP, PEFT, torch.compile).

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, DreamModel):
            return module
    raise ValueError(f"training needs a DreamModel, and {type(model).__name__} holds none")


def _without_ddp(model: nn.Module) -> nn.Module:
    """The module that pass 1 calls: the one inside DDP.

    DDP's forward communicates with the other ranks, and a rank with a plain batch has no pass 1 to
    answer it. Only gradients need the wrapper, and pass 1 has none.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def _hits(right_N: Tensor, scored_N: Tensor, time_N: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) right predictions and (T,) predictions by bucket of t; no host synchronisation."""
    bucket_N = (time_N * BUCKETS).long().clamp(0, BUCKETS - 1)
    inside_NT = bucket_N[:, None] == torch.arange(BUCKETS, device=time_N.device)
    inside_NT &= scored_N[:, None]
    return (inside_NT & right_N[:, None]).sum(0), inside_NT.sum(0)
