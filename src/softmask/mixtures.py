"""How a mask becomes a mixture: weights of the mask's embedding m and of the predicted one, Delta.

Delta = sum_i q_i E[i] is the mean embedding of the tokens that are fed back. Every mixture is
a * m + b * Delta, so that a position keeps token ids and weights and no embedding; what a mixture
is called says how (a, b) follow from lambda:

    linear      1 - lambda, lambda                                            as published
    norm_kept   the same, stretched to the mean norm of what it is made of    ours
    spherical   on the arc from m towards Delta, at the norm of m             arXiv 2609.37391
    additive    1, lambda: the mask is not lessened               IterSmooth, arXiv 2510.08666

lambda = scale * r(t) * trust, where the trust, in [0, 1], is another table's:

    sigmoid     what the mode says, sigmoid(steepness * (-H - offset))        as published
    constant    1                                                             arXiv 2609.37391
    entropy     H / ln V: the less is known, the more is fed back             RCD, arXiv 2601.22954

Shape suffixes: N rows, K tokens that are fed back, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# Below this sine of the angle between m and Delta the arc is a straight line up to 5e-5; near a
# half turn, where its sine is as small, no arc is the shortest. A line that is stretched serves.
LEAST_SINE = 0.01
# Shortest mixture of unit vectors that is still stretched to length 1: bounds the gradient. Two
# opposite vectors cancel, and have no direction in between.
SHORTEST = 1e-3


class Ends:
    """What a mixture lies between, in fp32, each computed when it is asked for.

    Args:
        own_N: the tokens themselves, masks.
        shares: (N, K) of the tokens `ids_NK`, or (N, V) of all.
    """

    def __init__(
        self, own_N: Tensor, ids_NK: Tensor | None, shares: Tensor, table_VD: Tensor
    ) -> None:
        self._own_N, self._ids_NK, self._shares, self._table_VD = own_N, ids_NK, shares, table_VD

    @classmethod
    def blended(cls, own_N: Tensor, table_VD: Tensor, blended_NX: Tensor) -> Ends:
        """Of all tokens, where Delta (N, D), and perhaps the mean norm behind it, are there."""
        ends, width = cls(own_N, None, blended_NX, table_VD), table_VD.shape[1]
        ends.delta_ND = blended_NX[:, :width]
        if blended_NX.shape[1] > width:
            ends.parts_norm_N = blended_NX[:, width]
        return ends

    @cached_property
    def mask_ND(self) -> Tensor:
        """m, the masks' own embeddings."""
        return F.embedding(self._own_N, self._table_VD).float()

    @cached_property
    def delta_ND(self) -> Tensor:
        """Delta."""
        if self._ids_NK is None:
            return self.weighted(self._shares)
        return torch.einsum("nk,nkd->nd", self._shares, self._vectors_NKD)

    @cached_property
    def parts_norm_N(self) -> Tensor:
        """Mean norm of the embeddings that Delta is made of."""
        if self._ids_NK is None:
            return self._shares @ self._table_VD.float().norm(dim=1)
        return (self._shares * self._vectors_NKD.norm(dim=-1)).sum(1)

    @cached_property
    def _vectors_NKD(self) -> Tensor:
        assert self._ids_NK is not None
        return F.embedding(self._ids_NK, self._table_VD).float()

    def scaled_delta(self, weight_N: Tensor) -> Tensor:
        """(N, D) weight * Delta, of shares of the whole vocabulary: one product with the table."""
        if "delta_ND" in vars(self):
            return weight_N[:, None] * self.delta_ND
        return self.weighted(weight_N[:, None] * self._shares)

    def weighted(self, weights_NV: Tensor) -> Tensor:
        """(N, D) the sum over the vocabulary, computed in the table's dtype."""
        return (weights_NV.to(self._table_VD.dtype) @ self._table_VD).float()


# (lambda_N, what it lies between) -> (N,) weight of the mask and (N,) weight of Delta.
Mixing = Callable[[Tensor, Ends], tuple[Tensor, Tensor]]


def linear(lambda_N: Tensor, _ends: Ends) -> tuple[Tensor, Tensor]:
    """The straight line. Embeddings are nearly orthogonal: it is 20 to 40 % shorter between."""
    return 1 - lambda_N, lambda_N


def additive(lambda_N: Tensor, _ends: Ends) -> tuple[Tensor, Tensor]:
    """The mask as it is, and Delta beside it."""
    return torch.ones_like(lambda_N), lambda_N


def norm_kept(lambda_N: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """The line's direction, at the mean norm of its parts."""
    rest_N = 1 - lambda_N
    mixed_ND = rest_N[:, None] * ends.mask_ND + lambda_N[:, None] * ends.delta_ND
    mean_N = rest_N * ends.mask_ND.norm(dim=1) + lambda_N * ends.parts_norm_N
    stretch_N = mean_N / mixed_ND.norm(dim=1).clamp_min(1e-12)
    return rest_N * stretch_N, lambda_N * stretch_N


def spherical(lambda_N: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """The shortest arc from m to the direction of Delta, at the norm of m.

    With unit vectors u, d at the angle w: |m| (sin((1 - lambda) w) u + sin(lambda w) d) / sin w.
    The sum's own length is sin w, and dividing by the length itself holds the norm whatever was
    rounded, and where the line takes the arc's place.
    """
    norm_N, length_N = (
        ends_ND.norm(dim=1).clamp_min(1e-12) for ends_ND in (ends.mask_ND, ends.delta_ND)
    )
    mask_ND, delta_ND = ends.mask_ND / norm_N[:, None], ends.delta_ND / length_N[:, None]
    # Kahan's angle: exact near 0 and a half turn, and smooth there, unlike the cosine's inverse.
    apart_N, sum_N = (mask_ND - delta_ND).norm(dim=1), (mask_ND + delta_ND).norm(dim=1)
    angle_N = 2 * torch.atan2(apart_N, sum_N)
    is_arc_N = torch.sin(angle_N) >= LEAST_SINE
    of_mask_N = torch.where(is_arc_N, torch.sin((1 - lambda_N) * angle_N), 1 - lambda_N)
    of_delta_N = torch.where(is_arc_N, torch.sin(lambda_N * angle_N), lambda_N)
    mixed_ND = of_mask_N[:, None] * mask_ND + of_delta_N[:, None] * delta_ND
    stretch_N = 1 / mixed_ND.norm(dim=1).clamp_min(SHORTEST)
    # Without feedback a mask is itself to the last bit.
    of_mask_N = torch.where(lambda_N == 0, 1.0, of_mask_N * stretch_N)
    return of_mask_N, of_delta_N * stretch_N * norm_N / length_N


# Those that read `parts_norm_N`.
READ_NORMS = ("norm_kept",)
MIXTURES: dict[str, Mixing] = {
    "linear": linear,
    "norm_kept": norm_kept,
    "spherical": spherical,
    "additive": additive,
}
# (the mode's confidence (N,), what computes the entropy (N,) in nats, V) -> (N,) trust.
Trusting = Callable[[Tensor, Callable[[], Tensor], int], Tensor]
WEIGHTS: dict[str, Trusting] = {
    "sigmoid": lambda confidence_N, _entropy, _size: confidence_N,
    "constant": lambda confidence_N, _entropy, _size: torch.ones_like(confidence_N),
    # The entropy of equal shares may be rounded to a little more than ln V.
    "entropy": lambda _, entropy, size: (entropy() / math.log(max(size, 2))).clamp_max(1),
}
