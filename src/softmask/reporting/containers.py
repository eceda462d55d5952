"""What a container leaves to a process: its control groups, and memory. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
# The files of both versions: what a group may take, what it takes, and the line of its memory.stat
# that counts files, which give way.
LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def control_groups(
    controllers: Collection[str], root: Path = CGROUPS, membership: str | None = None
) -> list[Path]:
    """The folders of the control groups that this process is in, for these controllers.

    Args:
        controllers: their names in version 1 of the files; groups of version 2 come too.
        root: where control groups are mounted.
        membership: content of /proc/self/cgroup.
    """
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text()
        except OSError:
            return []
    found = []
    for line in membership.splitlines():
        _, controller, path = line.split(":", 2)
        if controller == "" or controller in controllers:
            base = root / controller
            own = base / path.strip("/")
            # Inside a container the path may be the host's: its own group is the mount itself.
            found += [folder for folder in {base, own, *own.parents} if folder.is_relative_to(base)]
    return found


def memory_left(
    root: Path = CGROUPS, membership: str | None = None, meminfo: Path = MEMINFO
) -> tuple[int, str]:
    """Bytes that this process may still take, and what sets the limit: a container or the machine.

    A machine that does not say what is available (macOS) counts as half taken.
    """
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        machine = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    groups = [_left(folder) for folder in control_groups(("memory",), root, membership)]
    container = min((left for left in groups if left is not None), default=machine)
    return (container, "the container") if container < machine else (machine, "the machine")


def _left(folder: Path) -> int | None:
    """What a group has left; None: it has no limit, or none that can be read."""
    for limit, usage, files in LIMITS:
        try:
            most, taken = (int((folder / name).read_text()) for name in (limit, usage))
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
        given_way = dict(line.split() for line in stat.splitlines()).get(files, 0)
        return max(0, most - taken + int(given_way))
    return None
