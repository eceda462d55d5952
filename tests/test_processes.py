"""A command in a forked process does as one in an interpreter of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from processes import ENVIRONMENT, python

PROGRAM = """
import json, os, signal, sys, warnings
print(json.dumps([sys.argv, os.getcwd(), sys.stdin.read(), sys.path[0], __name__]))
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, os.environ["SOFTMASK_WORD"])
print(sys.stdout.isatty(), sys.stdout.line_buffering, sys.stdout.encoding, file=sys.stderr)
warnings.warn("careful")
"""


def both(program: str, *words: str, **more) -> list[subprocess.CompletedProcess[str]]:
    """What the program does in a forked process, and in an interpreter."""
    return [
        subprocess.run([*start, "-c", program, *words], capture_output=True, text=True, **more)
        for start in (python(more["env"]), [sys.executable])
    ]


@pytest.mark.parametrize("warnings", ["error", "ignore"])
def test_words_folder_streams_environment_and_warnings_are_the_same(tmp_path, warnings) -> None:
    environment = ENVIRONMENT | {"SOFTMASK_WORD": "yes", "PYTHONWARNINGS": warnings}
    forked, own = both(PROGRAM, "a", "b c", env=environment, cwd=tmp_path, input="typed")
    assert forked.args[0] == own.args[0]
    assert len(forked.args) > len(own.args)
    assert forked.stdout == own.stdout
    assert forked.returncode == own.returncode == (1 if warnings == "error" else 0)
    assert forked.stderr.splitlines()[0] == own.stderr.splitlines()[0]
    assert forked.stderr.splitlines()[-1] == own.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(3)",
        "sys.exit('said')",
        "raise KeyError('x')",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "os._exit(7)",
    ],
)
def test_an_end_is_the_same(end) -> None:
    forked, own = both(f"import os, sys\n{end}", env=ENVIRONMENT)
    assert forked.returncode == own.returncode
    assert forked.stderr.splitlines()[-1:] == own.stderr.splitlines()[-1:]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-"])
def test_a_stream_that_is_closed_is_closed_there_too(closed, tmp_path) -> None:
    """The next file that is opened has its number."""
    program = """if True:
        import os, sys
        number = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        streams = [sys.stdin, sys.stdout, sys.__stderr__]
        os.write(number, f"{number if number < 3 else '-'} {streams.count(None)}".encode())
        print("said")
    """
    found = []
    for number, start in enumerate((python(), [sys.executable])):
        path = tmp_path / str(number)
        words = [*start, "-c", program, path]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *words], capture_output=True, env=ENVIRONMENT
        )
        found.append((done.returncode, done.stdout, path.read_text()))
    assert found[0] == found[1]


def test_what_one_command_changes_the_next_does_not_see() -> None:
    change = "import torch, softmask.config as c; c.BUNDLED = 'other'; torch.manual_seed(1)"
    subprocess.run([*python(), "-c", change], env=ENVIRONMENT, check=True)
    look = "import softmask.config as c; print(c.BUNDLED)"
    done = subprocess.run([*python(), "-c", look], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "default\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_command(number, tmp_path) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    command = [*python(), "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:
        pid = int(process.stdout.readline())
        process.send_signal(number)
        assert process.stdout.read() == ""  # its end, too, is closed
        assert process.wait() == -number
    for _ in range(6000):  # the number is free when the process that forked has seen the end
        if not is_there(pid):
            return
        time.sleep(0.01)
    raise AssertionError("it is still there")


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_another_address_of_the_hub_gets_an_interpreter_of_its_own() -> None:
    assert python(ENVIRONMENT | {"HF_ENDPOINT": "http://127.0.0.1:1"}) == [sys.executable]
    assert python(ENVIRONMENT | {"SOFTMASK_API_KEY": "secret"}) != [sys.executable]
