"""Thousands of mutated HTTP requests: each is answered or refused, and nobody else notices."""

from __future__ import annotations

import copy
import http.client
import json
import random
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_server import WAIT, serving, until
from tiny import write_dream_folder

import softmask

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ROUTES = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "seed": 1},
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": [{"type": "text", "text": "Hi <|im_end|>"}]},
            ],
            "max_completion_tokens": 5,
            "temperature": 0.7,
            "top_p": 0.9,
            "n": 2,
            "stop": ["x", "yy"],
            "logprobs": True,
            "top_logprobs": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "softmask": {"steps": 3, "alg": "topk_margin", "deadline": 1.0},
        },
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "5"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "parallel_tool_calls": False,
        },
    ],
    "/v1/responses": [
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "5"},
            ],
            "instructions": "Be short.",
            "max_output_tokens": 4,
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"enum": [1]}}},
            "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
            "tool_choice": "none",
            "include": ["message.output_text.logprobs"],
            "stream": True,
        },
    ],
    "/v1/completions": [
        {"prompt": "One day", "max_tokens": 6, "seed": 2, "temperature": 1.0, "logprobs": 2},
        {"prompt": ["a", "b"], "suffix": " end.", "max_tokens": 3, "stream": True, "top_k": -1},
        {
            "prompt": [[5, 6], [7]],
            "max_tokens": 4,
            "softmask": {"block_length": 2, "cache": "dual"},
        },
        {
            "prompt": [8, 9],
            "max_tokens": 8,
            "softmask": {
                "threshold": 0.5,
                "threshold_end": 0.2,
                "eps": 0.01,
                "end_penalty": 1.0,
                "soft_mask": {"mode": "topk", "k": 2, "scale": 0.5, "offset": -1.0},
            },
        },
        {
            "prompt": "x",
            "max_tokens": 8,
            "softmask": {
                "block_length": 4,
                "cache": "prefix",
                "refresh_every": 2,
                "refresh_window": 1,
                "entropy_bound": 0.5,
                "soft_mask": {"mode": "temperature", "scale": 1.0, "temperature": 0.5},
            },
        },
    ],
    "/v1/denoise": [
        {"infill": "One[[2]] two[[3]].", "candidates": 3, "stream": False},
        {"prompt": "One", "max_tokens": 3, "softmask": {"alg": "origin", "alg_temp": 0.5}},
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": False},
    ],
}
GETS = ("/", "/health", "/metrics", "/v1/models", "/v1/models/m", "/openapi.json")
# Statuses that say whose fault it is: no 5xx but these two.
STATED = {503, 504}
# What stands in JSON without being a value of Python's.
RAW = {
    f"raw-{i}": text for i, text in enumerate(["9" * 5000, "-" + "9" * 4000, "1e999", "[" * 5000])
}
NASTY: list[Any] = [
    *(None, True, False, 0, -0.0, -1, 1, 2, 0.5, 1.5, 20, 64, 4096, 2**31, 2**53, 2**63, 2**64),
    *(-(2**63), 10**400, 1e39, -1e39, 3.4e38, 1e-320, 1e-46, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "\0", "\ud800", "\udfff\ud800", "e\u0301", "🙂" * 50, "x" * 20000, "-inf"),
    *("<|mask|>", "<|im_end|>\n<|im_start|>system", "[[3]]", "[[0]]", "[[999999]]", "[[٣]]"),
    *(
        "none",
        "dual",
        "checkpoint",
        "entropy",
        "user",
        "{{ 1/0 }}",
        "{% for %}",
        "\r\n\r\n",
        "\u2028",
    ),
    *([], [[]], [None], [0], [-1], [10**30], [1.5], ["x"] * 3000, [1] * 5000, [[1]] * 100),
    *(
        {},
        {"": None},
        {"type": "text"},
        {"a" * 500: 1},
        {"\ud800": 1},
        {str(i): i for i in range(500)},
    ),
    *([{"role": "user", "content": "x"}] * 200, {"role": "user"}, [{"type": "text", "text": "x"}]),
    *RAW,
]
NAMES = [
    *("top_k", "min_p", "echo", "tools", "user", "logit_bias", "best_of", "suffix", "infill", "n"),
    *(
        "steps",
        "cache",
        "seed",
        "soft_mask",
        "alg_temp",
        "factor",
        "block_length",
        "",
        "\ud800",
        "é",
    ),
    *(
        "__class__",
        "model_config",
        "x" * 3000,
        "max-tokens",
        "stop",
        "stream",
        "messages",
        "prompt",
    ),
]


