"""Seconds and memory, of anything: what the benchmarks read off a device."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .clocks import CLOCKS
from .machine import memory

# Of a product on a CPU that has bfloat16 in its units, or in none: a third of the time of float32
# up to twice; where each operation is emulated 20 times in this small one, 100 in large ones.
EMULATED = 4.0


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all of its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def check_clock(clock: str, device: torch.device) -> None:
    """Raises ValueError where a clock does not see what a device does."""
    if clock == "processor" and device.type != "cpu":
        raise ValueError(
            f"processor time says nothing of what {device.type} does: leave out --clock, or use "
            "--device cpu"
        )


def timed(call: Callable[[], object], device: torch.device, clock: str = "wall") -> float:
    """Seconds that a call takes, with what it leaves to the device.

    Args:
        clock: "processor" is the sum over the threads of this process.
    """
    now = CLOCKS[clock]
    synchronise(device)
    started = now()
    call()
    synchronise(device)
    return now() - started


def summary(values: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    points = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {key: round(value, 4) for key, value in points.items()}


def pair_ratios(upper: Sequence[float], lower: Sequence[float]) -> dict[str, float]:
    """Minimum, median and maximum of the ratios of what was measured in the same round."""
    return summary([a / b for a, b in zip(upper, lower, strict=True)])


def peak_mb(device: str) -> float:
    """Largest memory of this process so far: allocated on all GPUs that it uses, else resident."""
    if device == "cuda":
        every = range(torch.cuda.device_count())
        return sum(map(torch.cuda.max_memory_allocated, every)) / 2**20
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
    """The `peak_mb` that a module prints, as JSON in its last line, in a process of its own.

    Raises:
        ValueError: it failed, with what it said last.
    """
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        said = (child.stderr.strip() or f"it ended with {child.returncode}").splitlines()[-1]
        raise ValueError(f"peak memory is measured in a process of its own, which failed: {said}")
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]


@functools.cache
def slowness(dtype: torch.dtype, device: torch.device) -> float:
    """Times as long as in float32 that a small product in a dtype takes.

    Measured, as flags of a CPU do not say what torch's kernels do with it; 10 ms where it is
    emulated, 1 ms otherwise. The best of five, which a busy machine delays least.
    """
    best = {}
    for kind in (torch.float32, dtype):
        side = torch.ones(128, 128, device=device).to(kind)
        multiply = functools.partial(torch.mm, side, side)
        multiply()  # compiles, where the library does
        best[kind] = min(timed(multiply, device) for _ in range(5))
    return best[dtype] / best[torch.float32]


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a dtype takes so much longer than float32 on this device that it is of no use."""
    return slowness(dtype, device) > EMULATED


def emulated_bfloat16() -> str | None:
    """What to say of this CPU if it emulates bfloat16; None: it multiplies it."""
    cpu = torch.device("cpu")
    if not is_emulated(torch.bfloat16, cpu):
        return None
    return (
        "this CPU emulates bfloat16, a small product of which took "
        f"{slowness(torch.bfloat16, cpu):.0f} times as long as in float32, and large ones take "
        "longer"
    )
