"""What this machine, and the container around this process, allow: processors and memory. No torch.

Control groups of Linux limit a container, and a user's session; the system's own numbers know
nothing of them. Both versions of their files are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes: all that this process may ever have (with swap), and what is free of it now; and what
    leaves no more than that: the machine, or a container."""

    total: int
    available: int
    limited_by: str = "the machine"


def processors_of_container(root: Path = CGROUPS, membership: str | None = None) -> int | None:
    """How many processors' time the control groups of this process allow, rounded up.

    None: there is no limit, or none that can be read.

    Args:
        root: where control groups are mounted.
        membership: content of /proc/self/cgroup.
    """
    quotas = [_quota(folder) for folder in _groups("cpu", root, membership)]
    known = [quota for quota in quotas if quota is not None]
    return max(1, -int(-min(known) // 1)) if known else None


def memory(root: Path = CGROUPS, membership: str | None = None) -> Memory:
    """The memory of a CPU that this process may use; arguments as of `processors_of_container`.

    A group that is limited has no swap beyond it counted: whether it may swap is another limit.
    """
    import psutil

    here = psutil.virtual_memory()
    total, available = here.total + psutil.swap_memory().total, here.available
    by = "the machine"
    for folder in _groups("memory", root, membership):
        found = _limit(folder)
        if found is not None:
            limit, used = found
            total, left = min(total, limit), max(0, limit - used)
            if left < available:
                available, by = left, "the container"
    return Memory(total, available, by)


def _groups(controller: str, root: Path, membership: str | None) -> Iterator[Path]:
    """The folders of the groups that this process is in, for one controller."""
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:
            return
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = root / controllers
            own = base / path.strip("/")
            # Inside a container the path may be the host's: its own group is the mount itself.
            yield from (f for f in {base, own, *own.parents} if f.is_relative_to(base))


def _quota(folder: Path) -> float | None:
    """The processors that a group is allowed; None: as many as there are."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return float(quota) / float(period) if quota != "max" and float(quota) > 0 else None
    except (OSError, ValueError):
        return None


def _limit(folder: Path) -> tuple[int, int] | None:
    """Bytes that a group may have and has, without files' pages that it gives back; None: no limit.

    The first version says "no limit" by a number of more than any machine has.
    """
    second = (folder / "memory.max").is_file()
    names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes",)
    names = names if second else (*names, "memory.usage_in_bytes")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in names)
        if limit == "max":
            return None
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        stat = dict(line.split(" ", 1) for line in lines)
        of_all = "" if second else "total_"  # groups below included
        files = ("inactive_file", "active_file")
        given_back = sum(int(stat.get(f"{of_all}{name}", 0)) for name in files)
        return int(limit), max(0, int(used) - given_back)
    except (OSError, ValueError):
        return None
