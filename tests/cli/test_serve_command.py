"""softmask serve, generate --html and view, as a newcomer types them: real processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pytest
from processes import ENVIRONMENT, python
from tiny import write_dream_folder

import softmask
from softmask.cli.main import main
from softmask.serving.listener import bind

WAIT = 600.0  # seconds that no test needs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(write_dream_folder(tmp_path_factory.mktemp("cli") / "dream"))


@contextmanager
def serving(
    *arguments: str, before: str = "", **environment: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server process, and its address once it says so; `before` is a program that runs first."""
    start = f"{before}\nimport sys, softmask.cli.main as cli\nsys.exit(cli.main(sys.argv[1:]))"
    environment = ENVIRONMENT | environment
    process = subprocess.Popen(
        [*python(environment), "-c", start, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"softmask: serving (\S+) at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        yield process, found[2]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_without_arguments_it_serves_the_bundled_model_and_logs_no_prompt() -> None:
    with serving() as (process, url):
        body = {"prompt": "One day, Tom", "max_tokens": 12, "seed": 2, "logprobs": 1}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT).json()
        own = softmask.generate(softmask.load(), "One day, Tom", max_new_tokens=12, seed=2)
        assert answer["model"] == "softmask-default"
        assert answer["choices"][0]["text"] == own.text
        assert "softmask-data" in httpx.get(url, timeout=WAIT).text
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=WAIT)
    assert out == ""
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"event": "request", "route": "/v1/completions", "status": 200}.items() <= (
        lines[0].items()
    )
    assert "One day" not in log


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_key_can_come_from_an_option_or_the_environment(folder, by) -> None:
    arguments = ["--api-key", "secret"] if by == "option" else []
    environment = {} if by == "option" else {"SOFTMASK_API_KEY": "secret"}
    with serving("--model", folder, *arguments, **environment) as (_process, url):
        assert httpx.get(f"{url}/v1/models", timeout=WAIT).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.get(f"{url}/v1/models", headers=headers, timeout=WAIT).status_code == 200


def test_sigterm_lets_a_stream_come_to_its_end(folder) -> None:
    body = {"prompt": "x", "max_tokens": 100, "stream": True}
    body["softmask"] = {"soft_mask": {"scale": 0.5}, "block_length": 8}
    with serving("--model", folder, "--grace", str(WAIT)) as (process, url):
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=WAIT) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert first.startswith("data: {")
        assert rest[-2:] == ["data: [DONE]", ""]
        process.wait(WAIT)


def test_what_takes_longer_than_the_grace_is_told(folder) -> None:
    slow = {"prompt": "x", "max_tokens": 100}
    slow["softmask"] = {"steps": 4000, "soft_mask": {"scale": 0.5}}
    answers = []
    with serving("--model", folder, "--grace", "0.3") as (process, url):

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/completions", json=slow, timeout=WAIT))

        asking = threading.Thread(target=ask)
        asking.start()
        while "softmask_running 1.0" not in httpx.get(f"{url}/metrics", timeout=WAIT).text:
            assert asking.is_alive(), answers
        process.send_signal(signal.SIGTERM)
        asking.join(WAIT)
        process.wait(WAIT)
    assert answers[0].status_code == 503
    assert "shutting down" in answers[0].json()["error"]["message"]


# A run of a process that begins with few descriptors, is flooded, and is interrupted twice.
FEW_FILES = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"


def test_a_flood_of_silent_connections_and_two_interrupts_leave_no_trace(folder) -> None:
    slow = {"prompt": "x", "max_tokens": 100}
    slow["softmask"] = {"steps": 4000, "soft_mask": {"scale": 0.5}}
    answers = []
    with serving("--model", folder, before=FEW_FILES) as (process, url), ExitStack() as stack:
        address = url.removeprefix("http://").split(":")
        for number in range(400):
            connection = stack.enter_context(socket.create_connection(address, timeout=WAIT))
            connection.sendall(b"" if number % 2 else b"GET /health HTTP/1.1\r\nhost: ")
            if number % 50 == 49:
                assert httpx.get(f"{url}/health", timeout=WAIT).json() == {"status": "ok"}

        def ask(stream: bool) -> None:
            with suppress(httpx.TransportError):
                asked = {**slow, "stream": stream}
                answers.append(httpx.post(f"{url}/v1/completions", json=asked, timeout=WAIT))

        asking = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(40)]
        for one in asking:
            one.start()
        while "softmask_requests_accepted_total 40.0" not in httpx.get(f"{url}/metrics").text:
            assert all(one.is_alive() for one in asking), answers
        process.send_signal(signal.SIGINT)
        with suppress(ConnectionError):
            while True:  # until nobody is let in any more
                socket.create_connection(address, timeout=WAIT).close()
        process.send_signal(signal.SIGINT)
        out, log = process.communicate(timeout=WAIT)
        for one in asking:
            one.join(WAIT)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in log
    assert len(log) < 20_000
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert len(answers) == 40


