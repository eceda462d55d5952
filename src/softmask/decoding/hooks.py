"""Dream's hooks: what callers may look at, and change, in every step.

Shape suffixes: B batch, L length, V vocabulary.
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
