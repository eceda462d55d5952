"""A process that has imported what commands import, and forks one for each command.

Run as a script with the number of a listening socket, by `processes.py`. Most of the time of a
short command is imports: three to five seconds, which a fork does not repeat. A fork is a process
of its own all the same: with its own number, streams, folder, environment and end.

What a fork has of this process, and a new interpreter has not: the order of sets (one seed of
hashes for all), so that what must not depend on it needs interpreters of its own. At the end of a
fork threads are waited for, exit functions run and streams are flushed, but modules are not taken
down, which for all that is imported takes half a second.

A request, of `fork_relay.py`, is one message: JSON and the file descriptors of the streams that
are open. The answers are the number of the process and, when it has ended, its exit code as
`subprocess` counts it. Who leaves before that has been killed, and so is the process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

import numpy

os.fsync = lambda _: None  # as in conftest.py

MESSAGE = 1 << 20  # bytes, more than any command line of a test
ERROR = ("error", None, Warning)  # the filter of PYTHONWARNINGS=error, under which this runs
Request = dict


def import_all() -> None:
    """What commands import. Fails if it leaves a thread behind, which a fork would lose."""
    import softmask

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as the command line does
    for module in pkgutil.walk_packages(softmask.__path__, "softmask."):
        if not any(part in module.name for part in ("__main__", "sandbox", "ray_serve")):
            importlib.import_module(module.name)
    for name in ("datasets", "peft", "accelerate", "lm_eval.evaluator", "uvicorn"):
        importlib.import_module(name)
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    # pyarrow's allocator has a thread of its own, and knows about forks.
    left = [name for name in names[1:] if name != "jemalloc_bg_thd"]
    assert not left, f"imports left the threads {left}"


def serve(listener: socket.socket) -> Request:
    """Answers requests for as long as this process' parent lives; returns in forked processes."""
    is_ready, set_by_imports = False, {}
    waiting: dict[int, socket.socket] = {}  # process: who wants to know how it ends
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    while True:
        ready, _, _ = select.select([listener, read, 0, *waiting.values()], [], [])
        if 0 in ready:  # closed: whoever started us is gone
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        for pid, client in waiting.items():
            if client in ready:
                os.kill(pid, signal.SIGKILL)
        if read in ready:
            os.read(read, 1024)
        for pid in [*waiting]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                answer(waiting[pid], os.waitstatus_to_exitcode(status))
                waiting.pop(pid).close()
        if listener in ready:
            client, _ = listener.accept()
            if not is_ready:
                before = {*os.environ}
                import_all()
                set_by_imports = {k: v for k, v in os.environ.items() if k not in before}
                gc.freeze()  # else every end of a fork looks through all of it: two seconds
                is_ready = True
            message, descriptors, _, _ = socket.recv_fds(client, MESSAGE, 3)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in [listener, client, *waiting.values()]:
                    other.close()
                os.close(read)
                os.close(write)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                request = json.loads(message)
                streams = dict(zip(request["streams"], descriptors, strict=True))
                return request | {"streams": streams, "env": set_by_imports | request["env"]}
            for descriptor in descriptors:
                os.close(descriptor)
            waiting[pid] = client
            answer(client, pid)


def answer(client: socket.socket, number: int) -> None:
    """Tells a client; one that has left (its test was ended) needs no answer."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(f"{number}\n".encode())


def become(request: Request) -> None:
    """Makes this process what a new interpreter would be."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        if number not in request["streams"]:
            os.close(number)
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
            continue
        os.dup2(request["streams"][number], number)
        os.close(request["streams"][number])
        # As a new interpreter: standard error line by line, the others as `open` sees fit.
        buffering, mode = (1, "w") if name == "stderr" else (-1, "rw"[number])
        new = open(number, mode, buffering, old.encoding, old.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Beside the filters that imports have added, those of this environment.
    warnings.filters[:] = [one for one in warnings.filters if one[:3] != ERROR]
    for action in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings.simplefilter(action)
    sys.argv = request["argv"]
    sys.path[0] = ""
    numpy.random.seed()  # as Python's own generator is after a fork


def run(request: Request) -> None:
    """The module, or the program, that is asked for."""
    if request["program"] is None:
        runpy.run_module("softmask", run_name="__main__", alter_sys=True)
    else:
        exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})


def leave(code: int) -> None:
    """Ends as an interpreter does, as far as others see it; returns where a stream is broken."""
    threading._shutdown()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    listening = socket.socket(fileno=int(sys.argv[1]))
    request = serve(listening)
    become(request)
    try:
        run(request)
    except SystemExit as error:
        if not isinstance(error.code, int | None):  # words, which the interpreter prints
            raise
        leave(error.code or 0)
        raise
    leave(0)
