"""The masked-diffusion loss, with and without soft-masking, for pretraining and fine-tuning.

Shape suffixes: B batch, L length, N masked positions (flat indices into B * L), T time buckets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..models import DreamModel
from .config import WEIGHTINGS

# Equal buckets of t in [0, 1] over which right predictions are counted.
BUCKETS = 10


class Loss(NamedTuple):
    """The loss of one forward, and values for the log; all on the device."""

    value: Tensor
    nats: Tensor  # plain mean cross-entropy, nats per masked token
    entropy: Tensor | None  # mean entropy that pass 1 saw at the masks; None in one pass
    mixed: Tensor | None  # mean lambda
    hits_T: Tensor  # masked tokens whose most likely prediction is right, by t of their row
    total_T: Tensor  # masked tokens, by t of their row


def masked_diffusion_loss(
    model: nn.Module,
    noisy_BL: Tensor,
    ids_BL: Tensor,
    masked_BL: Tensor,
    times_B: Tensor,
    *,
    scored_BL: Tensor | None = None,
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

    Under DistributedDataParallel ranks may differ in `soft` and `feedback_passes`; under FSDP2 they
    may not, as every forward gathers parameters from all ranks. Gradient checkpointing must be the
    non-reentrant kind, transformers' default: the other one warns in pass 1, where no input has a
    gradient.

    Args:
        model: a DreamModel, or a PeftModel or DistributedDataParallel around one.
        noisy_BL, ids_BL: corrupted and true ids. masked_BL: which positions are predicted;
            position 0 never counts under the shift: nothing precedes it.
        scored_BL: which of the masked positions count in the loss; None: all. All get feedback.
        times_B: t of each row.
        weighting: "mean": mean over the masked tokens of the batch; "elbo": sum over masked
            tokens of CE / t, per token of the batch, the bound itself; "published": mean over
            the masked tokens of CE / t, as the released training, whose rows share one t.

    Raises:
        ValueError: `soft` on a model without soft-mask parameters, an unknown weighting, or no
            DreamModel inside `model`.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
    dream = inner(model)
    if soft and dream.soft_mask is None:
        raise ValueError("soft-mask training needs a model with soft-mask parameters")
    if dream.config.logit_shift:
        masked_BL = masked_BL.clone()
        masked_BL[:, 0] = False
    rows_N = masked_BL.flatten().nonzero().squeeze(1)
    inputs = {"attention_mask": attention_mask_BL, "rows": rows_N}
    seen = None
    if soft:
        with torch.no_grad():
            for _ in range(feedback_passes):
                first = _without_ddp(model)(noisy_BL, feedback=seen, observe=True, **inputs)
                seen = first.feedback
    labels_N, time_N = ids_BL.flatten()[rows_N], times_B[rows_N // ids_BL.shape[1]]
    output = model(noisy_BL, feedback=seen, labels=labels_N, **inputs)
    scored_N = torch.ones_like(rows_N) if scored_BL is None else scored_BL.flatten()[rows_N]
    losses_N = output.losses * scored_N
    count = scored_N.sum().clamp_min(1)
    nats = losses_N.sum() / count
    if weighting == "mean":
        value = nats
    elif weighting == "published":
        value = (losses_N / time_N).sum() / count
    else:
        value = (losses_N / time_N).sum() / ids_BL.numel()
    return Loss(
        value,
        nats.detach(),
        _mean(output.entropies) if soft else None,
        _mean(output.lambdas) if soft else None,
        *_hits(output.predicted == labels_N, scored_N.bool(), time_N),
    )


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


def _mean(values_N: Tensor) -> Tensor:
    """The mean; 0, with a gradient of 0, where a batch has no masked token."""
    return values_N.sum() / max(len(values_N), 1)


def _hits(right_N: Tensor, scored_N: Tensor, time_N: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) right predictions and (T,) predictions by bucket of t; no host synchronisation."""
    bucket_N = (time_N * BUCKETS).long().clamp(0, BUCKETS - 1)
    inside_NT = bucket_N[:, None] == torch.arange(BUCKETS, device=time_N.device)
    inside_NT &= scored_N[:, None]
    return (inside_NT & right_N[:, None]).sum(0), inside_NT.sum(0)
