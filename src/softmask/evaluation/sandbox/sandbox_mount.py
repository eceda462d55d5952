"""A mount namespace for a judge and its candidate: all is read-only but a small tmpfs.

What a program writes there lies in memory, is bounded in bytes and in files however it is written,
and is gone with the last process of the namespace. Needs Linux 5.12 and a user who may have one:
root with its capabilities, or anybody where user namespaces are allowed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

from sandbox_kernel import call

# From linux/sched.h and linux/mount.h.
_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_NO_SUID, _NO_DEVICES, _NO_EXEC, _RECURSIVE, _PRIVATE = 2, 4, 8, 0x4000, 0x40000
_MOUNT_SETATTR, _HERE, _ALL_BELOW, _READ_ONLY = 442, -100, 0x8000, 1
# Folders that every system has. The tmpfs hides what is in one of them from the program.
_PLACES = ("/tmp", "/var/tmp", "/mnt", "/media")


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def enter(needed: Sequence[str], megabytes: int, files: int) -> tuple[str, bool] | None:
    """Move this process, of one thread, into such a namespace, for good.

    `needed`: files and folders that must stay visible. Returns the only folder that can be
    written, and whether the process is in a user namespace of its own; None where the system
    does not allow it all.
    """
    place = _place(needed)
    if sys.platform != "linux" or place is None:
        return None
    own_user = _unshare()
    if own_user is None:
        return None
    read_only = _Attributes(_READ_ONLY)
    size = ctypes.c_ulong(ctypes.sizeof(read_only))
    options = f"size={megabytes}m,nr_inodes={files + 1},mode=700"  # one for the folder itself
    flags = _NO_SUID | _NO_DEVICES | _NO_EXEC
    held = (
        call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None) == 0
        and call("syscall", _MOUNT_SETATTR, _HERE, b"/", _ALL_BELOW, ctypes.byref(read_only), size)
        == 0
        and call("mount", b"scratch", place.encode(), b"tmpfs", flags, options.encode()) == 0
    )
    return (place, own_user) if held else None


def _place(needed: Sequence[str]) -> str | None:
    kept = {path for one in needed for path in (one, os.path.realpath(one))}
    for place in _PLACES:
        hides = any(path == place or path.startswith(f"{place}/") for path in kept)
        if not hides and os.path.isdir(place) and os.path.realpath(place) == place:
            return place
    return None


def _unshare() -> bool | None:
    """Whether a user namespace came with the one of mounts; None: neither is to be had."""
    if call("unshare", _NEW_MOUNTS) == 0:
        return False
    ids = os.geteuid(), os.getegid()
    if call("unshare", _NEW_MOUNTS | _NEW_USER) != 0:
        return None
    # The user is the same inside as outside.
    user, group = (f"{one} {one} 1" for one in ids)
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(text)
    except OSError:  # forbidden here
        return None
    return True
