"""What is read off logits: the k largest with their ids, the log-sum-exp, and the entropy.

Greedy decoding, the rules of confidence and the feedback of soft-masking need no more than these.
Shape suffixes: N rows, V vocabulary, C columns of a piece of it, K leading tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Rows whose fp32 statistics are computed at once: bounds the temporaries (32 rows of a
# vocabulary of 152k are 19 MB) and keeps them warm in the cache between the passes.
CHUNK_ROWS = 32
FLOOR = torch.finfo(torch.float32).min


class LogitStatistics(NamedTuple):
    """What is read off N rows of logits z, all in fp32 (entropies in nats).

    `ids_NK`, `logits_NK`: the K largest logits, largest first. `total_N`: log sum exp z.
    """

    ids_NK: Tensor
    logits_NK: Tensor
    total_N: Tensor
    entropy_N: Tensor


def top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row and their ids, largest first: (N, k), (N, k).

    Exact, and several times faster than `torch.topk` on a CPU: the k largest entries lie in the
    k blocks of columns with the largest maxima, so one pass of maxima finds the candidates.
    """
    size = logits_NV.shape[-1]
    width = 128
    if k == 1:
        return torch.max(logits_NV, dim=-1, keepdim=True)
    if logits_NV.is_cuda or size < 32 * width or k > 16:
        return torch.topk(logits_NV, k, dim=-1)
    body = size - size % width
    blocks_NCW = logits_NV[:, :body].unflatten(-1, (-1, width))
    block_NK = blocks_NCW.amax(-1).topk(k, dim=-1).indices
    columns = block_NK[..., None] * width + torch.arange(width, device=logits_NV.device)
    tail = torch.arange(body, size, device=logits_NV.device).expand(len(logits_NV), -1)
    candidates = torch.cat([columns.flatten(1), tail], dim=1)
    values, place = logits_NV.gather(1, candidates).topk(k, dim=-1)
    return values, candidates.gather(1, place)


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,) entropy in nats of softmax(logits), fp32, as logsumexp(z) - sum p z.

    Logits of minus infinity count as probability 0.
    """
    return _totals(logits_NV)[1]


def _totals(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) log sum exp and (N,) entropy of each row."""
    if not len(logits_NV):
        return (logits_NV.new_zeros(0, dtype=torch.float32),) * 2
    parts = []
    for chunk_NV in logits_NV.split(CHUNK_ROWS):
        # Shifting by the maximum keeps sum p z from cancelling; finite floor: 0 * -inf is NaN.
        z_NV = chunk_NV.float()
        top_N1 = z_NV.amax(-1, keepdim=True)
        z_NV = (z_NV - top_N1).clamp_min(FLOOR)
        p_NV = z_NV.exp()
        sum_N = p_NV.sum(-1)
        log_N = sum_N.log()
        parts.append((top_N1.squeeze(1) + log_N, log_N - (p_NV * z_NV).sum(-1) / sum_N))
    total, entropy_ = zip(*parts, strict=True)
    return torch.cat(total), torch.cat(entropy_)


def statistics(logits_NV: Tensor, k: int) -> LogitStatistics:
    """The statistics of logits that exist already."""
    values_NK, ids_NK = top_k(logits_NV, k)
    return LogitStatistics(ids_NK, values_NK.float(), *_totals(logits_NV))
