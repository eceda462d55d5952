"""A moving average of the trained weights, which evaluation and the finished model use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """fp32 averages of every parameter that is trained (of an adapter: the adapter's alone)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().float().clone() for n, p in self.trained.items()}
        self._blend = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Blends the weights in, after an update of them."""
        now = [p.detach().float() for p in self.trained.values()]
        self._blend(list(self.average.values()), now, None)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the model has the averages; after it, its own weights again."""
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            parameter.copy_(values[name])

    def save(self, path: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.average.items()}, path)

    def load(self, path: Path) -> None:
        for name, value in load_file(path).items():
            self.average[name].copy_(value)
