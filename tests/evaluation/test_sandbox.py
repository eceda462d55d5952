"""Programs that cheat, break out or hang fail; right ones pass; every layer holds alone."""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import socket
import sys
import time
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import SHARED

from softmask.evaluation import sandbox
from softmask.evaluation.sandbox import Limits, Verdict, available, judge_all
from softmask.evaluation.sandbox.sandbox_wire import NotPlain, decode, encode

RIGHT = "def add(a, b):\n    return a + b\n"
TEST = "assert add(1, 2) == 3\n"
DATA = SHARED / "eval"
KERNEL, HOOK, MOUNTS = ("landlock", "seccomp"), ("hook",), ("namespace",)
linux = pytest.mark.skipif(sys.platform != "linux", reason="The kernel layers are those of Linux.")
LAYERS = pytest.mark.parametrize(
    "layers",
    [pytest.param(HOOK, id="hook"), pytest.param(KERNEL, id="kernel", marks=linux)],
)
BRIEF = Limits(seconds=0.6)  # for what hangs
AMPLE = Limits(seconds=120.0)  # for what ends, on a busy machine too


def judge(program: str, test: str, limits: Limits = AMPLE) -> Verdict:
    return sandbox.judge(program, test, limits)


def judged(program: str, test: str, layers: tuple[str, ...], limits: Limits = AMPLE) -> Verdict:
    """The verdict with some of the layers; skips where the kernel lacks one of them."""
    for layer in set(layers) - {"hook"}:
        if layer not in available():
            pytest.skip(f"This kernel has no {layer}.")
    return sandbox._judge(program, test, limits, layers)


