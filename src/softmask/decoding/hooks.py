"""Dream's hooks: what callers may look at, and change, in every step.

Shape suffixes: B batch, L length, P = B * L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LogitsHook = Callable[[int, Tensor, Tensor], Tensor]
TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Hooks:
    """Dream's hooks, which see the whole canvas, of this shape, and all logits."""

    shape: tuple[int, int]
    logits: LogitsHook | None = None
    tokens: TokensHook | None = None

    def read(self, step: int, canvas_P: Tensor, logits_PV: Tensor) -> Tensor:
        """(P, V) what the first hook makes of the logits."""
        if self.logits is None:
            return logits_PV
        canvas_BL = canvas_P.clone().view(self.shape)
        return self.logits(step, canvas_BL, logits_PV.view(*self.shape, -1)).flatten(0, 1)

    def write(self, step: int, canvas_P: Tensor, logits_PV: Tensor) -> Tensor:
        """(P,) what the second hook makes of the canvas, on memory of its own."""
        if self.tokens is None:
            return canvas_P
        canvas_BL = canvas_P.view(self.shape)
        found_BL = self.tokens(step, canvas_BL, logits_PV.view(*self.shape, -1))
        return found_BL.flatten().clone()
