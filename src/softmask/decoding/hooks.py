"""Dream's hooks: what callers may look at, and change, in every step.

Shape suffixes: B batch, L length, P = B * L, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import require, shown

LogitsHook = Callable[[int, Tensor, Tensor], Tensor]
TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Hooks:
    """Dream's hooks, which see the whole canvas, of this shape, and all logits.

    What they return is looked at: on a GPU an index out of range makes the device unusable for the
    whole process.
    """

    shape: tuple[int, int]
    vocab_size: int
    logits: LogitsHook | None = None
    tokens: TokensHook | None = None

    def begin(self, canvas_BL: Tensor) -> Tensor:
        """(B, L) what the second hook makes of the canvas before the first step.

        Raises:
            ValueError: that is no canvas.
        """
        if self.tokens is None:
            return canvas_BL
        return self._canvas(self.tokens(None, canvas_BL, None))

    def read(self, step: int, canvas_P: Tensor, logits_PV: Tensor) -> Tensor:
        """(P, V) what the first hook makes of the logits.

        Raises:
            ValueError: that is none of the same shape.
        """
        if self.logits is None:
            return logits_PV
        canvas_BL = canvas_P.clone().view(self.shape)
        found_BLV = self.logits(step, canvas_BL, logits_PV.view(*self.shape, -1))
        shape = (*self.shape, self.vocab_size)
        require(
            _has_shape(found_BLV, shape) and found_BLV.is_floating_point(),
            f"a logits hook must return logits, numbers of the shape {shape}, not "
            f"{_what(found_BLV)}",
        )
        return found_BLV.flatten(0, 1)

    def write(self, step: int, canvas_P: Tensor, logits_PV: Tensor) -> Tensor:
        """(P,) what the second hook makes of the canvas, on memory of its own.

        Raises:
            ValueError: that is no canvas.
        """
        if self.tokens is None:
            return canvas_P
        canvas_BL = canvas_P.view(self.shape)
        found_BL = self._canvas(self.tokens(step, canvas_BL, logits_PV.view(*self.shape, -1)))
        return found_BL.to(canvas_P).flatten().clone()

    def _canvas(self, found_BL: Any) -> Tensor:
        """What the second hook returned, if it is a canvas of this shape."""
        require(
            _has_shape(found_BL, self.shape) and "int" in str(found_BL.dtype),
            f"a tokens hook must return the canvas, token ids of the shape {self.shape}, not "
            f"{_what(found_BL)}",
        )
        least, most = int(found_BL.min()), int(found_BL.max())
        require(
            least >= 0 and most < self.vocab_size,
            "a tokens hook returned a token id outside of the model's vocabulary of "
            f"{self.vocab_size}",
        )
        return found_BL


def _has_shape(found: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(found, Tensor) and tuple(found.shape) == shape


def _what(found: Any) -> str:
    """A value as an error tells it: of a tensor its type and shape."""
    if not isinstance(found, Tensor):
        return shown(found)
    return f"{str(found.dtype).removeprefix('torch.')} of the shape {tuple(found.shape)}"
