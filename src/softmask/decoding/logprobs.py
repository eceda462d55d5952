"""Log-probabilities: what the model last predicted at each position, for clients and traces.

Probabilities are those of the logits as they are read, before temperature and filters.
Shape suffixes: P positions, N rows that a step reads, K leading tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..logits import LogitStatistics

# What a constraint forbids lies below (in float16 too), and is no leading token.
FORBIDDEN = -1e4


class Logprobs(NamedTuple):
    """Of N positions: the log-probability of the token that a step committed there (NaN: none was),
    the entropy in nats, and the leading tokens with their log-probabilities (id -1: none) and
    their shares of feedback that mixes in all tokens (NaN: there is no such feedback)."""

    logprob_N: np.ndarray
    entropy_N: np.ndarray
    ids_NK: np.ndarray
    logprobs_NK: np.ndarray
    shares_NK: np.ndarray

    def then(self, later: Logprobs) -> Logprobs:
        """Both, one behind the other."""
        return Logprobs(*map(np.concatenate, zip(self, later, strict=True)))

    def leading(self, k: int) -> Logprobs:
        """With at most k leading tokens."""
        names = ("ids_NK", "logprobs_NK", "shares_NK")
        return self._replace(**{name: getattr(self, name)[:, :k] for name in names})


class LogprobStore:
    """The last look at every position of a canvas."""

    def __init__(self, positions: int, k: int, device: torch.device) -> None:
        fp32: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.logprob_P = torch.full((positions,), torch.nan, **fp32)
        self.entropy_P = torch.full((positions,), torch.nan, **fp32)
        self.ids_PK = torch.full((positions, k), -1, dtype=torch.long, device=device)
        self.logprobs_PK = torch.full((positions, k), torch.nan, **fp32)
        self.shares_PK = torch.full((positions, k), torch.nan, **fp32)

    @property
    def _stores(self) -> tuple[Tensor, ...]:
        """In the order of `Logprobs`."""
        named = self.logprob_P, self.entropy_P, self.ids_PK, self.logprobs_PK
        return *named, self.shares_PK

    def forget(self, own: slice) -> None:
        """Nothing has been read there yet."""
        self.ids_PK[own] = -1
        for values in (self.logprob_P, self.entropy_P, self.logprobs_PK, self.shares_PK):
            values[own] = torch.nan

    def move(self, to_N: Tensor, from_N: Tensor, room: slice) -> None:
        """Takes positions of a room along to others of it; the rest of it has not been read."""
        moved = [values[from_N] for values in self._stores]
        self.forget(room)
        for values, part in zip(self._stores, moved, strict=True):
            values[to_N] = part

    def put(
        self, rows_N: Tensor, seen: LogitStatistics, chosen_N: Tensor, chosen_logits_N: Tensor
    ) -> None:
        """Takes down what a step read at these rows, and with what logits it committed some."""
        k = self.ids_PK.shape[1]
        more = (0, max(0, k - seen.ids_NK.shape[1]))
        logprobs_NK = seen.logits_NK - seen.total_N[:, None]
        ids_NK = torch.where(logprobs_NK > FORBIDDEN, seen.ids_NK, -1)
        self.ids_PK[rows_N] = F.pad(ids_NK[:, :k], more, value=-1)
        self.logprobs_PK[rows_N] = F.pad(logprobs_NK[:, :k], more, value=torch.nan)
        self.shares_PK[rows_N] = torch.nan
        self.entropy_P[rows_N] = seen.entropy_N
        logprob_N = chosen_logits_N.float() - seen.total_N
        self.logprob_P[rows_N] = torch.where(chosen_N, logprob_N, torch.nan)

    def put_shares(self, rows_M: Tensor, ids_MK: Tensor, shares_MK: Tensor) -> None:
        """Takes down shares of what feedback mixes in. What `ids_MK` does not name has none: a
        step's commits have made it impossible."""
        is_own_MKK = self.ids_PK[rows_M][:, :, None] == ids_MK[:, None]
        self.shares_PK[rows_M] = (is_own_MKK * shares_MK[:, None]).sum(-1)

    def put_certain(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Tokens that there was no choice about."""
        self.ids_PK[rows_N], self.logprobs_PK[rows_N] = -1, torch.nan
        self.logprob_P[rows_N], self.entropy_P[rows_N] = 0.0, 0.0
        self.ids_PK[rows_N, 0], self.logprobs_PK[rows_N, 0] = tokens_N, 0.0

    def at(self, rows_N: Tensor) -> Logprobs:
        """What was seen there, on the host."""
        return Logprobs(*(value[rows_N].cpu().numpy() for value in self._stores))
