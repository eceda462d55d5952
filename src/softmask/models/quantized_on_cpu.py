"""bitsandbytes' linear layers in 8 and 4 bits on CPUs without units for such products.

The weights alone are rounded: they become float32 a piece at a time, for the product of
`linear.py`. bitsandbytes rounds the tokens too in 8 bits and calls a dozen kernels; in 4 bits it
makes the whole matrix float32 at each call, memory that the system has to clear. Times of float32's
product with 33 rows, two cores with AVX2 (8 bits one thread, 4 bits two; medians of 9 and 5):

| matrix | 8 bits | by bitsandbytes | 4 bits | by bitsandbytes |
|---|---|---|---|---|
| 704 x 256 | 1.05 | 1.49 | | |
| 4864 x 896 | 1.17 | 1.36 | 1.8 | 2.3 |
| 18944 x 3584 | | | 1.9 | 5.2 |

With 256 rows of the last it is 1.1 and 1.9 times in 4 bits.
Shape suffixes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor

from .linear import multiply

# Weights that are in float32 at once: 16 MB.
PIECE = 2**22
# Private: the public list of what a CPU has is newer than the oldest torch that we take.
HAS_INT8 = bool(torch.cpu._is_vnni_supported())
LARGEST = 127  # what the largest weight of a row became


class Linear8bit(Linear8bitLt):
    """As bitsandbytes has it, but for products in float32 on a CPU that has none of 8 bits."""

    weight: Any  # bitsandbytes' own, with a scale for each row

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) of (..., K)."""
        weight_NK = self.weight.data
        if HAS_INT8 or x.dtype != torch.float32 or weight_NK.device.type != "cpu":
            return super().forward(x)
        rows = _rows(weight_NK.shape[1])
        output = _product(x, (piece.to(x.dtype) for piece in weight_NK.split(rows)))
        output *= self.weight.SCB / LARGEST
        return output if self.bias is None else output.add_(self.bias)


class LinearNF4(Linear4bit):
    """As bitsandbytes has it, but for products in float32 on a CPU that has none of 4 bits."""

    weight: Any  # bitsandbytes' own, with a scale for each block

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) of (..., K)."""
        has_units = getattr(self, "support_avx512bf16_for_cpu", False)
        if has_units or x.dtype != torch.float32 or self.weight.device.type != "cpu":
            return super().forward(x)
        output = _product(x, self._pieces())
        return output if self.bias is None else output.add_(self.bias)

    def _pieces(self) -> Iterator[Tensor]:
        """The weights, some rows at a time."""
        state = self.weight.quant_state
        outputs, width = state.shape
        # Their own scales are rounded too, 256 of them at once.
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        packed_NK, scales_NB = self.weight.data.view(outputs, -1), scales.view(outputs, -1)
        rows = _rows(width)
        for packed, own in zip(packed_NK.split(rows), scales_NB.split(rows), strict=True):
            # For a kernel of its own, which takes both flat.
            yield torch.ops.bitsandbytes.dequantize_4bit.default(
                packed.reshape(-1),
                own.reshape(-1),
                state.blocksize,
                state.quant_type,
                (len(packed), width),
                torch.float32,
            )


def _rows(width: int) -> int:
    """How many rows of weights of this width a piece has."""
    return max(1, PIECE // width)


def _product(x: Tensor, pieces: Iterator[Tensor]) -> Tensor:
    """(..., N) of (..., K) and the weights' rows, some at a time."""
    outputs = [multiply(x, piece) for piece in pieces]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
