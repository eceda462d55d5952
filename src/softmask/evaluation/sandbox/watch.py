"""What the caller sees of a judge and its candidate from outside: what they use, and their end."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator

from .sandbox_kernel import children_of

_MAX_SWEEPS = 50


class Watch:
    """Looks whether a candidate stays within what no limit of the kernel holds it to here."""

    def __init__(self, judge: int, scratch: str, megabytes: int, files: int, threads: int) -> None:
        """`scratch`: the folder to measure, or ""; the others are what is allowed."""
        self._judge, self._scratch = judge, scratch
        self._bytes, self._files, self._threads = megabytes * 2**20, files, threads
        self._candidate = 0

    def excess(self) -> str:
        """What is too much of, in a few words; "" for nothing. Measured, so known a little late."""
        self._candidate = self._candidate or next(iter(children_of(self._judge)), 0)
        if _threads_of(self._candidate) > self._threads:
            return f"started more than {self._threads} threads"
        if self._scratch:
            sizes = [*_sizes_in(self._scratch), *_sizes_of_unlinked(self._candidate)]
            # Bytes first: between two looks a program may have passed both.
            if sum(sizes) > self._bytes:
                return f"wrote more than {self._bytes >> 20} MB"
            if len(sizes) > self._files:
                return f"wrote more than {self._files} files"
        return ""


def _threads_of(pid: int) -> int:
    """0 where that is not to be had."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # After the name in brackets, which may hold anything.
            return int(file.read().rpartition(b")")[2].split()[17])
    except (OSError, IndexError):
        return 0


def _sizes_in(folder: str) -> Iterator[int]:
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:  # gone since
                continue


def _sizes_of_unlinked(pid: int) -> Iterator[int]:
    """Files that no folder shows any more, as long as a process has them open."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:  # ended, or no /proc
        return
    for name in names:
        try:
            found = os.stat(f"{folder}/{name}")
        except OSError:  # closed since
            continue
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
            yield found.st_blocks * 512


def processor_seconds(judge: int) -> float:
    """What a judge and its children have used so far; 0 where /proc does not tell."""
    ticks = 0
    for pid in (judge, *children_of(judge)) if sys.platform == "linux" else ():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                ticks += sum(int(t) for t in file.read().rpartition(b")")[2].split()[11:13])
        except (OSError, IndexError):  # gone since
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def kill(judge: int) -> None:
    """Kill a judge that still runs, its children first: it adopts their orphans."""
    for _ in range(_MAX_SWEEPS):
        children = children_of(judge)
        for pid in children:
            _signal(os.kill, pid)
        if not children:
            break
    _signal(os.killpg, judge)


def _signal(send: Callable[[int, int], None], pid: int) -> None:
    try:
        send(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it was quicker; macOS has the other word
        return
