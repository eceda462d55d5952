"""What is read off logits: the k largest with their ids, the log-sum-exp, and the entropy.

Greedy decoding, the rules of confidence and the feedback of soft-masking need no more than these:
of the logits z as they are, and of z / t at further temperatures t where somebody asks for them.
Shape suffixes: N rows, V vocabulary, C columns of a piece of it, K leading tokens, T further
temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose fp32 statistics are computed at once: bounds the temporaries (32 rows of a
# vocabulary of 152k are 19 MB) and keeps them warm in the cache between the passes.
CHUNK_ROWS = 32
# Columns whose maximum stands for them while the leading logits are looked for.
BLOCK = 128
FLOOR = torch.finfo(torch.float32).min
_NONE = torch.empty(0, 0, dtype=torch.float32, device="cpu")


class LogitStatistics(NamedTuple):
    """What is read off N rows of logits z, all in fp32 (entropies in nats).

    `ids_NK`, `logits_NK`: the K largest logits, largest first. `total_N`: log sum exp z.
    `tempered_N`: the entropy at another temperature; at 1 it is `entropy_N` itself.
    `totals_NT`, `entropies_NT`: the same of z / t, a column for each temperature that was asked
    for.
    `blended_NX`: what the rows make of a table, where it was asked for (`models/lm_head.py`).
    """

    ids_NK: Tensor
    logits_NK: Tensor
    total_N: Tensor
    entropy_N: Tensor
    tempered_N: Tensor
    totals_NT: Tensor = _NONE
    entropies_NT: Tensor = _NONE
    blended_NX: Tensor = _NONE


def floor_of(dtype: torch.dtype) -> float:
    """What stands for minus infinity among logits of a dtype: half of its least number, or of
    float32's, in which statistics are. It stays finite with a logit added, or half of itself: a
    difference of infinities would be NaN."""
    return max(torch.finfo(dtype).min, FLOOR) / 2


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits over a temperature; at 1 they are not even copied."""
    return logits if temperature == 1 else logits / temperature


