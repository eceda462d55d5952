"""Load and faults against a real `softmask serve`: what clients do, and what they should not.

    python benchmarks/serve_load.py benchmarks/results/DATE_serve_load

Four waves of the same 200 requests to the bundled model, 32 at once: completions, infillings,
streams, streams with a stop string, steps; one in five leaves at a random moment. Among them come
bodies that are no JSON, wrong types, huge fields, unknown routes, bytes that are no HTTP, and
readers that take one byte a second. Every client must get an answer or a reason; who stays gets
what the library alone would give; afterwards nothing runs or waits, and the server has not grown.
People read the table; the last line is JSON, and trouble makes the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.client
import io
import itertools
import json
import math
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import softmask
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

Json = dict[str, Any]
CACHE = {"cache": "dual"}
PROMPTS = ("One day, Tom", "Lily had a red ball", "It was raining. Ben", "Once upon a time")
LEAVING = 0.2  # of the requests
FAULTY = 0.1  # as many again are faults, but each at least once a wave
COMPLETIONS, DENOISE = "/v1/completions", "/v1/denoise"
# What a request may be answered with when it is one the server should do.
FINE = frozenset({200})
REFUSED = frozenset({400})


@dataclass(frozen=True)
class Settings:
    """What a run does. `bound_mb` is what the server may grow by from wave 2 to the last one."""

    requests: int = 200
    waves: int = 4
    concurrency: int = 32
    running: int = 16
    queue: int = 16
    most_tokens: int = 48
    slow_seconds: float = 4.0
    patience: float = 120.0
    bound_mb: float = 24.0
    threads: int | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is asked for."""
        return min(192, 4 * self.most_tokens)


@dataclass(frozen=True)
class Asked:
    """One request: bytes on the wire, and what must come back.

    `check` looks at a body of status 200; `leaves` and `reads_slowly` are seconds.
    """

    kind: str
    payload: bytes
    allowed: frozenset[int | str] = FINE
    check: Callable[[bytes], int] | None = None
    leaves: float | None = None
    reads_slowly: float = 0.0


@dataclass
class Outcome:
    """What came back."""

    kind: str
    status: int | str
    seconds: float
    tokens: int = 0
    trouble: str | None = None


# What is asked.


