"""The candidate's process: confines itself, runs the program, then answers the judge.

Started by `sandbox_judge` as a script, with the standard library only. Whatever the program does
to this process it does to itself: all that leaves it are values, and the judge alone knows what
it compares them with. The language the two speak is defined here too: frames with a length,
holding JSON in which a container is a list headed by a tag, and an object that is no plain data
is a number that only the owner can resolve.
"""

from __future__ import annotations

import _collections
import builtins
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType, NoneType

REQUESTS_FD, REPLIES_FD = 3, 4
MAX_FRAME = 64 * 2**20
MAX_DEPTH = 100
MAX_WRITES = 100  # files opened for writing; each is limited in size by the kernel

# The program may patch the builtins of all others; functions keep those of their definition.
__builtins__ = dict(vars(builtins))

_dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_DIRECT = {NoneType, bool, float, str}
_KEYS, _ITEMS, _VALUES = (type(view) for view in ({}.keys(), {}.items(), {}.values()))


class NotPlain(ValueError):
    """A value that no message can hold."""


# ---------------------------------------------------------------------------------------
# The language


def write_frame(fd: int, message: object) -> None:
    """Send a message of JSON types.

    Raises NotPlain when it is too large, MemoryError, and OSError when nobody listens.
    """
    # JSON would read two lone surrogates as one character if they were escaped.
    body = _dumps(message).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise NotPlain(f"A value of {len(body)} bytes is too large.")
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> object:
    """Receive a message of JSON types.

    Raises EOFError when the other side is gone, ValueError or RecursionError for what is no
    message.
    """
    size = int.from_bytes(_read(fd, 4), "big")
    if size > MAX_FRAME:
        raise ValueError("The message is too large.")
    return json.loads(_read(fd, size).decode("utf-8", "surrogatepass"))


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, min(size - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def encode(value: object, opaque: Callable[[object], int], depth: int = 0) -> object:
    """Return a value in JSON types: plain data as such, subclasses as their base.

    `opaque` numbers any other object, or raises. Raises NotPlain for data nested too deeply,
    such as a list that holds itself.
    """
    kind = type(value)
    if kind in _DIRECT:
        return value
    if depth > MAX_DEPTH:
        raise NotPlain("The value is nested too deeply.")

    def inner(parts: Iterable) -> list:
        return [p if type(p) in _DIRECT else encode(p, opaque, depth + 1) for p in parts]

    # By the type alone: an object can lie about its class, but then not pass as that class.
    if issubclass(kind, int):
        number = int.__int__(value)
        return number if -(2**63) < number < 2**63 else ["i", hex(number)]
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, list):
        return ["l", *inner(list.__iter__(value))]
    if issubclass(kind, tuple):
        return ["t", *inner(tuple.__iter__(value))]
    if issubclass(kind, dict):
        return ["d", *inner(part for item in dict.items(value) for part in item)]
    if issubclass(kind, set):
        return ["s", *inner(set.__iter__(value))]
    if issubclass(kind, frozenset):
        return ["f", *inner(frozenset.__iter__(value))]
    return _encode_rarer(value, kind, inner) or ["o", opaque(value)]


def _encode_rarer(value, kind: type, inner: Callable[[Iterable], list]) -> object:
    if issubclass(kind, complex):
        return ["c", complex.real.__get__(value), complex.imag.__get__(value)]
    if issubclass(kind, bytes):
        return ["b", bytes.decode(value, "latin-1")]
    if issubclass(kind, bytearray):
        return ["B", bytearray.decode(value, "latin-1")]
    if kind is range:
        return ["r", *inner((value.start, value.stop, value.step))]
    if kind is _KEYS:
        return ["K", *inner(value)]
    if kind is _ITEMS:
        return ["I", *inner(part for item in value for part in item)]
    if kind is _VALUES:
        return ["V", *inner(value)]
    if issubclass(kind, _collections.deque):
        return ["q", *inner((value.maxlen, *_collections.deque.__iter__(value)))]
    # Only a program that uses these has imported them.
    if _is(kind, "fractions", "Fraction"):
        return ["F", *inner((value.numerator, value.denominator))]
    if _is(kind, "decimal", "Decimal"):
        return ["D", str(value)]
    if _is(kind, "numpy", "ndarray") and value.dtype.kind in "biufcU":
        return ["N", value.dtype.str, *inner([value.tolist()])]
    if _is(kind, "numpy", "generic") and value.dtype.kind in "biufcU":
        return inner([value.item()])[0] if value.dtype.itemsize <= 16 else None
    return None


def _is(kind: type, module: str, name: str) -> bool:
    known = getattr(sys.modules.get(module), name, None)
    return isinstance(known, type) and issubclass(kind, known)


def decode(data: object, resolve: Callable[[object], object]) -> object:
    """Return the value that `encode` was given; `resolve` finds an object by its number.

    Raises ValueError, TypeError, ArithmeticError, LookupError, RecursionError or ImportError
    (an array, and no numpy here) for what `encode` cannot have made.
    """
    if type(data) is not list:
        return data
    tag, *parts = data
    if tag == "o":
        return resolve(parts[0])
    plain = [decode(p, resolve) if type(p) is list else p for p in parts]
    return plain if tag == "l" else _DECODERS[tag](plain)


def _pairs(parts: Sequence) -> dict:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _deque(parts: Sequence) -> object:
    return _collections.deque(parts[1:], parts[0])


def _fraction(parts: Sequence) -> object:
    from fractions import Fraction

    return Fraction(*parts)


