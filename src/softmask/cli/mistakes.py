"""What a user can cause, as one sentence; anything else is a fault of this program."""

from __future__ import annotations

import argparse
import errno
import os
import re
from collections.abc import Sequence

from ..rules import is_out_of_memory


def sentence(error: BaseException) -> str | None:
    """What is wrong and what to do, in one line; None: a fault of ours, whose traceback counts.

    Settings and files that do not suit are a ValueError, what the system refuses (a full disk, a
    missing right, the Hub) an OSError, and there may be too little memory.
    """
    if isinstance(error, OSError):
        return " ".join(_refused(error).split())
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return (
            f"out of memory ({str(error) or 'none is left'}): ask for fewer tokens or rows at "
            "once, or for a smaller dtype"
        )
    return None


def as_typed(reason: str, parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """An error that begins with a setting's name, beginning with the option that was typed for it.

    Args:
        words: of the command line, behind the command's name.
    """
    named = re.match(r"(?:[a-z_ ]+: )?(\w+) (?=must|is|needs)", reason)
    if named is None:
        return reason
    for action in parser._actions:
        names = [name.lstrip("-").replace("-", "_") for name in action.option_strings]
        if named[1] in (*names, action.dest.rpartition(".")[2]) and _is_setting(action):
            for option in action.option_strings:
                # Of `-n0` and `--steps=0` too.
                if any(re.match(rf"{option}(?![a-z-])", word) for word in words):
                    return f"{option} {reason[named.end() :]}"
    return reason


def _is_setting(action: argparse.Action) -> bool:
    """Whether its value is a number or of a settings class: other errors begin with file names."""
    return action.type in (int, float) or "." in action.dest


def _refused(error: OSError) -> str:
    """What the system refused, and for which file."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        # Our own files have names: what has none was printed, or a library's.
        return f"standard output or a temporary file: {reason}"
    return reason
