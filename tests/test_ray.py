"""softmask serve --ray, two replicas on this machine: answers, streams, a loss under load, the end."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2 as httpx
import pytest

import softmask
from softmask.cli import main
from softmask.ray_serve import build, replicas_of

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: softmask[ray]"
)
WAIT = 120.0  # seconds
PROMPTS = ("One day, Tom", "Lily had a red ball", "It was raining. Ben", "Once upon a time")
BODY = {"max_tokens": 48, "temperature": 0, "top_p": 1}


@dataclass
class Served:
    process: subprocess.Popen
    url: str

    def processes(self) -> dict[int, str]:
        """Processes below the server's: pid and title."""
        psutil = pytest.importorskip("psutil")
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {child.pid: " ".join(child.cmdline()) for child in children}

    def replicas(self) -> list[int]:
        return [pid for pid, title in self.processes().items() if "ray::ServeReplica" in title]

    def ask(self, number: int) -> tuple[int, str]:
        """Status and text of a request; 0 where the connection was cut."""
        body = {**BODY, "prompt": PROMPTS[number % len(PROMPTS)]}
        try:
            answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=WAIT)
        except httpx.TransportError as error:
            return 0, str(error)
        if answer.status_code != 200:
            return answer.status_code, answer.text
        return 200, answer.json()["choices"][0]["text"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    command = "serve --ray --replicas 2 --threads 1 --port 0 --running 8"
    process = subprocess.Popen(
        [sys.executable, "-m", "softmask", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"softmask: serving softmask-default at (http://\S+)\n", line)
        assert found, line + process.stderr.read()
        yield Served(process, found[1])
    finally:
        process.terminate()
        process.communicate(timeout=WAIT)


@pytest.fixture(scope="module")
def own() -> list[str]:
    """What the library alone answers."""
    checkpoint = softmask.load(device="cpu")
    settings = {"max_new_tokens": BODY["max_tokens"], "temperature": 0.0, "top_p": 1.0}
    return [softmask.generate(checkpoint, prompt, **settings).text for prompt in PROMPTS]


def until(condition) -> None:
    ends = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.2)


@needs_ray
@pytest.mark.slow
def test_two_replicas_answer_as_the_library_does(served, own) -> None:
    assert len(served.replicas()) == 2
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(served.ask, range(24)))
    assert answers == [(200, own[number % len(own)]) for number in range(24)]


@needs_ray
@pytest.mark.slow
def test_a_stream_comes_through_the_proxy_as_a_stream(served) -> None:
    body = {**BODY, "prompt": PROMPTS[0], "stream": True, "softmask": {"block_length": 8}}
    times = []
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=WAIT) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                times.append(time.monotonic())
    assert len(times) > 5
    assert times[-1] - times[0] > 0.05


@needs_ray
@pytest.mark.slow
def test_refusals_keep_their_shape(served) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", json={"prompt": "x", "echo": True})
    assert answer.status_code == 400
    assert "echo" in answer.json()["error"]["message"]


@needs_ray
@pytest.mark.slow
def test_the_loss_of_a_replica_under_load_ends_its_own_requests_alone(served, own) -> None:
    before = served.replicas()
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(served.ask, number) for number in range(96)]
        until(lambda: sum(one.done() for one in asked) >= 12)
        os.kill(before[0], signal.SIGKILL)
        answers = [one.result(WAIT) for one in asked]
    failed = [answer for answer in answers if answer[0] != 200]
    for status, text in failed:
        assert status == 0 or status >= 500, (status, text)
        assert "Traceback" not in text
    # What was under way there, and what the proxy sent before it knew.
    assert len(failed) <= 24
    for number, (status, text) in enumerate(answers):
        assert status != 200 or text == own[number % len(own)]
    until(lambda: len(served.replicas()) == 2 and before[0] not in served.replicas())
    until(lambda: all(served.ask(number)[0] == 200 for number in range(8)))


@needs_ray
@pytest.mark.slow
def test_sigterm_leaves_nothing_behind(served) -> None:
    below = served.processes()
    assert below
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(WAIT) == 0
    psutil = pytest.importorskip("psutil")
    until(lambda: not [pid for pid in below if psutil.pid_exists(pid)])
    assert served.process.stdout.read() == ""


@pytest.mark.parametrize(("text", "numbers"), [("1", (1, 1)), ("3", (3, 3)), ("1-4", (1, 4))])
def test_replicas_are_a_number_or_two(text, numbers) -> None:
    assert replicas_of(text) == numbers


@pytest.mark.parametrize("text", ["", "0", "4-1", "a", "-2", "1-2-3", "1.5"])
def test_other_replicas_are_refused(text, capsys) -> None:
    assert main(["serve", "--ray", f"--replicas={text}", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "--replicas" in error or "pip install 'softmask[ray]'" in error


def test_the_settings_of_a_serve_config_are_checked() -> None:
    with pytest.raises(ValueError, match="only options are known"):
        build({"option": "--running 3"})
