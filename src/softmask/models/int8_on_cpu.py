"""bitsandbytes' linear layer in 8 bits on CPUs without units for products of 8 bits.

There its product rounds the tokens and calls a dozen kernels, for no gain. Here the weights alone
are in 8 bits: they become float32 a piece at a time, for the product of `linear.py`, whose outputs
are scaled. On two cores with AVX2 (processor time, one thread, medians of 9) a matrix of 704 x 256
with 33 rows takes 1.05 times float32's time, and by bitsandbytes 1.49; 4864 x 896: 1.17 and 1.36;
with 256 rows 1.05 and 1.04. Tokens are not rounded, so the error is that of the weights.
Shape suffixes: N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
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
        rows = max(1, PIECE // weight_NK.shape[1])
        pieces = [multiply(x, piece.to(x.dtype)) for piece in weight_NK.split(rows)]
        output = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
        output *= self.weight.SCB / LARGEST
        return output if self.bias is None else output.add_(self.bias)