SLOW_STEPS = """
import time
from softmask.decoding.batch import Batch
real = Batch.step
def step(self, *args):
    time.sleep(2)
    return real(self, *args)
Batch.step = step
"""


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", [1, 2, 3, 6])
def test_any_number_of_interrupts_leaves_no_traceback(folder, interrupts) -> None:
    with serving("--model", folder, "--grace", "1", before=SLOW_STEPS) as (process, url):

        def ask(stream: bool) -> None:
            body = {"prompt": "x", "max_tokens": 40, "stream": stream}
            with suppress(httpx.TransportError):
                httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)

        asking = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(20)]
        for one in asking:
            one.start()
        while "softmask_requests_accepted_total 20.0" not in httpx.get(f"{url}/metrics").text:
            pass
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        out, log = process.communicate(timeout=WAIT)
        for one in asking:
            one.join(WAIT)
    assert process.returncode in (130, -signal.SIGINT)
    assert out == ""
    assert "Traceback" not in log
    assert all(json.loads(line)["status"] in (200, 499, 503) for line in log.splitlines())


def failed(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        error = failed(capsys, "serve", "--port", port, "--model", "nowhere")
    assert f"cannot listen at 127.0.0.1:{port}" in error
    assert "--port" in error


def test_of_two_servers_on_one_port_the_second_loads_no_model(capsys) -> None:
    with bind("127.0.0.1", 0) as first:  # as a server that is still loading
        port = str(first.getsockname()[1])
        assert "cannot listen" in failed(capsys, "serve", "--port", port, "--model", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue", "0"], "queue must be at least 1"),
        (["--deadline", "0"], "deadline"),
        (["--port", "70000"], "port"),
        (["--replicas", "3"], "--ray"),
        (["--api-key", ""], "API key"),
        (["--arrival", "0"], "arrival"),
        (["--connections", "0"], "connections"),
        (["--grace", "inf"], "grace must be a finite number"),
        (["--deadline", "1e39"], "deadline must be a finite number"),
        (["--allow-host", "http://example.org"], "without port"),
        (["--allow-origin", "example.org"], "https://example.org"),
        (["--chat-template", "nowhere"], "--chat-template nowhere cannot be read: No such file"),
    ],
)
def test_impossible_settings_are_refused(capsys, arguments, message) -> None:
    assert message in failed(capsys, "serve", *arguments)


def test_a_broken_chat_template_is_said_before_a_model_is_loaded(capsys, tmp_path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{% if %}", encoding="utf-8")
    error = failed(capsys, "serve", "--chat-template", str(file), "--model", "nowhere")
    assert "the chat template is broken" in error


# Recordings.


def test_a_run_is_written_as_a_page_and_as_a_trace_that_can_be_viewed(
    tmp_path, capsys, folder
) -> None:
    page, trace = tmp_path / "trace.html", tmp_path / "trace.json"
    text = "One day,[[6]] went"
    soft = ["--soft-mask-scale", "0.5", "--soft-mask-k", "3"]
    recording = ["--html", str(page), "--trace", str(trace), "--against-plain"]
    assert main(["generate", "--model", folder, "--infill", text, *soft, *recording]) == 0
    said = capsys.readouterr().out
    assert main(["generate", "--model", folder, "--infill", text, *soft]) == 0
    assert capsys.readouterr().out == said
    recorded = json.loads(trace.read_text(encoding="utf-8"))
    assert [run["start"]["name"] for run in recorded["runs"]] == ["soft-masked", "plain"]
    assert recorded["runs"][0]["end"]["text"] == said.rstrip("\n")
    assert main(["view", str(trace), "--out", str(tmp_path / "again.html"), "--no-open"]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.html", "trace.html", "trace.json"]
    # However it is spelled, the trace itself is no place for the page.
    capsys.readouterr()
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(trace)
    for out in (trace, tmp_path / "sub" / ".." / "trace.json", tmp_path / "link"):
        refused = failed(capsys, "view", str(trace), "--out", str(out), "--no-open")
        assert "is the trace itself" in refused
    assert json.loads(trace.read_text(encoding="utf-8")) == recorded


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "mapping"),
        ('{"format": "other", "version": 1, "runs": []}', "no trace"),
        ('{"format": "softmask-trace", "version": 9, "runs": []}', "version 9"),
        ('{"format": "softmask-trace", "version": 1, "runs": []}', "no whole run"),
        ('{"format": "softmask-trace", "version": 1, "runs": [{"start": {}}]}', "no whole run"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, capsys, content, message) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content, encoding="utf-8")
    assert message in failed(capsys, "view", str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def test_recordings_that_cannot_be_are_refused(tmp_path, capsys, folder) -> None:
    html = str(tmp_path / "a.html")
    generate = ["generate", "--model", folder, "Hello", "--max-new-tokens", "8"]
    assert "-n" in failed(capsys, *generate, "--html", html, "-n", "2")
    assert "stream" in failed(capsys, *generate, "--html", html, "--stream")
    assert "--html" in failed(capsys, *generate, "--against-plain")
    assert "plain already" in failed(capsys, *generate, "--html", html, "--against-plain")
    assert "folder" in failed(capsys, *generate, "--html", str(tmp_path / "no" / "a.html"))
    assert "no file" in failed(capsys, "view", str(tmp_path / "none.json"))
    assert not Path(html).exists()
