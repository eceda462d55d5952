"""The judge's process: runs a trusted test against a candidate that lives in another process.

Started by `sandbox` as a script, once for every program, with the job on its standard input; its
standard output carries the verdict. The names that the test takes from the program are fetched
from the candidate: plain data as copies, all else as `Remote` proxies. What a test concludes is
concluded here, from values, so that nothing the candidate defines can take part in it.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import sandbox_kernel
import sandbox_mount
from sandbox_names import free_names, own_modules
from sandbox_wire import REPLIES_FD, REQUESTS_FD, decode, encode, read_frame, write_frame

MAX_ITEMS = 1_000_000
MAX_REASON = 200
# Reserved names that a test may ask of a candidate's object. By others, those of Python and numpy,
# it could pose as a buffer or a number.
_RESERVED = {"__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__dict__"}
# What `decode` raises for hostile data.
_INVALID = (
    *(ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError),
    RecursionError,
)


class Ended(BaseException):
    """The candidate can answer no more; not an Exception, for a test may catch those.

    `fair`: whether nothing but the program can have been the cause.
    """

    def __init__(self, reason: str, fair: bool = True) -> None:
        super().__init__(reason)
        self.fair = fair


class CandidateError(RuntimeError):
    """An exception of a class that the candidate derived from Exception itself."""

    name = ""


class Candidate:
    """The candidate's process: requests to it, its answers, and how it ended."""

    def __init__(self, limits: dict) -> None:
        self._limits = limits
        self._failure: Ended | None = None
        self.gone = False
        ends = [os.pipe(), os.pipe()]
        (request, self._requests), (self._replies, reply) = ends
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *sandbox_kernel.FLAGS, _CHILD],
            dict(os.environ),
            file_actions=_file_actions(request, reply),
        )
        os.close(request)
        os.close(reply)

    def send(self, *request: object) -> None:
        """Ask something. Raises Ended, and NotPlain or TypeError for what cannot be sent."""
        self.check()
        try:
            write_frame(self._requests, encode(list(request), _number))
        except OSError:
            self._fail(self._ending())

    def receive(self, operation: str = "") -> object:
        """The answer to an operation. Raises Ended, or what the candidate raised."""
        try:
            kind, *parts = read_frame(self._replies)
            if kind == "value":
                return decode(parts[0], lambda number: Remote(self, int(number)))
            error = self._error(*parts) if kind == "raised" else Ended(f"forbidden: {parts[0]}")
        except EOFError:
            error = self._ending()
        except MemoryError:
            error = Ended("out of memory", fair=False)
        except _INVALID:
            error = Ended("sent an invalid answer")
        if isinstance(error, Ended):
            self._fail(error)
        if isinstance(error, StopIteration) and operation != "next":
            # It would end a map() of the test, which then has nothing left to compare.
            raise RuntimeError("The candidate raised StopIteration.") from error
        raise error

    def ask(self, *request: object) -> object:
        """`send` and `receive`."""
        self.send(*request)
        return self.receive(str(request[0]))

    def check(self) -> None:
        """Raises Ended if the candidate has, whatever the test made of it."""
        if self._failure:
            raise self._failure

    def _fail(self, end: Ended) -> None:
        self._failure = end
        raise end

    def _error(self, name: str, kinds: Sequence, arguments: Sequence, text: str) -> BaseException:
        """The exception to raise here: of the nearest builtin class that takes the arguments."""
        for kind in map(vars(builtins).get, kinds):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                continue
            if not issubclass(kind, Exception):
                return Ended("ended before its tests")
            if kind is Exception and name != "Exception":
                break
            try:
                return kind(*arguments)
            except TypeError:  # UnicodeError and ExceptionGroup take others
                continue
        error = CandidateError(text)
        error.name = str(name)
        return error

    def _ending(self) -> Ended:
        """How the process has ended, or is about to."""
        for _ in range(50):
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        else:
            return Ended("closed the pipe to its judge")
        self.gone = True
        status = os.waitstatus_to_exitcode(status)
        if status >= 0:
            return Ended("ended before its tests")
        if -status == signal.SIGSYS:
            return Ended("forbidden: a system call")
        most = self._limits["cpu_seconds"]
        if -status == signal.SIGXCPU or usage.ru_utime + usage.ru_stime >= most:
            return Ended(f"killed after {most} s of processor time")
        if -status == signal.SIGKILL:
            # By itself, or where memory ran out by the kernel.
            return Ended("killed", fair=False)
        return Ended(f"crashed: {signal.Signals(-status).name}", fair=False)


class Remote:
    """An object of the candidate. It takes part in no comparison with plain data."""

    __slots__ = ("_candidate", "_number")

    def __init__(self, candidate: Candidate, number: int) -> None:
        self._candidate = candidate
        self._number = number

    def _ask(self, operation: str, *arguments: object) -> Any:
        return self._candidate.ask(operation, self, *arguments)

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name not in _RESERVED:
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __getitem__(self, key: object) -> object:
        return self._ask("item", key)

    def __iter__(self) -> Iterator:
        iterator = self._ask("iter")
        if not isinstance(iterator, Remote):
            raise TypeError("The candidate's iterator is none.")
        for _ in range(MAX_ITEMS):
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item
        raise ValueError(f"The candidate's iterator gave more than {MAX_ITEMS} items.")

    def __next__(self) -> object:
        return self._ask("next")

    def __contains__(self, item: object) -> bool:
        # The candidate must not learn what is looked for.
        return any(mine is item or mine == item for mine in self)

    def __len__(self) -> int:
        return self._ask("len")

    def __bool__(self) -> bool:
        return self._ask("bool")

    def __str__(self) -> str:
        return self._ask("str")

    def __repr__(self) -> str:
        return self._ask("repr")

    def __eq__(self, other: object) -> bool:
        if type(other) is not Remote:
            return False
        return self._number == other._number or self._ask("equal", other) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __instancecheck__(self, value: object) -> bool:
        return self._ask("instance", value) is True