def _decimal(parts: Sequence) -> object:
    from decimal import Decimal

    return Decimal(parts[0])


def _array(parts: Sequence) -> object:
    import numpy

    return numpy.array(parts[1], numpy.dtype(str(parts[0])))


_DECODERS: dict[str, Callable[[Sequence], object]] = {
    "i": lambda parts: int(parts[0], 16),
    "t": tuple,
    "d": _pairs,
    "s": set,
    "f": frozenset,
    "c": lambda parts: complex(*parts),
    "b": lambda parts: parts[0].encode("latin-1"),
    "B": lambda parts: bytearray(parts[0], "latin-1"),
    "r": lambda parts: range(*parts),
    "K": lambda parts: dict.fromkeys(parts).keys(),
    "I": lambda parts: _pairs(parts).items(),
    "V": lambda parts: dict(enumerate(parts)).values(),
    "q": _deque,
    "F": _fraction,
    "D": _decimal,
    "N": _array,
}


# ---------------------------------------------------------------------------------------
# The protections


def confine(scratch: str, libraries: str, limits: dict, layers: Sequence[str]) -> None:
    """Give up, for good, all that a candidate needs not.

    `libraries`: the folder of third-party packages that may be read, or ""; `layers`: of
    "landlock", "seccomp" and "hook".
    """
    import sandbox_kernel

    os.setsid()
    os.chdir(scratch)
    readable = [
        *(sys.base_prefix, os.path.dirname(os.__file__), *filter(None, [libraries])),
        *("/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/System", "/Library"),
        *("/etc/localtime", "/etc/ld.so.cache", "/dev/urandom", "/dev/random", "/dev/zero"),
    ]
    held = sandbox_kernel.confine(readable, scratch, layers)
    _limit(limits, "seccomp" in held)
    # The next one to import ctypes must ask the hook.
    for name in [n for n in sys.modules if n.startswith(("sandbox_kernel", "ctypes", "_ctypes"))]:
        del sys.modules[name]
    if "hook" in layers:
        # Starts processes without an event of its own.
        stub = ModuleType("_posixsubprocess")
        stub.fork_exec = lambda *arguments: sys.audit("subprocess.Popen")
        sys.modules["_posixsubprocess"] = stub
        sys.addaudithook(_hook(scratch, [*readable, os.devnull]))


def _limit(limits: dict, no_fork: bool) -> None:
    import resource

    wanted = {
        "AS": limits["memory_mb"] * 2**20,
        "CPU": limits["cpu_seconds"],
        "FSIZE": limits["file_mb"] * 2**20,
        "NOFILE": 64,
        "CORE": 0,
    }
    if not no_fork:
        wanted["NPROC"] = 0  # would forbid threads as well
    for name, value in wanted.items():
        try:
            # Past the soft limit on time comes a signal, which a program can ignore.
            hard = value + 1 if name == "CPU" else value
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, hard))
        except (ValueError, OSError):  # a lower one rules already, or this system has none
            continue


def _hook(scratch: str, readable: Sequence[str]) -> Callable[[str, tuple], None]:
    """An audit hook that ends the process on events no candidate has a reason for.

    It is code that runs beside the candidate's, and so only a second layer (the first where
    the kernel offers none). It keeps what it uses in its closure, and calls no method of an
    object of the program nor Python code of a library, which leaves little to patch.
    """
    write, end, getcwd = os.write, os._exit, os.getcwd
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    unaudited, forbidden, most, writes = _UNAUDITED, _FORBIDDEN, MAX_WRITES, 0

    def forbid(event: str) -> None:
        name = "".join(c for c in event if c.isalnum() or c in "._")
        body = f'["forbidden","{name}"]'.encode()
        write(REPLIES_FD, len(body).to_bytes(4, "big") + body)
        end(1)

    def within(path: object, folders: Sequence[str]) -> bool:
        if issubclass(type(path), bytes):
            path = bytes.decode(path, "utf-8", "surrogateescape")
        if not issubclass(type(path), str):
            return False
        path = str.__str__(path)
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
            path, _, flags = arguments
            if type(path) is int:
                return
            if not flags & writing:
                if not within(path, (scratch, *readable)):
                    raise PermissionError(13, "The sandbox forbids to read", "this file")
            elif path != "/dev/null":
                writes += 1
                if writes > most or not within(path, (scratch,)):
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


# Modules that reach files, processes or memory without an event.
_UNAUDITED = {
    *("_ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_ctypes_test"),
    *("_dbm", "_gdbm", "_sqlite3", "_tkinter", "_curses", "readline"),
}
_FORBIDDEN = (
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


# ---------------------------------------------------------------------------------------
# The answers


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
        # Its text shall not see this file's __future__ imports.
        exec(compile(self._program, "<candidate>", "exec", dont_inherit=True), vars(self._module))

    def names(self, names: Sequence[str]) -> tuple[dict[str, object], dict[str, str]]:
        """Those of the names that the program defines, modules apart, as their names."""
        found = {n: vars(self._module)[n] for n in names if n in vars(self._module)}
        modules = {n: v.__name__ for n, v in found.items() if type(v) is ModuleType}
        return {n: v for n, v in found.items() if n not in modules}, modules

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
    import sandbox_kernel  # noqa: F401, while the folder of this file is in the path

    sys.path.pop(0)
    job = read_frame(REQUESTS_FD)
    confine(job["scratch"], job["libraries"], job["limits"], job["layers"])
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
