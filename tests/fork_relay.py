"""Stands in for an interpreter: `-m softmask WORDS` or `-c PROGRAM WORDS` in a forked process.

Imports nothing that takes time. Hands its streams, folder, environment and words to the process
that forks (`fork_server.py`), passes signals on, and ends as the forked process ends.
"""

import json
import os
import signal
import socket
import sys

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def main() -> None:
    address, how, what, *words = sys.argv[1:]
    streams = [number for number in (0, 1, 2) if is_open(number)]
    while os.open(os.devnull, os.O_RDWR) < 3:  # else the socket would take a closed one's number
        pass
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    request = {
        "program": what if how == "-c" else None,
        "argv": ["-c" if how == "-c" else what, *words],
        "cwd": os.getcwd(),
        "env": dict(os.environ),
        "streams": streams,
    }
    # Signals that come before there is a process to pass them to wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    socket.send_fds(client, [json.dumps(request).encode()], streams)
    answers = client.makefile()
    pid = int(answers.readline())
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # ends of pipes that only the other process is to hold
        os.dup2(nothing, stream)
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
