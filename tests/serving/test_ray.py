"""softmask serve --ray: two processes behind one address, one of which is killed under load."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml
from paths import ROOT

import softmask
from softmask.cli.main import main
from softmask.cli.serve import build, make_parser
from softmask.serving.ray_serve import replicas_of, takes_gpu

WAIT = 600.0  # seconds that no step needs; Ray takes half a minute to start on two processors
KEY = {"authorization": "Bearer secret"}
TITLE = "ray::ServeReplica:softmask"
PROMPTS = ("One day, Tom", "Lily had a red ball", "It was raining. Ben", "Once upon a time")
SETTINGS = {"temperature": 0.0, "block_length": 8, "cache": "dual"}

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: softmask[ray]"
)


# The command line.


@pytest.mark.parametrize(
    ("text", "least_and_most"), [("1", (1, 1)), ("3", (3, 3)), ("1-4", (1, 4)), ("2-2", (2, 2))]
)
def test_replicas_are_a_number_or_two(text, least_and_most) -> None:
    assert replicas_of(text) == least_and_most


@pytest.mark.parametrize("text", ["0", "0-2", "3-1", "", "two", "1-", "-2", "1-2-3"])
def test_other_replicas_are_refused(text) -> None:
    with pytest.raises(ValueError, match="--replicas"):
        replicas_of(text)


def test_a_replica_takes_a_gpu_where_the_device_or_the_cluster_says_so() -> None:
    assert takes_gpu(None, {"CPU": 4, "GPU": 2})
    assert not takes_gpu(None, {"CPU": 4})
    assert takes_gpu("cuda", {})
    assert not takes_gpu("cpu", {"GPU": 2})


def test_without_ray_it_says_what_to_install(monkeypatch, capsys) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name)
    )
    assert main(["serve", "--ray", "--port", "0"]) == 2
    assert "pip install 'softmask[ray]'" in capsys.readouterr().err


@needs_ray
def test_a_device_with_a_number_is_refused_since_ray_hands_them_out(capsys) -> None:
    assert main(["serve", "--ray", "--port", "0", "--device", "cuda:1"]) == 2
    assert "Ray says which GPU" in capsys.readouterr().err


def test_a_config_file_knows_the_options_of_the_command_line_alone() -> None:
    with pytest.raises(ValueError, match="only options"):
        build({"option": "--replicas 2"})


# The container and the cluster, as far as a machine without either can tell.


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) of the Containerfile, lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def copied() -> list[str]:
    """What comes from the checkout."""
    words = [text.split() for name, text in instructions() if name == "COPY"]
    return [source for line in words if not line[0].startswith("--") for source in line[:-1]]


def test_what_the_container_copies_exists_and_is_let_through() -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    assert set(copied()) == let_through
    assert all((ROOT / path).exists() for path in copied())


def test_the_container_runs_the_server_as_nobody_special_and_says_how_it_is() -> None:
    found = dict(instructions())
    assert set(found) == {
        *("FROM", "WORKDIR", "COPY", "ARG", "RUN", "USER", "ENV", "EXPOSE", "HEALTHCHECK"),
        "ENTRYPOINT",
    }
    assert int(found["USER"]) > 0
    assert found["EXPOSE"] == "8000"
    command = json.loads(found["ENTRYPOINT"])
    assert make_parser().parse_args(command[2:]).host == "0.0.0.0"
    check = json.loads(found["HEALTHCHECK"].split(" CMD ")[1])
    compile(check[2], "the health check", "exec")
    assert "/health" in check[2]


@pytest.mark.slow
def test_what_the_container_copies_makes_the_wheel(tmp_path) -> None:
    for path in copied():
        source = ROOT / path
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tmp_path / path, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / path)
    words = f"wheel --no-deps --no-build-isolation --wheel-dir {tmp_path}/wheels {tmp_path}"
    subprocess.run([sys.executable, "-m", "pip", *words.split()], check=True, capture_output=True)
    assert len(list((tmp_path / "wheels").glob("softmask-*.whl"))) == 1


def test_the_manifest_in_the_document_is_whole() -> None:
    text = (ROOT / "docs/guides/deploy.md").read_text(encoding="utf-8")
    (manifest,) = re.findall(r"```yaml\n(# softmask.yaml\n.*?)```", text, re.DOTALL)
    spec = yaml.safe_load(manifest)["spec"]
    (entry,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, name = entry["import_path"].split(":")
    assert (module, name) == (build.__module__, build.__name__)
    words = shlex.split(entry["args"]["options"])
    args = make_parser().parse_args(["--ray", *words])
    least, most = replicas_of(args.replicas)
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (least, most)
    for group in (spec["rayClusterConfig"]["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"][0]["name"] == "SOFTMASK_API_KEY"


# Two replicas.


@dataclass
class Running:
    """A server with its processes."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def replicas(self) -> set[int]:
        return {pid for pid, title in self.descendants().items() if title.startswith(TITLE)}

    def descendants(self) -> dict[int, str]:
        """Processes that it started, and those started by them, with their titles."""
        parents, titles = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "status").read_text()
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            parents[int(folder.name)], titles[int(folder.name)] = int(fields["PPid"]), title
        found, fresh = {}, {self.process.pid}
        while fresh:
            fresh = {pid for pid, parent in parents.items() if parent in fresh}
            found |= {pid: titles[pid] for pid in fresh}
        return found

    def post(self, body: dict, path: str = "/v1/completions", **more) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=KEY, timeout=WAIT, **more)


def until(condition) -> None:
    ends = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.2)


