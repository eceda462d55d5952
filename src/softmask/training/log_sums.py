"""What a run sums up from one line of its log to the next, on the device; kept in checkpoints.

A run that goes on then logs the lines of an uninterrupted one, whichever updates they begin with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import read_json
from .objective import Loss

# One number each, and one for each bucket of t.
NUMBERS = ("forwards", "loss", "read", "nats", "tokens", "soft", "lambda", "entropy")
BY_TIME = ("hits_T", "total_T")

Reduce = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class LogSums:
    """Sums over forwards: of this process since the last line, and of all of them before it."""

    def __init__(self) -> None:
        self._since: dict[str, Tensor] = {}
        self._before = {"loss": 0.0, "forwards": 0.0}

    def add(self, loss: Loss, tokens: int) -> None:
        """Adds a forward of so many tokens, without a host synchronisation."""
        one = torch.ones((), device=loss.value.device)
        seen = {"forwards": one, "loss": loss.value, "tokens": one * tokens}
        seen |= {"read": loss.has_masks, "nats": loss.nats}
        seen |= {"hits_T": loss.hits_T, "total_T": loss.total_T}
        if loss.mixed is not None and loss.entropy is not None:
            seen |= {"soft": one, "lambda": loss.mixed, "entropy": loss.entropy}
        for name, value in seen.items():
            self._since[name] = self._since.get(name, 0) + value.detach().float()

    def drain(self, reduce: Reduce) -> dict[str, Any]:
        """The sums since the last line by name: a number, or of `BY_TIME` a list; begins anew.

        Args:
            reduce: adds up what the processes have, each of which calls it.
        """
        since, self._since = self._since, {}
        zero = torch.zeros_like(since["forwards"])
        sums = {name: since.get(name, zero) for name in NUMBERS}
        found = reduce(sums | {name: since[name] for name in BY_TIME})
        values: dict[str, Any] = {name: value.tolist() for name, value in found.items()}
        for name in self._before:
            self._before[name] += values[name]
        return values

    def mean_loss(self, reduce: Reduce) -> float:
        """The mean over all forwards of the run; what no line has had yet is drained."""
        if self._since:
            self.drain(reduce)
        return self._before["loss"] / max(1.0, self._before["forwards"])

    def save(self, path: Path) -> None:
        """Writes the sums to a file."""
        since = {name: value.tolist() for name, value in self._since.items()}
        kept = {"since": since, "before": self._before}
        path.write_text(json.dumps(kept) + "\n", encoding="utf-8")

    def load(self, path: Path, device: torch.device) -> None:
        """Takes up the sums of a file."""
        kept = read_json(path)
        self._since = {k: torch.tensor(v, device=device) for k, v in kept["since"].items()}
        self._before = kept["before"]