def top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row and their ids, largest first: (N, k), (N, k).

    Among equal logits the lower id comes first. So a row's result depends neither on the rows
    beside it nor, in its first places, on k: a neighbour that asks for more changes nothing.
    """
    if k == 1:
        return torch.max(logits_NV, dim=-1, keepdim=True)
    if logits_NV.device.type == "mps":  # which has no topk of 64-bit integers
        return torch.topk(logits_NV, k, dim=-1)
    # On a GPU a look at the values would make the host wait.
    if logits_NV.device.type != "cpu" or k >= logits_NV.shape[-1]:
        return _among_blocks(logits_NV, k, _first_of_equal)
    # torch.topk takes a third of the time, and is right where no two leading logits are equal.
    values_NK, ids_NK = _among_blocks(logits_NV, k + 1, torch.topk)
    tied_N = (values_NK[:, 1:] == values_NK[:, :-1]).any(-1)
    values_NK, ids_NK = values_NK[:, :k], ids_NK[:, :k]
    if bool(tied_N.any()):
        # Copies: the backward pass reads what topk gave.
        values_NK, ids_NK = values_NK.clone(), ids_NK.clone()
        values_NK[tied_N], ids_NK[tied_N] = _among_blocks(logits_NV[tied_N], k, _first_of_equal)
    return values_NK, ids_NK


def _among_blocks(
    logits_NV: Tensor, k: int, topk: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """`topk` of each row, in two passes over fewer values where there are many.

    The k largest entries lie in the k blocks of columns with the largest maxima, so one pass of
    maxima finds the candidates.
    """
    size = logits_NV.shape[-1]
    if size < max(32, 4 * k) * BLOCK:
        return topk(logits_NV, k)
    body = size - size % BLOCK
    maxima_NC = logits_NV[:, :body].unflatten(-1, (-1, BLOCK)).amax(-1)
    # Blocks in the order of their columns: the leftmost candidate has the lowest id.
    block_NK = topk(maxima_NC, k)[1].sort(dim=-1).values
    columns = block_NK[..., None] * BLOCK + torch.arange(BLOCK, device=logits_NV.device)
    tail = torch.arange(body, size, device=logits_NV.device).expand(len(logits_NV), -1)
    candidates = torch.cat([columns.flatten(1), tail], dim=1)
    values_NK, place_NK = topk(logits_NV.gather(1, candidates), k)
    return values_NK, candidates.gather(1, place_NK)


def _first_of_equal(values_NC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk where among equal values the leftmost comes first.

    Keys of 64 bits, no two of them equal: the value's bits in an order that integers have too
    (0.0 turns -0.0 into 0.0), and below them the place, counted from the right.
    """
    size = values_NC.shape[-1]
    bits_NC = (values_NC.float() + 0.0).view(torch.int32)
    upper_NC = (bits_NC ^ ((bits_NC >> 31) & 0x7FFFFFFF)).long() << 32
    from_right_C = torch.arange(size - 1, -1, -1, device=values_NC.device)
    keys_NK = (upper_NC | from_right_C).topk(k, dim=-1).values
    place_NK = size - 1 - (keys_NK & 0xFFFFFFFF)
    return values_NC.gather(-1, place_NK), place_NK


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,) entropy in nats of softmax(logits), fp32, as logsumexp(z) - sum p z.

    Logits of minus infinity count as probability 0.
    """
    return _totals(logits_NV)[1]


def _totals(logits_NV: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(N,) log sum exp and (N,) entropy of each row over a temperature."""
    if not len(logits_NV):
        return (logits_NV.new_zeros(0, dtype=torch.float32),) * 2
    parts = []
    for chunk_NV in logits_NV.split(CHUNK_ROWS):
        # Shifting by the maximum keeps sum p z from cancelling; finite floor: 0 * -inf is NaN.
        z_NV = chunk_NV.float()
        top_N1 = z_NV.amax(-1, keepdim=True)
        z_NV = z_NV - top_N1
        if temperature != 1:
            z_NV, top_N1 = z_NV / temperature, top_N1 / temperature
        z_NV = z_NV.clamp_min(FLOOR)
        p_NV = z_NV.exp()
        sum_N = p_NV.sum(-1)
        log_N = sum_N.log()
        parts.append((top_N1.squeeze(1) + log_N, log_N - (p_NV * z_NV).sum(-1) / sum_N))
    total, entropy_ = zip(*parts, strict=True)
    return torch.cat(total), torch.cat(entropy_)


def statistics(
    logits_NV: Tensor, k: int, temperature: float = 1.0, temperatures: Sequence[float] = ()
) -> LogitStatistics:
    """The statistics of logits that exist already.

    Args:
        temperature: of `tempered_N`.
        temperatures: further ones, of `totals_NT` and `entropies_NT`.
    """
    values_NK, ids_NK = top_k(logits_NV, k)
    totals = [_totals(logits_NV, one) for one in (1.0, *temperatures)]
    tempered_N = totals[0][1] if temperature == 1 else _totals(logits_NV, temperature)[1]
    return joined(ids_NK, values_NK.float(), totals, tempered_N)


def joined(
    ids_NK: Tensor,
    logits_NK: Tensor,
    totals: Sequence[tuple[Tensor, Tensor]],
    tempered_N: Tensor,
) -> LogitStatistics:
    """Statistics from pairs of log-sum-exp and entropy: of the logits, then tempered."""
    (total_N, entropy_N), *further = totals
    none_NT = total_N.new_zeros(len(total_N), 0)
    totals_NT, entropies_NT = (
        torch.cat([none_NT, *(pair[i][:, None] for pair in further)], dim=1) for i in (0, 1)
    )
    of_logits = ids_NK, logits_NK, total_N, entropy_N
    return LogitStatistics(*of_logits, tempered_N, totals_NT, entropies_NT, none_NT)
