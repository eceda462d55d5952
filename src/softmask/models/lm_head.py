"""From hidden states to what a step needs of their logits, in one pass and without keeping them.

Greedy decoding and the feedback of soft-masking read four numbers off a row of V logits: the k
largest with their ids, the logarithm of the sum of exponentials, and the entropy. They can be kept
up to date while the vocabulary goes by, so that no (N, V) tensor ever exists. So can the mean
embedding that mode "temperature" feeds back: a product more for each piece.
Shape suffixes: N rows, V vocabulary, C columns of a piece of it, D width, K leading tokens, T
temperatures, X columns of what is blended: the width, and one for the mean norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..logits import CHUNK_ROWS, FLOOR, LogitStatistics, joined, statistics, tempered, top_k
from .linear import PLAIN, multiply

# Most logits that are computed at once where they are only read and not returned: 256 MB in
# fp32, 441 rows of a vocabulary of 152k.
CHUNK_LOGITS = 2**26
# Logits that a thread has of a streamed piece of the vocabulary on a CPU. They and their
# exponentials are 2.6 MB. Small pieces cost waiting of threads for each other, large ones leave the
# second-level cache. 109 rows of width 512 and 152k columns, two threads with 0.5 MB of it each:
# 195, 208 and 179 ms in pieces of a quarter, half and all of this size (286, 230 and 201 where
# threads sleep while they wait); 192 rows with 2 MB of it each: 183 and 221 ms in a quarter and
# twice of it.
PIECE_LOGITS = 320 * 1024
# And columns at most of a piece: a product of few rows no longer gains from wider ones.
PIECE_COLUMNS = 8192

# Floors some of a piece of the logits in place, which begins at this row and this column.
Forbid = Callable[[Tensor, int, int], None]


@dataclass(frozen=True)
class Blend:
    """What rows of logits make of a table: sum_v softmax(z / temperature)_v table_v, (N, D).

    Args:
        norms: also the mean of the table's norms under the same weights, as a last column.
    """

    table_VD: Tensor
    temperature: float
    norms: bool = False

    @cached_property
    def norms_V(self) -> Tensor:
        """The norms of the table's rows, in fp32."""
        return self.table_VD.float().norm(dim=1)

    def of(self, weights_NC: Tensor, start: int = 0) -> Tensor:
        """(N, X) the sum over the columns from `start` on, in fp32; the product is computed in the
        table's dtype."""
        columns = slice(start, start + weights_NC.shape[1])
        sum_ND = (weights_NC.to(self.table_VD.dtype) @ self.table_VD[columns]).float()
        if not self.norms:
            return sum_ND
        return torch.cat([sum_ND, (weights_NC @ self.norms_V[columns])[:, None]], dim=1)

    def of_logits(self, logits_NV: Tensor) -> Tensor:
        """(N, X) of logits that exist already, a few rows at a time."""
        parts = [
            self.of(tempered(chunk_CV.float(), self.temperature).softmax(-1))
            for chunk_CV in logits_NV.split(CHUNK_ROWS)
        ]
        return torch.cat(parts)


@torch.no_grad()
def read_head(
    head: nn.Module,
    hidden_ND: Tensor,
    vocabulary: int,
    k: int,
    bias_V: Tensor | None = None,
    forbid: Forbid | None = None,
    temperature: float = 1.0,
    temperatures: Sequence[float] = (),
    blend: Blend | None = None,
) -> LogitStatistics:
    """The statistics of `head(hidden) + bias`, whose logits are never whole.

    A plain linear head on a CPU is streamed over the vocabulary; any other (quantised, adapted,
    offloaded, on an accelerator) is called for chunks of rows.

    Args:
        temperature: of `tempered_N`.
        temperatures: further ones, of `totals_NT` and `entropies_NT`; each costs an exponential.
        blend: of `blended_NX`; costs a product as large as the head's.
    """
    if isinstance(head, nn.Linear) and len(hidden_ND) and _streams(head, hidden_ND):
        return _stream(hidden_ND, head, k, bias_V, forbid, temperature, temperatures, blend)
    parts = []
    for z_CV in chunked_logits(head, hidden_ND, vocabulary, bias_V, forbid):
        seen = statistics(z_CV, k, temperature, temperatures)
        if blend is not None:
            seen = seen._replace(blended_NX=blend.of_logits(z_CV))
        parts.append(seen)
    return LogitStatistics(*map(torch.cat, zip(*parts, strict=True)))


def chunked_logits(
    head: nn.Module,
    hidden_ND: Tensor,
    vocabulary: int,
    bias_V: Tensor | None = None,
    forbid: Forbid | None = None,
) -> Iterator[Tensor]:
    """The logits of consecutive chunks of rows (at least one), at most CHUNK_LOGITS at once."""
    count, row = max(1, math.ceil(len(hidden_ND) * vocabulary / CHUNK_LOGITS)), 0
    for chunk_CD in hidden_ND.chunk(count):
        # Through the module, not its weight: it may be quantised, adapted or sharded.
        logits_CV = head(chunk_CD)
        if bias_V is not None:
            logits_CV = logits_CV + bias_V.to(logits_CV.dtype)
        if forbid is not None:
            forbid(logits_CV, row, 0)
        row += len(chunk_CD)
        yield logits_CV


def piece_logits() -> int:
    """Most logits of a streamed piece of the vocabulary, those of all threads together."""
    return PIECE_LOGITS * torch.get_num_threads()


