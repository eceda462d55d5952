"""The rules that ship with the package, by the door of `rules.py`.

Those of Dream order positions: origin, maskgit_plus, topk_margin, entropy; one of LLaDA draws
them: random (its low_confidence is maskgit_plus); one of SDAR takes them from the left: sequential.
Four let confidence decide how many tokens a step commits: threshold, factor (Fast-dLLM),
entropy_bound (EB-Sampler), entropy_threshold (dParallel; surest_anywhere of it is d3LLM's). One
holds back what they, or the schedule, would commit: agreement.
The published modes of feedback are rules too; their mathematics is in `soft_mask.py`. Imports no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rule_inputs import MaskedRows, TextSoFar
from .rules import commit_rule, feedback_rule, stopping_rule

if TYPE_CHECKING:
    from torch import Tensor


@commit_rule("origin", returns="chances", top=1, batched=True)
def origin(rows: MaskedRows) -> Tensor:
    """Each mask by a coin of its own, as in the forward process."""
    return rows.share_N


@commit_rule("maskgit_plus", top=1, batched=True)
def maskgit_plus(rows: MaskedRows) -> Tensor:
    """The likeliest token first."""
    return rows.probability_N


@commit_rule("topk_margin", top=2, batched=True)
def topk_margin(rows: MaskedRows) -> Tensor:
    """The token first that leads the second one by most."""
    return rows.margin_N


@commit_rule("entropy", top=1, batched=True)
def entropy(rows: MaskedRows) -> Tensor:
    """The position of least entropy first."""
    return -rows.entropy_N


@commit_rule("random", top=1, batched=True, draws=True)
def random(rows: MaskedRows) -> Tensor:
    """Positions by lot, however sure they are."""
    return rows.uniform_N


@commit_rule("sequential", top=1, batched=True)
def sequential(rows: MaskedRows) -> Tensor:
    """From the left, however sure they are."""
    return -rows.position_N.float()


@commit_rule("threshold", returns="rows", top=1, batched=True)
def threshold(rows: MaskedRows, *, threshold: float, threshold_end: float | None = None) -> Tensor:
    """Every token that is likelier than this."""
    limits_R = [threshold] * len(rows.masks_R)
    if threshold_end is not None:
        limits_R = [
            threshold_end + (threshold - threshold_end) * left / masks
            for left, masks in zip(rows.left_R, rows.masks_R, strict=True)
        ]
    return rows.probability_N > rows.spread(limits_R)


@commit_rule("factor", returns="rows", top=1, batched=True)
def factor(rows: MaskedRows, *, factor: float) -> Tensor:
    """The largest n with (n + 1)(1 - p_n) < factor, p in descending order."""
    none = float("-inf")
    chance_RL = rows.table(rows.probability_N.masked_fill(~rows.open_N, none), none)
    chance_RL, place_RL = chance_RL.sort(dim=1, descending=True, stable=True)
    rank_RL = chance_RL.new_ones(chance_RL.shape).cumsum(1)
    taken_RL = (rank_RL + 1) * (1 - chance_RL) < factor
    return rows.flat(taken_RL.new_zeros(taken_RL.shape).scatter(1, place_RL, taken_RL))


@commit_rule("entropy_bound", returns="rows", top=1, batched=True)
def entropy_bound(rows: MaskedRows, *, entropy_bound: float) -> Tensor:
    """In ascending order while the entropies before a token sum to at most the bound.

    Hence always the first.
    """
    most = float("inf")
    entropy_RL = rows.table(rows.entropy_N.masked_fill(~rows.open_N, most), most)
    entropy_RL, place_RL = entropy_RL.sort(dim=1, stable=True)
    before_RL = entropy_RL.cumsum(1).roll(1, dims=1)
    before_RL[:, 0] = 0
    taken_RL = (before_RL <= entropy_bound) & (entropy_RL < most)
    return rows.flat(taken_RL.new_zeros(taken_RL.shape).scatter(1, place_RL, taken_RL))


@commit_rule("entropy_threshold", returns="rows", top=1, batched=True)
def entropy_threshold(
    rows: MaskedRows, *, entropy_threshold: float, surest_anywhere: bool = False
) -> Tensor:
    """Every position whose entropy is below this, in nats; and the surest one of open blocks."""
    # Rounding can make the entropy of a certain token negative, and nothing lies below 0.
    entropy_N = rows.entropy_N.clamp_min(0)
    taken_N = entropy_N < entropy_threshold
    if not surest_anywhere:
        return taken_N
    most = float("inf")
    entropy_RL = rows.table(entropy_N.masked_fill(~rows.open_N, most), most)
    surest_R1 = entropy_RL.argmin(dim=1, keepdim=True)
    surest_RL = rows.table(taken_N.new_zeros(taken_N.shape), False).scatter(1, surest_R1, True)
    return taken_N | rows.flat(surest_RL)


@commit_rule("agreement", returns="rows", top=1, batched=True, state={"token": -1, "led": 0})
def agreement(rows: MaskedRows, *, agreement: int) -> Tensor:
    """A token that has led in so many forwards running, this one included."""
    led_N = rows.state["led"] * (rows.tokens_N == rows.state["token"]) + 1
    rows.state.update(token=rows.tokens_N, led=led_N)
    return led_N >= agreement


@feedback_rule("topk", top=1, batched=True)
def topk(rows: MaskedRows) -> Tensor:
    """The leading tokens, the more the lower the entropy."""
    return rows.confidence(rows.entropy_N)


@feedback_rule("temperature", top=1, batched=True, streamed=True)
def temperature(rows: MaskedRows) -> Tensor:
    """All tokens as a softmax at a temperature weighs them, the more the lower its entropy."""
    return rows.confidence(rows.entropy_N)


@stopping_rule("end")
def end(text: TextSoFar) -> int | None:
    """An end token, once everything before it is decided."""
    (ends,) = text.ends_L.nonzero()
    if not len(ends) or text.masked_L[: ends[0]].any():
        return None
    return int(ends[0])


@stopping_rule("first_end")
def first_end(text: TextSoFar) -> int | None:
    """An end token, whatever is still masked before it: the early stop of d3LLM."""
    (ends,) = text.ends_L.nonzero()
    return int(ends[0]) if len(ends) else None


# Values of `alg`; of `stop_rule`; settings of their own; values of the soft-mask `mode`.
UNMASK_RULES = (
    *(origin.name, maskgit_plus.name, topk_margin.name, entropy.name),
    *(random.name, sequential.name),
)
STOP_RULES = (end.name, first_end.name)
COMMIT_RULES = (threshold.name, factor.name, entropy_bound.name, entropy_threshold.name)
SOFT_MASK_MODES = (topk.name, temperature.name)
