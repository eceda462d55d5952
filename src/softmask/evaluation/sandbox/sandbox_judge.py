"""The judge's process: runs a trusted test against a candidate that lives in another process.

Started by `sandbox` as a script, once for every program, with the job on its standard input; its
standard output carries the verdict. The names that the test takes from the program are fetched
from the candidate: plain data as copies, all else as `Remote` proxies. What a test concludes is
concluded here, from values, so that nothing the candidate defines can take part in it.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import resource
import signal
import symtable
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import sandbox_kernel
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
    """The candidate can answer no more; not an Exception, for a test may catch those."""


class CandidateError(RuntimeError):
    """An exception of a class that the candidate derived from Exception itself."""

    name = ""


class Candidate:
    """The candidate's process: requests to it, its answers, and how it ended."""

    def __init__(self, limits: dict) -> None:
        self._limits = limits
        self._failure = ""
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
            self._fail(self._end_reason())

    def receive(self) -> object:
        """The answer. Raises Ended, or what the candidate raised."""
        try:
            kind, *parts = read_frame(self._replies)
            if kind == "value":
                return decode(parts[0], lambda number: Remote(self, int(number)))
            error = self._error(*parts) if kind == "raised" else Ended(f"forbidden: {parts[0]}")
        except EOFError:
            error = Ended(self._end_reason())
        except MemoryError:
            error = Ended("out of memory")
        except _INVALID:
            error = Ended("sent an invalid answer")
        if isinstance(error, Ended):
            self._fail(str(error))
        raise error

    def ask(self, *request: object) -> object:
        """`send` and `receive`."""
        self.send(*request)
        return self.receive()

    def check(self) -> None:
        """Raises Ended if the candidate has, whatever the test made of it."""
        if self._failure:
            raise Ended(self._failure)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        raise Ended(reason)

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

    def _end_reason(self) -> str:
        """Why the process has ended, or is about to."""
        for _ in range(50):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.01)
        else:
            return "closed the pipe to its judge"
        self.gone = True
        status = os.waitstatus_to_exitcode(status)
        if status >= 0:
            return "ended before its tests"
        if -status == signal.SIGSYS:
            return "forbidden: a system call"
        if -status in (signal.SIGXCPU, signal.SIGKILL):
            return f"killed, as after {self._limits['cpu_seconds']} s of processor time"
        return f"crashed: {signal.Signals(-status).name}"


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


def names_to_fetch(test: str) -> list[str]:
    """The names that a test loads and neither defines nor finds among the builtins.

    Where there is none, the tested function has the name of a builtin (MBPP has a `sum`): then
    the builtins that the test's own statements load, outside of its functions. Raises
    SyntaxError.
    """
    top = symtable.symtable(test, "<test>", "exec")
    outer = {s.get_name() for s in top.get_symbols() if s.is_referenced() and not _is_bound(s)}
    bound = {s.get_name() for s in top.get_symbols() if _is_bound(s)}
    loaded = outer | (_globals_of(top) - bound)
    return sorted(loaded - set(dir(builtins))) or sorted(outer)


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    found = set()
    for inner in table.get_children():
        found |= {s.get_name() for s in inner.get_symbols() if s.is_global()} | _globals_of(inner)
    return found


def fetch(candidate: Candidate, names: Sequence[str]) -> dict[str, object]:
    """The program's values of these names; a module of the standard library is our own."""
    answer: Any = candidate.ask("names", names)
    values, modules = answer
    known = {name for name in modules if name in sys.stdlib_module_names or name == "numpy"}
    own = {name: name for name in known if modules[name] == name}
    if modules.get("np") == "numpy":
        own["np"] = "numpy"
    # Only what the test names, under that name: the candidate cannot have another value run.
    return {
        **{name: value for name, value in values.items() if name in names},
        **{name: importlib.import_module(own[name]) for name in own if name in names},
    }


def run_test(job: dict, candidate: Candidate) -> tuple[bool, str]:
    """Run the program, then the test; return whether it passed, and the reason."""
    try:
        candidate.send("run")
        names = names_to_fetch(job["test"])
        code = compile(job["test"], "<test>", "exec", dont_inherit=True)
        candidate.receive()
        namespace = {"__name__": "test", **fetch(candidate, names)}
        exec(code, namespace)
        candidate.check()
    except Ended as end:
        return False, str(end)
    except MemoryError:
        return False, "out of memory"
    # Whatever ends a test is a verdict, SystemExit too.
    except BaseException as error:
        return False, _described(error, job["test"])
    return True, "passed"


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
    shared = ("program", "scratch", "libraries", "limits", "layers")
    write_frame(candidate._requests, {name: job[name] for name in shared})
    passed, reason = run_test(job, candidate)
    sweep(candidate)
    clean = "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON]
    os.write(verdict, json.dumps([passed, clean]).encode())
    # At once, so that no destructor of what the candidate sent runs.
    os._exit(0)


if __name__ == "__main__":
    main()
