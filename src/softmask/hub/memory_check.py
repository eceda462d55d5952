"""Whether there is memory for a model, said before its weights are read."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from rich.filesize import decimal

from ..reporting import measure
from ..reporting.machine import Memory, memory
from .weight_sizes import WeightSizes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a model is to be loaded, in words that the command line knows."""

    name: str
    sizes: WeightSizes
    device: torch.device
    dtype: torch.dtype
    quantize: str | None
    generation: int  # bytes of a short one, beside the weights

    @property
    def _dtype(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def check(self) -> None:
        """Refuses what cannot be, and warns of what may not.

        The weights of a model are known to the byte, and no machine has more memory than it has;
        what is free may change, and what a generation takes is an estimate.

        Raises:
            ValueError: the weights alone are more than all memory of the device.
        """
        here = memory_of(self.device)
        needed = self._bytes(self._dtype, self.quantize)
        bits = self.quantize or self._dtype
        where = "this machine" if self.device.type == "cpu" else f"the device {self.device}"
        takes = f"{self.name} takes {decimal(needed)} of memory in {bits}"
        if needed > here.total:
            raise ValueError(
                f"{takes}, {decimal(needed + self.generation)} with a short generation, and "
                f"{where} has {decimal(here.total)}, of which {decimal(here.available)} are free: "
                f"{self._instead(here.total)}"
            )
        if needed + self.generation > here.available:
            logger.warning(
                "%s, %s with a short generation, and %s of %s are free on %s: if it runs out of "
                "memory, end other programs, or %s",
                *(takes, decimal(needed + self.generation), decimal(here.available)),
                *(decimal(here.total), where, self._instead(here.available)),
            )
        elif self.device.type == "cpu" and self.dtype == torch.bfloat16:
            slow = measure.emulated_bfloat16()
            if slow is not None:
                other = "" if self.quantize else f", or {self._instead(here.available)}"
                logger.warning("%s: leave out --dtype%s", slow, other)

    def _bytes(self, dtype: str, quantize: str | None) -> int:
        return self.sizes.loaded(dtype, quantize)

    def _instead(self, room: int) -> str:
        """What to do: the ways that fit and take less."""
        on_cpu = self.device.type == "cpu"
        base = "float32" if on_cpu else "bfloat16"
        ways: list[tuple[str, str, str | None]] = []
        if self.device.type in ("cpu", "cuda") and not self.sizes.experts:
            ways += [(f"--quantize {kind}", base, kind) for kind in ("int8", "int4")]
        if not (on_cpu and measure.emulated_bfloat16()):
            ways.append(("--dtype bfloat16", "bfloat16", None))
        now = self._bytes(self._dtype, self.quantize)
        found = []
        for words, dtype, quantize in ways:
            size = self._bytes(dtype, quantize)
            if size < now and size + self.generation <= room:
                found.append(f"{words} ({decimal(size)})")
        return f"give {' or '.join(found)}" if found else "take a smaller model"


def memory_of(device: torch.device) -> Memory:
    """All memory that a model on this device may have, and what is free of it."""
    if device.type == "cuda":
        return Memory(torch.cuda.mem_get_info(device)[1], measure.memory_left(device)[0])
    here = memory()
    if device.type == "mps":  # the processor's memory, of which the GPU takes only a part
        most = torch.mps.recommended_max_memory()
        return Memory(most, min(most, here.available))
    return here