def processes_with(marker: str, file: str = "cmdline") -> list[str]:
    """The living processes whose command line, or environment, holds a marker."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{file}"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


# ---------------------------------------------------------------------------------------
# Right and wrong


def test_a_right_program_passes_and_a_wrong_one_fails_with_the_line() -> None:
    verdict = judge(RIGHT, TEST)
    assert verdict.passed
    assert verdict.reason == "passed"
    assert verdict.seconds > 0
    assert judge(RIGHT, "\nassert add(1, 2) == 4").reason == "AssertionError: assert add(1, 2) == 4"


def test_the_protections_of_this_machine_are_named() -> None:
    assert available().endswith("rlimits, audit hook")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def add(a, b)\n    return", "SyntaxError: expected ':' (<candidate>, line 1)"),
        ("def add(a, b):\n    return a / 0", "ZeroDivisionError: division by zero"),
        ("raise ValueError('at once')", "ValueError: at once"),
        ("add = 3", "TypeError: 'int' object is not callable"),
        ("def plus(a, b):\n    return a + b", "NameError: name 'add' is not defined"),
        ("class Own(Exception): pass\ndef add(a, b): raise Own('x')", "Own: x"),
        ("def add(a, b): return add(a, b)", "RecursionError: maximum recursion depth exceeded"),
        ("import ctypes", "ImportError: The sandbox has no _ctypes."),
        ("\0\ud800", None),
        ("def add(a, b): raise ValueError('\\x1b[31m\\ud800')", None),
    ],
)
def test_the_reason_says_what_the_program_did(program: str, reason: str | None) -> None:
    verdict = judge(program, TEST)
    assert not verdict.passed
    assert reason is None or verdict.reason == reason
    assert verdict.reason.isprintable()
    verdict.reason.encode()


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def sum(a, b): return a + b", "assert sum(10, 15) == 25"),
        ("def twice(x): return 2 * x", "def check(f):\n    assert f(2) == 4\ncheck(twice)"),
        ("import math\ndef f(x): return x + 1e-9", "assert math.isclose(f(1), 1, rel_tol=1e-6)"),
        ("def f(n): return (i for i in range(n))", "assert list(f(3)) == [0, 1, 2] != f(3)"),
        ("def f(d): return d.keys()", "assert f({1: 2}) == {1} and f({}) != [1]"),
        ("def f(x): return x, [x], {x: {x}}", "assert f('a') == ('a', ['a'], {'a': {'a'}})"),
        ("def f(): raise KeyError('k')", "try:\n    f()\nexcept LookupError as e:\n    e.args"),
        ("def f(): '\\ud800'.encode()", "try:\n    f()\nexcept ValueError:\n    pass"),
        ("def f(): return 2 ** 99999", "assert f() == 2 ** 99999"),
        ("def f(a): return [a]", "a = []\nfor _ in range(90):\n    a = f(a)\nassert a[0][0]"),
        ("def f():\n    a = []\n    a.append(a)\n    return a", "assert len(f()) == 1"),
        ("def f(x): print('noise'); return x", "print('more')\nassert f(1) == 1"),
        ("def f(g): return g(1)\ndef inc(x): return x + 1", "assert f(inc) == 2"),
        ("def f(): return __name__", "assert f() == 'candidate'"),
        ("def f(): return len({*'abcdefgh'})", "assert f() == 8 and f.__name__ == 'f'"),
        (
            "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): "
            "return self.x == o.x\n    def __len__(self): return self.x",
            "p = P(2)\nassert p.x == 2 and len(p) == 2 and P(2) == P(2) != P(3) and p != 2\n"
            "assert isinstance(p, P) and not isinstance(3, P) and 'P object' in str(p)",
        ),
        (
            "import threading\ndef f():\n    found = []\n    t = threading.Thread(target=found."
            "append, args=(1,))\n    t.start()\n    t.join()\n    return found",
            "assert f() == [1]",
        ),
    ],
)
def test_what_python_lets_a_test_do_with_a_program_it_may_do_here(program: str, test: str) -> None:
    assert judge(program, test).reason == "passed"


@pytest.mark.parametrize(
    "attack",
    [
        "os.open('target', os.O_CREAT | os.O_WRONLY, dir_fd=os.open({folder!r}, os.O_RDONLY))",
        "class P(str): __str__ = lambda self: '/'\n"
        "os.open(P('target'), os.O_CREAT | os.O_WRONLY, dir_fd=os.open({folder!r}, os.O_RDONLY))",
        "os.mkfifo({folder!r} + '/target')",
        "import sys\ndel sys.modules['posix']\nimport posix\nposix.mkfifo({folder!r} + '/target')",
        "[f for f in os.supports_dir_fd if f.__name__ == 'mkfifo'][0]({folder!r} + '/target')",
        "__import__('_posixshmem').shm_open('/softmask-test', os.O_CREAT | os.O_RDWR, mode=0o600)",
        "multiprocessing.Lock()",
    ],
)
def test_the_hook_alone_leaves_no_way_to_write_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.setattr(sandbox, "_libraries", lambda: str(tmp_path))
    program = f"{RIGHT}import os, multiprocessing\n{attack.format(folder=str(tmp_path))}"
    assert not judged(program, TEST, HOOK).passed
    assert not list(tmp_path.iterdir())


def test_files_of_the_scratch_are_written_by_paths_in_bytes_too() -> None:
    program = f"{RIGHT}import os, tempfile\ntempfile.mkstemp(dir=os.getcwd().encode())"
    assert judged(program, TEST, HOOK).passed


def test_what_libraries_try_of_semaphores_fails_as_they_expect() -> None:
    program = f"""{RIGHT}
import _multiprocessing
try:
    _multiprocessing.SemLock(0, 0, 1, name="/softmask-test", unlink=True)
except OSError:
    pass
