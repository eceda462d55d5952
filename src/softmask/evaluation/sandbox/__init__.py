"""Run untrusted programs of code benchmarks, and judge them outside of their process.

    judge("def add(a, b):\\n    return a + b\\n", "assert add(1, 2) == 3").passed

Three processes take part: the caller's; a judge (`sandbox_judge`), which runs the test; and the
candidate (`sandbox_child`), which runs the program and answers the judge with plain values
(`sandbox_wire`). The program never sees the test nor what it expects, so that printing, exiting,
patched builtins or objects equal to all do not pass. The candidate is confined by limits, by the
kernel (`sandbox_kernel`) and by an audit hook (`sandbox_hook`); `available` says which of them are
in force here. The caller kills what has not ended in time.

Not supported: a test that looks at arguments the program changed, for these are copies, and a
test that hands functions of its own to the program.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .sandbox_kernel import FLAGS, children_of

__all__ = ["Limits", "Verdict", "available", "judge", "judge_all"]

_LAYERS = ("landlock", "seccomp", "hook")
_HERE = Path(__file__).resolve().parent
_MAX_SWEEPS = 50


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0  # wall clock, with all its tests
    cpu_seconds: int = 10
    memory_mb: int = 2048  # address space
    file_mb: int = 16  # size of one written file


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed its test, why, and how long it took."""

    passed: bool
    reason: str  # "passed" or one short sentence
    seconds: float


_DEFAULT = Limits()


def judge(program: str, test: str, limits: Limits = _DEFAULT) -> Verdict:
    """Return whether `test`, a trusted text, runs through with the names of `program`.

    Raises OSError when no process can be started; nothing for what a program does.
    """
    return _judge(program, test, limits, _LAYERS)


def judge_all(
    pairs: Sequence[tuple[str, str]], limits: Limits = _DEFAULT, workers: int | None = None
) -> list[Verdict]:
    """Return the verdict on every (program, test), in their order.

    `workers`: how many are judged at a time; by default, as many as there are processors.
    Raises OSError when no process can be started.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        return list(pool.map(lambda pair: judge(pair[0], pair[1], limits), pairs))
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def available() -> str:
    """Return the protections in force on this machine, such as "seccomp, landlock, rlimits"."""
    done = subprocess.run(
        [sys.executable, *FLAGS, str(_HERE / "sandbox_kernel.py")],
        capture_output=True,
        text=True,
        env=_environment(os.devnull),
        check=False,
    )
    return ", ".join([*sorted(done.stdout.split(), reverse=True), "rlimits", "audit hook"])


def _judge(program: str, test: str, limits: Limits, layers: Collection[str]) -> Verdict:
    """`judge` with only some of the layers, each of which must hold alone."""
    start = time.perf_counter()
    scratch = os.path.realpath(tempfile.mkdtemp(prefix="softmask-"))
    job: dict[str, Any] = {"program": program, "test": test, "scratch": scratch}
    job |= {"libraries": _libraries(), "limits": asdict(limits), "layers": list(layers)}
    try:
        passed, reason = _ask_judge(json.dumps(job).encode(), scratch, limits)
    finally:
        _delete(scratch)
    return Verdict(passed, reason, time.perf_counter() - start)


def _ask_judge(job: bytes, scratch: str, limits: Limits) -> tuple[bool, str]:
    """Let a judge do the job; kill it with all below it if it does not in time."""
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
            answer, _ = process.communicate(job, timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            return False, f"timed out after {limits.seconds:g} s"
        finally:
            if process.poll() is None:
                _kill(process.pid)
    if not answer:
        return False, f"the judge ended: {process.returncode}"
    passed, reason = json.loads(answer)
    return passed, reason


def _kill(judge: int) -> None:
    """Kill a judge that still runs, its children first: it adopts their orphans."""
    for _ in range(_MAX_SWEEPS):
        children = children_of(judge)
        for pid in children:
            _signal(os.kill, pid)
        if not children:
            break
    _signal(os.killpg, judge)


def _signal(kill: Callable[[int, int], None], pid: int) -> None:
    try:
        kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # it was quicker; macOS has the other word
        return


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
        "PYTHONHASHSEED": "0",
    }
