"""What rules of decoding see: masked positions, or one text. Values are computed when asked for.

Imports no torch. Shape suffixes: N masked positions, M some of them, K leading tokens, R texts,
L columns of one text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# What only a batched rule can make sense of.
SEVERAL_TEXTS = ("left_R", "masks_R", "spread", "table", "flat")


# Sums of probabilities miss 1 by as much.
ROUNDING = 1e-3


def are_shares(values_N: Tensor) -> bool:
    """Whether all values lie in [0, 1] up to rounding; NaN does not. Waits for the device."""
    return bool(((values_N >= -ROUNDING) & (values_N <= 1 + ROUNDING)).all())


class _Lazy:
    """Values by name, each computed when a rule first asks for it."""

    def __init__(
        self, sources: Mapping[str, Callable[[], Any]], state: dict[str, Any] | None = None
    ) -> None:
        self._sources, self.state = sources, {} if state is None else state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._sources:
            raise ValueError(f"a rule cannot read {name} here: there is {', '.join(self._sources)}")
        value = self._sources[name]()
        setattr(self, name, value)
        return value


class MaskedRows(_Lazy):
    """What a commit or a feedback rule sees of N masked positions.

    Of one text, and of those of its masks that the step may commit (or that stay masked); with
    `batched` of several texts.

    Attributes:
        tokens_N: the token that would be committed; for feedback the likeliest one.
        probability_N: its probability, for a commit rule after temperature and filters.
        entropy_N: of the same distribution, in nats.
        margin_N: how far the likeliest token leads the second one, as a difference.
        top_ids_NK: the leading tokens, likeliest first: as many as the rule's `top` at least.
        top_probability_NK: their probabilities.
        position_N: column in the text, prompt included.
        block_position_N: columns behind the first mask of the current block.
        step_N: steps of the text that are over.
        left_N: share of its masks that are left, in (0, 1].
        lambda_N: weight of the feedback in the input that this was predicted from.
        commits_N: commit rules: how many the schedule would commit in this step.
        share_N: commit rules: the schedule's chance of each mask, 1 - s / t.
        uniform_N: commit rules with `draws`: a random number in [0, 1) for each.
        open_N: batched commit rules: whether the step may commit it.
        top_logits_NK: feedback rules: the leading logits.
        logits_NV: feedback rules with `dense`: all logits.
        offset, steepness, temperature, entropy_temperature, token_temperature: feedback rules: the
            parameters of these names; `entropy_N` is at the entropy's temperature already.
        confidence: feedback rules: the published confidence, a function of (N,) entropies.
        entropy_of: feedback rules: the entropy of logits, a function of (N, V) logits.
        tempered: feedback rules: logits over a temperature, a function of both.
        state: what the rule keeps at these positions; what it writes here is there the next time.
    """

    tokens_N: Tensor
    probability_N: Tensor
    entropy_N: Tensor
    margin_N: Tensor
    top_ids_NK: Tensor
    top_probability_NK: Tensor
    position_N: Tensor
    block_position_N: Tensor
    step_N: Tensor
    left_N: Tensor
    lambda_N: Tensor
    commits_N: Tensor
    share_N: Tensor
    uniform_N: Tensor
    open_N: Tensor
    top_logits_NK: Tensor
    logits_NV: Tensor
    offset: Tensor
    steepness: Tensor
    temperature: Tensor
    entropy_temperature: float
    token_temperature: float
    confidence: Callable[[Tensor], Tensor]
    entropy_of: Callable[[Tensor], Tensor]
    tempered: Callable[[Tensor, float], Tensor]
    # Batched rules: what tells texts apart.
    left_R: Sequence[int]
    masks_R: Sequence[int]
    spread: Callable[[Sequence[float]], Tensor]
    table: Callable[[Tensor, float], Tensor]
    flat: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, state: dict[str, Any] | None = None, **values: Any) -> MaskedRows:
        """Rows with these values: a rule's test needs no model."""
        return cls({name: lambda value=value: value for name, value in values.items()}, state)  # type: ignore[misc]

    def at(self, index: slice | Tensor, state: dict[str, Any]) -> MaskedRows:
        """Rows of one text, or all of them, with the state that is kept there."""

        def part(name: str) -> Callable[[], Any]:
            return lambda: getattr(self, name)[index] if "_N" in name else getattr(self, name)

        whole = isinstance(index, slice)
        names = [name for name in self._sources if whole or name not in SEVERAL_TEXTS]
        return MaskedRows({name: part(name) for name in names}, state)


class TextSoFar(_Lazy):
    """What a stopping rule sees of one text after a step, on the host.

    Attributes:
        ids_L: token ids; the mask's where nothing is decided.
        masked_L: bool, where nothing is decided.
        generated_L: bool, what was masked at first.
        ends_L: bool, generated end tokens.
        entropy_L, probability_L: what the step read at masked positions; NaN where it read nothing.
        step: steps that are over, this one included.
        left, masks: masks now, and at first.
        state: what the rule keeps of this text, plain values.
    """

    ids_L: np.ndarray
    masked_L: np.ndarray
    generated_L: np.ndarray
    ends_L: np.ndarray
    entropy_L: np.ndarray
    probability_L: np.ndarray
    step: int
    left: int
    masks: int
