"""The server under load, faults and a fuzzer: everybody is answered or told why."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from paths import ROOT
from test_server import serving

import softmask

# What a server may answer a valid request with when it cannot do it: it is closing, or too slow.
EXCUSED = {503, 504}


@pytest.fixture(scope="module")
def load():
    """benchmarks/serve_load.py, which is no package."""
    spec = importlib.util.spec_from_file_location("serve_load", ROOT / "benchmarks/serve_load.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_load"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["serve_load"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(softmask.load(device="cpu"), max_tokens=8, deadline=5.0) as (address, _service):
        yield address


# The benchmark, at small size.


@pytest.mark.long
def test_everybody_is_answered_or_told_why_and_nothing_stays_behind(load) -> None:
    """One test: workers of their own would each run the load."""
    small = load.Settings(
        requests=10,
        waves=3,
        concurrency=16,
        running=8,
        queue=8,
        most_tokens=12,
        slow_seconds=1.0,
        threads=1,
    )
    result = load.run(small)
    assert result["troubles"] == []
    counts: Counter[str] = Counter()
    for row in result["summary"]["answers"]:
        counts[row["status"]] += row["count"]
    assert counts["left"] > 0
    assert counts["200"] > 22
    assert not {"never", "500"} & counts.keys()
    # The server does not grow with the requests that it had.
    sizes = result["summary"]["rss_mb"]
    assert len(sizes) == 3
    assert sizes[2] - sizes[1] < result["settings"]["bound_mb"]
    # Long prompts in every thread of a pool, or a thousand products, would be 300 MB each.
    assert sizes[2] < 800
    # A table for people, JSON for scripts.
    (table,) = load.tables_of(result)
    assert table.row_count == len(result["summary"]["answers"])
    assert json.loads(json.dumps(result))["summary"]["tokens_per_s"] > 0


def test_a_wrong_answer_is_trouble(load) -> None:
    asked = load.Asked("completion", b"", check=load.check_whole(["a"]))
    body = b'{"choices": [{"text": "b"}], "usage": {"completion_tokens": 1}}'
    data = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    assert "'b'" in load.judge(asked, data, 0.0).trouble
    assert load.judge(asked, data[:-3], 0.0).status == "cut"
    assert load.judge(asked, b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", 0.0).trouble


# A fuzzer that reads the schema.


@pytest.fixture(scope="module")
def operations(url) -> dict:
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found = [operation.ok() for operation in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_the_schema_names_all_routes(operations) -> None:
    assert {label.split()[1] for label in operations} == {
        *("/health", "/metrics", "/v1/models", "/v1/models/{name}"),
        *("/v1/chat/completions", "/v1/completions", "/v1/responses"),
        *("/v1/denoise", "/v1/score", "/v1/edits"),
    }


@pytest.mark.long  # hundreds of requests
@pytest.mark.parametrize("path", ["chat/completions", "completions", "denoise"])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_whatever_the_schema_allows_or_forbids_the_server_does_not_fail(
    url, operations, path, mode
) -> None:
    from schemathesis import GenerationMode

    operation = operations[f"POST /v1/{path}"]

    @settings(
        max_examples=15,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
    def check(case) -> None:
        answer = case.call(base_url=url, timeout=600)
        assert answer.status_code < 500 or answer.status_code in EXCUSED, answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]

    check()