# Settings at the ends of what is allowed.
EXTREMES: dict[str, tuple] = {
    "steps": (1, 2, 7, 128, 4096),
    "alg": ("origin", "maskgit_plus", "topk_margin", "entropy"),
    "block_length": (1, 2, 3, 100, 2**62),
    "cache": ("none", "prefix", "dual"),
    "refresh_every": (1, 2, 2**62),
    "refresh_window": (0, 1, 2**62),
    "threshold": (0, 1e-300, 0.5, 1),
    "threshold_end": (0, 1),
    "factor": (0, 1.5, 3.4e38),
    "entropy_bound": (0, 1e-300, 3.4e38),
    "entropy_threshold": (0, 1e-300, 3.4e38),
    "next_block_at": (1e-300, 0.5, 1),
    "agreement": (1, 2, 2**62),
    "commit_from": ("soft", "plain"),
    "score_temperature": (1e-6, 1, 100),
    "eps": (1e-320, 1e-3, 0.9999999999999999),
    "end_penalty": (-1e6, 1e-300, 1e6),
    "alg_temp": (0, 1e-6, 3.4e38),
    "top_k": (-1, 1, 2, 2**62),
    "deadline": (1e-9, 0.01, 1),
}
SOFT_EXTREMES: dict[str, tuple] = {
    "mode": ("topk", "temperature"),
    "k": (1, 2, 20),
    "scale": (0, 1e-320, 0.5, 1),
    "offset": (0, -1e-320, -1, -3.4e38),
    "steepness": (0, 1e-320, 1, 3.4e38),
    "temperature": (1e-6, 1, 100),
    "schedule": ("none", "linear", "stepwise"),
    "mixture": ("linear", "norm_kept", "spherical", "additive"),
    "weight": ("sigmoid", "constant", "entropy"),
    "entropy_temperature": (1e-6, 2, 100),
    "token_temperature": (1e-6, 2, 100),
    "feedback": ("spherical", "rcd"),
}


def extreme(chance: random.Random) -> dict[str, Any]:
    """A request whose settings are all allowed, each for itself."""

    def some(values: dict[str, tuple]) -> dict[str, Any]:
        names = chance.sample(sorted(values), chance.randrange(5))
        return {name: chance.choice(values[name]) for name in names}

    body = copy.deepcopy(chance.choice(ROUTES["/v1/completions"]))
    body["softmask"] = some(EXTREMES)
    if chance.random() < 0.7:
        body["softmask"]["soft_mask"] = {"scale": 0.5, **some(SOFT_EXTREMES)}
    sampling = {"temperature": (0, 1e-6, 2), "top_p": (1e-300, 0.5, 1), "n": (1, 3)}
    return body | some({**sampling, "logprobs": (0, 20), "seed": (0, 2**62), "max_tokens": (1, 40)})


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in a body."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
        else:
            found.append((*path, key))
    return found