"""
    assert judge(program, TEST).passed


def test_modules_of_the_standard_library_import() -> None:
    names = (
        "asyncio bisect cmath collections concurrent.futures concurrent.futures.process copy csv "
        "dataclasses datetime decimal difflib doctest email enum fractions functools hashlib "
        "heapq inspect itertools "
        "json logging math multiprocessing multiprocessing.pool operator os pathlib pickle queue "
        "random re socket statistics string subprocess tempfile threading time typing unittest "
        "uuid zoneinfo"
    ).replace(" ", ", ")
    program = f"import {names}\nasync def one(): return 1\ndef f(): return asyncio.run(one())"
    assert judge(program, "assert f() == 1").reason == "passed"


def test_arrays_and_scalars_of_numpy_are_values() -> None:
    pytest.importorskip("numpy")
    program = "import numpy as np\ndef f(): return np.int64(3), np.arange(3.0)"
    test = "import numpy as np\nassert f()[0] == 3 and np.allclose(f()[1], [0, 1, 2])"
    assert judge(program, test).reason == "passed"


def test_files_in_the_scratch_may_be_written() -> None:
    program = (
        "import os\ndef f():\n    with open('a', 'w') as file:\n        file.write('text')\n"
        "    os.rename('a', 'b')\n    text = open('b').read()\n    os.remove('b')\n    return text"
    )
    assert judge(program, "assert f() == 'text'").reason == "passed"


# ---------------------------------------------------------------------------------------
# Forged results

FORGED = {
    "prints": "print('passed'); print('[true, \"passed\"]')",
    "exits": "import os\nos._exit(0)",
    "sys_exits": "import sys\nsys.exit(0)",
    "raises_exit": "raise SystemExit(0)",
    "exits_in_a_call": "import os\ndef add(a, b): os._exit(0)",
    "sys_exits_in_a_call": "import sys\ndef add(a, b): sys.exit(0)",
    "interrupts": "def add(a, b): raise KeyboardInterrupt",
    "always_equal": (
        "class Same:\n    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\ndef add(a, b): return Same()"
    ),
    "always_equal_int": (
        "class Same(int):\n    def __eq__(self, other): return True\n"
        "    __hash__ = int.__hash__\ndef add(a, b): return Same(7)"
    ),
    "always_equal_class": (
        "class Same(type):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "class add(metaclass=Same):\n    def __new__(cls, a, b): return cls"
    ),
    "patched_builtins": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {})\n"
        "builtins.all = builtins.any = builtins.isinstance = lambda *a: True\n"
        "builtins.compile = lambda *a, **k: 'pass'\ndef add(a, b): return 0"
    ),
    "patched_child": (
        "import sys, json, os\nfor m in list(sys.modules.values()):\n    try:\n"
        "        m.encode = m.decode = lambda *a: 3\n    except Exception: pass\n"
        "def add(a, b): return 0"
    ),
    "fake_messages": (
        "import os, json\nfor fd in range(3, 64):\n"
        "    for m in ([True, 'passed'], ['value', True], ['passed'], ['value', ['o', 0]]):\n"
        "        body = json.dumps(m).encode()\n"
        "        try: os.write(fd, len(body).to_bytes(4, 'big') + body)\n"
        "        except OSError: pass\ndef add(a, b): return 0"
    ),
    "unknown_tags": (
        "import os, json\nbody = json.dumps(['value', ['z', 1]]).encode()\n"
        "os.write(4, len(body).to_bytes(4, 'big') + body)"
    ),
    "deep_message": (
        "import os\nbody = b'[' * 10**6\nos.write(4, len(body).to_bytes(4, 'big') + body)\n" + RIGHT
    ),
    "closed_pipes": f"{RIGHT}import os, time\nos.closerange(3, 64)\ntime.sleep(99)",
    "a_finaliser": (
        "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return 0\n"
        "class Last:\n    def __del__(self): os._exit(0)\nlast = Last()"
    ),
}


@pytest.mark.parametrize("program", FORGED.values(), ids=FORGED.keys())
def test_no_forged_result_passes(program: str) -> None:
    assert not judge(program, TEST).passed


def test_a_candidate_that_ends_is_no_exception_that_a_test_can_take_for_the_right_one() -> None:
    test = "try:\n    add(1, 2)\n    assert False\nexcept Exception:\n    pass"
    assert judge("def add(a, b): raise TypeError", test).passed
    for end in ("__import__('os')._exit(0)", "__import__('sys').exit()", "raise SystemExit"):
        verdict = judge(f"def add(a, b): {end}", test.replace("Exception", "BaseException"))
        assert not verdict.passed


def test_what_is_expected_is_nowhere_in_the_process_of_the_program() -> None:
    program = """