def _number(value: object) -> int:
    if type(value) is Remote:
        return value._number
    raise TypeError(f"A candidate cannot be given a {type(value).__name__} of the test.")


_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_child.py")


def _file_actions(request: int, reply: int) -> list[tuple]:
    """Gives a candidate's process its two pipes and, as standard streams, /dev/null."""
    return [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, request, REQUESTS_FD),
        (os.POSIX_SPAWN_DUP2, reply, REPLIES_FD),
    ]


# ---------------------------------------------------------------------------------------
# The test


def run_test(job: dict, candidate: Candidate) -> tuple[bool, str, bool]:
    """Run the program, then the test.

    Returns whether it passed, the reason, and whether that can only be the program's own doing:
    what a program lacks, a busy machine may have withheld.
    """
    try:
        candidate.send("run")
        names, modules = free_names(job["test"])
        code = compile(job["test"], "<test>", "exec", dont_inherit=True)
        candidate.receive()
        found: Any = candidate.ask("names", names)
        # Only what the test names, under that name: the candidate cannot have another value run.
        values = {name: value for name, value in found.items() if name in names}
        exec(code, {"__name__": "test", **values, **own_modules(modules)})
        candidate.check()
    except Ended as end:
        return False, str(end), end.fair
    except MemoryError:
        return False, "out of memory", False
    # Whatever ends a test is a verdict, SystemExit too.
    except BaseException as error:
        fair = not isinstance(error, OSError) and type(error) is not RuntimeError
        return False, _described(error, job["test"]), fair
    return True, "passed", True


def _described(error: BaseException, test: str) -> str:
    name = error.name if isinstance(error, CandidateError) else type(error).__name__
    text = f"{error}"
    if not text:
        line = _line_of(error.__traceback__)
        text = test.splitlines()[line - 1].strip() if line else "no message"
    return f"{name}: {text}"


def _line_of(traceback: TracebackType | None) -> int:
    """The innermost line of the test in a traceback; 0 for none."""
    line = 0
    while traceback:
        if traceback.tb_frame.f_code.co_filename == "<test>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


# ---------------------------------------------------------------------------------------
# The process


def sweep(candidate: Candidate) -> None:
    """End the candidate and, where this process adopts orphans, all that it has started."""
    for kill in (os.killpg, os.kill)[: 1 if candidate.gone else 2]:
        try:
            kill(candidate.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    try:
        while True:
            # A child that lives on is an orphan: the candidate itself was killed.
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for orphan in sandbox_kernel.children_of(os.getpid()):
                    os.kill(orphan, signal.SIGKILL)
                os.waitpid(-1, 0)
    except ChildProcessError:
        return


def _limit(limits: dict) -> None:
    seconds = int(limits["seconds"]) + 2
    for name, value in (
        ("AS", max(2048, limits["memory_mb"]) * 2**20),
        ("CPU", seconds),
        ("CORE", 0),
    ):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (ValueError, OSError):  # a lower one rules already, or this system has none
            continue


def main() -> None:
    job = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    # A test is trusted, and some hold numbers of ten thousand digits.
    sys.set_int_max_str_digits(0)
    held = _enter(job)
    sandbox_kernel.guard_judge()
    _limit(job["limits"])
    # What a test prints must not reach the verdict. (These two descriptors take the numbers that
    # the pipes get in the child.)
    verdict = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    candidate = Candidate(job["limits"])
    # The folder of this file: a test must not import from it.
    sys.path.pop(0)
    if job["libraries"]:
        sys.path.append(job["libraries"])
    shared = ("program", "scratch", "libraries", "limits", "layers", "own_user")
    write_frame(candidate._requests, {name: job[name] for name in shared})
    held += read_frame(candidate._replies)
    # The first line: what confines the candidate, which runs nothing before that.
    os.write(verdict, f"{json.dumps(held)}\n".encode())
    passed, reason, fair = run_test(job, candidate)
    sweep(candidate)
    clean = "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON]
    os.write(verdict, json.dumps([passed, clean, fair]).encode())
    # At once, so that no destructor of what the candidate sent runs.
    os._exit(0)


def _enter(job: dict) -> list[str]:
    """Enters a namespace of mounts if the job asks for it; the scratch folder is there then."""
    needed = [sys.executable, sys.base_prefix, os.__file__, _CHILD, job["libraries"]]
    entered = None
    if "namespace" in job["layers"]:
        entered = sandbox_mount.enter(
            list(filter(None, needed)), job["limits"]["scratch_mb"], job["limits"]["files"]
        )
    job["own_user"] = False
    if entered is None:
        return []
    job["scratch"], job["own_user"] = entered
    os.environ["TMPDIR"] = os.environ["HOME"] = job["scratch"]
    return ["namespace"]


if __name__ == "__main__":
    main()
