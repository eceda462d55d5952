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
from pathlib import Path

# What tests of commands start from: no network, one thread, and warnings are errors.
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "error",
}
# No import reads these.
FREE = ("PYTEST_", "SOFTMASK_", "PYTHONWARNINGS", "COLUMNS", "LINES", "TERM", "NO_COLOR")
SERVER = "SOFTMASK_TESTS_FORK_SERVER"  # its address, in the environment of all workers
HERE = Path(__file__).parent


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
