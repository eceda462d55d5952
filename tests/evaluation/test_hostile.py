"""Programs that would use up the machine, and right ones beside them: verdicts stay right."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from test_sandbox import (
    AMPLE,
    FORGED,
    HANGS,
    KERNEL,
    RIGHT,
    TEST,
    judge,
    judged,
    linux,
    processes_with,
)

from softmask.evaluation import sandbox
from softmask.evaluation.sandbox import Limits, available, judge_all
from softmask.evaluation.sandbox.sandbox_kernel import children_of

WATCHED = ("seccomp",)  # neither a mount namespace nor a count of threads
ALL = tuple(sandbox._held())
MEMORY = pytest.mark.parametrize(
    "layers", [pytest.param(ALL, id="all"), pytest.param(WATCHED, id="watched")]
)
# Files by system calls: no audit event, and no call of Python's that could be counted.
NATIVE = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.open.restype = ctypes.c_int\n"
MANY_FILES = (
    f"{NATIVE}i = 0\nwhile True:\n    f = libc.open(b'f%d' % i, 0o101, 0o600)\n"
    "    if f < 0: break\n    libc.close(f); i += 1\n"
)
MANY_BYTES = (
    f"{NATIVE}block = bytes(2**20)\ni = 0\nwhile True:\n"
    "    f = libc.open(b'f%d' % i, 0o101, 0o600)\n    if f < 0: break\n    done = 0\n"
    "    while libc.write(f, block, 2**20) == 2**20: done += 1\n"
    "    libc.close(f); i += 1\n    if not done: break\n"
)
UNLINKED = (
    f"{NATIVE}block = bytes(2**20)\nwhile True:\n"
    "    f = libc.open(b'f', 0o101, 0o600); libc.unlink(b'f')\n    if f < 0: break\n"
    "    while libc.write(f, block, 2**20) == 2**20: pass\n"
)
# An importable package whose own code, in Rust, writes a file.
WHEEL = (
    "import numpy, safetensors.numpy as files\ni = 0\nwhile True:\n"
    "    files.save_file({'a': numpy.zeros(2**20, 'uint8')}, f'f{i}')\n    i += 1\n"
)
THREADS = (
    "import threading, time\nthreading.stack_size(65536)\n"
    "while True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
)
# Modest use of everything that is bounded.
BUSY = """
import threading
def add(a, b):
    with open('kept', 'wb') as file:
        file.write(bytes(2**22))
    found = []
    threads = [threading.Thread(target=found.append, args=(1,)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert sum(range(10**6)) and len(bytearray(2**27)) and len(found) == 8
    return a + b
"""


@linux
@MEMORY
@pytest.mark.parametrize("attack", [MANY_FILES, MANY_BYTES, UNLINKED, WHEEL, THREADS])
def test_native_code_fills_no_disk_and_no_table_of_threads(
    attack: str, layers: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attack == WHEEL:
        pytest.importorskip("safetensors")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    most = 0

    def measure() -> None:
        nonlocal most
        while not over.wait(0.01):
            with contextlib.suppress(FileNotFoundError):
                most = max(most, sum(p.stat().st_blocks for p in tmp_path.rglob("*")) * 512)

    over = threading.Event()
    thread = threading.Thread(target=measure)
    thread.start()
    try:
        layers = tuple(set(layers) - {"hook"})
        verdict = judged(f"{RIGHT}{attack}\nraise SystemExit", TEST, layers)
    finally:
        over.set()
        thread.join()
    assert not verdict.passed
    assert list(tmp_path.iterdir()) == []
    if "namespace" in layers:
        assert most == 0
    elif attack == MANY_FILES:
        assert verdict.reason == "wrote more than 100 files"
    elif attack == THREADS:
        assert verdict.reason == "started more than 64 threads"
    else:
        assert verdict.reason == "wrote more than 64 MB"


@linux
def test_a_program_may_use_files_threads_and_memory_within_its_bounds() -> None:
    assert judge(BUSY, TEST).reason == "passed"
    assert judged(BUSY, TEST, WATCHED).reason == "passed"


@linux
def test_where_landlock_is_missing_the_mounts_are_read_only() -> None:
    folder = os.path.dirname(os.__file__)
    program = f"import os\nos.open({folder!r} + '/new', os.O_CREAT | os.O_WRONLY)"
    verdict = judged(program, TEST, ("namespace",))
    assert verdict.reason.startswith("OSError: [Errno 30] Read-only file system")


@linux
def test_a_program_cannot_become_the_user_whose_threads_nobody_counts() -> None:
    program = f"{RIGHT}import os\nos.setresuid(os.geteuid(), os.geteuid(), os.geteuid())"
    assert judged(program, TEST, ("seccomp", "threads", "namespace")).reason.startswith("Perm")


# ---------------------------------------------------------------------------------------
# Right programs beside them


def test_what_was_killed_from_outside_is_judged_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform != "linux":
        pytest.skip("/proc is of Linux.")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))  # marks the processes of this test
    killed: list[int] = []

    def kill_one() -> None:
        while not over.is_set():
            for pid in processes_with(str(tmp_path), "environ"):
                if f"{pid}" in processes_with("sandbox_child", "cmdline"):
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(int(pid))
                    return
            time.sleep(0.01)

    over = threading.Event()
    thread = threading.Thread(target=kill_one)
    sandbox._held()
    thread.start()
    slow = f"import time\ntime.sleep(1)\n{RIGHT}"
    (verdict,) = judge_all([(slow, TEST)], AMPLE)
    over.set()
    thread.join()
    assert len(killed) == 1
    assert verdict.reason == "passed"


@pytest.mark.parametrize(
    ("end", "fair"),
    [
        ("raise OSError(28, 'no space')", False),
        ("raise RuntimeError('cannot start a thread')", False),
        ("raise MemoryError", False),
        ("__import__('os').kill(__import__('os').getpid(), 9)", False),
        ("raise ValueError", True),
        ("__import__('os')._exit(0)", True),
        ("def add(a, b): return add(a, b)", True),
    ],
)
def test_what_a_neighbour_can_have_caused_is_judged_again_and_nothing_else(
    end: str, fair: bool
) -> None:
    assert sandbox._judge(end, TEST, AMPLE, ("seccomp",)).fair is fair


def test_a_machine_that_cannot_judge_is_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = sandbox._held()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_held", lambda: held)
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(OSError, match="did not start: its judge ended with 1"):
            judge_all([(RIGHT, TEST)])
    # A disk without room for what a program may write, where it has to be on the disk.
    with pytest.raises(OSError, match="no room") as caught:
        sandbox._judge(RIGHT, TEST, Limits(scratch_mb=10**9), ("hook",))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.startswith(os.path.realpath(tempfile.gettempdir()))


def test_what_could_not_start_among_others_is_judged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = sandbox._ask_judge, []

    def crowded(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, "no more processes")
        return real(*args, **kwargs)

    sandbox._held()
    monkeypatch.setattr(sandbox, "_ask_judge", crowded)
    assert [v.passed for v in judge_all([(RIGHT, TEST)] * 2, AMPLE, workers=1)] == [True, True]
    assert len(calls) == 3


@pytest.mark.long  # waits for a judge
def test_a_long_test_arrives_whole_although_the_judge_is_slow_to_start() -> None:
    assert judge(RIGHT, f"{TEST}# {'x' * 2**25}\n").reason == "passed"
    assert not judge(RIGHT, f"# {'x' * 2**25}\nassert add(1, 2) == 4").passed


# ---------------------------------------------------------------------------------------
# The test's own names


def test_a_module_that_a_test_uses_is_the_module_and_no_class_of_the_program() -> None:
    test = "assert tuple_size((1, 2)) == sys.getsizeof((1, 2))"
    size = "def tuple_size(t): return"
    fake = "class sys:\n    getsizeof = staticmethod(lambda t: 0)\n"
    assert not judge(f"{fake}{size} 0", test).passed
    assert judge(f"{fake}import sys as s\n{size} s.getsizeof(t)", test).passed
    assert judge(f"import sys\n{size} sys.getsizeof(t)", test).passed
    for module, call in (("math", "math.isclose(f(1), 2)"), ("np", "np.allclose(f(1), 2)")):
        cheat = f"class {module}:\n    isclose = allclose = lambda *a: True\ndef f(x): return 0"
        assert not judge(cheat, f"assert {call}").passed
    # A tested function may have the name of a module.
    assert judge("def heapq(x): return x", "assert heapq(3) == 3").passed
    assert judge("def sum(a, b): return a + b", "assert math.isclose(sum(1, 2), 3)").passed


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): raise StopIteration",
        "import builtins\nbuiltins.all = lambda *a: True\ndef f(x): return 0",
        "def all(*a): return True\ndef f(x): return 0",
        "def map(*a): return []\ndef f(x): return 0",
    ],
)
def test_no_program_ends_the_loop_of_a_test_or_stands_in_for_what_it_calls(program: str) -> None:
    assert judge("def f(x): return x == 1", "assert all(map(f, [1, 1]))").passed
    assert not judge(program, "assert all(map(f, [1, 1]))").passed


# ---------------------------------------------------------------------------------------
# What is said of it


def test_a_missing_protection_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.warn_of_missing.cache_clear()
    monkeypatch.setattr(sandbox, "_held", lambda: frozenset({"seccomp", "hook"}))
    with caplog.at_level(logging.WARNING):
        sandbox.warn_of_missing()
        sandbox.warn_of_missing()
    sandbox.warn_of_missing.cache_clear()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"the sandbox has no {name} here" for name in ("namespace", "landlock", "threads")
    ]
    assert available() == "seccomp, rlimits, audit hook"


def test_a_protection_that_is_lost_is_an_error() -> None:
    with pytest.raises(OSError, match="lost a protection: firewall"):
        sandbox._judge(RIGHT, TEST, AMPLE, ("firewall",))


# ---------------------------------------------------------------------------------------
# All at once


def in_a_call(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"def add(a, b):\n{lines}\n    return 0"


ATTACKS = [
    *FORGED.values(),
    *(f"{RIGHT}{hang}" for hang in HANGS[:4]),
    *(f"{RIGHT}{a}\nraise SystemExit" for a in (MANY_FILES, MANY_BYTES, UNLINKED, WHEEL)),
    *(in_a_call(a) for a in (THREADS, "while True: pass", WHEEL)),
    *(
        in_a_call(f"import os, subprocess, socket, multiprocessing, resource, shutil, gc\n{body}")
        for body in (
            "os.fork()",
            "os.system('rm -rf /')",
            "subprocess.run(['true'])",
            "os.execv('/bin/true', ['true'])",
            "os.kill(os.getppid(), 9)",
            "os.killpg(os.getpgid(os.getppid()), 9)",
            "os.kill(-1, 9)",
            "socket.create_connection(('127.0.0.1', 80))",
            "multiprocessing.Process(target=print).start()",
            "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
            "shutil.rmtree('/')",
            "open('/etc/passwd', 'a').write('x')",
            "open('/usr/x', 'w')",
            "os.mkdir('a')",
            "os.symlink('/', 'a')",
            "os.truncate(os.__file__, 0)",
            "os.remove(os.__file__)",
            "x = bytearray(50 * 2**30)",
            "x = []\nwhile True: x.append(bytearray(2**24))",
            "x = 9 ** 9 ** 9",
            "[os.pipe() for _ in range(10**6)]",
            "os.nice(-20)",
            "os.closerange(3, 64)",
            "os.write(4, b'x' * 2**20)",
            "os.abort()",
            "raise BaseException",
            "raise SystemExit(0)",
            "gc.get_objects()[0].clear()",
            "open('f', 'wb').write(bytes(2**30))",
            "for i in range(10**6): open(str(i), 'w').close()",
            "os.sched_setaffinity(0, [0]); os.setsid(); raise KeyboardInterrupt",
        )
    ),
]


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "layers",
    [pytest.param(ALL, id="all"), pytest.param((*KERNEL, "hook"), id="watched")],
)
def test_right_programs_beside_hostile_ones_pass_and_nothing_is_left(
    layers: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ATTACKS) >= 50
    monkeypatch.setattr(sandbox, "_held", lambda: frozenset(layers))
    monkeypatch.setattr(sandbox, "warn_of_missing", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    pairs = [(p, TEST) for attack in ATTACKS for p in (attack, BUSY)]
    verdicts = judge_all(pairs, Limits(seconds=5.0, cpu_seconds=5), workers=4)
    passed = [(p, v.reason) for (p, _), v in zip(pairs, verdicts, strict=True) if v.passed]
    assert [one for one in passed if one[0] != BUSY] == []
    assert len(passed) == len(ATTACKS), [v.reason for v in verdicts[1::2]]
    assert list(tmp_path.iterdir()) == []
    assert children_of(os.getpid()) == []
    assert processes_with(str(tmp_path), "environ") == []
    json.dumps([v.reason for v in verdicts])
