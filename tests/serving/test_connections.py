"""Clients that hold connections and say nothing: they cost others neither time nor the server."""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import time
from contextlib import ExitStack, closing

import httpx2 as httpx
import pytest
from test_server import SERVERS, WAIT, post, serving, until
from tiny import write_dream_folder

import softmask
from softmask.serving.connections import PORTION, Connection, room_for_connections

QUESTION = {"prompt": "x", "max_tokens": 2}
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return softmask.load(write_dream_folder(tmp_path_factory.mktemp("model") / "m"), device="cpu")


def connect(url: str, said: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=WAIT)
    connection.sendall(said)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize(
    "said",
    [
        b"GET /health HT",
        HEAD,
        HEAD + b"content-length: 100\r\n\r\n{",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /health HT",
    ],
)
def test_a_request_that_does_not_arrive_is_told_and_its_connection_closed(checkpoint, said) -> None:
    with serving(checkpoint, arrival=0.2) as (url, _), closing(connect(url, said)) as connection:
        *_, answer = rest(connection).split(b"HTTP/1.1 ")
        assert answer.startswith(b"408 ")
        assert b"did not arrive whole within 0.2 seconds" in answer


@pytest.mark.parametrize(
    "said",
    [b"GET /health HTTP/1.1\r\n\r\n", HEAD + b"content-length: -1\r\n\r\n", b"\0\0\r\n\r\n"],
)
def test_what_is_no_request_is_told_so_as_every_error_is(checkpoint, said) -> None:
    with serving(checkpoint) as (url, _), closing(connect(url, said)) as connection:
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"] == "Invalid HTTP request received"


def test_a_client_that_says_a_byte_now_and_then_gains_no_time(checkpoint) -> None:
    with serving(checkpoint, arrival=0.3) as (url, _), closing(connect(url)) as connection:
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b"G")
            try:
                answer = connection.recv(100)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_request_to_become_a_websocket_is_answered_as_any_other(checkpoint, caplog) -> None:
    with serving(checkpoint) as (url, _service):
        headers = {"connection": "upgrade", "upgrade": "websocket"}
        assert httpx.get(f"{url}/health", headers=headers).status_code == 200
    assert not caplog.records


def test_who_says_nothing_is_cut_off_without_a_word(checkpoint) -> None:
    with serving(checkpoint, arrival=0.2) as (url, _), closing(connect(url)) as connection:
        assert rest(connection) == b""


def test_an_answer_that_nobody_takes_does_not_hold_its_connection(checkpoint) -> None:
    with serving(checkpoint, arrival=0.3) as (url, service):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            host, port = url.removeprefix("http://").split(":")
            connection.connect((host, int(port)))
            # Pages enough for the buffers of both kernels.
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 200)
            server = SERVERS[service]
            until(lambda: server.server_state.connections)
            until(lambda: not server.server_state.connections)
        assert post(url, "/v1/completions", QUESTION).status_code == 200


def test_a_long_computation_is_not_a_slow_client(checkpoint) -> None:
    with serving(checkpoint, arrival=0.1) as (url, service):
        slow = {"prompt": "x", "max_tokens": 60}
        slow["softmask"] = {"steps": 150, "soft_mask": {"scale": 0.5}}
        assert post(url, "/v1/completions", slow).status_code == 200
        assert service.engine.stats().busy_seconds > 0.1


def test_a_connection_that_is_kept_has_its_whole_time_again_with_each_request(checkpoint) -> None:
    with serving(checkpoint, arrival=0.4) as (url, _), ExitStack() as stack:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        stack.enter_context(closing(connection))
        connection.connect()
        connection.auto_open = 0
        for _ in range(6):
            time.sleep(0.1)
            connection.putrequest("GET", "/health")
            time.sleep(0.1)
            connection.endheaders()
            assert connection.getresponse().read() == b'{"status":"ok"}'


@pytest.mark.parametrize("said", [b"", b"GET /he", HEAD + b"content-length: 9\r\n\r\n{"])
def test_more_connections_than_there_may_be_keep_nobody_out(
    checkpoint, said, caplog, monkeypatch
) -> None:
    monkeypatch.setattr(Connection, "warned", -1e9)
    with serving(checkpoint, connections=5) as (url, _service), ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(closing(connect(url, said)))
        assert httpx.get(f"{url}/health", timeout=WAIT).status_code == 200
        assert post(url, "/v1/completions", QUESTION).status_code == 200
    warnings = [r for r in caplog.records if "connections" in r.getMessage()]
    assert len(warnings) == 1
    assert not [r for r in caplog.records if r.exc_info]


def test_where_all_are_being_answered_the_next_one_is_told(checkpoint) -> None:
    with serving(checkpoint, start=False, connections=2) as (url, service), ExitStack() as stack:
        body = b'{"prompt": "x", "max_tokens": 2}'
        question = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
        asked = [stack.enter_context(closing(connect(url, question))) for _ in range(2)]
        until(lambda: service.engine.stats().waiting == 2)
        with closing(connect(url)) as third:
            answer = rest(third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"busy" in answer
        service.engine.start()
        for connection in asked:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_shutdown_does_not_wait_for_requests_that_do_not_arrive(checkpoint) -> None:
    with serving(checkpoint) as (url, _service):
        half = connect(url, HEAD + b"content-length: 100\r\n\r\n{")
        httpx.get(f"{url}/health")
    # `serving` has ended, long before the 30 seconds in which the request might have come.
    with closing(half):
        assert rest(half) == b""


def test_the_limit_on_open_files_bounds_the_connections(monkeypatch) -> None:
    opened = len(os.listdir("/dev/fd"))
    for limit in (256, 1024, 10**6):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, limit=limit: (limit, limit))
        assert 0 < room_for_connections(10**7) < limit - opened - 4 * PORTION
        assert room_for_connections(10) == 10
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (40, 40))
    with pytest.raises(ValueError, match="ulimit -n"):
        room_for_connections(10)
