"""What a launcher of several processes (torchrun, accelerate's) says to each of them.

Both tell it by the environment variables of torchrun; without a launcher there is one process.
"""

from __future__ import annotations

import os


def processes() -> int:
    """How many there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one among them."""
    return int(os.environ.get("RANK", "0"))


def local_processes() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(processes())))


def local_rank() -> int:
    """The number of this one on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def command() -> list[str]:
    """The words by which `softmask` is started like this process, as it is typed on each machine.

    Where machines find each other is left out: that is the launcher's own affair.
    """
    if processes() == 1:
        return ["softmask"]
    several = processes() // local_processes()
    nodes = ["--nnodes", str(several)] if several > 1 else []
    each = ["--nproc_per_node", str(local_processes())]
    return ["torchrun", *nodes, *each, "-m", "softmask"]
