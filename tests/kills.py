"""A command that is killed in the middle of its work, at the same place on every machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# The process kills itself. A signal from outside would come when the machine has time for it.
_SCRIPT = """
import os, signal, sys
from softmask.cli.main import main

path, text, times, *arguments = sys.argv[1:]
looking = False

def look(event, details):
    global looking
    if event != "open" or looking or str(details[0]) != path or not os.path.exists(path):
        return
    looking = True
    with open(path) as file:
        if file.read().count(text) >= int(times):
            os.kill(os.getpid(), signal.SIGKILL)
    looking = False

sys.addaudithook(look)
main(arguments)
"""


def run_until_killed(
    arguments: list[str],
    path: Path,
    text: str,
    times: int = 1,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Runs `softmask` until it opens a file that holds a text so often; there SIGKILL ends it."""
    command = [sys.executable, "-c", _SCRIPT, str(path), text, str(times), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