def _streams(head: nn.Linear, hidden_ND: Tensor) -> bool:
    if type(head) not in PLAIN or type(head.weight) is not nn.Parameter:
        return False
    # Hooks see a call of the module alone; accelerate's move offloaded weights in and out.
    hooked = head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook")
    bias: Tensor | None = head.bias
    plain = bias is None and not hooked
    cast = torch.is_autocast_enabled("cpu") or hidden_ND.dtype != head.weight.dtype
    return plain and head.weight.device.type == "cpu" and not cast


def _stream(
    hidden_ND: Tensor,
    head: nn.Linear,
    k: int,
    bias_V: Tensor | None,
    forbid: Forbid | None,
    temperature: float,
    temperatures: Sequence[float],
    blend: Blend | None,
) -> LogitStatistics:
    """One pass over the vocabulary; sums are rescaled whenever a row's maximum grows."""
    rows = len(hidden_ND)
    size = max(256, k, min(PIECE_COLUMNS, piece_logits() // rows))
    powers = hidden_ND.new_empty(rows * size, dtype=torch.float32)
    best_NK = hidden_ND.new_full((rows, k), -torch.inf, dtype=torch.float32)
    ids_NK = hidden_ND.new_zeros(rows, k, dtype=torch.long)
    top_N = hidden_ND.new_full((rows,), FLOOR, dtype=torch.float32)
    # Of e^(z - top) and of (z - top) e^(z - top). That of the logits as they are comes last: its
    # products overwrite them.
    own = () if temperature == 1 else (temperature,)
    read = [*temperatures, *own, 1.0]
    # Of equal temperatures one blends; one that nothing is read at comes first.
    apart = blend is not None and blend.temperature not in read
    if blend is not None and apart:
        read.insert(0, blend.temperature)
    blends = None if blend is None else read.index(blend.temperature)
    all_sums = [_Sums(top_N, t, blend if i == blends else None) for i, t in enumerate(read)]
    for start in range(0, head.weight.shape[0], size):
        weight_CD = head.weight[start : start + size]
        shape = (rows, len(weight_CD))
        z_NC = multiply(hidden_ND, weight_CD).float()
        if bias_V is not None:
            z_NC += bias_V[start : start + size]
        if forbid is not None:
            forbid(z_NC, 0, start)
        best_NK, ids_NK = _keep_best(z_NC, start, best_NK, ids_NK)
        # Through the floor, as a row may begin with pieces that are suppressed as a whole.
        new_N = best_NK[:, 0].clamp_min(FLOOR)
        z_NC -= new_N[:, None]
        for sums in all_sums:
            sums.add(z_NC, top_N - new_N, powers[: z_NC.numel()].view(shape), start)
        top_N = new_N
    *further, plain = [sums.totals(top_N) for sums in all_sums[apart:]]
    tempered_N = further.pop()[1] if own else plain[1]
    seen = joined(ids_NK, best_NK, [plain, *further], tempered_N)
    return seen if blends is None else seen._replace(blended_NX=all_sums[blends].blended())


class _Sums:
    """Of the pieces so far, of z / t below its maximum: the sum of e^z, that of z e^z, and, with a
    `blend`, that of e^z times what it blends."""

    def __init__(self, like_N: Tensor, temperature: float, blend: Blend | None = None) -> None:
        self.temperature, self._blend = temperature, blend
        self.sum_N, self.dot_N = torch.zeros_like(like_N), torch.zeros_like(like_N)
        self._blended_NX: Tensor | None = None

    def add(self, z_NC: Tensor, shift_N: Tensor, powers_NC: Tensor, start: int) -> None:
        """Takes in a piece below the new maximum, `-shift_N` above the old one.

        Args:
            z_NC: overwritten at temperature 1.
            powers_NC: memory of its shape.
            start: the piece's first column.
        """
        if self.temperature != 1:
            z_NC = (z_NC / self.temperature).clamp_min_(FLOOR)
            shift_N = shift_N / self.temperature
        p_NC = torch.exp(z_NC, out=powers_NC)
        # e^-1e4 is 0; further down 0 * infinity would be NaN.
        shift_N = shift_N.clamp_min(-1e4)
        scale_N = shift_N.exp()
        self.dot_N = (self.dot_N + self.sum_N * shift_N) * scale_N + z_NC.mul_(p_NC).sum(1)
        self.sum_N = self.sum_N * scale_N + p_NC.sum(1)
        if self._blend is not None:
            piece_NX = self._blend.of(p_NC, start)
            if self._blended_NX is not None:
                piece_NX += self._blended_NX * scale_N[:, None]
            self._blended_NX = piece_NX

    def blended(self) -> Tensor:
        """(N, X) what was blended."""
        assert self._blended_NX is not None
        return self._blended_NX / self.sum_N[:, None]

    def totals(self, top_N: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) log sum exp and (N,) entropy, of rows with these maxima."""
        if self.temperature != 1:
            top_N = top_N / self.temperature
        log_N = self.sum_N.log()
        return top_N + log_N, log_N - self.dot_N / self.sum_N


def _keep_best(z_NC: Tensor, start: int, best_NK: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The leading logits so far and their ids, with those of columns start.. taken in."""
    k = best_NK.shape[1]
    # After the first pieces few rows have anything to add: k / i of them in piece i, for logits
    # in no order.
    rows = (z_NC.amax(dim=1) > best_NK[:, -1]).nonzero().squeeze(1)
    if len(rows):
        value_MK, place_MK = top_k(z_NC[rows], min(k, z_NC.shape[1]))
        # The lower ids on the left, as among equal logits they are to come first.
        values = torch.cat([best_NK[rows], value_MK], dim=1)
        ids = torch.cat([ids_NK[rows], place_MK + start], dim=1)
        value_MK, order_MK = top_k(values, k)
        best_NK[rows], ids_NK[rows] = value_MK, ids.gather(1, order_MK)
    return best_NK, ids_NK
