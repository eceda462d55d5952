"""Run untrusted programs of code benchmarks, and judge them outside of their process.

    judge("def add(a, b):\\n    return a + b\\n", "assert add(1, 2) == 3").passed

Three processes take part: the caller's; a judge (`sandbox_judge`), which runs the test; and the
candidate (`sandbox_child`), which runs the program and answers the judge with plain values
(`sandbox_wire`). The program never sees the test nor what it expects, so that printing, exiting,
patched builtins or objects equal to all do not pass. The candidate is confined by a mount
namespace with a small tmpfs (`sandbox_mount`), by the kernel (`sandbox_kernel`), by limits and by
an audit hook (`sandbox_hook`); `available` says which of them hold here, and then they do for
every program. What they leave open the caller watches (`watch`), and it kills what has not ended
in time.

A program that failed for want of something (time, memory, a process) beside others is judged
again alone. Where the machine cannot judge at all there is an OSError and no verdict.

Not supported: a test that looks at arguments the program changed, for these are copies; a test that
hands functions of its own to the program; and one that asks more of a result than plain data have.
A `Counter` or `defaultdict` comes back as a dict, a named tuple as a tuple, a member of an enum as
its value, and a `datetime.date` as something that equals nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...reporting.progress import progress
from .sandbox_kernel import FLAGS
from .watch import Watch, kill, processor_seconds

__all__ = ["Limits", "Verdict", "available", "judge", "judge_all", "warn_of_missing"]

logger = logging.getLogger(__name__)

# What each protection is for, said where a machine lacks it.
_LAYERS = {
    "namespace": "a program writes to the disk, where its files are only watched",
    "landlock": "native code may read this user's files",
    "seccomp": "native code may use the network and start processes",
    "threads": "threads are only watched",
    "hook": "",
}
_HERE = Path(__file__).resolve().parent
# A program had its share of the processors if it used so much of its time on the clock.
_FAIR_SHARE = 0.9
_SECONDS_TO_START = 60.0
_EVERY = 0.05  # seconds between two looks at a judge


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0  # wall clock, with all its tests
    cpu_seconds: int = 10
    memory_mb: int = 2048  # address space
    file_mb: int = 16  # size of one written file
    scratch_mb: int = 64  # of all its files
    files: int = 100
    threads: int = 64
    # Whether it may do what large libraries do, such as making folders and loading ctypes, where
    # the kernel has all layers: the hook, which would end it for that, is left out then.
    libraries: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its test, why, and how long it took.

    `fair`: whether this cannot be the doing of a busy machine, or of the programs beside it.
    """

    passed: bool
    reason: str  # "passed" or one short sentence
    seconds: float
    fair: bool = True


_DEFAULT = Limits()


def judge(program: str, test: str, limits: Limits = _DEFAULT) -> Verdict:
    """Return whether `test`, a trusted text, runs through with the names of `program`.

    Raises OSError when this machine cannot judge now: no process, no room on the disk. What a
    program does raises nothing.
    """
    return _judge(program, test, limits, _held())


def judge_all(
    pairs: Sequence[tuple[str, str]], limits: Limits = _DEFAULT, workers: int | None = None
) -> list[Verdict]:
    """Return the verdict on every (program, test), in their order.

    `workers`: how many are judged at a time; by default, as many as there are processors. What
    fails then and might not have failed alone is judged once more, alone.
    Raises OSError when this machine cannot judge.
    """
    layers = _held()
    warn_of_missing()

    # By number, as a pair may be made only when it is asked for.
    def first(number: int) -> Verdict:
        try:
            return _judge(*pairs[number], limits, layers)
        except OSError as error:
            return Verdict(False, str(error), 0.0, fair=False)

    pool = ThreadPoolExecutor(workers or os.cpu_count())
    found = []
    try:
        with progress("running programs in the sandbox", len(pairs), "programs") as shown:
            for verdict in pool.map(first, range(len(pairs))):
                found.append(verdict)
                shown.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return [
        verdict if verdict.fair else _judge(*pairs[number], limits, layers)
        for number, verdict in enumerate(found)
    ]


def available() -> str:
    """Return the protections in force on this machine, such as "namespace, seccomp, rlimits"."""
    held = [name for name in _LAYERS if name in _held() and name != "hook"]
    return ", ".join([*held, "rlimits", "audit hook"])


@functools.cache
def warn_of_missing() -> None:
    """Log a warning, once, of each protection that this machine does not have."""
    for name, lack in _LAYERS.items():
        if name not in _held():
            logger.warning("the sandbox has no %s here: %s", name, lack)


@functools.cache
def _held() -> frozenset[str]:
    """The protections that a candidate of an empty program has.

    Raises OSError when this machine cannot judge.
    """
    if sys.platform == "win32":
        raise OSError(
            "Programs that a model wrote run confined on Linux and macOS alone, and Windows has "
            "no such limits: run this task on one of them, or in WSL"
        )
    return _ask_judge("", "", _DEFAULT, _LAYERS, scratch="/")[1]