def payload(path: str, body: Json | bytes | None, method: str = "POST") -> bytes:
    """A request as bytes; the connection is for it alone."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


class Wishes:
    """Requests that should be done, each with the answer of the library alone."""

    def __init__(self, settings: Settings) -> None:
        self.checkpoint = softmask.load(device="cpu", dtype="float32")
        self.most_tokens, self.longest = settings.most_tokens, settings.longest
        self.all: list[Asked] = []
        for number, prompt in enumerate(PROMPTS):
            tokens = max(6, (number + 1) * self.most_tokens // len(PROMPTS))
            self._completions(prompt, tokens, seed=number)
            self._infillings(prompt, max(4, tokens // 3))

    def _own(self, prompt: str, tokens: int, **settings: Any) -> list[str]:
        count = settings.pop("num_return_sequences", 1)
        found = softmask.generate(
            self.checkpoint,
            [prompt],
            max_new_tokens=tokens,
            num_return_sequences=count,
            **CACHE,
            **settings,
        )
        return [one.text for one in found]

    def _completions(self, prompt: str, tokens: int, seed: int) -> None:
        greedy = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "softmask": CACHE}
        drawn = {**greedy, "temperature": 0.8, "seed": seed}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        own = self._own(prompt, tokens, temperature=0.0)
        self._add("completion", greedy, check_whole(own))
        self._add("stream", {**greedy, **stream}, check_stream(own))
        two = self._own(prompt, tokens, temperature=0.8, seed=seed, num_return_sequences=2)
        self._add("two drawn texts", {**drawn, "n": 2}, check_whole(two))
        self._add("two drawn streams", {**drawn, **stream, "n": 2}, check_stream(two))
        stop = own[0][len(own[0]) // 2 :][:3]
        before = own[0][: own[0].index(stop)]
        self._add("stream with stop", {**greedy, **stream, "stop": stop}, check_stream([before]))

    def _infillings(self, prompt: str, tokens: int) -> None:
        suffix = " and they were happy."
        own = self._own(f"{prompt}[[{tokens}]]{suffix}", 1, temperature=0.0, infill=True)[0]
        middle = own[len(prompt) : len(own) - len(suffix)]
        body = {"prompt": prompt, "max_tokens": tokens, "suffix": suffix, "temperature": 0}
        self._add("infilling", {**body, "softmask": CACHE}, check_whole([middle]))
        steps = {"infill": f"{prompt}[[{tokens}]]{suffix}", "temperature": 0, "softmask": CACHE}
        self._add("steps", steps, check_steps(own), path=DENOISE)

    def _add(self, kind: str, body: Json, check: Any, path: str = COMPLETIONS) -> None:
        self.all.append(Asked(kind, payload(path, body), check=check))

    def slow(self, seconds: float) -> Asked:
        """Many large events for somebody who hardly reads them."""
        text = f"{PROMPTS[0]}[[{self.longest}]]."
        own = self._own(text, 1, temperature=0.0, infill=True)[0]
        body = {"infill": text, "temperature": 0, "candidates": 20, "softmask": CACHE}
        wire = payload(DENOISE, body)
        return Asked("slow reader", wire, check=check_steps(own), reads_slowly=seconds)


def faults() -> list[Asked]:
    """What nobody should send, and what it may be answered with."""
    bodies: dict[str, list[Json | bytes]] = {
        "malformed JSON": [b"", b'{"prompt": ', b"\xff\xfe\x00", b"[" * 50_000, b'"text"', b"{}{}"],
        "wrong types": [
            {"prompt": 5},
            {"prompt": {"a": 1}},
            {"prompt": "x", "max_tokens": "many"},
            {"prompt": "x", "softmask": []},
            {"prompt": "x", "stream": "yes"},
            {"prompt": "x", "stop": [1]},
            {"prompt": [[["x"]]]},
            {"prompt": "x", "\ud800": 1},
            {"prompt": "x", "softmask": {"soft_mask": {"\ud800": 1}}},
            {"prompt": "x", "softmask": {"alg": "\ud800"}},
        ],
        "huge fields": [
            {"prompt": "x " * 100_000},
            {"prompt": "x", "seed": 10**30},
            {"prompt": "x", "max_tokens": 10**18},
            {"prompt": "x", "n": 10**9},
            {"prompt": [10**30]},
            {"prompt": "x", "stop": "y" * 100_000},
            {"prompt": "x", "max_tokens": 4, "softmask": {"steps": 10**30}},
            {"prompt": "x", "softmask": {"soft_mask": {"k": 10**30}}},
            {"prompt": "x", "softmask": {"soft_mask": {"scale": math.nan}}},
            {"prompt": "x", "temperature": math.inf},
            b'{"prompt": "x", "seed": ' + b"9" * 10_000 + b"}",
        ],
    }
    found = [
        Asked(kind, payload(COMPLETIONS, body), REFUSED)
        for kind, sent in bodies.items()
        for body in sent
    ]
    large = payload(COMPLETIONS, {"prompt": "x" * 2_000_000})
    # Answered while it still sends, a client may find the connection gone instead.
    found.append(Asked("huge body", large, frozenset({413, "cut"})))
    unknown = {"GET /v1/nothing": 404, "POST /v1/../../etc/passwd": 404, "PUT /%ff%00": 404}
    for line, status in {**unknown, f"GET {COMPLETIONS}": 405, f"DELETE {DENOISE}": 405}.items():
        method, path = line.split()
        found.append(Asked("unknown route", payload(path, None, method), frozenset({status})))
    found.append(Asked("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", frozenset({400, "cut"})))
    half = payload(COMPLETIONS, {"prompt": "x" * 100})[:-50]
    found.append(Asked("half a request", half, leaves=0.3))
    return found


def late() -> list[Asked]:
    """What cannot be done in time, and is answered so."""
    body = {"prompt": "x", "max_tokens": 300, "softmask": {"deadline": 0.05}}
    whole, stream = (payload(COMPLETIONS, {**body, "stream": value}) for value in (False, True))
    return [
        Asked("late", whole, frozenset({504})),
        Asked("late stream", stream, frozenset({"200, then deadline"})),
    ]


def wave_of(wishes: Wishes, slow: Asked, settings: Settings) -> list[Asked]:
    """The requests of a wave, in the order in which they are sent: the same for each wave."""
    chance = random.Random(0)
    asked = list(itertools.islice(itertools.cycle(wishes.all), settings.requests))
    for place in chance.sample(range(len(asked)), round(LEAVING * len(asked))):
        asked[place] = replace(asked[place], leaves=chance.uniform(0, 1))
    wrong = [*faults(), *late()]
    count = max(len(wrong), round(FAULTY * settings.requests))
    asked += itertools.islice(itertools.cycle(wrong), count)
    chance.shuffle(asked)
    # First, so that they are there all the while.
    return [slow, slow, *asked]


# What comes back.


class Wrong(Exception):
    """An answer that should be another."""


def check_whole(expected: Sequence[str]) -> Callable[[bytes], int]:
    """An answer in one piece; returns its tokens."""

    def check(body: bytes) -> int:
        answer = json.loads(body)
        _same([choice["text"] for choice in answer["choices"]], expected)
        return answer["usage"]["completion_tokens"]

    return check


def check_stream(expected: Sequence[str]) -> Callable[[bytes], int]:
    """An answer in pieces."""

    def check(body: bytes) -> int:
        events = list(events_of(body))
        if events[-1][1] != "[DONE]":
            raise Wrong(f"the stream ends with {events[-1][1][:200]}")
        texts, tokens = [""] * len(expected), 0
        for _, data in events[:-1]:
            chunk = json.loads(data)
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        _same(texts, expected)
        return tokens

    return check


def check_steps(expected: str) -> Callable[[bytes], int]:
    """Every step of a text."""

    def check(body: bytes) -> int:
        events = [(name, json.loads(data)) for name, data in events_of(body)]
        names = [name for name, _ in events]
        if names != ["start", *["step"] * (len(names) - 2), "end"]:
            raise Wrong(f"the events are {names[:2]} to {names[-1:]}")
        _same([events[-1][1]["text"]], [expected])
        return sum(len(step["committed"]["id"]) for _, step in events[1:-1])

    return check


def _same(found: Sequence[str], expected: Sequence[str]) -> None:
    if list(found) != list(expected):
        raise Wrong(f"{found!r} instead of {expected!r}")


def events_of(body: bytes) -> Iterator[tuple[str, str]]:
    """(name, data) of server-sent events."""
    for part in body.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.split("\n"))
        yield fields.get("event", ""), fields["data"]


class _Wire:
    """Bytes that arrived, as `http.client` wants to read them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parse(data: bytes) -> tuple[int | str, http.client.HTTPMessage, bytes]:
    """Status, headers and body; the status is "cut" where the connection ended before they did."""
    answer = http.client.HTTPResponse(_Wire(data))  # type: ignore[arg-type]
    try:
        answer.begin()
        return answer.status, answer.headers, answer.read()
    except http.client.HTTPException:
        return "cut", http.client.HTTPMessage(), b""


