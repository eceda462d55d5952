"""Seconds and memory, of anything: what the benchmarks read off a device."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .machine import memory

# How much slower than fp32 a dtype is that a device has no units for: 2 is a busy machine.
EMULATED = 4


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all of its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with what it leaves to the device."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    points = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {key: round(value, 4) for key, value in points.items()}


def pair_ratios(upper: Sequence[float], lower: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of the ratios of what was measured in the same round."""
    return summary([a / b for a, b in zip(upper, lower, strict=True)])


def peak_mb(device: str) -> float:
    """Largest memory of this process so far: allocated on the GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a child's ru_maxrss starts at what its parent had reached.
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def memory_left(device: torch.device) -> tuple[int, str]:
    """Bytes that this process may still take on a device, and what sets the limit."""
    if device.type != "cuda":
        here = memory()
        return here.available, here.limited_by
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps from tensors that are gone is free too, but only for this process.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept, str(device)


def peak_of(module: str, arguments: Sequence[str]) -> float:
    """The `peak_mb` that a module prints, as JSON in its last line, in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of a dtype are slower than fp32's: a CPU without units for it emulates them.

    One of 256 x 256 matrices tells: 0.3 ms in fp32 on a CPU with AVX2, and 100 times that in
    bfloat16.
    """
    seconds = {}
    for kind in (torch.float32, dtype):
        side = torch.ones(256, 256, device=device).to(kind)
        multiply = functools.partial(torch.matmul, side, side)
        seconds[kind] = min(timed(multiply, device) for _ in range(3))
    return seconds[dtype] > EMULATED * seconds[torch.float32]