import gc, os, sys
def add(a, b):
    texts, frame = [], sys._getframe()
    while frame:
        texts += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    texts += [o for o in gc.get_objects() if type(o) is str]
    for path in ("cmdline", "environ", "mem", "fd/0"):
        for process in ("self", os.getppid()):
            try:
                texts.append(open(f"/proc/{process}/{path}").read())
            except (OSError, ValueError):
                pass
    return "sec" + "ret" if any("sec" + "ret" in text for text in texts) else 0
"""
    verdict = judged(program, "assert add(1, 2) == 'secret'", KERNEL)
    assert verdict.reason == "AssertionError: assert add(1, 2) == 'secret'"


def test_a_container_of_the_program_does_not_learn_what_is_looked_for_in_it() -> None:
    program = (
        "class Yes:\n    def __contains__(self, item): return True\n"
        "    def __iter__(self): return iter([1])\ndef f(): return Yes()"
    )
    assert judge(program, "assert 1 in f()").passed
    assert not judge(program, "assert 5 in f()").passed


def test_a_module_of_the_test_is_not_the_one_of_the_program() -> None:
    fake = "import sys, types\nmath = types.ModuleType('math')\nmath.isclose = lambda *a: True\n"
    test = "assert math.isclose(add(1, 2), 4)"
    assert not judge(f"{fake}{RIGHT}", test).passed
    assert not judge(f"import antigravity as math\n{RIGHT}", test).passed


# ---------------------------------------------------------------------------------------
# Breaking out


@LAYERS
@pytest.mark.parametrize(
    "attack",
    [
        "os.fork()",
        "while True: os.fork()",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['true'])",
        "os.system('true')",
        "multiprocessing.Process(target=print).start()",
        "os.kill(os.getppid(), 9)",
        "os.kill(os.getppid(), 19)",
        "os.kill(-1, 0)",
        "os.killpg(os.getpgid(os.getppid()), 9)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "os.mkdir('folder')",
        "os.symlink('/etc', 'link')",
        "os.chmod('.', 0o777)",
    ],
)
def test_processes_signals_and_sockets_are_forbidden(attack: str, layers: tuple[str, ...]) -> None:
    if "prlimit" in attack and sys.platform != "linux":
        pytest.skip("prlimit is of Linux.")
    imports = "import multiprocessing, os, resource, socket, subprocess\n"
    verdict = judged(f"{RIGHT}{imports}{attack}", TEST, layers)
    assert not verdict.passed
    assert "forbidden" in verdict.reason or verdict.reason.startswith("PermissionError")


@linux
@pytest.mark.parametrize(
    "call",
    [
        *("fork()", "vfork()", "execv(b'/bin/true', None)", "ptrace(0, 0, 0, 0)"),
        *("unshare(0x10000000)", "mount(None, b'/', None, 0, None)", "chroot(b'/')"),
        *("socket(2, 1, 0)", "kill(1, 0)", "kill(-1, 0)", "tgkill(1, 1, 0)", "clone(0, 0, 17)"),
    ],
)
def test_the_filter_ends_a_program_that_makes_the_system_call_itself(call: str) -> None:
    if platform.machine() not in ("x86_64", "aarch64") or call == "clone(0, 0, 17)":
        numbers = {"x86_64": 56, "aarch64": 220}
        call = f"syscall({numbers.get(platform.machine(), 0)}, 17, 0, 0, 0, 0)"
    program = f"{RIGHT}import ctypes\nctypes.CDLL(None).{call}"
    assert judged(program, TEST, ("seccomp",)).reason == "forbidden: a system call"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is of x86_64.")
def test_the_filter_knows_the_calls_of_x32() -> None:
    program = f"{RIGHT}import ctypes\nctypes.CDLL(None).syscall(0x40000000 + 39)"
    assert judged(program, TEST, ("seccomp",)).reason == "forbidden: a system call"


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(HOOK, id="hook"),
        pytest.param(KERNEL, id="kernel", marks=linux),
        pytest.param(MOUNTS, id="mounts", marks=linux),
    ],
)
def test_nothing_is_written_or_deleted_outside(tmp_path: Path, layers: tuple[str, ...]) -> None:
    kept, target = tmp_path / "kept", tmp_path / "target"
    kept.write_text("kept")
    for attack in (
        f"open({str(target)!r}, 'w').write('x')",
        f"os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY)",
        f"open(os.path.relpath({str(target)!r}), 'w').write('x')",
        f"pathlib.Path({str(target)!r}).touch()",
        f"os.mkdir({str(target)!r})",
        f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, 'here')",
        f"os.link({str(kept)!r}, 'here')",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.chmod({str(kept)!r}, 0)",
        f"open({str(kept)!r}, 'w').close()",
    ):
        if layers == HOOK:
            attack = f"try:\n    {attack}\nexcept OSError:\n    pass"
        verdict = judged(f"{RIGHT}import os, pathlib\n{attack}", TEST, layers)
        assert not verdict.passed
        assert layers != HOOK or verdict.reason.startswith("forbidden: o")
    assert not target.exists()
    assert kept.read_text() == "kept"
    assert kept.stat().st_mode & 0o777


@LAYERS
def test_files_and_the_environment_of_others_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("SOFTMASK_SECRET", "s3cret")
    (tmp_path / "secret").write_text("s3cret")
    for source in (
        "repr(os.environ)",
        f"open({str(tmp_path / 'secret')!r}).read()",
        f"open('/proc/{os.getpid()}/environ').read()",
        "open(f'/proc/{os.getppid()}/environ').read()",
        f"repr([open(os.path.expanduser('~/' + n)).read() for n in {os.listdir(Path.home())!r}])",
    ):
        program = f"import os\ndef leak(): return 's3cret' in {source}"
        assert not judged(program, "assert leak()", layers).passed


@LAYERS
@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_no_connection_is_made(tmp_path: Path, family: str, layers: tuple[str, ...]) -> None:
    with socket.socket(getattr(socket, family)) as server:
        server.bind(("127.0.0.1", 0) if family == "AF_INET" else str(tmp_path / "s"))
        server.listen()
        server.setblocking(False)
        connect = f"import socket\nsocket.socket(socket.{family}).connect({server.getsockname()!r})"
        assert not judged(f"{RIGHT}{connect}", TEST, layers).passed
        with pytest.raises(BlockingIOError):  # nobody waits to be accepted
            server.accept()


@linux
def test_a_daemonised_grandchild_does_not_outlive_the_verdict_where_nothing_forbids_it() -> None:
    marker = f"4{os.getpid()}.25"
    daemon = (
        f"{RIGHT}import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execv('/bin/sleep', ['sleep', '{marker}'])\n    os._exit(0)\ntime.sleep(0.2)\n"
    )
    # The limit on processes does not bind root; another user gets the error instead.
    verdict = judged(daemon, TEST, ())
    assert verdict.passed or verdict.reason.startswith("BlockingIOError")
    assert not processes_with(marker)
    assert not judged(f"{daemon}time.sleep(99)", TEST, (), BRIEF).passed
    assert not processes_with(marker)


def test_the_hook_keeps_what_a_program_would_bend() -> None:
    program = """