def judge(asked: Asked, data: bytes, seconds: float) -> Outcome:
    """What an answer is, and what is wrong with it."""
    status, _headers, body = parse(data)
    if status == 200 and b'data: {"error":' in body:
        status = f"200, then {json.loads(list(events_of(body))[-1][1])['error']['code']}"
    outcome = Outcome(asked.kind, status, seconds)
    is_explained = status == "cut" or b'"message":' in body or asked.kind == "no HTTP"
    if status not in asked.allowed:
        outcome.trouble = f"{asked.kind}: {status} {body[:300]!r}"
    elif asked.check is not None:
        try:
            outcome.tokens = asked.check(body)
        except (Wrong, ValueError, LookupError) as error:
            outcome.trouble = f"{asked.kind}: {error}"
    elif not is_explained:
        outcome.trouble = f"{asked.kind}: {status} without a reason"
    return outcome


# Clients.


async def exchange(address: tuple[str, int], asked: Asked) -> bytes:
    """Sends a request, reads all that comes."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    with socket.socket() as connection:
        connection.setblocking(False)
        if asked.reads_slowly:
            # What the system takes in for the reader would make it a fast one.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(connection, address)
        sending = asyncio.create_task(loop.sock_sendall(connection, asked.payload))
        try:
            ends = time.perf_counter() + asked.reads_slowly
            while time.perf_counter() < ends:
                received += await loop.sock_recv(connection, 1)
                await asyncio.sleep(1)
            while data := await loop.sock_recv(connection, 1 << 16):
                received += data
        except ConnectionError:
            pass  # what has come may be whole
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    return bytes(received)


async def ask(address: tuple[str, int], asked: Asked, settings: Settings) -> list[Outcome]:
    """A client: comes back when the server says, and leaves when it wants to."""
    outcomes: list[Outcome] = []
    ends = time.perf_counter() + settings.patience
    while True:
        started = time.perf_counter()
        patience = ends - started if asked.leaves is None else asked.leaves
        try:
            data = await asyncio.wait_for(exchange(address, asked), patience)
        except TimeoutError:
            seconds, left = time.perf_counter() - started, asked.leaves is not None
            trouble = None if left else f"{asked.kind}: no answer in {settings.patience} seconds"
            return [
                *outcomes,
                Outcome(asked.kind, "left" if left else "never", seconds, 0, trouble),
            ]
        seconds = time.perf_counter() - started
        status, headers, _ = parse(data)
        if status != 429:
            return [*outcomes, judge(asked, data, seconds)]
        outcomes.append(Outcome(asked.kind, 429, seconds))
        await asyncio.sleep(int(headers["retry-after"]))


async def crowd(
    address: tuple[str, int], wave: Sequence[Asked], settings: Settings
) -> list[Outcome]:
    """All requests of a wave, so many at once."""
    outcomes: list[Outcome] = []
    left = iter(wave)

    async def worker() -> None:
        for asked in left:
            outcomes.extend(await ask(address, asked, settings))

    async with asyncio.TaskGroup() as group:
        for _ in range(settings.concurrency):
            group.create_task(worker())
    return outcomes


# The server.


@dataclass
class Server:
    """A `softmask serve` of its own, which may still be starting."""

    process: subprocess.Popen[str]
    log: Path
    rss_mb: list[float] = field(default_factory=list)

    @functools.cached_property
    def url(self) -> str:
        """Where it serves; waits until it does."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: {self.log.read_text()}")
        return line.split()[-1]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    def get(self, path: str) -> str:
        """The body of a page; anything but a 200 is an error."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = self.get("/metrics").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def is_idle(self, seconds: float = 5.0) -> bool:
        """Whether it comes to rest: nothing runs, nothing waits, nothing is held."""
        names = ("softmask_running", "softmask_waiting", "softmask_positions_taken")
        ends = time.monotonic() + seconds
        while any(self.metric(name) for name in names):
            if time.monotonic() > ends:
                return False
            time.sleep(0.05)
        return True

    def resident_mb(self) -> float:
        """What it has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return int(dict(line.split(":", 1) for line in status)["VmRSS"].split()[0]) / 2**10


