"""How the threads of a command wait, and how many there are: decided before torch is imported.

Threads of OpenMP wait for their next share of work in a loop. Where another process wants the same
core, the one that waits takes it from the one that works: 64 tokens took three times as long, and
long (`benchmarks/threads.py`). Waiting asleep costs a quiet machine a tenth or more.

This is for the process of a command. A program that imports this package decides for itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from ..reporting.machine import processors_of_container

# Whoever has said how to wait, by any of these, is not corrected.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COUNT = "OMP_NUM_THREADS"


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what OpenMP reads when torch is imported; does nothing after that.

    The count is torch's own, a thread for each physical core that this process may use, unless a
    container allows fewer processors, which torch does not see.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in WAITING):
        environment["OMP_WAIT_POLICY"] = "passive"
    allowed = processors_of_container()
    if COUNT not in environment and allowed is not None and allowed < (os.cpu_count() or 1):
        environment[COUNT] = str(allowed)
