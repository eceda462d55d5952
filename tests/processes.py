"""Interpreters for commands in processes of their own, which need not import anything again.

`[*python(env), "-m", "softmask", ...]` is a command for `subprocess`. What it says is done in a
process that is forked from one that has imported torch and the rest; the process that `subprocess`
knows stands in for it: passes signals on, is killed with it, and ends as it does. Limits that are
set on the one are not the other's, nor is its number.

An environment in which imports would go another way (the Hub's address, a library's switches) gets
an interpreter of its own, and so does everything where coverage is measured.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# What tests of commands start from: no network, one thread, and warnings are errors.
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "error",
}
# No import reads these.
FREE = (
    *("PYTEST_", "SOFTMASK_", "PYTHONWARNINGS", "XDG_STATE_HOME"),
    *("COLUMNS", "LINES", "TERM", "COLORTERM", "NO_COLOR"),
    *("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_"),
)
SERVER = "SOFTMASK_TESTS_FORK_SERVER"  # its address, in the environment of all workers
HERE = Path(__file__).parent
FSYNC = os.fsync  # which tests do without


def start_fork_server() -> None:
    """Starts the process that forks; for pytest's first process, whose workers use it too."""
    path = Path(tempfile.mkdtemp()) / "fork-server"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py", str(listener.fileno())],
            stdin=subprocess.PIPE,  # closed when we end, by which it ends too
            pass_fds=[listener.fileno()],
            env=ENVIRONMENT,
        )
    os.environ[SERVER] = str(path)
    atexit.register(_stop, process, path)


def _stop(process: subprocess.Popen[bytes], path: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    path.unlink()
    path.parent.rmdir()


def python(environment: Mapping[str, str] = ENVIRONMENT) -> list[str]:
    """How a command begins that `subprocess` is to run in this environment."""
    if SERVER in os.environ and _read_by_imports(environment) == _read_by_imports(ENVIRONMENT):
        return [sys.executable, "-IS", str(HERE / "fork_relay.py"), os.environ[SERVER]]
    return [sys.executable]


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(FREE)}


def ranks(*words: str, count: int = 2, **more: Any) -> list[subprocess.CompletedProcess[str]]:
    """Processes of one group, with the environment that torchrun gives to each, and its store.

    Args:
        words: what follows `python()`.
        more: for `subprocess`.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        # What a process of several warns of is its libraries' affair.
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONWARNINGS": "default"}
        environment = ENVIRONMENT | shared | own
        return subprocess.run(
            [*python(environment), *words],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
            **more,
        )

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
