"""Score answers in mathematics with sympy, in a process of its own.

sympy may be asked to compute what a model wrote, say 9**9**9**9. math_verify and upstream set an
alarm for that, which Python serves only between two steps of its own, and nothing limits the
memory. So a worker process does the checking, with a limit on its memory and on the time of an
answer; a worker that takes too long is killed, the answer counts as wrong, and the next answer
gets a new worker. Run as a module (`python -m softmask.evaluation.tasks.mathematics`) this file is
the worker: one JSON object a line in, one out.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import queue
import subprocess
import sys
import threading
from functools import lru_cache
from typing import IO, Any, cast

from ..answers import math_answer

__all__ = ["MathWorker", "math500_results", "minerva_results"]

# Upstream's own alarms are 5 s for each of two parses and a comparison, twice.
SECONDS_PER_ANSWER = 30.0
SECONDS_TO_START = 120.0
MEMORY = 4 << 30
# No final answer is longer; upstream parses whole solutions.
MAX_ANSWER = 2_000
MAX_SOLUTION = 50_000


def math500_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Return whether the last boxed answer equals the reference, as lm-eval's `process_results`.

    `exact_match` compares the two after upstream's normalisation (Lewkowycz et al. 2022,
    appendix D), `math_verify` their values.
    """
    answer = math_answer(results[0])
    if answer is None or len(answer) > MAX_ANSWER:
        return {"exact_match": 0, "math_verify": 0}
    return _worker().ask({"gold": doc["answer"], "answer": answer})


def minerva_results(doc: dict[str, Any], results: list[str]) -> dict[str, int]:
    """Return upstream's two scores of a solution in minerva_math, computed in the worker."""
    doc = {"answer": doc["answer"], "solution": doc["solution"]}
    return _worker().ask({"doc": doc, "solution": results[0][:MAX_SOLUTION]})


class MathWorker:
    """A process that checks one answer at a time, and a new one after each that got stuck."""

    def __init__(self, seconds: float = SECONDS_PER_ANSWER) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        # A thread reads, as Windows cannot wait for a pipe with a limit of time.
        self._reader: threading.Thread | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def ask(self, question: dict[str, Any]) -> dict[str, int]:
        """Return the scores, all 0 where the worker ran out of time or memory.

        Raises OSError if a worker cannot start at all.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:  # it has ended: a broken pipe, on Windows an invalid argument
            line = b""
        else:
            line = self._line(self.seconds)
        if not line:
            self.close()
            return {"exact_match": 0, "math_verify": 0}
        return json.loads(line)

    def close(self) -> None:
        """Kill the worker, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._reader is not None
            self._reader.join()
            with self._process:  # closes the pipes
                pass
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._lines = queue.SimpleQueue()
        arguments = (self._process.stdout, self._lines)
        self._reader = threading.Thread(target=_read, args=arguments, daemon=True)
        self._reader.start()
        if self._line(SECONDS_TO_START).rstrip() != b"ready":
            self.close()
            raise OSError(
                "The process that checks mathematics did not start: "
                f"`{sys.executable} -m {__name__}` says why."
            )
        return self._process

    def _line(self, seconds: float) -> bytes:
        """The worker's next line, empty if it does not arrive in time or the worker has ended."""
        with contextlib.suppress(queue.Empty):
            return self._lines.get(timeout=seconds)
        return b""


def _read(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Hands lines on until the pipe ends, and then an empty one."""
    with io.BufferedReader(cast("io.FileIO", stream)) as whole:
        for line in whole:
            lines.put(line)
    lines.put(b"")


@lru_cache(maxsize=1)
def _worker() -> MathWorker:
    worker = MathWorker()
    atexit.register(worker.close)
    return worker


# ---------------------------------------------------------------------------------------
# The worker


def _scores(question: dict[str, Any]) -> dict[str, int]:
    from lm_eval.tasks.minerva_math.utils import normalize_final_answer, process_results
    from math_verify import parse, verify

    if "doc" in question:
        return process_results(question["doc"], [question["solution"]])
    gold, answer = question["gold"], question["answer"]
    equal = normalize_final_answer(gold) == normalize_final_answer(answer)
    verified = verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{answer}}}"))
    return {"exact_match": int(equal), "math_verify": int(verified)}


def main() -> None:
    """Answer questions until the pipe closes."""
    # What libraries print must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    if sys.platform != "win32":  # which has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _scores({"gold": "1", "answer": "1"})  # imports sympy before the clock of an answer runs
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            scores = _scores(json.loads(line))
        except (MemoryError, RecursionError):
            scores = {"exact_match": 0, "math_verify": 0}
        print(json.dumps({name: int(score) for name, score in scores.items()}), file=answers)
        answers.flush()


if __name__ == "__main__":
    main()