def _judge(program: str, test: str, limits: Limits, layers: Collection[str]) -> Verdict:
    """`judge` with only some of the layers, all of which must hold."""
    start = time.perf_counter()
    with _scratch(limits, layers) as scratch:
        verdict, held = _ask_judge(program, test, limits, layers, scratch)
        if not verdict.passed and scratch:
            _require_room(scratch, limits)
    if held != set(layers):
        raise OSError(f"The sandbox lost a protection: {', '.join(set(layers) - held)}.")
    return replace(verdict, seconds=time.perf_counter() - start)


@contextlib.contextmanager
def _scratch(limits: Limits, layers: Collection[str]) -> Iterator[str]:
    """A folder on the disk where the program has none in memory; "" otherwise."""
    if "namespace" in layers:
        yield ""
        return
    folder = os.path.realpath(tempfile.mkdtemp(prefix="softmask-"))
    try:
        _require_room(folder, limits)
        yield folder
    finally:
        _delete(folder)


def _require_room(folder: str, limits: Limits) -> None:
    """Raises OSError where a program might not have all that it is allowed."""
    disk = os.statvfs(folder)
    no_files = disk.f_files > 0 and disk.f_favail < limits.files
    if disk.f_bavail * disk.f_frsize < limits.scratch_mb * 2**20 or no_files:
        raise OSError(errno.ENOSPC, "Programs have no room to be judged", folder)


def _ask_judge(
    program: str, test: str, limits: Limits, layers: Collection[str], scratch: str
) -> tuple[Verdict, frozenset[str]]:
    """Let a judge do the job; kill it with all below it if it does not in time.

    Returns its verdict, without the time, and the layers that held.
    """
    job: dict[str, Any] = {"program": program, "test": test, "scratch": scratch}
    job |= {"libraries": _libraries(), "limits": asdict(limits), "layers": list(layers)}
    process = subprocess.Popen(
        [sys.executable, *FLAGS, str(_HERE / "sandbox_judge.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_environment(scratch),
        start_new_session=True,
    )
    with process:
        try:
            answer, end, fair = _follow(process, json.dumps(job).encode(), limits, layers, scratch)
        finally:
            if process.poll() is None:
                kill(process.pid)
    held, started, verdict = answer.partition(b"\n")
    if not started:
        raise OSError(f"The sandbox did not start: its judge ended with {process.returncode}.")
    if verdict:
        passed, end, fair = json.loads(verdict)
    else:
        passed = False
    return Verdict(passed, end, 0.0, fair), frozenset(json.loads(held))


def _follow(
    process: subprocess.Popen[bytes],
    job: bytes,
    limits: Limits,
    layers: Collection[str],
    scratch: str,
) -> tuple[bytes, str, bool]:
    """Waits until a judge has ended, or must.

    Returns what it wrote, and for what says nothing of the test the reason, and whether that is
    fair.
    """
    # Not by communicate(), which forgets the rest of its input when its timeout comes first. The
    # judge reads it all before it writes.
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(job)
    process.stdin = None
    watch = Watch(process.pid, scratch, limits.scratch_mb, limits.files, limits.threads)
    to_watch = not {"namespace", "threads"} <= set(layers)
    # The program's time begins when all is ready for it, which may take long on a busy machine.
    ready, ends = False, time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            answer, _ = process.communicate(timeout=_EVERY)
        except subprocess.TimeoutExpired as wait:
            so_far = wait.output or b""
        else:
            return answer, f"the judge ended: {process.returncode}", False
        if not ready and b"\n" in so_far:
            ready, ends = True, time.monotonic() + limits.seconds
        if to_watch and (excess := watch.excess()):
            return so_far, excess, True
        if time.monotonic() > ends:
            fair = processor_seconds(process.pid) >= _FAIR_SHARE * limits.seconds
            return so_far, f"timed out after {limits.seconds:g} s", fair


def _delete(scratch: str) -> None:
    try:
        shutil.rmtree(scratch, ignore_errors=True)
    except RecursionError:  # folders in folders, where the kernel forbids none
        subprocess.run(["rm", "-rf", "--", scratch], check=False)


@functools.cache
def _libraries() -> str:
    """The folder with numpy, which programs and tests may import; "" without it."""
    spec = importlib.util.find_spec("numpy")
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else ""


def _environment(scratch: str) -> dict[str, str]:
    """All that the processes see of the environment: no secret, and one order of every set."""
    kept = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {
        **kept,
        **threads,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TMPDIR": scratch,
        # Where libraries keep their settings; and matplotlib is to open no window.
        "HOME": scratch,
        "MPLBACKEND": "Agg",
        "PYTHONHASHSEED": "0",
    }
