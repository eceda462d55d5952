"""`softmask` as a rank of torchrun; fails where a thread of gloo outlives the process group.

Such a thread may yet want Python, which is ending: the process hangs or aborts, now and then.
"""

import os
import runpy
import sys
from pathlib import Path

import torch.distributed as dist

destroy_process_group = dist.destroy_process_group


def left() -> list[str]:
    """gloo's worker threads in this process; none where the system does not tell."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if name.startswith("pt_gloo")]


def destroy() -> None:
    """Instead of torch's: that, and the look at what it left."""
    destroy_process_group()
    if left():
        print("threads of gloo are left", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    dist.destroy_process_group = destroy
    runpy.run_module("softmask", run_name="__main__")