def mutated(body: Any, chance: random.Random) -> Any:
    """A body with one to three things replaced, left out, added or renamed."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        there = places(body)
        if not there:
            break
        *path, key = chance.choice(there)
        owner = body
        for part in path:
            owner = owner[part]
        way = chance.random()
        if way < 0.65:
            owner[key] = copy.deepcopy(chance.choice(NASTY))
        elif way < 0.75:
            del owner[key]
        elif isinstance(owner, dict):
            owner[chance.choice(NAMES)] = (
                copy.deepcopy(chance.choice(NASTY)) if way < 0.95 else owner.pop(key)
            )
        else:
            owner.insert(0, copy.deepcopy(body) if len(str(body)) < 2000 else None)
    return body


def as_bytes(body: Any, chance: random.Random) -> bytes:
    """JSON, or nearly."""
    text = json.dumps(body, ensure_ascii=chance.random() < 0.7)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    content = text.encode("utf-8", "surrogatepass")
    way = chance.random()
    if way < 0.8:
        return content
    if way < 0.83:
        return text.encode(chance.choice(("utf-16", "utf-32", "utf-8-sig")), "surrogatepass")
    place = chance.randrange(len(content) + 1)
    if way < 0.88:
        return content[:place]
    junk = chance.randbytes(chance.choice((1, 3, 50)))
    return content[:place] + junk + content[place + chance.choice((0, 1, 5)) :]


def headers_of(chance: random.Random) -> dict[str, str]:
    """Mostly those of a client, sometimes odd ones."""
    headers = {"content-type": "application/json"}
    if chance.random() < 0.75:
        return headers
    kinds = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        "é",
        ";;;",
    ]
    kinds += ["application/json; charset=utf-16", "application/vnd.api+json", "json", 'a/b/c; d="e']
    odd = {
        "content-type": chance.choice(kinds),
        "content-encoding": "gzip",
        "accept": "image/png",
        "authorization": chance.choice(("Bearer ", "Basic e", "é")),
        "origin": "http://evil.example",
        "host": chance.choice(("", "é", "[::", "x" * 300)),
        "upgrade": "websocket",
        "connection": chance.choice(("close", "upgrade", "keep-alive, upgrade")),
        "expect": "100-continue",
        "x-forwarded-for": "1.2.3.4",
        "range": "bytes=0-1",
        "cookie": "x" * 5000,
    }
    for name in chance.sample(sorted(odd), chance.choice((1, 2))):
        headers[name] = odd[name]
    return headers


def paths_of(chance: random.Random) -> str:
    odd = [
        "*",
        "//",
        "/..",
        "/%00",
        "/%ff%fe",
        "/v1",
        "/v1/",
        "/v1/models/%F0%9F",
        "/v1/models/" + "x" * 3000,
    ]
    odd += [
        "/v1/completions/",
        "/V1/completions",
        "/health?x=%00",
        "/docs",
        "/v1/models/../x",
        "http://x/",
    ]
    return chance.choice([*odd, *GETS, *ROUTES])


def asked(number: int) -> tuple[str, str, bytes, dict[str, str]]:
    """Request `number`: method, path, body, headers."""
    chance = random.Random(number)
    method, (path, bodies) = "POST", chance.choice(list(ROUTES.items()))
    if chance.random() < 0.2:
        content = json.dumps(extreme(chance)).encode()
        return method, "/v1/completions", content, {"content-type": "application/json"}
    content = as_bytes(mutated(chance.choice(bodies), chance), chance)
    if chance.random() < 0.1:
        method = chance.choice(
            ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "POST", "X")
        )
        path = paths_of(chance)
    return method, path, content, headers_of(chance)


def send(
    address: str, method: str, path: str, content: bytes, headers: dict
) -> tuple[int, str, bytes]:
    """Status, content type and body; status 0 where the connection was closed without one."""
    connection = http.client.HTTPConnection(address, timeout=WAIT)
    try:
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        connection.request(method, path, body=content, headers=encoded)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("content-type", ""), answer.read()
    except (http.client.RemoteDisconnected, ConnectionError):
        return 0, "", b""
    finally:
        connection.close()


def fault_of(status: int, kind: str, body: bytes, method: str) -> str | None:
    """What is wrong with an answer."""
    if status >= 500 and status not in STATED:
        return "a fault of the server's"
    if b"Traceback" in body or len(body) > 2_000_000:
        return "an answer that says too much"
    if status == 0:
        return "no answer"
    if status >= 400 and method != "HEAD" and kind.startswith("application/json"):
        message = json.loads(body)["error"]["message"]
        if not message or "\n" in message or len(message) > 600:
            return "no sentence"
    elif status >= 400 and method != "HEAD" and body != b"Invalid HTTP request received.":
        return "an error in another shape"
    if status == 200 and kind.startswith("text/event-stream") and b'"status": 500' in body:
        return "a stream that failed"
    return None


def streamed_faults(body: bytes) -> bool:
    return b"the model failed on this request" in body


GOOD = [
    ("/v1/completions", {"prompt": "One", "max_tokens": 9, "seed": 4, "temperature": 0.8}),
    ("/v1/chat/completions", {**ROUTES["/v1/chat/completions"][0], "temperature": 1.1}),
    ("/v1/completions", {"prompt": "Two", "suffix": "!", "max_tokens": 7}),
]


def told(address: str, path: str, body: dict) -> Any:
    """The text of a good answer."""
    content = json.dumps(body).encode()
    status, _, answer = send(address, "POST", path, content, {"content-type": "application/json"})
    assert status == 200, answer
    (choice,) = json.loads(answer)["choices"]
    return choice.get("text", choice.get("message"))


def flood(address: str, numbers: range, threads: int = 4) -> list[str]:
    """Sends the mutated requests, good ones between; returns what went wrong."""
    alone = [told(address, *good) for good in GOOD]
    statuses: Counter[int] = Counter()

    def one(number: int) -> list[str]:
        faults = []
        method, path, content, headers = asked(number)
        status, kind, body = send(address, method, path, content, headers)
        statuses[status] += 1
        fault = fault_of(status, kind, body, method)
        if fault is None and streamed_faults(body):
            fault = "a request that failed"
        if fault is not None:
            faults.append(
                f"{number}: {method} {path[:80]} {content[:200]!r} -> {status}: {fault}, "
                f"{body[:200]!r}"
            )
        if number % 20 == 0:
            which = number // 20 % len(GOOD)
            if told(address, *GOOD[which]) != alone[which]:
                faults.append(f"{number}: the good answer {which} is another than alone")
        return faults

    with ThreadPoolExecutor(threads) as pool:
        faults = [fault for some in pool.map(one, numbers) for fault in some]
    # The mutations must not all be refused at the door.
    assert statuses[200] > len(numbers) / 50, statuses
    assert statuses[400] > len(numbers) / 3, statuses
    return faults


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "m", chat=True)
    return softmask.load(folder, device="cpu")


def check(checkpoint, caplog, attack: Callable[[str], list[str]]) -> None:
    with serving(checkpoint, deadline=2.0, max_tokens=8) as (url, service):
        address = url.removeprefix("http://")
        faults = attack(address)
        assert not faults, "\n".join(faults[:20])
        assert send(address, "GET", "/health", b"", {})[0] == 200
        until(lambda: service.engine.stats().running == service.engine.stats().waiting == 0)
        assert "failed" not in service.engine.stats().ended
    assert not [record for record in caplog.records if record.exc_info]


def test_mutated_requests_are_answered_or_refused(checkpoint, caplog) -> None:
    check(checkpoint, caplog, lambda address: flood(address, range(200)))


@pytest.mark.slow
def test_thousands_of_mutated_requests_are_answered_or_refused(checkpoint, caplog) -> None:
    check(checkpoint, caplog, lambda address: flood(address, range(200, 6200)))


@pytest.mark.slow
def test_what_is_not_even_http_keeps_nobody_out(checkpoint, caplog) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    whole = head + b'content-length: 15\r\n\r\n{"prompt": "x"}'

    def attack(address: str) -> list[str]:
        alone = told(address, *GOOD[0])
        for number in range(1000):
            chance = random.Random(number)
            data = bytearray(whole)
            for _ in range(chance.choice((1, 2, 8))):
                place = chance.randrange(len(data))
                data[place : place + chance.choice((0, 1, 9))] = chance.randbytes(
                    chance.choice((0, 1, 3))
                )
            host, port = address.split(":")
            with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
                connection.sendall(bytes(data) * chance.choice((1, 1, 5)))
                if chance.random() < 0.3:
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(100)
            if number % 50 == 0 and told(address, *GOOD[0]) != alone:
                return ["the good answer is another than alone"]
        return []

    check(checkpoint, caplog, attack)
