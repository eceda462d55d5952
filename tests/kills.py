"""Kills and full disks in the middle of the work, at the same place on every machine."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from processes import ENVIRONMENT, python

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
    environment: Mapping[str, str] = ENVIRONMENT,
) -> None:
    """Runs `softmask` until it opens a file that holds a text so often; there SIGKILL ends it."""
    command = [*python(environment), "-c", _SCRIPT, str(path), text, str(times), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr


_full_from: list[str] = []


def _watch(event: str, details: tuple) -> None:
    if _full_from and event in ("open", "os.mkdir") and str(details[0]).endswith(_full_from[0]):
        _full_from.clear()
        _limit_files(0)


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextlib.contextmanager
def full_disk_from(name: str) -> Iterator[None]:
    """Inside the block every write to a file fails, from the one on whose name ends so.

    In this process, which can see its own calls; a limit on the size of files is the full disk.
    """
    if _watch not in _hooks:
        sys.addaudithook(_watch)
        _hooks.append(_watch)
    _full_from.append(name)
    try:
        yield
        assert not _full_from, f"{name} was never opened"
    finally:
        _full_from.clear()
        _limit_files(resource.RLIM_INFINITY)


_hooks: list = []  # an audit hook is there for good
