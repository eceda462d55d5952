"""The processes of a launch that share a list of work: the rank, its share, the exchange.

They are started by `torchrun` or `accelerate launch`; without either there is one process.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .. import launcher

T = TypeVar("T")

# Ranks wait for each other until the longest share is done.
TIMEOUT = timedelta(days=7)


class Ranks:
    """This process among those of its launch: `index` of `count`."""

    def __init__(self) -> None:
        self.count, self.index = launcher.processes(), launcher.rank()
        if self.count > 1 and not dist.is_initialized():
            # gloo on GPUs too: only Python objects are exchanged, never tensors.
            dist.init_process_group("gloo", timeout=TIMEOUT)

    @property
    def device(self) -> str | None:
        """The GPU of this process; None: `hub.load` chooses."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{launcher.local_rank() % torch.cuda.device_count()}"

    def on_device(self, device: torch.device) -> int:
        """How many processes of this machine share a device, at most."""
        devices = torch.cuda.device_count() if device.type == "cuda" else 1
        return -(-launcher.local_processes() // devices)

    def share(self, work: list[T]) -> list[T]:
        """This process's part: every count-th item, so that sorted work is divided evenly."""
        return work[self.index :: self.count]

    def all_gather(self, found: T) -> list[T]:
        """What every process found, in their order, on every process."""
        if self.count == 1:
            return [found]
        everything: list[Any] = [None] * self.count
        dist.all_gather_object(everything, found)
        return everything

    def leave(self) -> None:
        """Closes the process group. Without it the first process to end would abort the others."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()
