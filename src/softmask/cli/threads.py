"""How the threads of a command wait, and how many there are: decided before torch is imported.

Threads of OpenMP look for their next share of work for a while, and then sleep. On a quiet machine
looking is faster: 64 tokens of the bundled model took 2.0 s, and 2.8 asleep. Where another process
wants the same core, the one that looks takes it from the one that works: 5.6 s, and 2.3 asleep
(`benchmarks/threads.py`, two processors). So it depends on what else computes when a command
begins. A server always sleeps: it has threads for requests beside, and gained nothing by looking.

This is for the process of a command. A program that imports this package decides for itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

from ..reporting.machine import processors_of_container

# Whoever has said how to wait, by any of these, is not corrected.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNT = "OMP_NUM_THREADS"
# How often libgomp looks before a thread sleeps; by itself it would 300,000 times, for as fast a
# step. Some tenths of a millisecond: longer than Python needs between two operations.
LOOKS = "10000"
LOAD = Path("/proc/loadavg")
SAMPLES = 5


def is_quiet() -> bool:
    """Whether no other process computes now, by most of some samples within milliseconds.

    Where the system does not say how many are running (others than Linux), it is not.
    """
    alone = 0
    for _ in range(SAMPLES):
        try:
            # "0.72 1.94 2.05 1/158 3052": threads that run, this one among them, of all.
            running = int(LOAD.read_text(encoding="ascii").split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        alone += running <= 1
        time.sleep(0.001)
    return 2 * alone > SAMPLES


def prepare(lasting: bool = False, environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what OpenMP reads when torch is imported; does nothing after that.

    The count is torch's own, a thread for each physical core that this process may use, unless a
    container allows fewer processors, which torch does not see.

    Args:
        lasting: of a process that is not alone for long, as a server.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in WAITING):
        looks = not lasting and is_quiet()
        environment.update({"GOMP_SPINCOUNT": LOOKS} if looks else {"OMP_WAIT_POLICY": "passive"})
    allowed = processors_of_container()
    if COUNT not in environment and allowed is not None and allowed < (os.cpu_count() or 1):
        environment[COUNT] = str(allowed)