@contextlib.contextmanager
def serving(settings: Settings, *options: str) -> Iterator[Server]:
    """A server of the bundled model while it is open; `options` are more of its own."""
    command = [sys.executable, "-m", "softmask", "serve", "--port", "0", "--device", "cpu"]
    command += ["--running", str(settings.running), "--queue", str(settings.queue), *options]
    if settings.threads is not None:
        command += ["--threads", str(settings.threads)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        with process:
            try:
                yield Server(process, log)
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()


def log_troubles(log: Path) -> list[str]:
    """Lines of the log that are no JSON, or errors."""
    lines = log.read_text(encoding="utf-8").splitlines()
    wrong = [line for line in lines if not line.startswith("{") or '"level": "error"' in line]
    return [f"the log says {line[:2000]}" for line in wrong]


# The run.


def warm(server: Server, settings: Settings) -> None:
    """Has it read many different numbers of rows: it keeps a product of each of the last 32.

    Else it would be by chance in which wave the last of them comes.
    """
    body = {"prompt": PROMPTS[0], "max_tokens": settings.longest, "temperature": 0}
    body["softmask"] = {"steps": max(32, settings.longest // 2), "block_length": None}
    outcomes = asyncio.run(
        ask(server.address, Asked("warm-up", payload(COMPLETIONS, body)), Settings())
    )
    assert all(one.status == 200 for one in outcomes), outcomes


def run(settings: Settings) -> Json:
    """All waves; what was found, and what was not as it should be."""
    outcomes: list[Outcome] = []
    seconds: list[float] = []
    troubles: list[str] = []
    with serving(settings) as server:
        wishes = Wishes(settings)
        wave = wave_of(wishes, wishes.slow(settings.slow_seconds), settings)
        warm(server, settings)
        for number in range(settings.waves):
            started = time.perf_counter()
            outcomes += asyncio.run(crowd(server.address, wave, settings))
            seconds.append(time.perf_counter() - started)
            if not server.is_idle():
                troubles.append(f"wave {number + 1} is over, and something still runs or waits")
            server.rss_mb.append(round(server.resident_mb(), 1))
            print(f"wave {number + 1}: {seconds[-1]:.1f} s, {server.rss_mb[-1]} MB", flush=True)
        if json.loads(server.get("/health")) != {"status": "ok"}:
            troubles.append("/health is not ok")
        server.process.send_signal(signal.SIGTERM)
        # uvicorn passes the signal on when everything is closed.
        if server.process.wait(60) not in (0, -signal.SIGTERM):
            troubles.append(f"the server ended with {server.process.returncode}")
        troubles += log_troubles(server.log)
    growth = server.rss_mb[-1] - server.rss_mb[min(1, settings.waves - 1)]
    if growth > settings.bound_mb:
        troubles.append(f"the server grew by {growth:.1f} MB, more than {settings.bound_mb}")
    troubles += [one.trouble for one in outcomes if one.trouble is not None]
    tokens = sum(one.tokens for one in outcomes)
    return {
        "settings": vars(settings),
        "summary": {
            "answers": table_rows(outcomes),
            "requests": len(outcomes),
            "tokens_per_s": round(tokens / sum(seconds), 1),
            "wave_s": [round(value, 2) for value in seconds],
            "rss_mb": server.rss_mb,
            "growth_mb": round(growth, 1),
        },
        "troubles": troubles,
    }


def table_rows(outcomes: Sequence[Outcome]) -> list[Json]:
    """Requests by kind and status, with their seconds."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in outcomes:
        groups[one.kind, str(one.status)].append(one.seconds)
    return [
        {
            "kind": kind,
            "status": status,
            "count": len(values),
            "median_s": round(statistics.median(values), 3),
            "p95_s": round(sorted(values)[math.ceil(0.95 * len(values)) - 1], 3),
        }
        for (kind, status), values in sorted(groups.items())
    ]


def tables_of(result: Json) -> list[Table]:
    summary = result["summary"]
    answers = light_table(
        f"{summary['requests']} requests, {summary['tokens_per_s']} tokens/s, "
        f"{summary['growth_mb']} MB more at the end than after wave 2, "
        f"{len(result['troubles'])} troubles"
    )
    for column in ("kind", "status", "count", "median s", "p95 s"):
        answers.add_column(column, justify="left" if column == "kind" else "right")
    for row in summary["answers"]:
        seconds = (f"{row[name]:.2f}" for name in ("median_s", "p95_s"))
        answers.add_row(row["kind"], row["status"], str(row["count"]), *seconds)
    return [answers]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--requests", type=int, default=200, help="of a wave (200)")
    parser.add_argument("--threads", type=int, help="CPU threads of the server (all)")
    args = parser.parse_args()
    if args.folder is not None:
        claim(args.folder)
    result = run(Settings(requests=args.requests, threads=args.threads))
    tables = tables_of(result)
    for table in tables:
        Console().print(table)
    if args.folder is not None:
        write(args.folder, ["python", *sys.argv], result, tables)
    print(json.dumps(result))
    return 1 if result["troubles"] else 0


if __name__ == "__main__":
    sys.exit(main())
