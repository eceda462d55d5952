"""Programs that run where softmask is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What every one of them begins with.
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "softmask":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""


def run_alone(tmp_path: Path, given: Any, code: str) -> dict:
    """Runs code in a process that cannot import softmask.

    `given` is JSON on its standard input; its last line is the answer, JSON too.
    """
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | home
    environment.pop("HF_MODULES_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