import builtins, os, posixpath, sys
for name in ("any", "all", "isinstance", "issubclass", "type", "max", "len"):
    setattr(builtins, name, lambda *a: True)
os._exit = os.write = os.getcwd = posixpath.realpath = lambda *a: "/"
class Path(str):
    def startswith(self, *a): return True
    def split(self, *a): return []
os.rename(Path("/nowhere"), Path("/elsewhere"))
"""
    assert judged(program, TEST, HOOK).reason == "forbidden: os.rename"
    for module in ("_posixsubprocess", "_ctypes"):
        again = f"import sys\nsys.modules.pop('{module}', None)\nimport {module}"
        assert judged(again, TEST, HOOK).reason.startswith("ImportError")


def test_a_program_finds_none_of_the_modules_that_confined_it() -> None:
    program = """
import sys
def found():
    kept = [n for n in sys.modules if n.startswith(("sandbox_", "ctypes", "_ctypes"))]
    kept += [path for path in sys.path if "sandbox" in path]
    frame = sys._getframe()
    while frame:
        kept += [n for n in frame.f_globals if n.startswith(("sandbox_", "audit_", "ctypes"))]
        frame = frame.f_back
    for name in ("sandbox_wire", "sandbox_hook", "sandbox_kernel"):
        try:
            __import__(name)
            kept.append(name)
        except ImportError:
            pass
    return kept
