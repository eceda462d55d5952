"""The candidate's process: confines itself, runs the program, then answers the judge.

Started by `sandbox_judge` as a script, with the standard library only. Whatever the program does
to this process it does to itself: all that leaves it are values (`sandbox_wire`), and the judge
alone knows what it compares them with.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from sandbox_wire import (
    REPLIES_FD,
    REQUESTS_FD,
    NotPlain,
    decode,
    encode,
    read_frame,
    write_frame,
)

# The program may patch the builtins of all others; functions keep those of their definition.
__builtins__ = dict(vars(builtins))  # type: ignore[assignment]


def confine(job: dict) -> list[str]:
    """Give up, for good, all that a candidate does not need, and forget the modules that did it.

    Returns which of the job's layers took hold, of "landlock", "seccomp", "threads" and "hook".
    """
    # Imported here and forgotten below: no name that stays may lead the program to ctypes or to
    # what the hook is made of.
    import sandbox_hook
    import sandbox_kernel

    scratch, libraries, layers = job["scratch"], job["libraries"], job["layers"]
    sys.path.pop(0)  # the folder of these files
    os.setsid()
    os.chdir(scratch)
    readable = [
        *(sys.base_prefix, os.path.dirname(os.__file__), *filter(None, [libraries])),
        *("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/System", "/Library"),
        *("/etc/localtime", "/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero"),
    ]
    # In a namespace of mounts all else is read-only, and the scratch goes with its processes.
    free = job["limits"]["libraries"] and {"namespace", "landlock", "seccomp"} <= set(layers)
    held = sandbox_kernel.confine(readable, scratch, layers, job["own_user"], free)
    _limit(job["limits"], held)
    # A later import of ctypes must pass the hook.
    for name in [n for n in sys.modules if n.startswith(("sandbox_", "ctypes", "_ctypes"))]:
        del sys.modules[name]
    if "hook" in layers:
        # The real modules start processes, and leave semaphores and pipes for other programs,
        # without raising an audit event.
        _stand_in("_posixsubprocess", fork_exec=_no_process)
        _stand_in("_multiprocessing", SemLock=_NoSemaphore, sem_unlink=_NoSemaphore)
        for function in (getattr(os, name, None) for name in ("mkfifo", "mknod")):
            for module in (os, sys.modules[os.name]):
                vars(module).pop(getattr(function, "__name__", ""), None)
            for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                known.discard(function)
        if not free:
            sys.addaudithook(sandbox_hook.audit_hook(scratch, [*readable, os.devnull]))
        held.append("hook")
    return held


def _stand_in(name: str, **values: object) -> None:
    stub = ModuleType(name)
    vars(stub).update(values)
    sys.modules[name] = stub


class _NoSemaphore:
    SEM_VALUE_MAX = 2**31 - 1

    def __init__(self, *_arguments: object, **_named: object) -> None:
        raise PermissionError(1, "The sandbox has no semaphores")


def _no_process(*_arguments: object, **_named: object) -> None:
    sys.audit("subprocess.Popen")
    # Where no hook ends the process: what libraries try in good faith they can do without.
    raise PermissionError(1, "The sandbox starts no process")


def _limit(limits: dict, held: Sequence[str]) -> None:
    import resource

    wanted = {
        "AS": limits["memory_mb"] * 2**20,
        "CPU": limits["cpu_seconds"],
        "FSIZE": limits["file_mb"] * 2**20,
        "NOFILE": 64,
        "CORE": 0,
    }
    if "seccomp" not in held:
        wanted["NPROC"] = 0  # forbids threads as well
    elif "threads" in held:
        wanted["NPROC"] = limits["threads"]
    for name, value in wanted.items():
        try:
            # Past the soft limit on time comes a signal, which a program can ignore.
            hard = value + 1 if name == "CPU" else value
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, hard))
        except (ValueError, OSError):  # a lower one rules already, or this system has none
            continue


class Server:
    """Runs the program, then what the judge asks of it."""

    def __init__(self, program: str) -> None:
        self._program = program
        # A module that is not __main__: no harness runs what a script runs. Registered, because
        # dataclasses and typing look up the module of a class.
        self._module = ModuleType("candidate")
        self._objects: list[object] = []
        self._numbers: dict[int, int] = {}

    def run(self) -> None:
        sys.modules["candidate"] = sys.modules["__main__"] = self._module
        vars(self._module)["__builtins__"] = builtins
        # dont_inherit: this file's __future__ imports are not the program's.
        exec(compile(self._program, "<candidate>", "exec", dont_inherit=True), vars(self._module))

    def names(self, names: Sequence[str]) -> dict[str, object]:
        """Those of the names that the program defines; a module is no value."""
        defined = vars(self._module)
        return {n: defined[n] for n in names if n in defined and type(defined[n]) is not ModuleType}

    def answer(self, request: object) -> list:
        """What came of a request, ready to be sent."""
        try:
            name, *arguments = decode(request, self._objects.__getitem__)
            value = _OPERATIONS[name](self, *arguments)
            try:
                return ["value", encode(value, self._number)]
            except NotPlain:
                return ["value", ["o", self._number(value)]]
        # Not only Exception: what ends a program must not end this one without a word.
        except BaseException as error:
            return _raised(error)

    def _number(self, value: object) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return number


_OPERATIONS: dict[str, Callable] = {
    "run": lambda server: server.run(),
    "names": lambda server, names: server.names(names),
    "call": lambda server, function, args, kwargs: function(*args, **kwargs),
    "attribute": lambda server, value, name: getattr(value, name),
    "item": lambda server, value, key: value[key],
    "iter": lambda server, value: iter(value),
    "next": lambda server, value: next(value),
    "len": lambda server, value: len(value),
    "bool": lambda server, value: bool(value),
    "str": lambda server, value: str(value),
    "repr": lambda server, value: repr(value),
    "equal": lambda server, value, other: bool(value == other),
    "instance": lambda server, kind, value: isinstance(value, kind),
}


def _raised(error: BaseException) -> list:
    kinds = [kind.__name__ for kind in type(error).__mro__ if vars(builtins).get(kind.__name__)]
    try:
        arguments = [str(a)[:1000] for a in error.args]
        text = str(error)
    # The program's own __str__ may raise anything.
    except BaseException:
        arguments, text = [], ""
    return ["raised", type(error).__name__, kinds, arguments, text[:1000]]


def main() -> None:
    job = read_frame(REQUESTS_FD)
    # The only message that comes of no request.
    write_frame(REPLIES_FD, confine(job))
    if job["libraries"]:
        sys.path.append(job["libraries"])
    server = Server(job["program"])
    while True:
        try:
            request = read_frame(REQUESTS_FD)
        except EOFError:  # the judge is gone
            return
        reply = server.answer(request)
        try:
            write_frame(REPLIES_FD, reply)
        except (NotPlain, MemoryError) as error:
            write_frame(REPLIES_FD, _raised(error))


if __name__ == "__main__":
    main()
