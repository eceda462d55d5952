"""The audit hook that ends a candidate's process on events that no candidate has a reason for.

It is code that runs beside the candidate's, and so only a second layer; it is the first one where
the kernel offers none. `sandbox_child` imports this file by its own name, without the package, and
forgets the module before the program runs.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Sequence

from sandbox_wire import REPLIES_FD

MAX_WRITES = 100  # files opened for writing; each is limited in size by the kernel

# The program may patch the builtins of all others; functions keep those of their definition.
__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

# Modules that reach files, processes or memory without an event.
UNAUDITED = {
    *("_ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_ctypes_test"),
    *("_dbm", "_gdbm", "_sqlite3", "_tkinter", "_curses", "readline"),
    *("_posixshmem", "_multiprocessing", "posix"),
}
FORBIDDEN = (
    *("socket.bind", "socket.connect", "socket.send", "socket.__new__"),
    *("socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo", "socket.sethostname"),
    *("ftplib.", "http.", "imaplib.", "nntplib.", "poplib.", "smtplib."),
    *("telnetlib.", "urllib.", "webbrowser.", "subprocess.", "pty.", "syslog."),
    *("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
    *("os.kill", "os.chmod", "os.chown", "os.chflags", "os.link", "os.lchown", "os.lockf"),
    *("os.mkdir", "os.removexattr", "os.rmdir", "os.setxattr", "os.symlink", "os.truncate"),
    *("os.utime", "ctypes.", "fcntl.", "sqlite3.", "resource.prlimit"),
    *("gc.get_", "cpython.PyInterpreterState_New"),
)


def audit_hook(scratch: str, readable: Sequence[str]) -> Callable[[str, tuple], None]:
    """The hook of a candidate that may write in `scratch` and read there and in `readable`.

    It keeps what it uses in its closure, and calls no method of an object of the program nor
    Python code of a library, which leaves little to patch.
    """
    write, end, getcwd = os.write, os._exit, os.getcwd
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    unaudited, forbidden, most, writes = UNAUDITED, FORBIDDEN, MAX_WRITES, 0

    def forbid(event: str) -> None:
        name = "".join(c for c in event if c.isalnum() or c in "._")
        body = f'["forbidden","{name}"]'.encode()
        write(REPLIES_FD, len(body).to_bytes(4, "big") + body)
        end(1)

    def text_of(path: object) -> str | None:
        if issubclass(type(path), bytes):
            path = bytes.decode(path, "utf-8", "surrogateescape")  # type: ignore[arg-type]
        return str.__str__(path) if issubclass(type(path), str) else None

    def within(path: object, folders: Sequence[str]) -> bool:
        path = text_of(path)
        if path is None:
            return False
        if not path.startswith("/"):
            path = f"{getcwd()}/{path}"
        if ".." in path.split("/"):
            return False
        return any(path == f or path.startswith(f"{f}/") for f in folders)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal writes
        if event == "import":
            if arguments[0].rpartition(".")[2] in unaudited:
                raise ImportError(f"The sandbox has no {arguments[0]}.")
        elif event == "open":
            path, mode, flags = arguments
            if type(path) is int:
                return
            # Of os.open no mode is told, nor the folder that a relative path may start at.
            anywhere = mode is None and (text_of(path) or "")[:1] != "/"
            if not flags & writing:
                if not within(path, (scratch, *readable)):
                    raise PermissionError(13, "The sandbox forbids to read", "this file")
            elif path != "/dev/null":
                writes += 1
                if writes > most or anywhere or not within(path, (scratch,)):
                    forbid(event)
        elif event in ("os.remove", "os.rename"):
            paths = arguments[: 1 if event == "os.remove" else 2]
            if not all(within(p, (scratch,)) for p in paths) or max(arguments[len(paths) :]) >= 0:
                forbid(event)
        elif event == "socket.__new__" and arguments[1] == 1:
            return  # AF_UNIX, half of the pair that asyncio makes; it connects to nothing
        elif event.startswith(forbidden):
            forbid(event)

    return hook
