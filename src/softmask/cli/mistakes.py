"""What a user can cause, as one sentence; anything else is a fault of this program."""

from __future__ import annotations

import errno
import os


def sentence(error: BaseException) -> str | None:
    """What is wrong and what to do, in one line; None: a fault of ours, whose traceback counts.

    Settings and files that do not suit are a ValueError, what the system refuses (a full disk, a
    missing right, the Hub) an OSError, and there may be too little memory.
    """
    if isinstance(error, OSError):
        return " ".join(_refused(error).split())
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if _is_out_of_memory(error):
        return (
            f"out of memory ({str(error) or 'none is left'}): ask for fewer tokens or rows at "
            "once, or for a smaller dtype"
        )
    return None


def _refused(error: OSError) -> str:
    """What the system refused, and for which file."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        # Our own files have names: what has none was printed, or a library's.
        return f"standard output or a temporary file: {reason}"
    return reason


def _is_out_of_memory(error: BaseException) -> bool:
    """torch's error on a GPU is a class of its own; on a CPU it is known by its words alone."""
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    names = [cls.__name__ for cls in type(error).__mro__]
    known = bool({"MemoryError", "OutOfMemoryError"} & {*names})
    return known or "can't allocate memory" in str(error)
