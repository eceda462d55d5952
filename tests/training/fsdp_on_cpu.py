"""`softmask ...` with FSDP2 on the CPU.

    torchrun --nproc_per_node 2 tests/training/fsdp_on_cpu.py train ...

accelerate makes FSDP of several GPUs only, and DDP of several CPU processes, whatever the settings
say; torch's own FSDP2 works on both. This tells accelerate that it has what it was asked for.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def pretend_gpus() -> None:
    """Patches AcceleratorState and sets what `accelerate launch` would set."""
    os.environ.update(SETTINGS)
    initialise = AcceleratorState.__init__

    def patched(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.fsdp_plugin = kwargs["fsdp_plugin"]
        if "fsdp_plugin" in vars(self):  # every new handle on the state starts with the wrong type
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = patched


if __name__ == "__main__":
    pretend_gpus()
    from softmask.cli.main import main

    sys.exit(main())
