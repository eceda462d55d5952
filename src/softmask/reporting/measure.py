"""Seconds and memory, of anything: what the benchmarks read off a device."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


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


def peak_of(module: str, arguments: Sequence[str]) -> float:
    """The `peak_mb` that a module prints, as JSON in its last line, in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]
