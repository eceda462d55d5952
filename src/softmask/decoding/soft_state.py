"""What soft-masking remembers between two steps, position by position.

Every masked position keeps k ids, k weights and its lambda, 20 bytes at k = 3, whether or not a
step looks at it again: with a block cache most steps do not. (Mode "temperature" keeps an embedding
instead.) Shape suffixes: P positions, T computed positions, M updated ones, D width, K tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..soft_mask import Mixture, SoftTokens

# Everything it holds beside `is_used`.
TENSORS = ("ids_PK", "weights_PK", "lambda_P", "added_PD")


class SoftState:
    """What every masked position is to the next forward: k ids and weights, and lambda."""

    def __init__(self, positions: int, device: torch.device) -> None:
        self.ids_PK = torch.zeros(positions, 1, dtype=torch.long, device=device)
        self.weights_PK = torch.ones(positions, 1, dtype=torch.float32, device=device)
        self.lambda_P = torch.zeros(positions, dtype=torch.float32, device=device)
        self.added_PD: Tensor | None = None  # mode "temperature"
        self.is_used = False

    def forget(self, own: slice) -> None:
        """Plain positions again."""
        self.weights_PK[own] = 0
        self.weights_PK[own, 0] = 1
        self.lambda_P[own] = 0
        if self.added_PD is not None:
            self.added_PD[own] = 0

    def move(self, to_N: Tensor, from_N: Tensor, room: slice) -> None:
        """Takes positions of a room along to others of it; the rest of it is plain again."""
        names = [name for name in TENSORS if getattr(self, name) is not None]
        moved = {name: getattr(self, name)[from_N] for name in names}
        self.forget(room)
        for name, values in moved.items():
            getattr(self, name)[to_N] = values

    def put(self, rows_M: Tensor, mixed: Mixture) -> None:
        """Remembers what these positions become."""
        self.is_used = True
        more = mixed.ids_NK.shape[1] - self.ids_PK.shape[1]
        if more > 0:
            self.ids_PK, self.weights_PK = (
                F.pad(self.ids_PK, (0, more)),
                F.pad(self.weights_PK, (0, more)),
            )
        padding = (0, max(-more, 0))
        self.ids_PK[rows_M] = F.pad(mixed.ids_NK, padding)
        self.weights_PK[rows_M] = F.pad(mixed.weights_NK, padding)
        self.lambda_P[rows_M] = mixed.lambda_N
        if mixed.added_ND is not None:
            if self.added_PD is None:
                size = (len(self.lambda_P), mixed.added_ND.shape[1])
                self.added_PD = mixed.added_ND.new_zeros(size)
            self.added_PD[rows_M] = mixed.added_ND

    def save(self) -> dict[str, Any]:
        """Everything it holds."""
        values = {name: getattr(self, name) for name in TENSORS}
        copies = {name: value.clone() for name, value in values.items() if value is not None}
        return {"is_used": self.is_used, "added_PD": None, **copies}

    def restore(self, saved: dict[str, Any]) -> None:
        """As it was when it was saved."""
        for name, value in saved.items():
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)

    def tokens(self, ids_1T: Tensor, flat_T: Tensor, masked_T: Tensor) -> SoftTokens:
        """The soft tokens of these positions; what is not masked is itself with weight 1."""
        ids_TK, masked_T1 = self.ids_PK[flat_T], masked_T[:, None]
        ids_TK[:, 0] = ids_1T[0]
        plain_K = torch.zeros_like(self.weights_PK[0])
        plain_K[0] = 1
        weights_TK = torch.where(masked_T1, self.weights_PK[flat_T], plain_K)
        added_1TD = None
        if self.added_PD is not None:
            added_1TD = (self.added_PD[flat_T] * masked_T1)[None]
        return SoftTokens(ids_TK[None], weights_TK[None], added_1TD)