"""
    assert judge(program, "assert found() == [], found()").reason == "passed"


# ---------------------------------------------------------------------------------------
# Using up


HANGS = [
    "while True: pass",
    "import time\ntime.sleep(1000)",
    "import signal\nsignal.raise_signal(signal.SIGSTOP)",
    "while True: print('x' * 10**6)",
    "add = lambda a, b: (1 for _ in iter(int, 1))",
    "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
]


def test_what_hangs_is_ended() -> None:
    test = "total = add(1, 2)\nassert 3 == total if isinstance(total, int) else sum(total)"
    programs = [f"{RIGHT}{hang}" for hang in HANGS]
    verdicts = judge_all([(p, test) for p in programs], Limits(0.3, memory_mb=512), workers=2)
    assert {v.reason for v in verdicts[:5]} == {"timed out after 0.3 s"}
    assert not verdicts[5].passed


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("import os\nwhile True: os.write(4, bytes(2**16))", "sent an invalid answer"),
        ("import os\nwhile True: os.write(4, b'x' * 2**16)", "sent an invalid answer"),
        ("add = lambda a, b: ' ' * 2**27", "too large"),
        ("open('file', 'wb').write(bytes(2**25))", "OSError"),
        ("for i in range(1000): open(str(i), 'w').close()", "forbidden: open"),
        ("import os\n[os.pipe() for i in range(1000)]", "OSError"),
    ],
)
def test_output_and_files_are_limited(attack: str, reason: str) -> None:
    verdict = judge(f"{RIGHT}{attack}", TEST)
    assert not verdict.passed
    assert reason in verdict.reason


@linux
def test_memory_and_processor_time_are_limited() -> None:
    assert judge("x = bytearray(50 * 2**30)", TEST).reason == "out of memory"
    verdict = judge("while True: pass", TEST, Limits(seconds=120.0, cpu_seconds=1))
    assert "1 s of processor time" in verdict.reason


def test_a_test_that_never_ends_is_ended() -> None:
    assert judge(RIGHT, "while True: pass", BRIEF).reason == "timed out after 0.6 s"
    many = f"{RIGHT}x = range(10**18)"
    assert not judge(many, "assert list(x)", BRIEF).passed


def test_one_bad_program_does_not_stop_the_others_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))  # marks the processes of this test
    bad = ["import os\nos._exit(1)", "while True: pass", "open('file', 'w').write('x')"]
    # What hangs is ended by its processor time, which other processes do not use up.
    limits = Limits(seconds=120.0, cpu_seconds=2)
    verdicts = judge_all([(p, TEST) for p in (RIGHT, *bad, RIGHT)], limits, workers=2)
    assert [v.passed for v in verdicts] == [True, False, False, False, True]
    assert judge_all([]) == []
    assert list(tmp_path.iterdir()) == []
    if sys.platform == "linux":
        # A process that was killed needs a moment to be gone; no machine needs two minutes.
        ends = time.monotonic() + 120
        while left := processes_with(str(tmp_path), "environ"):
            assert time.monotonic() < ends, left
            time.sleep(0.05)


# ---------------------------------------------------------------------------------------
# The language

LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary()),
    *(st.text(), st.complex_numbers(allow_nan=False), st.fractions()),
    st.decimals(allow_nan=False),
)
KEYS = st.one_of(st.integers(), st.text(), st.binary(), st.tuples(st.integers(), st.text()))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(KEYS, inner),
        st.sets(KEYS),
        st.frozensets(KEYS),
        st.lists(inner).map(deque),
    ),
    max_leaves=20,
)


def refuse(value: object) -> int:
    raise TypeError(type(value).__name__)


def travelled(value: object) -> object:
    return decode(json.loads(json.dumps(encode(value, refuse))), refuse)


@settings(max_examples=50)
@given(VALUES)
def test_plain_data_arrive_as_they_were(value: object) -> None:
    assert travelled(value) == value
    assert type(travelled(value)) is type(value)


def test_subclasses_arrive_as_their_base() -> None:
    point = namedtuple("Point", "x y")(1, 2)
    assert type(travelled(point)) is tuple
    for value in (Counter("aab"), OrderedDict(a=1)):
        assert travelled(value) == dict(value)
        assert type(travelled(value)) is dict
    for value in (10**100, range(3), float("inf"), Fraction(1, 3), Decimal("NaN"), {}.keys()):
        assert repr(travelled(value)) == repr(value)


def test_other_objects_and_deep_ones_are_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        encode([object()], refuse)
    loop: list = []
    loop.append(loop)
    with pytest.raises(NotPlain):
        encode(loop, refuse)


# ---------------------------------------------------------------------------------------
# Reference solutions


def human_eval() -> list[tuple[str, str, str]]:
    """(program, test, wrong program) of every task."""
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here.")
    with gzip.open(DATA / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        (
            row["prompt"] + row["canonical_solution"],
            f"{row['test']}\ncheck({row['entry_point']})",
            f"{row['prompt']}    return 'wrong'\n",
        )
        for row in rows
    ]


def mbpp() -> list[tuple[str, str, str]]:
    """(program, test, wrong program) of every task of the test split."""
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here.")
    lines = (DATA / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if 11 <= row["task_id"] <= 510]
    # The setup of task 367 builds a tree of a class of the code.
    return [
        (
            f"{row['code']}\n{row['test_setup_code']}",
            "\n".join(row["test_list"]),
            re.sub(r"\breturn\b", "return 'wrong',", row["code"]),
        )
        for row in rows
    ]


def failures(pairs: list[tuple[str, str]]) -> list[tuple[int, str]]:
    verdicts = judge_all(pairs, Limits(seconds=30.0), workers=2)
    return [(i, v.reason) for i, v in enumerate(verdicts) if not v.passed]


@pytest.mark.parametrize("tasks", [human_eval, mbpp])
def test_some_reference_solutions_pass_and_wrong_ones_do_not(tasks) -> None:
    rows = tasks()[3::16][:10]
    assert failures([(program, test) for program, test, _ in rows]) == []
    assert len(failures([(wrong, test) for _, test, wrong in rows])) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [human_eval, mbpp])
def test_all_reference_solutions_pass_and_wrong_ones_do_not(tasks) -> None:
    rows = tasks()
    assert failures([(program, test) for program, test, _ in rows]) == []
    failed = {i for i, _ in failures([(wrong, test) for _, test, wrong in rows])}
    assert [i for i in range(len(rows)) if i not in failed] == []
