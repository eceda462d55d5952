"""Standard errors of means whose samples come in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def clustered_ratio(
    numerators: Sequence[float] | Tensor, denominators: Sequence[float] | Tensor
) -> tuple[float, float | None]:
    """sum(numerators) / sum(denominators), say nats per token, and its standard error.

    An entry is one cluster (a window, a text): what lies inside it may be correlated. Linearised
    (delta method), with the small-sample factor n / (n - 1). The error is None for one cluster.

    Raises:
        ValueError: the denominators sum to 0.
    """
    top = torch.as_tensor(numerators, dtype=torch.float64)
    bottom = torch.as_tensor(denominators, dtype=torch.float64)
    used = bottom != 0
    top, bottom = top[used], bottom[used]
    count, total = len(bottom), bottom.sum().item()
    if total == 0:
        raise ValueError("there is nothing to average: give at least one text with tokens")
    value = top.sum().item() / total
    if count == 1:
        return value, None
    spread = (top - value * bottom).square().sum().item()
    return value, math.sqrt(spread * count / (count - 1)) / total