def body_of(prompt: str, tokens: int) -> dict:
    settings = dict(SETTINGS)
    temperature = settings.pop("temperature")
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": temperature}
    return {**body, "softmask": settings}


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("ray") / "log"
    words = "--ray --replicas 2 --port 0 --threads 1 --device cpu --max-body 100000 --grace 600"
    command = [sys.executable, "-m", "softmask", "serve", *words.split()]
    environment = {**os.environ, "SOFTMASK_API_KEY": "secret"}
    environment.pop("RAY_ADDRESS", None)
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
    with process:
        line = process.stdout.readline()
        assert line.startswith("softmask: serving softmask-default at http://"), log.read_text()
        yield Running(process, line.split()[-1], log)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT)


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    checkpoint = softmask.load(device="cpu")
    return {
        prompt: softmask.generate(checkpoint, prompt, max_new_tokens=48, **SETTINGS).text
        for prompt in PROMPTS
    }


@needs_ray
@pytest.mark.slow
def test_requests_in_parallel_get_the_answers_of_the_library(running, expected) -> None:
    assert len(running.replicas) == 2
    answers: dict[int, tuple[str, str]] = {}

    def ask(number: int) -> None:
        prompt = PROMPTS[number % len(PROMPTS)]
        answer = running.post(body_of(prompt, 48))
        answers[number] = (prompt, answer.json()["choices"][0]["text"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(answers) == 16
    assert all(text == expected[prompt] for prompt, text in answers.values())


@needs_ray
@pytest.mark.slow
def test_keys_limits_and_errors_are_those_of_one_process(running) -> None:
    without = httpx.post(f"{running.url}/v1/completions", json={"prompt": "x"}, timeout=WAIT)
    assert without.status_code == 401
    assert without.json()["error"]["code"] == "invalid_api_key"
    assert running.post({"prompt": "x" * 200_000}).status_code == 413
    unknown = running.post({"prompt": "x", "softmask": {"stepz": 1}})
    assert unknown.status_code == 400
    assert "stepz" in unknown.json()["error"]["message"]
    late = running.post({"prompt": "x", "max_tokens": 300, "softmask": {"deadline": 0.1}})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")


@needs_ray
@pytest.mark.slow
def test_a_stream_passes_through_as_one(running, expected) -> None:
    prompt = PROMPTS[3]
    body = {**body_of(prompt, 48), "stream": True}
    parts, content = 0, b""
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json=body, headers=KEY, timeout=WAIT
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for part in answer.iter_raw():
            parts, content = parts + 1, content + part
    lines = [line for line in content.decode().splitlines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["choices"][0]["text"] for event in events) == expected[prompt]
    assert len(events) > 4
    assert parts > 2  # not collected on the way


@needs_ray
@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(running) -> None:
    body = {"prompt": "x", "max_tokens": 300, "stream": True}
    body["softmask"] = {"steps": 4000, "soft_mask": {"scale": 0.5}}
    content, host = json.dumps(body).encode(), running.url.removeprefix("http://")
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer secret\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection(tuple(host.split(":"))) as connection:
        connection.sendall(head.encode() + content)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    # Each scrape is of one of the replicas, and says nothing of the other.
    cancelled = 'softmask_requests_ended_total{reason="cancelled"} 1.0'
    until(lambda: cancelled in httpx.get(f"{running.url}/metrics", timeout=WAIT).text)


@needs_ray
@pytest.mark.slow
def test_a_replica_that_is_killed_takes_its_requests_along_and_comes_back(
    running, expected
) -> None:
    victim, other = sorted(running.replicas)
    stop = threading.Event()
    told: list[str] = []

    def ask(number: int) -> None:
        prompt = PROMPTS[number % len(PROMPTS)]
        while not stop.is_set():
            try:
                answer = running.post(body_of(prompt, 48))
            except httpx.TransportError:
                told.append("cut")
                continue
            if answer.status_code == 200:
                same = answer.json()["choices"][0]["text"] == expected[prompt]
                told.append("answered" if same else "another text")
            else:
                told.append(f"{answer.status_code} {answer.text}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(told) >= 16)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(running.replicas - {victim}) == 2)
    stop.set()
    for thread in threads:
        thread.join(WAIT)
    failed = [one for one in told if one != "answered"]
    print(len(told), "requests,", len(failed), "failed:", failed)
    # At most those that it had.
    assert len(failed) <= 8
    assert all(one == "cut" or (one.startswith("5") and len(one) > 4) for one in failed)
    assert len(told) > 24
    assert other in running.replicas
    for prompt in PROMPTS:
        assert running.post(body_of(prompt, 48)).json()["choices"][0]["text"] == expected[prompt]


@needs_ray
@pytest.mark.slow
def test_a_signal_ends_it_all_and_those_who_run_get_their_answer(running, expected) -> None:
    processes = running.descendants()
    assert len(processes) >= 5
    body = {"prompt": "x", "max_tokens": 200, "temperature": 0, "stream": True}
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json=body, headers=KEY, timeout=WAIT
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: {")  # so it runs
        running.process.send_signal(signal.SIGTERM)
        assert "data: [DONE]" in list(lines)
    assert running.process.wait(WAIT) == 0
    assert running.process.stdout.read() == ""
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes))


@needs_ray
@pytest.mark.slow
def test_a_model_that_no_replica_can_load_is_told_in_a_sentence() -> None:
    words = "serve --ray --port 0 --device cpu --model nowhere/to/be/found"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "softmask", *words.split()],
        capture_output=True,
        text=True,
        env=environment,
        timeout=WAIT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("softmask: error: no replica came up: ")
    assert "nowhere/to/be/found" in last
